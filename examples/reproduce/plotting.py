"""How figures look, and the parts that they share."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files: no display needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Array, Runs, Statistic, interval

#: of methods: the same in every figure
NAMES = {
    "pg": "policy gradient",
    "half_pg": "half the policy gradient",
    "dg": "DG",
    "kondo": "Kondo",
    "ppo": "PPO's clip",
    "iw": "importance weights",
    "vtrace": "V-trace",
    "pmpo": "PMPO",
    "scaled_po": "Scaled PO",
    "asympo": "ASymPO",
    "cross_entropy": "cross-entropy (sees labels)",
}
COLOURS = {
    "pg": "#4c72b0",
    "half_pg": "#64b5cd",
    "dg": "#c44e52",
    "kondo": "#dd8452",
    "ppo": "#8172b3",
    "iw": "#937860",
    "pmpo": "#55a868",
    "scaled_po": "#d16ba5",
    "asympo": "#333333",
    "cross_entropy": "#333333",
    "random": "#333333",
    "sampled": "#2a7f7f",  # actions that are; no methods
    "deterministic": "#b8860b",
}
#: task and arm that ran on another day or machine than the task's others, and would pass for faster
NO_SECONDS = {
    *((env, "half_pg") for env in ("CartPole-v1", "HalfCheetah-v5", "MinAtar/Breakout-v1", "MinAtar/Asterix-v1")),
    ("MinAtar/SpaceInvaders-v1", "ppo"),
    *(
        (f"MinAtar/{game}-v1", method)
        for game in ("Breakout", "Asterix", "SpaceInvaders")
        for method in ("half_pg_entropy", "random_5_entropy")
    ),
}
STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


def solid(method: str) -> tuple[str, str, str]:
    """Name, colour and line of a method as such, beside which its variants have others."""
    return NAMES[method], COLOURS[method], "-"


def seconds_mislead(config: Any) -> bool:
    """Whether a run's seconds do not compare with those of its task's others."""
    return (config.env, config.method) in NO_SECONDS


def shades(count: int) -> list[Any]:
    """Colours for arms that differ in a number."""
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.88, count)]


def panels(
    count: int = 1, width: float = 5.2, height: float = 3.7, rows: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row after row; width and height are of a panel, in inches."""
    columns = count // rows
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    return figure, list(axes.flat)


def draw(axes: Axes, runs: Runs, config: Any, metric: str, label: str, **style: Any) -> None:
    """A curve over steps: mean over seeds, shaded 95 % interval. Draws nothing if the config was not run."""
    steps, values = runs.get(config, metric)
    if values.size:
        band(axes, steps, values, label, **style)


def band(
    axes: Axes, x: Array, values: Array, label: str, statistic: Statistic = np.mean, shaded: bool = True, **style: Any
) -> None:
    middle, low, high = interval(values, statistic)
    (line,) = axes.plot(x, middle, label=label, **style)
    if shaded:
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def points(
    axes: Axes, x: Sequence[float], samples: Sequence[Array], label: str, statistic: Statistic = np.mean, **style: Any
) -> None:
    """A statistic and its interval at each x, over however many seeds ran there; none where none did."""
    place, middle, low, high = estimates(x, samples, statistic)
    if place.size:
        (line,) = axes.plot(place, middle, label=label, marker="o", **style)
        axes.fill_between(place, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def level(axes: Axes, values: Array, label: str, statistic: Statistic = np.mean, **style: Any) -> None:
    """As :func:`points`, of what has no x: a dotted line, at all of them."""
    middle, low, high = interval(values, statistic)
    line = axes.axhline(float(middle), linestyle=":", label=label, **style)
    axes.axhspan(float(low), float(high), color=line.get_color(), alpha=0.08, linewidth=0)


def intervals(
    axes: Axes,
    places: Iterable[float],
    samples: Sequence[Array],
    label: str | None = None,
    upright: bool = False,
    statistic: Statistic = np.mean,
    **style: Any,
) -> None:
    """As :func:`points`, of things that have no order: a dot and a bar each, along x, or along y if upright."""
    place, middle, low, high = estimates(places, samples, statistic)
    if place.size:
        error = [middle - low, high - middle]
        along = {"x": place, "y": middle, "yerr": error} if upright else {"x": middle, "y": place, "xerr": error}
        axes.errorbar(**along, fmt="o", label=label, **style)


def estimates(places: Iterable[float], samples: Sequence[Array], statistic: Statistic = np.mean) -> Array:
    """Where anything was run: place, statistic, lower and upper bound, ``[4, *]``."""
    done = [(place, *interval(sample, statistic)) for place, sample in zip(places, samples, strict=True) if sample.size]
    return np.array(done, dtype=float).reshape(-1, 4).T


def line_each(axes: Axes, names: Sequence[str], named: bool = True) -> None:
    """Along y a line for each name, the first on top; unnamed where a panel to the left names them."""
    axes.set_yticks(range(len(names)), names if named else [""] * len(names))
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)


def legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """One legend for all panels, by what one of them shows."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, handlelength=3)

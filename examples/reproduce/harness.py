"""One harness for every experiment: a sweep is data, a run is a row in a CSV, a figure is drawn from the CSV alone.

An experiment script defines a frozen ``Config``, ``run(config, seeds) -> rows``, and two dictionaries: ``SWEEP``
(figure -> configs) and ``FIGURES`` (figure -> function drawing it). :func:`main` makes a command line of them::

    python examples/reproduce/mnist.py --figure staleness [--seeds 30] [--smoke] [--plot-only] [--workers 4]

Stopping costs nothing: a (config, seed) that the CSV holds is skipped, however the command before it ended.
"""

import argparse
import csv
import dataclasses
import functools
import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures go to files: no display needed
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

HERE = Path(__file__).parent
Row = dict[str, Any]
Array = npt.NDArray[np.float64]
Statistic = Callable[..., Any]  # over seeds: np.mean, np.median
PROVENANCE = ("seconds", "torch", "numpy", "device", "commit")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a script hands to :func:`main`."""

    name: str  # results/<name>.csv, figures/<name>_<figure>.png
    sweep: dict[str, list[Any]]  # figure -> configs, each a frozen dataclass with a field `updates`
    run: Callable[[Any, list[int]], list[Row]]  # rows hold seed, step and metrics; the last step of a run is `updates`
    figures: Mapping[str, Callable[["Runs"], Figure]]
    metrics: tuple[str, ...]  # columns of the CSV; a run may leave some empty
    seeds: int  # by default; --seeds overrides
    seeds_per_job: int  # how many seeds one call of `run` computes as a batch
    smoke: dict[str, Any]  # fields replaced by --smoke, so that a run takes a second
    summary: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)  # metrics to print, at the end of runs
    first_seed: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by figure, where it is not 0


def vary(config: Any, field: str, values: Iterable[Any]) -> list[Any]:
    """One config for each value of a field."""
    return [dataclasses.replace(config, **{field: value}) for value in values]


# --- runs and rows ------------------------------------------------------------------------------------------------


def run_name(config: Any) -> str:
    """Names a run in the CSV: the fields that differ from their defaults, and a hash of all of them.

    The hash makes a changed default another run; the fields make the CSV readable.
    """
    values = [(field.name, getattr(config, field.name), field.default) for field in dataclasses.fields(config)]
    changed = " ".join(f"{name}={value}" for name, value, default in values if value != default)
    return f"{changed} #{hashlib.sha256(repr(config).encode()).hexdigest()[:6]}".strip()


def read_rows(path: Path) -> list[Row]:
    """Rows of the CSV, less a torn last line: a kill in mid-write leaves one without its newline."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = lines if lines and lines[-1].endswith("\n") else lines[:-1]
    rows: list[Row] = list(csv.DictReader(whole))
    return [row for row in rows if None not in row.values() and None not in row]


def drop_torn_runs(path: Path, columns: Sequence[str]) -> None:
    """Rewrite the CSV without what a kill left half written: a torn line, or a run that lacks its last row."""
    rows = read_rows(path)
    finished = {(row["run"], row["seed"]) for row in rows if row["left"] == "0"}
    kept = [row for row in rows if (row["run"], row["seed"]) in finished]
    text = as_text(kept, columns)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def as_text(rows: Sequence[Row], columns: Sequence[str], header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def append_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """One write, so that the rows of a job are there as a whole, or end in a torn line that the next start drops."""
    with path.open("ab", buffering=0) as file:
        file.write(as_text(rows, columns, header=False).encode())
        os.fsync(file.fileno())


@functools.cache
def commit() -> str:
    """Of the code, with "-dirty" where it was changed since; rows and figures, which runs write, do not count."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    described = git("describe", "--always")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results", ":!figures")
    return (described or "uncommitted") + ("-dirty" if changed else "")


def run_job(job: tuple[Callable[[Any, list[int]], list[Row]], Any, list[int]]) -> tuple[Any, list[Row]]:
    """Runs some seeds of a config, and says of every row where it comes from."""
    run, config, seeds = job
    started = time.process_time()
    rows = run(config, seeds)
    rows.sort(key=lambda row: (row["seed"], row["step"]))
    provenance = {
        "run": run_name(config),
        "seconds": round((time.process_time() - started) / len(seeds), 2),  # of one core; a seed's share of its batch
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": "cpu",
        "commit": commit(),
    }
    per_seed = len(rows) // len(seeds)
    return config, [{**row, **provenance, "left": per_seed - 1 - i % per_seed} for i, row in enumerate(rows)]


def worker_setup() -> None:
    torch.set_num_threads(1)  # many small runs: one thread each beats many threads on one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    commit()  # now: the code that was loaded, not what it is when the first run ends


def compute(experiment: Experiment, configs: list[Any], seeds: range, workers: int, path: Path) -> None:
    """Run what the CSV lacks."""
    columns = ["run", "seed", "step", *experiment.metrics, "left", *PROVENANCE]
    drop_torn_runs(path, columns)
    recorded = Runs(path, configs)
    jobs = []
    for config in configs:
        missing = [seed for seed in seeds if seed not in recorded.seeds(config)]
        # Batches small enough to give every worker one, where there are few configs.
        size = max(1, min(experiment.seeds_per_job, -(-len(missing) * len(configs) // workers)))
        jobs += [(experiment.run, config, missing[i : i + size]) for i in range(0, len(missing), size)]
    if not jobs:
        return
    count, known = sum(len(batch) for _, _, batch in jobs), recorded.seconds()
    estimate = f", about {np.mean(known) * count / 60:.0f} minutes of a core" if known else ""
    print(f"{count} runs that {path.name} lacks{estimate} (--plot-only draws what it holds)")
    total = sum(max(1, config.updates) * len(batch) for _, config, batch in jobs)
    context = multiprocessing.get_context("spawn")
    with tqdm(total=total, unit=" updates", unit_scale=True, smoothing=0, desc=experiment.name) as bar:
        if workers == 1:
            torch.set_num_threads(1)
            results: Iterator[tuple[Any, list[Row]]] = map(run_job, jobs)
            write_results(results, path, columns, bar)
        else:
            with context.Pool(workers, worker_setup) as pool:  # leaving the block, on Ctrl-C too, ends the workers
                write_results(pool.imap_unordered(run_job, jobs), path, columns, bar)


def write_results(results: Iterator[tuple[Any, list[Row]]], path: Path, columns: list[str], bar: Any) -> None:
    for config, rows in results:
        append_rows(path, rows, columns)
        bar.update(max(1, config.updates) * len({row["seed"] for row in rows}))


# --- reading a CSV back -------------------------------------------------------------------------------------------


class Runs:
    """Metrics per config, read from the CSV. Rows of configs that the sweep no longer holds are ignored."""

    def __init__(self, path: Path, configs: Sequence[Any]) -> None:
        self.configs = list(configs)
        self._rows: dict[str, dict[int, list[Row]]] = {}
        for row in read_rows(path):
            rows = self._rows.setdefault(row["run"], {}).setdefault(int(row["seed"]), [])
            if not rows or rows[-1]["left"] != "0":  # two commands at once may both have computed a run: one is enough
                rows.append(row)

    def get(self, config: Any, metric: str) -> tuple[Array, Array]:
        """:return: steps ``[P]`` and values ``[seeds, P]``; no seeds, ``[0, 0]``, if the config was not run"""
        runs = [rows for rows in self._rows.get(run_name(config), {}).values() if rows[-1]["left"] == "0"]
        if not runs:
            return np.zeros(0), np.zeros((0, 0))
        steps = np.array([float(row["step"]) for row in runs[0]])
        return steps, np.array([[float(row[metric] or "nan") for row in rows] for rows in runs])

    def last(self, config: Any, metric: str) -> Array:
        """:return: the metric at the end of each seed's run, ``[seeds]``"""
        values = self.get(config, metric)[1]
        return values[:, -1] if values.size else np.zeros(0)

    def late(self, config: Any, metric: str) -> Array:
        """:return: mean of the last three evaluations of each seed's run, ``[seeds]``: one alone is noisy"""
        values = self.get(config, metric)[1]
        return values[:, -3:].mean(axis=1) if values.size else np.zeros(0)

    def last_by_seed(self, config: Any, metric: str) -> dict[int, float]:
        """:return: seed -> the metric at the end of its run"""
        runs = self._rows.get(run_name(config), {})
        return {seed: float(rows[-1][metric] or "nan") for seed, rows in runs.items() if rows[-1]["left"] == "0"}

    def seeds(self, config: Any) -> set[int]:
        """Of which the CSV holds rows."""
        return set(self._rows.get(run_name(config), {}))

    def seconds(self) -> list[float]:
        """Of one core, for every run of the figure's configs."""
        seeds = [self._rows.get(name, {}) for name in {run_name(config) for config in self.configs}]
        return [float(rows[0]["seconds"]) for by_seed in seeds for rows in by_seed.values()]


RATIO_METHODS = ("iw", "ppo")


def run_that_stands_for(method: str, age: int) -> str:
    """With the learner's own weights on the actor every ratio is 1: those who use it are the policy gradient."""
    return "pg" if age == 0 and method in RATIO_METHODS else method


def interval(values: Array, statistic: Statistic = np.mean, resamples: int = 2000) -> tuple[Array, Array, Array]:
    """A statistic over seeds with its 95 % bootstrap interval (percentile).

    :param values: ``[seeds, *]``
    :return: statistic, lower and upper bound, each ``[*]``
    """
    values = np.asarray(values, dtype=float)
    choice = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    resampled = statistic(values[choice], axis=1)
    # Order statistics without interpolation: a median over runs that never got there may be infinite.
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0, method="nearest")
    return statistic(values, axis=0), low, high


def extent(counts: Sequence[int]) -> str:
    """``"5"``, or ``"3-5"`` where they differ."""
    return "-".join(map(str, sorted({min(counts, default=0), max(counts, default=0)})))


def in_words(values: Array, statistic: Statistic = np.mean) -> str:
    """``.021 [.019, .024], 30 seeds``"""
    if not len(values):
        return "not run"
    middle, low, high = interval(values, statistic)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}], {len(values)} seeds"


# --- plots --------------------------------------------------------------------------------------------------------

COLOURS = {
    "pg": "#4c72b0",
    "dg": "#c44e52",
    "kondo": "#dd8452",
    "ppo": "#8172b3",
    "iw": "#937860",
    "pmpo": "#55a868",
    "half_pg": "#64b5cd",
    "oracle": "#333333",
    "sampled": "#2a7f7f",  # actions that are; no methods
    "deterministic": "#b8860b",
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


def shades(count: int) -> list[Any]:
    """Colours for arms that differ in a number."""
    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0, 0.88, count)]


def panels(count: int = 1, width: float = 5.2, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(width * count, height), squeeze=False, layout="constrained")
    return figure, list(axes[0])


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


# --- random numbers, and the command line -------------------------------------------------------------------------


def draws(seeds: Sequence[int], stream: int, draw_block: Callable[[torch.Generator, int], Tensor]) -> Iterator[Tensor]:
    """An endless stream of random tensors ``[seeds, *]``, in which a seed's numbers do not depend on its company.

    :param stream: number of the stream: one each for contexts, actions, ..., so that methods share them
    :param draw_block: ``(generator, n) -> [n, *]``; blocks, as a call per update would cost more than the update
    """
    generators = [torch.Generator().manual_seed(1000 * seed + stream) for seed in seeds]
    while True:
        yield from torch.stack([draw_block(generator, 128) for generator in generators], dim=1)


def checkpoints(updates: int, points: int = 24) -> set[int]:
    """Updates at which to write a row: geometric, as errors fall by factors, and with the first and the last."""
    return {0, updates, *np.geomspace(min(10, max(updates, 1)), max(updates, 1), points).round().astype(int).tolist()}


def main(
    experiment: Experiment,
    argv: Sequence[str] | None = None,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    override: Callable[[argparse.Namespace], dict[str, Any]] | None = None,
) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--figure", default="all", choices=["all", *experiment.sweep])
    parser.add_argument("--seeds", type=int, default=experiment.seeds)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--plot-only", action="store_true", help="draw what the CSV holds, run nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny runs into a temporary folder: does it work at all")
    parser.add_argument("--output", type=Path, help="folder of results/ and figures/; by default that of the script")
    if options:
        options(parser)
    args = parser.parse_args(argv)
    fields = (override(args) if override else {}) | (experiment.smoke if args.smoke else {})
    seeds = min(args.seeds, 2) if args.smoke else args.seeds
    output = args.output or (Path(tempfile.mkdtemp(prefix="smoke-")) if args.smoke else HERE)
    path = output / "results" / f"{experiment.name}.csv"
    figures = list(experiment.sweep) if args.figure == "all" else [args.figure]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is Ctrl-C, or the workers would go on
    for figure in figures:
        configs = list(dict.fromkeys(dataclasses.replace(config, **fields) for config in experiment.sweep[figure]))
        first = experiment.first_seed.get(figure, 0)
        try:
            if not args.plot_only:
                compute(experiment, configs, range(first, first + seeds), args.workers, path)
        except KeyboardInterrupt:
            print(f"stopped; {path} keeps what is done, and the same command continues")
            return
        runs = Runs(path, configs)
        seconds = runs.seconds()
        if not seconds:
            print(f"{figure}: {path} holds no run of it, nothing to draw")
            continue
        (output / "figures").mkdir(parents=True, exist_ok=True)
        with plt.rc_context(STYLE):
            drawn = experiment.figures[figure](runs)
            drawn.savefig(output / "figures" / f"{experiment.name}_{figure}.png")
            plt.close(drawn)
        print(f"{output / 'figures'}/{experiment.name}_{figure}.png: {sum(seconds) / 60:.1f} core minutes")
        for config in configs:
            numbers = [f"{m} {in_words(runs.last(config, m), how)}" for m, how in experiment.summary.items()]
            print(f"    {run_name(config):60}", " | ".join(numbers))

"""Which learning rate in a million steps on MuJoCo: the same few for each method.

The settings were chosen in runs of 300k steps. Later the policy is narrower, so that a step of the same size moves it
further, and PPO's clip does not hold that: on Ant at .0003 returns rise, and fall again. These runs have seeds of
their own; what a rate that was chosen by them is worth, others say.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotting
import records
from control_tasks import FRESH_SEED, LABELS, MUJOCO, Config
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Runs

TASKS = [MUJOCO[f"{robot}-v5"] for robot in ("Ant", "HalfCheetah", "Hopper", "Walker2d")]
RATES = (3e-5, 1e-4, 3e-4)
METHODS = ("pg", "pg_entropy", "dg")
LINES = {"pg": "--", "pg_entropy": ":", "dg": "-"}
METRICS = {"deterministic": "mean actions", "sampled": "sampled actions"}


def arms(known: list[Config]) -> list[Config]:
    """Every method at every rate.

    :param known: arms of the task's own figure
    """
    of_method = {arm.method: arm for arm in known}
    return [replace(of_method[method], learning_rate=rate) for rate in RATES for method in METHODS]


def draw(runs: Runs) -> Figure:
    """A column for each task: curves, and returns late in training for each way to act. Prints these."""
    runs = runs.below(FRESH_SEED)
    envs = list(dict.fromkeys(config.env for config in runs.configs))
    rows = 1 + len(METRICS)
    figure, panels = plotting.panels(rows * len(envs), width=4.0, height=3.2, rows=rows)
    for place, env in enumerate(envs):
        mine = [config for config in runs.configs if config.env == env]
        draw_curves(panels[place], runs, mine)
        panels[place].set(title=env, xlabel="million environment steps", ylabel="return, mean actions")
        for row, (metric, acting) in enumerate(METRICS.items(), start=1):
            axes = panels[row * len(envs) + place]
            draw_late(axes, runs, mine, metric)
            axes.set(xlabel="learning rate", ylabel=f"late return, {acting}")
    curves: dict[str, Any] = {}  # of all tasks
    for axes in panels[: len(envs)]:
        lines, labels = axes.get_legend_handles_labels()
        curves |= dict(zip(labels, lines, strict=True))
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=len(RATES), handlelength=3)
    return figure


def draw_curves(axes: Axes, runs: Runs, configs: Sequence[Config]) -> None:
    colours = dict(zip(RATES, plotting.shades(len(RATES)), strict=True))
    for config in configs:
        steps, values = runs.get(config, "deterministic")
        if values.size:
            rate = float(config.learning_rate)
            label = f"{LABELS[config.method][0]}, learning rate {rate:g}"
            style = {"color": colours[rate], "linestyle": LINES[config.method]}
            plotting.band(axes, steps / 1e6, values, label, shaded=False, **style)


def draw_late(axes: Axes, runs: Runs, configs: Sequence[Config], metric: str) -> None:
    for method in METHODS:
        scores = {float(each.learning_rate): runs.late(each, metric) for each in configs if each.method == method}
        for rate, values in scores.items():
            print(f"{configs[0].env:16} {metric:14} {LABELS[method][0]:32} {rate:<7g} {records.in_words(values)}")
        name, colour, _ = LABELS[method]
        plotting.points(axes, list(scores), list(scores.values()), name, color=colour, linestyle=LINES[method])
    axes.set_xscale("log")
    axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes.minorticks_off()

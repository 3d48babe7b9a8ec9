"""Equal tuning budgets: trials drawn at random, in which every method has the same settings but for one of its own.

So two methods can be compared trial by trial, whatever the settings are worth; a setting's values over all trials; and
the best of a number of trials, which is what tuning finds (Dodge et al., 2019).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import control_levers
import harness
import numpy as np
from control_tasks import LABELS, Config
from harness import Array, Runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats.qmc import LatinHypercube

from sb3_delight.zoo import plots

#: One setting for all is sought: the other four tasks of MuJoCo are not looked at.
TASKS = [*control_levers.TASKS, replace(control_levers.TASKS[0], env="Walker2d-v5")]
TRIALS = 18
RATES = (1e-4, 3e-3)  # of learning
CHOICES: dict[str, list[Any]] = {
    "log_std_init": [0.0, -1.0, -2.0],
    "batch_size": [256, 64, 32],  # of 256 rows
    "n_epochs": [1, 4],
    "extra_critic_epochs": [0, 4],
}
#: (name, lowest, highest) of what a method has beyond these: drawn as the learning rate is
OWN: dict[str, tuple[str, float, float] | None] = {
    "pg": None,
    "pg_entropy": ("ent_coef", 1e-4, 1e-2),
    "dg": ("temperature", 1.0, 30.0),
}


def draw_trials() -> dict[str, list[dict[str, Any]]]:
    """Method -> settings of every trial: a Latin hypercube, in which each value of a setting comes equally often."""
    names = ("learning_rate", "falls", *CHOICES, "own")
    cube = LatinHypercube(len(names), scramble=False, optimization="random-cd", rng=0)
    trials: dict[str, list[dict[str, Any]]] = {method: [] for method in OWN}
    for quantiles in cube.random(TRIALS):
        drawn = dict(zip(names, quantiles.tolist(), strict=True))
        rate = log_uniform(drawn["learning_rate"], *RATES)
        shared = {"learning_rate": f"lin_{rate:g}" if drawn["falls"] < 0.5 else rate}
        shared |= {name: choices[int(drawn[name] * len(choices))] for name, choices in CHOICES.items()}
        for method, bounds in OWN.items():
            own = {bounds[0]: log_uniform(drawn["own"], *bounds[1:])} if bounds else {}
            if method == "dg":
                own["reference"] = 0.0  # or narrow policies turn the gate round
            trials[method].append(shared | own)
    return trials


def log_uniform(quantile: float, low: float, high: float) -> float:
    return float(f"{low * (high / low) ** quantile:.2g}")


TUNING = draw_trials()


def configs(method: str, trial: int) -> list[Config]:
    """A trial on every task."""
    return [replace(task, method=method, **TUNING[method][trial]) for task in TASKS]


#: trial by trial, so that methods are comparable wherever a run was stopped
SWEEP = [config for trial in range(TRIALS) for method in OWN for config in configs(method, trial)]


def scores(runs: Runs, method: str) -> Array:
    """Of each trial the normalised return, mean over tasks and the seeds that were run; NaN where a task was not."""
    of_trials: Array = np.full((TRIALS, len(TASKS)), math.nan)
    for trial in range(TRIALS):
        for i, config in enumerate(configs(method, trial)):
            if runs.seeds(config):
                of_trials[trial, i] = np.mean(plots.normalize(runs.last(config, "deterministic"), config.env))
    mean: Array = of_trials.mean(axis=1)
    return mean


def rate_band(trial: dict[str, Any]) -> str:
    rate = float(str(trial["learning_rate"]).removeprefix("lin_"))
    return "3e-4 or less" if rate <= 3e-4 else "1e-3 or more" if rate >= 1e-3 else "between"


#: what a line of the second panel says of a trial
SETTINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    "learning rate": rate_band,
    "learning rate falls": lambda trial: "yes" if isinstance(trial["learning_rate"], str) else "no",
    "standard deviation": lambda trial: f"{math.exp(trial['log_std_init']):.2f}",
    "minibatches": lambda trial: str(256 // trial["batch_size"]),
    "passes": lambda trial: str(trial["n_epochs"]),
    "more of the critic": lambda trial: str(trial["extra_critic_epochs"]),
}


def draw(runs: Runs) -> Figure:
    """Method against method, trial by trial; a setting's values; the best of a number of trials."""
    found = {method: scores(runs, method) for method in OWN}
    figure, (pairs, settings, best) = harness.panels(3, width=5.2, height=4.8)
    draw_pairs(pairs, found)
    draw_settings(settings, found)
    for method, values in found.items():
        name, colour, line = LABELS[method]
        expected = expected_best(values[~np.isnan(values)])
        best.plot(range(1, len(expected) + 1), expected, label=name, color=colour, linestyle=line)
    best.set(xlabel="trials", ylabel="normalised return of the best of them, expected")
    harness.legend(best)
    figure.suptitle(
        ", ".join(task.env for task in TASKS) + f": mean normalised return, {TASKS[0].updates // 1000}k steps"
    )
    return figure


def draw_pairs(axes: Axes, found: dict[str, Array]) -> None:
    for method in ("pg_entropy", "dg"):
        both = ~np.isnan(found["pg"] + found[method])
        x, y = found["pg"][both], found[method][both]
        label = f"{LABELS[method][0]}: above in {(y > x).sum()} of {len(x)}"
        axes.scatter(x, y, s=22, label=label, color=LABELS[method][1], marker="o" if method == "dg" else "x")
    axes.axline((0, 0), slope=1, color="grey", linewidth=1)
    axes.set(xlabel="policy gradient", ylabel="another, all else equal", title="trial by trial")
    harness.legend(axes)


def draw_settings(axes: Axes, found: dict[str, Array]) -> None:
    """Mean and interval over the trials that have a value in common, whatever else they have."""
    lines: list[str] = []
    for title, value_of in SETTINGS.items():
        values = np.array([value_of(trial) for trial in TUNING["pg"]])
        lines += [f"{title}: {value}" for value in dict.fromkeys(sorted(values))]
    for method, shift in (("pg", -0.15), ("dg", 0.15)):
        samples = []
        for line in lines:
            title, value = line.split(": ")
            held = np.array([SETTINGS[title](trial) == value for trial in TUNING[method]])
            samples.append(found[method][held & ~np.isnan(found[method])])
        places = [i + shift for i in range(len(lines))]
        harness.intervals(axes, places, samples, LABELS[method][0], markersize=4, color=LABELS[method][1])
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set(xlabel="normalised return", title="mean of the trials")
    harness.legend(axes)


def expected_best(values: Array) -> Array:
    """Of k trials drawn without replacement, for every k: ``[n]``."""
    n, ordered = len(values), np.sort(values)
    chances = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return np.array(chances, dtype=float).reshape(n, n) @ ordered

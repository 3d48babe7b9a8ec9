"""Equal tuning budgets: trials drawn at random, in which every method has the same settings but for one of its own.

So two methods can be compared trial by trial, whatever the settings are worth; a setting's values over all trials; and
the best of a number of trials, which is what tuning finds (Dodge et al., 2019).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import control_levers
import numpy as np
import plotting
from control_tasks import FRESH_SEED, LABELS, Config
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Array, Runs
from scipy.stats.qmc import LatinHypercube

#: One setting for all is sought: the other four tasks of MuJoCo are not looked at.
TASKS = control_levers.CLIP_TASKS
TRIALS = 18
RATES = (1e-4, 3e-3)  # of learning
CHOICES: list[list[dict[str, Any]]] = [
    [{"log_std_init": 0.0}, {"log_std_init": -1.0}, {"log_std_init": -2.0}],
    [{"batch_size": 256}, {"batch_size": 64}, {"batch_size": 32}],
    [{}, {"clipped": True, "n_steps": 256, "n_epochs": 10}],  # one pass, or those that PPO's clip allows
    [{"extra_critic_epochs": 0}, {"extra_critic_epochs": 4}],
]
#: (name, lowest, highest, known) of what a method has beyond these: drawn as the learning rate is
OWN: dict[str, tuple[str, float, float, float] | None] = {
    "pg": None,
    "pg_entropy": ("ent_coef", 1e-4, 1e-2, 0.01),
    "dg": ("temperature", 1.0, 30.0, 10.0),
}
#: number of one more trial, not drawn: the settings of the figure `clip`, the better there of two values of its own
KNOWN = TRIALS


def make_trials() -> dict[str, list[dict[str, Any]]]:
    """Method -> settings of every trial: a Latin hypercube, in which each value of a setting comes equally often."""
    cube = LatinHypercube(len(CHOICES) + 3, scramble=False, optimization="random-cd", rng=0)
    trials: dict[str, list[dict[str, Any]]] = {method: [] for method in OWN}
    for of_rate, of_schedule, *of_choices, of_own in cube.random(TRIALS).tolist():
        rate = log_uniform(of_rate, *RATES)
        shared: dict[str, Any] = {"learning_rate": f"lin_{rate:g}" if of_schedule < 0.5 else rate}
        for choices, quantile in zip(CHOICES, of_choices, strict=True):
            shared |= choices[int(quantile * len(choices))]
        for method, own in OWN.items():
            trials[method].append(shared | ({own[0]: log_uniform(of_own, own[1], own[2])} if own else {}))
    for method, own in OWN.items():
        trials[method].append(control_levers.CLIP | CHOICES[3][0] | ({own[0]: own[3]} if own else {}))
    # Or narrow policies turn the gate round.
    return trials | {"dg": [{**trial, "reference": 0.0} for trial in trials["dg"]]}


def log_uniform(quantile: float, low: float, high: float) -> float:
    return float(f"{low * (high / low) ** quantile:.2g}")


TUNING = make_trials()
SCREENING_SEED = 0  # by which the finalists are chosen; what they are worth, others say
#: drawn trials that were best by it, first the best: see `ranking`
BEST: dict[str, tuple[int, ...]] = {"pg": (16, 7), "pg_entropy": (16, 14), "dg": (15, 3)}
FINALISTS = {method: (*trials, KNOWN) for method, trials in BEST.items()}


def configs(method: str, trial: int) -> list[Config]:
    """A trial on every task."""
    return [replace(task, method=method, **TUNING[method][trial]) for task in TASKS]


#: trial by trial, so that methods are comparable wherever a run was stopped
SWEEP = [config for trial in range(TRIALS) for method in OWN for config in configs(method, trial)]
FINALS = [config for method, trials in FINALISTS.items() for trial in trials for config in configs(method, trial)]


def scores(runs: Runs, method: str, trial: int) -> dict[int, float]:
    return control_levers.scores(runs, configs(method, trial))


def screening(runs: Runs, method: str) -> Array:
    """The score of each trial by the screening seed, ``[TRIALS]``; NaN where it was not run on all tasks."""
    return np.array([scores(runs, method, trial).get(SCREENING_SEED, math.nan) for trial in range(TRIALS)])


def ranking(runs: Runs, method: str) -> list[int]:
    """Trials by the screening seed, first the best."""
    order: list[int] = np.argsort(-screening(runs, method), kind="stable").tolist()  # NaN comes last
    return order


def rate(trial: dict[str, Any]) -> float:
    return float(str(trial["learning_rate"]).removeprefix("lin_"))


def chosen(changes: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    return lambda trial: changes.items() <= trial.items()


#: the lines of the second panel, and which trials each is of
SETTINGS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "learning rate below 3e-4": lambda trial: rate(trial) < 3e-4,
    "3e-4 to 1e-3": lambda trial: 3e-4 <= rate(trial) < 1e-3,
    "1e-3 and more": lambda trial: rate(trial) >= 1e-3,
    "it stays": lambda trial: not isinstance(trial["learning_rate"], str),
    "it falls to 0": lambda trial: isinstance(trial["learning_rate"], str),
    **{f"standard deviation {math.exp(each['log_std_init']):.2f}": chosen(each) for each in CHOICES[0]},
    **{f"minibatches of {each['batch_size']} rows": chosen(each) for each in CHOICES[1]},
    "256 rows, one pass": lambda trial: "clipped" not in trial,
    "2048 rows, PPO's clip, 10 passes": lambda trial: "clipped" in trial,
    **{f"more passes of the critic: {each['extra_critic_epochs']}": chosen(each) for each in CHOICES[3]},
}


def draw(runs: Runs) -> Figure:
    """Method against method, trial by trial; a setting's values; the best of a number of trials."""
    found = {method: screening(runs, method) for method in OWN}
    done = ~np.isnan(sum(found.values()))  # trials that all have
    found = {method: np.where(done, values, math.nan) for method, values in found.items()}
    figure, (pairs, settings, best) = plotting.panels(3, width=5.2, height=4.8)
    draw_pairs(pairs, found)
    draw_settings(settings, found)
    for method, values in found.items():
        name, colour, line = LABELS[method]
        expected = expected_best(values[~np.isnan(values)])
        best.plot(range(1, len(expected) + 1), expected, label=name, color=colour, linestyle=line)
    best.set(xlabel="trials", ylabel="normalised return of the best of them, expected")
    plotting.legend(best)
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
    plotting.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.12))  # inside its marks would pass for trials


def draw_settings(axes: Axes, found: dict[str, Array]) -> None:
    """Mean and interval over the trials that have a value in common, whatever else they have."""
    for method, shift in (("pg", -0.15), ("dg", 0.15)):
        values, ran = found[method], ~np.isnan(found[method])
        trials = TUNING[method][:TRIALS]
        samples = [values[ran & np.array(list(map(holds, trials)))] for holds in SETTINGS.values()]
        places = [i + shift for i in range(len(SETTINGS))]
        plotting.intervals(axes, places, samples, LABELS[method][0], markersize=4, color=LABELS[method][1])
    plotting.line_each(axes, list(SETTINGS))
    axes.set(xlabel="normalised return", title="mean of the trials (colours as on the right)")


def expected_best(values: Array) -> Array:
    """Of k trials drawn without replacement, for every k: ``[n]``."""
    n, ordered = len(values), np.sort(values)
    chances = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return np.array(chances, dtype=float).reshape(n, n) @ ordered


def draw_finals(runs: Runs) -> Figure:
    """The finalists with fresh seeds: mean over tasks, and its interval; a cross is what the screening seed said."""
    figure, (axes,) = plotting.panels(1, width=17.0, height=1.0 + 0.3 * sum(map(len, FINALISTS.values())))
    lines: list[str] = []
    for method, trials in FINALISTS.items():
        name, colour, _ = LABELS[method]
        found = [scores(runs, method, trial) for trial in trials]
        fresh = [np.array([value for seed, value in each.items() if seed >= FRESH_SEED]) for each in found]
        places = range(len(lines), len(lines) + len(trials))
        plotting.intervals(axes, places, fresh, markersize=5, color=colour)
        axes.plot([each.get(SCREENING_SEED, math.nan) for each in found], places, "x", color=colour)
        lines += [f"{name}: {in_short(TUNING[method][trial])}" for trial in trials]
    plotting.line_each(axes, lines)
    axes.set(
        xlabel="normalised return, mean over tasks",
        title="finalists with fresh seeds (cross: by the screening seed)",
    )
    return figure


def in_short(trial: dict[str, Any]) -> str:
    """``lin_0.0006, std 0.14, minibatches of 32, 10 passes, temperature 3.4``"""
    words = [f"{trial['learning_rate']}", f"std {math.exp(trial['log_std_init']):.2f}"]
    words += [f"minibatches of {trial['batch_size']}", "10 passes" if "clipped" in trial else "1 pass"]
    words += [f"{trial['extra_critic_epochs']} more of the critic"] * (trial["extra_critic_epochs"] > 0)
    return ", ".join(words + [f"{name} {trial[name]:g}" for name in ("ent_coef", "temperature") if name in trial])

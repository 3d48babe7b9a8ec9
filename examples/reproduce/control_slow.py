"""Smaller steps on MuJoCo, on seeds that did not choose them (``control_rates.py`` has those that did)."""

from collections.abc import Callable
from dataclasses import replace

import control_levers
import numpy as np
import plotting
import records
from control_tasks import LABELS, MUJOCO, Config
from matplotlib.figure import Figure
from records import Runs, Statistic

TASKS = [MUJOCO[f"{robot}-v5"] for robot in ("HalfCheetah", "Hopper", "Walker2d", "Ant")]
RATE, FASTER = 1e-4, control_levers.PPO["learning_rate"]  # of the tasks' own figures
OURS = ("dg", "pg", "pg_entropy", "kondo_soft", "random_5")  # at this rate
OTHERS = ("ppo", "trpo", "a2c")  # with settings of their own


def arms(known: list[Config]) -> list[Config]:
    """Methods of other packages, and ours at the smaller rate.

    :param known: arms of the task's own figure
    """
    of_method = {arm.method: arm for arm in known}
    return [of_method[name] for name in OTHERS] + [replace(of_method[name], learning_rate=RATE) for name in OURS]


def draw(runs: Runs, statistic: Statistic, improvements: Callable[..., dict[str, str]]) -> Figure:
    """A task a panel: ours at the smaller rate and, hollow, at that of the task's own figure. Prints both."""
    figure, panels = plotting.panels(len(TASKS), width=4.0, height=3.4)
    for axes, task in zip(panels, TASKS, strict=True):
        env = task.env
        mine = {config.method: config for config in runs.configs if config.env == env}
        late = {method: runs.late(config, "deterministic") for method, config in mine.items()}
        chances = improvements({method: values[:, None] for method, values in late.items() if values.size})
        print(f"{env}: at {RATE:g}, at {FASTER:g}, probability that a run of DG is above")
        for place, (method, values) in enumerate(late.items()):
            _, colour, _ = LABELS[method]
            ours = method in OURS
            faster = runs.late(replace(mine[method], learning_rate=FASTER), "deterministic") if ours else np.zeros(0)
            words = "".join(f"{records.in_words(each, statistic):36}" for each in (values, faster)[: 1 + ours])
            print(f"    {LABELS[method][0]:40}{words}{chances.get(method, '')}".rstrip())
            plotting.intervals(axes, [place - 0.12 * ours], [values], statistic=statistic, color=colour)
            hollow = {"color": colour, "markerfacecolor": "white", "alpha": 0.5}
            plotting.intervals(axes, [place + 0.12], [faster], None, False, statistic, **hollow)
        axes.set(title=env, xlabel="return, mean actions")
        plotting.line_each(axes, [LABELS[method][0] for method in late], named=axes is panels[0])
    title = f"{runs.seed_counts()} seeds; ours at a learning rate of {RATE:g}, hollow: of {FASTER:g}"
    figure.suptitle(f"{title}; interquartile mean and 95 % interval")
    return figure

"""DG's temperature and the entropy bonus that looked best on MuJoCo, on seeds that chose neither.

    python examples/reproduce/control_confirmation.py [--seeds 5] [--workers 2] [--plot-only]

The best of the five sizes in ``control.py --figure bonus_mujoco`` is flattered by the seeds that made it the best. (The
policy gradient without a bonus was not chosen there, so its results stand.) Rows are in a file of their own, as that
figure would take them for more of its own seeds.
"""

from dataclasses import replace
from typing import Any

import control
import control_bonus
import harness
import numpy as np
import plotting
import records
from control_tasks import LABELS, Config
from matplotlib.figure import Figure
from records import Array, Runs

TASKS = control_bonus.TASKS["bonus_mujoco"]
BONUS, TEMPERATURE = 0.01, 25.0
NAMES = {
    "pg_entropy": f"{LABELS['pg_entropy'][0]} {BONUS:g}",
    "dg": f"{LABELS['dg'][0]}, temperature {TEMPERATURE:g}",
}
FIRST_SEED = 20


def chosen(arm: Config) -> bool:
    size = BONUS if control_bonus.family(arm) == "pg" else control_bonus.temperature(TEMPERATURE)
    return control_bonus.bonus(arm) == size


def draw(runs: Runs) -> Figure:
    """Return on fresh seeds, and on those of the first look. Prints both, and how likely a run of DG is above."""
    first = Runs(harness.HERE / "results" / "control.csv", runs.configs)
    looks: list[tuple[Runs, dict[str, Any]]] = [(runs, {}), (first, {"mfc": "white", "alpha": 0.5})]
    figure, panels = plotting.panels(len(TASKS), width=3.6, height=2.4)
    of_tasks = []
    for axes, task in zip(panels, TASKS, strict=True):
        mine = {config.method: config for config in runs.configs if config.env == task.env}
        returns = [{method: look.late(mine[method], "deterministic") for method in mine} for look, _ in looks]
        of_tasks.append(returns[0])
        chances = control.improvements({name: fresh[:, None] for name, fresh in returns[0].items() if fresh.size})
        print(f"{task.env}: fresh seeds, first look, probability that a run of DG is above")
        for place, method in enumerate(mine):
            words = [f"{records.in_words(each[method], control.iqm):36}" for each in returns]
            print(f"    {NAMES[method]:40}{''.join(words)}{chances.get(method, '')}".rstrip())
            for shift, each, (_, style) in zip((-0.12, 0.12), returns, looks, strict=True):
                colour = {"color": LABELS[method][1], **style}
                plotting.intervals(axes, [place + shift], [each[method]], statistic=control.iqm, **colour)
        axes.set(title=task.env, xlabel="return, deterministic actions")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        plotting.line_each(axes, [NAMES[method] for method in mine], named=axes is panels[0])
    seeds = records.extent([len(fresh) for task in of_tasks for fresh in task.values()])
    if "-" not in seeds:
        chances = control.improvements({name: stacked(of_tasks, name) for name in of_tasks[0]})
        print("together:", ", ".join(f"{NAMES[method]} {chance}" for method, chance in chances.items()))
    figure.suptitle(f"{seeds} fresh seeds; hollow: the first look. Interquartile mean and 95 % interval")
    return figure


def stacked(of_tasks: list[dict[str, Array]], method: str) -> Array:
    """``[seeds, tasks]``"""
    return np.stack([task[method] for task in of_tasks], axis=1)


EXPERIMENT = replace(
    control.EXPERIMENT,
    name="control_confirmation",
    sweep={"mujoco": [arm for arm in control.SWEEP["bonus_mujoco"] if chosen(arm)]},
    figures={"mujoco": draw},
    first_seed={"mujoco": FIRST_SEED},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

"""How large a step in a million of them on MuJoCo: the same few learning rates for each method, and a limit.

    python examples/reproduce/control_rates.py [--figure mujoco] [--seeds 2] [--workers 2] [--plot-only]

The settings were chosen in runs of 300k steps. Later the policy is narrower, so that a step of the same size moves it
further, and PPO's clip does not hold that: on Ant at .0003 returns rise, and fall again. These seeds choose; what the
chosen rate is worth, others say (``control.py --figure slow``). So rows are in a file of their own.
"""

from dataclasses import dataclass, replace
from typing import Any

import control
import harness
import plotting
import records
import training
from control_tasks import LABELS, MUJOCO, Config
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Row, Runs
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv


@dataclass(frozen=True)
class Limited(Config):
    """A run whose passes over a rollout end early."""

    target_kl: float | None = None


TASKS = [MUJOCO[f"{robot}-v5"] for robot in ("Ant", "HalfCheetah", "Hopper", "Walker2d")]
STEPS: dict[str, dict[str, Any]] = {
    ".00003": {"learning_rate": 3e-5},
    ".0001": {"learning_rate": 1e-4},
    ".0003": {"learning_rate": 3e-4},
    ".0003, KL .02": {"learning_rate": 3e-4, "target_kl": 0.02},
}
METHODS = ("pg", "pg_entropy", "dg")
LINES = {"pg": "--", "pg_entropy": ":", "dg": "-"}
METRICS = {"deterministic": "mean actions", "sampled": "sampled actions"}


def arms(task: Config) -> dict[tuple[str, str], Config]:
    """(step, method) -> config: of the task's own figure, but for the step."""
    of_method = {arm.method: arm for arm in control.arms(task)}
    return {(step, method): change(of_method[method], **STEPS[step]) for step in STEPS for method in METHODS}


def change(arm: Config, **changes: Any) -> Config:
    return Limited(**(vars(arm) | changes)) if "target_kl" in changes else replace(arm, **changes)


ARMS = {task.env: arms(task) for task in TASKS}


def make_model(config: Config, env: VecEnv, seed: int) -> OnPolicyAlgorithm:
    model: Any = control.make_model(config, env, seed)
    if isinstance(config, Limited):
        model.target_kl = config.target_kl
    return model  # type: ignore[no-any-return]


def run(config: Config, seeds: list[int]) -> list[Row]:
    return training.run(make_model, config, seeds, evaluations=config.evaluations)


def draw(runs: Runs) -> Figure:
    """A column for each task: curves, and returns late in training for each way to act. Prints these."""
    rows = 1 + len(METRICS)
    figure, panels = plotting.panels(rows * len(ARMS), width=4.0, height=3.2, rows=rows)
    curves: dict[str, Any] = {}  # of all tasks
    for place, (env, configs) in enumerate(ARMS.items()):
        axes = panels[place]
        draw_curves(axes, runs, configs)
        axes.set(title=env, xlabel="million environment steps", ylabel="return, mean actions")
        lines, labels = axes.get_legend_handles_labels()
        curves |= dict(zip(labels, lines, strict=True))
        for row, (metric, acting) in enumerate(METRICS.items(), start=1):
            axes = panels[row * len(ARMS) + place]
            draw_late(axes, runs, configs, metric)
            axes.set(xlabel="learning rate", ylabel=f"late return, {acting}")
    figure.suptitle(f"a million steps, {runs.seed_counts()} seeds: mean and 95 % interval")
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=len(STEPS), handlelength=3)
    return figure


def draw_curves(axes: Axes, runs: Runs, configs: dict[tuple[str, str], Config]) -> None:
    colours = dict(zip(STEPS, plotting.shades(len(STEPS)), strict=True))
    for (step, method), config in configs.items():
        steps, values = runs.get(config, "deterministic")
        if values.size:
            style = {"color": colours[step], "linestyle": LINES[method]}
            plotting.band(axes, steps / 1e6, values, f"{LABELS[method][0]}, {step}", shaded=False, **style)


def draw_late(axes: Axes, runs: Runs, configs: dict[tuple[str, str], Config], metric: str) -> None:
    ran = [step for step in STEPS if any(runs.seeds(configs[step, method]) for method in METHODS)]
    for shift, method in zip((-0.15, 0, 0.15), METHODS, strict=True):
        scores = [runs.late(configs[step, method], metric) for step in ran]
        for step, values in zip(ran, scores, strict=True):
            words = records.in_words(values)
            print(f"{configs[step, method].env:16} {metric:14} {LABELS[method][0]:32} {step:14} {words}")
        name, colour, _ = LABELS[method]
        places = [place + shift for place in range(len(ran))]
        inside = "white" if method == "pg_entropy" else colour
        plotting.intervals(axes, places, scores, name, upright=True, color=colour, markerfacecolor=inside)
    axes.set_xticks(range(len(ran)), ran)
    axes.set_xlim(-0.5, max(len(ran), 1) - 0.5)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    plotting.legend(axes, fontsize=7, loc="lower right")


EXPERIMENT = replace(
    control.EXPERIMENT,
    name="control_rates",
    sweep={"mujoco": [config for of_task in ARMS.values() for config in of_task.values()]},
    run=run,
    figures={"mujoco": draw},
    seeds=2,
    first_seed={},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

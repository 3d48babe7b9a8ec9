"""What might lift an on-policy method on MuJoCo: changes one at a time, for the policy gradient and for DG alike."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import plotting
import records
from control_tasks import LABELS, MUJOCO, Config
from matplotlib.figure import Figure
from records import Runs

from sb3_delight.zoo import plots

TASKS = [replace(MUJOCO[env], updates=300_000, evaluations=3) for env in ("HalfCheetah-v5", "Hopper-v5")]
#: stable-baselines3's PPO
PPO: dict[str, Any] = {"clipped": True, "n_steps": 256, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4}
LEVERS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "learning rate falls to 0": {"learning_rate": "lin_1e-3"},
    "4 more passes of the critic": {"extra_critic_epochs": 4},
    "gradients clipped apart": {"clip_apart": True},
    "advantages centred": {"advantage_scaling": "standardize"},
    "64 rows an update": {"n_steps": 8},
    "1024 rows an update": {"n_steps": 128},
    "4 minibatches of 64 rows": {"batch_size": 64},
    "gSDE": {"use_sde": True},
    "standard deviation 0.37": {"log_std_init": -1.0},
    "standard deviation 0.14": {"log_std_init": -2.0},
    "256 x 256 ReLU, standard deviation 0.14": {"width": 256, "relu": True, "log_std_init": -2.0},  # RL-Zoo's PPO
    "PPO's clip, 10 epochs": PPO,
    "last 3 rollouts again, V-trace": {"reuse": 3},
}
#: of DG alone
DG_LEVERS: dict[str, dict[str, Any]] = {
    "temperature 0, successes alone": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 4": {"temperature": 4.0},
    "temperature 30": {"temperature": 30.0},
    "temperature falls from 30 to 0": {"temperature": "lin_30"},
    "surprisal less entropy": {"reference": 1.0},
    "less entropy, temperature 1": {"reference": 1.0, "temperature": 1.0},
    "surprisal less the likeliest action's": {"reference": 0.0},
    "less the likeliest's, temperature 1": {"reference": 0.0, "temperature": 1.0},
    # Densities are above 1 there: their own surprisal is negative, and turns the gate round.
    "less the likeliest's, deviation 0.14": {"reference": 0.0, "log_std_init": -2.0},
    "less the likeliest's, deviation 0.14, temperature 0": {
        "reference": 0.0,
        "log_std_init": -2.0,
        "temperature": 0.0,
    },
    "a gate per dimension": {"per_dimension": True},
    "a gate per dimension, temperature 1": {"per_dimension": True, "temperature": 1.0},
    "surprisal not clipped": {"surprisal_clip": None},
    "implicit entropy bonus cancelled": {"ent_coef": -1 / 40},  # -mean(A^2) / (4 temperature)
}
CHANGES = {"pg": LEVERS, "dg": LEVERS | DG_LEVERS}
NAMES = list(CHANGES["dg"])


def arms(task: Config) -> dict[tuple[str, str], Config]:
    """(lever, method) -> config."""
    return {
        (name, method): replace(task, method=method, **changes)
        for method, levers in CHANGES.items()
        for name, changes in levers.items()
    }


SWEEP = [config for task in TASKS for config in arms(task).values()]

CLIP_TASKS = [*TASKS, replace(TASKS[0], env="Walker2d-v5")]
#: what PPO's clip is given: stable-baselines3's settings for it, and a narrower policy
CLIP: dict[str, Any] = {**PPO, "log_std_init": -1.0}
#: The gate under PPO's clip; what else might explain its effect, as it halves the policy's share of the gradient, and
#: adds an entropy bonus of about 1 / (4 temperature), which at half the weight counts double; and the gate without it.
UNDER_CLIP: dict[str, dict[str, Any]] = {
    "PPO": {"method": "pg"},
    "PPO, advantages centred": {"method": "pg", "advantage_scaling": "standardize"},
    "PPO, half the weight": {"method": "dg", "temperature": math.inf},
    "PPO, entropy bonus .01": {"method": "pg_entropy", "ent_coef": 0.01},
    "PPO, entropy bonus .05": {"method": "pg_entropy", "ent_coef": 0.05},
    "DG, temperature 10, clipped": {"method": "dg", "temperature": 10.0, "reference": 0.0},
    "DG, temperature 3, clipped": {"method": "dg", "temperature": 3.0, "reference": 0.0},
    "policy gradient, no clip": {"method": "pg", "clipped": False},
    # what temperature 1 adds to first order, as the gate weighs it and at full weight
    "PG, entropy bonus .25, no clip": {"method": "pg_entropy", "ent_coef": 0.25, "clipped": False},
    "PG, entropy bonus .5, no clip": {"method": "pg_entropy", "ent_coef": 0.5, "clipped": False},
    # which mutes failures, as a low temperature does, whatever their surprisal
    "Scaled PO, no clip": {"method": "scaled_po", "clipped": False},
    "DG, temperature 10, no clip": {"method": "dg", "temperature": 10.0, "reference": 0.0, "clipped": False},
    "DG, temperature 1, no clip": {"method": "dg", "temperature": 1.0, "reference": 0.0, "clipped": False},
}


def clip_arms(task: Config) -> dict[str, Config]:
    return {name: replace(task, **(CLIP | changes)) for name, changes in UNDER_CLIP.items()}


CLIP_SWEEP = [config for task in CLIP_TASKS for config in clip_arms(task).values()]


def draw(runs: Runs) -> Figure:
    """A lever a line, an environment a panel, the mean of the seeds; dotted: as it is."""
    figure, panels = plotting.panels(len(TASKS), width=5.2, height=0.8 + 0.18 * len(NAMES))
    for axes, task in zip(panels, TASKS, strict=True):
        scores = {arm: runs.last(config, "deterministic") for arm, config in arms(task).items()}
        for method, shift in (("pg", -0.15), ("dg", 0.15)):
            label, colour, _ = LABELS[method]
            found = {name: values for (name, m), values in scores.items() if m == method}
            places = [NAMES.index(name) + shift for name in found]
            plotting.intervals(axes, places, list(found.values()), label, markersize=4, color=colour)
            if found["as it is"].size:
                axes.axvline(float(found["as it is"].mean()), color=colour, linestyle=":", linewidth=1)
        plotting.line_each(axes, NAMES, named=axes is panels[0])
        seeds = records.extent([len(values) for values in scores.values()])
        axes.set(title=f"{task.env}, {task.updates // 1000}k steps, {seeds} seeds")
        axes.set(xlabel="return of 10 evaluation episodes")
    plotting.legend_below(figure, panels[0], 2)
    return figure


def scores(runs: Runs, configs: Iterable[Config]) -> dict[int, float]:
    """Seed -> normalised return of an arm, mean over its tasks; of the seeds that were run on all of them."""
    of_tasks = [(config.env, runs.last_by_seed(config, "deterministic")) for config in configs]
    seeds = set.intersection(*(set(returns) for _, returns in of_tasks))
    return {
        seed: float(np.mean([plots.normalize(np.array(returns[seed]), env) for env, returns in of_tasks]))
        for seed in sorted(seeds)
    }


def draw_clip(runs: Runs) -> Figure:
    """An arm a line, an environment a panel, and their mean."""
    figure, panels = plotting.panels(len(CLIP_TASKS) + 1, width=3.6, height=3.0)
    for place, name in enumerate(UNDER_CLIP):
        configs = [clip_arms(task)[name] for task in CLIP_TASKS]
        mean = np.array(list(scores(runs, configs).values()))
        print(f"    {name:30} {records.in_words(mean)}, normalised, mean of the tasks")
        colour = LABELS["ppo" if name.startswith("PPO") else configs[0].method][1]
        samples = [*(runs.last(config, "deterministic") for config in configs), mean]
        for axes, sample in zip(panels, samples, strict=True):
            plotting.intervals(axes, [place], [sample], markersize=5, color=colour)
    for axes in panels:
        plotting.line_each(axes, list(UNDER_CLIP), named=axes is panels[0])
    for axes, task in zip(panels[:-1], CLIP_TASKS, strict=True):
        axes.set(title=f"{task.env}, {task.updates // 1000}k steps", xlabel="return of 10 evaluation episodes")
    panels[-1].set(title="mean of the three", xlabel="normalised return")
    return figure

"""Where DG's default temperature comes from: a sweep over four control tasks, the plain policy gradient beside it.

    python examples/reproduce/temperature.py [--seeds 3] [--workers 2] [--plot-only]

Every arm has the same settings and the same budget; none was tuned. What differs is the temperature of the gate, on
advantages scaled to unit root mean square (``default``), or centred, too (``centred``).
"""

from dataclasses import dataclass, replace
from typing import Any

import harness
import numpy as np
import plotting
import training
from matplotlib.figure import Figure
from records import Row, Runs
from stable_baselines3.common.vec_env import VecEnv

from sb3_delight import DG, PolicyGradient


@dataclass(frozen=True)
class Config:
    """One run; a temperature of ``None`` is the plain policy gradient."""

    env: str = "CartPole-v1"
    temperature: float | None = 10.0
    normalize_env: bool = False  # VecNormalize: MuJoCo only
    updates: int = 100_000  # environment steps
    n_envs: int = 8
    n_steps: int = 32
    learning_rate: float = 1e-3
    advantage_scaling: str = "scale"  # or "standardize", which also centres


TEMPERATURES: tuple[float | None, ...] = (0.0, 0.1, 0.3, 1.0, 4.0, 10.0, 30.0, None)
TASKS = (
    Config("CartPole-v1"),
    Config("Acrobot-v1"),
    Config("HalfCheetah-v5", updates=200_000, normalize_env=True),
    Config("Hopper-v5", updates=200_000, normalize_env=True),
)
SWEEP = {
    "default": [replace(task, temperature=temperature) for temperature in TEMPERATURES for task in TASKS],
    "centred": [
        replace(task, temperature=temperature, advantage_scaling="standardize")
        for temperature in TEMPERATURES
        for task in TASKS
    ],
}


def make_model(config: Config, env: VecEnv, seed: int) -> PolicyGradient:
    common: dict[str, Any] = {"learning_rate": config.learning_rate, "n_steps": config.n_steps, "seed": seed}
    common |= {"advantage_scaling": config.advantage_scaling, "device": "cpu"}
    if config.temperature is None:
        return PolicyGradient("MlpPolicy", env, **common)
    return DG("MlpPolicy", env, temperature=config.temperature, **common)


def run(config: Config, seeds: list[int]) -> list[Row]:
    """Return of the last 30 training episodes (sampled actions) and of 10 evaluation episodes (deterministic ones)."""
    return training.run(make_model, config, seeds, evaluations=1, evaluation_envs=1)


def by_temperature(runs: Runs) -> Figure:
    """Return against temperature, one panel a task; the plain policy gradient as a line."""
    figure, panels = plotting.panels(len(TASKS), width=3.6)
    for axes, task in zip(panels, TASKS, strict=True):
        mine = [c for c in runs.configs if c.env == task.env and len(runs.last(c, "sampled"))]
        for metric in ("sampled", "deterministic"):
            colour = plotting.COLOURS[metric]
            dg = [c for c in mine if c.temperature is not None]
            if not dg:
                continue
            samples = [runs.last(c, metric) for c in dg]
            plotting.points(axes, range(len(dg)), samples, f"DG, {metric}", color=colour)
            axes.set_xticks(range(len(dg)), [f"{c.temperature:g}" for c in dg])
            for plain in (c for c in mine if c.temperature is None):
                plotting.level(axes, runs.last(plain, metric), f"PG, {metric}", color=colour)
        axes.set(title=f"{task.env}, {task.updates // 1000}k steps", xlabel="temperature", ylabel="return")
    plotting.legend_below(figure, panels[0], 4)
    return figure


EXPERIMENT = harness.Experiment(
    name="temperature",
    sweep=SWEEP,
    run=run,
    figures={"default": by_temperature, "centred": by_temperature},
    metrics=("sampled", "deterministic", "stable-baselines3", "gymnasium", "mujoco"),
    seeds=3,
    seeds_per_job=1,
    smoke={"updates": 600},
    summary={"sampled": np.mean, "deterministic": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

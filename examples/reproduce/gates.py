"""What the Kondo gate costs and saves in learning: delight against random and advantage gates at equal rates.

    python examples/reproduce/gates.py --figure minatar [--seeds 5] [--workers 2] [--plot-only]

The same runs against three clocks: environment steps, rows that the actor or the critic paid for, seconds. A run's arms
differ in the gate alone: settings, budget, seeds and the number of optimiser steps are equal, and none was tuned.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import harness
import matplotlib.pyplot as plt
import numpy as np
import plotting
import records
import training
from matplotlib.figure import Figure
from records import Array, Row, Runs
from stable_baselines3.common.vec_env import VecEnv

from sb3_delight import DG, KondoDG, PolicyGradient
from sb3_delight.kondo_dg import Priority


@dataclass(frozen=True)
class Config:
    """One run. From ``priority`` to ``critic_rate`` all is of the Kondo gate alone."""

    env: str = "CartPole-v1"
    method: str = "kondo"
    priority: Priority = "delight"
    gate_rate: float | None = 0.1  # None: price 0, which keeps every row with a positive advantage
    temperature: float = 0.0  # 0: hard gate
    critic_rate: float = 1.0
    updates: int = 100_000  # environment steps
    evaluations: int = 10
    n_envs: int = 16  # x n_steps = 256 rows an update on every task
    n_steps: int = 16
    learning_rate: float = 1e-3
    normalize_env: bool = False  # VecNormalize
    cnn: bool = False  # MinAtarCNN, shared by actor and critic; otherwise two separate networks of 64 x 64


# CartPole, HalfCheetah: learning rate and rows per update of temperature.py. MinAtar: 32 x 8, as is common there; .003
# because it served all in a look at one seed outside the sweep, 300k steps: deterministic return of PG, DG, delight and
# random at .1 was 1.5, 5.5, 3.2, 3.1 at .001, and 5.3, 6.7, 6.0, 3.7 at .003.
TASKS = {
    "cartpole": Config(),
    "minatar": Config("MinAtar/Breakout-v1", updates=300_000, n_envs=32, n_steps=8, learning_rate=3e-3, cnn=True),
    "halfcheetah": Config("HalfCheetah-v5", updates=200_000, normalize_env=True),
}
RATES = (0.03, 0.1, 0.3)
PRIORITIES: tuple[Priority, ...] = ("delight", "advantage", "random")
CRITIC_RATES = (0.3, 0.1)  # besides 1
PLAIN: dict[str, Callable[..., PolicyGradient]] = {
    "pg": PolicyGradient,
    "half_pg": functools.partial(DG, temperature=math.inf),  # DG's weight is about a half
    "dg": DG,
}


def arms(task: Config) -> list[Config]:
    plain = [replace(task, method=method) for method in PLAIN]
    gates = [replace(task, priority=priority, gate_rate=rate) for rate in RATES for priority in PRIORITIES]
    critics = [replace(task, priority=p, critic_rate=c) for c in CRITIC_RATES for p in PRIORITIES if p != "advantage"]
    soft = replace(task, temperature=10.0)  # as much noise as DG's default lets through
    return [*plain, *gates, *critics, replace(task, gate_rate=None), soft]


SWEEP = {**{name: arms(task) for name, task in TASKS.items()}, "final": [c for t in TASKS.values() for c in arms(t)]}


def make_model(config: Config, env: VecEnv, seed: int) -> PolicyGradient:
    arguments: dict[str, Any] = {
        "learning_rate": config.learning_rate,
        "n_steps": config.n_steps,
        "advantage_scaling": "scale",  # of all arms, the policy gradient included
        "seed": seed,
        "device": "cpu",
    }
    if config.cnn:
        arguments["policy_kwargs"] = dict(training.MINATAR_POLICY)
    if config.method == "kondo":
        names = ("priority", "gate_rate", "temperature", "critic_rate")
        return KondoDG("MlpPolicy", env, **{name: getattr(config, name) for name in names}, **arguments)
    return PLAIN[config.method]("MlpPolicy", env, **arguments)


def run(config: Config, seeds: list[int]) -> list[Row]:
    return training.run(make_model, config, seeds, evaluations=config.evaluations)


# --- figures --------------------------------------------------------------------------------------------------------

STYLES = {
    **{method: {"color": plotting.COLOURS[method], "linestyle": ":"} for method in PLAIN},
    "delight": {"color": plotting.COLOURS["kondo"]},
    "advantage": {"color": plotting.COLOURS["pmpo"]},
    "random": {"color": plotting.COLOURS["random"]},
}
CRITIC_LINES = {1.0: "-", 0.3: "--", 0.1: "-."}


def style(config: Config) -> dict[str, Any]:
    if config.method != "kondo":
        return STYLES[config.method]
    if config.gate_rate is None or config.temperature > 0:
        return {"color": plotting.COLOURS["ppo"]}
    return {**STYLES[config.priority], "linestyle": CRITIC_LINES[config.critic_rate]}


def label(config: Config) -> str:
    if config.method != "kondo":
        return plotting.NAMES[config.method]
    if config.gate_rate is None:
        return "delight, price 0"
    critic = f", critic {config.critic_rate:g}" if config.critic_rate < 1 else ""
    soft = f", temperature {config.temperature:g}" if config.temperature > 0 else ""
    return f"{config.priority} {config.gate_rate:g}{soft}{critic}"


def clock(runs: Runs, config: Config, name: str) -> Array:
    """Of each row, ``[P]``: mean over seeds, which differ in seconds, and in rows where no rate is fixed."""
    metrics = ("actor_rows", "critic_rows") if name == "rows" else (name,)
    unit = 1 if name == "training_seconds" else 1000
    return np.asarray(sum(runs.get(config, metric)[1].mean(axis=0) for metric in metrics)) / unit


CLOCKS = {
    "env_steps": "thousand environment steps",
    "rows": "thousand rows paid for, actor + critic",
    "training_seconds": "seconds of one core, without evaluation",
}
COLUMNS = [("sampled", "env_steps"), *(("deterministic", name) for name in CLOCKS)]


def curves(runs: Runs) -> Figure:
    """A line of panels per gate rate, and one for the critic rates at .1; a column per return and clock."""
    lines = [[c for c in runs.configs if c.gate_rate == rate and c.critic_rate == 1] for rate in RATES]
    lines.append([c for c in runs.configs if c.gate_rate == 0.1 and c.priority != "advantage" and not c.temperature])
    lines[2] += [c for c in runs.configs if c.gate_rate is None]
    plain = [c for c in runs.configs if c.method != "kondo"]
    size = (4.2 * len(COLUMNS), 3.1 * len(lines))
    figure, axes = plt.subplots(len(lines), len(COLUMNS), figsize=size, layout="constrained", sharey=True)
    for row, configs in zip(axes, lines, strict=True):
        for panel, (metric, name) in zip(row, COLUMNS, strict=True):
            for config in dict.fromkeys([*plain, *configs]):
                steps, values = runs.get(config, metric)
                if steps.size and not (name == "training_seconds" and plotting.seconds_mislead(config)):
                    plotting.band(panel, clock(runs, config, name), values, label(config), **style(config))
            panel.set(xlabel=CLOCKS[name], ylabel=f"{metric} return")
        plotting.legend(row[-1], fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(runs.configs[0].env)
    return figure


def final(runs: Runs) -> Figure:
    """Mean of the last three evaluations, an arm a line, a task a panel; printed, too."""
    figure, panels = plotting.panels(len(TASKS), width=4.6, height=5.2)
    for axes, task in zip(panels, TASKS.values(), strict=True):
        mine = [config for config in runs.configs if config.env == task.env]
        for metric, shift in (("sampled", -0.13), ("deterministic", 0.13)):
            places, samples = np.arange(len(mine)) + shift, [runs.late(config, metric) for config in mine]
            plotting.intervals(axes, places, samples, metric, markersize=4, color=plotting.COLOURS[metric])
        plotting.line_each(axes, [label(config) for config in mine], named=axes is panels[0])
        axes.set(title=f"{task.env}, {task.updates // 1000}k steps", xlabel="return, last three evaluations")
        print(f"{task.env}, mean of the last three evaluations, with deterministic and with sampled actions:")
        for config in mine:
            both = [records.in_words(runs.late(config, metric)) for metric in ("deterministic", "sampled")]
            print(f"    {label(config):30} {both[0]:32} {both[1]}")
    plotting.legend_below(figure, panels[0], 2)
    return figure


EXPERIMENT = harness.Experiment(
    name="gates",
    sweep=SWEEP,
    run=run,
    figures={**dict.fromkeys(TASKS, curves), "final": final},
    metrics=(*training.METRICS, *training.PACKAGES),
    seeds=5,
    seeds_per_job=1,
    smoke={"updates": 600, "evaluations": 1},
    summary=dict.fromkeys(("deterministic", "sampled", "actor_rows", "training_seconds", "update_seconds"), np.mean),
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

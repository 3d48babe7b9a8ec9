"""Actors that lag behind or go wrong: what is left of each method's score.

    python examples/reproduce/stale_actors.py --figure cartpole [--seeds 10] [--workers 2] [--plot-only]
    python examples/reproduce/stale_actors.py --figure bug  # what becomes of a bug's actions in the update

Every arm of a figure has the same settings, budget and seeds, PPO included (one pass over a rollout); none was tuned.
What differs is the weight, or the gate; DG's temperature is our default, 10, or the papers', 1. Staleness is counted in
rollouts of 256 rows, which is one update each. The score is that of the learner's policy by its likeliest or mean
actions, in a clean environment.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import harness
import numpy as np
import plotting
import records
import torch
import training
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Row, Runs
from stable_baselines3.common.vec_env import VecEnv

from sb3_delight import DG, KondoDG, PolicyGradient
from sb3_delight.actors import LocalActors
from sb3_delight.baselines import PPO, ImportanceWeightedPG, ScaledPO
from sb3_delight.frictions import ActorBug, Friction, MismatchedSampler, RareDiscovery, RewardCorruption


@dataclass(frozen=True)
class Config:
    """One run."""

    env: str = "CartPole-v1"
    method: str = "pg"
    staleness: int = 0  # rollouts
    friction: str = "none"
    updates: int = 100_000  # environment steps
    evaluations: int = 5
    n_envs: int = 16  # x n_steps = 256 rows an update
    n_steps: int = 16
    learning_rate: float = 1e-3  # and rows per update: those of temperature.py and gates.py
    normalize_env: bool = False  # VecNormalize
    advantage_scaling: str = "scale"  # or "standardize", which also centres


@dataclass(frozen=True)
class Watched(Config):
    """A run under the bug that also measures what becomes of the bug's actions: see :func:`measure_bug`."""

    friction: str = "bug"
    evaluations: int = 20


METHODS: dict[str, tuple[type[PolicyGradient], dict[str, Any]]] = {
    "pg": (PolicyGradient, {}),
    "iw": (ImportanceWeightedPG, {}),
    "vtrace": (ImportanceWeightedPG, {"ratio_clip": 1.0, "advantage_estimator": "vtrace"}),  # IMPALA's
    "ppo": (PPO, {"batch_size": None, "n_epochs": 1}),
    "scaled_po": (ScaledPO, {}),
    "dg": (DG, {"temperature": 10.0}),  # our default
    "dg_1": (DG, {"temperature": 1.0}),
    "kondo_rate": (KondoDG, {"gate_rate": 0.3}),
    "kondo_price": (KondoDG, {"price": 0.0}),
}
STALENESS = (0, 1, 3, 10, 30, 100)
FRICTIONS = ("bug", "corruption", "discovery", "mismatch", "all")
TASKS = {
    "cartpole": Config(),
    "acrobot": Config("Acrobot-v1"),
    "halfcheetah": Config("HalfCheetah-v5", updates=200_000, normalize_env=True),
    # Age counts by how far the policy has moved since: here it moves four times as far in an update.
    "cartpole_fast": Config(learning_rate=4e-3),
    # While the critic still lags behind, all advantages have one sign, unless they are centred.
    "acrobot_centred": Config("Acrobot-v1", advantage_scaling="standardize"),
    "halfcheetah_centred": Config(
        "HalfCheetah-v5", updates=200_000, normalize_env=True, advantage_scaling="standardize"
    ),
}
AGES = {TASKS["halfcheetah_centred"]: (0, 30, 100)}  # where uncentred advantages go wrong; elsewhere all of STALENESS
WITHOUT_FRICTIONS = (TASKS["cartpole_fast"], TASKS["halfcheetah_centred"])  # looked at for staleness alone
COIN = {"CartPole-v1": (0.0, 1.0), "Acrobot-v1": (-1.0, 0.0), "HalfCheetah-v5": (-5.0, 5.0)}  # about the range seen


def cartpole_expert(observations: Any) -> Any:
    """Push to the side the pole falls to."""
    return (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)


def acrobot_expert(observations: Any) -> Any:
    """Push the second joint against the swing of the first, which pumps energy in."""
    return np.where(observations[:, 4] > 0, 0, 2)


EXPERTS = {"CartPole-v1": cartpole_expert, "Acrobot-v1": acrobot_expert}  # for HalfCheetah there is none


class RememberedBug(ActorBug):
    """Knows which rows of the last rollout it chose."""

    def __init__(self, probability: float, n_steps: int) -> None:
        super().__init__(probability)
        self.steps: deque[torch.Tensor] = deque(maxlen=n_steps)

    def chosen(self, n_envs: int, generator: torch.Generator) -> torch.Tensor:
        self.steps.append(super().chosen(n_envs, generator))
        return self.steps[-1]

    def rows(self) -> torch.Tensor:
        """``[n_steps * n_envs]``, environment after environment."""
        return torch.stack([*self.steps]).T.flatten()


BUG_METRICS = ("bug_push", "bug_advantage", "bug_noise", "bug_surprisal", "mean_weight")


def measure_bug(model: PolicyGradient) -> Row:
    """Of the last update, over the bug's actions that the policy gives less than even odds.

    Mean of weight x advantage: below 0 the update makes these actions less likely. Mean and standard deviation of their
    advantage (scaled), mean surprisal as in the gate; and the mean weight of all rows.
    """
    assert isinstance(model.actors, LocalActors)
    assert model.last_update is not None
    (bug,) = model.actors.frictions
    assert isinstance(bug, RememberedBug)
    advantages, surprisal, weight = model.last_update
    rows = bug.rows() & (surprisal > math.log(2))
    push, advantage = (weight * advantages)[rows], advantages[rows]
    values = (push.mean(), advantage.mean(), advantage.std(), surprisal[rows].mean(), weight.mean())
    return dict(zip(BUG_METRICS, map(float, values), strict=True))


def frictions(config: Config) -> list[Friction]:
    low, high = COIN[config.env]
    each: dict[str, Friction] = {
        "mismatch": MismatchedSampler(1.0),
        "bug": RememberedBug(0.3, config.n_steps),
        "corruption": RewardCorruption(0.3, low, high),
    }
    if config.env in EXPERTS:
        each["discovery"] = RareDiscovery(0.03, EXPERTS[config.env])  # after the bug, which it overrules
    return [friction for name, friction in each.items() if config.friction in (name, "all")]


def friction_names(task: Config) -> list[str]:
    if task in WITHOUT_FRICTIONS:
        return []
    return [name for name in FRICTIONS if name != "discovery" or task.env in EXPERTS]


def arm(task: Config, method: str, staleness: int = 0, friction: str = "none") -> Config:
    method = harness.run_that_stands_for(method, staleness)
    return replace(task, method=method, staleness=staleness, friction=friction)


def troubled(task: Config, method: str, friction: str) -> Config:
    """One friction alone, with fresh weights; or all of them, by weights ten rollouts old."""
    return arm(task, method, 10 if friction == "all" else 0, friction)


def arms(task: Config) -> list[Config]:
    """Staleness first: what a stopped command leaves is whole."""
    stale = [arm(task, method, k) for k in AGES.get(task, STALENESS) for method in METHODS]
    return list(dict.fromkeys(stale + [troubled(task, m, name) for name in friction_names(task) for m in METHODS]))


#: methods whose updates under the bug are looked into; those with ratios are the policy gradient there
WATCHED = {method: Watched(method=method) for method in METHODS if method not in harness.RATIO_METHODS}
SWEEP = {name: arms(task) for name, task in TASKS.items()} | {"bug": list(WATCHED.values())}


def make_model(config: Config, env: VecEnv, seed: int) -> PolicyGradient:
    cls, own = METHODS[config.method]
    return cls(
        "MlpPolicy",
        env,
        learning_rate=config.learning_rate,
        n_steps=config.n_steps,
        advantage_scaling=config.advantage_scaling,  # type: ignore[arg-type]
        seed=seed,
        device="cpu",
        actors=LocalActors(config.staleness, frictions(config)),
        **own,
    )


def run(config: Config, seeds: list[int]) -> list[Row]:
    measure = measure_bug if isinstance(config, Watched) else None
    return training.run(make_model, config, seeds, evaluations=config.evaluations, measure=measure)


# --- figures --------------------------------------------------------------------------------------------------------

LABELS = {
    "pg": plotting.solid("pg"),
    "iw": plotting.solid("iw"),
    "vtrace": (plotting.NAMES["vtrace"], plotting.COLOURS["iw"], "--"),
    "ppo": plotting.solid("ppo"),
    "scaled_po": plotting.solid("scaled_po"),
    "dg": plotting.solid("dg"),
    "dg_1": ("DG, temperature 1", plotting.COLOURS["dg"], "--"),
    "kondo_rate": ("Kondo, rate .3", plotting.COLOURS["kondo"], "-"),
    "kondo_price": ("Kondo, price 0", plotting.COLOURS["kondo"], "--"),
}


SCALINGS = {"scale": "advantages scaled", "standardize": "advantages standardised"}


def marker_of(method: str) -> dict[str, Any]:
    """Broken lines have hollow markers, by which the right panel tells them, too."""
    _, colour, line = LABELS[method]
    return {"color": colour, "markerfacecolor": colour if line == "-" else "white", "markersize": 5}


def draw_staleness(axes: Axes, runs: Runs, task: Config) -> None:
    ages = AGES.get(task, STALENESS)
    for method, (label, _, line) in LABELS.items():
        found = [runs.late(arm(task, method, k), "deterministic") for k in ages]
        plotting.points(axes, range(len(ages)), found, label, linestyle=line, **marker_of(method))
    axes.set_xticks(range(len(ages)), [str(k) for k in ages])
    axes.set(
        title=f"{task.env}, learning rate {task.learning_rate:g}, {SCALINGS[task.advantage_scaling]}",
        xlabel="age of the weights that act (rollouts)",
        ylabel="return",
    )


def draw_frictions(axes: Axes, runs: Runs, task: Config) -> None:
    """One group for each friction; "none" is the staleness of 0."""
    groups = ["none", *friction_names(task)]
    for i, method in enumerate(LABELS):
        places = np.arange(len(groups)) + (i - (len(LABELS) - 1) / 2) * 0.11
        samples = [runs.late(troubled(task, method, name), "deterministic") for name in groups]
        plotting.intervals(axes, places, samples, upright=True, **marker_of(method))
    names = ["all, and\n10 rollouts old" if name == "all" else name for name in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set(title="what goes wrong on the actor", ylabel="return")


def draw(runs: Runs, task: Config) -> Figure:
    """Also prints what the figure shows."""
    print("return late in training, mean of the last three evaluations:")
    for config in runs.configs:
        words = records.in_words(runs.late(config, "deterministic"))
        print(f"    {LABELS[config.method][0]:22} age {config.staleness:3}, {config.friction:10} {words}")
    figure, panels = plotting.panels(2 if friction_names(task) else 1, width=6.0, height=4.2)
    draw_staleness(panels[0], runs, task)
    if len(panels) == 2:
        draw_frictions(panels[1], runs, task)
    plotting.legend_below(figure, panels[0], 2 * len(panels))
    return figure


def draw_bug(runs: Runs) -> Figure:
    """Returns, and where the bug's actions are pushed. Dotted: the first-order estimate of DG's push."""
    figure, (left, right) = plotting.panels(2, width=6.0, height=4.2)
    for method, config in WATCHED.items():
        label, colour, line = LABELS[method]
        plotting.draw(left, runs, config, "deterministic", label, color=colour, linestyle=line)
        steps, push = runs.get(config, "bug_push")
        if not steps.size:
            continue
        weight = runs.get(config, "mean_weight")[1]
        plotting.band(right, steps, push / weight, label, color=colour, linestyle=line)
        if method == "dg":
            mean, noise, surprisal = (runs.get(config, f"bug_{x}")[1] for x in ("advantage", "noise", "surprisal"))
            estimate = mean / 2 + (mean**2 + noise**2) * surprisal / (4 * METHODS["dg"][1]["temperature"])
            right.plot(steps, (estimate / weight).mean(axis=0), color=colour, linestyle=":", label="DG, first order")
    right.set_xlim(left=runs.configs[0].updates / 2)  # before that some seeds have no such action
    right.set_ylim(-0.6, 1)
    right.axhline(0, color="black", linewidth=0.8)
    left.set(title="CartPole-v1, 30 % of the actions push left", ylabel="return", xlabel="environment steps")
    right.set(title="bug's actions with less than even odds", xlabel="environment steps")
    right.set(ylabel="mean weight x advantage / mean weight")
    plotting.legend_below(figure, right, 4)
    return figure


EXPERIMENT = harness.Experiment(
    name="stale_actors",
    sweep=SWEEP,
    run=run,
    figures={name: partial(draw, task=task) for name, task in TASKS.items()} | {"bug": draw_bug},
    metrics=(*training.METRICS, *BUG_METRICS, *training.PACKAGES),
    seeds=10,
    seeds_per_job=1,
    smoke={"updates": 1200, "evaluations": 2, "staleness": 1},
    summary={"deterministic": np.mean, "sampled": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

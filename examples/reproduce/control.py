"""MuJoCo and MinAtar: DG and the Kondo gate beside PPO, A2C, TRPO and the plain policy gradient.

    python examples/reproduce/control.py --figure levers [--seeds 5] [--workers 2] [--plot-only]
    python examples/reproduce/control.py --figure second_levers
    python examples/reproduce/control.py --figure tuning
    python examples/reproduce/control.py --figure HalfCheetah-v5

``levers``: what might lift an on-policy method, one change at a time, for the policy gradient and for DG alike;
``second_levers``: the same around those that did.
``tuning``: nine trials of each on three tasks, from which one setting for all comes. Each environment has a figure: the
plain policy gradient, DG and the gates with what else they have in common, beside methods of other packages with the
best settings that their users publish. ``aggregate``: all environments of MuJoCo together.
"""

import functools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import training
import yaml
from control_methods import ClippedDG, PerDimensionDG, RelativeDG, ReusingDG, ReusingPG, clip_apart
from harness import Row, Runs
from matplotlib.figure import Figure
from sb3_contrib import TRPO
from scipy.stats import trim_mean
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_delight import DG, KondoDG, PolicyGradient
from sb3_delight.arguments import as_schedule
from sb3_delight.baselines import PPO as ClippedPG
from sb3_delight.envs.minatar import MinAtarCNN
from sb3_delight.zoo import plots

ZOO_CONFIGS = Path(__file__).parents[2] / "zoo_configs"


@dataclass(frozen=True)
class Config:
    """One run. Methods of other packages have settings of their own, see :func:`published`."""

    env: str = "HalfCheetah-v5"
    method: str = "dg"
    updates: int = 1_000_000  # environment steps
    evaluations: int = 20
    n_envs: int = 8  # x n_steps = 256 rows an update, learning rate, temperature: those of temperature.py
    n_steps: int = 32
    batch_size: int | None = None
    n_epochs: int = 1
    extra_critic_epochs: int = 0
    learning_rate: float | str = 1e-3
    gamma: float = 0.99
    ent_coef: float = 0.0
    temperature: float | str = 10.0
    surprisal_clip: float | None = 10.0
    advantage_scaling: str = "scale"  # or "standardize", which also centres
    normalize_env: bool = True  # VecNormalize
    clipped: bool = False  # by PPO's ratio
    reuse: int = 0  # rollouts
    reference: float | None = None  # surprisal less that of an action so many standard deviations off the mean
    per_dimension: bool = False  # surprisal and gate
    clip_apart: bool = False  # the gradients of actor and critic, each to max_grad_norm
    width: int = 64  # of two hidden layers
    relu: bool = False
    log_std_init: float = 0.0
    use_sde: bool = False
    cnn: bool = False  # SHARED_CNN


SHARED_CNN: dict[str, Any] = {"features_extractor_class": MinAtarCNN, "net_arch": []}
MUJOCO = {
    task.env: task
    for task in (
        Config("HalfCheetah-v5"),
        Config("Hopper-v5"),
        Config("Walker2d-v5"),
        Config("Ant-v5"),
        Config("Swimmer-v5", gamma=0.9999),  # gamma: RL-Zoo's for PPO, here and below
        Config("InvertedDoublePendulum-v5", gamma=0.98),
        Config("Reacher-v5", gamma=0.9),
    )
}
# As gates.py, which found them at one seed outside of its sweep.
BREAKOUT = Config("MinAtar/Breakout-v1", updates=2_000_000, n_envs=32, n_steps=8, learning_rate=3e-3, cnn=True)
MINATAR = {
    env: replace(BREAKOUT, env=env, normalize_env=False)
    for env in (f"MinAtar/{game}-v1" for game in ("Breakout", "SpaceInvaders", "Asterix", "Freeway"))
}


# --- methods --------------------------------------------------------------------------------------------------------


OURS: dict[str, tuple[type[PolicyGradient], dict[str, Any]]] = {
    "pg": (PolicyGradient, {}),
    "pg_entropy": (PolicyGradient, {}),
    "dg": (DG, {}),
    "kondo_1": (KondoDG, {"gate_rate": 0.1}),
    "kondo_3": (KondoDG, {"gate_rate": 0.3}),
    "kondo_price": (KondoDG, {}),
    "random_1": (KondoDG, {"gate_rate": 0.1, "priority": "random"}),
    "random_3": (KondoDG, {"gate_rate": 0.3, "priority": "random"}),
}
CLIPPED: dict[str, type[PolicyGradient]] = {"pg": ClippedPG, "dg": ClippedDG}
REUSING: dict[str, type[PolicyGradient]] = {"pg": ReusingPG, "dg": ReusingDG}
OTHERS: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}
# Of Tianshou's MuJoCo benchmark: RL-Zoo leaves A2C at stable-baselines3's defaults, a weak control.
STRONG_A2C = {"n_envs": 16, "n_steps": 5, "gae_lambda": 0.95, "ent_coef": 0.01, "learning_rate": "lin_7e-4"}
# RL-Zoo's Atari blocks; for TRPO there is none.
ATARI: dict[str, dict[str, Any]] = {
    "ppo": {
        "n_envs": 8,
        "n_steps": 128,
        "n_epochs": 4,
        "batch_size": 256,
        "learning_rate": "lin_2.5e-4",
        "clip_range": "lin_0.1",
        "vf_coef": 0.5,
        "ent_coef": 0.01,
    },
    "a2c": {"n_envs": 16, "ent_coef": 0.01, "vf_coef": 0.25},
    "trpo": {"n_envs": 8, "n_steps": 128},
}


def published(method: str, env: str) -> dict[str, Any]:
    """Settings of a method of another package: RL-Zoo's, but for A2C on MuJoCo."""
    settings: dict[str, Any]
    if env in MINATAR:
        settings = ATARI[method]
    elif method == "a2c":
        settings = {**STRONG_A2C, "gamma": MUJOCO[env].gamma}
    else:
        settings = zoo_config(method)[env]
    return {key: value for key, value in settings.items() if key not in ("normalize", "n_timesteps", "policy")}


@functools.cache
def zoo_config(method: str) -> Any:
    return yaml.safe_load((ZOO_CONFIGS / f"{method}.yml").read_text())


#: by method of ours, what of TUNING is its own; the rest is what they have in common
TUNED: dict[str, dict[str, Any]] = {"pg_entropy": {"ent_coef": 1e-3}}


def arms(task: Config) -> list[Config]:
    ours = [replace(task, method=method, **TUNED.get(method, {})) for method in OURS]
    # Not by replace(): the settings of ours are none of theirs, and would only change the names of their runs.
    others = [
        Config(
            task.env,
            method,
            task.updates,
            n_envs=published(method, task.env).get("n_envs", 1),
            normalize_env=task.normalize_env,
            cnn=task.cnn,
        )
        for method in OTHERS
    ]
    return [*others, *ours]


LEVER_TASKS = [replace(MUJOCO[env], updates=300_000, evaluations=3) for env in ("HalfCheetah-v5", "Hopper-v5")]


@dataclass(frozen=True)
class Round:
    """Changes one at a time, to what all arms of the round share."""

    levers: dict[str, dict[str, Any]]  # by name: for the policy gradient and DG
    dg_levers: dict[str, dict[str, Any]]  # for DG alone
    shared: dict[str, Any] = field(default_factory=dict)
    dg_shared: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [*self.levers, *self.dg_levers]

    def arms(self, task: Config) -> dict[tuple[str, str], Config]:
        """(lever, method) -> config."""
        own = {"pg": self.shared, "dg": self.shared | self.dg_shared}
        return {
            (name, method): replace(task, method=method, **(own[method] | changes))
            for method, levers in (("pg", self.levers), ("dg", self.levers | self.dg_levers))
            for name, changes in levers.items()
        }

    def sweep(self) -> list[Config]:
        return [config for task in LEVER_TASKS for config in self.arms(task).values()]


TEMPERATURES: dict[str, dict[str, Any]] = {
    "temperature 0, successes alone": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 4": {"temperature": 4.0},
    "temperature 30": {"temperature": 30.0},
}
FIRST = Round(
    levers={
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
        # stable-baselines3's PPO
        "PPO's clip, 10 epochs": {
            "clipped": True,
            "n_steps": 256,
            "batch_size": 64,
            "n_epochs": 10,
            "learning_rate": 3e-4,
        },
        "last 3 rollouts again, V-trace": {"reuse": 3},
    },
    dg_levers={
        **TEMPERATURES,
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
    },
)
#: Around what looked best at the first round's first seed, before there were more. DG's surprisal is less the likeliest
#: action's, without which so narrow a policy would turn its gate round.
SECOND = Round(
    levers={
        "as it is": {},
        "learning rate 3e-4 at the start": {"learning_rate": "lin_3e-4"},
        "learning rate 3e-3 at the start": {"learning_rate": "lin_3e-3"},
        "learning rate does not fall": {"learning_rate": 1e-3},
        "standard deviation 1": {"log_std_init": 0.0},
        "standard deviation 0.37": {"log_std_init": -1.0},
        "all 256 rows at once": {"batch_size": None},
        "8 minibatches of 32 rows": {"batch_size": 32},
        "1024 rows an update, 16 minibatches": {"n_steps": 128},
        "4 passes": {"n_epochs": 4},
        "4 more passes of the critic": {"extra_critic_epochs": 4},
        "gradients clipped apart": {"clip_apart": True},
        "advantages centred": {"advantage_scaling": "standardize"},
        "256 x 256 ReLU": {"width": 256, "relu": True},
        "PPO's clip, 2048 rows, 10 passes": {
            "clipped": True,
            "n_steps": 256,
            "n_epochs": 10,
            "learning_rate": "lin_3e-4",
        },
        "last 3 rollouts again, V-trace": {"reuse": 3},
    },
    dg_levers={
        **TEMPERATURES,
        "surprisal less entropy": {"reference": 1.0},
        "surprisal as it is": {"reference": None},
    },
    shared={"batch_size": 64, "learning_rate": "lin_1e-3", "log_std_init": -2.0},
    dg_shared={"reference": 0.0},
)
ROUNDS = {"levers": FIRST, "second_levers": SECOND}

RATES = (3e-4, 1e-3, 3e-3)
#: nine trials for each method, the temperature and the entropy bonus among them; the plain method's are learning rates
TUNING: dict[str, list[dict[str, Any]]] = {
    "pg": [{"learning_rate": r} for r in (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)],
    "pg_entropy": [{"learning_rate": r, "ent_coef": e} for e in (3e-4, 3e-3, 3e-2) for r in RATES],
    "dg": [{"learning_rate": r, "temperature": t} for t in (4.0, 10.0, 30.0) for r in RATES],
}
TUNING_TASKS = [*LEVER_TASKS, replace(LEVER_TASKS[0], env="Walker2d-v5")]


def trial_arms(method: str, changes: dict[str, Any]) -> list[Config]:
    """One trial on every task: one setting for all is sought."""
    return [replace(task, method=method, **changes) for task in TUNING_TASKS]


SWEEP = {
    "tuning": [config for m, trials in TUNING.items() for changes in trials for config in trial_arms(m, changes)],
    **{name: each.sweep() for name, each in ROUNDS.items()},
    **{env.removeprefix("MinAtar/"): arms(task) for env, task in (MUJOCO | MINATAR).items()},
    "aggregate": [config for task in MUJOCO.values() for config in arms(task)],
}


def make_model(config: Config, env: VecEnv, seed: int) -> OnPolicyAlgorithm:
    if config.method in OTHERS:
        return make_other(config, env, seed)
    cls, own = OURS[config.method]
    if config.reference is not None:
        cls, own = RelativeDG, {"reference": config.reference}
    if config.clipped:
        cls = CLIPPED[config.method]
    if config.reuse:
        cls, own = REUSING[config.method], {**own, "reuse": config.reuse}
    if config.per_dimension:
        cls = PerDimensionDG
    arguments: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "n_steps",
            "batch_size",
            "n_epochs",
            "extra_critic_epochs",
            "learning_rate",
            "gamma",
            "ent_coef",
            "surprisal_clip",
            "advantage_scaling",
            "use_sde",
        )
    }
    arguments |= {"seed": seed, "device": "cpu", **own}
    if config.method == "dg":
        arguments["temperature"] = config.temperature
    if config.clip_apart:
        arguments["max_grad_norm"] = math.inf
    networks: dict[str, Any] = {"net_arch": [config.width, config.width], "log_std_init": config.log_std_init}
    if config.relu:
        networks["activation_fn"] = nn.ReLU
    if config.cnn:
        networks = dict(SHARED_CNN)
    model = cls("MlpPolicy", env, policy_kwargs=networks, **arguments)
    if config.clip_apart:
        clip_apart(model)
    return model


def make_other(config: Config, env: VecEnv, seed: int) -> OnPolicyAlgorithm:
    settings = {key: value for key, value in published(config.method, config.env).items() if key != "n_envs"}
    for name in ("learning_rate", "clip_range"):
        if isinstance(settings.get(name), str):
            settings[name] = as_schedule(name, settings[name])
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = eval(settings["policy_kwargs"], {"nn": nn, "dict": dict})  # as RL-Zoo reads it
    if config.cnn:
        settings["policy_kwargs"] = dict(SHARED_CNN)  # A2C adds its optimiser to what it is given
    return OTHERS[config.method]("MlpPolicy", env, seed=seed, device="cpu", **settings)


def run(config: Config, seeds: list[int]) -> list[Row]:
    return training.run(make_model, config, seeds, evaluations=config.evaluations)


# --- figures --------------------------------------------------------------------------------------------------------

LABELS = {
    "ppo": ("PPO, RL-Zoo", harness.COLOURS["ppo"], "-"),
    "a2c": ("A2C, Tianshou", harness.COLOURS["half_pg"], "-"),
    "trpo": ("TRPO, RL-Zoo", harness.COLOURS["pmpo"], "-"),
    "pg": ("policy gradient", harness.COLOURS["pg"], "-"),
    "pg_entropy": ("policy gradient, entropy bonus", harness.COLOURS["pg"], "--"),
    "dg": ("DG", harness.COLOURS["dg"], "-"),
    "kondo_price": ("Kondo, price 0", harness.COLOURS["kondo"], "-"),
    "kondo_3": ("Kondo, rate .3", harness.COLOURS["kondo"], "--"),
    "kondo_1": ("Kondo, rate .1", harness.COLOURS["kondo"], ":"),
    "random_3": ("random rows, rate .3", harness.COLOURS["oracle"], "--"),
    "random_1": ("random rows, rate .1", harness.COLOURS["oracle"], ":"),
}
iqm = functools.partial(trim_mean, proportiontocut=0.25)  # interquartile mean, over the seeds of one task


def curves(runs: Runs) -> Figure:
    """Of one task, against environment steps and against seconds of one core."""
    figure, panels = harness.panels(2, width=5.6, height=4.4)
    by_method = {config.method: config for config in runs.configs}
    for method, (label, colour, line) in LABELS.items():
        steps, values = runs.get(by_method[method], "deterministic")
        if not steps.size:
            continue
        seconds = runs.get(by_method[method], "training_seconds")[1].mean(axis=0)
        for axes, x in zip(panels, (steps / 1e6, seconds), strict=True):
            harness.band(axes, x, values, f"{label}, {len(values)} seeds", iqm, color=colour, linestyle=line)
    panels[0].set(xlabel="million environment steps", ylabel="return of 10 evaluation episodes, interquartile mean")
    panels[1].set(xlabel="seconds of one core, without evaluation", xscale="log")
    figure.suptitle(runs.configs[0].env)
    harness.legend_below(figure, panels[0], 4)
    return figure


def draw_levers(runs: Runs, levers: Round) -> Figure:
    """A lever a line, an environment a panel, the mean of the seeds; dotted: as it is."""
    names = levers.names()
    figure, panels = harness.panels(len(LEVER_TASKS), width=5.2, height=0.8 + 0.18 * len(names))
    for axes, task in zip(panels, LEVER_TASKS, strict=True):
        scores = {arm: runs.last(config, "deterministic") for arm, config in levers.arms(task).items()}
        for method, shift in (("pg", -0.15), ("dg", 0.15)):
            label, colour, _ = LABELS[method]
            found = {name: values for (name, m), values in scores.items() if m == method}
            places = [names.index(name) + shift for name in found]
            harness.intervals(axes, places, list(found.values()), label, markersize=4, color=colour)
            if found["as it is"].size:
                axes.axvline(float(found["as it is"].mean()), color=colour, linestyle=":", linewidth=1)
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        counts = [len(values) for values in scores.values()]
        seeds = "-".join(map(str, sorted({min(counts), max(counts)})))
        axes.set(title=f"{task.env}, {task.updates // 1000}k steps, {seeds} seeds")
        axes.set(xlabel="return of 10 evaluation episodes")
    harness.legend_below(figure, panels[0], 2)
    return figure


def tuning(runs: Runs) -> Figure:
    """Normalised return, the mean over the tasks, against the learning rate."""
    figure, (axes,) = harness.panels(1, width=7.0, height=4.6)
    lines = {"pg": ["-"], "pg_entropy": [":", "--", "-."], "dg": [":", "-", "--"]}
    for method, trials in TUNING.items():
        name, colour, _ = LABELS[method]
        own = next((key for key in trials[0] if key != "learning_rate"), None)
        for value, line in zip(dict.fromkeys(trial.get(own or "") for trial in trials), lines[method], strict=True):
            mine = [trial for trial in trials if trial.get(own or "") == value]
            scores = [mean_score(runs, trial_arms(method, trial)) for trial in mine]
            label = f"{name}, {own} {value:g}" if own else name
            harness.points(axes, [t["learning_rate"] for t in mine], scores, label, color=colour, linestyle=line)
    tasks = ", ".join(task.env for task in TUNING_TASKS)
    axes.set(xscale="log", xlabel="learning rate", ylabel="normalised return", title=f"{tasks}: 300k steps")
    harness.legend(axes)
    return figure


def mean_score(runs: Runs, trial: list[Config]) -> harness.Array:
    """Normalised return by seed, the mean over tasks, ``[seeds]``; of the seeds that were run on all of them."""
    scores = [plots.normalize(runs.last(config, "deterministic"), config.env) for config in trial]
    seeds = min(map(len, scores))
    mean: harness.Array = np.mean([score[:seeds] for score in scores], axis=0)
    return mean


def aggregate(runs: Runs) -> Figure:
    """Interquartile mean of normalised scores over the tasks of MuJoCo that every method was run on."""
    found: plots.Runs = {}
    for config in runs.configs:
        steps, values = runs.get(config, "deterministic")
        if steps.size:
            found[LABELS[config.method][0], config.env] = (steps, values)
    return plots.aggregates(plots.final_scores(found))


EXPERIMENT = harness.Experiment(
    name="control",
    sweep=SWEEP,
    run=run,
    figures={
        **dict.fromkeys(SWEEP, curves),
        **{name: functools.partial(draw_levers, levers=each) for name, each in ROUNDS.items()},
        "tuning": tuning,
        "aggregate": aggregate,
    },
    metrics=(*training.METRICS, *training.PACKAGES),
    seeds=5,
    seeds_per_job=1,
    smoke={"updates": 3000, "evaluations": 1},
    summary={"deterministic": iqm, "sampled": iqm, "training_seconds": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

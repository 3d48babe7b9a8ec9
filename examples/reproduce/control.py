"""MuJoCo and MinAtar: DG and the Kondo gate beside PPO, A2C, TRPO and the plain policy gradient.

    python examples/reproduce/control.py --figure levers [--seeds 5] [--workers 2] [--plot-only]
    python examples/reproduce/control.py --figure clip
    python examples/reproduce/control.py --figure tuning --seeds 1
    python examples/reproduce/control.py --figure finals --seeds 3
    python examples/reproduce/control.py --figure HalfCheetah-v5
    python examples/reproduce/control.py --figure bonus
    python examples/reproduce/control.py --figure bonus_mujoco
    python examples/reproduce/control.py --figure slow

``levers``: what might lift an on-policy method, one change at a time; ``clip``: the gate under PPO's clip
(``control_levers.py``). ``tuning``, ``finals``: equal budgets on three tasks, and what they found beside the settings
known before (``control_tuning.py``). Each environment has a figure: the policy gradient, DG and the gates with what
else they have in common, beside methods of other packages with the best settings that their users publish. On MuJoCo
ours have PPO's clip and ten passes over a rollout, so that the policy gradient is PPO, but for two arms with neither.
``aggregate``: all environments of MuJoCo together. ``bonus``, ``bonus_mujoco``: DG beside the entropy bonus that it
holds (``control_bonus.py``). ``slow``: smaller steps (``control_slow.py``).
"""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import control_bonus
import control_levers
import control_slow
import control_tuning
import harness
import numpy as np
import plotting
import records
import training
import yaml
from control_methods import LessEntropyDG, PerDimensionDG, ReusingDG, ReusingPG, clip_apart
from control_tasks import ATARI_LABELS, FRESH_SEED, LABELS, MINATAR, MUJOCO, Config
from matplotlib.figure import Figure
from records import Array, Row, Runs
from sb3_contrib import TRPO
from scipy.stats import trim_mean
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_delight import DG, KondoDG, PolicyGradient
from sb3_delight.arguments import as_schedule, require
from sb3_delight.baselines import ScaledPO
from sb3_delight.zoo import plots

ZOO_CONFIGS = Path(__file__).parents[2] / "zoo_configs"

#: what they are, and arguments that no field of a run stands for
OURS: dict[str, tuple[type[PolicyGradient], dict[str, Any]]] = {
    **dict.fromkeys(("pg", "pg_entropy", "pg_more_entropy", "pg_once", "pg_clip"), (PolicyGradient, {})),
    **dict.fromkeys(("dg", "dg_entropy", "dg_warm", "dg_cool", "dg_once", "dg_clip"), (DG, {})),
    **dict.fromkeys(("half_pg", "half_pg_entropy"), (DG, {})),
    "kondo_soft": (KondoDG, {"temperature": 10.0}),  # DG's step in expectation, for about half of the rows
    "kondo_price": (KondoDG, {"price": 0.0}),
    "kondo_3": (KondoDG, {"gate_rate": 0.3}),
    "kondo_1": (KondoDG, {"gate_rate": 0.1}),
    **dict.fromkeys(("random_5", "random_5_entropy"), (KondoDG, {"gate_rate": 0.5, "priority": "random"})),
    "random_3": (KondoDG, {"gate_rate": 0.3, "priority": "random"}),
    "random_1": (KondoDG, {"gate_rate": 0.1, "priority": "random"}),
}
#: of the figure `clip` alone
MUTING: dict[str, tuple[type[PolicyGradient], dict[str, Any]]] = {"scaled_po": (ScaledPO, {})}
REUSING: dict[str, type[PolicyGradient]] = {"pg": ReusingPG, "dg": ReusingDG}
OTHERS: dict[str, type[OnPolicyAlgorithm]] = {"ppo": PPO, "a2c": A2C, "trpo": TRPO}
# Of Tianshou's MuJoCo benchmark. RL-Zoo leaves A2C at stable-baselines3's defaults, by which it came as far
# (HalfCheetah, seed 100: 802, this 846) in eight times the seconds.
STRONG_A2C: dict[str, Any] = {
    "n_envs": 16,
    "n_steps": 5,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "learning_rate": "lin_7e-4",
    "policy_kwargs": {"log_std_init": -0.5},
}
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


#: the methods of ours that every task has, with what sets a run of each apart from the others: the bonus, like DG's
#: temperature of 10, was the better of two in the figure `clip`
COMMON: dict[str, dict[str, Any]] = {
    "pg": {},
    "pg_entropy": {"ent_coef": 0.01},
    "dg": {},
    "dg_entropy": {"ent_coef": 0.01},
    "dg_warm": {"temperature": 50.0},  # by which it holds, to first order, the bonus of pg_entropy
    **{gate: {} for gate in ("kondo_soft", "kondo_price", "kondo_3", "kondo_1", "random_5", "random_3", "random_1")},
}
#: of all on MuJoCo: zoo_configs/dg.yml
SHARED = {**control_levers.CLIP, "temperature": 10.0, "reference": 0.0}
#: and of those without the clip, which do not bear a second pass, and learn faster from smaller rollouts
ONCE = {**SHARED, "clipped": False, "n_epochs": 1, "n_steps": 32}
# On MinAtar, where the others take one pass: rows, minibatches and passes of RL-Zoo's PPO on Atari. The policy gradient
# ended Breakout at 11 with them (seed 0), and at 6 with a learning rate of .001.
CLIPPED: dict[str, Any] = {"clipped": True, "n_steps": 32, "batch_size": 256, "n_epochs": 4}
ON_MUJOCO = {**{method: SHARED | own for method, own in COMMON.items()}, "pg_once": ONCE, "dg_once": ONCE}
ON_MINATAR = {
    **COMMON,
    "pg_more_entropy": {"ent_coef": 0.05},  # the one that DG holds at temperature 10
    "dg_cool": {"temperature": 1.0},  # the papers'
    "half_pg": {"temperature": math.inf},  # actor and critic share features, so the size of a gate tells, too
    "half_pg_entropy": {"temperature": math.inf, "ent_coef": 0.025},  # DG at temperature 10, to first order
    "random_5_entropy": {"ent_coef": 0.025},  # and the coin
    "pg_clip": CLIPPED,
    "dg_clip": CLIPPED,
}
#: environment -> method of ours -> fields of its run
ARMS = {**dict.fromkeys(MUJOCO, ON_MUJOCO), **dict.fromkeys(MINATAR, ON_MINATAR)}


def arms(task: Config) -> list[Config]:
    ours = [replace(task, method=method, **fields) for method, fields in ARMS[task.env].items()]
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


SWEEP = {
    "levers": control_levers.SWEEP,
    "clip": control_levers.CLIP_SWEEP,
    "tuning": control_tuning.SWEEP,
    "finals": control_tuning.FINALS,
    **{env.removeprefix("MinAtar/"): arms(task) for env, task in (MUJOCO | MINATAR).items()},
    "aggregate": [config for task in MUJOCO.values() for config in arms(task)],
    "slow": [config for task in control_slow.TASKS for config in control_slow.arms(arms(task))],
    **{
        figure: [config for task in tasks for config in control_bonus.arms(arms(task))]
        for figure, tasks in control_bonus.TASKS.items()
    },
}


#: arguments of our loop that a config has
LOOP = (
    *("n_steps", "batch_size", "n_epochs", "extra_critic_epochs", "learning_rate"),
    *("gamma", "ent_coef", "surprisal_clip", "advantage_scaling", "use_sde"),
)


def make_model(config: Config, env: VecEnv, seed: int) -> OnPolicyAlgorithm:
    if config.method in OTHERS:
        return make_other(config, env, seed)
    cls, own = (OURS | MUTING)[config.method]
    require(config.reference in (None, 0, 1), "reference", config.reference, "0 or 1 standard deviations off, or None")
    if config.reference is not None:
        own = {**own, "surprisal_baseline": "mode"}
    if config.reference == 1:
        cls = LessEntropyDG
    if config.clipped:
        own = {**own, "clip_range": 0.2}
    if config.reuse:
        cls, own = REUSING[config.method], {**own, "reuse": config.reuse}
    if config.per_dimension:
        cls = PerDimensionDG
    arguments = {name: getattr(config, name) for name in LOOP} | {"seed": seed, "device": "cpu", **own}
    if issubclass(cls, DG):
        arguments["temperature"] = config.temperature
    if config.clip_apart:
        arguments["max_grad_norm"] = math.inf
    networks: dict[str, Any] = {"net_arch": [config.width, config.width], "log_std_init": config.log_std_init}
    if config.relu:
        networks["activation_fn"] = nn.ReLU
    if config.cnn:
        networks = dict(training.MINATAR_POLICY)
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
        settings["policy_kwargs"] = training.MINATAR_POLICY
    if "policy_kwargs" in settings:
        settings["policy_kwargs"] = dict(settings["policy_kwargs"])  # A2C adds its optimiser to what it is given
    return OTHERS[config.method]("MlpPolicy", env, seed=seed, device="cpu", **settings)


def run(config: Config, seeds: list[int]) -> list[Row]:
    return training.run(make_model, config, seeds, evaluations=config.evaluations)


# --- figures --------------------------------------------------------------------------------------------------------

iqm = functools.partial(trim_mean, proportiontocut=0.25)  # interquartile mean, over the seeds of one task


def label(config: Config) -> str:
    name = LABELS[config.method][0]
    if config.env in MINATAR:
        name = ATARI_LABELS.get(config.method, name)
    return name + " + PPO's clip" * config.clipped


def improvements(scores: dict[str, Array]) -> dict[str, str]:
    """Method -> probability that a run of DG scores above one of it, with interval: the DG of the same loop.

    :param scores: method -> ``[seeds, tasks]``
    """
    loops = ("_once", "_clip")
    compared = {method: next((f"dg{loop}" for loop in loops if method.endswith(loop)), "dg") for method in scores}
    pairs = {method: (scores[dg], scores[method]) for method, dg in compared.items() if dg != method and dg in scores}
    found = plots.improvements(pairs) if pairs else {}
    return {method: f"{chance:.2f} [{low:.2f}, {high:.2f}]" for method, (chance, low, high) in found.items()}


def curves(runs: Runs) -> Figure:
    """Of one task, against environment steps, against seconds of one core, and late in training; prints the table."""
    figure, panels = plotting.panels(3, width=5.6, height=5.4)
    done = [config for config in runs.configs if runs.seeds(config)]
    late = {config: runs.late(config, "deterministic") for config in done}
    chances = improvements({config.method: returns[:, None] for config, returns in late.items()})
    print("mean of the last three evaluations, interquartile mean over seeds; probability that a run of DG is above")
    for place, config in enumerate(done):
        name = label(config)
        print(f"    {name:45} {records.in_words(late[config], iqm):40} {chances.get(config.method, '')}".rstrip())
        _, colour, line = LABELS[config.method]
        steps, values = runs.get(config, "deterministic")
        seconds = np.median(runs.get(config, "training_seconds")[1], axis=0)  # some seeds had a slower machine
        clocks = [steps / 1e6] if plotting.seconds_mislead(config) else [steps / 1e6, seconds]
        for axes, x in zip(panels, clocks, strict=False):
            # Bands of 19 arms would hide each other.
            plotting.band(axes, x, values, name, iqm, shaded=line == "-", color=colour, linestyle=line)
        panels[2].scatter(late[config], [place] * len(values), s=10, color=colour, alpha=0.5)
        plotting.intervals(panels[2], [place], [late[config]], statistic=iqm, color=colour)
    panels[0].set(xlabel="million environment steps", ylabel="evaluation return")
    panels[1].set(xlabel="seconds of one core, without evaluation", xscale="log")
    panels[2].set(xlabel="mean of the last three evaluations")
    plotting.line_each(panels[2], [label(config) for config in done])
    seeds = runs.seed_counts()
    title = f"{runs.configs[0].env}, {seeds} seeds: interquartile mean and, of solid lines, its 95 % interval"
    figure.suptitle(title)
    plotting.legend_below(figure, panels[0], 4)
    return figure


def aggregate(runs: Runs) -> Figure:
    """Interquartile mean of normalised scores over the tasks of MuJoCo that every method was run on.

    Prints these, and the probabilities that DG is above.
    """
    found: plots.Runs = {}
    for config in runs.configs:
        scores = runs.late(config, "deterministic")
        if scores.size:
            found[label(config), config.env] = (np.array([config.updates]), scores[:, None])
    normalised = plots.final_scores(found)
    figure = plots.aggregates(normalised)
    tasks = [env for env in MUJOCO if all((name, env) in found for name, _ in found)]
    seeds = records.extent([len(scores) for scores in normalised.values()])
    figure.suptitle(f"{', '.join(tasks)}: {seeds} seeds of each", fontsize=10)
    methods = {label(config): config.method for config in runs.configs}
    print("probability that a run of DG is above one of")
    for method, chance in improvements({methods[name]: scores for name, scores in normalised.items()}).items():
        print(f"{LABELS[method][0]:>24}: {chance}")
    return figure


EXPERIMENT = harness.Experiment(
    name="control",
    sweep=SWEEP,
    run=run,
    figures={
        **dict.fromkeys(SWEEP, curves),
        "levers": control_levers.draw,
        "clip": control_levers.draw_clip,
        "tuning": control_tuning.draw,
        "finals": control_tuning.draw_finals,
        "aggregate": aggregate,
        "slow": functools.partial(control_slow.draw, statistic=iqm, improvements=improvements),
        **dict.fromkeys(control_bonus.TASKS, functools.partial(control_bonus.draw, statistic=iqm)),
    },
    metrics=(*training.METRICS, *training.PACKAGES),
    seeds=5,
    seeds_per_job=1,
    smoke={"updates": 2048, "evaluations": 1},  # one rollout
    summary={"deterministic": iqm, "sampled": iqm, "training_seconds": np.mean},
    first_seed=dict.fromkeys(SWEEP.keys() - {"levers", "clip", "tuning"}, FRESH_SEED),
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

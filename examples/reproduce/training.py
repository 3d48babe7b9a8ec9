"""Training runs of any stable-baselines3 algorithm as rows of an experiment, see ``harness.py``.

What a row counts is what the training cost up to there: environment steps, rows paid for, optimiser steps, seconds of
one core. Evaluation costs nothing: its seconds are not counted, and it draws from no generator that training uses.
"""

import functools
import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from records import Row
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_delight.envs.minatar import MinAtarCNN

#: columns of every row, besides ``seed`` and ``step``
METRICS = (
    "env_steps",  # taken so far: at least `step`, as runs are looked at between two updates
    "deterministic",  # mean return of evaluation episodes, by mean or likeliest actions
    "sampled",  # mean return of the last training episodes
    "actor_rows",  # paid for so far, forward and backward
    "critic_rows",
    "gradient_steps",  # of the optimiser
    "training_seconds",  # of one core, so far, without evaluation
    "update_seconds",  # of these, in the update phase
)
PACKAGES = ("stable-baselines3", "gymnasium", "mujoco", "MinAtar")  # what a score depends on, besides torch and numpy
#: ``policy_kwargs`` of MinAtar's games: one CNN for actor and critic
MINATAR_POLICY: dict[str, Any] = {"features_extractor_class": MinAtarCNN, "net_arch": []}
MakeModel = Callable[[VecEnv, int], OnPolicyAlgorithm]


def run(
    make_model: Callable[[Any, VecEnv, int], OnPolicyAlgorithm], config: Any, seeds: list[int], **options: Any
) -> list[Row]:
    """Rows of some seeds of a config, one run after the other: what a script's ``Experiment.run`` does.

    :param make_model: ``(config, env, seed) -> algorithm``
    :param config: with fields env, updates (environment steps), n_envs and normalize_env
    :param seeds: to run
    :param options: further arguments of :func:`train`
    """
    rows: list[Row] = []
    for seed in seeds:
        make = functools.partial(make_model, config)
        size: dict[str, Any] = {"n_envs": config.n_envs, "normalize": config.normalize_env}
        rows += train(make, config.env, seed, config.updates, **size, **options)
    return rows


def train(
    make_model: MakeModel,
    env_id: str,
    seed: int,
    total_timesteps: int,
    *,
    n_envs: int = 8,
    evaluations: int = 10,
    evaluation_envs: int = 10,
    normalize: bool = False,
    measure: Callable[[Any], Row] | None = None,
) -> list[Row]:
    """Train one seed.

    :param make_model: ``(env, seed) -> algorithm``
    :param env_id: registered Gymnasium id
    :param seed: of the environments and the algorithm; evaluation has another, held out
    :param total_timesteps: environment steps, of all environments together
    :param n_envs: environments trained on
    :param evaluations: rows, evenly spaced over the steps, each at the first update's end past its ``step``
    :param evaluation_envs: in which the 10 evaluation episodes are played: one each is fastest
    :param normalize: VecNormalize of observations and rewards, with the algorithm's own discount. Evaluation shares its
        statistics, and returns are those of the environment itself.
    :param measure: further columns of a row, read off the algorithm
    :return: rows of ``METRICS``, with the versions of ``PACKAGES``
    """
    env: VecEnv = make_vec_env(env_id, n_envs, seed=seed)
    held_out: VecEnv = make_vec_env(env_id, evaluation_envs, seed=seed + 1000)
    if normalize:
        env = VecNormalize(env)
        held_out = VecNormalize(held_out, training=False, norm_reward=False)
        held_out.obs_rms = env.obs_rms
    model = make_model(env, seed)
    if isinstance(env, VecNormalize):
        env.gamma = model.gamma
    steps = [round(total_timesteps * (i + 1) / evaluations) for i in range(evaluations)]
    recorder = Recorder(steps, held_out, measure)
    model.learn(total_timesteps, callback=recorder, log_interval=None)  # type: ignore[arg-type]
    env.close()
    held_out.close()
    versions = {package: installed(package) for package in PACKAGES}
    return [{"seed": seed, **row, **versions} for row in recorder.rows]


class Recorder(BaseCallback):
    """Writes the rows: before the first rollout past each step, and the last at the end of training."""

    def __init__(self, steps: list[int], held_out: VecEnv, measure: Callable[[Any], Row] | None) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.steps, self.held_out, self.measure = steps, held_out, measure
        self.gradient_steps = 0
        self.seconds = {"collecting": 0.0, "updating": 0.0}

    def _init_callback(self) -> None:
        # Counted at the optimiser: `_n_updates` is epochs in one algorithm and gradient steps in another.
        self._hook = self.model.policy.optimizer.register_step_post_hook(self._count_step)
        self._phase, self._since = "collecting", time.process_time()

    def _count_step(self, *_: Any) -> None:
        self.gradient_steps += 1

    def _enter(self, phase: str) -> None:
        """Ends one phase and begins another; ``"evaluating"`` is not counted."""
        now = time.process_time()
        if self._phase in self.seconds:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def _on_rollout_start(self) -> None:
        self._write_due_rows()

    def _on_rollout_end(self) -> None:
        self._enter("updating")

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._write_due_rows()
        self._hook.remove()

    def _write_due_rows(self) -> None:
        """Also where an update has just ended."""
        self._enter("evaluating")
        while len(self.rows) < len(self.steps) and self.num_timesteps >= self.steps[len(self.rows)]:
            self.rows.append(self._row(self.steps[len(self.rows)]))
        self._enter("collecting")

    def _row(self, step: int) -> Row:
        model: Any = self.model
        deterministic, _ = evaluate_policy(model, self.held_out, n_eval_episodes=10, warn=False)
        recent = [episode["r"] for episode in list(model.ep_info_buffer or [])[-30:]]
        return {
            "step": step,
            "env_steps": self.num_timesteps,
            "deterministic": float(np.mean(deterministic)),
            "sampled": float(np.mean(recent)) if recent else math.nan,
            **paid_rows(model),
            "gradient_steps": self.gradient_steps,
            "training_seconds": sum(self.seconds.values()),
            "update_seconds": self.seconds["updating"],
            **(self.measure(model) if self.measure else {}),
        }


def paid_rows(model: Any) -> Row:
    """As our algorithms count them; those of stable-baselines3 pay for every row of every epoch (TRPO: of the critic's
    updates, and for the actor once)."""
    if hasattr(model, "actor_rows"):
        return {"actor_rows": model.actor_rows, "critic_rows": model.critic_rows}
    actor = model.num_timesteps * getattr(model, "n_epochs", 1)
    critic = model.num_timesteps * getattr(model, "n_critic_updates", getattr(model, "n_epochs", 1))
    return {"actor_rows": actor, "critic_rows": critic}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

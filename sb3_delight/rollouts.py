"""What actors send, and how the learner takes it in: as if it had collected it itself."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from sb3_delight.buffers import flat_rollout, map_observations
from sb3_delight.forward import evaluate_log_prob, slices_without_gradient, uncompiled
from sb3_delight.normalization import Statistics, merge_statistics, statistics_of

__all__ = ["ActorPool", "Intake", "Rollout", "Weights", "generators_left_alone"]

Arrays: TypeAlias = Any  # an array, or a Dict observation of arrays


class Weights(NamedTuple):
    """What an actor needs to act as the learner would."""

    policy: dict[str, Tensor]  #: the policy's ``state_dict``, copied to the CPU
    statistics: Statistics  #: of the learner's VecNormalize, merged over all actors; empty without one


@dataclass
class Rollout:
    """``n_steps`` steps of ``n_envs`` environments, as an actor collected them; it can be pickled.

    Observations and rewards are as the actor's environment gave them, its VecNormalize included.
    """

    observations: Arrays  #: that were acted on, ``[n_steps, n_envs, *]``, or a Dict of these
    actions: np.ndarray  #: as the policy drew them, not clipped to their space, ``[n_steps, n_envs, action_dim]``
    rewards: np.ndarray  #: without any value of a truncated state, ``[n_steps, n_envs]``
    episode_starts: np.ndarray  #: 1 where a step is the first of its episode, ``[n_steps, n_envs]``
    values: np.ndarray  #: by the actor's critic, ``[n_steps, n_envs]``
    log_probs: np.ndarray  #: of the actions under the actor's policy, ``[n_steps, n_envs]``
    infos: list[list[dict[str, Any]]]  #: of each step and environment: Monitor's episodes, terminal observations, ...
    last_observation: Arrays  #: after the last step, ``[n_envs, *]``
    last_dones: np.ndarray  #: whether the last step ended an episode, ``[n_envs]``
    version: int  #: the learner's gradient steps when it published the weights that acted
    increments: Statistics  #: what VecNormalize saw since the actor's rollout before

    def dones(self, step: int) -> np.ndarray:
        """Whether a step ended the episode, ``[n_envs]``."""
        following = self.episode_starts[step + 1] if step + 1 < len(self.rewards) else self.last_dones
        return following.astype(bool)

    def observation(self, step: int) -> Arrays:
        """What a step acted on, ``[n_envs, *]``; with ``step=n_steps`` the observation after the last one.

        In shape and type as the environment gave it; the buffer keeps some in others.
        """
        if step == len(self.rewards):
            return self.last_observation
        if not isinstance(self.observations, dict):
            return _like(self.last_observation, self.observations[step])
        return {key: _like(self.last_observation[key], array[step]) for key, array in self.observations.items()}

    def policy_actions(self, step: int, space: spaces.Space[Any]) -> np.ndarray:
        """Actions of a step as the policy drew them, ``[n_envs, *]``: whole numbers where the space has such."""
        drawn: np.ndarray = self.actions[step].reshape(-1, *(space.shape or ()))
        return drawn.astype(np.int64) if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else drawn


@runtime_checkable
class ActorPool(Protocol):
    """Where rollouts come from. ``learn()`` calls ``start``, ``publish`` and ``collect`` in turn, and ``close``."""

    def start(self, algorithm: OnPolicyAlgorithm) -> None:
        """Begin: make actors for the algorithm's policy and environment."""

    def publish(self, weights: Weights, version: int) -> None:
        """Make weights known to the actors.

        :param version: gradient steps the learner has taken; it never falls
        """

    def collect(self) -> Rollout:
        """Wait for the next rollout, whichever actor it comes from.

        :raises Exception: if there will be none
        """

    def statistics(self) -> dict[str, float]:
        """``rollouts_waiting``, ``rollouts_dropped``, ``restarts``, ...: logged as ``actors/...`` once per update."""

    def close(self) -> None:
        """End, and leave no process behind; also called where ``start`` failed or never was."""


class Intake:
    """The learner's side: publishes its weights, and fills its rollout buffer from the next rollout.

    Values are the learner's own: recomputed, unless the actor had the very weights that the learner has now.
    Log-probabilities stay the actor's. Callbacks see each step as if it was made here, but for ``clipped_actions`` and
    ``obs_tensor`` among their locals. The learner's own environment takes no step: what a callback reads off it is of
    its reset, and what it sets on it (``env_method``, ``set_attr``) reaches no actor.
    """

    def __init__(self, pool: ActorPool, algorithm: OnPolicyAlgorithm) -> None:
        pool.start(algorithm)
        self.pool = pool
        # Clocks begin with the first rollout: actors had to start.
        self._timed_from, self._idle, self._steps = 0.0, 0.0, 0

    def collect_rollout(self, algorithm: OnPolicyAlgorithm, callback: BaseCallback) -> bool:
        """As ``OnPolicyAlgorithm.collect_rollouts``.

        :return: whether training goes on: ``False`` if a callback stopped it
        """
        algorithm.policy.set_training_mode(False)
        if algorithm.use_sde:  # for callbacks that act: a LocalActors draws from the same generators, as if alone
            with generators_left_alone():
                torch.manual_seed((torch.initial_seed() + algorithm.num_timesteps) % 2**63)
                algorithm.policy.reset_noise(algorithm.n_envs)
        callback.on_rollout_start()
        policy = uncompiled(algorithm.policy).state_dict()
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in policy.items()}
        self.pool.publish(Weights(copied, statistics_of(algorithm.get_vec_normalize_env())), algorithm._n_updates)
        before = perf_counter()
        rollout = self.pool.collect()
        now = perf_counter()
        if self._timed_from:
            self._idle += now - before
            self._steps += rollout.rewards.size
        else:
            self._timed_from = now
        self._log(algorithm, rollout)
        merge_statistics(algorithm.get_vec_normalize_env(), rollout.increments)
        return fill_buffer(rollout, algorithm, callback)

    def _log(self, algorithm: OnPolicyAlgorithm, rollout: Rollout) -> None:
        figures = dict(self.pool.statistics())
        if self._steps:
            elapsed = perf_counter() - self._timed_from
            figures |= {"env_steps_per_second": self._steps / elapsed, "learner_idle_share": self._idle / elapsed}
        algorithm.logger.record_mean("actors/staleness", algorithm._n_updates - rollout.version)
        for name, value in figures.items():
            algorithm.logger.record(f"actors/{name}", value)


@torch.no_grad()
def fill_buffer(rollout: Rollout, algorithm: OnPolicyAlgorithm, callback: BaseCallback) -> bool:
    """Fill the rollout buffer step by step, with everything that goes with a step where it is made."""
    buffer, policy = algorithm.rollout_buffer, algorithm.policy
    values = _learner_values(rollout, algorithm)
    log_probs = torch.as_tensor(rollout.log_probs, device=algorithm.device)
    common = {"self": algorithm, "env": algorithm.env, "callback": callback, "rollout_buffer": buffer}
    buffer.reset()
    for step in range(algorithm.n_steps):
        rewards, dones, infos = rollout.rewards[step].copy(), rollout.dones(step), rollout.infos[step]
        actions, starts = rollout.actions[step], rollout.episode_starts[step]
        algorithm.num_timesteps += algorithm.n_envs
        drawn = rollout.policy_actions(step, algorithm.action_space)
        made = {"n_steps": step, "actions": drawn, "values": values[step][:, None], "log_probs": log_probs[step]}
        got = {"new_obs": rollout.observation(step + 1), "rewards": rewards, "dones": dones, "infos": infos}
        callback.update_locals({**common, "n_rollout_steps": algorithm.n_steps, **made, **got})
        if not callback.on_step():
            return False
        algorithm._update_info_buffer(infos, dones)
        for index in dones.nonzero()[0]:  # a timeout is not an end of value; as in stable-baselines3
            terminal = infos[index].get("terminal_observation")
            if terminal is not None and infos[index].get("TimeLimit.truncated", False):
                terminal_value = policy.predict_values(policy.obs_to_tensor(terminal)[0])
                rewards[index] += (algorithm.gamma * terminal_value).item()
        buffer.add(rollout.observation(step), actions, rewards, starts, values[step], log_probs[step])
    last_values = policy.predict_values(obs_as_tensor(rollout.last_observation, algorithm.device))
    _compute_advantages(rollout, algorithm, last_values)
    callback.update_locals({"n_steps": algorithm.n_steps, "values": last_values})
    callback.on_rollout_end()
    return True


def _compute_advantages(rollout: Rollout, algorithm: Any, last_values: Tensor) -> None:
    buffer = algorithm.rollout_buffer
    if algorithm.advantage_estimator == "gae" or rollout.version == algorithm._n_updates:  # then V-trace is GAE
        buffer.compute_returns_and_advantage(last_values=last_values, dones=rollout.last_dones)
    else:
        log_prob = evaluate_log_prob(algorithm.policy, flat_rollout(buffer), algorithm.batch_size)
        buffer.compute_vtrace(last_values, rollout.last_dones, log_prob)


def _like(example: np.ndarray, array: np.ndarray) -> np.ndarray:
    return array.reshape(example.shape).astype(example.dtype, copy=False)


def _learner_values(rollout: Rollout, algorithm: Any) -> Tensor:
    """``[n_steps, n_envs]``, by the learner's critic; those of the actor if it had the same weights."""
    if rollout.version == algorithm._n_updates:
        return torch.as_tensor(rollout.values, device=algorithm.device)
    flat = map_observations(lambda array: array.reshape(-1, *array.shape[2:]), rollout.observations)
    parts = [
        algorithm.policy.predict_values(
            obs_as_tensor(map_observations(lambda array, rows=rows: array[rows], flat), algorithm.device)
        )
        for rows in slices_without_gradient(rollout.rewards.size, algorithm.batch_size)
    ]
    return torch.cat(parts).reshape(rollout.rewards.shape)


@contextmanager
def generators_left_alone() -> Iterator[None]:
    """Whatever is drawn or seeded inside: the process's generators go on as if it had not been."""
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

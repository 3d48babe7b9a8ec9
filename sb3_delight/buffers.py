"""Rollout storage on the training device: what the policy computed there never leaves it."""

from collections.abc import Generator
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from torch import Tensor

from sb3_delight.minibatches import pinned, upload
from sb3_delight.returns import gae, vtrace

__all__ = [
    "DeviceRolloutBuffer",
    "Observations",
    "Samples",
    "flat_rollout",
    "map_observations",
    "observation_parts",
    "take",
]

Observations: TypeAlias = Tensor | dict[str, Tensor]
Samples: TypeAlias = RolloutBufferSamples | DictRolloutBufferSamples

# Networks read float32, and torch indexes only the signed integers beyond uint8.
_STORED_AS = {np.dtype(np.float64): np.float32, np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}


#: attributes that hold a rollout: as the environments returned it, and on the device
STORAGE = (
    *("_host_observations", "_host_actions", "_host_rewards", "_host_starts"),
    *("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"),
)


class DeviceRolloutBuffer(RolloutBuffer):
    """stable-baselines3's ``RolloutBuffer``, and its ``DictRolloutBuffer``, stored as tensors on the training device.

    Same attributes (``[n_steps, n_envs, ...]``; actions are float32, as its ``get()`` returns them), same ``get()``
    (same minibatches for the same numpy seed), same advantages to the last bit. What differs: what the policy computed
    is never copied back from the device, what the environments returned is copied there once per rollout (on a CPU:
    never), nothing is reallocated between rollouts, and ``get()`` leaves the attributes as they were. Memory is laid
    out environment by environment, so that the flat rollout (:func:`flat_rollout`) is a view.

    It serves the algorithms of this package; stable-baselines3's own PPO and A2C read numpy arrays and refuse it.
    """

    observations: Observations  # type: ignore[assignment]
    actions: Tensor  # type: ignore[assignment]
    rewards: Tensor  # type: ignore[assignment]
    advantages: Tensor  # type: ignore[assignment]
    returns: Tensor  # type: ignore[assignment]
    episode_starts: Tensor  # type: ignore[assignment]
    log_probs: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._memory: dict[str, Any] = {}
        super().__init__(*args, **kwargs)  # calls reset()
        self._floats: set[str] = set()
        self._allocate()

    def _allocate(self) -> None:
        self._uploads: list[tuple[Tensor, Tensor]] = []
        space, shapes = self.observation_space, cast(Any, self.obs_shape)
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        dtypes = {key: np.float32 if key in self._floats else part.dtype for key, part in parts.items()}
        if isinstance(space, spaces.Dict):
            host = {key: self._host_storage(shapes[key], dtype) for key, dtype in dtypes.items()}
            self._host_observations: Any = {key: array for key, (array, _) in host.items()}
            self.observations = {key: tensor for key, (_, tensor) in host.items()}
        else:
            self._host_observations, self.observations = self._host_storage(shapes, dtypes[""])
        self._host_actions, self.actions = self._host_storage((self.action_dim,), np.float32)
        self._host_rewards, self.rewards = self._host_storage((), np.float32)
        self._host_starts, self.episode_starts = self._host_storage((), np.float32)
        for name in ("values", "log_probs", "advantages", "returns"):
            shape = (self.n_envs, self.buffer_size)
            setattr(self, name, torch.zeros(shape, device=self.device).transpose(0, 1))
        self._value_rows, self._log_prob_rows = self.values.unbind(), self.log_probs.unbind()
        self._memory = {name: _shallow(getattr(self, name)) for name in STORAGE}

    def _host_storage(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, Tensor]:
        """An array to write to and its tensor on the device, ``[n_steps, n_envs, *shape]``; on a CPU one memory."""
        array = np.zeros((self.n_envs, self.buffer_size, *shape), dtype=_STORED_AS.get(np.dtype(dtype), dtype))
        host = torch.from_numpy(array)
        tensor = host
        if self.device.type != "cpu":
            tensor = torch.zeros_like(host, device=self.device)  # first: pinning would open the default device
            host = pinned(host, self.device)
            self._uploads.append((tensor, host))
        return host.numpy().swapaxes(0, 1), tensor.transpose(0, 1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, whose arrays and tensors have no memory in common any more."""
        vars(self).update(state)
        self._allocate()
        for name in STORAGE:
            parts = zip(observation_parts(getattr(self, name)), observation_parts(state[name]), strict=True)
            for ours, theirs in parts:
                ours[...] = theirs

    def reset(self) -> None:
        """Start a new rollout in the same memory, which a callback may have put other arrays in place of."""
        for name, memory in self._memory.items():
            setattr(self, name, _shallow(memory))
        self.pos = 0
        self.full = False

    @torch.no_grad()
    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Store one step of every environment; see ``RolloutBuffer.add``."""
        if self.pos == 0:
            self._keep_fractions(obs)
        if isinstance(self._host_observations, dict):
            for key, array in self._host_observations.items():
                array[self.pos] = np.reshape(obs[key], array.shape[1:])
        else:
            self._host_observations[self.pos] = np.reshape(obs, self._host_observations.shape[1:])
        self._host_actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self._host_rewards[self.pos] = reward
        self._host_starts[self.pos] = episode_start
        self._value_rows[self.pos].copy_(value.flatten())
        self._log_prob_rows[self.pos].copy_(log_prob.flatten())
        self.pos += 1
        self.full = self.pos == self.buffer_size
        if self.full:
            for tensor, host in self._uploads:
                tensor.copy_(host, non_blocking=host.is_pinned())

    def _keep_fractions(self, obs: Any) -> None:
        """Store as floats what is floats though its space has integers: what VecNormalize makes of them."""
        given, kept = (parts if isinstance(parts, dict) else {"": parts} for parts in (obs, self._host_observations))
        floats = {key for key, array in kept.items() if np.asarray(given[key]).dtype.kind == "f" != array.dtype.kind}
        if floats:
            self._floats |= floats
            self._allocate()

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill ``advantages`` and ``returns`` by :func:`sb3_delight.returns.gae`."""
        self._keep(*gae(**self._trajectories(last_values, dones)))

    def compute_vtrace(self, last_values: Tensor, dones: np.ndarray, log_prob: Tensor) -> None:
        """Fill ``advantages`` and ``returns`` by :func:`sb3_delight.returns.vtrace`, for actions of an older policy.

        :param log_prob: of the actions under the policy being trained, ``[n_steps * n_envs]``, in the order of
            :func:`flat_rollout`
        """
        learner = log_prob.view(self.n_envs, self.buffer_size).transpose(0, 1)
        self._keep(*vtrace(**self._trajectories(last_values, dones), log_ratio=learner - self.log_probs))

    def _trajectories(self, last_values: Tensor, dones: np.ndarray) -> dict[str, Any]:
        return {
            "rewards": self.rewards,
            "values": self.values,
            "episode_starts": self.episode_starts,
            "last_values": last_values.detach().flatten(),
            "last_dones": torch.as_tensor(dones, dtype=torch.float32, device=self.device),
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
        }

    def _keep(self, advantages: Tensor, returns: Tensor) -> None:
        self.advantages.copy_(advantages)
        self.returns.copy_(returns)

    def get(self, batch_size: int | None = None) -> Generator[Samples, None, None]:  # type: ignore[override]
        """Shuffled minibatches of one full rollout; ``None`` yields it whole, shuffled."""
        rollout = flat_rollout(self)
        indices = upload(np.random.permutation(self.buffer_size * self.n_envs), self.device)
        for batch in torch.split(indices, batch_size or len(indices)):
            yield take(rollout, batch)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Samples:  # type: ignore[override]
        return take(flat_rollout(self), torch.as_tensor(batch_inds, device=self.device))


def flat_rollout(buffer: RolloutBuffer) -> Samples:
    """The whole rollout as one batch of ``[n_steps * n_envs, ...]`` tensors, environment after environment.

    A view of a :class:`DeviceRolloutBuffer`; a shuffled copy of any other rollout buffer.

    :raises ValueError: if the rollout is not complete
    """
    if not buffer.full:
        raise ValueError(f"the rollout must be complete: {buffer.pos} of {buffer.buffer_size} steps were added")
    if not isinstance(buffer, DeviceRolloutBuffer):
        return next(iter(buffer.get(batch_size=None)))
    stored = (buffer.actions, buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
    flat = [_flatten(tensor) for tensor in stored]
    observations = map_observations(_flatten, buffer.observations)
    if isinstance(observations, dict):
        return DictRolloutBufferSamples(observations, *flat)
    return RolloutBufferSamples(observations, *flat)


def _shallow(part: Any) -> Any:
    """A Dict's entries may be replaced, too."""
    return dict(part) if isinstance(part, dict) else part


def _flatten(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).flatten(0, 1)


def take(samples: Samples, rows: Tensor | slice | None) -> Samples:
    """The given rows of a rollout or a batch; a slice is uncopied, and so are all of them, for ``None``."""
    if rows is None or (isinstance(rows, slice) and rows == slice(0, len(samples.actions))):
        return samples

    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)

    return type(samples)(map_observations(pick, samples.observations), *map(pick, samples[1:]))


def observation_parts(observations: Any) -> list[Any]:
    """The arrays or tensors of an observation: one, or those of a Dict."""
    return list(observations.values()) if isinstance(observations, dict) else [observations]


def map_observations(function: Any, observations: Observations) -> Any:
    """Apply a function to an observation tensor, or to every tensor of a Dict observation."""
    if isinstance(observations, dict):
        return {key: function(tensor) for key, tensor in observations.items()}
    return function(observations)

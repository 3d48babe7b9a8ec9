"""Rollout storage on the training device: what the policy computed there never leaves it."""

from collections.abc import Generator
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from torch import Tensor

from sb3_delight.returns import gae

__all__ = ["DeviceRolloutBuffer", "Observations", "Samples", "flat_rollout", "map_observations", "take", "take_slice"]

Observations: TypeAlias = Tensor | dict[str, Tensor]
Samples: TypeAlias = RolloutBufferSamples | DictRolloutBufferSamples

# Networks read float32, and torch indexes only the signed integers beyond uint8.
_STORED_AS = {np.dtype(np.float64): np.float32, np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}


class DeviceRolloutBuffer(RolloutBuffer):
    """stable-baselines3's ``RolloutBuffer``, and its ``DictRolloutBuffer``, stored as tensors on the training device.

    Same attributes (``[n_steps, n_envs, ...]``), same ``get()`` (same minibatches for the same numpy seed), same
    advantages to the last bit. What differs: nothing is copied back from the device, nothing is reallocated between
    rollouts, and ``get()`` leaves the attributes as they were. Memory is laid out environment by environment, so that
    the flat rollout (:func:`flat_rollout`) is a view.

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
        super().__init__(*args, **kwargs)  # calls reset()
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            shapes: Any = self.obs_shape
            self.observations = {key: self._storage(shapes[key], part.dtype) for key, part in space.spaces.items()}
        else:
            self.observations = self._storage(self.obs_shape, space.dtype)
        self.actions = self._storage((self.action_dim,), np.float32)
        for name in ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
            setattr(self, name, self._storage((), np.float32))

    def _storage(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """``[n_steps, n_envs, *shape]``, contiguous along each environment."""
        stored = torch.from_numpy(np.empty(0, _STORED_AS.get(np.dtype(dtype), dtype))).dtype
        storage = torch.zeros((self.n_envs, self.buffer_size, *shape), dtype=stored, device=self.device)
        return storage.transpose(0, 1)

    def reset(self) -> None:
        """Start a new rollout in the same memory."""
        self.pos = 0
        self.full = False

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
        if isinstance(self.observations, dict):
            for key, storage in self.observations.items():
                self._write(storage, obs[key])
        else:
            self._write(self.observations, obs)
        for storage, array in ((self.actions, action), (self.rewards, reward), (self.episode_starts, episode_start)):
            self._write(storage, array)
        self.values[self.pos] = value.detach().flatten()
        self.log_probs[self.pos] = log_prob.detach().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _write(self, storage: Tensor, array: np.ndarray) -> None:
        row = storage[self.pos]
        # Through numpy: torch cannot read every numpy dtype, nor negative strides.
        row.copy_(torch.from_numpy(np.ascontiguousarray(array, dtype=_numpy_dtype(storage))).reshape(row.shape))

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Fill ``advantages`` and ``returns`` by :func:`sb3_delight.returns.gae`."""
        advantages, returns = gae(
            self.rewards,
            self.values,
            self.episode_starts,
            last_values.detach().flatten(),
            torch.as_tensor(dones, dtype=torch.float32, device=self.device),
            self.gamma,
            self.gae_lambda,
        )
        self.advantages.copy_(advantages)
        self.returns.copy_(returns)

    def get(self, batch_size: int | None = None) -> Generator[Samples, None, None]:  # type: ignore[override]
        """Shuffled minibatches of one full rollout; ``None`` yields it whole, shuffled."""
        rollout = flat_rollout(self)
        indices = torch.from_numpy(np.random.permutation(self.buffer_size * self.n_envs)).to(self.device)
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
    flat = [tensor.transpose(0, 1).flatten(0, 1) for tensor in stored]
    observations = map_observations(lambda tensor: tensor.transpose(0, 1).flatten(0, 1), buffer.observations)
    if isinstance(observations, dict):
        return DictRolloutBufferSamples(observations, *flat)
    return RolloutBufferSamples(observations, *flat)


def take(samples: Samples, rows: Tensor | None) -> Samples:
    """The given rows of a rollout; all of them, uncopied, for ``None``."""
    if rows is None:
        return samples
    observations = map_observations(lambda tensor: tensor.index_select(0, rows), samples.observations)
    return type(samples)(observations, *(tensor.index_select(0, rows) for tensor in samples[1:]))


def take_slice(samples: Samples, rows: slice) -> Samples:
    """A contiguous part of a batch, uncopied."""
    observations = map_observations(lambda tensor: tensor[rows], samples.observations)
    return type(samples)(observations, *(tensor[rows] for tensor in samples[1:]))


def map_observations(function: Any, observations: Observations) -> Any:
    """Apply a function to an observation tensor, or to every tensor of a Dict observation."""
    if isinstance(observations, dict):
        return {key: function(tensor) for key, tensor in observations.items()}
    return function(observations)


def _numpy_dtype(tensor: Tensor) -> Any:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype

"""Environments small enough that the tests measure the library and not them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Step = tuple[Any, float, bool, bool, dict[str, Any]]


class AnySpaces(gym.Env[Any, Any]):
    """Random observations of any space, noisy rewards; episodes of five steps, terminated and truncated in turn."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Step:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        terminated, truncated = self.steps % 10 == 5, self.steps % 10 == 0
        return self.observation_space.sample(), float(self.np_random.normal()), terminated, truncated, {}


class MatchPoint(gym.Env[Any, Any]):
    """One step, continuous actions in [-1, 1]: reward is minus the squared distance to the observed point."""

    def __init__(self, n: int = 1) -> None:
        self.observation_space = self.action_space = spaces.Box(-1.0, 1.0, (n,), np.float32)
        self.point = np.zeros(n, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point = self.np_random.uniform(-1.0, 1.0, self.point.shape).astype(np.float32)
        return self.point, {}

    def step(self, action: Any) -> Step:
        return self.point, -float(np.square(action - self.point).sum()), True, False, {}


class Poisoned(gym.Wrapper[Any, Any, Any, Any]):
    """Emits NaN or inf once, at one step, as the reward, the observation, or one entry (``key``) of a Dict of them."""

    def __init__(self, env: gym.Env[Any, Any], what: str, value: float, at: int, key: str | None = None) -> None:
        super().__init__(env)
        self.what, self.value, self.at, self.key, self.steps = what, value, at, key, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at:
            if self.what == "reward":
                reward = self.value
            elif self.key is not None:
                observation = {**observation, self.key: np.full_like(observation[self.key], self.value)}
            else:
                observation = np.full_like(observation, self.value)
        return observation, reward, terminated, truncated, info

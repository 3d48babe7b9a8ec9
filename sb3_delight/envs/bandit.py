"""A bandit with contexts: one step, and the reward of the arm that was pulled."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_delight.arguments import require
from sb3_delight.envs.pictures import Pictured

__all__ = ["ContextualBandit"]


class ContextualBandit(Pictured[np.int64, np.int64]):
    """``sb3_delight/ContextualBandit-v0``: see a context's number, pull an arm, be paid; every episode is one step.

    The reward of an arm is normal, with a mean and a standard deviation for each context. By default context k of ten
    pays 1 for arm k and nothing for the nine others, without noise: the tabular task of Delightful Policy Gradient
    (2603.14608, section 4) has a hundred contexts and ten arms, ``means=np.eye(10)[np.arange(100) % 10]``.

    The case that delight loses, gambling (Does This Gradient Spark Joy?, 2603.20526, Proposition 3), is one context
    with an arm that is worse by a gap of 1 but noisy: ``means=[[0, -1]], noise=[[0, 5]]``.

    :param means: expected rewards ``[contexts, arms]``; contexts are equally likely
    :param noise: standard deviations, broadcast to the shape of ``means``
    :param render_mode: ``"rgb_array"``: contexts by arms, the row of the context grey and the arm pulled white
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(self, means: ArrayLike | None = None, noise: ArrayLike = 0.0, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.means = np.eye(10) if means is None else _numbers("means", means)
        shaped = self.means.ndim == 2 and self.means.size > 0 and bool(np.isfinite(self.means).all())
        require(shaped, "means", means, "finite numbers [contexts, arms]")
        given = _numbers("noise", noise)
        fits = np.isfinite(given).all() and (given >= 0).all() and _broadcasts(given.shape, self.means.shape)
        require(bool(fits), "noise", noise, f"finite, not negative, and broadcast to the shape {self.means.shape}")
        self.noise = np.broadcast_to(given, self.means.shape)
        contexts, arms = self.means.shape
        self.observation_space, self.action_space = spaces.Discrete(contexts), spaces.Discrete(arms)
        self.context, self.pulled = np.int64(0), -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Draw a context."""
        super().reset(seed=seed)
        self.context, self.pulled = self.np_random.integers(len(self.means)), -1
        return self.context, {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Pull an arm; the observation stays the context."""
        require(self.action_space.contains(action), "action", action, f"in {self.action_space}")
        self.pulled = int(action)
        mean, noise = self.means[self.context, action], self.noise[self.context, action]
        reward = mean + noise * self.np_random.standard_normal()
        return self.context, float(reward), True, False, {}

    def _cells(self) -> NDArray[np.float64]:
        cells = np.zeros_like(self.means)
        cells[self.context] = 0.4
        if self.pulled >= 0:
            cells[self.context, self.pulled] = 1.0
        return cells


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in a rectangle, got {values!r}") from error


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False

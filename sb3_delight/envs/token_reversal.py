"""Token reversal, written token by token; and its answers and rewards, as functions of whole batches."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sb3_delight.arguments import is_whole, require
from sb3_delight.envs.pictures import Pictured

__all__ = ["REWARDS", "TARGETS", "TokenReversal", "reward_of", "right_answer"]

TARGETS = ("copy", "flip", "reverse", "reverse_flip")
REWARDS = ("bag", "sequential", "exact")


def right_answer(prompt: Tensor, target: str = "reverse", symbols: int = 2) -> Tensor:
    """What to answer: the prompt as it is, with symbol k turned into ``symbols - 1 - k``, backwards, or both.

    :param prompt: symbols numbered from 0, ``[rows, H]``
    :param target: ``"copy"``, ``"flip"``, ``"reverse"`` or ``"reverse_flip"``
    :param symbols: M, different tokens
    :return: ``[rows, H]``
    :raises ValueError: for another target
    """
    require(target in TARGETS, "target", target, f"one of {list(TARGETS)}")
    answer = prompt.flip(1) if "reverse" in target else prompt
    return symbols - 1 - answer if "flip" in target else answer


def reward_of(answer: Tensor, right: Tensor, reward: str = "bag") -> Tensor:
    """What an answer is paid.

    :param answer: ``[rows, H]``
    :param right: ``[rows, H]``
    :param reward: ``"bag"``: share of tokens right; ``"sequential"``: length of the right prefix / H; ``"exact"``: all
        or nothing
    :return: ``[rows]`` in [0, 1]
    :raises ValueError: for another reward
    """
    require(reward in REWARDS, "reward", reward, f"one of {list(REWARDS)}")
    correct = (answer == right).float()
    if reward == "sequential":
        return correct.cumprod(dim=1).mean(dim=1)
    return correct.mean(dim=1) if reward == "bag" else correct.prod(dim=1)


class TokenReversal(Pictured[NDArray[np.int64], np.int64]):
    """``sb3_delight/TokenReversal-v0``: read a prompt, write the answer token by token, be paid at its end.

    The task of Delightful Policy Gradient (2603.14608), section 5. Prompts are uniformly random. An observation is the
    prompt and what is written so far: ``2 * horizon`` slots, those to come filled with the symbol ``padding``. An
    action is the next token, an episode ``horizon`` steps, the reward 0 before the last one and :func:`reward_of` the
    answer there: use ``gamma=1``, and ``gae_lambda=1`` to credit every token with the answer's reward.

    stable-baselines3's policies see a one-hot vector;
    :class:`~sb3_delight.envs.extractors.CausalTransformer` reads it as tokens.

    :param horizon: H, tokens of the prompt and of the answer
    :param symbols: M, different tokens
    :param target: ``"copy"``, ``"flip"``, ``"reverse"``, ``"reverse_flip"``: see :func:`right_answer`
    :param reward: ``"bag"``, ``"sequential"``, ``"exact"``: see :func:`reward_of`
    :param render_mode: ``"ansi"``: a line such as ``0 1 1 > 1 1 _``; ``"rgb_array"``: the prompt above the answer
    :raises ValueError: for an argument outside its range; it names the argument
    """

    metadata = {**Pictured.metadata, "render_modes": ["rgb_array", "ansi"]}  # noqa: RUF012  # typed by Gymnasium

    def __init__(
        self,
        horizon: int = 10,
        symbols: int = 2,
        target: str = "reverse",
        reward: str = "bag",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(render_mode)
        for name, value in (("horizon", horizon), ("symbols", symbols)):
            require(is_whole(value), name, value, "a whole number, 1 or more")
        require(target in TARGETS, "target", target, f"one of {list(TARGETS)}")
        require(reward in REWARDS, "reward", reward, f"one of {list(REWARDS)}")
        self.horizon, self.symbols, self.target, self.reward = horizon, symbols, target, reward
        self.padding = symbols  #: symbol of the slots that are not written yet
        self.observation_space = spaces.MultiDiscrete([symbols + 1] * 2 * horizon)
        self.action_space = spaces.Discrete(symbols)
        self.slots: NDArray[np.int64] = np.full(2 * horizon, self.padding)
        self.place = horizon  #: the slot written next

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Draw a prompt; ``options={"prompt": [...]}`` gives one."""
        super().reset(seed=seed)
        prompt = (options or {}).get("prompt")
        if prompt is None:
            prompt = self.np_random.integers(self.symbols, size=self.horizon)
        fits = np.shape(prompt) == (self.horizon,) and all(token in range(self.symbols) for token in prompt)
        require(fits, "options['prompt']", prompt, f"{self.horizon} symbols from 0 to {self.symbols - 1}")
        self.slots[: self.horizon], self.slots[self.horizon :] = prompt, self.padding
        self.place = self.horizon
        return self.slots.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """Write the next token."""
        require(self.action_space.contains(action), "action", action, f"in {self.action_space}")
        self.slots[self.place] = action
        self.place += 1
        done = self.place == 2 * self.horizon
        reward = 0.0
        if done:
            prompt, answer = torch.from_numpy(self.slots).view(2, 1, self.horizon)
            reward = float(reward_of(answer, right_answer(prompt, self.target, self.symbols), self.reward))
        return self.slots.copy(), reward, done, False, {}

    def render(self) -> Any:
        """:return: text or pixels, by the render mode"""
        if self.render_mode != "ansi":
            return super().render()
        written = ["_" if token == self.padding else str(token) for token in self.slots]
        return " ".join([*written[: self.horizon], ">", *written[self.horizon :]])

    def _cells(self) -> NDArray[np.float64]:
        written = np.where(self.slots == self.padding, 0, self.slots + 1)  # black: not written yet
        return (written / self.symbols).reshape(2, self.horizon)

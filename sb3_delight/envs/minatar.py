"""MinAtar: five Atari games shrunk to 10 x 10 cells, for CNNs that learn within minutes on a CPU.

The games are those of the package ``MinAtar`` (Young and Tian, 2019, arXiv 1903.03176), under its own ids: ``-v1`` with
the actions a game uses, ``-v0`` with all six. Its defaults hold: one action in ten is replaced by the one before it
(``sticky_action_prob``), games grow harder (``difficulty_ramping``), and no time limit. The package itself is needed
only to make one: the extra ``minatar``.
"""

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_delight.arguments import install, is_whole, number, require
from sb3_delight.envs import MINATAR_GAMES
from sb3_delight.envs.pictures import enlarged

__all__ = ["MinAtarCNN", "make"]


class MinAtarCNN(BaseFeaturesExtractor):
    """The network of the MinAtar paper: 16 filters of 3 x 3, then a dense layer, each followed by a ReLU.

    Use it as ``policy_kwargs={"features_extractor_class": MinAtarCNN, "net_arch": []}`` with ``"MlpPolicy"``: actor and
    critic are then one linear layer each on shared features, as in the paper.

    :param observation_space: cells ``[height, width, channels]``, channels last, of booleans or numbers near 0 to 1
    :param features_dim: width of the dense layer, hence of the features; 128 in the paper
    :param filters: of the convolution; 16 in the paper
    :raises ValueError: for an observation that is no image of at least 3 x 3 cells, or a size below 1
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128, filters: int = 16) -> None:
        shape = observation_space.shape
        cells = len(shape) == 3 and min(shape[:2]) >= 3
        require(cells, "observation_space", observation_space, "[height, width, channels], 3 x 3 cells or more")
        for name, value in (("features_dim", features_dim), ("filters", filters)):
            require(is_whole(value), name, value, "a whole number, 1 or more")
        super().__init__(observation_space, features_dim)
        height, width, channels = shape
        self.network = nn.Sequential(
            nn.Conv2d(channels, filters, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(filters * (height - 2) * (width - 2), features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """:param observations: ``[n, height, width, channels]``; :return: features ``[n, features_dim]``"""
        features: Tensor = self.network(observations.to(torch.float32).permute(0, 3, 1, 2))
        return features


class _Mended(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """What MinAtar leaves out: rewards that are floats, pictures of bytes, a generator that is seeded.

    And it forgets the last action between episodes: the game keeps it, and a sticky first step would outlive a seed.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)  # actors make the environment again
        super().__init__(env)
        self.metadata = {**env.metadata, "render_fps": 10}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.get_wrapper_attr("game").last_action = 0
        gym.Env.reset(self.unwrapped, seed=seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """:return: pixels ``[160, 160, 3]``, unsigned bytes, in the mode ``"rgb_array"``"""
        frame = self.env.render()
        return enlarged(frame) if self.render_mode == "rgb_array" else frame


def make(game: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """What the registered ids make.

    :param game: one of :data:`~sb3_delight.envs.MINATAR_GAMES`
    :param kwargs: ``use_minimal_action_set``, ``sticky_action_prob`` (default .1), ``difficulty_ramping`` (default
        true), ``render_mode``
    :return: an environment with boolean observations ``[10, 10, channels]``
    :raises ValueError: for an argument outside its range; it names the argument
    :raises ImportError: if MinAtar is not installed; it says how to get it
    """
    require(game in MINATAR_GAMES, "game", game, f"one of {list(MINATAR_GAMES)}")
    sticky, ramping = kwargs.get("sticky_action_prob", 0.1), kwargs.get("difficulty_ramping", True)
    require(0 <= number(sticky) <= 1, "sticky_action_prob", sticky, "a probability")
    require(isinstance(ramping, bool), "difficulty_ramping", ramping, "true or false")
    try:
        from minatar.gym import BaseEnv
    except ImportError as error:
        raise ImportError(f"MinAtar is not installed: {install('minatar')}") from error
    modes = (None, *BaseEnv.metadata["render_modes"])
    require(kwargs.get("render_mode") in modes, "render_mode", kwargs.get("render_mode"), f"one of {modes}")
    return _Mended(BaseEnv(game=game, **kwargs))

"""What the environments of this package share: a picture of a few grey cells as ``rgb_array``.

stable-baselines3's ``make_vec_env`` asks every environment for that mode, and Gymnasium warns of those without it.
"""

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.core import ActType, ObsType
from numpy.typing import ArrayLike

from sb3_delight.arguments import require

__all__ = ["Pictured", "enlarged"]

PIXELS = 16  #: side of a cell


def enlarged(cells: Any) -> Any:
    """Pixels ``[16 * rows, 16 * columns, 3]``, unsigned bytes, of colours ``[rows, columns, 3]`` in [0, 1]."""
    return np.kron((255 * np.asarray(cells)).round().astype(np.uint8), np.ones((PIXELS, PIXELS, 1), np.uint8))


class Pictured(gym.Env[ObsType, ActType]):
    """An environment whose state is shown as grey cells.

    :param render_mode: ``"rgb_array"``, another mode that the environment adds, or ``None``
    :raises ValueError: for another mode
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # typed by Gymnasium

    def __init__(self, render_mode: str | None = None) -> None:
        modes = self.metadata["render_modes"]
        require(render_mode in (None, *modes), "render_mode", render_mode, f"one of {modes} or None")
        self.render_mode = render_mode

    @abstractmethod
    def _cells(self) -> ArrayLike:
        """Grey values in [0, 1], ``[rows, columns]``."""

    def render(self) -> Any:
        """:return: pixels ``[16 * rows, 16 * columns, 3]``, unsigned bytes; ``None`` if there is no render mode"""
        if self.render_mode is None:
            return None
        return enlarged(np.repeat(np.asarray(self._cells())[..., None], 3, axis=-1))

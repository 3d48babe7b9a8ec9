"""The MNIST bandit on digits that everyone has: an image is the context, a digit the action."""

import functools
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from sb3_delight.arguments import install, require
from sb3_delight.envs.pictures import Pictured

__all__ = ["Digits", "load_digits_split"]


@functools.cache
def load_digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 8x8 digits, always split alike: 1297 images to train on, 500 to test on, strata by digit.

    :return: train images ``[1297, 64]`` in [0, 1] and labels ``[1297]``, test images ``[500, 64]`` and labels ``[500]``
    :raises ImportError: without scikit-learn
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(f"the digits are scikit-learn's: {install('reproduce')}") from error
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=500, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = (torch.tensor(part) for part in split)
    return train.float(), train_labels, test.float(), test_labels


class Digits(Pictured[NDArray[np.float32], np.int64]):
    """``sb3_delight/Digits-v0``: see an image, name its digit, be paid 1 if right; every episode is one step.

    The task of Delightful Policy Gradient (2603.14608), section 3, with scikit-learn's digits for MNIST. Observations
    are 64 grey values in [0, 1]. The right digit is never observed; ``info["label"]`` of the step tells it afterwards.

    :param split: ``"train"`` or ``"test"``, which to evaluate on; images are drawn with replacement
    :param render_mode: ``"rgb_array"``: the image
    :raises ValueError: for another split or mode
    :raises ImportError: without scikit-learn
    """

    def __init__(self, split: Literal["train", "test"] = "train", render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        require(split in ("train", "test"), "split", split, "'train' or 'test'")
        train, train_labels, test, test_labels = load_digits_split()
        images, labels = (train, train_labels) if split == "train" else (test, test_labels)
        self.images, self.labels = images.numpy(), labels.numpy()
        self.observation_space = spaces.Box(0.0, 1.0, self.images.shape[1:], np.float32)
        self.action_space = spaces.Discrete(10)
        self.shown = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw an image."""
        super().reset(seed=seed)
        self.shown = int(self.np_random.integers(len(self.images)))
        return self.images[self.shown].copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Name the digit; the observation stays the image."""
        require(self.action_space.contains(action), "action", action, f"in {self.action_space}")
        label = int(self.labels[self.shown])
        return self.images[self.shown].copy(), float(action == label), True, False, {"label": label}

    def _cells(self) -> NDArray[np.float32]:
        cells: NDArray[np.float32] = self.images[self.shown].reshape(8, 8)
        return cells

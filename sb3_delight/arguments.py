"""Checks of what users pass in: every refusal names the argument, its value and what is allowed."""

import argparse
import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

__all__ = [
    "SUPPORTED_SPACES",
    "as_schedule",
    "check_keywords",
    "check_spaces",
    "count",
    "install",
    "is_flag",
    "is_whole",
    "number",
    "require",
    "warn",
]

SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
    """:raises ValueError: that names the argument, its value and what is allowed, unless the condition holds"""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def warn(message: str) -> None:
    """Of the line outside of this package and stable-baselines3 that called them: the user's."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in ("sb3_delight", "stable_baselines3"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def number(value: Any) -> float:
    """The value, or NaN if it is not a number: NaN fails every comparison."""
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else math.nan


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether the value is a whole number, ``least`` or more."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def is_flag(value: Any) -> bool:
    """Whether the value is true or false, and no text: "off" would be true."""
    return isinstance(value, bool | np.bool_)


def check_keywords(cls: type, names: Iterable[str]) -> None:
    """Of ``cls.load()``, which in stable-baselines3 keeps a misspelt argument as an attribute, and trains without it.

    :raises ValueError: if one is no argument of the constructor, or of those that it passes keywords on to
    """
    known: set[str] = set()
    for constructor in (vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)):
        parameters = inspect.signature(constructor).parameters.values()
        known |= {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):  # it passes on none that it does not name
            break
    for name in names:
        require(name in known, "a keyword of load()", name, f"an argument of {cls.__name__}")


def install(extra: str) -> str:
    """The command that gets what an extra of this package needs."""
    return f'pip install -c constraints.txt -e ".[{extra}]", from the root of a clone of sb3_delight'


def count(flag: str) -> int:
    """Of a command line (the ``type`` of an ``argparse`` flag): a whole number, 1 or more."""
    if not (flag.isdecimal() and int(flag)):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {flag!r}")
    return int(flag)


def as_schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    """A number, a function of the remaining progress, or RL-Zoo's ``"lin_x"`` (linearly from x to 0) as a schedule.

    :param name: of the argument, for the error
    :raises ValueError: if the value is none of these
    """
    allowed = "a number, a function of the remaining progress, or 'lin_' and a number"
    if isinstance(value, str):
        digits = value.removeprefix("lin_")
        try:
            start = float(digits)
        except ValueError:
            start = math.nan
        require(not math.isnan(start), name, value, allowed)
        return FloatSchedule(LinearSchedule(start, 0.0, 1.0) if digits != value else start)
    require(callable(value) or not math.isnan(number(value)), name, value, allowed)
    schedule = FloatSchedule(value if callable(value) else number(value))
    try:
        schedule(1.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {allowed}, got {value!r}, which gave no number: {error}") from error
    return schedule


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """:raises ValueError: for what stable-baselines3's policies cannot read or emit, before it wraps the environment"""
    name, space = "env's observation space", observation_space
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        _check_plain(name, part, "Box, Discrete, MultiDiscrete, MultiBinary, or a flat Dict of these")
    name = "env's action space"
    _check_plain(name, action_space, "Box, Discrete, MultiDiscrete or MultiBinary")
    if isinstance(action_space, spaces.Box):
        require(action_space.is_bounded(), name, action_space, "a Box with finite bounds")
    if isinstance(action_space, spaces.MultiBinary):
        flat = isinstance(action_space.n, int | np.integer)
        require(flat, name, action_space, "a one-dimensional MultiBinary of a whole number: MultiBinary(3)")


def _check_plain(name: str, space: spaces.Space[Any], allowed: str) -> None:
    require(isinstance(space, SUPPORTED_SPACES), name, space, allowed)
    if isinstance(space, spaces.Box):
        require(len(space.shape) > 0, name, space, "a Box of one dimension or more")
    if isinstance(space, spaces.Discrete):
        require(space.start == 0, name, space, "numbered from 0 (start=0)")
    if isinstance(space, spaces.MultiDiscrete):
        flat = space.nvec.ndim == 1 and not space.start.any()
        require(flat, name, space, "a one-dimensional MultiDiscrete numbered from 0 (start=0)")

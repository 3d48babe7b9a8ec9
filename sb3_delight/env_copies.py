"""A copy of the learner's environment, for an actor that may live in another process."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from sb3_delight.arguments import require

__all__ = ["EnvCopy", "EnvMaker", "check_maker"]

EnvMaker: TypeAlias = Callable[[], gym.Env[Any, Any] | VecEnv]


def check_maker(env_fn: Any) -> None:
    """:raises ValueError: if that makes no environment"""
    require(env_fn is None or callable(env_fn), "env_fn", env_fn, "a function that makes an environment, or None")


@dataclass(frozen=True)
class EnvCopy:
    """How to make the learner's environment again; it can be pickled.

    Every sub-environment is made again from the specification by which Gymnasium registered it, with a ``Monitor``;
    ``VecNormalize`` and ``VecTransposeImage`` are put around them as around the learner's.
    """

    source: tuple[EnvSpec, ...] | EnvMaker  #: one specification for each sub-environment, or what the user gave
    n_envs: int
    wrappers: tuple[bytes | type[VecTransposeImage], ...]  #: innermost first; a VecNormalize is pickled
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    @classmethod
    def of(cls, env: VecEnv, env_fn: EnvMaker | None = None) -> "EnvCopy":
        """Look at the learner's environment.

        :param env_fn: makes an actor's environment instead: an ``Env``, called once for each of the learner's, or a
            ``VecEnv`` of as many
        :raises ValueError: if the environment cannot be made again and there is no ``env_fn``
        """
        check_maker(env_fn)
        wrappers: list[bytes | type[VecTransposeImage]] = []
        inner, foreign = env, ""
        while isinstance(inner, VecEnvWrapper):
            if isinstance(inner, VecNormalize):
                if foreign:  # env_fn makes what is inside of it
                    raise _cannot(f"its wrapper {foreign} is put around VecNormalize: put it inside")
                wrappers.insert(0, pickle.dumps(inner))  # its settings and statistics, without what it wraps
            elif isinstance(inner, VecTransposeImage):
                wrappers.insert(0, VecTransposeImage)
            elif not isinstance(inner, VecMonitor):  # a Monitor does the same
                foreign = type(inner).__name__
                if env_fn is None:
                    raise _cannot(f"its wrapper {foreign} cannot be made again from a specification")
            inner = inner.venv
        return cls(
            env_fn or _specifications(inner), env.num_envs, tuple(wrappers), env.observation_space, env.action_space
        )

    def make(self, inside: Sequence[Callable[[VecEnv], VecEnv]] = ()) -> VecEnv:
        """A new environment.

        :param inside: further wrappers, put beneath those of the learner
        :raises ValueError: if ``env_fn`` made one of another size or other spaces
        """
        env = self._innermost()
        require(env.num_envs == self.n_envs, "env_fn's number of environments", env.num_envs, f"{self.n_envs}")
        for wrap in inside:
            env = wrap(env)
        for wrapper in self.wrappers:
            if isinstance(wrapper, bytes):
                normalize: VecNormalize = pickle.loads(wrapper)
                normalize.set_venv(env)
                env = normalize
            elif not is_vecenv_wrapped(env, VecTransposeImage):
                env = VecTransposeImage(env)
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        return env

    def _innermost(self) -> VecEnv:
        if isinstance(self.source, tuple):
            return DummyVecEnv([partial(_monitored, spec) for spec in self.source])
        first = self.source()
        if isinstance(first, VecEnv):
            return first
        made = [first, *(self.source() for _ in range(self.n_envs - 1))]
        return DummyVecEnv([partial(_monitored, each) for each in made])


def _monitored(env: Any) -> gym.Env[Any, Any]:
    env = gym.make(env) if isinstance(env, EnvSpec) else env
    return env if is_wrapped(env, Monitor) else Monitor(env)


def _specifications(env: VecEnv) -> tuple[EnvSpec, ...]:
    try:
        specs = env.get_attr("spec")
    except (AttributeError, NotImplementedError) as error:
        raise _cannot(f"{type(env).__name__} knows no specification of its environments") from error
    monitored = [spec is not None and any(w.entry_point == MONITOR for w in spec.additional_wrappers) for spec in specs]
    keywords = env.get_attr("info_keywords") if all(monitored) else [()] * len(specs)
    return tuple(_repeatable(*each) for each in zip(specs, keywords, strict=True))


MONITOR = f"{Monitor.__module__}:Monitor"


def _repeatable(spec: EnvSpec | None, info_keywords: tuple[str, ...]) -> EnvSpec:
    """The specification with a Monitor, where it has one, that Gymnasium can make again: one that writes no file."""
    if spec is None:
        raise _cannot("it is not registered with Gymnasium")
    kwargs = {"info_keywords": info_keywords}
    wrappers = [replace(w, kwargs=kwargs) if w.entry_point == MONITOR else w for w in spec.additional_wrappers]
    for wrapper in wrappers:
        if wrapper.kwargs is None:
            raise _cannot(f"its wrapper {wrapper.name} does not inherit from gymnasium.utils.RecordConstructorArgs")
    spec = copy.deepcopy(spec)
    spec.additional_wrappers = tuple(wrappers)
    return spec


def _cannot(reason: str) -> ValueError:
    return ValueError(
        f"actors cannot make the environment again: {reason}. Pass env_fn=..., a function that returns an Env or a "
        "VecEnv (what VecNormalize wraps, without it), to the pool of actors."
    )

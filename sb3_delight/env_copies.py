"""A copy of the learner's environment, for an actor that may live in another process."""

import copy
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import cloudpickle
import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
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

__all__ = ["CopyError", "EnvCopy", "EnvMaker", "check_maker", "closed_on_error"]

EnvMaker: TypeAlias = Callable[[], gym.Env[Any, Any] | VecEnv]


class CopyError(ValueError):
    """An actor's copy, of the environment or the policy, is not what the learner has: to try again would not help."""


@contextmanager
def closed_on_error(env: VecEnv) -> Iterator[None]:
    """For one that nobody else would close yet."""
    try:
        yield
    except BaseException:
        env.close()
        raise


def check_maker(env_fn: Any) -> None:
    """:raises ValueError: if that is no function"""
    require(env_fn is None or callable(env_fn), "env_fn", env_fn, "a function that makes an environment, or None")


@dataclass(frozen=True)
class EnvCopy:
    """How to make the learner's environment again; it can be pickled.

    Every sub-environment is made again from the specification by which Gymnasium registered it, with the arguments it
    was made with. It has a ``Monitor``, or all have a ``VecMonitor`` if the learner's do; ``VecNormalize`` and
    ``VecTransposeImage`` are put around them as around the learner's.
    """

    source: tuple[EnvSpec, ...] | EnvMaker  #: one specification for each sub-environment, or what the user gave
    n_envs: int
    layers: tuple[tuple[str, ...], ...]  #: what each specification should make, see :func:`_layers`
    info_keywords: tuple[str, ...]  #: what the learner's Monitor reports of an episode
    vec_monitor: bool  #: whether that is a VecMonitor, which sees what a VecEnv adds to an info
    wrappers: tuple[bytes | type[VecTransposeImage], ...]  #: innermost first; a VecNormalize is pickled
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    @classmethod
    def of(cls, env: VecEnv, env_fn: EnvMaker | None = None) -> "EnvCopy":
        """Look at the learner's environment.

        :param env_fn: makes an actor's environment instead: an ``Env``, called once for each of the learner's, or a
            ``VecEnv`` of as many, with the learner's wrappers but without its ``VecNormalize``
        :raises ValueError: if the environment cannot be made again and there is no ``env_fn``
        """
        check_maker(env_fn)
        wrappers: list[bytes | type[VecTransposeImage]] = []
        inner, foreign = env, ""
        keywords: tuple[str, ...] = ()
        vec_monitor = is_vecenv_wrapped(env, VecMonitor)
        while isinstance(inner, VecEnvWrapper):
            if isinstance(inner, VecNormalize):
                normalizes = any(isinstance(each, bytes) for each in wrappers)
                require(not normalizes, "env", "two VecNormalize", "one VecNormalize: actors' statistics go to one")
                if foreign:  # env_fn makes what is inside of it
                    raise _cannot(f"its wrapper {foreign} is put around VecNormalize: put it inside")
                # Its settings and statistics, without what it wraps; its class may be of the program itself.
                wrappers.insert(0, cloudpickle.dumps(inner))
            elif isinstance(inner, VecTransposeImage):
                wrappers.insert(0, VecTransposeImage)
            elif isinstance(inner, VecMonitor):
                keywords = inner.info_keywords
            else:
                foreign = type(inner).__name__
                if env_fn is None:
                    raise _cannot(f"its wrapper {foreign} cannot be made again from a specification")
            inner = inner.venv
        if not vec_monitor and (monitored := _is_wrapped(inner, Monitor)) and all(monitored):
            keywords = inner.get_attr("info_keywords")[0]
        return cls(
            source=env_fn or _specifications(inner),
            n_envs=env.num_envs,
            layers=_layers(inner) if env_fn is None else (),
            info_keywords=keywords,
            vec_monitor=vec_monitor,
            wrappers=tuple(wrappers),
            observation_space=env.observation_space,
            action_space=env.action_space,
        )

    def check_importable(self) -> None:
        """:raises ValueError: if another process could not make it: what the program itself defines has no module"""
        for spec in self.source if isinstance(self.source, tuple) else ():
            for entry_point in (spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)):
                if str(entry_point).startswith("__main__:"):
                    name = str(entry_point).removeprefix("__main__:")
                    raise _cannot(f"{name} is defined in the program itself, from which no other process can import it")

    def make(self, inside: Sequence[Callable[[VecEnv], VecEnv]] = ()) -> VecEnv:
        """A new environment.

        :param inside: further wrappers, put beneath those of the learner
        :raises CopyError: a ``ValueError``: if it is of another kind, size or other spaces than the learner's
        """
        env = self._innermost()
        with closed_on_error(env):
            self._check_innermost(env)
            for wrap in inside:
                env = wrap(env)
            for wrapper in self.wrappers:
                if isinstance(wrapper, bytes):
                    normalize: VecNormalize = pickle.loads(wrapper)
                    normalize.set_venv(env)
                    env = normalize
                elif not is_vecenv_wrapped(env, VecTransposeImage):
                    env = VecTransposeImage(env)
            try:
                check_for_correct_spaces(env, self.observation_space, self.action_space)
            except ValueError as error:
                raise CopyError(str(error)) from error
        return env

    def _innermost(self) -> VecEnv:
        env = self._without_vec_monitor()
        bare = not is_vecenv_wrapped(env, VecMonitor) and not all(_is_wrapped(env, Monitor))
        return VecMonitor(env, info_keywords=self.info_keywords) if bare else env

    def _without_vec_monitor(self) -> VecEnv:
        if isinstance(self.source, tuple):
            return DummyVecEnv([partial(self._monitored, spec) for spec in self.source])
        first = self.source()
        require(isinstance(first, gym.Env | VecEnv), "what env_fn makes", first, "an Env or a VecEnv")
        if isinstance(first, VecEnv):
            return first
        made = [first, *(self.source() for _ in range(self.n_envs - 1))]
        return DummyVecEnv([partial(self._monitored, each) for each in made])

    def _monitored(self, env: Any) -> gym.Env[Any, Any]:
        env = gym.make(env) if isinstance(env, EnvSpec) else env
        return env if self.vec_monitor or is_wrapped(env, Monitor) else Monitor(env, info_keywords=self.info_keywords)

    def _check_innermost(self, env: VecEnv) -> None:
        if env.num_envs != self.n_envs:
            raise CopyError(f"env_fn's number of environments must be {self.n_envs}, got {env.num_envs}")
        if is_vecenv_wrapped(env, VecNormalize):
            raise CopyError("env_fn must make an environment without VecNormalize: the learner's is put around it")
        for normalizer in (NormalizeObservation, NormalizeReward):
            if any(_is_wrapped(env, normalizer)):
                name = normalizer.__name__
                raise CopyError(f"{name}'s statistics would stay with the actor: use VecNormalize, which they share")
        for made, wanted in zip(_layers(env), self.layers, strict=False):
            if made[: len(wanted)] != wanted:
                other, own = " around ".join(made), " around ".join(wanted)
                raise CopyError(str(_cannot(f"its specification makes {other}, and it is {own}")))


def _is_wrapped(env: VecEnv, wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> list[bool]:
    """Each environment; none if the engine cannot tell."""
    try:
        return env.env_is_wrapped(wrapper)
    except (AttributeError, NotImplementedError):
        return []


def _layers(env: VecEnv) -> tuple[tuple[str, ...], ...]:
    """Names of the classes of each environment, outermost first; empty where the engine cannot tell.

    A specification does not keep the order of all wrappers: a time limit always comes innermost. In another process
    they are read off what Gymnasium prints, ``<TimeLimit<CartPoleEnv<CartPole-v1>>>``, and that may lack the innermost.
    """
    if isinstance(env, DummyVecEnv):
        return tuple(_names(type(layer).__name__ for layer in _unwrap(each)) for each in env.envs)
    try:
        printed = env.env_method("__str__")
    except (AttributeError, NotImplementedError):
        return ()
    return tuple(_names(re.findall(r"<(\w+)(?=<)", each)) for each in printed)


def _unwrap(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def _names(layers: Iterable[str]) -> tuple[str, ...]:
    """Less those that change nothing for an agent."""
    return tuple(name for name in layers if name not in ("Monitor", "PassiveEnvChecker", "OrderEnforcing"))


def _specifications(env: VecEnv) -> tuple[EnvSpec, ...]:
    try:
        specs = env.get_attr("spec")
    except (AttributeError, NotImplementedError, EOFError, ConnectionError) as error:
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

"""Actors: ordinary algorithms that collect rollouts for a learner, in this process or elsewhere."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_delight.arguments import is_whole, require
from sb3_delight.buffers import map_observations
from sb3_delight.env_copies import CopyError, EnvCopy, EnvMaker, check_maker, closed_on_error
from sb3_delight.frictions import Friction, as_frictions
from sb3_delight.normalization import load_statistics, take_increments, track_increments
from sb3_delight.policy_gradient import PolicyGradient
from sb3_delight.rollouts import ActorPool, Rollout, Weights, generators_left_alone

__all__ = ["Actor", "ActorPool", "ActorSpec", "ActorStopped", "LocalActors", "Rollout", "Staleness", "Weights"]

Staleness = int | tuple[int, int] | Callable[[np.random.Generator], int]

logger = logging.getLogger(__name__)

HISTORY = 1000  #: how many rollouts old the weights of a LocalActors can be


@dataclass(frozen=True)
class ActorSpec:
    """All that an :class:`Actor` is made from; it can be pickled."""

    env: EnvCopy
    policy_class: type[ActorCriticPolicy]
    arguments: dict[str, Any]  #: of the actor's algorithm
    frictions: tuple[Friction, ...]
    seed: int
    num_timesteps: int  #: environment steps of the learner so far: only for messages

    @classmethod
    def of(
        cls, algorithm: OnPolicyAlgorithm, env_fn: EnvMaker | None = None, frictions: Friction | Sequence[Friction] = ()
    ) -> "ActorSpec":
        """The specification of actors for a learner.

        :param env_fn: see :class:`~sb3_delight.env_copies.EnvCopy`
        :param frictions: what goes wrong on the actors, applied in this order
        :raises ValueError: if the learner's environment cannot be made again, or an argument is not of its kind
        """
        frictions = as_frictions(frictions)
        for friction in frictions:
            friction.check_space(algorithm.action_space)
        assert algorithm.env is not None
        names = ("n_steps", "gamma", "use_sde", "sde_sample_freq", "policy_kwargs")
        seed, updates = algorithm.seed, algorithm._n_updates
        if seed is None:  # as the learner itself would: by the process's generators
            seed = int(np.random.randint(2**31))
        if updates:  # what was collected before is not collected again
            seed = _derived_seed(seed, updates)
        return cls(
            env=EnvCopy.of(algorithm.env, env_fn),
            policy_class=algorithm.policy_class,  # type: ignore[arg-type]
            arguments={name: getattr(algorithm, name) for name in names},
            frictions=frictions,
            seed=seed,
            num_timesteps=algorithm.num_timesteps,
        )


class ActorStopped(Exception):
    """The rollout under way was ended."""


class Actor:
    """An ordinary algorithm that collects with its own ``collect_rollouts`` and never trains.

    It seeds, and draws from, the pseudo-random generators of its process.

    :param spec: what to build
    :param stream: whole numbers that tell this actor from others of the same learner, such as ``(index, restarts)``:
        its pseudo-random numbers are a stream of their own. ``()`` is the learner's own stream.
    """

    def __init__(self, spec: ActorSpec, stream: tuple[int, ...] = ()) -> None:
        seed = _derived_seed(spec.seed, *stream) if stream else spec.seed
        generators = [torch.Generator().manual_seed(_derived_seed(seed, 1 + i)) for i in range(len(spec.frictions))]
        attached = list(zip(spec.frictions, generators, strict=True))
        env = spec.env.make([partial(friction.wrap_env, generator=own) for friction, own in attached])
        with closed_on_error(env):
            self.algorithm = PolicyGradient(spec.policy_class, env, seed=seed, device="cpu", **spec.arguments)
        self.algorithm.num_timesteps = spec.num_timesteps
        for friction, own in attached:
            friction.wrap_policy(self.algorithm.policy, own)
        track_increments(self.algorithm.get_vec_normalize_env())
        self._recorder = _Recorder()
        self._begun = False
        self.version = 0

    def load(self, weights: Weights, version: int) -> None:
        """Act with these weights from now on; VecNormalize's statistics are replaced by theirs.

        :raises CopyError: a ``ValueError``: if they do not fit a policy of the learner's class and ``policy_kwargs``
        """
        try:
            self.algorithm.policy.load_state_dict(weights.policy)
        except RuntimeError as error:
            made = "what its class and policy_kwargs make, as actors do: was a part of it replaced?"
            raise CopyError(f"model.policy must be {made} {error}") from error
        load_statistics(self.algorithm.get_vec_normalize_env(), weights.statistics)
        self.version = version

    def collect(self) -> Rollout:
        """Act for one rollout; episodes go on from one to the next.

        :raises ActorStopped: after :meth:`stop`
        :raises ValueError: if an observation is not finite; what the environment raises
        """
        algorithm, recorder, buffer = self.algorithm, self._recorder, self.algorithm.rollout_buffer
        if not self._begun:  # resets the environment, with the first weights' statistics
            algorithm._setup_learn(1, recorder, reset_num_timesteps=False)
            self._begun = True
        recorder.begin()
        assert algorithm.env is not None
        if not algorithm.collect_rollouts(algorithm.env, recorder, buffer, algorithm.n_steps):
            raise ActorStopped
        return Rollout(
            observations=map_observations(_array, buffer.observations),  # type: ignore[arg-type]
            actions=_array(buffer.actions),
            rewards=np.stack(recorder.rewards),
            episode_starts=_array(buffer.episode_starts),
            values=_array(buffer.values),
            log_probs=_array(buffer.log_probs),
            infos=recorder.infos,
            last_observation=algorithm._last_obs,
            last_dones=algorithm._last_episode_starts,  # type: ignore[arg-type]
            version=self.version,
            increments=take_increments(algorithm.get_vec_normalize_env()),
        )

    def stop(self) -> None:
        """End the rollout under way at its next step; from another thread."""
        self._recorder.stopped = True

    def close(self) -> None:
        """Close the environment."""
        assert self.algorithm.env is not None
        self.algorithm.env.close()


class _Recorder(BaseCallback):
    """Keeps what the buffer does not: rewards before the value of truncated states is added to them, and infos."""

    stopped = False

    def begin(self) -> None:
        self.rewards: list[np.ndarray] = []
        self.infos: list[list[dict[str, Any]]] = []

    def _on_step(self) -> bool:
        self.rewards.append(self.locals["rewards"].copy())
        self.infos.append([dict(info) for info in self.locals["infos"]])
        return not self.stopped


class LocalActors:
    """One actor in the learner's process, with weights of past rollouts on purpose: deterministic, for experiments.

    The actor draws from the process's pseudo-random generators, as the learner itself would: with ``staleness=0`` and a
    ``seed`` a first ``learn()`` is that without actors, parameter for parameter (to rounding with VecNormalize, whose
    statistics are merged); a later one begins new episodes, by seeds of its own, and a new history of weights.
    VecNormalize's statistics are current, however stale the weights.

    :param staleness: how many rollouts ago the weights that act were published; the first ones where none are that
        old. A number, a pair ``(low, high)`` to draw from uniformly at each rollout, both included, or a function that
        draws one with a ``numpy.random.Generator``; at most 1000. As many weights are kept as may be asked for (with a
        function: those of 1001 rollouts).
    :param frictions: what goes wrong on the actor: see :mod:`sb3_delight.frictions`
    :param env_fn: makes the actor's environment, if that of the learner cannot be made again from its registration:
        an ``Env`` or a ``VecEnv``, with the learner's wrappers but without its ``VecNormalize``
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self, staleness: Staleness = 0, frictions: Friction | Sequence[Friction] = (), env_fn: EnvMaker | None = None
    ) -> None:
        allowed = f"a whole number from 0 to {HISTORY}, a pair (low, high) of these, or a function that draws one"
        if isinstance(staleness, tuple):
            fits = len(staleness) == 2 and all(map(_possible, staleness)) and staleness[0] <= staleness[1]
        else:
            fits = callable(staleness) or _possible(staleness)
        require(fits, "staleness", staleness, allowed)
        self.staleness = staleness
        self.frictions = as_frictions(frictions)
        check_maker(env_fn)
        self.env_fn = env_fn
        self._actor: Actor | None = None
        self._published: deque[tuple[Weights, int]] = deque()

    def start(self, algorithm: OnPolicyAlgorithm) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`."""
        self.close()
        spec = ActorSpec.of(algorithm, self.env_fn, self.frictions)
        with generators_left_alone():
            self._actor = Actor(spec)
        self._generator = np.random.default_rng(_derived_seed(spec.seed))
        longest = HISTORY if callable(self.staleness) else np.max(self.staleness)
        self._published = deque(maxlen=int(longest) + 1)

    def publish(self, weights: Weights, version: int) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`."""
        self._published.append((weights, version))

    def collect(self) -> Rollout:
        """See :class:`~sb3_delight.rollouts.ActorPool`."""
        assert self._actor is not None, "start() comes first"
        back = min(self._draw(), len(self._published) - 1)
        weights, version = self._published[-1 - back]
        self._actor.load(weights._replace(statistics=self._published[-1][0].statistics), version)
        return self._actor.collect()

    def _draw(self) -> int:
        if isinstance(self.staleness, tuple):
            return int(self._generator.integers(*self.staleness, endpoint=True))
        if callable(self.staleness):
            drawn = self.staleness(self._generator)
            require(_possible(drawn), "staleness", drawn, f"a function that draws whole numbers from 0 to {HISTORY}")
            return int(drawn)
        return self.staleness

    def statistics(self) -> dict[str, float]:
        """Nothing waits, is dropped or restarts here."""
        return {}

    def close(self) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`. An environment that fails to close is a warning: what ended
        training, Ctrl-C say, is the user's to see."""
        actor, self._actor, self._published = self._actor, None, deque()
        if actor is not None:
            try:
                actor.close()
            except Exception:
                logger.warning("the actor's environment did not close", exc_info=True)


def _possible(staleness: Any) -> bool:
    return is_whole(staleness, least=0) and staleness <= HISTORY


def _derived_seed(seed: int, *stream: int) -> int:
    """A 32-bit seed of its own for every stream."""
    return int(np.random.SeedSequence(seed, spawn_key=stream).generate_state(1)[0])


def _array(tensor: Any) -> np.ndarray:
    """A copy of the buffer's memory, which the next rollout overwrites."""
    copied: np.ndarray = tensor.numpy().copy()
    return copied

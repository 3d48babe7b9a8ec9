"""An actor in a process of its own, whichever engine runs that: its inbox, and what it sends."""

import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
import torch

from sb3_delight.actors import Actor, ActorSpec, ActorStopped
from sb3_delight.buffers import map_observations
from sb3_delight.rollouts import Rollout, Weights

__all__ = ["ActorProcess", "pack_weights", "unpack_rollout"]


class ActorProcess:
    """Collects in one thread, always the same, and is told of new weights in another.

    :param spec: of the actor, which is made with the first rollout
    :param stream: see :class:`~sb3_delight.actors.Actor`
    :param fetch: from a reference to the packed weights it stands for
    """

    def __init__(self, spec: ActorSpec, stream: tuple[int, ...], fetch: Callable[[Any], Weights]) -> None:
        self._spec, self._stream, self._fetch = spec, stream, fetch
        self._actor: Actor | None = None
        self._thread = 0
        self._loaded: Any = None
        self._newest: tuple[Any, int] = (None, -1)
        self._stopped = False

    def pid(self) -> int:
        """The process's number."""
        return os.getpid()

    def publish(self, wrapped: list[Any], version: int) -> None:
        """Tell of new weights, by a reference wrapped in a list: an engine fetches bare ones, needed or not."""
        self._newest = (wrapped[0], version)

    def collect(self, wrapped: list[Any], version: int) -> tuple[Rollout, bytes] | None:
        """A packed rollout by the newest weights: those given here or published since. ``None`` after :meth:`stop`.

        :raises Exception: what the environment raises; a ``RuntimeError`` that quotes it, if it cannot be sent
        """
        if self._stopped:
            return None
        try:
            return self._collect(wrapped, version)
        except ActorStopped:
            return None
        except Exception as error:
            try:
                pickle.loads(cloudpickle.dumps(error))
            except Exception:
                raise RuntimeError("".join(traceback.format_exception(error))) from None
            raise

    def _collect(self, wrapped: list[Any], version: int) -> tuple[Rollout, bytes]:
        if self._actor is None:
            self._thread = threading.get_ident()
            torch.set_num_threads(1)
            self._actor = Actor(self._spec, self._stream)
        if self._stopped:  # while it was made
            raise ActorStopped
        reference, version = max((wrapped[0], version), self._newest, key=lambda pair: pair[1])
        if reference != self._loaded:
            weights = self._fetch(reference)
            policy = {name: torch.tensor(array) for name, array in weights.policy.items()}
            self._actor.load(weights._replace(policy=policy), version)
            self._loaded = reference
        rollout = self._actor.collect()
        try:
            infos = pickle.dumps(rollout.infos)  # twice as fast as an engine's own pickler
        except (pickle.PicklingError, AttributeError):  # of a class that the program itself defines
            infos = cloudpickle.dumps(rollout.infos)
        return replace(rollout, infos=[]), infos

    def stack(self) -> str:
        """Where the rollout under way is; to be called from another thread."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame else ""

    def stop(self) -> None:
        """Make no more rollouts, and end the one under way."""
        self._stopped = True
        if self._actor is not None:
            self._actor.stop()

    def close(self) -> None:
        """Close the environment."""
        if self._actor is not None:
            self._actor.close()


def pack_weights(weights: Weights) -> Weights:
    """With arrays in place of tensors, which take four to ten times as long to ship.

    There are none of bfloat16, for which single precision is exact; a policy casts what it loads.
    """
    wide = {name: each.float() if each.dtype == torch.bfloat16 else each for name, each in weights.policy.items()}
    arrays: Any = {name: tensor.numpy() for name, tensor in wide.items()}
    return weights._replace(policy=arrays)


def unpack_rollout(packed: tuple[Rollout, bytes]) -> Rollout:
    """What :meth:`ActorProcess.collect` packed.

    Arrays are copied: an engine hands out views of its own memory, to which callbacks and torch may not write.
    """
    rollout, infos = packed
    arrays = {name: np.array(value) for name, value in vars(rollout).items() if isinstance(value, np.ndarray)}
    parts = {name: map_observations(np.array, getattr(rollout, name)) for name in ("observations", "last_observation")}
    return replace(rollout, infos=pickle.loads(infos), **{**arrays, **parts})

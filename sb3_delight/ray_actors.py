"""Actors in processes of their own, on Ray: all on this machine, or spread over a cluster."""

import logging
import os
import textwrap
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_delight.actor_process import ActorProcess, pack_weights, unpack_rollout
from sb3_delight.actors import ActorSpec
from sb3_delight.arguments import install, is_whole, number, require
from sb3_delight.env_copies import CopyError, EnvMaker, check_maker
from sb3_delight.finite import NotFiniteError
from sb3_delight.frictions import Friction, as_frictions
from sb3_delight.rollouts import Rollout, Weights

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as missing:
    raise ImportError(f"RayActors needs Ray: {install('ray')}") from missing

__all__ = ["RayActors"]

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  #: between two looks at the clocks of actors that make the learner wait
ANSWER_SECONDS = 10.0  #: for which a process that hangs is asked where
START_SECONDS = 60.0  #: after which an actor whose process has not begun is worth a warning
MAX_DEATHS_IN_A_ROW = 30  #: of processes of one actor, without a rollout in between
SHUTDOWN_SECONDS = 3.0  #: that actors have, in all, to finish a rollout and close their environments


@dataclass
class _Worker:
    """The learner's side of an actor's process."""

    index: int
    restarts: int
    handle: Any
    pid_reference: Any  #: reference to its process number: ready once the process is
    pid: int | None = None
    tasks: list[Any] = field(default_factory=list)  #: references to the rollouts asked for, the next one first
    publication: Any = None  #: reference to the last call of publish(): ready once the process has taken it
    since: float = field(default_factory=monotonic)  #: when it was last seen to get on
    deaths: int = 0  #: of its predecessors, since the last rollout

    def call_control(self, method: str, *arguments: Any) -> Any:
        """Call a method that does not wait for the rollout under way."""
        return getattr(self.handle, method).options(concurrency_group="control").remote(*arguments)


class _OwnRay:
    """The Ray that pools of this process started, and how many use it: the last one ends it."""

    lock = threading.Lock()
    users = 0
    cpus_per_actor = 1  #: on a cluster, so that Ray spreads them; on this machine the user has said how many there are


class RayActors:
    """Actors that collect while the learner learns, each in a process of its own, on Ray.

    ``DG("MlpPolicy", env, actors=RayActors(4)).learn(...)``. Every actor runs a copy of the learner's environment,
    takes the newest weights at the start of each rollout, and begins the next one without waiting for the learner, who
    takes whichever rollout is finished first. So rollouts are some gradient steps old (``actors/staleness``).

    A process that dies is replaced; the rollout it was making is lost. An environment that raises, or hangs, is
    reported with its traceback and replaced too, up to ``max_restarts`` times; NaN or inf in an observation ends
    training at once, as without actors. Each replacement is a warning of :mod:`logging`, and is
    counted in ``actors/restarts`` and ``actors/rollouts_lost``.

    :param n_actors: how many
    :param frictions: what goes wrong on the actors: see :mod:`sb3_delight.frictions`
    :param env_fn: makes an actor's environment, if that of the learner cannot be made again from its registration: an
        ``Env`` or a ``VecEnv``, with the learner's wrappers but without its ``VecNormalize``
    :param rollouts_per_actor: bound on the rollouts, for each actor, that are under way or wait for the learner; an
        actor at its bound pauses. 1 gives the freshest rollouts, more keep actors busy through a long update.
    :param max_staleness: a rollout whose weights are more gradient steps old when it is taken is dropped, and counted
        in ``actors/rollouts_dropped``; ``None`` takes any
    :param timeout: seconds after which a rollout, making the environment included, is taken to hang
    :param max_restarts: how many failures of environments, in one ``learn()`` and in all, are made good; the next one
        is raised. Processes that were killed do not count.
    :param address: of a Ray cluster; ``"auto"`` is the one that ``ray start`` started on this machine. ``None`` is
        ``RAY_ADDRESS`` if that is set, or else a Ray on this machine that ends with ``learn()``; a ``learn()`` within
        another shares it. Where the program has called ``ray.init()`` itself, that Ray is used as it is and left
        running: with learners in several threads it should, as Ray ends with the thread that started it.
    :param ray_init: further arguments of ``ray.init``, ``runtime_env`` for one
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        n_actors: int,
        *,
        frictions: Friction | Sequence[Friction] = (),
        env_fn: EnvMaker | None = None,
        rollouts_per_actor: int = 2,
        max_staleness: int | None = None,
        timeout: float = 300.0,
        max_restarts: int = 10,
        address: str | None = None,
        ray_init: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("n_actors", n_actors), ("rollouts_per_actor", rollouts_per_actor)):
            require(is_whole(value), name, value, "a whole number, 1 or more")
        for name, count in (("max_staleness", max_staleness), ("max_restarts", max_restarts)):
            free = count is None and name == "max_staleness"
            require(free or is_whole(count, least=0), name, count, "a whole number, 0 or more")
        require(number(timeout) > 0, "timeout", timeout, "positive, in seconds")
        require(address is None or isinstance(address, str), "address", address, "of a Ray cluster, or None")
        fits = ray_init is None or (isinstance(ray_init, Mapping) and "address" not in ray_init)
        require(fits, "ray_init", ray_init, "a dict or None, without the address, which has an argument of its own")
        check_maker(env_fn)
        self.n_actors = n_actors
        self.frictions = as_frictions(frictions)
        self.env_fn = env_fn
        self.rollouts_per_actor = rollouts_per_actor
        self.max_staleness = max_staleness
        self.timeout = timeout
        self.max_restarts = max_restarts
        self.address = address
        self.ray_init = dict(ray_init or {})
        self._workers: list[_Worker] = []
        self._connected = False
        self._forget()

    def _forget(self) -> None:
        """Hold on to nothing that a cluster which lives on would have to keep."""
        self._spec: Any = None
        self._newest: tuple[Any, int] = (None, -1)
        self._finished: deque[tuple[_Worker, tuple[Rollout, bytes]]] = deque()

    # ---------------------------------------------------------------------------------- the protocol

    def start(self, algorithm: OnPolicyAlgorithm) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`."""
        self.close()
        spec = ActorSpec.of(algorithm, self.env_fn, self.frictions)
        spec.env.check_importable()
        self._connect()
        self._spec = ray.put(spec)
        remote: Any = ray.remote  # whose types know nothing of concurrency groups
        cpus = _OwnRay.cpus_per_actor if self._connected else 1
        self._remote = remote(num_cpus=cpus, concurrency_groups={"control": 1})(ActorProcess)
        self._dropped = self._lost = self._restarts = self._failures = 0
        self._workers = [self._spawn(index) for index in range(self.n_actors)]

    def publish(self, weights: Weights, version: int) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`."""
        self._newest = (ray.put(pack_weights(weights)), version)
        for worker in self._workers:
            # One call under way at most: behind a process that is stuck they would pile up.
            if worker.tasks and (worker.publication is None or ray.wait([worker.publication], timeout=0)[0]):
                worker.publication = worker.call_control("publish", [self._newest[0]], version)

    def collect(self) -> Rollout:
        """See :class:`~sb3_delight.rollouts.ActorPool`.

        :raises Exception: what an environment raised once too often; ``TimeoutError`` if one hung;
            ``RuntimeError`` if the processes of one actor die again and again
        """
        while True:
            self._poll()
            if self._finished:
                worker, packed = self._finished.popleft()
                self._request_rollouts(self._workers[worker.index])
                if self.max_staleness is None or self._newest[1] - packed[0].version <= self.max_staleness:
                    return unpack_rollout(packed)
                self._dropped += 1

    def statistics(self) -> dict[str, float]:
        """Rollouts that wait, and since ``learn()`` began those dropped as too old, those lost, and restarts."""
        return {
            "rollouts_waiting": len(self._finished),
            "rollouts_dropped": self._dropped,
            "rollouts_lost": self._lost,
            "restarts": self._restarts,
        }

    def close(self) -> None:
        """See :class:`~sb3_delight.rollouts.ActorPool`. Environments are closed where they are not stuck."""
        workers, self._workers = self._workers, []
        try:
            begun = [worker for worker in workers if worker.pid is not None and ray.is_initialized()]
            for worker in begun:
                worker.call_control("stop")
            closing = [worker.handle.close.remote() for worker in begun]
            if closing:
                ray.wait(closing, num_returns=len(closing), timeout=SHUTDOWN_SECONDS)
        finally:
            if ray.is_initialized():
                for worker in workers:
                    ray.kill(worker.handle)
            self._disconnect()
            self._forget()

    # ------------------------------------------------------------------------------ actors come and go

    def _connect(self) -> None:
        with _OwnRay.lock:
            if ray.is_initialized() and not _OwnRay.users:
                return  # the program's
            self._connected = True  # so that close() ends what is left of a failed attempt
            _OwnRay.users += 1
            if not ray.is_initialized():
                self._init_ray()

    def _disconnect(self) -> None:
        with _OwnRay.lock:
            if self._connected:
                self._connected = False
                _OwnRay.users -= 1
                if not _OwnRay.users:
                    ray.shutdown()

    def _init_ray(self) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        _OwnRay.cpus_per_actor = 0 if address == "local" else 1
        if address == "local":  # by this number Ray starts processes in advance
            options |= {"num_cpus": self.n_actors, "include_dashboard": False}
        ray.init(address, **{**options, **self.ray_init})

    def _spawn(self, index: int, restarts: int = 0, deaths: int = 0) -> _Worker:
        handle = self._remote.remote(self._spec, (index, restarts), ray.get)
        return _Worker(index, restarts, handle, pid_reference=handle.pid.remote(), deaths=deaths)

    def _request_rollouts(self, worker: _Worker) -> None:
        """Have an actor make as many rollouts as it may."""
        if worker.pid is None:
            return
        if not worker.tasks:
            worker.since = monotonic()
        waiting = sum(each.index == worker.index for each, _ in self._finished)
        while len(worker.tasks) + waiting < self.rollouts_per_actor:
            reference, version = self._newest
            worker.tasks.append(worker.handle.collect.remote([reference], version))

    def _poll(self) -> None:
        """Take in what is ready, waiting a moment for it if there is no finished rollout."""
        awaited = {task: each for each in self._workers for task in (each.tasks if each.pid else [each.pid_reference])}
        references = list(awaited)
        timeout = 0.0 if self._finished else POLL_SECONDS
        if references and ray.wait(references, timeout=timeout)[0]:
            for reference in ray.wait(references, num_returns=len(references), timeout=0)[0]:
                if self._workers[awaited[reference].index] is awaited[reference]:  # not replaced just now
                    self._receive(awaited[reference], reference)
        for worker in list(self._workers):
            self._check_clock(worker)

    def _receive(self, worker: _Worker, reference: Any) -> None:
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            self._failed(worker, f"raised\n{error}", error.cause or error, error)
        except RayError as error:
            self._died(worker, error)
        else:
            worker.since = monotonic()
            if worker.pid is None:
                worker.pid = result
            else:
                worker.tasks.remove(reference)
                worker.deaths = 0
                self._finished.append((worker, result))
            self._request_rollouts(worker)

    def _check_clock(self, worker: _Worker) -> None:
        waited = monotonic() - worker.since
        if worker.pid is None and waited > START_SECONDS:
            worker.since = monotonic()
            logger.warning("actor %d has no process yet: has Ray a CPU for it? It waits.", worker.index)
        elif worker.tasks and waited > self.timeout:
            try:
                stack = ray.get(worker.call_control("stack"), timeout=ANSWER_SECONDS)
            except RayError:
                stack = "(it does not even say where)"
            what = f"made no rollout within timeout={self.timeout:g} s; it was at\n{stack}"
            self._failed(worker, what, TimeoutError(f"actor {worker.index} {what}"), None)

    def _failed(self, worker: _Worker, what: str, error: Exception, remote: Exception | None) -> None:
        """The environment's fault."""
        if isinstance(error, NotFiniteError | CopyError):
            raise error from remote
        self._failures += 1
        if self._failures > self.max_restarts:
            error.add_note(f"This was actor {worker.index}, and all max_restarts={self.max_restarts} are used up.")
            raise error from remote
        self._restart(worker, f"{what}\nThis is failure {self._failures} of max_restarts={self.max_restarts}", 0)

    def _died(self, worker: _Worker, error: Exception) -> None:
        """Nobody's fault, unless it goes on."""
        if getattr(error, "actor_init_failed", False):
            raise RuntimeError(f"actor {worker.index} could not be made: {error}") from error
        if worker.deaths >= MAX_DEATHS_IN_A_ROW:
            what = f"{MAX_DEATHS_IN_A_ROW + 1} processes of actor {worker.index} died in a row without making a rollout"
            raise RuntimeError(what) from error
        cause = textwrap.shorten(str(error).splitlines()[-1], 200)  # before it come Ray's own numbers
        self._restart(worker, f"died: {cause}", worker.deaths + 1)

    def _restart(self, worker: _Worker, why: str, deaths: int) -> None:
        lost = int(bool(worker.tasks))  # of those asked for, one at a time is under way
        self._lost += lost
        self._restarts += 1
        name = f"actor {worker.index} (process {worker.pid})"
        logger.warning("%s %s. It is replaced; %s is lost.", name, why, "its rollout" if lost else "no rollout")
        ray.kill(worker.handle)
        self._workers[worker.index] = self._spawn(worker.index, worker.restarts + 1, deaths)

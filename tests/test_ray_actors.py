"""Actors on Ray, in real processes of this machine. One Ray serves all tests but those about how a Ray ends."""

import functools
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from envs import AnySpaces, Poisoned
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_delight import DG, PolicyGradient
from sb3_delight.buffers import DeviceRolloutBuffer
from sb3_delight.frictions import ActorBug
from sb3_delight.normalization import statistics_of
from sb3_delight.rollouts import Rollout, Weights

ray = pytest.importorskip("ray")
from sb3_delight import ray_actors  # noqa: E402
from sb3_delight.ray_actors import RayActors  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
PATIENCE = 300.0  #: seconds; generous, for starting a process takes one on an idle machine and twenty on a busy one


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for module in ("envs", __name__):  # which an actor's process could not import
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    yield
    ray.shutdown()


class Telling(gym.Env[Any, Any]):
    """An endless walk from 0 that tells where it is, how far it has come, and in which process."""

    observation_space = BOX
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self.np_random.normal(size=2).astype(np.float32)
        return observation, 1.0, False, False, {"pid": os.getpid(), "steps": self.steps, "raw": observation.copy()}


class Fails(Telling):
    """Does something at one of its steps."""

    def __init__(self, what: Callable[[], Any], at: int = 10) -> None:
        self.what, self.at = what, at

    def step(self, action: Any) -> Any:
        if self.steps == self.at:
            self.what()
        return super().step(action)


class Closes(Telling):
    """Leaves a file behind when it is closed."""

    def __init__(self, closed: Path) -> None:
        self.closed = closed

    def close(self) -> None:
        self.closed.touch()


def crash() -> None:
    raise OSError("the simulator is gone")


def hang() -> None:
    time.sleep(10_000)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Spy(RayActors):
    """Keeps what goes through the pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.collected: list[Rollout] = []
        self.last_statistics: dict[str, float] = {}

    def collect(self) -> Rollout:
        self.collected.append(super().collect())
        self.last_statistics = self.statistics()
        return self.collected[-1]


class Stop(BaseCallback):
    """Ends training after the first rollout at which a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        super().__init__()
        self.condition, self.timesteps = condition, [0]

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        return self.num_timesteps % 32 > 0 or not self.condition()


def make(actors: RayActors, env: Any = None, **kwargs: Any) -> PolicyGradient:
    env = DummyVecEnv([Telling] * 2) if env is None else env
    return PolicyGradient("MlpPolicy", env, **{"seed": 0, "device": "cpu", "n_steps": 16, "actors": actors, **kwargs})


def pids(rollouts: list[Rollout]) -> list[int]:
    return [rollout.infos[0][0]["pid"] for rollout in rollouts]


def processes() -> dict[int, tuple[int, str]]:
    """Of this machine: number -> its parent's, and its command."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in lines.splitlines()]
    return {int(row[0]): (int(row[1]), row[3]) for row in rows if len(row) == 4 and not row[2].startswith("Z")}


def descendants(pid: int) -> set[int]:
    everybody = processes()
    found = {pid}
    while more := {child for child, (parent, _) in everybody.items() if parent in found} - found:
        found |= more
    return found - {pid}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def gone(numbers: set[int], but_for: tuple[str, ...] = ()) -> bool:
    return all(command in but_for for pid, (_, command) in processes().items() if pid in numbers)


# ------------------------------------------------------------------------------------- when all is well


def test_two_actors_train_a_learner(running_ray: None) -> None:
    """Steps are counted, statistics merged, seeds differ, and the user's own Ray is left running, without actors."""
    env = VecNormalize(DummyVecEnv([Telling] * 2))
    pool = Spy(2, env_fn=Telling)
    model = make(pool, env)
    before = torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])
    stop = Stop(lambda: len(set(pids(pool.collected))) == 2 and len(pool.collected) >= 8)
    model.learn(1_000_000, callback=stop)
    after = torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])

    assert not torch.equal(before, after)
    assert np.diff(stop.timesteps).tolist() == [2] * 16 * len(pool.collected)
    assert model.num_timesteps == 32 * len(pool.collected)
    for pid in set(pids(pool.collected)):
        mine = [rollout for rollout in pool.collected if rollout.infos[0][0]["pid"] == pid]
        walked = [info["steps"] for rollout in mine for info, _ in rollout.infos]
        assert walked == list(range(1, 1 + 16 * len(mine)))  # none missing, and in order
        versions = [rollout.version for rollout in mine]
        assert versions == sorted(versions)
    assert any(rollout.version > 0 for rollout in pool.collected)

    raw = np.array([info["raw"] for rollout in pool.collected for row in rollout.infos for info in row])
    assert len(np.unique(raw, axis=0)) == len(raw)  # no environment of any actor repeats another's
    expected = RunningMeanStd(shape=(2,))
    for data in (np.zeros((2 * 2, 2)), raw):  # two actors' two resets, and every step
        expected.update(data)
    mean, var, count = statistics_of(model.get_vec_normalize_env())["observation"]
    assert count == pytest.approx(expected.count)
    np.testing.assert_allclose(mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(var, expected.var, rtol=1e-5)

    assert {"rollouts_waiting", "rollouts_dropped", "rollouts_lost", "restarts"} == pool.last_statistics.keys()
    assert pool.last_statistics["restarts"] == 0
    assert ray.is_initialized()
    wait_until(lambda: gone(set(pids(pool.collected))))


def test_vtrace_is_for_rollouts_of_older_weights(running_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, corrected = DeviceRolloutBuffer.compute_vtrace, []

    def spy(buffer: DeviceRolloutBuffer, last_values: torch.Tensor, dones: Any, log_prob: torch.Tensor) -> None:
        compute(buffer, last_values, dones, log_prob)
        corrected.append(len(pool.collected))
        assert torch.isfinite(buffer.advantages).all()
        ratio = (log_prob.view(2, 16).T - buffer.log_probs).exp()
        assert (ratio - 1).abs().max() > 1e-4

    monkeypatch.setattr(DeviceRolloutBuffer, "compute_vtrace", spy)
    pool = Spy(1, env_fn=Telling)  # acts while the learner learns
    model = make(pool, advantage_estimator="vtrace", learning_rate=0.01)
    model.learn(100 * 32, callback=Stop(lambda: len(corrected) >= 2))
    used = pool.collected[:-1]  # the last one only said that it was time to stop
    older = [i + 1 for i, rollout in enumerate(used) if rollout.version < i]
    assert corrected == older


def test_rollouts_wait_up_to_the_bound_and_are_dropped_when_too_old(
    running_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end the environment is closed."""
    monkeypatch.setattr(ray_actors, "SHUTDOWN_SECONDS", PATIENCE)
    pool = RayActors(1, env_fn=lambda: Closes(tmp_path / "closed"), rollouts_per_actor=3, max_staleness=1)
    model = make(pool)
    weights = Weights({name: tensor.detach() for name, tensor in model.policy.state_dict().items()}, {})
    try:
        pool.start(model)
        pool.publish(weights, 0)
        assert pool.collect().infos[-1][0]["steps"] == 16
        (worker,) = pool._workers
        _, unfinished = ray.wait(list(worker.tasks), num_returns=len(worker.tasks), timeout=PATIENCE)
        assert not unfinished
        pool.publish(weights, 1)
        rollout = pool.collect()  # staleness 1 is not too old
        assert (rollout.version, rollout.infos[-1][0]["steps"]) == (0, 32)
        assert pool.statistics()["rollouts_waiting"] == 2
        assert len(worker.tasks) == 1
        pool.publish(weights, 2)
        rollout = pool.collect()
        assert rollout.version >= 1
        assert rollout.infos[-1][0]["steps"] == 5 * 16  # two were made of version 0, and no more than those
        assert pool.statistics()["rollouts_dropped"] == 2
        assert not (tmp_path / "closed").exists()
    finally:
        pool.close()
    assert (tmp_path / "closed").exists()


def test_dict_observations_and_box_actions(
    running_ray: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actors, "START_SECONDS", 0.01)
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    env = DummyVecEnv([lambda: AnySpaces(spaces.Dict({"image": image, "speed": BOX}), BOX)])
    pool = Spy(1, env_fn=lambda: AnySpaces(spaces.Dict({"image": image, "speed": BOX}), BOX))
    model = DG("MultiInputPolicy", env, seed=0, device="cpu", n_steps=16, actors=pool).learn(3 * 16)
    assert model.num_timesteps == 48
    assert pool.collected[0].observations["image"].shape == (16, 1, 1, 36, 36)
    assert "actor 0 has no process yet" in caplog.text  # which it had not for a hundredth of a second


# ------------------------------------------------------------------------------------ when it is not


def test_twenty_kills_at_any_time(running_ray: None) -> None:
    """Of whichever process of an actor, in whatever it does: training goes on, and every actor returns."""
    generator, killed, over = random.Random(0), set[int](), threading.Event()

    def kill() -> None:
        while not (pool.collected or over.is_set()):  # the first one is at work, the others may only just begin
            time.sleep(0.05)
        while len(killed) < 20 and not over.is_set():
            actors = {pid for pid, (_, command) in processes().items() if command.startswith("ray::ActorProcess")}
            mine = sorted((actors & descendants(os.getpid())) - killed)
            if mine:
                victim = generator.choice(mine if killed else pids(pool.collected))
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
            time.sleep(generator.uniform(0.1, 1.0))

    pool = Spy(2, env_fn=Telling, rollouts_per_actor=1)
    model = make(pool)
    killer = threading.Thread(target=kill)
    killer.start()
    stop = Stop(lambda: len(killed) == 20 and len(set(pids(pool.collected)) - killed) == 2)
    try:
        model.learn(10_000_000, callback=stop)
    finally:
        over.set()
        killer.join()
    assert pool.last_statistics["restarts"] == len(killed) == 20
    assert 0 < pool.last_statistics["rollouts_lost"] <= 20
    assert model.num_timesteps == 32 * len(pool.collected)


def test_what_raises_and_what_hangs_is_reported_and_replaced_up_to_a_limit(
    running_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In its second rollout one raises, and then one hangs."""

    def crash_once() -> None:
        (tmp_path / "crashed").touch()
        crash()

    pool = Spy(1, env_fn=lambda: Fails(hang if (tmp_path / "crashed").exists() else crash_once, at=20), max_restarts=1)

    class Hurry(BaseCallback):
        def _on_step(self) -> bool:
            pool.timeout = 3 if len(pool.collected) == 2 else 300  # not before it hangs: processes start slowly
            return True

    model = make(pool, DummyVecEnv([Telling]))
    with pytest.raises(
        TimeoutError, match=r"(?s)^actor 0 made no rollout within timeout=3 s.*all max_restarts=1"
    ) as error:
        model.learn(4 * 16, callback=Hurry())
    assert "in hang\n    time.sleep(10_000)" in str(error.value)
    (report,) = (record.getMessage() for record in caplog.records if record.name == "sb3_delight.ray_actors")
    assert report.startswith("actor 0")
    assert "in crash" in report
    assert "OSError: the simulator is gone" in report
    assert report.endswith("failure 1 of max_restarts=1. It is replaced; its rollout is lost.")
    assert pool.statistics() == {"rollouts_waiting": 0, "rollouts_dropped": 0, "rollouts_lost": 1, "restarts": 1}


def test_one_failure_too_many_is_raised(running_ray: None) -> None:
    pool = RayActors(1, env_fn=lambda: Fails(crash), max_restarts=0)
    with pytest.raises(OSError, match=r"^the simulator is gone\nThis was actor 0, and all max_restarts=0 ") as error:
        make(pool, DummyVecEnv([Telling])).learn(32)
    assert "in crash" in str(error.value.__cause__)  # where, in the actor's process


def test_processes_that_always_die_end_training(running_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "MAX_DEATHS_IN_A_ROW", 1)
    with pytest.raises(RuntimeError, match="2 processes of actor 0 died in a row without making a rollout"):
        make(RayActors(1, env_fn=lambda: Fails(die)), DummyVecEnv([Telling])).learn(32)


def test_an_actor_that_cannot_be_made_is_an_error_at_once(running_ray: None, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def env_fn(): ...")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        from only_here import env_fn  # type: ignore[import-not-found]

        with pytest.raises(RuntimeError, match=r"(?s)^actor 0 could not be made.*No module named 'only_here'"):
            make(RayActors(1, env_fn=env_fn), DummyVecEnv([Telling])).learn(32)


def test_an_observation_that_is_not_finite_is_an_error_at_once(running_ray: None) -> None:
    pool = RayActors(1, env_fn=lambda: Poisoned(gym.make("CartPole-v1"), "observation", float("nan"), at=10))
    model = make(pool, make_vec_env("CartPole-v1", 1))
    with pytest.raises(ValueError, match=r"^NaN or inf observation in the rollout that ended at timestep 10: "):
        model.learn(32)
    assert model._n_updates == 0


# ---------------------------------------------------------------------------- the learner's own end

DRIVER = """
    import signal, sys, torch
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells ignore it
    from stable_baselines3.common.callbacks import CheckpointCallback
    from stable_baselines3.common.env_util import make_vec_env
    from sb3_delight import DG
    from sb3_delight.ray_actors import RayActors

    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = DG("MlpPolicy", env, n_steps=16, seed=0, device="cpu", actors=RayActors(1))
    model.learn(10_000_000, callback=CheckpointCallback(160, "checkpoints"))
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that trains for ever on a Ray of its own, three checkpoints behind it."""
    with (tmp_path / "stderr").open("wb") as errors:
        program = [sys.executable, "-c", textwrap.dedent(DRIVER)]
        process = subprocess.Popen(program, stderr=errors, start_new_session=True)
    checkpoints = tmp_path / "checkpoints"
    try:
        wait_until(lambda: process.poll() is not None or len(list(checkpoints.glob("*.zip"))) >= 3)
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_killed_learner_leaves_nothing_behind_and_goes_on_from_its_checkpoint(
    running_ray: None, driver: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    family = descendants(driver.pid)
    assert any(processes()[pid][1].startswith("ray::ActorProcess") for pid in family & processes().keys())
    driver.kill()
    driver.wait()
    # Two helpers of Ray's own, which hold no actor, look for their dead for a minute before they go.
    wait_until(lambda: gone(family, but_for=("ray::DashboardAgent", "ray::RuntimeEnvAgent")))

    pool = Spy(1)
    env = make_vec_env("CartPole-v1", 2, seed=0)
    checkpoint = tmp_path / "checkpoints" / "rl_model_640_steps.zip"  # a later one may be torn
    model = DG.load(checkpoint, env=env, device="cpu", actors=pool)
    stop = Stop(lambda: len(pool.collected) == 2)
    model.learn(10_000_000, callback=stop, reset_num_timesteps=False)
    assert stop.timesteps[1:] == list(range(642, 642 + 64, 2))
    assert (pool.collected[0].version, model._n_updates) == (19, 20)


def test_ctrl_c_leaves_nothing_behind(driver: subprocess.Popen[bytes], tmp_path: Path) -> None:
    family = descendants(driver.pid)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
    assert driver.wait(PATIENCE) != 0
    assert "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
    wait_until(lambda: gone(family))


# ------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_actors", 0),
        ("n_actors", 1.5),
        ("rollouts_per_actor", 0),
        ("max_staleness", -1),
        ("max_staleness", 0.5),
        ("max_restarts", -1),
        ("max_restarts", None),
        ("timeout", 0),
        ("timeout", "long"),
        ("address", 6379),
        ("ray_init", "local"),
        ("ray_init", {"address": "local"}),
        ("env_fn", 3),
    ],
)
def test_bad_arguments_are_refused(name: str, value: Any) -> None:
    arguments = {"n_actors": 1, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be "):
        RayActors(**arguments)


@pytest.mark.parametrize(
    ("arguments", "variable", "address", "cpus"),
    [
        ({"n_actors": 3}, None, "local", 3),
        ({"n_actors": 1, "ray_init": {"num_cpus": 7}}, None, "local", 7),
        ({"n_actors": 1000}, "10.0.0.1:6379", "10.0.0.1:6379", None),
        ({"n_actors": 1000, "address": "auto"}, "10.0.0.1:6379", "auto", None),
    ],
)
def test_where_ray_is_looked_for(
    arguments: dict[str, Any], variable: str | None, address: str, cpus: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that what is left of a failed attempt is shut down."""
    calls: list[Any] = []

    def init(*args: Any, **kwargs: Any) -> None:
        calls.append((*args, kwargs.get("num_cpus")))
        raise ConnectionError("no cluster")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    with pytest.raises(ConnectionError, match="no cluster"):
        make(RayActors(**arguments, env_fn=Telling)).learn(32)
    assert calls == [(address, cpus), "shutdown"]
    assert ray_actors._OwnRay.cpus_per_actor == (0 if address == "local" else 1)


def test_the_last_of_several_pools_ends_the_ray_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    up, calls = [False], []

    def turn(on: bool, *_: Any, **__: Any) -> None:
        up[0] = on
        calls.append("init" if on else "shutdown")

    monkeypatch.setattr(ray, "is_initialized", lambda: up[0])
    monkeypatch.setattr(ray, "init", functools.partial(turn, True))
    monkeypatch.setattr(ray, "shutdown", functools.partial(turn, False))
    one, other = RayActors(1), RayActors(1)
    one._connect()
    other._connect()
    for pool in (one, one):  # closing twice counts once
        pool.close()
    assert calls == ["init"]
    other.close()
    assert calls == ["init", "shutdown"]
    up[0] = True  # by the program
    one._connect()
    one.close()
    assert calls == ["init", "shutdown"]


def test_bad_environments_are_refused_before_any_process_starts() -> None:
    pool = RayActors(1)
    with pytest.raises(ValueError, match=r"Pass env_fn=\.\.\."):
        make(pool).learn(32)  # not registered with Gymnasium


def test_frictions_reach_the_actors(running_ray: None) -> None:
    pool = Spy(1, frictions=ActorBug(1.0, 1), env_fn=Telling)
    make(pool).learn(16)
    assert (pool.collected[0].actions == 1).all()


def test_deaths_after_a_rollout_are_not_in_a_row(running_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_later() -> None:
        time.sleep(2)  # until the rollout before is on its way
        die()

    monkeypatch.setattr(ray_actors, "MAX_DEATHS_IN_A_ROW", 1)
    pool = Spy(1, env_fn=lambda: Fails(die_later, at=20))  # in the second rollout of every process
    make(pool, DummyVecEnv([Telling])).learn(3 * 16)
    assert pool.last_statistics["restarts"] == 2


def test_a_stuck_process_is_told_of_new_weights_once_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(name: str, *_: Any) -> str:
        calls.append(name)
        return name

    handle = SimpleNamespace(close=SimpleNamespace(remote=lambda: None))
    worker: Any = SimpleNamespace(tasks=[1], publication=None, pid=7, handle=handle, call_control=call)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "put", lambda weights: weights)
    monkeypatch.setattr(ray, "wait", lambda *_, **__: ([], []))
    monkeypatch.setattr(ray, "kill", lambda _: None)
    pool = RayActors(1)
    pool._workers = [worker]
    for version in range(3):
        pool.publish(Weights({}, {}), version)
    pool.close()
    assert calls == ["publish", "stop"]


def test_a_copy_that_does_not_fit_is_an_error_at_once(running_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    pool = RayActors(1, env_fn=lambda: gym.make("Acrobot-v1"))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        make(pool, make_vec_env("CartPole-v1", 1)).learn(32)
    assert "It is replaced" not in caplog.text


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sb3_delight.ray_actors")
    with pytest.raises(ImportError, match=r'^RayActors needs Ray: pip install .*"\.\[ray\]"'):
        import sb3_delight.ray_actors  # noqa: F401

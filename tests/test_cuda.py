"""On a GPU: the rollout lives there, and the results are those of the CPU."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from envs import AnySpaces
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_delight import DG, KondoDG, PolicyGradient, objectives
from sb3_delight.actors import LocalActors
from sb3_delight.buffers import DeviceRolloutBuffer, flat_rollout
from sb3_delight.forward import evaluate_log_prob
from sb3_delight.returns import vtrace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:You are trying to run .* on the GPU:UserWarning"),
]

METHODS: list[tuple[type[PolicyGradient], dict[str, Any]]] = [
    (PolicyGradient, {}),
    (DG, {}),
    (KondoDG, {"gate_rate": 0.25}),
    (KondoDG, {"price": 0.0}),
]


@pytest.mark.parametrize(("cls", "arguments"), METHODS)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_update_is_that_of_the_cpu(cls: type[PolicyGradient], arguments: dict[str, Any], env: str) -> None:
    common: dict[str, Any] = {"seed": 0, "n_steps": 64, **arguments}
    host = cls("MlpPolicy", env, device="cpu", **common)
    start = {name: value.clone() for name, value in host.policy.state_dict().items()}
    host.learn(64)
    device = cls("MlpPolicy", env, device="cuda", **common)
    device.policy.load_state_dict(start)
    device.set_logger(configure(None, []))
    for name, tensor in vars(host.rollout_buffer).items():
        if isinstance(tensor, torch.Tensor):
            getattr(device.rollout_buffer, name).copy_(tensor)
    device.rollout_buffer.full = True
    device.train()
    for one, other in zip(host.policy.parameters(), device.policy.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), other.detach().cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("cls", "arguments"), METHODS)
def test_training_keeps_the_rollout_on_the_device(cls: type[PolicyGradient], arguments: dict[str, Any]) -> None:
    model = cls("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, device="cuda", **arguments).learn(96)
    rollout = flat_rollout(model.rollout_buffer)
    assert all(tensor.is_cuda for tensor in rollout if isinstance(tensor, torch.Tensor))
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize(
    ("cls", "arguments", "expected"),
    [
        (PolicyGradient, {}, 1),
        (DG, {"batch_size": 16}, 1),
        (KondoDG, {"batch_size": 16, "gate_rate": 0.25, "critic_rate": 0.5}, 1),
        (KondoDG, {"batch_size": 16, "price": 0.0}, 2),  # how many rows it kept
    ],
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_host_waits_once_per_update(
    cls: type[PolicyGradient], arguments: dict[str, Any], expected: int, env: str
) -> None:
    model = cls("MlpPolicy", env, n_steps=64, device="cuda", seed=0, **arguments).learn(128)
    model.set_logger(configure(None, []))
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model.train()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # Not all that speak of it: turning the mode on the first time, torch says what it cannot detect.
    assert sum("called a synchronizing" in str(warning.message) for warning in caught) == expected


def test_an_update_that_fails_is_undone_there_too() -> None:
    model = KondoDG("MlpPolicy", "CartPole-v1", n_steps=64, temperature=1.0, device="cuda", seed=0).learn(64)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.rollout_buffer.advantages[3] = torch.nan
    model.rollout_buffer.returns[3] = torch.nan
    model.set_logger(configure(None, []))
    with pytest.raises(ValueError, match="NaN or inf reward"):
        model.train()
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


POINT = spaces.Box(-1.0, 1.0, (3,), np.float32)
FORCE = spaces.Box(-1.0, 1.0, (2,), np.float32)
KINDS: list[tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = [
    ("CnnPolicy", spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(3), {}),
    ("MultiInputPolicy", spaces.Dict({"point": POINT, "room": spaces.Discrete(4)}), spaces.Discrete(3), {}),
    ("MlpPolicy", POINT, spaces.MultiDiscrete([2, 3]), {}),
    ("MlpPolicy", POINT, spaces.MultiBinary(4), {}),
    ("MlpPolicy", POINT, FORCE, {"use_sde": True, "sde_sample_freq": 4}),
    ("MlpPolicy", POINT, FORCE, {"surprisal_baseline": "mode", "clip_range": 0.2}),
]


@pytest.mark.parametrize(("policy", "observations", "actions", "arguments"), KINDS)
@pytest.mark.parametrize("cls", [DG, KondoDG])
def test_a_model_trained_there_plays_and_goes_on_here(
    cls: type[DG],
    policy: str,
    observations: spaces.Space[Any],
    actions: spaces.Space[Any],
    arguments: dict[str, Any],
    tmp_path: Path,
) -> None:
    env = AnySpaces(observations, actions)
    model = cls(policy, env, n_steps=32, batch_size=16, n_epochs=2, device="cuda", seed=0, **arguments).learn(96)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, device="cpu")
    for one, other in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one.cpu(), other)
    for _ in range(5):
        observation = observations.sample()
        there, here = (each.predict(observation, deterministic=True)[0] for each in (model, loaded))
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-4)
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 128


def test_actors_leave_its_generator_alone_and_feed_it() -> None:
    model = DG("MlpPolicy", "CartPole-v1", n_steps=32, device="cuda", seed=0, actors=LocalActors(2))
    torch.rand(1, device="cuda")  # the actor's seed is the model's: without this it would hide
    before = torch.cuda.get_rng_state()
    LocalActors().start(model)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    start = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(128)
    assert all(tensor.is_cuda for tensor in flat_rollout(model.rollout_buffer) if isinstance(tensor, torch.Tensor))
    assert not all(torch.equal(a, b) for a, b in zip(start, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_vtrace_of_an_older_rollout_is_that_of_the_cpu(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"learning_rate": 0.01, "advantage_estimator": "vtrace", "actors": LocalActors(1)}
    model = DG("MlpPolicy", env, n_steps=32, device="cuda", seed=0, **common)
    compute, ratios = DeviceRolloutBuffer.compute_vtrace, []

    def compare(
        buffer: DeviceRolloutBuffer, last_values: torch.Tensor, dones: np.ndarray, log_prob: torch.Tensor
    ) -> None:
        compute(buffer, last_values, dones, log_prob)
        host = copy.deepcopy(model.policy).cpu()
        there: Any = flat_rollout(buffer)
        samples = RolloutBufferSamples(*(tensor.cpu() for tensor in there))
        log_ratio = (evaluate_log_prob(host, samples, None) - samples.old_log_prob)[:, None]
        stored = (buffer.rewards.cpu(), buffer.values.cpu(), buffer.episode_starts.cpu())
        last = (last_values.cpu().flatten(), torch.as_tensor(dones, dtype=torch.float32))
        expected = vtrace(*stored, *last, model.gamma, model.gae_lambda, log_ratio)
        for ours, theirs in zip((buffer.advantages, buffer.returns), expected, strict=True):
            assert ours.is_cuda
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
        ratios.append(log_ratio.exp())

    monkeypatch.setattr(DeviceRolloutBuffer, "compute_vtrace", compare)
    model.learn(4 * 32)
    assert len(ratios) == 3
    assert all((ratio - 1).abs().max() > 1e-3 for ratio in ratios)  # the actor's policy was another


def test_the_gate_reads_nothing_back() -> None:
    delight = torch.randn(1000, device="cuda")
    objectives.price_for_rate(delight, 0.1, 1.0)  # the first calls of a process may synchronise on their own
    objectives.top_rows(delight, 0.1)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        objectives.gate(delight, 1.0, objectives.price_for_rate(delight, 0.1, 1.0))
        objectives.price_for_rate(delight, 0.1)
        objectives.top_rows(delight, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode(before)

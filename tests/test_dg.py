"""DG: the loop with the delightful weight."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from envs import AnySpaces
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from sb3_delight import DG, KondoDG, PolicyGradient, objectives
from sb3_delight.buffers import flat_rollout

INFINITY = float("inf")


def train_once(cls: type[PolicyGradient], env: str = "CartPole-v1", **kwargs: Any) -> list[torch.Tensor]:
    """The gradients' footprint: parameters after one SGD step, from equal parameters and on equal rollouts."""
    sgd = {"optimizer_class": torch.optim.SGD}
    defaults = {
        "n_steps": 64,
        "max_grad_norm": 1e9,
        "vf_coef": 0.0,
        "learning_rate": 1.0,
        "advantage_scaling": "standardize",
    }
    model = cls("MlpPolicy", env, seed=2, device="cpu", policy_kwargs=sgd, **{**defaults, **kwargs})
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(64)
    return [parameter.detach() - old for parameter, old in zip(model.policy.parameters(), before, strict=True)]


def largest(steps: list[torch.Tensor]) -> float:
    return max(step.abs().max().item() for step in steps)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_infinite_temperature_is_half_the_policy_gradient(env: str) -> None:
    half, whole = train_once(DG, env, temperature=INFINITY), train_once(PolicyGradient, env)
    assert largest(whole) > 1e-4
    for one, other in zip(half, whole, strict=True):
        torch.testing.assert_close(2 * one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_zero_temperature_is_the_kondo_gate_at_price_zero(env: str) -> None:
    hard, kondo = train_once(DG, env, temperature=0), train_once(KondoDG, env, price=0)
    assert largest(hard) > 1e-4
    for one, other in zip(hard, kondo, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert largest([a - b for a, b in zip(hard, train_once(PolicyGradient, env), strict=True)]) > 1e-4


def test_the_step_is_that_of_the_equation() -> None:
    """The loop against the formula, written out on the same rollout."""
    model = DG(
        "MlpPolicy", "Pendulum-v1", seed=0, device="cpu", n_steps=32, vf_coef=0.0, max_grad_norm=1e9,
        learning_rate=1.0, temperature=2.0, policy_kwargs={"optimizer_class": torch.optim.SGD},
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(32)
    after = [parameter.detach().clone() for parameter in model.policy.parameters()]
    for parameter, old in zip(model.policy.parameters(), before, strict=True):
        parameter.data.copy_(old)
    buffer: Any = model.rollout_buffer
    _, log_prob, _ = model.policy.evaluate_actions(buffer.observations[:, 0], buffer.actions[:, 0])
    advantage = buffer.advantages[:, 0] / buffer.advantages.square().mean().sqrt()
    weight = torch.sigmoid(advantage * (-log_prob.detach()).clamp(-10, 10) / 2.0)
    loss = -(weight * advantage * log_prob).mean()
    gradients = torch.autograd.grad(loss, list(model.policy.parameters()), allow_unused=True)
    for old, new, gradient in zip(before, after, gradients, strict=True):
        expected = old if gradient is None else old - gradient
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_surprisal_is_that_of_the_policy_which_the_gradient_step_trains(clip_range: float | None) -> None:
    """Not of the one that acted, from which it differs after the first step on a rollout."""
    now: list[float] = []
    then: list[float] = []

    class Looking(DG):
        def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
            with torch.no_grad():
                _, current, _ = self.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
            now.append((log_prob - current).abs().max().item())
            then.append((log_prob - batch.old_log_prob).abs().max().item())
            return super()._weight(log_prob, batch)

    Looking("MlpPolicy", "CartPole-v1", 1e-2, n_steps=32, batch_size=16, n_epochs=3, clip_range=clip_range,
        seed=0, device="cpu").learn(32)  # fmt: skip
    assert max(now) < 1e-6
    assert then[0] < 1e-6 < 1e-2 < then[-1]


def test_normalized_delight_does_not_depend_on_the_reward_scale() -> None:
    log_prob, advantages = -torch.rand(50) * 5, torch.randn(50)

    def weight(scale: float, normalize: bool) -> torch.Tensor:
        model = DG("MlpPolicy", "CartPole-v1", normalize_delight=normalize, temperature=1.0, n_steps=8, device="cpu")
        batch: Any = type("Batch", (), {"advantages": scale * advantages})
        return model._weight(log_prob, batch)

    torch.testing.assert_close(weight(1.0, True), weight(1000.0, True), rtol=1e-4, atol=1e-5)
    assert (weight(1.0, False) - weight(1000.0, False)).abs().max() > 0.1
    assert torch.equal(weight(1.0, True) > 0.5, advantages > 0)  # scaled, never centred


@pytest.mark.filterwarnings("ignore:mean surprisal starts")
def test_surprisal_is_clipped_inside_the_gate_only() -> None:
    model = DG("MlpPolicy", "Pendulum-v1", temperature=1.0, surprisal_clip=1.0, n_steps=8, device="cpu")
    log_prob, advantages = torch.tensor([-3.0, 5.0]), torch.tensor([1.0, 2.0])
    batch: Any = type("Batch", (), {"advantages": advantages})
    torch.testing.assert_close(model._weight(log_prob, batch), torch.sigmoid(torch.tensor([1.0, -2.0])))
    loss = objectives.policy_gradient_loss(log_prob, advantages, torch.ones(2))
    assert loss.item() == pytest.approx(-(1 * -3 + 2 * 5) / 2)


def test_surprisal_less_the_likeliest_actions_does_not_depend_on_the_units_of_actions() -> None:
    """Nor is the gate turned round where densities are above 1."""
    z = torch.tensor([[0.0], [1.0], [2.0], [5.0]])  # in standard deviations
    expected = (z.flatten().square() / 2).clamp(max=10)
    for log_std in (-3.0, 0.0, 3.0):
        model = DG(
            "MlpPolicy", "Pendulum-v1", surprisal_baseline="mode", temperature=2.0, n_steps=8, device="cpu",
            policy_kwargs={"log_std_init": log_std},
        )  # fmt: skip
        observations = torch.zeros(4, 3)
        with torch.no_grad():
            distribution = model.policy.get_distribution(observations)
            log_prob = distribution.log_prob(distribution.mode() + z * math.exp(log_std))
        for advantage in (1.0, -3.0):
            batch: Any = type("Batch", (), {"advantages": torch.full((4,), advantage)})
            torch.testing.assert_close(model._weight(log_prob, batch), torch.sigmoid(advantage * expected / 2.0))
    plain = DG("MlpPolicy", "Pendulum-v1", temperature=2.0, n_steps=8, device="cpu")
    assert (plain._weight(torch.full((4,), 2.0), batch) > 0.5).all()  # failures, weighed up


@pytest.mark.parametrize("temperature", ["lin_3.0", lambda progress: 3.0 * progress])
def test_the_weight_follows_the_schedule_of_the_temperature(temperature: Any) -> None:
    model = DG("MlpPolicy", "CartPole-v1", temperature=temperature, n_steps=8, device="cpu")
    log_prob, advantages = torch.tensor([-3.0, -1.0]), torch.tensor([1.0, -2.0])
    batch: Any = type("Batch", (), {"advantages": advantages})
    for progress in (1.0, 0.5, 0.0):
        model._current_progress_remaining = progress
        expected = torch.sigmoid(-log_prob * advantages / (3.0 * progress))
        torch.testing.assert_close(model._weight(log_prob, batch), expected)


@pytest.mark.parametrize("temperature", ["4", 4, 4.0])
def test_temperature_is_a_number_however_written(temperature: Any) -> None:
    model = DG("MlpPolicy", "CartPole-v1", temperature=temperature, n_steps=8, device="cpu")
    assert model._current(model.temperature) == 4.0


def test_the_surprisal_that_is_logged_is_that_of_the_policy_that_acted() -> None:
    model = DG("MlpPolicy", "Pendulum-v1", 0.1, surprisal_baseline="mode", n_epochs=10, clip_range=0.2, n_steps=64,
        seed=0, device="cpu").learn(64)  # fmt: skip
    model.set_logger(configure(None, []))
    before = model.policy.log_std.detach().clone()
    model.train()
    assert (model.policy.log_std - before).abs().max() > 0.01
    relative = flat_rollout(model.rollout_buffer).old_log_prob - objectives.gaussian_mode_log_prob(before)
    expected = objectives.surprisal(relative, 10.0)
    assert model.logger.name_to_value["train/surprisal_mean"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert model.last_update is not None
    advantages, surprisal, weight = model.last_update
    torch.testing.assert_close(surprisal, expected)
    torch.testing.assert_close(weight, torch.sigmoid(advantages * expected / 10))


@pytest.mark.parametrize("cls", [DG, KondoDG])
@pytest.mark.parametrize(
    ("dimensions", "arguments", "trouble"),
    [
        (1, {"policy_kwargs": {"log_std_init": -2}}, "-0.6 nats, below 0"),
        (8, {}, "11.4 nats, beyond surprisal_clip=10"),
        (7, {}, None),
        (8, {"surprisal_clip": 12.0}, None),
        (8, {"surprisal_clip": None}, None),
        (8, {"temperature": 0.0}, None),  # by the sign alone
        (1, {"temperature": 0.0, "policy_kwargs": {"log_std_init": -2}}, "-0.6 nats, below 0"),
        (8, {"surprisal_baseline": "mode"}, None),
        (1, {"surprisal_baseline": "mode", "policy_kwargs": {"log_std_init": -2}}, None),
        (8, {"use_sde": True}, None),
    ],
)
def test_a_gaussian_whose_surprisal_misleads_the_gate_is_a_warning(
    cls: type[PolicyGradient], dimensions: int, arguments: dict[str, Any], trouble: str | None
) -> None:
    model = cls("MlpPolicy", box_actions(dimensions), n_steps=8, device="cpu", **arguments)
    with pytest.warns(UserWarning, match=trouble) if trouble else nullcontext() as caught:
        model.learn(8)
    assert caught is None or caught[0].filename == __file__


def test_the_warning_is_of_the_weights_that_are_loaded_and_of_gates_that_judge_by_surprisal(tmp_path: Path) -> None:
    model = DG("MlpPolicy", box_actions(1), n_steps=8, device="cpu", policy_kwargs={"log_std_init": -2})
    model.policy.log_std.data.zero_()
    model.save(tmp_path / "wide")
    DG.load(tmp_path / "wide", env=box_actions(1), device="cpu").learn(8)
    for priority in ("random", "advantage"):
        KondoDG("MlpPolicy", box_actions(8), n_steps=8, device="cpu", gate_rate=0.5, priority=priority).learn(8)
    with pytest.warns(UserWarning, match="beyond surprisal_clip"):
        KondoDG("MlpPolicy", box_actions(8), n_steps=8, device="cpu", gate_rate=0.5).learn(8)


def box_actions(dimensions: int) -> AnySpaces:
    return AnySpaces(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (dimensions,), np.float32))

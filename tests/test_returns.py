"""Advantages against stable-baselines3's, and against their definitions."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import explained_variance as stock_explained_variance
from torch import Tensor
from torch.testing import assert_close

from sb3_delight.returns import explained_variance, gae, vtrace

Rollout = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def random_rollout(n_steps: int, n_envs: int, seed: int = 0) -> Rollout:
    """Rewards, values, episode starts, last values and last dones; about one step in four ends an episode."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn((2, n_steps, n_envs), generator=generator) * torch.tensor([10.0, 3.0])[:, None, None]
    starts = (torch.rand((n_steps, n_envs), generator=generator) < 0.25).float()
    last_dones = (torch.rand(n_envs, generator=generator) < 0.25).float()
    return rewards, values, starts, torch.randn(n_envs, generator=generator), last_dones


def every_pattern_of_dones(n_steps: int = 5) -> Rollout:
    """One environment for each way in which the steps of a rollout can end episodes."""
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_steps + 1))).T
    rewards, values, _, last_values, _ = random_rollout(n_steps, patterns.shape[1], seed=1)
    return rewards, values, patterns[:-1], last_values, patterns[-1]


ROLLOUTS = {
    "one step": random_rollout(1, 1),
    "one environment": random_rollout(40, 1),
    "many": random_rollout(33, 8),
    "every pattern of dones": every_pattern_of_dones(),
}
by_rollout = pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS.keys())
by_gamma = pytest.mark.parametrize("gamma", [0.0, 0.9, 0.997, 1.0])
by_lambda = pytest.mark.parametrize("gae_lambda", [0.0, 0.3, 0.95, 1.0])


@by_rollout
@by_gamma
@by_lambda
def test_gae_is_stable_baselines3s_bit_for_bit(rollout: Rollout, gamma: float, gae_lambda: float) -> None:
    rewards, values, starts, last_values, last_dones = rollout
    n_steps, n_envs = rewards.shape
    space = spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(n_steps, space, space, "cpu", gae_lambda, gamma, n_envs)
    nothing = np.zeros((n_envs, 1), np.float32)
    for reward, value, start in zip(rewards, values, starts, strict=True):
        buffer.add(nothing, nothing, reward.numpy(), start.numpy(), value, torch.zeros(n_envs))
    buffer.compute_returns_and_advantage(last_values, last_dones.numpy())
    advantages, returns = gae(*rollout, gamma, gae_lambda)
    assert torch.equal(advantages, torch.from_numpy(buffer.advantages))
    assert torch.equal(returns, torch.from_numpy(buffer.returns))


def one_step_errors(rollout: Rollout, gamma: float) -> tuple[Tensor, Tensor]:
    """In double precision: the one-step errors, and 1 where an episode continues past a step; both ``[T, N]``."""
    rewards, values, starts, last_values, last_dones = (part.double() for part in rollout)
    continues = 1 - torch.vstack([starts[1:], last_dones])
    return rewards + gamma * continues * torch.vstack([values[1:], last_values]) - values, continues


@by_rollout
@by_lambda
def test_vtrace_of_the_acting_policy_is_gae(rollout: Rollout, gae_lambda: float) -> None:
    for one, other in zip(
        vtrace(*rollout, 0.9, gae_lambda, torch.zeros_like(rollout[0])), gae(*rollout, 0.9, gae_lambda), strict=True
    ):
        assert torch.equal(one, other)


@by_rollout
@by_lambda
def test_vtrace_is_its_definition(rollout: Rollout, gae_lambda: float) -> None:
    """Sums over the future, each term with the product of the ratios up to it (Espeholt et al., 2018, eq. 1)."""
    rewards, values, starts, last_values, last_dones = rollout
    n_steps, n_envs = rewards.shape
    log_ratio = torch.randn((n_steps, n_envs), generator=torch.Generator().manual_seed(2))
    advantages, targets = vtrace(*rollout, 0.9, gae_lambda, log_ratio)
    rho = log_ratio.double().exp().clamp(max=1)
    next_values, ends = torch.cat([values[1:], last_values[None]]), torch.cat([starts[1:], last_dones[None]])
    for env in range(n_envs):
        for t in range(n_steps):
            correction, trace = 0.0, 1.0
            for s in range(t, n_steps):
                delta = rewards[s, env] + 0.9 * (1 - ends[s, env]) * next_values[s, env] - values[s, env]
                correction += trace * rho[s, env].item() * delta.item()
                trace *= rho[s, env].item() * 0.9 * gae_lambda
                if ends[s, env]:
                    break
            assert targets[t, env].item() == pytest.approx(values[t, env].item() + correction, rel=1e-4, abs=1e-4)
            assert advantages[t, env].item() * rho[t, env].item() == pytest.approx(correction, rel=1e-4, abs=1e-4)


def test_vtrace_learns_the_value_of_another_policy() -> None:
    """A bandit of two arms, rewards 0 and 1, acted on evenly: the target's mean is the value of the policy trained."""
    arms = torch.arange(10_000) % 2
    policy = torch.tensor([0.7, 0.3])
    nothing = torch.zeros(1, 10_000)
    value = torch.full_like(nothing, 0.5)
    for _ in range(200):  # targets move towards what they would be at the fixed point
        log_ratio = (policy[arms] / policy.max()).log()[None]  # below 1: nothing is truncated
        _, targets = vtrace(arms[None].float(), value, nothing, nothing[0], nothing[0] + 1, 0.9, 1.0, log_ratio)
        value = torch.full_like(value, targets.mean().item())
    assert value[0, 0].item() == pytest.approx(0.3, abs=1e-4)


def test_vtrace_names_a_wrong_shape() -> None:
    rollout = random_rollout(4, 2)
    with pytest.raises(ValueError, match=r"log_ratio must be \[T, N\] = \[4, 2\], got \(4,\)"):
        vtrace(*rollout, 0.9, 1.0, torch.zeros(4))
    with pytest.raises(ValueError, match="must share one shape"):
        vtrace(rollout[0][0], *rollout[1:], 0.9, 1.0, torch.zeros(4, 2))


@by_rollout
@by_gamma
@by_lambda
def test_gae_is_the_discounted_sum_of_one_step_errors(rollout: Rollout, gamma: float, gae_lambda: float) -> None:
    errors, continues = one_step_errors(rollout, gamma)
    expected = torch.zeros_like(errors)
    for start in range(len(errors)):
        for step in range(start, len(errors)):
            alive = continues[start:step].prod(dim=0)
            expected[start] += (gamma * gae_lambda) ** (step - start) * alive * errors[step]
    advantages, returns = gae(*rollout, gamma, gae_lambda)
    assert_close(advantages.double(), expected, rtol=1e-5, atol=1e-4)
    assert_close(returns, advantages + rollout[1], rtol=0, atol=0)


@by_rollout
@by_gamma
def test_lambda_0_is_the_one_step_error(rollout: Rollout, gamma: float) -> None:
    advantages, _ = gae(*rollout, gamma, 0.0)
    assert_close(advantages.double(), one_step_errors(rollout, gamma)[0], rtol=1e-5, atol=1e-5)


@by_rollout
@by_gamma
def test_lambda_1_returns_are_the_discounted_rewards_of_the_episode(rollout: Rollout, gamma: float) -> None:
    rewards, _, starts, last_values, last_dones = rollout
    expected = torch.zeros_like(rewards)
    for start, env in np.ndindex(*rewards.shape):
        ended = False
        for step in range(start, len(rewards)):
            expected[start, env] += gamma ** (step - start) * rewards[step, env]
            ended = bool((last_dones if step + 1 == len(rewards) else starts[step + 1])[env])
            if ended:
                break
        if not ended:
            expected[start, env] += gamma ** (len(rewards) - start) * last_values[env]
    assert_close(gae(*rollout, gamma, 1.0)[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [gae, vtrace])
def test_ends_of_episodes_may_be_booleans(cut: Callable[..., Any]) -> None:
    rewards, values, starts, last_values, last_dones = random_rollout(9, 3)
    rest = (0.9, 0.8, torch.zeros_like(rewards)) if cut is vtrace else (0.9, 0.8)
    expected = cut(rewards, values, starts, last_values, last_dones, *rest)
    for one, other in zip(
        cut(rewards, values, starts.bool(), last_values, last_dones.bool(), *rest), expected, strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("estimate", [gae, vtrace])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_round_the_discount(estimate: Callable[..., Any], dtype: torch.dtype) -> None:
    nothing = torch.zeros(1000, 1, dtype=dtype)
    rewards = nothing.clone()
    rewards[-1] = 1
    rest = (0.999, 1.0, nothing) if estimate is vtrace else (0.999, 1.0)
    for part in estimate(rewards, nothing, nothing, nothing[0], nothing[0] + 1, *rest):
        assert part[0].item() == pytest.approx(0.999**999, rel=1e-4)


@pytest.mark.parametrize("estimate", [gae, vtrace])
def test_estimates_carry_no_gradient(estimate: Callable[..., Any]) -> None:
    rollout = random_rollout(4, 2)
    rollout[1].requires_grad_()
    rest = (0.9, 0.9, torch.zeros(4, 2, requires_grad=True)) if estimate is vtrace else (0.9, 0.9)
    assert not any(part.requires_grad for part in estimate(*rollout, *rest))


@pytest.mark.parametrize(
    ("argument", "shape", "named"),
    [
        (0, (4,), "rewards"),
        (0, (3, 2), "rewards"),
        (1, (4, 1), "values"),
        (2, (2, 4), "episode_starts"),
        (3, (1,), "last_values"),
        (3, (2, 1), "last_values"),
        (4, (3,), "last_dones"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(argument: int, shape: tuple[int, ...], named: str) -> None:
    arguments = list(random_rollout(4, 2))
    arguments[argument] = torch.zeros(shape)
    rewards, values, starts, last_values, last_dones = arguments
    with pytest.raises(ValueError, match=named) as error:
        gae(rewards, values, starts, last_values, last_dones, 0.9, 0.9)
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("seed", range(5))
def test_explained_variance_is_stable_baselines3s(seed: int) -> None:
    values, returns = torch.randn((2, 50), generator=torch.Generator().manual_seed(seed))
    returns = returns + seed * values
    expected = stock_explained_variance(values.numpy(), returns.numpy())
    assert explained_variance(values, returns).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_explained_variance_of_perfect_values_is_1_and_of_constant_ones_0() -> None:
    returns = torch.arange(10.0)
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full_like(returns, 3.0), returns).item() == 0.0


@pytest.mark.parametrize("shapes", [((4,), (4, 1)), ((0,), (0,))])
def test_explained_variance_refuses_what_would_broadcast_and_nothing(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="values and returns must share one shape, not empty"):
        explained_variance(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("constant", [0.0, 2.0, -0.1])
@pytest.mark.parametrize("n_rows", [1, 10, 1000])
def test_explained_variance_of_constant_returns_is_nan(constant: float, n_rows: int) -> None:
    returns = torch.full((n_rows,), constant)
    assert explained_variance(torch.randn(n_rows), returns).isnan()

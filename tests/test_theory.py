"""The papers' propositions with their numbers, computed with the package's own equations.

Nearly everything is an exact expectation: over the arms, by enumeration; over a normal reward, by quadrature.
A success has advantage 1 - b and a failure -b, for a baseline b; the right arm is arm 0.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sb3_delight.objectives import (
    delight,
    dg_weight,
    gate,
    pg_weight,
    policy_gradient_loss,
    priority,
    surprisal,
    top_rows,
)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def one_right_arm(p: float, n_arms: int) -> Tensor:
    """Logits of a policy that picks the right arm with probability p and the others evenly."""
    return torch.tensor([p] + [(1 - p) / (n_arms - 1)] * (n_arms - 1)).log()


def success_or_failure(n_arms: int, baseline: float = 0.5) -> Tensor:
    return (torch.arange(n_arms) == 0).double() - baseline


def gradient(value: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(value, leaf)
    return result


def arm_gradients(logits: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """Row a is the step that the loss takes on the logits when arm a is drawn, ``[K, K]``."""
    rows = logits.expand(len(logits), -1).clone().requires_grad_()
    loss = policy_gradient_loss(rows.log_softmax(dim=1).diagonal(), advantage, weight, batch_size=1)
    return gradient(-loss, rows)


def expected_step(logits: Tensor, advantage: Tensor, weight: Tensor, mass: Tensor) -> Tensor:
    """The exact step when arm a has advantage and weight ``[..., K]`` with probability mass ``[..., K]``."""
    logits = logits.clone().requires_grad_()
    log_prob = logits.log_softmax(dim=-1).expand(mass.shape)
    return gradient(-policy_gradient_loss(log_prob, mass * advantage, weight, batch_size=1), logits)


def across(gradients: Tensor, direction: Tensor) -> Tensor:
    """Squared length of the part perpendicular to a direction, ``[N, K] -> [N]``."""
    unit = direction / direction.norm()
    perpendicular: Tensor = gradients - (gradients @ unit)[:, None] * unit
    return perpendicular.square().sum(dim=1)


def misalignment(gradients: Tensor, direction: Tensor) -> Tensor:
    """1 - cosine, without the cancellation of computing it so, ``[..., K]``."""
    normalize = torch.nn.functional.normalize
    return (normalize(gradients, dim=-1) - normalize(direction, dim=-1)).square().sum(dim=-1) / 2


# Delightful Policy Gradient, Proposition 1: one context


@pytest.mark.parametrize(
    ("p", "baseline", "stated"), [(0.5, 0.5, 0.0414), (0.9, 0.5, 0.0128), (0.3, 0.2, None), (0.3, 0.8, None)]
)
def test_dg_keeps_the_expected_direction_and_shrinks_the_noise_across_it(
    p: float, baseline: float, stated: float | None
) -> None:
    logits, advantage = one_right_arm(p, 100), success_or_failure(100, baseline)
    pi = logits.exp()
    pg = arm_gradients(logits, advantage, pg_weight(logits, advantage))
    dg = arm_gradients(logits, advantage, dg_weight(logits, advantage))

    parameters = logits.clone().requires_grad_()
    uphill = gradient(parameters.softmax(dim=0)[0], parameters)
    assert misalignment(pi @ dg, uphill) < 1e-20

    q = (1 - p) / 99
    success = 1 / (1 + math.exp((1 - baseline) * math.log(p)))
    failure = 1 / (1 + math.exp(-baseline * math.log(q)))
    noise_pg, noise_dg = pi @ across(pg, uphill), pi @ across(dg, uphill)
    assert_close(noise_dg / noise_pg, torch.tensor(failure**2))

    # With small noise 1 - cos is half the squared ratio of the noise across to the signal along.
    ratio = noise_dg / (pi @ dg).square().sum() / (noise_pg / (pi @ pg).square().sum())
    assert_close(ratio, torch.tensor((failure / ((1 - baseline) * success + baseline * failure)) ** 2))
    if stated is not None:
        assert ratio == pytest.approx(stated, abs=5e-5)
        # The same with sampled batches, large enough for the noise to be small.
        counts = torch.from_numpy(np.random.default_rng(0).multinomial(100_000, pi, size=200)).double()
        sampled = misalignment(counts @ dg, uphill).mean() / misalignment(counts @ pg, uphill).mean()
        assert sampled == pytest.approx(stated, rel=0.02)


# Proposition 2: many contexts, one step


def misalignment_with_cross_entropy(logits: Tensor, temperature: float | None) -> Tensor:
    """Of the exact expected step over all contexts, ``[..., N, K]``; temperature ``None`` is the policy gradient."""
    log_pi = logits.log_softmax(dim=-1)
    reward = success_or_failure(logits.shape[-1], baseline=0.0).expand_as(logits)
    weight = pg_weight(log_pi, reward) if temperature is None else dg_weight(log_pi, reward, temperature)
    step = expected_step(logits, reward, weight, mass=log_pi.exp())
    cross_entropy = expected_step(logits, reward, pg_weight(log_pi, reward), mass=torch.ones_like(log_pi))
    return misalignment(step.flatten(-2), cross_entropy.flatten(-2))


@pytest.mark.parametrize(("temperature", "stated"), [(None, 0.264), (1.0, 0.220), (2.0, 0.217)])
def test_dg_is_closer_to_cross_entropy_than_the_policy_gradient(temperature: float | None, stated: float) -> None:
    # Averaged over 400 draws of 100 contexts with 10 arms and N(0, 1) logits; one standard error is about .001.
    logits = torch.randn(400, 100, 10, generator=torch.Generator().manual_seed(0))
    assert misalignment_with_cross_entropy(logits, temperature).mean() == pytest.approx(stated, abs=0.003)


@pytest.mark.parametrize("temperature", [0.51, 1.0, 2.0, 10.0])
def test_dg_above_temperature_one_half_is_closer_to_cross_entropy_whatever_the_policy(temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 3, 5, generator=rng)
    logits[..., 0] += 8 * torch.rand(2000, 3, generator=rng)
    assert (misalignment_with_cross_entropy(logits, temperature) < misalignment_with_cross_entropy(logits, None)).all()


def test_dg_at_a_low_temperature_can_be_further_from_cross_entropy() -> None:
    # The gate falls from 1 to 1/2 as p reaches 1, so DG then all but halves the better-solved context.
    logits = torch.stack([one_right_arm(0.9, 10), one_right_arm(0.999, 10)])
    assert misalignment_with_cross_entropy(logits, 0.1) > misalignment_with_cross_entropy(logits, None)


def test_dg_favours_better_solved_contexts_everywhere_exactly_from_temperature_one_half() -> None:
    p = torch.linspace(0.001, 1, 1000)

    def coefficient(temperature: float) -> Tensor:
        return p * dg_weight(p.log(), torch.ones_like(p), temperature)

    assert_close(coefficient(1.0), p / (1 + p))
    assert all((coefficient(temperature).diff() > 0).all() for temperature in (0.5, 0.6, 1.0, 2.0))
    assert all((coefficient(temperature).diff() < 0).any() for temperature in (0.1, 0.3, 0.49))


# Does This Gradient Spark Joy?


def test_kondo_at_price_zero_has_no_noise_across_the_gradient() -> None:
    logits, advantage = one_right_arm(0.2, 10), success_or_failure(10)
    arms = torch.multinomial(logits.exp(), 200 * 8, replacement=True, generator=torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(arms.reshape(200, 8), 10).sum(dim=1).double()
    counts = counts[counts[:, 0] > 0]
    pg = arm_gradients(logits, advantage, pg_weight(logits, advantage))
    kondo = arm_gradients(logits, advantage, gate(delight(logits, advantage), temperature=0.0))
    direction = logits.exp() @ pg
    assert len(counts) > 100
    assert across(kondo, direction).max() < 1e-30
    assert misalignment(counts @ kondo, direction).max() < 1e-15
    assert misalignment(counts @ pg, direction).max() > 0.1


def test_kondo_on_a_batch_of_failures_takes_no_step() -> None:
    logits = one_right_arm(0.2, 10).requires_grad_()
    log_prob = logits.log_softmax(dim=0)[1:].repeat(4)
    advantage = torch.full_like(log_prob, -0.5)
    kept = gate(delight(log_prob, advantage), temperature=0.0) > 0
    loss = policy_gradient_loss(log_prob[kept], advantage[kept], torch.ones(0), batch_size=len(log_prob))
    assert not kept.any()
    assert torch.equal(gradient(loss, logits), torch.zeros(10))


@pytest.mark.parametrize(("p", "stated"), [(0.5, 0.687), (0.9, 0.815)])
def test_an_additive_score_misranks_below_its_threshold(p: float, stated: float) -> None:
    log_prob, advantage = one_right_arm(p, 10), success_or_failure(10)

    def best_arm(alpha: float) -> int:
        return int(top_rows(priority("additive", log_prob, advantage, additive_alpha=alpha), rate=0.1))

    odds = math.log(p * 9 / (1 - p))
    assert odds / (1 + odds) == pytest.approx(stated, abs=5e-4)
    assert best_arm(odds / (1 + odds) - 1e-6) != 0
    assert best_arm(odds / (1 + odds) + 1e-6) == 0


@pytest.mark.parametrize("baseline", [0.01, 0.5, 0.99])
def test_delight_never_misranks(baseline: float) -> None:
    log_prob = (4 * torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))).log_softmax(dim=1)
    chi = delight(log_prob, success_or_failure(10, baseline)[None])
    assert (chi[:, 0] > chi[:, 1:].amax(dim=1)).all()


@pytest.mark.parametrize(("noise", "stated"), [(0.2, 0.013), (1.0, 0.002), (2.0, -0.029), (5.0, -0.134)])
def test_dg_and_kondo_are_drawn_to_a_noisy_worse_arm(noise: float, stated: float) -> None:
    # Two arms with p = (.9, .1); rewards 0 and N(-1, noise^2), so Delta = 1; the baseline is the policy's value, -.1.
    # Drift: expected step on the good arm's logit. The sum over the noise is exact to 1e-9; coarser quadrature
    # (40 Gauss-Hermite nodes) gives the stated -.134 for noise 5, the exact figure is -.1353.
    logits = torch.tensor([0.9, 0.1]).log()
    normal = torch.linspace(-10, 10, 20_001)
    density = torch.exp(-normal.square() / 2)
    reward = torch.stack([torch.zeros_like(normal), noise * normal - 1], dim=1)
    advantage, log_pi = reward + 0.1, logits.expand_as(reward)
    mass = logits.exp() * (density / density.sum())[:, None]

    def drift(weight: Tensor) -> float:
        return float(expected_step(logits, advantage, weight, mass)[0])

    assert drift(pg_weight(log_pi, advantage)) == pytest.approx(0.09)
    assert drift(dg_weight(log_pi, advantage)) == pytest.approx(stated, abs=0.0015)
    if noise >= 2:
        assert drift(gate(delight(log_pi, advantage), temperature=0.0)) < -0.029


# Delightful Distributed Policy Gradient


def shrink_and_overlap(learner: Tensor, behaviour: Tensor) -> tuple[float, float]:
    """By how much DG shrinks the failures' second moment across the gradient, and the overlap E_mu[pi | failure]."""
    advantage, logits = success_or_failure(len(learner)), learner.log()
    pg = arm_gradients(logits, advantage, pg_weight(logits, advantage))
    dg = arm_gradients(logits, advantage, dg_weight(logits, advantage))
    failures = behaviour[1:] / behaviour[1:].sum()
    moments = [failures @ across(gradients[1:], learner @ pg) for gradients in (dg, pg)]
    return float(moments[0] / moments[1]), float(failures @ learner[1:])


def test_failures_shrink_at_least_by_the_overlap_with_the_stale_policy() -> None:
    # The stated figures are of one draw each: learner's and behaviour's wrong arms are flat Dirichlet, in this order.
    rng = np.random.default_rng(0)
    figures = {}
    for error in (0.5, 0.1, 0.01):
        wrong, stale = (torch.from_numpy(rng.dirichlet(np.ones(9))) for _ in range(2))
        learner = torch.cat([torch.tensor([1 - error]), error * wrong])
        figures[error] = shrink_and_overlap(learner, torch.cat([torch.tensor([0.1]), 0.9 * stale]))
    assert figures[0.5] == pytest.approx((0.0289, 0.0474), abs=5e-5)
    assert figures[0.01] == pytest.approx((0.0010, 0.0012), abs=5e-5)


def test_the_overlap_bound_holds_whatever_the_two_policies() -> None:
    rng = np.random.default_rng(0)
    for concentration in [0.1, 1.0, 10.0] * 30:
        learner, behaviour = torch.from_numpy(rng.dirichlet(np.full(10, concentration), size=2)).clamp(min=1e-12)
        shrink, overlap = shrink_and_overlap(learner / learner.sum(), behaviour / behaviour.sum())
        assert shrink <= overlap


# Faulty actors


@pytest.mark.parametrize("temperature", [1.0, 10.0, 100.0])
def test_noise_turns_the_mute_on_a_surprising_failure_into_a_push_towards_it(temperature: float) -> None:
    # An action of surprisal l whose advantage is N(-d, s^2). A bug pulls it however rare it is under the policy. The
    # policy gradient pushes it down by d on average, DG by E[w A]: little where the failure is certain, and the other
    # way once (d^2 + s^2) l > 2 d temperature (examples/reproduce/bandit.py --figure bug).
    normal = torch.linspace(-8, 8, 4001)
    density = torch.exp(-normal.square() / 2)

    def push(worse_by: float, noise: float, nats: float = 3.0) -> float:
        advantage = noise * normal - worse_by
        weight = dg_weight(torch.full_like(normal, -nats), advantage, temperature)
        return float((weight * advantage * density).sum() / density.sum())

    assert -0.5 < push(1.0, noise=0.0) < 0
    assert push(0.1, noise=3.0) > 0
    if temperature >= 10:  # the first-order boundary, s^2 = 2 d temperature / l - d^2
        boundary = math.sqrt(2 * 0.05 * temperature / 3 - 0.05**2)
        assert push(0.05, noise=0.8 * boundary) < 0 < push(0.05, noise=1.2 * boundary)


@pytest.mark.parametrize("offset", [-0.9, 0.9])
def test_a_critic_that_lags_drives_the_policy_off_a_foreign_actor_or_onto_it(offset: float) -> None:
    # All advantages are the critic's offset: nothing is to be learned. On fresh data nothing is; by another actor's
    # rows, the policy gradient moves by offset x (behaviour - policy). Centred advantages are 0; successes alone
    # (temperature 0) leave nothing of a negative offset, and keep a positive one.
    rng = np.random.default_rng(0)
    learner, behaviour = torch.from_numpy(rng.dirichlet(np.ones(5), size=2))
    logits, advantage = learner.log(), torch.full((5,), offset)
    weight = pg_weight(logits, advantage)
    assert expected_step(logits, advantage, weight, mass=learner).norm() < 1e-15
    step = expected_step(logits, advantage, weight, mass=behaviour)
    assert_close(step, offset * (behaviour - learner))
    successes = expected_step(logits, advantage, dg_weight(logits, advantage, temperature=0.0), mass=behaviour)
    assert_close(successes, max(offset, 0.0) * (behaviour - learner))


# DG as a policy gradient with an entropy bonus


def test_dg_is_half_the_policy_gradient_plus_a_delight_term() -> None:
    log_prob = torch.linspace(-3, -0.1, 50).expand(4, 50)
    advantage = torch.tensor([[-2.0], [-0.5], [0.5], [2.0]])

    def remainder(temperature: float) -> Tensor:
        expansion = advantage / 2 + advantage.square() * surprisal(log_prob) / (4 * temperature)
        return dg_weight(log_prob, advantage, temperature) * advantage - expansion

    # Of third order in 1 / temperature: there is no second-order term.
    assert_close(remainder(100.0) / remainder(200.0), torch.full((4, 50), 8.0), rtol=0.01, atol=0.0)


def entropy_gradient(logits: Tensor) -> Tensor:
    parameters = logits.clone().requires_grad_()
    return gradient(torch.special.entr(parameters.softmax(dim=0)).sum(), parameters)


def test_surprisal_as_a_reward_is_an_entropy_bonus() -> None:
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    log_pi = logits.log_softmax(dim=0)
    bonus = expected_step(logits, surprisal(log_pi), torch.ones(10), mass=log_pi.exp())
    assert_close(bonus, entropy_gradient(logits))


def test_advantages_that_tell_nothing_leave_dg_an_entropy_bonus_of_their_variance() -> None:
    # Advantage +-2 by a fair coin, whatever the arm: PG's expected step is zero, DG's is Var(A) / (4 eta) grad H.
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    log_pi = logits.log_softmax(dim=0).expand(2, -1)
    advantage = torch.tensor([[2.0], [-2.0]]).expand(2, 10)
    mass = log_pi.exp() / 2
    step = expected_step(logits, advantage, dg_weight(log_pi, advantage, temperature=1000.0), mass)
    assert expected_step(logits, advantage, pg_weight(log_pi, advantage), mass).norm() < 1e-15
    assert_close(step, 4 / 4000 * entropy_gradient(logits), rtol=1e-4, atol=0.0)
    # At temperature 0 every success weighs the same, however surprising: no bonus is left.
    assert expected_step(logits, advantage, dg_weight(log_pi, advantage, temperature=0.0), mass).norm() < 1e-15

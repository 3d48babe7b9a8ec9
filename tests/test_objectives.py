"""Every equation against an independent statement of it: textbook surrogates, exact enumeration, exact arithmetic."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sb3_delight.objectives import (
    PRIORITIES,
    asympo_weight,
    delight,
    dg_weight,
    gate,
    gaussian_mode_log_prob,
    importance_weight,
    pg_weight,
    policy_gradient_loss,
    ppo_clip_weight,
    price_for_rate,
    priority,
    rows_at_rate,
    scale_by_rms,
    scaled_weight,
    sequence_mean,
    simple_po_weight,
    standardize,
    surprisal,
    top_rows,
)

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

# Weight, and the objective it must have the gradient of, both of (log_prob, advantage, behaviour_log_prob).
METHODS: dict[str, tuple[Function, Function]] = {
    "pg": (
        lambda lp, adv, mu: pg_weight(lp, adv),
        lambda lp, adv, mu: adv * lp,
    ),
    "dg": (
        lambda lp, adv, mu: dg_weight(lp, adv, temperature=1.5),
        lambda lp, adv, mu: (1 / (1 + torch.exp(adv * lp / 1.5))).detach() * adv * lp,
    ),
    "dg with clipped surprisal": (
        lambda lp, adv, mu: dg_weight(lp, adv, temperature=0.5, clip=1.0),
        lambda lp, adv, mu: (1 / (1 + torch.exp(adv * lp.clamp(-1, 1) / 0.5))).detach() * adv * lp,
    ),
    "importance-weighted": (
        importance_weight,
        lambda lp, adv, mu: adv * (lp - mu).exp(),
    ),
    "truncated importance-weighted": (
        lambda lp, adv, mu: importance_weight(lp, adv, mu, clip=1.2),
        lambda lp, adv, mu: adv * (lp - mu).exp().clamp(max=1.2).detach() * lp,
    ),
    "ppo": (
        lambda lp, adv, mu: ppo_clip_weight(lp, adv, mu, clip_range=0.3),
        lambda lp, adv, mu: torch.minimum((lp - mu).exp() * adv, (lp - mu).exp().clamp(0.7, 1.3) * adv),
    ),
    "simple po": (
        lambda lp, adv, mu: simple_po_weight(lp, adv, mu, clip_range=0.3),
        lambda lp, adv, mu: (lp - mu).exp() * adv - adv.abs() * ((lp - mu).exp() - 1) ** 2 / (2 * 0.3),
    ),
    "scaled po": (
        lambda lp, adv, mu: scaled_weight(lp, adv, negative_scale=0.2),
        lambda lp, adv, mu: (adv.relu() - 0.2 * (-adv).relu()) * lp,
    ),
}
methods = pytest.mark.parametrize(("weight", "surrogate"), METHODS.values(), ids=METHODS)


def batch(shape: tuple[int, ...], advantage_shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (some positive, as densities are), advantages (some zero) and stale log-probabilities."""
    rng = torch.Generator().manual_seed(0)
    log_prob = 0.5 - 2 * torch.rand(shape, generator=rng, dtype=torch.float64)
    advantage = torch.randn(shape if advantage_shape is None else advantage_shape, generator=rng, dtype=torch.float64)
    advantage = torch.where(advantage.abs() < 0.1, 0, advantage)
    behaviour = log_prob + 0.5 * torch.randn(shape, generator=rng, dtype=torch.float64)
    return log_prob.requires_grad_(), advantage, behaviour


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, leaf)
    return result


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, rtol=1e-10, atol=1e-12)


# One weight per method


@methods
@pytest.mark.parametrize(
    ("shape", "advantage_shape"), [((200,), (200,)), ((20, 10), (20, 1)), ((20, 10), (20, 10)), ((200,), ())], ids=str
)
def test_weight_has_the_gradient_of_the_textbook_surrogate(
    weight: Function, surrogate: Function, shape: tuple[int, ...], advantage_shape: tuple[int, ...]
) -> None:
    log_prob, advantage, behaviour = batch(shape, advantage_shape)
    loss = policy_gradient_loss(log_prob, advantage, weight(log_prob, advantage, behaviour))
    assert_same(gradient(loss, log_prob), gradient(-surrogate(log_prob, advantage, behaviour).mean(), log_prob))


@methods
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_weight_is_elementwise_for_any_shape(weight: Function, surrogate: Function, shape: tuple[int, ...]) -> None:
    log_prob, advantage, behaviour = batch(shape)
    rows = zip(log_prob.flatten(), advantage.flatten(), behaviour.flatten(), strict=True)
    expected = torch.stack([weight(*row) for row in rows]).reshape(shape)
    assert_same(weight(log_prob, advantage, behaviour), expected)


@methods
@pytest.mark.parametrize("garbage", [-math.inf, math.nan])
def test_padding_never_leaks(weight: Function, surrogate: Function, garbage: float) -> None:
    log_prob, advantage, behaviour = batch((4, 6), (4, 1))
    mask = torch.arange(6) < torch.tensor([[6], [1], [0], [3]])
    padded = log_prob.detach().masked_fill(~mask, garbage).requires_grad_()
    loss = policy_gradient_loss(padded, advantage, weight(padded, advantage, behaviour), mask=mask)
    expected = -surrogate(log_prob, advantage.expand(4, 6), behaviour)[mask].mean()
    assert_same(gradient(loss, padded), gradient(expected, log_prob))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("sign", "ratio", "expected"),
    [(1, 0.5, 0.5), (1, 1.1, 1.1), (1, 1.5, 0.0), (-1, 0.5, 0.0), (-1, 0.9, 0.9), (-1, 1.5, 1.5)],
)
def test_ppo_stops_only_in_the_direction_of_the_advantage(sign: float, ratio: float, expected: float) -> None:
    weight = ppo_clip_weight(torch.tensor(ratio).log(), torch.tensor(sign), torch.tensor(0.0))
    assert_close(weight, torch.tensor(expected))


def test_dg_at_infinite_temperature_is_half_the_policy_gradient() -> None:
    log_prob, advantage, _ = batch((50,))
    dg = policy_gradient_loss(log_prob, advantage, dg_weight(log_prob, advantage, math.inf))
    pg = policy_gradient_loss(log_prob, advantage, pg_weight(log_prob, advantage))
    assert_same(gradient(dg, log_prob), gradient(pg, log_prob) / 2)


def test_dg_at_temperature_zero_is_the_hard_kondo_gate_at_price_zero() -> None:
    log_prob, advantage, _ = batch((50,))
    dg = policy_gradient_loss(log_prob, advantage, dg_weight(log_prob, advantage, 0.0))
    rows = gate(delight(log_prob, advantage), temperature=0.0, price=0.0).nonzero().squeeze(1)
    kept, worth = log_prob[rows], advantage[rows]
    kondo = policy_gradient_loss(kept, worth, pg_weight(kept, worth), batch_size=50)
    assert 0 < len(rows) < 50
    assert_same(gradient(kondo, log_prob), gradient(dg, log_prob))


def test_scaled_po_at_one_is_the_policy_gradient_and_at_zero_learns_from_successes_only() -> None:
    log_prob, advantage, _ = batch((50,))
    assert_same(scaled_weight(log_prob, advantage, 1.0), pg_weight(log_prob, advantage))
    assert_same(scaled_weight(log_prob, advantage, 0.0), (advantage >= 0).double())


def test_settings_left_out_have_their_usual_values() -> None:
    log_prob, advantage, behaviour = batch((50,))
    assert_same(dg_weight(log_prob, advantage), dg_weight(log_prob, advantage, temperature=1.0, clip=None))
    assert_same(scaled_weight(log_prob, advantage), scaled_weight(log_prob, advantage, negative_scale=0.2))
    for weight in (ppo_clip_weight, simple_po_weight):
        expected = weight(log_prob, advantage, behaviour, clip_range=0.2)
        assert_same(weight(log_prob, advantage, behaviour), expected)
    certain, success = torch.zeros(1, 4), torch.ones(1, 1)
    expected = asympo_weight(certain, success, p_low=0.01, p_high=None, surprisal_floor=1e-3)
    assert_same(asympo_weight(certain, success, p_high=None), expected)


# Kondo's coin


def test_the_average_over_every_coin_toss_is_dg_exactly() -> None:
    log_prob, advantage, _ = batch((6,))
    weight = dg_weight(log_prob, advantage)
    mean = torch.zeros(6, dtype=torch.float64)
    for coins in itertools.product([False, True], repeat=6):  # the toss that keeps no row is one of them
        kept = torch.tensor(coins)
        rows = policy_gradient_loss(
            log_prob[kept], advantage[kept], pg_weight(log_prob[kept], advantage[kept]), batch_size=6
        )
        mean += torch.where(kept, weight, 1 - weight).prod() * gradient(rows, log_prob)
    assert_same(mean, gradient(policy_gradient_loss(log_prob, advantage, weight), log_prob))


def test_sampled_coins_estimate_dg_and_only_if_divided_by_the_whole_batch() -> None:
    n_tosses, n_rows = 20_000, 8
    log_prob, advantage, _ = batch((n_rows,))
    weight = dg_weight(log_prob, advantage)
    exact = gradient(policy_gradient_loss(log_prob, advantage, weight), log_prob)
    coins = torch.bernoulli(weight.expand(n_tosses, -1), generator=torch.Generator().manual_seed(0))
    rows = log_prob.detach().expand(n_tosses, -1).clone().requires_grad_()
    estimates = gradient(policy_gradient_loss(rows, advantage.expand_as(rows), coins, batch_size=n_rows), rows)

    def standard_errors_off(estimates: Tensor) -> float:
        error = estimates.sum(dim=1).std() / math.sqrt(n_tosses)
        return float((estimates.sum(dim=1).mean() - exact.sum()).abs() / error)

    assert standard_errors_off(estimates) < 3
    assert standard_errors_off(estimates * n_rows / coins.sum(dim=1, keepdim=True).clamp(min=1)) > 10


# Sequences


def responses() -> tuple[Tensor, Tensor, Tensor]:
    """Five responses: full, behind a prompt, one token, none, interrupted; some tokens beyond either bound."""
    log_prob = torch.tensor(
        [
            [-0.5, -2.0, -0.001, -6.0, -1.0],
            [-1.0, -0.3, -7.0, -0.002, -0.4],
            [-6.0, -1.0, -1.0, -1.0, -1.0],
            [-1.0, -1.0, -1.0, -1.0, -1.0],
            [-0.005, -5.0, -9.0, -0.7, -0.001],
        ],
        dtype=torch.float64,
        requires_grad=True,
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1]])
    return log_prob, torch.tensor([[0.7], [-0.4], [-0.6], [0.1], [0.2]], dtype=torch.float64), mask.bool()


@pytest.mark.parametrize("garbage", [-math.inf, math.nan, -1.0])
@pytest.mark.parametrize("bounds", [(None, None), (0.01, 0.99)], ids=["plain", "stable"])
def test_asympo_has_the_gradient_of_the_mean_of_self_normalised_surprisals(
    bounds: tuple[float | None, float | None], garbage: float
) -> None:
    log_prob, advantage, mask = responses()
    low, high = bounds
    terms = []
    for tokens, worth, counts in zip(log_prob, advantage.squeeze(1), mask, strict=True):
        if counts.any():
            bound = (None, high and math.log(high)) if worth >= 0 else (low and math.log(low), None)
            s = -(tokens[counts].clamp(*bound) if low else tokens[counts]).mean()
            terms.append(worth * s / s.detach())
    expected = gradient(torch.stack(terms).sum() / len(mask), log_prob)

    padded = log_prob.detach().masked_fill(~mask, garbage).requires_grad_()
    weight = asympo_weight(padded, advantage, mask, *bounds)
    loss = policy_gradient_loss(padded, advantage, weight, batch_size=len(mask), mask=mask)
    assert_same(gradient(loss, padded), expected)
    assert loss.isfinite()
    assert_same(asympo_weight(padded, advantage.expand_as(padded), mask, *bounds), weight)


def test_asympo_stable_form_leaves_settled_tokens_alone_and_the_plain_form_does_not() -> None:
    log_prob, advantage, mask = responses()
    certain, hopeless = log_prob > math.log(0.99), log_prob < math.log(0.01)
    settled = mask & torch.where(advantage >= 0, certain, hopeless)
    assert settled.sum() == 5
    assert torch.equal(asympo_weight(log_prob, advantage, mask) == 0, settled | ~mask)
    assert torch.equal(asympo_weight(log_prob, advantage, mask, p_low=None) == 0, (settled & certain) | ~mask)
    assert torch.equal(asympo_weight(log_prob, advantage, mask, p_high=None) == 0, (settled & hopeless) | ~mask)
    assert torch.equal(asympo_weight(log_prob, advantage, mask, p_low=None, p_high=None) == 0, ~mask)


def test_asympo_floors_the_mean_surprisal_of_a_certain_response_whatever_its_length() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    weight = asympo_weight(torch.zeros(2, 4), torch.ones(2, 1), mask, surprisal_floor=0.01, p_low=None, p_high=None)
    assert_close(weight, torch.tensor([[25.0, 25.0, 25.0, 25.0], [50.0, 50.0, 0.0, 0.0]]))


@pytest.mark.parametrize("garbage", [-math.inf, math.nan])
def test_sequence_mean_counts_the_masked_tokens_only(garbage: float) -> None:
    values, _, mask = responses()
    values = values.detach()
    expected = [row[counts].sum() / max(1, int(counts.sum())) for row, counts in zip(values, mask, strict=True)]
    assert_same(sequence_mean(values.masked_fill(~mask, garbage), mask), torch.stack(expected))
    assert_same(sequence_mean(values), values.mean(dim=1))


# The loss


def test_dropped_rows_count_as_zeros() -> None:
    log_prob, advantage, _ = batch((20,))
    kept = torch.arange(20) % 3 == 0
    masked = policy_gradient_loss(log_prob, advantage, kept.double())
    assert_same(policy_gradient_loss(log_prob[kept], advantage[kept], torch.ones(7), batch_size=20), masked)
    assert_same(policy_gradient_loss(log_prob, advantage, torch.ones(20), batch_size=20, mask=kept), masked)


def test_default_batch_size_is_the_number_of_counted_terms() -> None:
    log_prob, advantage, _ = batch((4, 5), (4, 1))
    mask = torch.arange(20).reshape(4, 5) % 3 == 0
    ones = torch.ones(4, 5)
    for counted in (None, mask):
        n_terms = 20 if counted is None else 7
        default = policy_gradient_loss(log_prob, advantage, ones, mask=counted)
        assert_same(default, policy_gradient_loss(log_prob, advantage, ones, n_terms, counted))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_micro_batches_and_processes_add_up_to_the_whole_batch(n_processes: int) -> None:
    """Of different sizes, as sequences are: a process sums the losses of its micro-batches, gradients are averaged."""
    log_prob, advantage, _ = batch((12, 5), (12, 1))
    mask = torch.arange(5) < torch.tensor([1, 5, 2, 4, 3, 0, 5, 1, 1, 2, 2, 4])[:, None]
    weight = dg_weight(log_prob, advantage)
    expected = gradient(policy_gradient_loss(log_prob, advantage, weight, mask=mask), log_prob)
    for batch_size in (30 / n_processes, torch.tensor(30 / n_processes)):
        losses = [
            policy_gradient_loss(log_prob[part], advantage[part], weight[part], batch_size, mask[part])
            for part in (slice(0, 1), slice(1, 5), slice(5, 12))
        ]
        assert_same(gradient(torch.stack(losses).sum() / n_processes, log_prob), expected)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_no_rows_give_a_zero_loss_with_a_zero_gradient(batch_size: int | None) -> None:
    log_prob, advantage, _ = batch((4,))
    none = log_prob[:0]
    for loss in (
        policy_gradient_loss(none, advantage[:0], pg_weight(none, advantage[:0]), batch_size),
        policy_gradient_loss(log_prob, advantage, torch.ones(4), batch_size, mask=torch.zeros(4)),
    ):
        assert loss == 0
        assert_same(gradient(loss, log_prob), torch.zeros(4, dtype=torch.float64))


def test_the_gradient_flows_through_the_log_probability_alone() -> None:
    log_prob, advantage, _ = batch((5,))
    weight = torch.ones(5, requires_grad=True)
    loss = policy_gradient_loss(log_prob, advantage.requires_grad_(), weight)
    flows = torch.autograd.grad(loss, (log_prob, advantage, weight), allow_unused=True)
    assert [flow is not None for flow in flows] == [True, False, False]


# Delight, gate and price


@pytest.mark.parametrize("dimensions", [1, 6])
def test_the_likeliest_action_of_a_gaussian_is_its_mean(dimensions: int) -> None:
    mean, log_std = torch.randn(3, dimensions), torch.randn(3, dimensions)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    assert_close(gaussian_mode_log_prob(log_std), normal.log_prob(mean))  # type: ignore[no-untyped-call]
    action = mean + 2 * log_std.exp()
    left = surprisal(normal.log_prob(action) - gaussian_mode_log_prob(log_std))  # type: ignore[no-untyped-call]
    assert_close(left, torch.full((3,), 2.0 * dimensions))


def test_delight_is_advantage_times_surprisal_and_the_clip_bounds_surprisal_on_both_sides() -> None:
    log_prob = torch.tensor([-20.0, -2.0, 3.0, 20.0])
    assert_close(surprisal(log_prob), torch.tensor([20.0, 2.0, -3.0, -20.0]))
    assert_close(surprisal(log_prob, clip=10), torch.tensor([10.0, 2.0, -3.0, -10.0]))
    assert_close(delight(log_prob, torch.tensor(-0.5), clip=10), torch.tensor([-5.0, -1.0, 1.5, 5.0]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("delight", [1.0, -4.5]),
        ("advantage", [0.5, -1.5]),
        ("abs_advantage", [0.5, 1.5]),
        ("surprisal", [2.0, 3.0]),
        ("additive", [1.7, 2.1]),
    ],
)
def test_priority_scores_by_the_name_it_was_given(name: str, expected: list[float]) -> None:
    log_prob, advantage = torch.tensor([-2.0, -7.0]), torch.tensor([0.5, -1.5])
    assert_close(priority(name, log_prob, advantage, clip=3, additive_alpha=0.2), torch.tensor(expected))
    assert priority(name, torch.zeros(2, 3), torch.zeros(2, 1)).shape == (2, 3)


def test_random_priority_is_uniform_whatever_the_rows_are_worth() -> None:
    torch.manual_seed(0)
    score = priority("random", torch.full((10_000,), -5.0), torch.tensor(-3.0)).sort().values
    assert_close(score, torch.linspace(0, 1, 10_000), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_gate_maximises_net_delight_plus_entropy(temperature: float) -> None:
    chi, price = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None], 0.7

    def value(weight: Tensor) -> Tensor:
        entropy: Tensor = torch.special.entr(weight) + torch.special.entr(1 - weight)
        return weight * (chi - price) + temperature * entropy

    every = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert (value(gate(chi, temperature, price)) >= value(every).amax(dim=1, keepdim=True)).all()


def test_gate_limits_are_exact() -> None:
    chi = torch.tensor([-1.0, 0.5, 0.500001, 2.0])
    assert torch.equal(gate(chi, 0.0, 0.5), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.equal(gate(chi, 0.0, torch.tensor(0.5)), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.equal(gate(chi, math.inf, 0.5), torch.full((4,), 0.5))


def test_rows_at_rate_is_the_exact_ceiling_despite_float_noise() -> None:
    assert 0.07 * 100 > 7  # what a plain ceil would turn into 8
    for n_rows, percent in itertools.product(range(1, 301), range(1, 101)):
        assert rows_at_rate(n_rows, percent / 100) == math.ceil(Fraction(percent, 100) * n_rows)


def test_rows_at_rate_keeps_at_least_one_row_where_there_is_any() -> None:
    assert rows_at_rate(10, 1e-9) == 1
    assert rows_at_rate(0, 0.5) == 0
    assert top_rows(torch.zeros(0), 0.5).shape == (0,)


@pytest.mark.parametrize("rate", [0.001, 0.07, 0.3, 0.5, 1.0])
def test_top_rows_breaks_ties_and_never_exceeds_the_rate(rate: float) -> None:
    for score in (torch.zeros(100), torch.arange(100) % 3.0, torch.randperm(100).float()):
        rows = top_rows(score, rate)
        assert len(rows) == len(set(rows.tolist())) == math.ceil(Fraction(str(rate)) * 100)
        assert_close(score[rows], score.sort(descending=True).values[: len(rows)])


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(100,), (4, 5, 5)], ids=str)
def test_price_of_a_hard_gate_keeps_exactly_the_rate(rate: float, shape: tuple[int, ...]) -> None:
    chi = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert gate(chi, 0.0, price_for_rate(chi, rate)).sum() == round(rate * 100)


def test_price_of_a_hard_gate_drops_the_delights_tied_at_the_boundary() -> None:
    chi = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0])
    kept = [int(gate(chi, 0.0, price_for_rate(chi, rate)).sum()) for rate in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert kept == [1, 1, 1, 4, 5]
    assert gate(torch.zeros(5), 0.0, price_for_rate(torch.zeros(5), 0.4)).sum() == 0
    assert gate(torch.zeros(5), 0.0, price_for_rate(torch.zeros(5), 1.0)).sum() == 5


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 10.0, 1e3])
def test_price_of_a_soft_gate_makes_the_mean_gate_the_rate(rate: float, temperature: float) -> None:
    uniform = torch.rand(3, 167, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cauchy = torch.tan(math.pi * (uniform - 0.5))
    for chi in (cauchy, cauchy.pow(3), cauchy.square(), -cauchy.abs(), torch.full_like(uniform, 2.5), cauchy[0, 0]):
        price = price_for_rate(chi, rate, temperature)
        assert price.shape == ()
        assert gate(chi, temperature, price).mean() == pytest.approx(rate, abs=1e-6)
        in_single = gate(chi.float(), temperature, price_for_rate(chi.float(), rate, temperature))
        if (
            temperature >= 0.1 and chi.abs().max() < 1e4
        ):  # else the temperature is lost in the rounding of delight itself
            assert in_single.double().mean() == pytest.approx(rate, abs=1e-6)


def test_a_quantile_would_price_the_soft_gate_wrongly() -> None:
    # Unit-normal advantages and exponential surprisal: a target of .1 keeps .27.
    rng = torch.Generator().manual_seed(0)
    chi = torch.randn(100_000, generator=rng) * torch.empty(100_000).exponential_(generator=rng)
    assert gate(chi, 1.0, chi.quantile(0.9)).mean() == pytest.approx(0.27, abs=0.01)
    assert gate(chi, 1.0, price_for_rate(chi, 0.1, temperature=1.0)).mean() == pytest.approx(0.1, abs=1e-6)


# Scaling


def test_scores_are_memory_of_their_own() -> None:
    """Whoever hides padding in place must not change the advantages."""
    for advantage in (torch.ones(2, 3), torch.ones(2, 1)):
        for name in PRIORITIES:
            priority(name, torch.full((2, 3), -1.0), advantage)[:, 2] = -math.inf
        assert torch.equal(advantage, torch.ones_like(advantage))
    one = torch.ones(1)
    standardize(one)[0] = 2
    assert one == 1


def test_advantages_may_be_whole_numbers() -> None:
    rewards = torch.tensor([1, 1, 1, -1, -1, 0, 0, 0])
    for name in PRIORITIES.keys() - {"random"}:
        score = priority(name, -torch.ones(8), rewards)
        assert torch.equal(score, priority(name, -torch.ones(8), rewards.float()))
        assert score.dtype == torch.float32
    assert gate(rewards, math.inf).tolist() == [0.5] * 8
    assert gate(rewards, 0.5, price_for_rate(rewards, 0.3, 0.5)).mean().item() == pytest.approx(0.3)
    assert gate(rewards, 0.0, price_for_rate(rewards, 1.0)).tolist() == [1.0] * 8


def test_scale_by_rms_gives_unit_scale_and_moves_no_sign() -> None:
    values = torch.tensor([[-3.0, 0.0], [1.0, 100.0]])
    assert scale_by_rms(values).square().mean() == pytest.approx(1)
    assert torch.equal(scale_by_rms(values).sign(), values.sign())


def test_standardize_is_what_stable_baselines3_does_to_advantages() -> None:
    values = torch.tensor([[-3.0, 0.0], [1.0, 100.0]])
    scaled = standardize(values)
    assert scaled.mean() == pytest.approx(0, abs=1e-6)
    assert scaled.std(correction=1) == pytest.approx(1)
    assert_close(standardize(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]) / math.sqrt(2))
    assert torch.equal(standardize(values[0, :1]), values[0, :1])


@pytest.mark.parametrize("n_rows", [1, 3, 100])
def test_constant_values_scale_without_nan(n_rows: int) -> None:
    for value in (-2.0, 0.5, 1 / 3, 7.7, 1e4):
        values = torch.full((n_rows,), value)
        assert_close(scale_by_rms(values), values.sign())
        if n_rows > 1:
            assert torch.equal(standardize(values), torch.zeros(n_rows))
    zeros = torch.zeros(n_rows)
    assert torch.equal(scale_by_rms(zeros), zeros)
    assert torch.equal(standardize(zeros), zeros)


def test_groups_are_standardised_one_by_one() -> None:
    """GRPO's advantages; where all answers to a prompt are alike there is none, though the mean of .1s rounds."""
    rewards = torch.tensor([[0.1] * 8, [0.0, 1.0] * 4])
    expected = torch.stack([torch.zeros(8), standardize(rewards[1])])
    assert torch.equal(torch.func.vmap(standardize)(rewards), expected)


# Contracts


def test_nothing_but_the_loss_carries_a_gradient() -> None:
    log_prob, advantage, behaviour = batch((3, 4))
    advantage.requires_grad_()
    results = {name: weight(log_prob, advantage, behaviour) for name, (weight, _) in METHODS.items()}
    results |= {
        "asympo": asympo_weight(log_prob, advantage),
        "surprisal": surprisal(log_prob),
        "delight": delight(log_prob, advantage),
        **{f"{name} priority": priority(name, log_prob, advantage) for name in PRIORITIES},
        "gate": gate(log_prob),
        "price": price_for_rate(log_prob, 0.5, temperature=1.0),
        "mean": sequence_mean(log_prob),
        "rms": scale_by_rms(advantage),
        "standardize": standardize(advantage),
    }
    assert [name for name, result in results.items() if result.requires_grad] == []
    assert policy_gradient_loss(log_prob, advantage, results["pg"]).requires_grad


@methods
@pytest.mark.parametrize(
    ("shape", "wrong"), [((4, 1), (4,)), ((4, 4), (4,)), ((4,), (4, 1)), ((4,), (1, 4)), ((4, 1), (4, 4)), ((), (1,))]
)
def test_an_advantage_that_would_broadcast_the_batch_is_refused(
    weight: Function, surrogate: Function, shape: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"^advantage must"):
        weight(torch.zeros(shape), torch.zeros(wrong), torch.zeros(shape))


@pytest.mark.parametrize("weight", [importance_weight, ppo_clip_weight, simple_po_weight])
@pytest.mark.parametrize(("shape", "wrong"), [((4, 1), (4,)), ((4, 4), (4,)), ((4,), (4, 1))])
def test_a_behaviour_log_prob_that_would_broadcast_the_batch_is_refused(
    weight: Function, shape: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"^behaviour_log_prob must"):
        weight(torch.zeros(shape), torch.zeros(shape), torch.zeros(wrong))


ROW, TOKENS = torch.zeros(4), torch.zeros(4, 4)
BAD_INPUT: list[tuple[str, Callable[[], object]]] = [
    *[("clip", lambda bad=bad: surprisal(ROW, bad)) for bad in (0, -1.0, math.nan)],
    *[("clip", lambda bad=bad: delight(ROW, ROW, bad)) for bad in (0, -1.0, math.nan)],
    *[("clip", lambda bad=bad: dg_weight(ROW, ROW, clip=bad)) for bad in (0, -1.0, math.nan)],
    *[("clip", lambda bad=bad: importance_weight(ROW, ROW, ROW, bad)) for bad in (0, -1.0, math.nan)],
    *[("temperature", lambda bad=bad: gate(ROW, bad)) for bad in (-1.0, math.nan, -math.inf)],
    *[("temperature", lambda bad=bad: dg_weight(ROW, ROW, bad)) for bad in (-1.0, math.nan)],
    *[("temperature", lambda bad=bad: price_for_rate(ROW, 0.5, bad)) for bad in (-1.0, math.nan, math.inf)],
    *[("rate", lambda bad=bad: rows_at_rate(4, bad)) for bad in (0, -0.1, 1.1, math.nan)],
    *[("rate", lambda bad=bad: top_rows(ROW, bad)) for bad in (0, 1.1, math.nan)],
    *[("rate", lambda call=call: call(ROW, torch.tensor(0.5))) for call in (top_rows, price_for_rate)],
    ("score", lambda: top_rows(ROW[None], 0.5)),
    ("price", lambda: gate(ROW, 1.0, math.nan)),
    *[("price", lambda bad=bad: gate(ROW, 1.0, bad)) for bad in (np.float32("nan"), TOKENS, ROW[:1])],
    ("p_low", lambda: asympo_weight(TOKENS, TOKENS, p_low=0.9, p_high=0.1)),
    *[("rate", lambda bad=bad: price_for_rate(ROW, bad)) for bad in (0, 1.1, math.nan)],
    ("rate", lambda: price_for_rate(ROW, 1.0, temperature=1.0)),
    *[("delight", lambda soft=soft: price_for_rate(ROW[:0], 0.5, soft)) for soft in (0.0, 1.0)],
    *[("clip_range", lambda bad=bad: ppo_clip_weight(ROW, ROW, ROW, bad)) for bad in (-0.2, math.nan, math.inf)],
    *[("clip_range", lambda bad=bad: simple_po_weight(ROW, ROW, ROW, bad)) for bad in (0, -0.2, math.nan, math.inf)],
    *[("negative_scale", lambda bad=bad: scaled_weight(ROW, ROW, bad)) for bad in (-0.1, math.nan, math.inf)],
    *[("p_low", lambda bad=bad: asympo_weight(TOKENS, TOKENS, p_low=bad)) for bad in (0, 1, -0.1, math.nan)],
    *[("p_high", lambda bad=bad: asympo_weight(TOKENS, TOKENS, p_high=bad)) for bad in (0, 1, 1.1, math.nan)],
    *[("surprisal_floor", lambda bad=bad: asympo_weight(TOKENS, TOKENS, surprisal_floor=bad)) for bad in (0, math.nan)],
    *[("batch_size", lambda bad=bad: policy_gradient_loss(ROW, ROW, ROW, bad)) for bad in (0, -1, math.nan, ROW)],
    ("advantage", lambda: delight(TOKENS, ROW)),
    ("advantage", lambda: asympo_weight(TOKENS, ROW)),
    ("advantage", lambda: policy_gradient_loss(TOKENS, ROW, TOKENS)),
    ("weight", lambda: policy_gradient_loss(TOKENS, TOKENS, ROW)),
    ("mask", lambda: policy_gradient_loss(TOKENS, TOKENS, TOKENS, mask=ROW)),
    ("mask", lambda: asympo_weight(TOKENS, TOKENS, mask=ROW)),
    ("mask", lambda: sequence_mean(TOKENS, mask=torch.zeros(4, 1))),
    ("log_prob", lambda: asympo_weight(ROW, ROW)),
    ("values", lambda: sequence_mean(ROW)),
    ("priority", lambda: priority("joy", ROW, ROW)),
    ("advantage", lambda: priority("random", TOKENS, ROW)),
    *[("additive_alpha", lambda bad=bad: priority("additive", ROW, ROW, None, bad)) for bad in (-0.1, 1.1, math.nan)],
]
OF_A_NUMBER: tuple[tuple[str, Callable[[Any], object]], ...] = (
    ("clip", lambda bad: surprisal(ROW, bad)),
    ("clip", lambda bad: importance_weight(ROW, ROW, ROW, bad)),
    ("temperature", lambda bad: dg_weight(ROW, ROW, bad)),
    ("temperature", lambda bad: price_for_rate(ROW, 0.5, bad)),
    ("rate", lambda bad: top_rows(ROW, bad)),
    ("price", lambda bad: gate(ROW, 1.0, bad)),
    ("clip_range", lambda bad: ppo_clip_weight(ROW, ROW, ROW, bad)),
    ("clip_range", lambda bad: simple_po_weight(ROW, ROW, ROW, bad)),
    ("negative_scale", lambda bad: scaled_weight(ROW, ROW, bad)),
    ("p_low", lambda bad: asympo_weight(TOKENS, TOKENS, p_low=bad)),
    ("batch_size", lambda bad: policy_gradient_loss(ROW, ROW, ROW, bad)),
    ("additive_alpha", lambda bad: priority("additive", ROW, ROW, None, bad)),
)


@pytest.mark.parametrize(("name", "call"), BAD_INPUT)
def test_bad_input_is_a_value_error_naming_the_argument(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call()


@pytest.mark.parametrize(("name", "call"), OF_A_NUMBER)
@pytest.mark.parametrize("bad", ["1", [1.0], TOKENS, torch.ones(1, 1)], ids=["text", "list", "tensor", "of one"])
def test_so_is_what_is_no_number(name: str, call: Callable[[Any], object], bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call(bad)


def test_the_equations_need_neither_stable_baselines3_nor_gymnasium() -> None:
    script = """
import sys
sys.modules["gymnasium"] = sys.modules["stable_baselines3"] = None  # as if not installed
from sb3_delight import objectives, returns
print(objectives.gate(returns.torch.zeros(())).item())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.strip() == "0.5", run.stderr


def test_the_equations_compile_without_a_break() -> None:
    # In a process of its own: torch's compiler changes settings of torch.distributions.
    script = """
import torch
from sb3_delight.objectives import *

def step(log_prob, advantage, behaviour, mask, temperature, batch_size):
    weights = (
        dg_weight(log_prob, advantage, temperature, clip=10.0),
        ppo_clip_weight(log_prob, advantage, behaviour),
        importance_weight(log_prob, advantage, behaviour),
        simple_po_weight(log_prob, advantage, behaviour),
        scaled_weight(log_prob, advantage),
        asympo_weight(log_prob, advantage, mask),
    )
    losses = [policy_gradient_loss(log_prob, advantage, weight, batch_size, mask) for weight in weights]
    score = sequence_mean(delight(log_prob, advantage), mask)
    price = price_for_rate(score, 0.5, 0.3 * temperature)
    gates = gate(score, temperature, price), gate(score, 1.0, temperature)
    return torch.stack([*losses, *(each.mean() for each in gates), top_rows(score, 0.5).sum()])

torch.manual_seed(0)
log_prob, behaviour = -torch.rand(2, 4, 5)
arguments = log_prob, torch.randn(4, 1), behaviour, torch.rand(4, 5) < 0.7
compiled = torch.compile(step, fullgraph=True, backend="eager")
for temperature in (1.0, 0.9, 0.8, 0.7):
    for batch_size in (None, 7, torch.tensor(7)):
        torch.testing.assert_close(
            compiled(*arguments, temperature, batch_size), step(*arguments, temperature, batch_size)
        )
dynamic = torch.compile(step, fullgraph=True, dynamic=True, backend="eager")
torch.testing.assert_close(dynamic(*arguments, 1.0, 7), step(*arguments, 1.0, 7))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("advantage must be a tensor, got 1.0", lambda: dg_weight(ROW, 1.0)),  # type: ignore[arg-type]
        ("log_prob must be a tensor, got 1.0", lambda: dg_weight(1.0, ROW)),  # type: ignore[arg-type]
        ("log_prob must be a tensor of floats, got one of torch.int64", lambda: dg_weight(ROW.long(), ROW)),
        ("mask must be a tensor, got [1]", lambda: policy_gradient_loss(ROW, ROW, ROW, mask=[1])),  # type: ignore[arg-type]
        ("mask must be a tensor, got [1]", lambda: sequence_mean(TOKENS, [1])),  # type: ignore[arg-type]
        ("values must be a tensor, got [[1.0]]", lambda: sequence_mean([[1.0]])),  # type: ignore[arg-type]
        ("log_prob must be a tensor, got [1.0]", lambda: surprisal([1.0])),  # type: ignore[arg-type]
        ("delight must be a tensor, got [1.0]", lambda: gate([1.0])),  # type: ignore[arg-type]
        ("delight must be a tensor, got [1.0]", lambda: price_for_rate([1.0], 0.5)),  # type: ignore[arg-type]
        ("score must be a tensor, got [1.0]", lambda: top_rows([1.0], 0.5)),  # type: ignore[arg-type]
        ("values must be a tensor, got [1.0]", lambda: scale_by_rms([1.0])),  # type: ignore[arg-type]
        ("values must be a tensor, got [1.0]", lambda: standardize([1.0])),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_tensor_is_said_so(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=rf"^{re.escape(name)}"):
        call()


def test_a_process_without_kept_rows_runs_on_an_empty_batch() -> None:
    """So that DistributedDataParallel's processes make as many backward passes: loss and gradient are 0."""
    model = torch.nn.Linear(3, 1)
    advantage, mask = torch.zeros(0, 1), torch.zeros(0, 4, dtype=torch.bool)
    for batch_size in (torch.tensor(7), None):
        log_prob = torch.nn.functional.logsigmoid(model(torch.zeros(0, 4, 3))[..., 0])
        weight = pg_weight(log_prob, advantage)
        loss = policy_gradient_loss(log_prob, advantage, weight, batch_size=batch_size, mask=mask)
        assert loss == 0
        assert gradient(loss, model.weight).tolist() == [[0, 0, 0]]


# ------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_and_scales_bear_half_precision(dtype: torch.dtype) -> None:
    assert torch.equal(scale_by_rms(torch.zeros(4, dtype=dtype)), torch.zeros(4, dtype=dtype))
    large = torch.tensor([300.0, -300.0], dtype=dtype)
    torch.testing.assert_close(scale_by_rms(large), torch.tensor([1.0, -1.0], dtype=dtype))
    assert torch.equal(standardize(torch.ones(4, dtype=dtype)), torch.zeros(4, dtype=dtype))
    long = torch.full((1, 8192), 10.0, dtype=dtype)
    assert sequence_mean(long).tolist() == [10.0]
    apart = torch.tensor([[4.0] * 512, [4.0] * 511 + [4.25]], dtype=dtype)  # by half of what the precision tells apart
    assert sequence_mean(apart)[1] > sequence_mean(apart)[0]
    weight = asympo_weight(-long, torch.ones(1, 1, dtype=dtype), p_low=None, p_high=None)
    torch.testing.assert_close(weight, torch.full((1, 8192), 1 / 81920))
    assert gate(torch.tensor([0.0, 1.0], dtype=dtype), 1e-50).tolist() == [0.0, 1.0]
    terms, one = torch.full((600,), -300.0, dtype=dtype), torch.ones(600, dtype=dtype)
    for mask in (None, torch.ones(600)):
        loss = policy_gradient_loss(terms, one, one, mask=mask)
        assert (loss.item(), loss.dtype) == (300.0, torch.float32)
    ratio = ppo_clip_weight(torch.zeros(2, dtype=dtype), -torch.ones(2, dtype=dtype), terms[:2])
    assert (ratio > 1e4).all()
    assert ratio.isfinite().all()
    assert policy_gradient_loss(terms[:2], -4 * one[:2], ratio, batch_size=10_000).isfinite()
    assert surprisal(terms[:1], clip=1e6).tolist() == [300.0]
    assert importance_weight(one[:1], one[:1], terms[:1], clip=1e5).tolist() == [1e5]
    taken, behaved = torch.tensor([-9.0], dtype=dtype), torch.tensor([-0.03], dtype=dtype)
    exact = math.exp(taken.item() - behaved.item())  # their difference is rounded in half precision
    assert importance_weight(taken, one[:1], behaved).item() == pytest.approx(exact, rel=1e-5)
    scores = (10 + torch.randn(4000, generator=torch.Generator().manual_seed(0))).to(dtype)
    for temperature in (0.0, 0.1):
        for rate in (0.1, 0.9):
            price = price_for_rate(scores, rate, temperature)
            kept = gate(scores, temperature, price).double().mean().item()
            assert kept <= rate if temperature == 0 else kept == pytest.approx(rate, rel=2e-3)
    assert gate(scores, 0.0, price_for_rate(scores, 1.0)).mean() == 1


def test_the_loss_has_the_precision_of_the_log_probability() -> None:
    """Whether there is a mask or not: advantages of NumPy are often in double."""
    log_prob, advantage = torch.zeros(4, 5), torch.ones(4, 1, dtype=torch.float64)
    for mask in (None, torch.ones(4, 5)):
        assert (
            policy_gradient_loss(log_prob, advantage, dg_weight(log_prob, advantage), mask=mask).dtype == torch.float32
        )


@pytest.mark.parametrize("weight", [importance_weight, ppo_clip_weight, simple_po_weight])
def test_a_ratio_without_bound_times_an_advantage_of_0_is_0(weight: Function) -> None:
    log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)
    advantage = torch.tensor([0.0, 1e-9])
    loss = policy_gradient_loss(log_prob, advantage, weight(log_prob, advantage, torch.tensor([-200.0, -200.0])))
    assert gradient(loss, log_prob).isfinite().all()
    assert gradient(
        policy_gradient_loss(log_prob, advantage[0], weight(log_prob, advantage[0], torch.tensor(-200.0))), log_prob
    ).tolist() == [0, 0]


def test_random_rows_of_half_precision_do_not_go_by_position() -> None:
    """bfloat16 has 256 numbers in [0, 1) to draw: the first of many equal ones would be kept."""
    torch.manual_seed(0)
    row = torch.zeros(4000, dtype=torch.bfloat16)
    kept = torch.cat([top_rows(priority("random", row, row), 0.003) for _ in range(300)])
    shares = torch.bincount(kept // 1000, minlength=4) / len(kept)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.035, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_delight_of_half_precision_neither_overflows_nor_ties(dtype: torch.dtype) -> None:
    score = delight(torch.tensor([-400.0, -500.0], dtype=dtype), torch.tensor([200.0, -300.0], dtype=dtype))
    assert score.tolist() == [80_000.0, -150_000.0]
    close = delight(
        torch.tensor([-1.0, -1.0078125], dtype=torch.bfloat16).to(dtype), torch.full((2,), 3.0, dtype=dtype)
    )
    assert top_rows(close, 0.5).tolist() == [1]


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_clip_range_of_0_leaves_rows_that_have_not_moved(advantage: float) -> None:
    log_prob = torch.tensor([-0.5, -2.0])
    weight = ppo_clip_weight(log_prob, torch.full((2,), advantage), log_prob, clip_range=0.0)
    assert weight.tolist() == [1.0, 1.0]


def test_asympo_leaves_a_likely_token_of_advantage_0_alone() -> None:
    log_prob, advantage = torch.tensor([[math.log(0.999), -1.0]]), torch.tensor([[0.0, 1.0]])
    weight = asympo_weight(log_prob, advantage)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1 / (1 - math.log(0.99))]]))

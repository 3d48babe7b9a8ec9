"""Who enters which gradient step: every row once, the kept ones for the actor, a fair draw for the critic."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_delight.minibatches import Rows, deal_rows


@dataclass(frozen=True)
class Deal:
    n_rows: int
    batch_size: int | None
    n_kept: int
    n_critic: int

    def kept(self) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(5).permutation(self.n_rows)[: self.n_kept])

    def epoch(self, seed: int = 0) -> list[Rows]:
        np.random.seed(seed)
        return list(deal_rows(self.n_rows, self.batch_size, self.kept(), self.n_critic))


DEALS = [
    Deal(12, 4, 5, 12),
    Deal(12, 4, 12, 5),
    Deal(13, 4, 5, 6),  # the last minibatch is truncated
    Deal(13, 4, 0, 6),
    Deal(13, 4, 0, 13),
    Deal(13, 4, 1, 1),
    Deal(13, 1, 6, 6),
    Deal(13, 12, 13, 13),
    Deal(13, 13, 7, 7),
    Deal(13, None, 4, 8),
    Deal(7, 100, 3, 2),
    Deal(64, 16, 20, 32),
    Deal(1000, 64, 300, 500),
    Deal(1, 1, 0, 1),
]
by_deal = pytest.mark.parametrize("deal", DEALS, ids=str)


def paid(rows: Rows) -> list[int]:
    assert rows.paid is not None
    return list(rows.paid.tolist())


@by_deal
def test_every_row_is_dealt_exactly_once(deal: Deal) -> None:
    dealt = [row for rows in deal.epoch() if rows.index is not None for row in rows.index.tolist()]
    assert sorted(dealt) == list(range(deal.n_rows))


@by_deal
def test_the_actor_pays_for_the_kept_rows_exactly_once(deal: Deal) -> None:
    actor = [row for rows in deal.epoch() for row in paid(rows)[rows.actor]]
    assert sorted(actor) == sorted(deal.kept().tolist())


@by_deal
def test_the_critic_pays_for_its_number_of_different_rows(deal: Deal) -> None:
    critic = [row for rows in deal.epoch() for row in paid(rows)[rows.critic]]
    assert len(critic) == len(set(critic)) == deal.n_critic


@by_deal
def test_what_is_paid_for_is_the_union_of_actor_and_critic(deal: Deal) -> None:
    for rows in deal.epoch():
        network = paid(rows)
        actor, critic = network[rows.actor], network[rows.critic]
        assert (len(network), len(actor), len(critic)) == (rows.n_paid, rows.n_actor, rows.n_critic)
        assert len(set(network)) == len(network)
        assert set(actor) | set(critic) == set(network)


@by_deal
def test_minibatches_have_the_size_asked_for_and_the_last_one_the_rest(deal: Deal) -> None:
    size = deal.batch_size or deal.n_rows
    full, rest = divmod(deal.n_rows, size)
    sizes = [rows.size for rows in deal.epoch()]
    assert sizes == [size] * full + [rest] * (rest > 0)
    assert sizes == [len(rows.index) for rows in deal.epoch() if rows.index is not None]


def test_each_minibatch_gets_its_share_of_each_kind() -> None:
    for rows in Deal(1000, 100, 300, 500).epoch():
        assert rows.n_actor == pytest.approx(30, abs=3)
        assert rows.n_critic == pytest.approx(50, abs=3)


def test_each_epoch_deals_anew() -> None:
    deal = Deal(64, 16, 20, 32)
    first, same, other = (deal.epoch(seed)[0].index for seed in (0, 0, 1))
    assert first is not None
    assert same is not None
    assert other is not None
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kept", [None, torch.arange(15)], ids=["no gate", "all kept"])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 14])
def test_with_nothing_gated_minibatches_are_stable_baselines3s(kept: torch.Tensor | None, batch_size: int) -> None:
    space = spaces.Box(0, 100, (1,))
    buffer = RolloutBuffer(5, space, space, "cpu", n_envs=3)
    for step in range(5):  # each row observes its own number in the flat rollout
        numbers = (5.0 * np.arange(3) + step)[:, None]
        buffer.add(numbers, numbers, np.zeros(3), np.zeros(3), torch.zeros(3), torch.zeros(3))
    np.random.seed(3)
    stock = [batch.observations.flatten().tolist() for batch in buffer.get(batch_size)]
    np.random.seed(3)
    ours = list(deal_rows(15, batch_size, kept))
    assert [paid(rows) for rows in ours] == stock
    assert all(rows.size == rows.n_paid == rows.n_actor == rows.n_critic for rows in ours)


@pytest.mark.parametrize("batch_size", [None, 8, 100])
@pytest.mark.parametrize("kept", [None, torch.arange(8)], ids=["no gate", "all kept"])
def test_a_whole_rollout_in_one_step_is_left_in_its_order(batch_size: int | None, kept: torch.Tensor | None) -> None:
    (rows,) = deal_rows(8, batch_size, kept)
    assert rows == Rows(None, 8, 8, 8, 8)
    assert rows.paid is None


def test_the_critics_rows_are_a_uniform_draw_independent_of_the_gate() -> None:
    deal, n_epochs = Deal(20, 6, 7, 8), 3000
    kept = set(deal.kept().tolist())
    drawn, overlaps = np.zeros((deal.n_rows, deal.n_rows)), []
    np.random.seed(0)
    for _ in range(n_epochs):
        epoch = deal_rows(deal.n_rows, deal.batch_size, deal.kept(), deal.n_critic)
        critic = [row for rows in epoch for row in paid(rows)[rows.critic]]
        drawn[np.ix_(critic, critic)] += 1
        overlaps.append(len(kept & set(critic)))
    share = deal.n_critic / deal.n_rows
    pair_share = share * (deal.n_critic - 1) / (deal.n_rows - 1)
    pairs = drawn[~np.eye(deal.n_rows, dtype=bool)] / n_epochs
    # Bounds are five standard errors, so that any seed passes: 0.045 and 0.032.
    assert np.abs(drawn.diagonal() / n_epochs - share).max() < 5 * np.sqrt(share * (1 - share) / n_epochs)
    assert np.abs(pairs - pair_share).max() < 5 * np.sqrt(pair_share * (1 - pair_share) / n_epochs)
    # Hypergeometric: mean n K / N = 2.8, and the variance of a draw without replacement.
    variance = 8 * 7 / 20 * (13 / 20) * (12 / 19)
    assert np.mean(overlaps) == pytest.approx(8 * 7 / 20, abs=5 * np.sqrt(variance / n_epochs))
    assert np.var(overlaps) == pytest.approx(variance, rel=0.15)


def test_the_critics_rows_of_each_step_are_spread_evenly_over_an_epoch() -> None:
    """Any row is as likely in any minibatch: gradient steps within an epoch see the same distribution."""
    deal, n_epochs = Deal(16, 4, 8, 8), 2000
    seen = np.zeros((4, deal.n_rows))
    np.random.seed(0)
    for _ in range(n_epochs):
        for number, rows in enumerate(deal_rows(deal.n_rows, deal.batch_size, deal.kept(), deal.n_critic)):
            seen[number, paid(rows)[rows.critic]] += 1
    assert np.abs(seen / n_epochs - 1 / 8).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / n_epochs)

"""Which rows of a rollout enter which gradient step, for the actor and for the critic."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rows", "deal_rows", "pinned", "upload"]


def upload(numbers: np.ndarray, device: torch.device | str) -> Tensor:
    """Row numbers on the device, by way of pinned memory, so that the host need not wait for them."""
    host = pinned(torch.from_numpy(numbers), device)
    return host.to(device, non_blocking=host.is_pinned())


def pinned(host: Tensor, device: torch.device | str) -> Tensor:
    """A tensor from which the device copies without the host, where it can: MPS cannot."""
    return host.pin_memory() if torch.device(device).type == "cuda" else host


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one gradient step, in the order: actor only, both, critic only, neither.

    So the rows that enter the network are a prefix of the minibatch, the actor's a prefix of those, the critic's a
    suffix of those: one gather serves all, and a shared feature extractor sees each row once.
    """

    index: Tensor | None  #: row numbers ``[size]``; ``None`` for the whole rollout in its own order
    size: int  #: rows of the minibatch, whether paid for or not
    n_paid: int  #: rows that enter the network
    n_actor: int  #: rows whose policy gradient is paid for
    n_critic: int  #: rows whose value loss is paid for

    @property
    def paid(self) -> Tensor | None:
        """Row numbers that enter the network, ``[n_paid]``."""
        return None if self.index is None else self.index[: self.n_paid]

    @property
    def actor(self) -> slice:
        """The actor's rows among those paid for."""
        return slice(0, self.n_actor)

    @property
    def critic(self) -> slice:
        """The critic's rows among those paid for."""
        return slice(self.n_paid - self.n_critic, self.n_paid)


def deal_rows(
    n_rows: int,
    batch_size: int | None,
    kept: Tensor | None = None,
    n_critic: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Rows]:
    """Deal one epoch over a rollout into minibatches.

    The rows are shuffled; each minibatch gets its share of each kind, so that the sizes follow from the arguments and
    nothing is read back from the device. The critic's rows are a uniformly random subset, independent of the gate: its
    overlap with the actor's rows is drawn from the hypergeometric law that such a subset obeys.

    With every row kept, the minibatches are those of stable-baselines3 for the same numpy seed.

    :param n_rows: rows of the rollout
    :param batch_size: rows of a minibatch, dropped ones included; ``None`` takes the whole rollout
    :param kept: row numbers that the actor pays for, ``[k]``; ``None`` keeps all
    :param n_critic: how many rows the critic pays for; ``None`` means all
    :param device: where the row numbers are needed
    :return: of every minibatch, those that pay for nothing included
    """
    n_actor = n_rows if kept is None else len(kept)
    n_critic = n_rows if n_critic is None else n_critic
    batch_size = n_rows if batch_size is None else min(batch_size, n_rows)
    if batch_size == n_actor == n_critic == n_rows:
        yield Rows(None, n_rows, n_rows, n_rows, n_rows)
        return
    everything = n_critic == n_rows or n_actor == n_rows
    n_both = min(n_actor, n_critic) if everything else np.random.hypergeometric(n_actor, n_rows - n_actor, n_critic)
    order = upload(np.random.permutation(n_rows), device)
    if kept is not None:
        dropped = torch.ones(n_rows, dtype=torch.bool, device=device).index_fill_(0, kept, False)
        order = order[torch.argsort(dropped[order], stable=True)]
    sizes = [n_actor - n_both, n_both, n_critic - n_both, n_rows - n_actor - n_critic + n_both]
    # Interleave the kinds evenly, begin anywhere, cut into minibatches, and sort each of those by kind.
    dealt = np.argsort(np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in sizes]), kind="stable")
    if max(sizes) < n_rows:
        dealt = np.roll(dealt, np.random.randint(n_rows))
    minibatch = np.arange(n_rows) // batch_size
    dealt = dealt[np.lexsort((dealt, minibatch))]
    order = order[upload(dealt, device)]
    kind = np.searchsorted(np.cumsum(sizes), dealt, side="right")
    counts = np.bincount(4 * minibatch + kind, minlength=4 * (minibatch[-1] + 1)).reshape(-1, 4)
    for index, (actor_only, both, critic_only, neither) in zip(
        torch.split(order, batch_size), counts.tolist(), strict=True
    ):
        n_paid = actor_only + both + critic_only
        yield Rows(index, n_paid + neither, n_paid, actor_only + both, both + critic_only)

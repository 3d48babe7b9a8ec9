"""Advantages and value targets from a rollout. Needs nothing but torch."""

import torch
from torch import Tensor

__all__ = ["explained_variance", "gae", "vtrace"]


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    episode_starts: Tensor,
    last_values: Tensor,
    last_dones: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimation (Schulman et al., 2016) and its TD(lambda) value targets.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma \lambda A_{t+1}

    with both successors cut at the end of an episode. A timeout is not an end of value: add
    :math:`\gamma V(s_{terminal})` to its reward beforehand, as stable-baselines3's rollouts do.
    Operations are in the order of stable-baselines3's ``compute_returns_and_advantage``: results agree bit for bit.

    :param rewards: ``[T, N]`` for T steps of N environments; like all values finite, past the end of an episode too
    :param values: value estimates of the states acted in, ``[T, N]``
    :param episode_starts: 1 where a step is the first of its episode, ``[T, N]``
    :param last_values: value estimates of the states after the last step, ``[N]``
    :param last_dones: 1 where the last step ended its episode, ``[N]``
    :param gamma: discount
    :param gae_lambda: 1 is the Monte-Carlo advantage, 0 the one-step one
    :return: advantages and returns (advantages + values), both ``[T, N]``; float32 for half-precision input
    :raises ValueError: if the shapes do not fit
    """
    deltas, decays = _deltas(rewards, values, episode_starts, last_values, last_dones, gamma, gae_lambda)
    advantages = torch.empty_like(deltas)
    running = deltas.new_zeros(last_values.shape)
    # One multiply and one add a step: everything that does not recur is done above, for all steps at once.
    for delta, decay, advantage in reversed(list(zip(deltas, decays, advantages, strict=True))):
        running = torch.add(delta, decay * running, out=advantage)
    return advantages, advantages + values


@torch.no_grad()
def vtrace(
    rewards: Tensor,
    values: Tensor,
    episode_starts: Tensor,
    last_values: Tensor,
    last_dones: Tensor,
    gamma: float,
    gae_lambda: float,
    log_ratio: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""V-trace (Espeholt et al., 2018) for rollouts of an older policy; GAE where the ratios are 1.

    .. math:: v_t = V_t + \rho_t \delta_t + \gamma \lambda \rho_t (v_{t+1} - V_{t+1}), \qquad
        A_t = \delta_t + \gamma \lambda (v_{t+1} - V_{t+1}), \qquad \rho_t = \min(1, \pi_t / \mu_t)

    with :math:`\delta_t` and the ends of episodes as in :func:`gae`. The advantage's own :math:`\rho_t` is left to the
    weight of the row: the importance weight has it, the delightful one needs none.

    :param log_ratio: log-probability of each action under the policy being trained less that under the one that acted,
        ``[T, N]``
    :return: advantages A and value targets v, both ``[T, N]``; all other parameters are those of :func:`gae`
    :raises ValueError: if the shapes do not fit
    """
    deltas, decays = _deltas(rewards, values, episode_starts, last_values, last_dones, gamma, gae_lambda)
    if log_ratio.shape != rewards.shape:
        raise ValueError(f"log_ratio must be [T, N] = {list(rewards.shape)}, got {tuple(log_ratio.shape)}")
    ratio = log_ratio.exp().clamp(max=1)
    advantages = torch.empty_like(deltas)
    correction = deltas.new_zeros(last_values.shape)  # v - V of the step after
    for delta, decay, rho, advantage in reversed(list(zip(deltas, decays, ratio, advantages, strict=True))):
        correction = rho * torch.add(delta, decay * correction, out=advantage)
    return advantages, values + ratio * advantages


def _deltas(
    rewards: Tensor,
    values: Tensor,
    episode_starts: Tensor,
    last_values: Tensor,
    last_dones: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """One-step errors, and what of the next step's sum enters each; both ``[T, N]``.

    :raises ValueError: if the shapes do not fit
    """
    if not rewards.ndim == 2 or not rewards.shape == values.shape == episode_starts.shape:
        raise ValueError(
            "rewards, values and episode_starts must share one shape [T, N], got "
            f"{tuple(rewards.shape)}, {tuple(values.shape)} and {tuple(episode_starts.shape)}"
        )
    if not last_values.shape == last_dones.shape == rewards.shape[1:]:
        raise ValueError(
            f"last_values and last_dones must be [N] = {list(rewards.shape[1:])}, got "
            f"{tuple(last_values.shape)} and {tuple(last_dones.shape)}"
        )
    # A sum over hundreds of steps, and a discount of .999, are beyond half precision.
    wide = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    next_values = torch.cat([values[1:], last_values[None]]).to(wide)
    continues = 1.0 - torch.cat([episode_starts[1:], last_dones[None]]).to(wide)
    return rewards + gamma * next_values * continues - values, (gamma * gae_lambda) * continues


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Share of the returns' variance that the values explain: 1 is perfect, 0 no better than a constant.

    :param values: ``[*]``
    :param returns: ``[*]``, not empty
    :return: scalar; NaN where the returns do not vary
    :raises ValueError: if the shapes differ, or are empty
    """
    if not values.shape == returns.shape or not returns.numel():
        raise ValueError(
            f"values and returns must share one shape, not empty, got {tuple(values.shape)} and {tuple(returns.shape)}"
        )
    explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    # Not by the variance: rounding gives equal values one.
    return torch.where(returns.max() > returns.min(), explained, torch.nan)

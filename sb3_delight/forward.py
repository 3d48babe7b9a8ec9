"""Forward passes through a stable-baselines3 policy for just the rows that are paid for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Distribution

from sb3_delight.buffers import Samples, take
from sb3_delight.minibatches import Rows

__all__ = [
    "evaluate_log_prob",
    "evaluate_rows",
    "slices_without_gradient",
    "typed_actions",
    "uncompiled",
    "unvalidated_distributions",
]


def evaluate_rows(
    policy: ActorCriticPolicy, batch: Samples, rows: Rows
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Values of the critic's rows, log-probabilities and entropies of the actor's; no row passes a layer twice.

    A policy with an ``evaluate_actions`` of its own is asked for everything about every row that is paid for.

    :param policy: any actor-critic policy of stable-baselines3
    :param batch: the rows paid for, ``[rows.n_paid]``, in the order of ``rows``
    :param rows: which of them are the actor's, and which the critic's
    :return: values ``[n_critic]``, log-probabilities ``[n_actor]``, entropies ``[n_actor]``. No values or
        log-probabilities (``None``) if no row pays for them, and no entropies if the distribution has no closed form.
    """
    actions = typed_actions(policy, batch.actions)
    if rows.n_actor == rows.n_critic == rows.n_paid:
        values, log_prob, entropy = policy.evaluate_actions(batch.observations, actions)
        return values.flatten(), log_prob, entropy
    if _evaluates_its_own_way(policy):
        every_value, *evaluated = policy.evaluate_actions(batch.observations, actions)
        of_actor = [each[rows.actor] if rows.n_actor and each is not None else None for each in evaluated]
        return every_value.flatten()[rows.critic] if rows.n_critic else None, of_actor[0], of_actor[1]
    features = None
    if policy.share_features_extractor:
        features = policy.extract_features(batch.observations)
    values, log_prob, entropy = None, None, None  # type: ignore[assignment]
    if rows.n_actor:
        if isinstance(features, Tensor):
            latent = policy.mlp_extractor.forward_actor(features[rows.actor])
            distribution = policy._get_action_dist_from_latent(latent)
        else:
            distribution = policy.get_distribution(take(batch, rows.actor).observations)
        log_prob, entropy = distribution.log_prob(actions[rows.actor]), distribution.entropy()
    if rows.n_critic:
        if isinstance(features, Tensor):
            values = policy.value_net(policy.mlp_extractor.forward_critic(features[rows.critic])).flatten()
        else:
            values = policy.predict_values(take(batch, rows.critic).observations).flatten()
    return values, log_prob, entropy


def slices_without_gradient(n_rows: int, batch_size: int | None) -> list[slice]:
    """Rows to evaluate at once: two minibatches, which need less memory than one with its gradient."""
    step = 2 * batch_size if batch_size else n_rows
    return [slice(start, start + step) for start in range(0, n_rows, step)]


@torch.no_grad()
def evaluate_log_prob(policy: ActorCriticPolicy, rollout: Samples, batch_size: int | None) -> Tensor:
    """Log-probabilities ``[B]`` of a rollout under the current policy, without gradient."""
    slices = slices_without_gradient(len(rollout.actions), batch_size)
    batches = [take(rollout, rows) for rows in slices]
    pairs = [(batch.observations, typed_actions(policy, batch.actions)) for batch in batches]
    if _evaluates_its_own_way(policy):
        return torch.cat([policy.evaluate_actions(*pair)[1] for pair in pairs])
    return torch.cat([policy.get_distribution(observations).log_prob(actions) for observations, actions in pairs])


def _evaluates_its_own_way(policy: ActorCriticPolicy) -> bool:
    return type(uncompiled(policy)).evaluate_actions is not ActorCriticPolicy.evaluate_actions


def uncompiled(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The policy, also of a ``model.policy`` that was replaced by ``torch.compile(model.policy)``."""
    found: ActorCriticPolicy = getattr(policy, "_orig_mod", policy)
    return found


class _Unvalidated:
    """How many training loops are in an update now: torch's setting is one for all threads of a process."""

    lock = threading.Lock()
    loops = 0
    before: bool = True  #: the setting outside of them


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """torch's argument checks read the device at every call; the training loop checks rollout and gradients itself."""
    with _Unvalidated.lock:
        if _Unvalidated.loops == 0:
            _Unvalidated.before = Distribution._validate_args
        _Unvalidated.loops += 1
        Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        with _Unvalidated.lock:
            _Unvalidated.loops -= 1
            if _Unvalidated.loops == 0:
                Distribution.set_default_validate_args(_Unvalidated.before)


def typed_actions(policy: ActorCriticPolicy, actions: Tensor) -> Tensor:
    """Actions ``[n, action_dim]``, as a rollout holds them, as the policy's distribution expects them."""
    return actions.long().flatten() if isinstance(policy.action_space, spaces.Discrete) else actions

"""Forward passes through a stable-baselines3 policy for just the rows that are paid for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution as SB3Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor
from torch.distributions import Distribution

from sb3_delight.buffers import Observations, Samples, take
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

    A policy with an ``evaluate_actions`` of its own, or with an ``extract_features`` that gives those of actor and
    critic together, is asked for everything about every row that is paid for.

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
    shared = None
    if policy.share_features_extractor:
        shared = _features(policy, batch.observations, policy.features_extractor)

    def features(own: slice, extractor: BaseFeaturesExtractor) -> Tensor:
        return _features(policy, take(batch, own).observations, extractor) if shared is None else shared[own]

    values, log_prob, entropy = None, None, None  # type: ignore[assignment]
    if rows.n_actor:
        distribution = _distribution(policy, features(rows.actor, policy.pi_features_extractor))
        log_prob, entropy = distribution.log_prob(actions[rows.actor]), distribution.entropy()
    if rows.n_critic:
        latent = policy.mlp_extractor.forward_critic(features(rows.critic, policy.vf_features_extractor))
        values = policy.value_net(latent).flatten()
    return values, log_prob, entropy


# As `evaluate_actions` puts them together: a policy may have a `get_distribution` of its own to act by.


def _features(policy: ActorCriticPolicy, observations: Observations, extractor: BaseFeaturesExtractor) -> Tensor:
    """Of the actor or the critic; those of both where they share them."""
    if policy.share_features_extractor:
        return cast(Tensor, policy.extract_features(observations))
    return BasePolicy.extract_features(uncompiled(policy), observations, extractor)


def _distribution(policy: ActorCriticPolicy, features: Tensor) -> SB3Distribution:
    """Of the actor; the policy has but one, which the next call changes."""
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(features))


def slices_without_gradient(n_rows: int, batch_size: int | None) -> list[slice]:
    """Rows to evaluate at once: two minibatches, which need less memory than one with its gradient."""
    step = 2 * batch_size if batch_size else n_rows
    return [slice(start, start + step) for start in range(0, n_rows, step)]


@torch.no_grad()
def evaluate_log_prob(policy: ActorCriticPolicy, rollout: Samples, batch_size: int | None) -> Tensor:
    """Log-probabilities ``[B]`` of a rollout under the current policy, without gradient."""

    def log_prob(batch: Samples) -> Tensor:
        actions = typed_actions(policy, batch.actions)
        if _evaluates_its_own_way(policy):
            return policy.evaluate_actions(batch.observations, actions)[1]
        features = _features(policy, batch.observations, policy.pi_features_extractor)
        return _distribution(policy, features).log_prob(actions)

    slices = slices_without_gradient(len(rollout.actions), batch_size)
    return torch.cat([log_prob(take(rollout, rows)) for rows in slices])


def _evaluates_its_own_way(policy: ActorCriticPolicy) -> bool:
    own, stock = type(uncompiled(policy)), ActorCriticPolicy
    of_both = own.extract_features is not stock.extract_features and not policy.share_features_extractor
    return of_both or own.evaluate_actions is not stock.evaluate_actions


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

"""The arguments of ``PolicyGradient`` that its subclasses pass on, for type checkers and editors."""

from typing import Any, Literal, TypedDict

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import Schedule

from sb3_delight.rollouts import ActorPool

__all__ = ["Arguments", "ArgumentsButAdvantageScaling", "ArgumentsButClipRange"]


class _Shared(TypedDict, total=False):
    n_steps: int
    batch_size: int | None
    n_epochs: int
    extra_critic_epochs: int
    target_kl: float | None
    gamma: float
    gae_lambda: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    advantage_estimator: Literal["gae", "vtrace"]
    surprisal_clip: float | None
    surprisal_baseline: Literal["none", "mode"]
    use_sde: bool
    sde_sample_freq: int
    rollout_buffer_class: type[RolloutBuffer] | None
    rollout_buffer_kwargs: dict[str, Any] | None
    actors: ActorPool | None
    stats_window_size: int
    tensorboard_log: str | None
    policy_kwargs: dict[str, Any] | None
    verbose: int
    seed: int | None
    device: torch.device | str
    _init_setup_model: bool


class ArgumentsButAdvantageScaling(_Shared, total=False):
    """Of a method with an ``advantage_scaling`` of its own."""

    clip_range: float | str | Schedule | None


class ArgumentsButClipRange(_Shared, total=False):
    """Of a method with a ``clip_range`` of its own."""

    advantage_scaling: Literal["off", "scale", "standardize"]


class Arguments(ArgumentsButAdvantageScaling, ArgumentsButClipRange, total=False):
    """All of them, but for policy, environment and learning rate."""

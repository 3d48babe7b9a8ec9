"""Other methods on the same loop, a few lines each: what a comparison with DG should be made against."""

import math
from typing import Any, Unpack

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_delight import objectives
from sb3_delight.arguments import number, require
from sb3_delight.buffers import Samples
from sb3_delight.keywords import Arguments, ArgumentsButClipRange
from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["PPO", "ImportanceWeightedPG", "ScaledPO"]


class ImportanceWeightedPG(PolicyGradient):
    """Policy gradient weighted by the ratio of learner to behaviour probability: the textbook cure for stale data.

    :param policy: see :class:`~sb3_delight.policy_gradient.PolicyGradient`, as for all parameters not listed here
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param ratio_clip: upper bound on the ratio (truncated importance sampling); ``None`` for none: unbiased
    :param kwargs: all other arguments of ``PolicyGradient``
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 7e-4,
        *,
        ratio_clip: float | None = None,
        **kwargs: Unpack[Arguments],
    ) -> None:
        self.ratio_clip = ratio_clip
        super().__init__(policy, env, learning_rate, **kwargs)

    def _resolve_arguments(self) -> None:
        given = self.clip_range
        super()._resolve_arguments()
        schedule: Any = self.clip_range
        unclipped = schedule is None or schedule(1.0) == 0  # 0: as RL-Zoo's enjoy loads every model
        require(unclipped, "clip_range", given, "None: the weight is a ratio already")
        self.clip_range = None
        require(
            self.ratio_clip is None or number(self.ratio_clip) > 0, "ratio_clip", self.ratio_clip, "positive, or None"
        )

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        return objectives.importance_weight(log_prob, batch.advantages, batch.old_log_prob, self.ratio_clip)


class PPO(PolicyGradient):
    """PPO's clipped objective: by default stable-baselines3's PPO, parameter for parameter up to rounding.

    Most of that rounding is the fused Adam's; ``policy_kwargs={"optimizer_kwargs": {"eps": 1e-5}}`` selects the Adam of
    stable-baselines3. The clipped value loss, off by default there, is absent.

    :param policy: see :class:`~sb3_delight.policy_gradient.PolicyGradient`, as for all parameters not listed here
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param clip_range: how far the ratio may move before a row stops pushing. A number, a schedule, or ``"lin_x"``.
    :param kwargs: all other arguments of ``PolicyGradient``
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        *,
        clip_range: float | str | Schedule = 0.2,
        **kwargs: Unpack[ArgumentsButClipRange],
    ) -> None:
        arguments: ArgumentsButClipRange = {
            "n_steps": 2048,
            "batch_size": 64,
            "n_epochs": 10,
            "advantage_scaling": "standardize",
            **kwargs,
        }
        super().__init__(policy, env, learning_rate, clip_range=clip_range, **arguments)

    def _resolve_arguments(self) -> None:
        require(self.clip_range is not None, "clip_range", None, "0 or more, as a number, a schedule or 'lin_x'")
        super()._resolve_arguments()


class ScaledPO(PolicyGradient):
    """Policy gradient whose failures count less (arXiv 2606.03070 v1), for asynchronous actors.

    :param policy: see :class:`~sb3_delight.policy_gradient.PolicyGradient`, as for all parameters not listed here
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param negative_scale: weight of rows with a negative advantage; 1 is the plain policy gradient, 0 ignores them
    :param kwargs: all other arguments of ``PolicyGradient``
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 7e-4,
        *,
        negative_scale: float = 0.2,
        **kwargs: Unpack[Arguments],
    ) -> None:
        self.negative_scale = negative_scale
        super().__init__(policy, env, learning_rate, **kwargs)

    def _resolve_arguments(self) -> None:
        super()._resolve_arguments()
        require(0 <= number(self.negative_scale) < math.inf, "negative_scale", self.negative_scale, "finite, 0 or more")

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        return objectives.scaled_weight(log_prob, batch.advantages, self.negative_scale)

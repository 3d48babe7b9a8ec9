"""Delightful policy gradient: rare successes count, rare failures are muted."""

from typing import Any, Literal, Unpack

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from sb3_delight import objectives
from sb3_delight.arguments import as_schedule, is_flag, require
from sb3_delight.buffers import Samples
from sb3_delight.keywords import ArgumentsButAdvantageScaling
from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["DG"]


class DG(PolicyGradient):
    """Delightful policy gradient (arXiv 2603.14608): each row weighs sigmoid(delight / temperature).

    Delight is advantage x surprisal, surprisal is -log pi under the learner's current policy, so no behaviour
    probabilities are needed: rows may come from stale actors (2603.20521), and from buggy ones whose mistakes show at
    once; under the noise of returns DG learns them.

    :param policy: see :class:`~sb3_delight.policy_gradient.PolicyGradient`, as for all parameters not listed here
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param temperature: how softly delight gates, in reward x nats. Towards ``inf`` all rows count half, as in a plain
        policy gradient; lower, failures count less and policies keep more noise, most of it between 0.3 and 1 where
        actions are discrete. 0 is the hard gate: successes alone, all alike, and no noise is added. 0 and ``inf`` are
        exact. The papers use 1, on rewards of 0 and 1; on advantages scaled to unit size that keeps policies far too
        noisy, and 10 is the measured compromise between four control tasks (``examples/reproduce/temperature.py``). A
        number, a schedule of the remaining progress, or ``"lin_x"``.
    :param normalize_delight: divide delight by its root mean square over the gradient step (never centred), so that one
        temperature means the same on a task of two actions and on one of 17 dimensions
    :param advantage_scaling: as in ``PolicyGradient``, but ``"scale"`` by default: it puts the advantage, hence the
        temperature, in units of its own spread
    :param kwargs: all other arguments of ``PolicyGradient``
    :raises ValueError: for an argument outside its range; it names the argument
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 7e-4,
        *,
        temperature: float | str | Schedule = 10.0,
        normalize_delight: bool = False,
        advantage_scaling: Literal["off", "scale", "standardize"] = "scale",
        **kwargs: Unpack[ArgumentsButAdvantageScaling],
    ) -> None:
        self.temperature = temperature
        self.normalize_delight = normalize_delight
        super().__init__(policy, env, learning_rate, advantage_scaling=advantage_scaling, **kwargs)

    def _resolve_arguments(self) -> None:
        super()._resolve_arguments()
        require(is_flag(self.normalize_delight), "normalize_delight", self.normalize_delight, "True or False")
        self.temperature = as_schedule("temperature", self.temperature)
        start = self.temperature(1.0)
        require(start >= 0, "temperature", start, "positive, 0 (hard gate) or inf (half the policy gradient)")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._warn_of_densities(sign_alone=self._current(self.temperature) == 0)
        return super()._setup_learn(*args, **kwargs)

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        delight = objectives.delight(self._less_baseline(log_prob), batch.advantages, self.surprisal_clip)
        if self.normalize_delight:
            delight = objectives.scale_by_rms(delight)
        weight = objectives.gate(delight, self._current(self.temperature))
        self.record("gate_mean", weight.mean())
        return weight

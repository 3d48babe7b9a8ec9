"""The Kondo gate: rows that do not spark joy pay for no backward pass of the policy."""

import math
from typing import Any, Literal, Unpack

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sb3_delight import objectives
from sb3_delight.arguments import as_schedule, is_flag, number, require
from sb3_delight.buffers import Samples
from sb3_delight.forward import evaluate_log_prob
from sb3_delight.keywords import ArgumentsButAdvantageScaling
from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["KondoDG", "Priority"]

Priority = Literal["delight", "advantage", "abs_advantage", "surprisal", "additive", "random"]
BY_SURPRISAL = ("delight", "surprisal", "additive")


class KondoDG(PolicyGradient):
    """The Kondo gate (arXiv 2603.20526): a coin with delight's gate decides which rows pay for a backward pass.

    Kept rows weigh 1, dropped rows enter no training pass of the actor, and the sum is divided by the size of the whole
    batch: at price 0 its expectation is DG's gradient at the same temperature. Without ``actors`` a row is judged by
    the log-probability that the rollout stored, which is free and, for one pass over a fresh rollout, exact.

    The default is a coin with the gate of ``DG()``: its step in expectation, for about half of the rows; the critic
    keeps every row. A hard gate, by a ``price`` or a ``gate_rate``, saves more with a rate. But in runs of a million
    steps on MuJoCo hard gates were far behind the coin, rows by delight were on control tasks hardly ever better than
    random ones, and policies stayed noisy (``examples/reproduce/control.py``, ``gates.py``): compare with
    ``priority="random"`` before you rely on a rate. No gate takes fewer optimiser steps: a larger ``batch_size``, which
    counts dropped rows, does that.

    :param policy: see :class:`~sb3_delight.policy_gradient.PolicyGradient`, as for all parameters not listed here
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param gate_rate: share of rows to keep, in (0, 1]; the price follows. With a hard gate exactly
        ``ceil(gate_rate * B)`` of B rows are kept, at least one; ties are broken. Lower is cheaper and greedier.
    :param price: delight that a row must exceed, in place of a ``gate_rate``. 0 keeps positive delight: for
        probabilities, every row with a positive advantage. Raise it to keep fewer. With densities above 1 it keeps
        failures, unless ``surprisal_baseline="mode"``. ``None`` is 0, or what follows from ``gate_rate``.
    :param temperature: of the gate, in reward x nats. 0 is the hard gate, with no coin; a positive one keeps any row
        now and then, as often as DG would weigh it. A number, a schedule of the remaining progress, or ``"lin_x"``.
        ``None`` is 10, as in ``DG``, for the delight itself without a price or a rate, and else 0.
    :param priority: what the gate judges. ``"delight"`` is the method; ``"advantage"``, ``"abs_advantage"``,
        ``"surprisal"``, ``"additive"`` and ``"random"`` are its controls. ``"random"`` needs a ``gate_rate``.
    :param additive_alpha: for ``"additive"``, alpha x advantage + (1 - alpha) x surprisal
    :param critic_rate: share of rows, drawn uniformly at random, that pay for the value loss, in (0, 1]. The critic is
        never gated by delight: fitted to kept rows alone it would overestimate. But at 1 the critic's own passes cap
        the saving, at 2x with separate networks and at none with a shared feature extractor.
    :param screen: ``"stored"`` judges by the rollout's log-probabilities; ``"recompute"`` by the current policy's, for
        the price of one forward pass without gradient. ``None`` is ``"recompute"`` with ``actors``, whose
        log-probabilities may be stale, where the priority takes them; and else ``"stored"``, where both are the same.
    :param normalize_delight: divide the judged score by its root mean square over the rollout (never centred), so that
        one price and temperature mean the same on different tasks
    :param advantage_scaling: as in ``PolicyGradient``, but ``"scale"`` by default
    :param kwargs: all other arguments of ``PolicyGradient``
    :raises ValueError: for an argument outside its range, or ``gate_rate`` together with a price; it names the argument
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 7e-4,
        *,
        gate_rate: float | None = None,
        price: float | None = None,
        temperature: float | str | Schedule | None = None,
        priority: Priority = "delight",
        additive_alpha: float = 0.5,
        critic_rate: float = 1.0,
        screen: Literal["stored", "recompute"] | None = None,
        normalize_delight: bool = False,
        advantage_scaling: Literal["off", "scale", "standardize"] = "scale",
        **kwargs: Unpack[ArgumentsButAdvantageScaling],
    ) -> None:
        self.gate_rate = gate_rate
        self.price = price
        self.temperature = temperature
        self.priority = priority
        self.additive_alpha = additive_alpha
        self.critic_rate = critic_rate
        self.screen = screen
        self.normalize_delight = normalize_delight
        super().__init__(policy, env, learning_rate, advantage_scaling=advantage_scaling, **kwargs)

    def _resolve_arguments(self) -> None:
        super()._resolve_arguments()
        rate, price = self.gate_rate, self.price
        if rate is not None:
            require(0 < number(rate) <= 1, "gate_rate", rate, "in (0, 1], or None")
            require(not price, "price", price, "0 or None where gate_rate is given: the price then follows from it")
        require(price is None or math.isfinite(number(price)), "price", price, "a finite number, or None")
        names = list(objectives.PRIORITIES)
        require(self.priority in names, "priority", self.priority, f"one of {names}")
        require(self.priority != "random" or rate is not None, "gate_rate", rate, "given where priority is 'random'")
        require(0 <= number(self.additive_alpha) <= 1, "additive_alpha", self.additive_alpha, "in [0, 1]")
        require(0 < number(self.critic_rate) <= 1, "critic_rate", self.critic_rate, "in (0, 1]")
        require(self.screen in (None, "stored", "recompute"), "screen", self.screen, "'stored' or 'recompute'")
        foreign = self.screen == "stored" and self.surprisal_baseline == "mode" and self.actors is not None
        allowed = "'recompute' with actors and surprisal_baseline='mode': the baseline is the learner's"
        require(not foreign, "screen", self.screen, allowed)
        require(is_flag(self.normalize_delight), "normalize_delight", self.normalize_delight, "True or False")
        if self.temperature is not None:
            self.temperature = as_schedule("temperature", self.temperature)
        self._gate_temperature(1.0)

    def _setup_model(self) -> None:
        super()._setup_model()
        normed = any(isinstance(module, _BatchNorm) for module in self.policy.modules())
        allowed = "without batch normalisation, whose statistics would be of the kept rows alone"
        require(not normed, "policy", self.policy_class, allowed)

    def _gate_temperature(self, remaining: float | None = None) -> float:
        """At the remaining progress, by default today's.

        :raises ValueError: if a schedule has left what the gate can take
        """
        rate = self.gate_rate
        as_dg = rate is None and self.price is None and self.priority == "delight" and not self.normalize_delight
        default = 10.0 if as_dg else 0.0  # in other units 10 would be a coin like any other
        temperature = default if self.temperature is None else self._current(self.temperature, remaining)
        allowed = (
            "0 (hard gate) or positive" if rate is None else "0 (hard gate), or positive and finite, with a gate_rate"
        )
        require(temperature >= 0 and (rate is None or temperature < math.inf), "temperature", temperature, allowed)
        require(rate != 1 or temperature == 0, "gate_rate", rate, "below 1 with a positive temperature")
        return temperature

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.priority in BY_SURPRISAL:
            by_sign = self.priority == "delight" and self.gate_rate is None and not self.price
            self._warn_of_densities(sign_alone=by_sign and self._gate_temperature() == 0)
        return super()._setup_learn(*args, **kwargs)

    def _select(self, rollout: Samples) -> Tensor | None:
        log_prob = rollout.old_log_prob
        stale = self.actors is not None and self.priority in BY_SURPRISAL
        if (self.screen or ("recompute" if stale else "stored")) == "recompute":
            self.policy.set_training_mode(False)  # as when it acts
            log_prob = evaluate_log_prob(self.policy, rollout, self.batch_size)
            self.policy.set_training_mode(True)
            self.screen_rows += len(log_prob)
        advantages, clip, alpha = rollout.advantages, self.surprisal_clip, self.additive_alpha
        score = objectives.priority(self.priority, self._less_baseline(log_prob), advantages, clip, alpha)
        if self.normalize_delight:
            score = objectives.scale_by_rms(score)
        temperature = self._gate_temperature()
        if self.gate_rate is not None and temperature == 0:
            kept = objectives.top_rows(score, self.gate_rate)
            self.record("gate_mean", len(kept) / len(score))
            self.record("price", score[kept].min())
            return kept
        price: Tensor | float = self.price or 0.0
        if self.gate_rate is not None:
            price = objectives.price_for_rate(score, self.gate_rate, temperature)
        gate = objectives.gate(score, temperature, price)
        self.record("gate_mean", gate.mean())
        self.record("price", price)
        # Unlike torch.bernoulli, a comparison bears a NaN, which would end a CUDA process before it can be reported. A
        # hard gate draws nothing: with the same seed, price 0 acts as DG at temperature 0 does, while some row is kept.
        coin = torch.rand_like(gate) if temperature > 0 else 0.5
        return (coin < gate).nonzero().flatten()

    def _critic_row_count(self, n_rows: int) -> int:
        return objectives.rows_at_rate(n_rows, self.critic_rate)

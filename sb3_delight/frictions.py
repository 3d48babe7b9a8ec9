"""What goes wrong on actors, on purpose: each friction is seeded, off unless listed, and they compose in list order.

``LocalActors(staleness=30, frictions=[ActorBug(0.1), RewardCorruption(0.05)])``. Stale weights are the pool's matter:
see :class:`~sb3_delight.actors.LocalActors`. Definitions follow arXiv 2603.20521 (Delightful Distributed Policy
Gradient), but per environment step and not per row of a bandit.

Where a friction replaces an action, the rollout records the replacement, with the log-probability that the actor's own
policy gives it: the actor does not know that it is broken.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import TanhBijector
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from sb3_delight.arguments import number, require

__all__ = ["ActorBug", "Friction", "MismatchedSampler", "RareDiscovery", "RewardCorruption", "as_frictions"]


class Friction:
    """Something that goes wrong between an actor's policy and its environment; by default nothing does.

    It holds settings alone, so that it can be pickled and shared; what it draws comes from a generator of the actor's.

    :param probability: that it happens, at each step of each environment, independently
    :raises ValueError: if the probability is not in [0, 1]
    """

    def __init__(self, probability: float) -> None:
        require(0 <= number(probability) <= 1, "probability", probability, "in [0, 1]")
        self.probability = probability

    def check_space(self, space: spaces.Space[Any]) -> None:
        """:raises ValueError: if it cannot happen to actions of this space"""

    def wrap_env(self, env: VecEnv, generator: torch.Generator) -> VecEnv:
        """The environment as the actor sees it, beneath VecNormalize."""
        return env

    def wrap_policy(self, policy: ActorCriticPolicy, generator: torch.Generator) -> None:
        """Change what the policy's ``forward`` returns while collecting."""

    def chosen(self, n_envs: int, generator: torch.Generator) -> Tensor:
        """To which environments it happens at this step, ``[n_envs]``."""
        return torch.rand(n_envs, generator=generator) < self.probability


class _ReplacedActions(Friction):
    """Replaces some of the actions that the policy drew."""

    def replacement(
        self, policy: ActorCriticPolicy, observations: Any, actions: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Other actions, in the policy's terms, of the shape of those it drew: ``[n_envs, *]``."""
        raise NotImplementedError

    def wrap_policy(self, policy: ActorCriticPolicy, generator: torch.Generator) -> None:
        @torch.no_grad()
        def replace(_: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> Any:
            actions, values, _log_prob = outputs
            chosen = self.chosen(len(actions), generator)
            if not chosen.any():
                return None  # as it was
            other = self.replacement(policy, inputs[0], actions, generator)
            mask = chosen.reshape(-1, *[1] * (actions.ndim - 1))
            actions = torch.where(mask, other.to(actions.dtype), actions)
            # Distributions know Box actions flat, whatever their shape.
            drawn = actions.flatten(1) if isinstance(policy.action_space, spaces.Box) else actions
            return actions, values, policy.get_distribution(inputs[0]).log_prob(drawn)

        policy.register_forward_hook(replace)


class ActorBug(_ReplacedActions):
    """The actor does something else than its policy says.

    :param probability: see :class:`Friction`
    :param action: what it does: an action of the environment's space, or ``"random"``, drawn uniformly from the space.
        ``None`` is the paper's: all zeros.
    """

    def __init__(self, probability: float, action: Any = None) -> None:
        super().__init__(probability)
        allowed = "an action of the environment, None, or 'random'"
        require(not isinstance(action, str) or action == "random", "action", action, allowed)
        self.action: Any | Literal["random"] | None = action

    def check_space(self, space: spaces.Space[Any]) -> None:
        if self.action is not None and not isinstance(self.action, str):
            require(_is_in(space, np.asarray(self.action)), "action", self.action, f"in {space}")

    def replacement(
        self, policy: ActorCriticPolicy, observations: Any, actions: Tensor, generator: torch.Generator
    ) -> Tensor:
        if isinstance(self.action, str):
            drawn = _uniform(policy.action_space, len(actions), generator)
        else:
            drawn = torch.zeros_like(actions) + torch.as_tensor(np.asarray(0 if self.action is None else self.action))
        return _in_policy_terms(policy, drawn)


class RareDiscovery(_ReplacedActions):
    """Now and then the actor happens to do what an expert would.

    :param probability: see :class:`Friction`
    :param expert: maps the observations of all environments, numpy arrays ``[n_envs, *]`` as the policy gets them
        (normalised, where VecNormalize is used), to actions of their space, ``[n_envs, *]``
    """

    def __init__(self, probability: float, expert: Callable[[Any], Any]) -> None:
        super().__init__(probability)
        require(callable(expert), "expert", expert, "a function of observations that returns actions")
        self.expert = expert

    def replacement(
        self, policy: ActorCriticPolicy, observations: Any, actions: Tensor, generator: torch.Generator
    ) -> Tensor:
        if isinstance(observations, dict):
            seen: Any = {key: part.numpy() for key, part in observations.items()}
        else:
            seen = observations.numpy()
        answer = np.asarray(self.expert(seen))
        require(answer.dtype.kind in "biuf", "expert's actions", answer, "numbers, one action for each observation")
        given = torch.as_tensor(answer)
        fits = given.shape == actions.shape
        require(fits, "expert's actions", tuple(given.shape), f"of shape {tuple(actions.shape)}")
        foreign = [action for action in given.numpy() if not _is_in(policy.action_space, action)]
        require(not foreign, "expert's actions", foreign, f"in {policy.action_space}")
        return _in_policy_terms(policy, given)


class MismatchedSampler(_ReplacedActions):
    """The actor samples from a distorted policy and records the log-probability of the clean one.

    As engines of lower precision do. Discrete actions are drawn with Gaussian noise on the logits; Box actions are
    moved by Gaussian noise on the mean. The noise is new at every step. Other frictions replace what it drew, so it
    comes before them.

    :param scale: standard deviation of the noise: nats for logits; for a mean, standard deviations of the policy
    :param probability: see :class:`Friction`
    """

    def __init__(self, scale: float, probability: float = 1.0) -> None:
        super().__init__(probability)
        require(0 <= number(scale) < math.inf, "scale", scale, "finite, 0 or more")
        self.scale = scale

    def replacement(
        self, policy: ActorCriticPolicy, observations: Any, actions: Tensor, generator: torch.Generator
    ) -> Tensor:
        distribution: Any = policy.get_distribution(observations).distribution

        def noise(like: Tensor) -> Tensor:
            return self.scale * torch.randn(like.shape, generator=generator)

        def sample(logits: Tensor) -> Tensor:  # the largest of logits with Gumbel noise is a draw from their softmax
            uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
            return (logits + noise(logits) - torch.log(-torch.log(uniform))).argmax(-1)

        if isinstance(distribution, torch.distributions.Categorical):
            return sample(distribution.logits)
        if isinstance(distribution, list):
            return torch.stack([sample(each.logits) for each in distribution], dim=-1)
        if isinstance(distribution, torch.distributions.Bernoulli):
            logits = distribution.logits + noise(distribution.logits)
            return (torch.rand(logits.shape, generator=generator) < logits.sigmoid()).float()
        moved: Tensor = (noise(distribution.stddev) * distribution.stddev).reshape(actions.shape)
        if policy.squash_output:
            return torch.tanh(TanhBijector.inverse(actions) + moved)
        return actions + moved


class RewardCorruption(Friction):
    """The reward is replaced by a fair coin.

    What ``Monitor`` reports stays the true return.

    :param probability: see :class:`Friction`
    :param low: the coin's one side, in the environment's units of reward; 0, as in the paper, by default
    :param high: its other side; 1, as in the paper, by default
    """

    def __init__(self, probability: float, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(probability)
        for name, value in (("low", low), ("high", high)):
            require(math.isfinite(number(value)), name, value, "a finite number")
        self.low, self.high = low, high

    def wrap_env(self, env: VecEnv, generator: torch.Generator) -> VecEnv:
        return _CorruptedRewards(env, self, generator)


class _CorruptedRewards(VecEnvWrapper):
    def __init__(self, env: VecEnv, friction: RewardCorruption, generator: torch.Generator) -> None:
        super().__init__(env)
        self.friction, self.generator = friction, generator

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        chosen = self.friction.chosen(self.num_envs, self.generator).numpy()
        heads = torch.rand(self.num_envs, generator=self.generator).numpy() < 0.5
        coin = np.where(heads, self.friction.high, self.friction.low).astype(rewards.dtype)
        return observations, np.where(chosen, coin, rewards), dones, infos


def as_frictions(frictions: Friction | Sequence[Friction]) -> tuple[Friction, ...]:
    """One friction, or several in their order.

    :raises ValueError: for what is no ``Friction``, or a ``MismatchedSampler`` after a friction that replaces actions:
        it would draw them anew
    """
    several = (frictions,) if isinstance(frictions, Friction) else frictions
    fits = isinstance(several, Sequence) and all(isinstance(each, Friction) for each in several)
    require(fits, "frictions", frictions, "one or a sequence of sb3_delight.frictions")
    replacing = [each for each in several if isinstance(each, _ReplacedActions)]
    first = not any(isinstance(each, MismatchedSampler) for each in replacing[1:])
    names = [type(each).__name__ for each in several]
    require(first, "frictions", names, "with MismatchedSampler before all that replaces actions: it draws them anew")
    return tuple(several)


def _is_in(space: spaces.Space[Any], action: np.ndarray) -> bool:
    """In the space's own type; no fraction is a whole number."""
    if action.dtype.kind not in "biuf":
        return False
    typed = action.astype(space.dtype)
    return bool(space.contains(typed) and (isinstance(space, spaces.Box) or (typed == action).all()))


def _uniform(space: spaces.Space[Any], n_envs: int, generator: torch.Generator) -> Tensor:
    """Actions ``[n_envs, *]`` drawn uniformly."""
    if isinstance(space, spaces.Box):
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        width = high.double() - low.double()  # in the space's own type it may overflow
        drawn = low + torch.rand((n_envs, *space.shape), generator=generator) * width
        return drawn.to(torch.promote_types(low.dtype, torch.float32))
    if isinstance(space, spaces.MultiDiscrete):
        sizes = torch.as_tensor(space.nvec)
        return (torch.rand((n_envs, len(sizes)), generator=generator, dtype=torch.float64) * sizes).long()
    size = int(space.n) if isinstance(space, spaces.Discrete) else 2
    return torch.randint(size, (n_envs, *(space.shape or ())), generator=generator)


def _in_policy_terms(policy: ActorCriticPolicy, actions: Tensor) -> Tensor:
    """Environment actions as the policy's distribution emits them: scaled to (-1, 1) where it squashes."""
    if not policy.squash_output:
        return actions
    return torch.as_tensor(policy.scale_action(actions.numpy())).clamp(-1 + 1e-6, 1 - 1e-6)

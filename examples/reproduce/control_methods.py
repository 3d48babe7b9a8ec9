"""What the levers of ``control.py`` need beyond the package: surprisal less entropy, a gate per dimension, rollouts
used again, gradients clipped apart.
"""

from collections import deque
from typing import Any

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_delight import DG, PolicyGradient
from sb3_delight.baselines import ImportanceWeightedPG
from sb3_delight.buffers import DeviceRolloutBuffer, Samples, flat_rollout


class LessEntropyDG(DG):
    """DG by surprisal less its mean, the entropy: that of the likeliest action, and half a nat for every dimension."""

    def _weight(self, log_prob: torch.Tensor, batch: Samples) -> torch.Tensor:
        return super()._weight(log_prob + get_action_dim(self.action_space) / 2, batch)


class FactoredGaussian(DiagGaussianDistribution):
    """Remembers the log-probability of every dimension, ``[n, dimensions]``."""

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        normal: Any = self.distribution
        self.by_dimension: torch.Tensor = normal.log_prob(actions)
        return torch.sum(self.by_dimension, dim=1)


class FactoredPolicy(ActorCriticPolicy):
    """Acts as ``MlpPolicy`` does, with the same weights at the start."""

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.action_dist = FactoredGaussian(get_action_dim(self.action_space))


class PerDimensionDG(DG):
    """A gate for each dimension of an action, by its own surprisal, as DG has for each token of an answer."""

    def __init__(self, _: str, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(FactoredPolicy, *arguments, **kwargs)

    def _weight(self, log_prob: torch.Tensor, batch: Samples) -> torch.Tensor:
        distribution: Any = self.policy.action_dist
        terms = distribution.by_dimension
        gate = super()._weight(terms.detach(), batch._replace(advantages=batch.advantages[:, None]))
        terms.register_hook(lambda gradient: gradient * gate)
        return torch.ones_like(log_prob)


class KeptBuffer(DeviceRolloutBuffer):
    """Remembers what came after its last step, by the critic of the time."""

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: Any) -> None:
        self.last_values, self.last_dones = last_values, dones
        super().compute_returns_and_advantage(last_values, dones)


class Reusing(PolicyGradient):
    """Trains on the last rollouts again before it trains on the new one: their values and advantages by V-trace."""

    def __init__(self, *arguments: Any, reuse: int, **kwargs: Any) -> None:
        self.reuse = reuse
        self.past: deque[KeptBuffer] = deque(maxlen=reuse)
        super().__init__(*arguments, **{**kwargs, "rollout_buffer_class": KeptBuffer})

    def train(self) -> None:
        fresh: Any = self.rollout_buffer
        for buffer in self.past:
            self.correct(buffer)
            self.rollout_buffer = buffer
            super().train()
        self.rollout_buffer = fresh
        super().train()
        self.past.append(fresh)
        shape = (self.n_steps, self.observation_space, self.action_space, "cpu", self.gae_lambda, self.gamma)
        self.rollout_buffer = KeptBuffer(*shape, self.n_envs)

    @torch.no_grad()
    def correct(self, buffer: KeptBuffer) -> None:
        rollout = flat_rollout(buffer)  # environment by environment
        values, log_prob, _ = self.policy.evaluate_actions(rollout.observations, rollout.actions)
        buffer.values.copy_(values.view(self.n_envs, -1).T)
        buffer.compute_vtrace(buffer.last_values, buffer.last_dones, log_prob)


class ReusingDG(Reusing, DG):
    """DG, which needs no ratios for the rows of older policies."""


class ReusingPG(Reusing, ImportanceWeightedPG):
    """The policy gradient with the ratios, truncated at 1, that rows of older policies need."""

    def __init__(self, *arguments: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, ratio_clip=1.0, **kwargs)


def clip_apart(model: OnPolicyAlgorithm) -> None:
    """Actor and critic in two groups of the optimiser, the gradients of each clipped to the default norm."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 0.5)

    policy = model.policy
    critic = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    known = {id(parameter) for parameter in critic}
    actor = [parameter for parameter in policy.parameters() if id(parameter) not in known]
    groups = [{"params": actor}, {"params": critic}]
    policy.optimizer = torch.optim.Adam(groups, lr=model.lr_schedule(1), eps=1e-5, fused=True)
    policy.optimizer.register_step_pre_hook(clip)

"""Delight-gated policy gradients for stable-baselines3."""

from sb3_delight import envs as envs  # registers their Gymnasium ids
from sb3_delight.dg import DG
from sb3_delight.kondo_dg import KondoDG
from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["DG", "KondoDG", "PolicyGradient", "__version__"]

__version__ = "0.1.0"

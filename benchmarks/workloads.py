"""What is timed: environments that cost nothing, networks of four sizes, and the algorithms on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_delight import DG, KondoDG, PolicyGradient, baselines
from sb3_delight.envs.extractors import CausalTransformer


class FreeEnv(gym.Env[Any, Any]):
    """Observations drawn once, rewards at random, episodes of about 50 steps: what is timed is the algorithm."""

    def __init__(self, observation_space: gym.spaces.Space[Any], action_space: gym.spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        observation_space.seed(0)
        self.observations = [observation_space.sample() for _ in range(32)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        uniform, which = self.np_random.random(2), int(self.np_random.integers(32))
        return self.observations[which], float(uniform[0]), bool(uniform[1] < 0.02), False, {}


@dataclass(frozen=True)
class Workload:
    """A network, its rollout, and how PPO would go over it."""

    observation_space: gym.spaces.Space[Any]
    action_space: gym.spaces.Space[Any]
    policy: str = "MlpPolicy"
    policy_kwargs: dict[str, Any] = field(default_factory=dict)
    n_envs: int = 8
    n_steps: int = 256
    batch_size: int = 64
    ppo_epochs: int = 10

    def make_env(self) -> VecEnv:
        return make_vec_env(lambda: FreeEnv(self.observation_space, self.action_space), self.n_envs, seed=0)


VECTOR = gym.spaces.Box(-1.0, 1.0, (17,), np.float32)
TORQUES = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)
PIXELS = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
BUTTONS = gym.spaces.Discrete(6)
TOKENS = gym.spaces.Box(0, 63, (32,), np.int64)
WIDE = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}}
IMAGES: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "ppo_epochs": 4}

TRANSFORMER: dict[str, Any] = {
    "features_extractor_class": CausalTransformer,
    "features_extractor_kwargs": {"layers": 4, "width": 256, "heads": 4, "feedforward": 1024},
    "net_arch": [],
}

WORKLOADS = {
    "mlp64": Workload(VECTOR, TORQUES),
    "mlp256": Workload(VECTOR, TORQUES, policy_kwargs=WIDE, batch_size=512),
    "cnn_shared": Workload(PIXELS, BUTTONS, "CnnPolicy", **IMAGES),
    "cnn_separate": Workload(PIXELS, BUTTONS, "CnnPolicy", {"share_features_extractor": False}, **IMAGES),
    "transformer": Workload(TOKENS, BUTTONS, "MlpPolicy", TRANSFORMER, n_steps=64, batch_size=128, ppo_epochs=4),
    "cnn_large": Workload(PIXELS, BUTTONS, "CnnPolicy", n_envs=64, n_steps=128, batch_size=2048, ppo_epochs=4),
    "transformer_large": Workload(
        TOKENS, BUTTONS, "MlpPolicy", TRANSFORMER, n_envs=64, n_steps=64, batch_size=1024, ppo_epochs=4
    ),
}
LARGE = {"cnn_large", "transformer_large"}  #: minibatches that fill a GPU; on one CPU thread an update takes minutes

Arm = Callable[[Workload, str], OnPolicyAlgorithm]


def _arm(cls: Any, **arguments: Any) -> Arm:
    def make(workload: Workload, device: str) -> OnPolicyAlgorithm:
        given = {key: value(workload) if callable(value) else value for key, value in arguments.items()}
        common = {"n_steps": workload.n_steps, "policy_kwargs": workload.policy_kwargs, "seed": 0, "device": device}
        model: OnPolicyAlgorithm = cls(workload.policy, workload.make_env(), **common, **given)
        return model

    return make


_BATCH = {"batch_size": lambda workload: workload.batch_size}
_PPO = {**_BATCH, "n_epochs": lambda workload: workload.ppo_epochs}

#: arm -> (what it is compared with, how to make it)
ARMS: dict[str, tuple[str, Arm]] = {
    "stock PPO": ("stock PPO", _arm(PPO, **_PPO)),
    "baselines.PPO": ("stock PPO", _arm(baselines.PPO, **_PPO)),
    **{
        f"Kondo 0.1, critic {critic:g}, PPO's epochs": (
            "stock PPO",
            _arm(KondoDG, gate_rate=0.1, critic_rate=critic, **_PPO),
        )
        for critic in (0.3, 0.1)
    },
    "stock A2C": ("stock A2C", _arm(A2C, use_rms_prop=False)),
    "PolicyGradient": ("stock A2C", _arm(PolicyGradient)),
    "DG": ("DG", _arm(DG, **_BATCH)),
    **{
        f"Kondo {rate:g}, critic {critic:g}, {priority}": (
            "DG",
            _arm(KondoDG, gate_rate=rate, critic_rate=critic, priority=priority, **_BATCH),
        )
        for priority in ("delight", "random")
        for critic in (1.0, 0.3, 0.1)
        for rate in (0.03, 0.1, 0.3)
    },
}

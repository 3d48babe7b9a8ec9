"""They learn: trivial environments to the optimum and CartPole to a threshold, in seconds."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_delight import DG, KondoDG, PolicyGradient

METHODS: dict[str, tuple[type[PolicyGradient], dict[str, Any]]] = {
    "DG": (DG, {}),
    "Kondo at price 0": (KondoDG, {"price": 0.0}),
    "Kondo at rate .3": (KondoDG, {"gate_rate": 0.3, "critic_rate": 0.5}),
}


@pytest.mark.parametrize("n_envs", [1, 8])
@pytest.mark.parametrize("method", METHODS)
def test_identity_is_learned(method: str, n_envs: int) -> None:
    mean = learned_return(method, DummyVecEnv([lambda: IdentityEnv(2)] * n_envs), 800 * n_envs + 4000)
    assert mean > 90  # of 100; random actions: 50


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_env", [IdentityEnvMultiDiscrete, IdentityEnvMultiBinary])
def test_identity_of_several_actions_is_learned(method: str, make_env: Any) -> None:
    assert learned_return(method, DummyVecEnv([lambda: make_env(2)] * 4), 6000) > 90


@pytest.mark.parametrize("method", ["DG", "Kondo at price 0"])
def test_continuous_identity_is_learned(method: str) -> None:
    env = DummyVecEnv([lambda: IdentityEnvBox(eps=0.5)] * 4)
    assert learned_return(method, env, 24_000, n_steps=16, max_grad_norm=5.0) > 70  # the best constant action: 50


@pytest.mark.parametrize("method", METHODS)
def test_cartpole_is_learned(method: str) -> None:
    env = make_vec_env("CartPole-v1", 8, seed=0)
    mean = learned_return(method, env, 50_000, gamma=0.98, n_steps=16, max_grad_norm=5.0)
    assert mean > 80  # random actions: 22; over seeds the least was 113


def learned_return(method: str, env: VecEnv, timesteps: int, **kwargs: Any) -> float:
    """Mean return of deterministic actions after training."""
    cls, arguments = METHODS[method]
    kwargs = {"gamma": 0.5, "learning_rate": 3e-3, "seed": 0, "device": "cpu", **kwargs, **arguments}
    model = cls("MlpPolicy", env, **kwargs).learn(timesteps)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=20, warn=False)
    return float(np.mean(mean))

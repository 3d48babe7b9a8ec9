"""The correctness certificate: with the same settings, the one loop is stable-baselines3's A2C and PPO."""

from typing import Any

import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from sb3_delight import PolicyGradient
from sb3_delight.baselines import PPO, ImportanceWeightedPG, ScaledPO

UNFUSED_ADAM = {"optimizer_kwargs": {"eps": 1e-5}}
RMSPROP = {
    "optimizer_class": torch.optim.RMSprop,
    "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0},
}
ENVS = ["CartPole-v1", "Pendulum-v1"]  # discrete and continuous actions


def largest_difference(one: BaseAlgorithm, other: BaseAlgorithm) -> float:
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def moved(model: BaseAlgorithm) -> float:
    """How far training took the parameters from where the seed put them: parity of models at rest proves nothing."""
    fresh = type(model)("MlpPolicy", model.env, seed=model.seed, device="cpu")  # type: ignore
    return largest_difference(model, fresh)


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("normalize", [False, True])
def test_policy_gradient_is_a2c(env: str, normalize: bool) -> None:
    common: dict[str, Any] = {"seed": 1, "device": "cpu", "ent_coef": 0.01, "n_steps": 8}
    stock = A2C("MlpPolicy", env, normalize_advantage=normalize, **common).learn(8 * 25)
    scaling: Any = "standardize" if normalize else "off"
    ours = PolicyGradient(
        "MlpPolicy", env, gae_lambda=1.0, advantage_scaling=scaling, policy_kwargs=RMSPROP, **common
    ).learn(8 * 25)
    assert moved(stock) > 1e-2
    # One whole batch: stock shuffles its rows before summing them, which is all that differs.
    assert largest_difference(stock, ours) < 1e-5


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")  # stock's word on truncation
@pytest.mark.parametrize("env", ENVS)
def test_ppo_is_ppo_bit_for_bit(env: str) -> None:
    common: dict[str, Any] = {"seed": 1, "device": "cpu", "n_steps": 200, "batch_size": 64, "ent_coef": 0.01}
    common["learning_rate"] = 2e-3  # so that the clip is reached
    stock = StockPPO("MlpPolicy", env, **common).learn(600)
    ours = PPO("MlpPolicy", env, policy_kwargs=UNFUSED_ADAM, **common).learn(600)
    assert moved(stock) > 1e-2
    assert ours._n_updates == 3 * 10 * 4  # 200 rows in batches of 64, the last truncated
    assert largest_difference(stock, ours) == 0.0
    for model in (stock, ours):
        model.set_logger(configure(None, []))
        model.set_random_seed(2)
        model.n_epochs = 1  # of several, stock has the KL of the last alone
        model.train()
    for name in ("clip_fraction", "approx_kl"):
        theirs, mine = (model.logger.name_to_value[f"train/{name}"] for model in (stock, ours))
        assert theirs > 0, name
        assert mine == pytest.approx(theirs), name


@pytest.mark.parametrize("env", ENVS)
def test_target_kl_ends_the_epochs_where_ppo_does(env: str) -> None:
    common: dict[str, Any] = {"seed": 1, "device": "cpu", "n_steps": 256, "learning_rate": 3e-3, "target_kl": 0.01}
    stock = StockPPO("MlpPolicy", env, **common).learn(3 * 256)
    ours = PPO("MlpPolicy", env, policy_kwargs=UNFUSED_ADAM, **common).learn(3 * 256)
    assert moved(stock) > 1e-2
    assert 0 < ours._n_updates < 3 * 10 * 4
    assert largest_difference(stock, ours) == 0.0


@pytest.mark.parametrize(
    ("cls", "stock", "others"),
    [(PPO, StockPPO, {}), (PolicyGradient, A2C, {"n_steps": 32, "gae_lambda": 0.95})],
    ids=["PPO", "PolicyGradient"],
)
def test_defaults_are_stable_baselines3s_but_for_those_that_the_documentation_names(
    cls: Any, stock: Any, others: dict[str, Any]
) -> None:
    ours, theirs = (vars(each("MlpPolicy", "CartPole-v1", device="cpu")) for each in (cls, stock))
    names = {"learning_rate", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef"}
    names |= {"max_grad_norm", "use_sde", "sde_sample_freq"}
    assert {name: ours[name] for name in names & theirs.keys() if ours[name] != theirs[name]} == others


def test_fused_adam_stays_within_float_precision() -> None:
    common: dict[str, Any] = {"seed": 1, "device": "cpu", "n_steps": 192}
    stock = StockPPO("MlpPolicy", "CartPole-v1", **common).learn(384)
    assert largest_difference(stock, PPO("MlpPolicy", "CartPole-v1", **common).learn(384)) < 1e-5


@pytest.mark.parametrize("env", ENVS)
def test_on_fresh_data_the_baselines_are_the_policy_gradient(env: str) -> None:
    common: dict[str, Any] = {"seed": 1, "device": "cpu", "n_steps": 16}
    plain = PolicyGradient("MlpPolicy", env, **common).learn(160)
    weighted = ImportanceWeightedPG("MlpPolicy", env, **common).learn(160)
    scaled = ScaledPO("MlpPolicy", env, negative_scale=1.0, **common).learn(160)
    assert largest_difference(plain, weighted) < 1e-5
    assert largest_difference(plain, scaled) == 0.0

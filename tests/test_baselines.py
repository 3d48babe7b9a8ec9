"""The other methods: what each does to stale rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_delight import DG, KondoDG
from sb3_delight.baselines import PPO, ImportanceWeightedPG, ScaledPO
from sb3_delight.policy_gradient import PolicyGradient


def weight(cls: type[PolicyGradient], log_ratio: list[float], advantages: list[float], **kwargs: Any) -> list[float]:
    model = cls("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8, **kwargs)
    log_prob = torch.tensor(log_ratio) - 1.0
    batch: Any = type("Batch", (), {"advantages": torch.tensor(advantages), "old_log_prob": torch.full((2,), -1.0)})
    return model._clip(model._weight(log_prob, batch), log_prob, batch).tolist()


def test_importance_weights_are_ratios_truncated_on_request() -> None:
    log_ratio = [0.6931472, -0.6931472]
    assert weight(ImportanceWeightedPG, log_ratio, [1.0, 1.0]) == pytest.approx([2.0, 0.5])
    assert weight(ImportanceWeightedPG, log_ratio, [1.0, 1.0], ratio_clip=1.5) == pytest.approx([1.5, 0.5])


def test_ppo_stops_rows_that_moved_far_enough() -> None:
    log_ratio = [0.6931472, -0.6931472]
    assert weight(PPO, log_ratio, [1.0, 1.0]) == pytest.approx([0.0, 0.5])
    assert weight(PPO, log_ratio, [-1.0, -1.0]) == pytest.approx([2.0, 0.0])
    assert weight(PPO, log_ratio, [1.0, -1.0], clip_range=2.0) == pytest.approx([2.0, 0.5])


def test_the_clip_multiplies_a_methods_own_weight() -> None:
    log_ratio, muted = [0.6931472, -0.6931472], {"negative_scale": 0.25, "clip_range": 0.2}
    assert weight(ScaledPO, log_ratio, [1.0, 1.0], **muted) == pytest.approx([0.0, 0.5])
    assert weight(ScaledPO, log_ratio, [-1.0, -1.0], **muted) == pytest.approx([0.5, 0.0])


def test_ppo_is_the_policy_gradient_with_a_clip() -> None:
    same: dict[str, Any] = {"seed": 0, "device": "cpu", "n_steps": 32, "batch_size": 8, "n_epochs": 3}
    same |= {"learning_rate": 1e-3, "clip_range": 0.1, "advantage_scaling": "standardize"}
    models = [cls("MlpPolicy", "CartPole-v1", **same).learn(64) for cls in (PPO, PolicyGradient)]
    unclipped = PolicyGradient("MlpPolicy", "CartPole-v1", **same | {"clip_range": None}).learn(64)
    one, other, third = ([p.detach() for p in model.policy.parameters()] for model in (*models, unclipped))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, third, strict=True))


@pytest.mark.parametrize("cls", [PolicyGradient, DG, KondoDG, ImportanceWeightedPG, PPO])
def test_models_load_as_rl_zoos_enjoy_loads_them(cls: type[PolicyGradient], tmp_path: Path) -> None:
    cls("MlpPolicy", "CartPole-v1", device="cpu", n_steps=64).save(tmp_path / "model")
    nothing = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    cls.load(tmp_path / "model", device="cpu", custom_objects=nothing).predict(np.zeros(4))


def test_ppo_follows_the_schedule_of_its_clip_range() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8, clip_range="lin_0.4")
    model._current_progress_remaining = 0.5
    assert model._current(model.clip_range) == pytest.approx(0.2)


def test_scaled_po_mutes_failures() -> None:
    assert weight(ScaledPO, [0.0, 0.0], [1.0, -1.0]) == pytest.approx([1.0, 0.2])
    assert weight(ScaledPO, [0.0, 0.0], [1.0, -1.0], negative_scale=0.0) == pytest.approx([1.0, 0.0])

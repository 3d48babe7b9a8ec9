"""The other methods: what each does to stale rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_delight import DG, KondoDG, objectives
from sb3_delight.actors import LocalActors
from sb3_delight.baselines import PPO, ImportanceWeightedPG, ScaledPO
from sb3_delight.frictions import ActorBug
from sb3_delight.policy_gradient import PolicyGradient


def weight(
    cls: type[PolicyGradient], log_ratio: list[float], advantages: list[float], progress: float = 1.0, **kwargs: Any
) -> list[float]:
    model = cls("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8, **kwargs)
    model._current_progress_remaining = progress
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


def test_importance_weights_are_never_clipped_twice(tmp_path: Path) -> None:
    model = ImportanceWeightedPG("MlpPolicy", "CartPole-v1", device="cpu", n_steps=16, clip_range=0.0).learn(16)
    assert model.clip_range is None
    model.save(tmp_path / "model")  # at a remaining progress of 0, where this schedule is 0 as well
    with pytest.raises(ValueError, match=r"^clip_range must be None: .* got 'lin_0.2'"):
        ImportanceWeightedPG.load(tmp_path / "model", clip_range="lin_0.2")


@pytest.mark.parametrize("advantage", [-1.0, -100.0])
def test_a_ratio_without_bound_is_no_gradient_without_bound(advantage: float) -> None:
    """Of a failure that the behaviour hardly ever chose: there PPO's clip does not act."""
    log_prob = torch.tensor([0.0, 0.0], requires_grad=True)
    advantages, behaviour = torch.full((2,), advantage), torch.tensor([-1000.0, -0.5])
    ratio = objectives.ppo_clip_weight(log_prob, advantages, behaviour)
    assert ratio.tolist() == [pytest.approx(1e8), pytest.approx(math.exp(0.5))]
    assert (ratio * torch.zeros(2)).tolist() == [0.0, 0.0]  # nor one of what a gate has dropped
    objectives.policy_gradient_loss(log_prob, advantages, ratio).backward()  # type: ignore[no-untyped-call]
    assert log_prob.grad is not None
    assert log_prob.grad.square().sum().isfinite()


@pytest.mark.parametrize("cls", [DG, PPO, KondoDG])
def test_a_clip_bears_actions_that_a_buggy_actor_took(cls: type[PolicyGradient]) -> None:
    """A narrow policy gives them a probability of about 0."""
    model = cls(
        "MlpPolicy", "Pendulum-v1", 3e-3, clip_range=0.2, n_epochs=10, batch_size=32, n_steps=64, seed=0, device="cpu",
        surprisal_baseline="mode", policy_kwargs={"log_std_init": -2}, actors=LocalActors(3, [ActorBug(0.1, "random")]),
    )  # fmt: skip
    model.learn(40 * 64)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize(("progress", "expected"), [(1.0, [1.1, 1.3]), (0.5, [1.1, 0.0]), (0.0, [0.0, 0.0])])
def test_ppo_follows_the_schedule_of_its_clip_range(progress: float, expected: list[float]) -> None:
    log_ratio = [math.log(1.1), math.log(1.3)]
    assert weight(PPO, log_ratio, [1.0, 1.0], progress, clip_range="lin_0.4") == pytest.approx(expected)


def test_how_far_the_policy_has_moved_is_logged() -> None:
    """Of the ratios beyond the clip, whether or not it silences them: the advantages here are all above 0."""
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=8)
    batch: Any = type("Batch", (), {"advantages": torch.ones(4), "old_log_prob": torch.zeros(4)})
    ratios = torch.tensor([1.5, 1.1, 0.9, 0.5])
    assert not model._is_beyond_target_kl(ratios.log(), batch)
    assert model._metrics["clip_fraction"][-1] == 0.5
    torch.testing.assert_close(model._metrics["approx_kl"][-1], (ratios - 1 - ratios.log()).mean())


def test_scaled_po_mutes_failures() -> None:
    assert weight(ScaledPO, [0.0, 0.0], [1.0, -1.0]) == pytest.approx([1.0, 0.2])
    assert weight(ScaledPO, [0.0, 0.0], [1.0, -1.0], negative_scale=0.0) == pytest.approx([1.0, 0.0])

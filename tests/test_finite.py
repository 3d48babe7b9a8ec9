"""What is not finite is found wherever it hides, and named."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_delight.finite import NotFiniteError, check_gradients, check_observations, check_rollout, finite_parts


def rollout(**changes: torch.Tensor) -> RolloutBufferSamples:
    row = torch.zeros(4)
    return RolloutBufferSamples(torch.zeros(4, 2), torch.zeros(4, 1), row, row, row, row)._replace(**changes)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("old_log_prob", "log-probability of the policy"),
        ("old_values", "value estimate"),
        ("returns", r"reward \(or last observation of a truncated episode\)"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_part_is_named(field: str, name: str, value: float) -> None:
    check_rollout(rollout(), 7)
    with pytest.raises(NotFiniteError, match=f"NaN or inf {name} in the rollout that ended at timestep 7"):
        check_rollout(rollout(**{field: torch.tensor([0.0, value, 0.0, 0.0])}), 7)


def test_images_are_not_searched_but_every_part_of_a_dict_is() -> None:
    names, finite = finite_parts(rollout(observations=torch.zeros(4, 2, dtype=torch.uint8)))
    assert "observation" not in names
    assert finite.all()
    observations = {"image": torch.zeros(4, 2, dtype=torch.uint8), "speed": torch.tensor([[0.0], [torch.nan]])}
    plain = rollout()
    with pytest.raises(NotFiniteError, match="observation"):
        check_rollout(DictRolloutBufferSamples(observations, *plain[1:]), 0)


def test_observations_of_the_environments() -> None:
    check_observations({"a": np.zeros(2), "b": np.zeros(2, np.uint8)}, 0)
    with pytest.raises(NotFiniteError, match="observation"):
        check_observations({"a": np.zeros(2), "b": np.array([0.0, np.inf])}, 0)


def test_the_first_bad_gradient_step_is_told() -> None:
    metrics = {"gradient_norm": [1.0, math.inf], "value_loss": [2.0, 2.0]}
    check_gradients({"gradient_norm": metrics["gradient_norm"][:1]})
    with pytest.raises(ValueError, match=r"gradient step 2 of 2.*'value_loss': 2.0"):
        check_gradients(metrics)


def test_a_bad_gradient_step_is_told_though_some_metrics_are_of_the_update() -> None:
    norms = [1.0, math.inf]
    with pytest.raises(ValueError, match=r"gradient step 2 of 2.*: \{'gradient_norm': inf\}"):
        check_gradients({"gradient_norm": norms, "surprisal_mean": [3.0]})

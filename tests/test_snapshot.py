"""A snapshot brings back everything an update changes, whatever the optimiser and the layers."""

from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor, nn

from sb3_delight import DG
from sb3_delight.snapshot import Snapshot, optimized_parameters

OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (RMSpropTFLike, {}),  # counts its steps in plain numbers
]


class Normalized(nn.Sequential):
    """A layer with buffers, one of whole numbers."""

    features_dim = 4

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(nn.Linear(observation_space.shape[0], 4), nn.BatchNorm1d(4))


def make(optimizer: type[torch.optim.Optimizer], arguments: dict[str, Any]) -> DG:
    policy = {
        "features_extractor_class": Normalized,
        "optimizer_class": optimizer,
        "optimizer_kwargs": arguments,
    }
    return DG("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, policy_kwargs=policy, seed=0, device="cpu")


def everything(policy: ActorCriticPolicy) -> list[Any]:
    """Values of all that may change, copied."""
    state = policy.optimizer.state_dict()["state"]
    values = [*policy.state_dict().values(), *(value for entry in state.values() for value in entry.values())]
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


@pytest.mark.parametrize(("optimizer", "arguments"), OPTIMIZERS)
@pytest.mark.parametrize("earlier", [0, 32])  # an optimiser without state, and one with
def test_everything_comes_back(optimizer: type[torch.optim.Optimizer], arguments: dict[str, Any], earlier: int) -> None:
    model = make(optimizer, arguments)
    if earlier:
        model.learn(earlier)
    before, snapshot = everything(model.policy), Snapshot(model.policy)
    model.learn(32, reset_num_timesteps=False)
    after = everything(model.policy)
    assert len(after) > len(before) if not earlier else not torch.equal(before[0], after[0])
    snapshot.restore()
    again = everything(model.policy)
    assert len(before) == len(again)
    for one, other in zip(before, again, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_the_optimisers_parameters_are_the_policys() -> None:
    model = make(*OPTIMIZERS[0])
    for one, other in zip(optimized_parameters(model.policy), model.policy.parameters(), strict=True):
        assert one is other


def test_whole_numbers_come_back_exactly() -> None:
    model = make(*OPTIMIZERS[0])
    layer: Any = model.policy.features_extractor
    layer[1].num_batches_tracked.fill_(2**24 + 1)
    before, snapshot = everything(model.policy), Snapshot(model.policy)
    layer[1].num_batches_tracked.zero_()
    snapshot.restore()
    assert all(torch.equal(one, other) for one, other in zip(before, everything(model.policy), strict=True))

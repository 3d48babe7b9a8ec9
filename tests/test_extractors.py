"""The transformer reads what was written so far, and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from sb3_delight.envs.extractors import CausalTransformer


def one_hot(tokens: Tensor, symbols: int) -> Tensor:
    return nn.functional.one_hot(tokens, symbols).flatten(1).float()


def test_slots_after_the_last_token_change_nothing() -> None:
    """A prefix in a longer observation has the features that a transformer made for its length gives it."""
    long = CausalTransformer(spaces.MultiDiscrete([3] * 6), padding=2)
    short = CausalTransformer(spaces.MultiDiscrete([3] * 4))
    weights = {name: value for name, value in long.state_dict().items() if name != "positions.weight"}
    short.load_state_dict({**weights, "positions.weight": long.positions.weight[:4]})
    prefix = torch.randint(2, (16, 4))
    padded = torch.cat([prefix, torch.full((16, 2), 2)], dim=1)
    features = long(one_hot(padded, 3))
    torch.testing.assert_close(features, short(one_hot(prefix, 3)), atol=1e-5, rtol=1e-4)
    features.square().sum().backward()
    assert long.positions.weight.grad is not None
    assert long.positions.weight.grad.abs().sum(dim=1).gt(0).tolist() == [True] * 4 + [False] * 2


def test_rows_of_different_lengths_are_read_at_their_own_last_token() -> None:
    extractor = CausalTransformer(spaces.MultiDiscrete([3] * 6), padding=2)
    tokens = torch.randint(2, (6, 6))
    places = torch.arange(6)
    padded = torch.where(places > places[:, None], 2, tokens)  # row k holds k + 1 tokens
    together = extractor(one_hot(padded, 3))
    for row in range(6):
        torch.testing.assert_close(together[row : row + 1], extractor(one_hot(padded[row : row + 1], 3)))
    changed = padded.clone()
    changed[3, 3] = 1 - changed[3, 3]
    moved = (extractor(one_hot(changed, 3)) - together).abs().sum(dim=1) > 1e-3
    assert moved.tolist() == [row == 3 for row in range(6)]


def test_numbers_and_one_hot_vectors_are_the_same_tokens() -> None:
    numbers = CausalTransformer(spaces.Box(0, 4, (7,), np.int64), layers=1, width=12, heads=3, feedforward=5)
    vectors = CausalTransformer(spaces.MultiDiscrete([5] * 7), layers=1, width=12, heads=3, feedforward=5)
    vectors.load_state_dict(numbers.state_dict())
    tokens = torch.randint(5, (9, 7))
    features = numbers(tokens.float())
    assert features.shape == (9, 12)
    torch.testing.assert_close(features, vectors(one_hot(tokens, 5)))


def test_acting_and_learning_see_the_same_features() -> None:
    """torch takes another path through its layers when there is no gradient."""
    extractor = CausalTransformer(spaces.MultiDiscrete([3] * 6), padding=2)
    tokens = one_hot(torch.randint(3, (32, 6)), 3)
    learning = extractor(tokens)
    extractor.eval()
    with torch.no_grad():
        torch.testing.assert_close(extractor(tokens), learning, atol=1e-5, rtol=1e-4)


def test_blocks_do_not_start_as_copies() -> None:
    first, second = CausalTransformer(spaces.MultiDiscrete([3] * 6)).blocks
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        if one.ndim == 2:
            assert not torch.equal(one, other), name


@pytest.mark.parametrize(
    ("space", "kwargs", "named"),
    [
        (spaces.MultiDiscrete([3, 3]), {"layers": 0}, "layers"),
        (spaces.MultiDiscrete([3, 3]), {"heads": 3}, "heads"),
        (spaces.MultiDiscrete([3, 3]), {"padding": 3}, "padding"),
        (spaces.MultiDiscrete([3, 4]), {}, "observation_space"),
        (spaces.Box(0.0, np.inf, (3,)), {}, "observation_space"),
        (spaces.Box(-1.0, 1.0, (3,)), {}, "observation_space"),
        (spaces.Box(0, 1, (3, 2)), {}, "observation_space"),
    ],
)
def test_bad_arguments_of_the_transformer_are_named(space: Any, kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must be"):
        CausalTransformer(space, **kwargs)

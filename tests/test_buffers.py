"""Storage on the training device against stable-baselines3's, on every space it supports."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from envs import AnySpaces
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_delight import DG, KondoDG, PolicyGradient
from sb3_delight.actors import LocalActors
from sb3_delight.buffers import DeviceRolloutBuffer, flat_rollout

N_STEPS = 5
FLAT_SPACES: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    "uint16": spaces.Box(0, 60_000, (2,), np.uint16),
    "uint32": spaces.Box(0, 4_000_000_000, (2,), np.uint32),
    "image": spaces.Box(0, 255, (1, 4, 4), np.uint8),
    "Discrete": spaces.Discrete(7),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary 2-D": spaces.MultiBinary([2, 3]),
}
OBSERVATION_SPACES = {**FLAT_SPACES, "Dict": spaces.Dict(FLAT_SPACES)}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "Box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "Box 2-D": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
ATTRIBUTES = ("actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
# What torch cannot index, and what networks would narrow anyway, is stored otherwise than in stable-baselines3.
STORED_AS = {torch.float64: torch.float32, torch.uint16: torch.int32, torch.uint32: torch.int64}

by_observation = pytest.mark.parametrize(
    "observation_space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES.keys()
)
by_action = pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES.keys())
by_n_envs = pytest.mark.parametrize("n_envs", [1, 3])


def buffers(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int
) -> tuple[RolloutBuffer, DeviceRolloutBuffer]:
    """Stock's and ours, empty."""
    stock_class = DictRolloutBuffer if isinstance(observation_space, spaces.Dict) else RolloutBuffer
    arguments: Any = (N_STEPS, observation_space, action_space, "cpu", 0.9, 0.95, n_envs)
    return stock_class(*arguments), DeviceRolloutBuffer(*arguments)


def simple_buffer(n_envs: int = 3) -> DeviceRolloutBuffer:
    return buffers(FLAT_SPACES["float32"], ACTION_SPACES["Box"], n_envs)[1]


def fill(*filled: RolloutBuffer, seed: int = 0) -> None:
    """Give every buffer the same random rollout."""
    observation_space, action_space = filled[0].observation_space, filled[0].action_space
    observation_space.seed(seed)
    action_space.seed(seed)
    random, n_envs = np.random.default_rng(seed), filled[0].n_envs
    for _ in range(N_STEPS):
        seen = [observation_space.sample() for _ in range(n_envs)]
        observation: Any = np.stack(seen) if not isinstance(seen[0], dict) else None
        if observation is None:
            observation = {key: np.stack([each[key] for each in seen]) for key in seen[0]}
        action = np.stack([action_space.sample() for _ in range(n_envs)])
        if isinstance(action_space, spaces.Discrete):
            action = action.reshape(-1, 1)  # as collect_rollouts does
        reward, start = random.normal(size=n_envs).astype(np.float32), random.random(n_envs) < 0.3
        value, log_prob = torch.from_numpy(random.normal(size=(2, n_envs)).astype(np.float32))
        for buffer in filled:
            buffer.add(observation, action, reward, start, value[:, None], log_prob)
    for buffer in filled:
        buffer.compute_returns_and_advantage(value[:, None], start)


def named(observations: Any) -> Iterator[tuple[str, Any]]:
    yield from observations.items() if isinstance(observations, dict) else [("", observations)]


def assert_same_tensor(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert ours.dtype == STORED_AS.get(stock.dtype, stock.dtype)
    assert torch.equal(ours, stock.to(ours.dtype))


def assert_same_samples(ours: Any, stock: Any) -> None:
    assert type(ours) is type(stock)
    for (key, one), (other_key, other) in zip(named(ours.observations), named(stock.observations), strict=True):
        assert key == other_key
        assert_same_tensor(one, other)
    for one, other in zip(ours[1:], stock[1:], strict=True):
        assert_same_tensor(one, other)


@by_observation
@by_action
@by_n_envs
def test_minibatches_are_stable_baselines3s(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int
) -> None:
    stock, ours = buffers(observation_space, action_space, n_envs)
    fill(stock, ours)
    for batch_size in (None, 4, 1000):  # of 5 or 15 rows: the last minibatch of 4 is truncated
        batches = []
        for buffer in (stock, ours):
            np.random.seed(7)
            batches.append(list(buffer.get(batch_size)))
        assert sum(len(batch.actions) for batch in batches[1]) == N_STEPS * n_envs
        for stock_batch, our_batch in zip(*batches, strict=True):
            assert_same_samples(our_batch, stock_batch)


def test_rows_asked_for_by_number_are_stable_baselines3s() -> None:
    stock, ours = buffers(FLAT_SPACES["float32"], ACTION_SPACES["Box"], 3)
    fill(stock, ours)
    next(stock.get())  # which flattens what it stores
    rows = np.array([4, 0, 7])
    assert_same_samples(ours._get_samples(rows), stock._get_samples(rows))
    assert len(ours.sample(4).actions) == 4


@by_observation
@by_action
@by_n_envs
def test_attributes_are_stable_baselines3s(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], n_envs: int
) -> None:
    stock, ours = buffers(observation_space, action_space, n_envs)
    fill(stock, ours)
    assert (ours.pos, ours.full) == (stock.pos, stock.full)
    for attribute in ATTRIBUTES:
        np.testing.assert_array_equal(getattr(ours, attribute).numpy(), getattr(stock, attribute), attribute)
    for (key, one), (_, other) in zip(named(ours.observations), named(stock.observations), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.astype(one.numpy().dtype), key)


@by_observation
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_holds_the_rollout_and_takes_another(observation_space: spaces.Space[Any], duplicate: Any) -> None:
    original = buffers(observation_space, ACTION_SPACES["Discrete"], 3)[1]
    fill(original)
    copied = duplicate(original)
    before = copy.deepcopy(flat_rollout(original))
    assert_same_samples(flat_rollout(copied), before)
    copied.reset()
    fill(copied, seed=1)
    assert_same_samples(flat_rollout(original), before)
    original.reset()
    fill(original, seed=1)
    assert_same_samples(flat_rollout(copied), flat_rollout(original))


def test_get_leaves_the_attributes_as_they_were() -> None:
    ours = simple_buffer()
    fill(ours)
    before = {name: getattr(ours, name).clone() for name in ("observations", *ATTRIBUTES)}
    list(ours.get(4))
    assert all(torch.equal(getattr(ours, name), tensor) for name, tensor in before.items())


@by_n_envs
def test_flat_rollout_is_a_view_environment_after_environment(n_envs: int) -> None:
    ours = buffers(OBSERVATION_SPACES["Dict"], ACTION_SPACES["Box"], n_envs)[1]
    fill(ours)
    rollout: Any = flat_rollout(ours)
    of_samples = (ours.actions, ours.values, ours.log_probs, ours.advantages, ours.returns)
    stored = [tensor for _, tensor in named(ours.observations)] + list(of_samples)
    for flat, attribute in zip([*rollout.observations.values(), *rollout[1:]], stored, strict=True):
        assert flat.data_ptr() == attribute.data_ptr()
        for step, env in np.ndindex(N_STEPS, n_envs):
            assert torch.equal(flat[env * N_STEPS + step], attribute[step, env])


def test_flat_rollout_of_another_buffer_holds_each_row_once() -> None:
    stock, ours = buffers(FLAT_SPACES["float32"], ACTION_SPACES["Box"], 3)
    fill(stock, ours)
    flat, expected = flat_rollout(stock), flat_rollout(ours)
    order = flat.advantages.argsort()
    expected_order = expected.advantages.argsort()
    for one, other in zip(flat, expected, strict=True):
        assert isinstance(one, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one[order], other[expected_order])


def test_the_next_rollout_overwrites_the_last_in_the_same_memory() -> None:
    ours, fresh = simple_buffer(), simple_buffer()
    fill(ours, seed=0)
    memory = {name: getattr(ours, name).data_ptr() for name in ("observations", *ATTRIBUTES)}
    ours.reset()
    assert (ours.pos, ours.full) == (0, False)
    fill(ours, seed=1)
    fill(fresh, seed=1)
    for name, address in memory.items():
        assert getattr(ours, name).data_ptr() == address
        assert torch.equal(getattr(ours, name), getattr(fresh, name))


@pytest.mark.parametrize("read", [flat_rollout, lambda buffer: next(buffer.get(4))], ids=["flat_rollout", "get"])
def test_an_incomplete_rollout_is_refused(read: Any) -> None:
    ours = simple_buffer()
    fill(ours)
    ours.reset()
    nothing = np.zeros(3, np.float32)
    ours.add(np.zeros((3, 3)), np.zeros((3, 2)), nothing, nothing, torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="1 of 5 steps"):
        read(ours)


def test_arrays_of_any_layout_are_stored() -> None:
    ours = simple_buffer()
    observation, action = np.arange(9.0).reshape(3, 3), np.arange(6).reshape(2, 3).T
    ours.add(observation[::-1, ::-1], action, np.ones(6)[::2], np.zeros(3), torch.zeros(3), torch.zeros(3))
    np.testing.assert_array_equal(np.asarray(ours.observations)[0], observation[::-1, ::-1])
    np.testing.assert_array_equal(ours.actions[0].numpy(), action)


@pytest.mark.parametrize(("cls", "arguments"), [(DG, {}), (KondoDG, {"gate_rate": 0.3})], ids=["DG", "KondoDG"])
@pytest.mark.parametrize("observations", ["float64", "Dict"])
@pytest.mark.parametrize("actions", ["Box", "Discrete", "MultiBinary"])
def test_training_with_stable_baselines3s_buffer_gives_the_same_parameters(
    cls: type[PolicyGradient], arguments: dict[str, Any], observations: str, actions: str
) -> None:
    policy = "MultiInputPolicy" if observations == "Dict" else "MlpPolicy"
    stock_class = DictRolloutBuffer if observations == "Dict" else RolloutBuffer
    flat: dict[str, spaces.Space[Any]] = {key: FLAT_SPACES[key] for key in ("float64", "Discrete", "MultiBinary")}
    space = spaces.Dict(flat) if observations == "Dict" else flat[observations]
    trained = []
    for buffer_class in (stock_class, DeviceRolloutBuffer):
        env = DummyVecEnv([lambda: AnySpaces(space, ACTION_SPACES[actions])] * 2)
        model = cls(policy, env, n_steps=8, seed=2, device="cpu", rollout_buffer_class=buffer_class, **arguments)
        start = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
        model.learn(5 * 16)
        assert type(model.rollout_buffer) is buffer_class
        trained.append(torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    stock, ours = trained
    assert (stock - start).abs().max() > 1e-3
    assert (stock - ours).abs().max() < 1e-6


@pytest.mark.parametrize("staleness", [None, 0, 1])
def test_normalized_whole_numbers_keep_their_fractions(staleness: int | None) -> None:
    """VecNormalize makes floats of them, and leaves the space as it was."""
    whole: dict[str, spaces.Space[Any]] = {
        "int64": spaces.Box(0, 9, (3,), np.int64),
        "uint8": spaces.Box(0, 255, (3,), np.uint8),
        "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),  # not normalised
    }

    def env() -> DummyVecEnv:
        return DummyVecEnv([lambda: AnySpaces(spaces.Dict(whole), ACTION_SPACES["Box"])] * 2)

    acted_on: list[dict[str, np.ndarray]] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            acted_on.append(self.locals["new_obs"])
            return True

    actors = None if staleness is None else LocalActors(staleness, env_fn=env)
    normalized = VecNormalize(env(), norm_obs_keys=["int64", "uint8"])
    model = DG("MultiInputPolicy", normalized, n_steps=8, device="cpu", actors=actors)
    model.learn(32, callback=Watch())
    observations = flat_rollout(copy.deepcopy(model.rollout_buffer)).observations
    assert isinstance(observations, dict)
    assert observations["image"].dtype == torch.uint8
    for key, stored in observations.items():
        seen = torch.as_tensor(np.stack([each[key] for each in acted_on[7:15]]))  # after the first rollout's last step
        assert stored.reshape(2, 8, *stored.shape[1:]).transpose(0, 1).equal(seen.reshape(8, 2, *stored.shape[1:]))
    assert (observations["int64"] % 1).any()


@pytest.mark.parametrize("kind", ["float32", "Dict"])
def test_arrays_that_a_callback_assigns_serve_one_rollout(kind: str) -> None:
    """A bonus on rewards, say, written as ``buffer.rewards = buffer.rewards + bonus``."""
    _, buffer = buffers(OBSERVATION_SPACES[kind], ACTION_SPACES["Box"], 2)
    for rollout in range(2):
        buffer.reset()
        for _ in range(N_STEPS):
            observations = {key: np.full_like([space.sample()] * 2, rollout) for key, space in FLAT_SPACES.items()}
            observation: Any = observations if kind == "Dict" else observations[kind]
            reward, start = np.full(2, rollout), np.zeros(2)
            buffer.add(observation, np.zeros((2, 2)), reward, start, torch.zeros(2), torch.zeros(2))
        parts = buffer.observations if isinstance(buffer.observations, dict) else {"": buffer.observations}
        assert all((part == rollout).all() for part in parts.values())
        assert (buffer.rewards == rollout).all()
        buffer.compute_returns_and_advantage(torch.zeros(2), np.zeros(2))
        plain = buffer.advantages.clone()
        buffer.rewards = buffer.rewards + 0.5
        buffer.compute_returns_and_advantage(torch.zeros(2), np.zeros(2))
        assert (buffer.advantages > plain).all()
        if isinstance(buffer.observations, dict):
            buffer.observations["float32"] = buffer.observations["float32"] + 5
        else:
            buffer.observations = buffer.observations + 5


def test_memory_is_pinned_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS, for which this device stands, has none."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", None, raising=False)
    space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    buffer = DeviceRolloutBuffer(2, space, spaces.Discrete(2), torch.device("meta"), n_envs=2)
    for _ in range(2):
        row = np.zeros(2, np.float32)
        buffer.add(np.zeros((2, 3), np.float32), np.zeros((2, 1)), row, row, torch.zeros(2), torch.zeros(2))
    assert flat_rollout(buffer).observations.shape == (4, 3)  # type: ignore[union-attr]
    assert {batch.actions.device.type for batch in buffer.get(2)} == {"meta"}

"""Everything a user of stable-baselines3 may plug in: spaces, policies, vectorised environments, callbacks, saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from envs import AnySpaces, MatchPoint, Poisoned
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvMultiDiscrete, SimpleMultiObsEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_delight import DG, KondoDG, PolicyGradient

N_STEPS = 8
ARGUMENTS: dict[type[PolicyGradient], dict[str, Any]] = {DG: {}, KondoDG: {"gate_rate": 0.3, "critic_rate": 0.5}}
FLAT_OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (4, 4, 1), np.uint8),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Box": spaces.Box(-2.0, 1.0, (2,), np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
BOX = FLAT_OBSERVATIONS["float32"]

both_algorithms = pytest.mark.parametrize("cls", ARGUMENTS.keys())
by_action = pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS.keys())


def vectorised(make: Callable[[], gym.Env[Any, Any]], n_envs: int = 1) -> VecEnv:
    return DummyVecEnv([lambda: Monitor(make())] * n_envs)


def build(cls: type[PolicyGradient], env: Any, policy: str = "MlpPolicy", **kwargs: Any) -> PolicyGradient:
    policy_kwargs = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    arguments = {"n_steps": N_STEPS, "seed": 0, "device": "cpu", **ARGUMENTS[cls], **kwargs}
    return cls(policy, env, policy_kwargs=policy_kwargs, **arguments)


def parameters(model: PolicyGradient) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def assert_lives(model: PolicyGradient, path: Path) -> None:
    """Two updates, predict, save, load, predict the same, and another update by the loaded one."""
    env = model.get_env()
    assert env is not None
    rollout = N_STEPS * env.num_envs
    before = parameters(model)
    model.learn(2 * rollout)
    after = parameters(model)
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)
    rate = ARGUMENTS[type(model)].get("gate_rate", 1.0)
    assert model.actor_rows == 2 * np.ceil(rate * rollout)

    observation: Any = env.reset()
    actions, _ = model.predict(observation, deterministic=True)
    assert all(env.action_space.contains(action) for action in actions)
    model.save(path / "model")
    loaded = type(model).load(path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], actions)
    assert torch.equal(parameters(loaded), after)
    loaded.learn(rollout, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * rollout
    assert torch.isfinite(parameters(loaded)).all()
    assert not torch.equal(parameters(loaded), after)
    assert torch.equal(parameters(model), after)
    env.close()


# -------------------------------------------------------------------------------------------------- spaces and policies


@both_algorithms
@pytest.mark.parametrize("observation_space", FLAT_OBSERVATIONS.values(), ids=FLAT_OBSERVATIONS.keys())
@by_action
def test_mlp_policy(
    cls: type[PolicyGradient],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    tmp_path: Path,
) -> None:
    assert_lives(build(cls, AnySpaces(observation_space, action_space)), tmp_path)


@both_algorithms
@by_action
@pytest.mark.parametrize("shared", [True, False])
def test_multi_input_policy(
    cls: type[PolicyGradient], action_space: spaces.Space[Any], shared: bool, tmp_path: Path
) -> None:
    observation_space = spaces.Dict({**FLAT_OBSERVATIONS, "image": spaces.Box(0, 255, (36, 36, 1), np.uint8)})
    env = vectorised(lambda: AnySpaces(observation_space, action_space), n_envs=2)
    policy_kwargs = {"share_features_extractor": shared, "features_extractor_kwargs": {"cnn_output_dim": 8}}
    assert_lives(build(cls, env, "MultiInputPolicy", policy_kwargs=policy_kwargs, batch_size=6), tmp_path)


@both_algorithms
def test_multi_input_policy_on_stable_baselines3s_own_environment(cls: type[PolicyGradient], tmp_path: Path) -> None:
    env = vectorised(lambda: SimpleMultiObsEnv(random_start=True))
    policy_kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
    assert_lives(build(cls, env, "MultiInputPolicy", policy_kwargs=policy_kwargs), tmp_path)


@both_algorithms
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_cnn_policy_on_stacked_frames(cls: type[PolicyGradient], shared: bool, discrete: bool, tmp_path: Path) -> None:
    env = VecFrameStack(vectorised(lambda: FakeImageEnv(3, 36, 36, discrete=discrete), n_envs=2), n_stack=4)
    policy_kwargs = {"share_features_extractor": shared, "features_extractor_kwargs": {"features_dim": 8}}
    model = build(cls, env, "CnnPolicy", policy_kwargs=policy_kwargs)
    assert_lives(model, tmp_path)
    assert model.rollout_buffer.obs_shape == (4, 36, 36)
    assert getattr(model.rollout_buffer.observations, "dtype", None) == torch.uint8


@both_algorithms
@pytest.mark.parametrize("squash_output", [False, True])
@pytest.mark.parametrize("sde_sample_freq", [-1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_gsde(
    cls: type[PolicyGradient], squash_output: bool, sde_sample_freq: int, shared: bool, tmp_path: Path
) -> None:
    policy_kwargs = {"squash_output": squash_output, "share_features_extractor": shared}
    env = vectorised(lambda: AnySpaces(BOX, ACTIONS["Box"]), n_envs=2)
    arguments: dict[str, Any] = {"use_sde": True, "sde_sample_freq": sde_sample_freq, "ent_coef": 0.01}
    assert_lives(build(cls, env, policy_kwargs=policy_kwargs, **arguments), tmp_path)


# -------------------------------------------------------------------------------------------- vectorised environments


@both_algorithms
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_number_of_environments_and_minibatches(
    cls: type[PolicyGradient], n_envs: int, batch_size: int | None, tmp_path: Path
) -> None:
    env = vectorised(lambda: IdentityEnvMultiDiscrete(2, ep_length=5), n_envs)
    model = build(cls, env, batch_size=batch_size)
    assert_lives(model, tmp_path)
    steps = 2 * -(-N_STEPS * n_envs // (batch_size or N_STEPS * n_envs))
    # A gate may leave a minibatch without a row to pay for.
    assert model._n_updates == steps if cls is DG else 0 < model._n_updates <= steps


@both_algorithms
def test_environments_in_processes_of_their_own(cls: type[PolicyGradient], tmp_path: Path) -> None:
    assert_lives(build(cls, SubprocVecEnv([MatchPoint] * 2, start_method="fork")), tmp_path)


@both_algorithms
def test_normalised_environments(cls: type[PolicyGradient], tmp_path: Path) -> None:
    env = VecNormalize(vectorised(lambda: AnySpaces(BOX, ACTIONS["Box"]), n_envs=2))
    model = build(cls, env)
    assert_lives(model, tmp_path)
    assert model.get_vec_normalize_env() is env
    statistics: Any = env.obs_rms
    assert statistics.count > 3 * N_STEPS * 2  # it saw every observation


# ------------------------------------------------------------------------------------------- callbacks and parameters


@both_algorithms
def test_evaluation_and_checkpoints(cls: type[PolicyGradient], tmp_path: Path) -> None:
    env = vectorised(MatchPoint)
    arguments: dict[str, Any] = {"log_path": "log", "best_model_save_path": "best", "verbose": 0}
    evaluation = EvalCallback(vectorised(MatchPoint), n_eval_episodes=2, eval_freq=N_STEPS, **arguments)
    model = build(cls, env)
    model.learn(3 * N_STEPS, callback=[evaluation, CheckpointCallback(2 * N_STEPS, "checkpoints")])
    results = np.load(tmp_path / "log" / "evaluations.npz")
    assert results["timesteps"].tolist() == [N_STEPS, 2 * N_STEPS, 3 * N_STEPS]
    assert np.isfinite(results["results"]).all()
    checkpoint = cls.load(tmp_path / "checkpoints" / f"rl_model_{2 * N_STEPS}_steps", env=env, device="cpu")
    assert checkpoint.num_timesteps == 2 * N_STEPS
    checkpoint.learn(N_STEPS, reset_num_timesteps=False)
    assert torch.isfinite(parameters(checkpoint)).all()
    assert (tmp_path / "best" / "best_model.zip").exists()
    cls.load(tmp_path / "best" / "best_model", device="cpu").predict(np.zeros(1, np.float32))


@both_algorithms
def test_parameters_and_optimiser_move_from_model_to_model(cls: type[PolicyGradient]) -> None:
    space = ACTIONS["Box"]
    one, other = (build(cls, AnySpaces(BOX, space), seed=seed).learn(2 * N_STEPS) for seed in (0, 1))
    assert not torch.equal(parameters(one), parameters(other))
    exported: Any = one.get_parameters()
    other.set_parameters(exported)
    assert torch.equal(parameters(one), parameters(other))
    state, other_state = (model.policy.optimizer.state_dict()["state"] for model in (one, other))
    assert all(torch.equal(state[key]["exp_avg"], other_state[key]["exp_avg"]) for key in state)
    before = parameters(other)
    other.learn(N_STEPS, reset_num_timesteps=False)
    assert not torch.equal(before, parameters(other))


# ------------------------------------------------------------------------------------------------------ what is refused


OBSERVATIONS_ALLOWED = ["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict"]
ACTIONS_ALLOWED = ["Box", "Discrete", "MultiDiscrete", "MultiBinary"]
UNSUPPORTED_OBSERVATIONS: dict[str, tuple[spaces.Space[Any], list[str]]] = {
    "Tuple": (spaces.Tuple([BOX, BOX]), OBSERVATIONS_ALLOWED),
    "Text": (spaces.Text(3), OBSERVATIONS_ALLOWED),
    "Dict in Dict": (spaces.Dict({"inner": spaces.Dict({"box": BOX})}), ["flat Dict"]),
    "Tuple in Dict": (spaces.Dict({"inner": spaces.Tuple([BOX])}), ["flat Dict"]),
    "Text in Dict": (spaces.Dict({"text": spaces.Text(3)}), OBSERVATIONS_ALLOWED),
    "Discrete from 1": (spaces.Discrete(3, start=1), ["start"]),
    "MultiDiscrete from 1": (spaces.MultiDiscrete([2, 3], start=[1, 0]), ["MultiDiscrete numbered from 0"]),
    "MultiDiscrete 2-D": (spaces.MultiDiscrete(np.array([[2, 3], [2, 3]])), ["MultiDiscrete"]),
    "Box 0-D": (spaces.Box(-1, 1, (), np.float32), ["one dimension or more"]),
}
UNSUPPORTED_ACTIONS: dict[str, tuple[spaces.Space[Any], list[str]]] = {
    "Text": (spaces.Text(3), ACTIONS_ALLOWED),
    "Tuple": (spaces.Tuple([BOX, BOX]), ACTIONS_ALLOWED),
    "Dict": (spaces.Dict({"box": BOX}), ACTIONS_ALLOWED),
    "unbounded Box": (spaces.Box(-np.inf, np.inf, (1,), np.float32), ["finite"]),
    "MultiBinary 2-D": (spaces.MultiBinary([2, 2]), ["MultiBinary"]),
    "MultiBinary of a list": (spaces.MultiBinary([3]), ["MultiBinary(3)"]),
    "MultiDiscrete 2-D": (spaces.MultiDiscrete(np.array([[2, 3], [2, 3]])), ["MultiDiscrete"]),
    "MultiDiscrete from 1": (spaces.MultiDiscrete([2, 3], start=[1, 0]), ["MultiDiscrete numbered from 0"]),
    "Discrete from 1": (spaces.Discrete(3, start=1), ["start"]),
}


@both_algorithms
@pytest.mark.parametrize(("space", "allowed"), UNSUPPORTED_OBSERVATIONS.values(), ids=UNSUPPORTED_OBSERVATIONS.keys())
def test_unsupported_observation_spaces_are_refused_with_what_is_allowed(
    cls: type[PolicyGradient], space: spaces.Space[Any], allowed: list[str]
) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match="observation space") as error:
        build(cls, AnySpaces(space, ACTIONS["Discrete"]), policy)
    assert all(word in str(error.value) for word in allowed)


@both_algorithms
@pytest.mark.parametrize(("space", "allowed"), UNSUPPORTED_ACTIONS.values(), ids=UNSUPPORTED_ACTIONS.keys())
def test_unsupported_action_spaces_are_refused_with_what_is_allowed(
    cls: type[PolicyGradient], space: spaces.Space[Any], allowed: list[str]
) -> None:
    with pytest.raises(ValueError, match="action space") as error:
        build(cls, AnySpaces(BOX, space))
    assert all(word in str(error.value) for word in allowed)


@both_algorithms
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_dict_observations_need_the_multi_input_policy(cls: type[PolicyGradient], policy: str) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        build(cls, AnySpaces(spaces.Dict({"box": BOX}), ACTIONS["Discrete"]), policy)


@both_algorithms
def test_the_multi_input_policy_needs_dict_observations(cls: type[PolicyGradient]) -> None:
    with pytest.raises(ValueError, match=r"^policy must be 'MlpPolicy' or 'CnnPolicy'"):
        build(cls, AnySpaces(BOX, ACTIONS["Discrete"]), "MultiInputPolicy")


@both_algorithms
def test_gsde_is_refused_without_continuous_actions(cls: type[PolicyGradient]) -> None:
    with pytest.raises(ValueError, match="continuous"):
        build(cls, AnySpaces(BOX, ACTIONS["Discrete"]), use_sde=True)


@both_algorithms
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [3, N_STEPS])
def test_one_bad_entry_of_a_dict_observation_stops_before_the_update(
    cls: type[PolicyGradient], value: float, at: int
) -> None:
    space = spaces.Dict({"good": BOX, "bad": BOX})
    model = build(cls, Poisoned(AnySpaces(space, ACTIONS["Box"]), "observation", value, at, "bad"), "MultiInputPolicy")
    before = parameters(model)
    with pytest.raises(ValueError, match="NaN or inf observation"):
        model.learn(2 * N_STEPS)
    assert torch.equal(before, parameters(model))
    model.learn(N_STEPS)
    assert torch.isfinite(parameters(model)).all()

"""Actors in the learner's process: what they collect, and that training from it is training."""

import csv
import pickle
import random
import zipfile
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from envs import AnySpaces, Poisoned
from gymnasium import make as make_gym
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_delight import DG, KondoDG, PolicyGradient, rollouts
from sb3_delight.actors import Actor, ActorPool, ActorSpec, LocalActors, Rollout, Weights
from sb3_delight.baselines import PPO, ImportanceWeightedPG
from sb3_delight.buffers import observation_parts
from sb3_delight.env_copies import CopyError
from sb3_delight.frictions import ActorBug
from sb3_delight.normalization import statistics_of
from sb3_delight.returns import gae, vtrace

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
METHODS: list[tuple[type[PolicyGradient], dict[str, Any]]] = [
    (PolicyGradient, {}),
    (DG, {}),
    (KondoDG, {"gate_rate": 0.3, "screen": "stored"}),
    (ImportanceWeightedPG, {}),
    (ImportanceWeightedPG, {"ratio_clip": 1.0, "advantage_estimator": "vtrace"}),
    (PPO, {"batch_size": 32, "n_epochs": 2}),
]


def make(cls: type[PolicyGradient] = DG, env: Any = None, n_envs: int = 2, **kwargs: Any) -> PolicyGradient:
    kwargs = {"seed": 0, "device": "cpu", "n_steps": 16, **kwargs}
    return cls("MlpPolicy", make_vec_env("CartPole-v1", n_envs) if env is None else env, **kwargs)


def parameters(model: PolicyGradient) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def weights_of(model: PolicyGradient) -> Weights:
    return Weights({name: tensor.clone() for name, tensor in model.policy.state_dict().items()}, {})


class Spy(LocalActors):
    """Keeps what goes through the pool."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.published: list[tuple[Weights, int]] = []
        self.collected: list[Rollout] = []
        self.closed = 0

    def publish(self, weights: Weights, version: int) -> None:
        self.published.append((weights, version))
        super().publish(weights, version)

    def collect(self) -> Rollout:
        self.collected.append(super().collect())
        return self.collected[-1]

    def close(self) -> None:
        self.closed += self._actor is not None
        super().close()


class AtRolloutEnd(BaseCallback):
    """Looks at every rollout once it is in the buffer."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._on_rollout_end = look  # type: ignore[method-assign]

    def _on_step(self) -> bool:
        return True


# ---------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("cls", "kwargs"), METHODS, ids=lambda value: getattr(value, "__name__", ""))
def test_without_staleness_training_is_that_without_actors(
    env_id: str, cls: type[PolicyGradient], kwargs: dict[str, Any]
) -> None:
    models = []
    for actors in (None, LocalActors()):
        # Pendulum is truncated after 200 steps: the learner's value of the last state is part of the proof.
        models.append(make(cls, make_vec_env(env_id, 2), n_steps=64, actors=actors, **kwargs))
        start = parameters(models[-1])
        models[-1].learn(4 * 2 * 64)
        assert not torch.equal(parameters(models[-1]), start)
    assert torch.equal(parameters(models[0]), parameters(models[1]))
    assert models[0].ep_info_buffer is not None
    assert models[1].ep_info_buffer is not None
    returns = [[episode["r"] for episode in model.ep_info_buffer or []] for model in models]
    assert returns[0] == returns[1] != []


@pytest.mark.parametrize("sde", [False, True])
def test_the_same_with_vecnormalize_and_gsde(sde: bool) -> None:
    models = []
    for actors in (None, LocalActors()):
        env = VecNormalize(make_vec_env("Pendulum-v1", 2))
        models.append(make(DG, env, n_steps=64, use_sde=sde, sde_sample_freq=8, actors=actors).learn(4 * 2 * 64))
    assert torch.allclose(parameters(models[0]), parameters(models[1]), atol=1e-5)
    one, other = (statistics_of(model.get_vec_normalize_env()) for model in models)
    for name in ("observation", "return"):
        for moment in range(3):  # mean, variance, count
            np.testing.assert_allclose(one[name][moment], other[name][moment], rtol=1e-6)


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "speed": BOX}), spaces.Discrete(3)),
        (spaces.Discrete(5), spaces.MultiDiscrete([2, 3])),
        (spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.MultiBinary(3)),
        (spaces.MultiDiscrete([3, 4]), BOX),
    ],
    ids=["Dict", "Discrete", "float64", "MultiDiscrete"],
)
def test_the_same_for_other_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Episodes of ten steps, truncated and terminated in turn."""

    def env_fn() -> AnySpaces:
        return AnySpaces(deepcopy(observation_space), action_space)  # each with a generator of its own

    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    found = []
    for actors in (None, LocalActors(env_fn=env_fn)):
        env = DummyVecEnv([env_fn, env_fn])
        model = DG(policy, env, seed=0, device="cpu", n_steps=16, actors=actors).learn(4 * 2 * 16)
        found.append(parameters(model))
    assert torch.equal(*found)


def test_stale_weights_train_too_and_differently() -> None:
    fresh, stale = (make(actors=LocalActors(staleness)).learn(10 * 32) for staleness in (0, 3))
    assert torch.isfinite(parameters(stale)).all()
    assert not torch.equal(parameters(fresh), parameters(stale))
    again = make(actors=LocalActors(3)).learn(10 * 32)
    assert torch.equal(parameters(stale), parameters(again))


# ------------------------------------------------------------------------------------- staleness


def test_the_weights_of_k_rollouts_ago_act() -> None:
    pool = Spy(staleness=2)
    model = make(PolicyGradient, actors=pool).learn(6 * 32)
    assert [version for _, version in pool.published] == [0, 1, 2, 3, 4, 5]
    assert [rollout.version for rollout in pool.collected] == [0, 0, 0, 1, 2, 3]
    for rollout in pool.collected:
        model.policy.load_state_dict(pool.published[rollout.version][0].policy)
        observations = torch.as_tensor(rollout.observations.reshape(32, -1))
        _, log_prob, _ = model.policy.evaluate_actions(observations, torch.as_tensor(rollout.actions.flatten()))
        np.testing.assert_allclose(log_prob.detach().reshape(16, 2), rollout.log_probs, atol=1e-6)


def test_published_weights_do_not_follow_the_learner() -> None:
    pool = Spy()
    make(PolicyGradient, actors=pool).learn(2 * 32)
    first, second = (weights.policy["value_net.weight"] for weights, _ in pool.published)
    assert not torch.equal(first, second)


def test_a_pair_draws_uniformly_within_its_bounds() -> None:
    pool = Spy(staleness=(1, 3))
    make(PolicyGradient, n_steps=4, actors=pool).learn(60 * 8)
    ages = [now - rollout.version for now, rollout in enumerate(pool.collected)]
    assert set(ages[3:]) == {1, 2, 3}


def test_a_function_draws_with_the_pools_own_generator() -> None:
    def draw(generator: np.random.Generator) -> int:
        return int(generator.integers(2)) * 4

    pools = [Spy(draw), Spy(draw)]
    for pool in pools:
        make(PolicyGradient, n_steps=4, actors=pool).learn(30 * 8)
    one, other = ([rollout.version for rollout in pool.collected] for pool in pools)
    assert one == other
    assert {now - version for now, version in enumerate(one[4:], 4)} == {0, 4}


@pytest.mark.parametrize("staleness", [-1, 1.5, True, "old", (3, 1), (1, 2, 3), (0.5, 2), 1001, (), (3,)])
def test_bad_staleness_is_refused(staleness: Any) -> None:
    with pytest.raises(ValueError, match=r"^staleness must be a whole number from 0 to 1000"):
        LocalActors(staleness)


def test_bad_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^staleness must be .*, got -1"):
        make(actors=LocalActors(lambda generator: -1)).learn(32)


# ------------------------------------------------------------------------- what the learner makes of it


def test_values_are_the_learners_and_log_probabilities_the_actors() -> None:
    pool = Spy(staleness=3)
    # A rate high enough for values to move by more than the tolerance.
    model = make(PolicyGradient, learning_rate=0.01, batch_size=8, actors=pool)
    seen: list[bool] = []

    def check() -> None:
        rollout, buffer = pool.collected[-1], model.rollout_buffer
        with torch.no_grad():
            values = model.policy.predict_values(torch.as_tensor(rollout.observations.reshape(32, -1)))
        np.testing.assert_allclose(buffer.values, values.reshape(16, 2), atol=1e-6)
        np.testing.assert_array_equal(buffer.log_probs, rollout.log_probs)
        seen.append(np.allclose(buffer.values, rollout.values, atol=1e-6))

    model.learn(5 * 32, callback=AtRolloutEnd(check))
    assert seen == [True, False, False, False, False]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_vtrace_corrects_older_rollouts_by_the_learners_probabilities(env_id: str) -> None:
    pool = Spy(staleness=1)
    env = make_vec_env(env_id, 2)
    arguments: dict[str, Any] = {"learning_rate": 0.01, "batch_size": 8, "advantage_estimator": "vtrace"}
    model = make(DG, env, actors=pool, **arguments)
    differ: list[bool] = []

    def check() -> None:
        rollout = pool.collected[-1]
        buffer: Any = model.rollout_buffer
        flat = env_id == "CartPole-v1"
        ratios = np.zeros_like(rollout.rewards)
        with torch.no_grad():
            last = model.policy.predict_values(torch.as_tensor(rollout.last_observation)).flatten()
            for step in range(16):
                actions = torch.as_tensor(rollout.actions[step])
                observations = torch.as_tensor(rollout.observations[step])
                learner = model.policy.evaluate_actions(observations, actions.flatten() if flat else actions)[1]
                ratios[step] = learner - rollout.log_probs[step]
        end = (last, torch.as_tensor(rollout.last_dones, dtype=torch.float32))
        given = (buffer.rewards, buffer.values, buffer.episode_starts, *end, model.gamma, model.gae_lambda)
        advantages, returns = vtrace(*given, torch.as_tensor(ratios))
        torch.testing.assert_close(buffer.advantages, advantages, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(buffer.returns, returns, atol=1e-5, rtol=1e-4)
        differ.append(not torch.allclose(returns, gae(*given)[1], atol=1e-3))

    model.learn(4 * 32, callback=AtRolloutEnd(check))
    assert differ == [False, True, True, True]
    with pytest.raises(ValueError, match="rollout_buffer_class must be a DeviceRolloutBuffer with advantage_est"):
        make(DG, env, rollout_buffer_class=RolloutBuffer, **arguments)


@pytest.mark.parametrize("buffer", [None, DictRolloutBuffer])
def test_values_of_dict_observations_are_the_learners_too(buffer: Any) -> None:
    """In minibatches that do not divide the rollout; with our buffer and with that of stable-baselines3."""
    space = spaces.Dict({"near": BOX, "far": BOX})
    pool = Spy(staleness=1, env_fn=lambda: AnySpaces(space, BOX))
    env = DummyVecEnv([lambda: AnySpaces(space, BOX)] * 2)
    model = PolicyGradient(
        "MultiInputPolicy", env, n_steps=16, batch_size=10, rollout_buffer_class=buffer, device="cpu", actors=pool
    )

    def check() -> None:
        rollout = pool.collected[-1]
        for step in range(16):
            with torch.no_grad():
                values = model.policy.predict_values(obs_as_tensor(rollout.observation(step), model.device))
            np.testing.assert_allclose(model.rollout_buffer.values[step], values.flatten(), atol=1e-6)

    model.learn(4 * 32, callback=AtRolloutEnd(check))
    assert [rollout.version for rollout in pool.collected] == [0, 0, 4, 8]


def test_truncated_states_are_valued_by_the_learner() -> None:
    pool = Spy(staleness=1, env_fn=lambda: AnySpaces(BOX, BOX))
    model = make(PolicyGradient, DummyVecEnv([lambda: AnySpaces(BOX, BOX)]), gamma=0.5, actors=pool)
    added = []

    def check() -> None:
        rollout, buffer = pool.collected[-1], model.rollout_buffer
        for step, (info,) in enumerate(rollout.infos):
            difference = float(buffer.rewards[step, 0]) - rollout.rewards[step, 0]
            if info.get("TimeLimit.truncated"):
                terminal = torch.as_tensor(info["terminal_observation"])[None]
                assert difference == pytest.approx(0.5 * model.policy.predict_values(terminal).item(), abs=1e-6)
                added.append(step)
            else:
                assert difference == 0

    model.learn(4 * 16, callback=AtRolloutEnd(check))
    assert len(added) == 6  # every tenth step of 64


def test_kondo_judges_by_the_learners_policy() -> None:
    pool = LocalActors(1)
    assert make(KondoDG, actors=pool).learn(64).screen_rows == 64
    assert make(KondoDG).learn(64).screen_rows == 0
    assert make(KondoDG, screen="stored", actors=pool).learn(64).screen_rows == 0


# ------------------------------------------------------------------------------------- callbacks


class Count(BaseCallback):
    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.events: list[str] = []
        self.timesteps: list[int] = []
        self.rewards: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        self.events.append("start")

    def _on_rollout_end(self) -> None:
        self.events.append("end")

    def _on_step(self) -> bool:
        self.timesteps.append(self.num_timesteps)
        self.rewards.append(self.locals["rewards"].copy())
        for name in ("new_obs", "dones", "infos", "actions", "values", "log_probs"):
            assert len(self.locals[name]) == 2
        return self.stop_after is None or self.n_calls < self.stop_after


def test_callbacks_see_every_step() -> None:
    pool, count = Spy(staleness=1), Count()
    model = make(actors=pool).learn(3 * 32, callback=count)
    assert model.num_timesteps == 96
    assert count.timesteps == list(range(2, 98, 2))
    assert count.events == ["start", "end"] * 3
    np.testing.assert_array_equal(np.stack(count.rewards), np.concatenate([each.rewards for each in pool.collected]))


class Look(BaseCallback):
    """Keeps the locals that tell of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_step(self) -> bool:
        names = ("actions", "values", "log_probs", "new_obs", "rewards", "dones")
        self.seen.append([deepcopy(self.locals[name]) for name in names])
        return True


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (spaces.Dict({"place": spaces.Discrete(3), "speed": BOX}), spaces.Discrete(3)),
        (spaces.Discrete(5), spaces.MultiDiscrete([2, 3])),
        (spaces.Box(-1.0, 1.0, (2, 2), np.float64), spaces.MultiBinary(3)),
        (spaces.MultiDiscrete([3, 4]), spaces.Box(-1.0, 1.0, (2, 3), np.float32)),
    ],
    ids=["Dict", "Discrete", "float64", "MultiDiscrete"],
)
def test_callbacks_see_a_step_as_without_actors(observation_space: Any, action_space: Any) -> None:
    def env_fn() -> AnySpaces:
        return AnySpaces(deepcopy(observation_space), action_space)

    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    looks = []
    for actors in (None, LocalActors(env_fn=env_fn)):
        look = Look()
        DG(policy, DummyVecEnv([env_fn, env_fn]), seed=0, device="cpu", n_steps=16, actors=actors).learn(32, look)
        looks.append(look.seen)
    assert len(looks[0]) == len(looks[1]) == 16
    for here, there in zip(*looks, strict=True):
        for one, other in zip(here, there, strict=True):
            for a, b in zip(observation_parts(one), observation_parts(other), strict=True):
                assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
                np.testing.assert_allclose(a, b, rtol=1e-6)  # the buffer keeps float64 as float32


def test_a_callback_stops_training_in_the_middle_of_a_rollout() -> None:
    model = make(actors=LocalActors())
    start = parameters(model)
    model.learn(1000, callback=Count(stop_after=5))
    assert model.num_timesteps == 10
    assert torch.equal(parameters(model), start)


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_callbacks_of_stable_baselines3_count_as_without_actors(tmp_path: Path) -> None:
    found = []
    for name, actors in (("none", None), ("local", LocalActors())):
        env = VecNormalize(make_vec_env("CartPole-v1", 2))
        evaluation = VecNormalize(make_vec_env("CartPole-v1", 1, seed=1), training=False, norm_reward=False)
        callbacks = [
            EvalCallback(evaluation, n_eval_episodes=2, eval_freq=100, log_path=str(tmp_path / name), verbose=0),
            CheckpointCallback(60, str(tmp_path / name), save_vecnormalize=True),
            StopTrainingOnMaxEpisodes(10),
        ]
        model = make(DG, env, actors=actors).learn(2000, callback=callbacks, progress_bar=True)
        evaluations = np.load(tmp_path / name / "evaluations.npz")
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        found.append((model.num_timesteps, evaluations["timesteps"].tolist(), files))
    assert found[0] == found[1]
    assert found[0][1][0] == 200


# ------------------------------------------------------------------------------ saving and going on


def test_the_pool_is_not_saved(tmp_path: Path) -> None:
    model = make(actors=LocalActors(env_fn=lambda: make_gym("CartPole-v1"))).learn(64)
    model.save(tmp_path / "model")
    assert b'"actors"' not in zipfile.ZipFile(tmp_path / "model.zip").read("data")
    assert DG.load(tmp_path / "model").actors is None


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    model = make(actors=LocalActors(2)).learn(96)
    model.save(tmp_path / "model")
    pool = Spy(2)
    model = DG.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2), device="cpu", actors=pool)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 160
    assert [version for _, version in pool.published] == [3, 4]


@pytest.mark.parametrize("reset", [False, True])
def test_learning_again_does_not_repeat_the_data(reset: bool) -> None:
    pool = Spy()
    model = make(actors=pool).learn(32)
    model.learn(32, reset_num_timesteps=reset)
    one, other = pool.collected
    assert not np.array_equal(one.observations[0], other.observations[0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_pool_is_closed_however_learning_ends(error: type[BaseException]) -> None:
    class Fail(BaseCallback):
        def _on_step(self) -> bool:
            raise error

    pool = Spy()
    model = make(actors=pool)
    with pytest.raises(error):
        model.learn(32, callback=Fail())
    assert pool.closed == 1
    model.learn(32)
    assert pool.closed == 2


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_an_environment_that_fails_to_close_hides_nothing(error: type[BaseException] | None, caplog: Any) -> None:
    class Stuck(DummyVecEnv):
        def close(self) -> None:
            raise OSError("gone")

    class Fail(BaseCallback):
        def _on_step(self) -> bool:
            if error:
                raise error
            return True

    model = make(actors=LocalActors(env_fn=lambda: Stuck([lambda: make_gym("CartPole-v1")] * 2)))
    for _ in range(2):  # nor does it stay in the way
        if error:
            with pytest.raises(error):
                model.learn(32, callback=Fail())
        else:
            assert model.learn(32).num_timesteps == 32
    assert [record.message for record in caplog.records] == ["the actor's environment did not close"] * 2


def test_two_pools_one_after_the_other() -> None:
    model = make(actors=LocalActors()).learn(32)
    model.actors = None
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 64


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_what_is_not_finite_is_reported_as_without_actors(what: str) -> None:
    def env_fn() -> Poisoned:
        return Poisoned(make_gym("CartPole-v1"), what, float("nan"), at=40)

    model = make(env=DummyVecEnv([env_fn]), actors=LocalActors(1, env_fn=env_fn))
    start: list[torch.Tensor] = []

    class Keep(BaseCallback):
        def _on_rollout_start(self) -> None:
            start[:] = [parameters(model)]

        def _on_step(self) -> bool:
            return True

    with pytest.raises(
        ValueError, match=rf"NaN or inf {what}( \(or last .*\))? in the rollout that ended at timestep (40|48)"
    ):
        model.learn(200, callback=Keep())
    assert torch.equal(parameters(model), start[0])
    model.learn(32)  # with a new environment, which is poisoned later


@pytest.mark.parametrize("actors", [4, LocalActors, "local"])
def test_what_is_no_pool_is_refused(actors: Any) -> None:
    with pytest.raises(ValueError, match=r"^actors must be a pool"):
        make(actors=actors)


@pytest.mark.parametrize("frictions", ["bug", [3], [ActorBug], [ActorBug(0.1), None], None])
def test_what_is_no_friction_is_refused(frictions: Any) -> None:
    with pytest.raises(ValueError, match=r"^frictions must be one or a sequence of sb3_delight.frictions"):
        LocalActors(0, frictions)


def test_one_friction_need_not_be_in_a_sequence() -> None:
    friction = ActorBug(0.1)
    assert LocalActors(0, friction).frictions == LocalActors(0, [friction]).frictions == (friction,)


def test_an_environment_that_raises_ends_learning_with_its_error() -> None:
    class Raises(AnySpaces):
        def step(self, action: Any) -> Any:
            raise OSError("the simulator is gone")

    env = DummyVecEnv([lambda: AnySpaces(BOX, BOX)])
    pool = Spy(env_fn=lambda: Raises(BOX, BOX))
    with pytest.raises(OSError, match="the simulator is gone"):
        make(env=env, actors=pool).learn(32)
    assert pool.closed == 1


# ------------------------------------------------------------------------------- the actor and its seed


def spec_of(model: PolicyGradient) -> ActorSpec:
    return ActorSpec.of(model)


def collected(spec: ActorSpec, weights: Weights, stream: tuple[int, ...]) -> Rollout:
    actor = Actor(spec, stream)
    actor.load(weights, version=7)
    return actor.collect()


def test_an_actor_is_made_from_what_can_be_pickled_and_so_can_its_rollout() -> None:
    model = make()
    spec = spec_of(model)
    one = collected(spec, weights_of(model), (0, 1))
    other = collected(pickle.loads(pickle.dumps(spec)), pickle.loads(pickle.dumps(weights_of(model))), (0, 1))
    other = pickle.loads(pickle.dumps(other))
    np.testing.assert_array_equal(one.observations, other.observations)
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    assert one.version == other.version == 7


def test_every_actor_and_every_restart_has_a_stream_of_its_own() -> None:
    model = make()
    spec, weights = spec_of(model), weights_of(model)
    streams: list[tuple[int, ...]] = [(), (0, 0), (0, 1), (1, 0), (1, 1)]
    rollouts = [collected(spec, weights, stream) for stream in streams]
    firsts = np.concatenate([rollout.observations[0] for rollout in rollouts])  # of 5 x 2 environments
    assert len(np.unique(firsts, axis=0)) == 10
    assert len({rollout.actions.tobytes() for rollout in rollouts}) == 5


def test_unseeded_learners_have_unlike_actors() -> None:
    model = make(seed=None)
    specs = [spec_of(model), spec_of(model)]
    one, other = (collected(spec, weights_of(model), (0,)) for spec in specs)
    assert not np.array_equal(one.observations, other.observations)


def test_unseeded_learners_follow_the_processs_generators() -> None:
    runs = []
    for seed in (3, 3, 4):
        set_random_seed(seed)
        runs.append(parameters(make(seed=None, actors=LocalActors()).learn(2 * 32)))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_policy_whose_parts_were_replaced_is_told() -> None:
    model = make(actors=LocalActors())
    model.policy.value_net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 1))  # type: ignore[assignment]
    with pytest.raises(CopyError, match=r"(?s)model\.policy must be what its class and policy_kwargs make.*value_net"):
        model.learn(32)


def test_the_learners_own_noise_is_of_todays_deviations() -> None:
    """Callbacks act with it; the actors' is theirs."""
    seen: list[torch.Tensor] = []

    class Noise(BaseCallback):
        def _on_rollout_start(self) -> None:
            policy: Any = self.model.policy
            seen.append(policy.action_dist.exploration_mat.detach())

        def _on_step(self) -> bool:
            return True

    model = make(PolicyGradient, make_vec_env("Pendulum-v1", 2), use_sde=True, actors=LocalActors())
    torch.nn.init.constant_(model.policy.log_std, -30.0)
    model.learn(3 * 32, Noise())
    assert all(0 < noise.abs().max() < 1e-11 for noise in seen)
    assert len({noise.numpy().tobytes() for noise in seen}) == 3


def test_a_rollout_does_not_change_when_the_next_is_collected() -> None:
    model = make()
    actor = Actor(spec_of(model))
    actor.load(weights_of(model), 0)
    one = actor.collect()
    before = pickle.dumps(one)
    other = actor.collect()
    assert pickle.dumps(one) == before
    np.testing.assert_array_equal(other.observations[0], one.last_observation)  # episodes go on
    np.testing.assert_array_equal(other.episode_starts[0], one.last_dones)


def generator_states() -> Any:
    state: Any = np.random.get_state()
    return random.getstate(), state[1].tolist(), torch.get_rng_state().tolist()


def test_starting_leaves_the_processs_generators_alone() -> None:
    model = make()
    random.random(), np.random.rand(), torch.rand(1)  # the actor's seed is the model's: without this it would hide
    before = generator_states()
    LocalActors().start(model)
    assert generator_states() == before
    with pytest.raises(ValueError, match=r"^action must be"):
        LocalActors(frictions=ActorBug(0.1, action=7)).start(model)
    assert generator_states() == before


# --------------------------------------------------------------------------------------- logging


class OtherPool:
    """A pool of one's own: the protocol is all that the learner asks for."""

    def __init__(self) -> None:
        self.inner = LocalActors(1)

    def start(self, algorithm: OnPolicyAlgorithm) -> None:
        self.inner.start(algorithm)

    def publish(self, weights: Weights, version: int) -> None:
        self.inner.publish(weights, version)

    def collect(self) -> Rollout:
        return self.inner.collect()

    def statistics(self) -> dict[str, float]:
        return {"rollouts_waiting": 3.0, "restarts": 2.0}

    def close(self) -> None:
        self.inner.close()


def test_a_pool_of_ones_own_is_logged(tmp_path: Path) -> None:
    pool: ActorPool = OtherPool()
    model = make(PolicyGradient, actors=pool)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * 32, log_interval=1)
    with (tmp_path / "progress.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["actors/staleness"]]
    assert [float(row["actors/staleness"]) for row in rows] == [0, 1, 1, 1]
    for row in rows:
        assert (float(row["actors/rollouts_waiting"]), float(row["actors/restarts"])) == (3, 2)
    assert rows[0]["actors/learner_idle_share"] == ""  # the first rollout waits for actors to start, and is not timed
    for row in rows[1:]:
        assert 0 < float(row["actors/learner_idle_share"]) < 1
        assert float(row["actors/env_steps_per_second"]) > 0


def test_staleness_is_averaged_between_two_dumps(tmp_path: Path) -> None:
    model = make(PolicyGradient, actors=LocalActors(2))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * 32, log_interval=4)
    with (tmp_path / "progress.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["actors/staleness"]]
    assert [float(row["actors/staleness"]) for row in rows] == [(0 + 1 + 2 + 2) / 4]


def test_vecnormalize_of_actors_is_that_of_the_learner() -> None:
    """The learner's own reset is not counted, its settings are the actor's, and statistics are never stale."""
    counts = []

    class Counting(Spy):
        def collect(self) -> Rollout:
            rollout = super().collect()
            assert self._actor is not None
            counts.append(statistics_of(self._actor.algorithm.get_vec_normalize_env())["observation"][2])
            return rollout

    env: VecEnv = VecNormalize(make_vec_env("CartPole-v1", 2), clip_obs=2.0, norm_reward=False)
    pool = Counting(staleness=3)
    model = make(DG, env, actors=pool).learn(5 * 32)
    _, _, count = statistics_of(model.get_vec_normalize_env())["observation"]
    assert count == pytest.approx(1e-4 + 5 * 32 + 2)  # the first observations of two environments are data too
    assert counts == pytest.approx([1e-4 + 2 + 32 * rollouts for rollouts in range(1, 6)])
    assert max(np.abs(rollout.observations).max() for rollout in pool.collected) <= 2.0
    assert all((rollout.rewards == 1).all() for rollout in pool.collected)


def test_draws_of_staleness_follow_the_seed() -> None:
    versions = []
    for seed in (0, 0, 1):
        pool = Spy(staleness=(0, 5))
        make(PolicyGradient, seed=seed, n_steps=4, actors=pool).learn(30 * 8)
        versions.append([rollout.version for rollout in pool.collected])
    assert versions[0] == versions[1] != versions[2]


def test_infos_are_of_their_step_though_an_environment_reuses_them() -> None:
    class Reuses(DummyVecEnv):
        given: list[dict[str, Any]] | None = None

        def step_wait(self) -> Any:
            *step, infos = super().step_wait()
            self.given = self.given or infos
            for info in self.given:
                info["steps"] = info.get("steps", 0) + 1
            return (*step, self.given)

    pool = Spy(env_fn=lambda: Reuses([lambda: AnySpaces(BOX, BOX)]))
    make(env=DummyVecEnv([lambda: AnySpaces(BOX, BOX)]), actors=pool).learn(16)
    assert [info["steps"] for (info,) in pool.collected[0].infos] == list(range(1, 17))


def test_starting_again_closes_what_was_started_before() -> None:
    closed: list[DummyVecEnv] = []

    class Closes(DummyVecEnv):
        def close(self) -> None:
            closed.append(self)
            super().close()

    pool = LocalActors(env_fn=lambda: Closes([lambda: make_gym("CartPole-v1")] * 2))
    for expected in (0, 1):
        pool.start(make())
        assert len(closed) == expected
    pool.close()
    assert len(closed) == 2


def test_errors_of_an_actor_tell_the_learners_timestep() -> None:
    model = make().learn(64)
    assert Actor(spec_of(model)).algorithm.num_timesteps == 64


def test_figures_of_speed_are_of_steps_and_seconds_since_the_first_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()  # a second passes between two looks at the clock
    monkeypatch.setattr(rollouts, "perf_counter", lambda: float(next(seconds)))
    model = make(PolicyGradient, actors=LocalActors())
    logged: list[dict[str, float]] = []
    model.set_logger(configure(None, []))
    model.dump_logs = lambda iteration=0: logged.append(dict(model.logger.name_to_value))  # type: ignore
    model.learn(3 * 32, log_interval=1)
    # Waits from 0 to 1, 2 to 3, and 5 to 6; looks at 4 and at 7.
    assert [each.get("actors/env_steps_per_second") for each in logged[:3]] == [None, 32 / 3, 64 / 6]
    assert [each.get("actors/learner_idle_share") for each in logged[:3]] == [None, 1 / 3, 2 / 6]


def test_successes_are_counted_as_without_actors() -> None:
    class Succeeds(AnySpaces):
        def step(self, action: Any) -> Any:
            *rest, info = super().step(action)
            return (*rest, {**info, "is_success": self.steps % 3 == 0})

    found = []
    for actors in (None, LocalActors(env_fn=lambda: Succeeds(BOX, BOX))):
        model = make(env=DummyVecEnv([lambda: Succeeds(BOX, BOX)]), actors=actors).learn(64)
        found.append(list(model.ep_success_buffer or []))
    assert found[0] == found[1]
    assert len(found[0]) == 12  # episodes of five steps


def test_values_are_recomputed_two_minibatches_at_a_time() -> None:
    model = make(PolicyGradient, batch_size=2, actors=LocalActors(1))
    passed: list[int] = []
    predict = model.policy.predict_values

    def noted(obs: Any) -> torch.Tensor:
        passed.append(len(obs))
        return predict(obs)

    model.policy.predict_values = noted  # type: ignore[method-assign]
    model.learn(2 * 32)
    assert max(passed) == 4


def test_a_callbacks_locals_have_the_names_they_have_without_actors() -> None:
    class Names(BaseCallback):
        def _on_step(self) -> bool:
            names.append(self.locals.keys() - {"clipped_actions", "obs_tensor"})
            return True

        def _on_rollout_end(self) -> None:
            ends.append((self.locals["n_steps"], self.locals["values"].tolist()))

    names: list[set[str]] = []
    ends: list[tuple[int, list[list[float]]]] = []
    for actors in (None, LocalActors()):
        make(n_steps=4, actors=actors).learn(8, callback=Names())
    assert names[0] == names[4]
    assert ends[0] == ends[1]
    assert ends[0][0] == 4


def test_as_many_weights_are_kept_as_may_be_asked_for() -> None:
    pool = LocalActors((0, 2))
    pool.start(make())
    for version in range(5):
        pool.publish(Weights({}, {}), version)
    assert [version for _, version in pool._published] == [2, 3, 4]
    pool.close()

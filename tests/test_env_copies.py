"""Copies of the learner's environment for its actors."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs import AnySpaces, MatchPoint
from gymnasium import spaces
from gymnasium.wrappers import (
    ClipReward,
    FrameStackObservation,
    MaxAndSkipObservation,
    NormalizeObservation,
    NormalizeReward,
    TimeLimit,
)
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)

from sb3_delight.env_copies import CopyError, EnvCopy
from sb3_delight.normalization import statistics_of

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


class Opaque(gym.Wrapper[Any, Any, Any, Any]):
    """Does not tell Gymnasium what it was made with."""


def seeing_images() -> AnySpaces:
    return AnySpaces(IMAGE, BOX)


def copied(env: VecEnv, env_fn: Any = None) -> VecEnv:
    recipe: EnvCopy = pickle.loads(pickle.dumps(EnvCopy.of(env))) if env_fn is None else EnvCopy.of(env, env_fn)
    return recipe.make()


def same_trajectory(one: VecEnv, other: VecEnv) -> None:
    for env in (one, other):
        env.seed(5)
        env.action_space.seed(5)
    np.testing.assert_array_equal(one.reset(), other.reset())
    for _ in range(30):
        action = np.array([one.action_space.sample() for _ in range(one.num_envs)])
        for a, b in zip(one.step(action), other.step(action), strict=True):
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_registered_environments_are_made_again(env_id: str) -> None:
    env = make_vec_env(env_id, 3)
    made = copied(env)
    assert made is not env
    assert made.num_envs == 3
    assert made.env_is_wrapped(Monitor) == [True] * 3
    same_trajectory(env, made)


def test_a_monitor_stays_where_it_is() -> None:
    """Returns are those it sees: here before the wrapper that divides rewards."""
    env = make_vec_env("CartPole-v1", 1, wrapper_class=RewardScaled)
    made = copied(env)
    assert made.env_is_wrapped(Monitor) == [True]
    for each in (env, made):
        each.reset()
        dones = np.array([False])
        while not dones[0]:
            _, rewards, dones, infos = each.step(np.array([0]))
        assert rewards[0] == pytest.approx(0.01)
        assert infos[0]["episode"]["r"] == infos[0]["episode"]["l"]


class RewardScaled(gym.RewardWrapper[Any, Any], gym.utils.RecordConstructorArgs):
    """A hundredth of the reward."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def reward(self, reward: Any) -> float:
        return float(reward) / 100


def test_a_single_environment_as_an_algorithm_wraps_it() -> None:
    env = BaseAlgorithm._wrap_env(gym.make("CartPole-v1"), verbose=0)
    same_trajectory(env, copied(env))


def test_arguments_and_wrappers_of_gymnasium_are_kept() -> None:
    def env_fn() -> gym.Env[Any, Any]:
        env = gym.make("Pendulum-v1", max_episode_steps=7, g=3.0)
        return FrameStackObservation(ClipReward(env, -2.0, 0.0), 2)

    env = DummyVecEnv([env_fn])
    made = copied(env)
    assert made.get_attr("g") == [3.0]
    assert made.observation_space.shape == (2, 3)
    same_trajectory(env, made)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_environments_in_other_processes() -> None:
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    try:
        made = copied(env)
        assert isinstance(made, DummyVecEnv)  # the actor is the process
        same_trajectory(env, made)
    finally:
        env.close()


def test_vecnormalize_is_put_around_it_with_its_settings_and_statistics() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2), clip_obs=3.0, gamma=0.9, norm_reward=False)
    env.reset()
    recipe = EnvCopy.of(env)
    made, another = recipe.make(), recipe.make()
    normalize = unwrap_vec_normalize(made)
    assert normalize is not None
    assert normalize is not unwrap_vec_normalize(another)
    assert (normalize.clip_obs, normalize.gamma, normalize.norm_reward) == (3.0, 0.9, False)
    np.testing.assert_array_equal(statistics_of(normalize)["observation"][0], statistics_of(env)["observation"][0])
    same_trajectory(env, made)
    env.reset()
    assert normalize.obs_rms is not env.obs_rms


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda env: VecTransposeImage(VecNormalize(env, norm_obs=False)),
        lambda env: VecNormalize(VecTransposeImage(env), norm_obs=False),
    ],
    ids=["transposed last", "normalised last"],
)
def test_the_order_of_wrappers_is_kept(wrapped: Any) -> None:
    env = wrapped(DummyVecEnv([seeing_images]))
    made: Any = copied(env, seeing_images)
    assert [type(made), type(made.venv)] == [type(env), type(env.venv)]


def test_an_environment_of_the_program_itself_is_named() -> None:
    env: Any = gym.make("CartPole-v1")
    env.unwrapped.spec.entry_point = "__main__:Mine"
    with pytest.raises(ValueError, match="Mine is defined in the program itself"):
        EnvCopy.of(DummyVecEnv([lambda: env])).check_importable()


def test_the_learners_specification_is_left_alone() -> None:
    env = make_vec_env("CartPole-v1", 1, monitor_kwargs={"info_keywords": ("level",)})
    before = repr(env.get_attr("spec"))
    EnvCopy.of(env)
    assert repr(env.get_attr("spec")) == before


def test_what_env_fn_makes_is_an_environment() -> None:
    with pytest.raises(ValueError, match=r"^what env_fn makes must be an Env or a VecEnv, got None"):
        copied(DummyVecEnv([seeing_images]), lambda: None)


@pytest.mark.parametrize("env_fn", [seeing_images, lambda: VecTransposeImage(DummyVecEnv([seeing_images]))])
def test_images_are_transposed_once(env_fn: Any) -> None:
    env = BaseAlgorithm._wrap_env(VecMonitor(DummyVecEnv([seeing_images])), verbose=0)
    made = copied(env, env_fn)
    layers: list[Any] = [made]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    assert sum(isinstance(layer, VecTransposeImage) for layer in layers) == 1
    assert made.observation_space.shape == (1, 36, 36)


def test_what_a_monitor_reports_is_kept() -> None:
    env = make_vec_env("CartPole-v1", 2, monitor_kwargs={"info_keywords": ("level",)})
    assert copied(env).get_attr("info_keywords") == [("level",)] * 2


@pytest.mark.parametrize("env_fn", [seeing_images, lambda: DummyVecEnv([seeing_images] * 2)])
def test_what_env_fn_makes_is_monitored_as_the_learners(env_fn: Any) -> None:
    for env in (
        VecMonitor(DummyVecEnv([seeing_images] * 2), info_keywords=("level",)),
        DummyVecEnv([lambda: Monitor(seeing_images(), info_keywords=("level",))] * 2),
    ):
        made: Any = copied(env, env_fn)
        per_env = made.env_is_wrapped(Monitor) == [True] * 2
        assert per_env != is_vecenv_wrapped(made, VecMonitor)
        assert (made.get_attr("info_keywords") if per_env else [made.info_keywords]) == [("level",)] * (1 + per_env)


@pytest.mark.parametrize("env_fn", [None, lambda: gym.make("CartPole-v1", max_episode_steps=3)])
def test_a_monitor_of_a_vecenv_reports_what_that_adds_to_an_info(env_fn: Any) -> None:
    learner = DummyVecEnv([lambda: gym.make("CartPole-v1", max_episode_steps=3)] * 2)
    env = copied(VecMonitor(learner, info_keywords=("TimeLimit.truncated",)), env_fn)
    env.reset()
    infos = [env.step(np.zeros(2, int))[3] for _ in range(3)][-1]
    assert [info["episode"]["TimeLimit.truncated"] for info in infos] == [True, True]


class CartPoleInside(gym.Env[Any, Any]):
    """Another environment, with the specification of what it holds."""

    def __init__(self) -> None:
        self.inner = gym.make("CartPole-v1")
        self.spec = self.inner.spec
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space


def test_a_specification_of_something_else_is_found_out() -> None:
    with pytest.raises(
        CopyError,
        match=r"makes TimeLimit around CartPoleEnv, and it is CartPoleInside\. Pass env_fn=\.\.\.",
    ):
        copied(DummyVecEnv([lambda: gym.make("CartPole-v1"), CartPoleInside]))


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_a_time_limit_that_a_specification_would_put_elsewhere_is_found_out(vec_env_cls: type[VecEnv]) -> None:
    """Innermost, it would count the frames that are skipped, too."""

    def skipping(limit: int) -> gym.Env[Any, Any]:
        env = gym.make("Pendulum-v1", max_episode_steps=-1)
        return TimeLimit(MaxAndSkipObservation(env, skip=4), limit) if limit else MaxAndSkipObservation(env, skip=4)

    wrong, right = (vec_env_cls([lambda limit=limit: skipping(limit)]) for limit in (50, 0))  # type: ignore
    made = copied(right)
    made.close()
    with pytest.raises(CopyError, match=r"makes MaxAndSkipObservation around TimeLimit.* it is TimeLimit around Max"):
        copied(wrong)
    assert copied(wrong, lambda: skipping(50)).num_envs == 1
    wrong.close()
    right.close()


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_statistics_that_would_stay_with_the_actor_are_refused(wrapper: Any) -> None:
    env = make_vec_env("CartPole-v1", 2, wrapper_class=wrapper)
    for env_fn in (None, lambda: wrapper(gym.make("CartPole-v1"))):
        with pytest.raises(CopyError, match=rf"{wrapper.__name__}'s statistics.*use VecNormalize"):
            copied(env, env_fn)
    with pytest.raises(ValueError, match="env must be one VecNormalize"):
        copied(VecNormalize(VecNormalize(make_vec_env("CartPole-v1", 2))))


def test_a_copy_that_is_refused_is_closed() -> None:
    closed: list[bool] = []

    class Closing(DummyVecEnv):
        def close(self) -> None:
            closed.append(True)
            super().close()

    with pytest.raises(CopyError, match="must be 2, got 3"):
        copied(make_vec_env("CartPole-v1", 2), lambda: make_vec_env("CartPole-v1", 3, vec_env_cls=Closing))
    assert closed == [True]


def test_classes_of_the_program_itself_go_by_value_or_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(VecNormalize):
        pass

    Own.__module__ = RewardScaled.__module__ = "__main__"  # which has no such classes
    made = copied(Own(make_vec_env("CartPole-v1", 1)))
    assert type(made).__name__ == "Own"
    recipe = EnvCopy.of(make_vec_env("CartPole-v1", 1, wrapper_class=RewardScaled))
    with pytest.raises(ValueError, match=r"RewardScaled is defined in the program itself.*env_fn=\.\.\."):
        recipe.check_importable()
    EnvCopy.of(make_vec_env("CartPole-v1", 1)).check_importable()


def test_a_wrapper_around_vecnormalize_is_refused_by_name() -> None:
    env = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 1)), 2)
    with pytest.raises(ValueError, match="its wrapper VecFrameStack is put around VecNormalize: put it inside"):
        copied(env, lambda: make_vec_env("CartPole-v1", 1))


def test_what_is_not_registered_needs_env_fn() -> None:
    env = DummyVecEnv([lambda: AnySpaces(BOX, BOX)] * 2)
    with pytest.raises(ValueError, match=r"cannot make the environment again: it is not registered.*env_fn=\.\.\."):
        copied(env)
    made = copied(env, lambda: AnySpaces(BOX, BOX))
    assert made.num_envs == 2
    assert made.env_is_wrapped(Monitor) == [True, True]
    envs = made.get_attr("unwrapped")
    assert envs[0] is not envs[1]
    vectorised = copied(env, lambda: DummyVecEnv([lambda: AnySpaces(BOX, BOX)] * 2))
    assert vectorised.num_envs == 2


@pytest.mark.parametrize(
    ("env", "named"),
    [
        (lambda: VecFrameStack(make_vec_env("CartPole-v1", 1), 2), "VecFrameStack"),
        (lambda: DummyVecEnv([lambda: Opaque(gym.make("CartPole-v1"))]), "Opaque"),
    ],
)
def test_wrappers_that_cannot_be_made_again_are_named(env: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"its wrapper {named} .*env_fn=\.\.\."):
        copied(env())


@pytest.mark.parametrize("error", [AttributeError, EOFError, BrokenPipeError])  # two of processes that have ended
def test_an_engine_of_its_own_needs_env_fn(error: type[Exception]) -> None:
    class Engine(DummyVecEnv):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            if attr_name == "spec":
                raise error(attr_name)
            return super().get_attr(attr_name, indices)

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            raise NotImplementedError

    env = Engine([lambda: gym.make("CartPole-v1")])
    with pytest.raises(ValueError, match=r"Engine knows no specification.*env_fn=\.\.\."):
        copied(env)
    assert copied(env, lambda: gym.make("CartPole-v1")).num_envs == 1
    assert isinstance(copied(env, lambda: Engine([lambda: gym.make("CartPole-v1")])), Engine)


def test_env_fn_makes_what_its_specification_could_not() -> None:
    env = VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2), 2))
    made = copied(env, lambda: VecFrameStack(make_vec_env("CartPole-v1", 2), 2))
    assert is_vecenv_wrapped(made, VecNormalize)
    assert made.observation_space.shape == (8,)


@pytest.mark.parametrize(
    ("env_fn", "message"),
    [
        (lambda: make_vec_env("CartPole-v1", 3), r"^env_fn's number of environments must be 2, got 3"),
        (MatchPoint, "Observation spaces do not match"),
        (
            lambda: VecNormalize(make_vec_env("CartPole-v1", 2)),
            r"^env_fn must make .* without VecNormalize",
        ),
    ],
)
def test_what_env_fn_makes_must_fit(env_fn: Any, message: str) -> None:
    with pytest.raises(CopyError, match=message):
        copied(make_vec_env("CartPole-v1", 2), env_fn)


def test_env_fn_must_be_a_function() -> None:
    with pytest.raises(ValueError, match=r"^env_fn must be a function"):
        EnvCopy.of(make_vec_env("CartPole-v1", 1), "CartPole-v1")  # type: ignore[arg-type]

"""VecNormalize's statistics across actors."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs import AnySpaces
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_delight.normalization import (
    load_statistics,
    merge_statistics,
    statistics_of,
    take_increments,
    track_increments,
)

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
DICT = spaces.Dict({"near": BOX, "far": spaces.Box(-9.0, 9.0, (2,), np.float32)})


def normalized(space: spaces.Space[Any] = BOX, seed: int = 0, n_envs: int = 2, **kwargs: Any) -> VecNormalize:
    def env_fn() -> gym.Env[Any, Any]:
        return AnySpaces(deepcopy(space), BOX)  # each with a generator of its own

    env = VecNormalize(DummyVecEnv([env_fn] * n_envs), **kwargs)
    env.seed(seed)
    return env


def run(env: VecNormalize, steps: int) -> list[Any]:
    """Observations before normalisation, in order."""
    seen = []
    for _ in range(steps):
        env.step(np.zeros((env.num_envs, 3), np.float32))
        seen.append(env.get_original_obs())
    return seen


def assert_same(one: VecNormalize, other: VecNormalize) -> None:
    a, b = statistics_of(one), statistics_of(other)
    assert a.keys() == b.keys()
    for name in a:
        assert_close(a[name], b[name])


def assert_close(one: Any, other: Any) -> None:
    """Mean, variance and count; numpy sums float32 observations in float32."""
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def count_of(env: VecNormalize) -> float:
    return statistics_of(env)["observation"][2]


@pytest.mark.parametrize("space", [BOX, DICT], ids=["Box", "Dict"])
def test_two_actors_merged_are_all_data_in_one(space: spaces.Space[Any]) -> None:
    learner, everything = normalized(space), normalized(space)
    actors = [normalized(space, seed) for seed in (1, 2)]
    for actor in actors:
        track_increments(actor)
        actor.reset()
    originals: list[Any] = [[actor.get_original_obs()] for actor in actors]
    for steps in (7, 5, 1):  # three rollouts each, statistics shipped in between
        for actor, original in zip(actors, originals, strict=True):
            load_statistics(actor, statistics_of(learner))
            original += run(actor, steps)
            merge_statistics(learner, take_increments(actor))
    streams = everything.obs_rms if isinstance(everything.obs_rms, dict) else {None: everything.obs_rms}
    for key, stream in streams.items():
        parts = [each if key is None else each[key] for original in originals for each in original]
        stream.update(np.concatenate(parts))
    found, expected = statistics_of(learner), statistics_of(everything)
    for name in found.keys() - {"return"}:
        assert_close(found[name], expected[name])
    assert found["return"][2] == pytest.approx(1e-4 + 2 * 2 * 13)


def test_one_actor_is_the_learner_itself_returns_included() -> None:
    alone, learner, actor = normalized(), normalized(), normalized()
    track_increments(actor)
    for env in (alone, actor):
        env.reset()
    for steps in (5, 6):
        run(alone, steps)
        run(actor, steps)
        merge_statistics(learner, take_increments(actor))
        load_statistics(actor, statistics_of(learner))
    assert_same(alone, learner)
    assert_same(alone, actor)


def test_increments_are_taken_once() -> None:
    actor, learner = normalized(), normalized()
    track_increments(actor)
    actor.reset()
    run(actor, 3)
    assert take_increments(actor)["observation"][2] == 8
    before = count_of(learner)
    again = take_increments(actor)
    assert {count for _, _, count in again.values()} == {0}
    merge_statistics(learner, again)
    assert count_of(learner) == before


def test_replacing_statistics_loses_no_increment() -> None:
    actor = normalized()
    track_increments(actor)
    actor.reset()
    run(actor, 3)
    load_statistics(actor, statistics_of(normalized()))
    assert count_of(actor) == 1e-4
    assert take_increments(actor)["observation"][2] == 8


def test_statistics_are_copies() -> None:
    env = normalized()
    env.reset()
    statistics = statistics_of(env)
    before = deepcopy(statistics)
    stream: Any = env.obs_rms
    for _ in range(2):
        stream.mean += 9.0  # in place
        stream.var += 9.0
        assert_close(statistics["observation"], before["observation"])
        load_statistics(env, statistics)


def test_what_is_not_normalised_has_no_statistics() -> None:
    env = normalized(norm_obs=False)
    track_increments(env)
    env.reset()
    run(env, 2)
    assert statistics_of(env).keys() == take_increments(env).keys() == {"return"}
    partly = normalized(DICT, norm_obs_keys=["far"])
    assert statistics_of(partly).keys() == {"observation far", "return"}


def test_without_vecnormalize_there_is_nothing_to_do() -> None:
    assert statistics_of(None) == take_increments(None) == {}
    track_increments(None)
    load_statistics(None, {})
    merge_statistics(None, {})

"""The experiment on stale and troubled actors: equal arms, experts that are experts, and runs that a seed repeats."""

import dataclasses
import math
import sys
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "reproduce"))

import harness
import records
import stale_actors
from stale_actors import METHODS, STALENESS, TASKS, Config

from sb3_delight import PolicyGradient
from sb3_delight.actors import LocalActors
from sb3_delight.buffers import flat_rollout

SHORT = Config(updates=2048, evaluations=1)


@pytest.mark.parametrize("task", TASKS)
def test_arms_differ_in_method_staleness_and_friction_alone(task: str) -> None:
    arms = stale_actors.SWEEP[task]
    assert {dataclasses.replace(arm, method="pg", staleness=0, friction="none") for arm in arms} == {TASKS[task]}
    assert len({records.run_name(arm) for arm in arms}) == len(arms)
    conditions = {(arm.staleness, arm.friction) for arm in arms}
    ages = stale_actors.AGES.get(TASKS[task], STALENESS)
    assert {k for k, friction in conditions if friction == "none"} == {*ages}
    assert 0 in ages
    for method in METHODS:
        mine = {(arm.staleness, arm.friction) for arm in arms if arm.method == method}
        fresh = {each for each in conditions if each[0] == 0} if method in harness.RATIO_METHODS else set()
        assert mine == conditions - fresh


@pytest.mark.parametrize("friction", ["none", "bug", "corruption", "discovery", "mismatch"])
def test_by_fresh_weights_methods_with_ratios_are_the_policy_gradient(friction: str) -> None:
    """So they are not run: the arm of the policy gradient stands for them."""
    runs = {
        m: stale_actors.run(dataclasses.replace(SHORT, method=m, friction=friction), [0]) for m in ("pg", "iw", "ppo")
    }
    scores = {method: [row["sampled"] for row in rows] for method, rows in runs.items()}
    assert scores["iw"] == pytest.approx(scores["pg"])
    assert scores["ppo"] == pytest.approx(scores["pg"])
    assert {stale_actors.arm(SHORT, method, friction=friction) for method in runs} == {
        dataclasses.replace(SHORT, friction=friction)
    }


def test_methods_have_equal_settings() -> None:
    settings = []
    for method in METHODS:
        model = stale_actors.make_model(dataclasses.replace(SHORT, method=method), make_vec_env("CartPole-v1", 16), 0)
        names = ("n_steps", "n_epochs", "batch_size", "learning_rate", "gamma", "gae_lambda", "ent_coef", "vf_coef")
        settings.append({name: getattr(model, name) for name in (*names, "max_grad_norm", "advantage_scaling")})
        settings[-1]["weights"] = sum(parameter.sum().item() for parameter in model.policy.parameters())
    assert all(each == settings[0] for each in settings)


def test_every_friction_is_there_where_it_is_meant() -> None:
    for name, count in {"none": 0, "bug": 1, "corruption": 1, "discovery": 1, "mismatch": 1, "all": 4}.items():
        assert len(stale_actors.frictions(dataclasses.replace(SHORT, friction=name))) == count
    assert len(stale_actors.frictions(dataclasses.replace(TASKS["halfcheetah"], friction="all"))) == 3


@pytest.mark.parametrize(("env_id", "enough"), [("CartPole-v1", 400), ("Acrobot-v1", -150)])
def test_experts_are_experts(env_id: str, enough: float) -> None:
    env, returns = gym.make(env_id), []
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = stale_actors.EXPERTS[env_id](observation[None])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert np.mean(returns) > enough


def test_a_run_is_repeated_by_its_seed_and_changed_by_staleness() -> None:
    scores = [
        [row["deterministic"] for row in stale_actors.run(dataclasses.replace(SHORT, staleness=k), [seed])]
        for k, seed in ((1, 3), (1, 3), (1, 4), (0, 3))
    ]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]
    assert scores[0] != scores[3]


def test_without_staleness_a_run_is_that_without_actors() -> None:
    """The first column of the figure is no other experiment than the rest of the library's."""
    config = dataclasses.replace(SHORT, updates=1024)
    models: list[PolicyGradient] = []
    for actors in (True, False):
        env = make_vec_env(config.env, config.n_envs)
        model = stale_actors.make_model(config, env, seed=0)
        if not actors:
            model.actors = None
        models.append(model.learn(config.updates))
    one, other = (np.concatenate([p.detach().flatten() for p in model.policy.parameters()]) for model in models)
    np.testing.assert_array_equal(one, other)


def test_what_the_bug_chose_is_known_row_by_row() -> None:
    config = dataclasses.replace(SHORT, friction="bug", updates=256)
    model = stale_actors.make_model(config, make_vec_env(config.env, config.n_envs), seed=0).learn(config.updates)
    assert isinstance(model.actors, LocalActors)
    (bug,) = model.actors.frictions
    assert isinstance(bug, stale_actors.RememberedBug)
    actions = flat_rollout(model.rollout_buffer).actions.flatten()
    assert 0.2 < bug.rows().float().mean() < 0.4
    assert (actions[bug.rows()] == 0).all()
    assert 0.2 < actions[~bug.rows()].mean() < 0.8


@pytest.mark.parametrize("method", stale_actors.WATCHED)
def test_watching_the_bug_changes_nothing(method: str) -> None:
    watched = dataclasses.replace(stale_actors.WATCHED[method], updates=2048, evaluations=2)
    plain = Config(**vars(watched))
    (first, last), unwatched = (stale_actors.run(config, [0]) for config in (watched, plain))
    assert last["deterministic"] == unwatched[-1]["deterministic"]
    for row in (first, last):
        assert 0 < row["bug_noise"] < 3
        assert math.log(2) < row["bug_surprisal"] < 10
        if method == "pg":
            assert row["bug_push"] == row["bug_advantage"]
            assert row["mean_weight"] == 1
        else:
            assert math.isfinite(row["bug_push"])
            assert 0 < row["mean_weight"] <= 1


def test_smoke_runs_and_draws(tmp_path: Path) -> None:
    """One task is run; the others are drawn without results, as in the middle of a sweep."""
    arms = [arm for arm in stale_actors.SWEEP["cartpole"] if arm.method == "dg" and arm.friction in ("none", "all")]
    experiment = dataclasses.replace(stale_actors.EXPERIMENT, sweep={"cartpole": arms[-2:]})
    harness.main(experiment, ["--smoke", "--seeds", "1", "--workers", "1", "--output", str(tmp_path)])
    assert (tmp_path / "figures" / "stale_actors_cartpole.png").stat().st_size > 0
    watched = dataclasses.replace(stale_actors.EXPERIMENT, sweep={"bug": stale_actors.SWEEP["bug"][:1]})
    harness.main(watched, ["--smoke", "--seeds", "1", "--workers", "1", "--output", str(tmp_path)])
    assert (tmp_path / "figures" / "stale_actors_bug.png").stat().st_size > 0
    for task in TASKS:
        drawn = stale_actors.EXPERIMENT.figures[task](records.Runs(tmp_path / "none.csv", stale_actors.SWEEP[task]))
        assert drawn.axes[0].get_title().startswith(TASKS[task].env)
        plt.close(drawn)

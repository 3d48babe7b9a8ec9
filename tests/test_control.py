"""The control benchmark: equal arms, levers that change one thing, and references with their published settings."""

import dataclasses
import importlib
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import RolloutBufferSamples

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "reproduce"))

import control
import control_bonus
import control_confirmation
import control_levers
import control_rates
import control_tasks
import control_tuning
import harness
import records
import training
from control_methods import LessEntropyDG
from control_tasks import Config
from envs import MatchPoint
from records import Row

from sb3_delight import DG, KondoDG, objectives
from sb3_delight.buffers import flat_rollout
from sb3_delight.zoo.plots import REFERENCE_SCORES, improvements

TASKS = control_tasks.MUJOCO | control_tasks.MINATAR
CARTPOLE = Config("CartPole-v1", n_envs=4, normalize_env=False)


def settings(config: Config) -> dict[str, Any]:
    """What a run's model is made of, on a task that needs no simulator."""
    model = control.make_model(config, make_vec_env("Pendulum-v1", 4), 0)
    names = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "vf_coef", "max_grad_norm", "surprisal_clip")
    found = {name: getattr(model, name) for name in (*names, "advantage_scaling", "extra_critic_epochs", "ent_coef")}
    return found | {"learning_rate": model.lr_schedule(0.5), "weights": sum(p.sum() for p in model.policy.parameters())}


def test_a_bonus_and_a_temperature_of_its_size_differ_in_nothing_else() -> None:
    for task in itertools.chain(*control_bonus.TASKS.values()):
        known = control.arms(task)
        arms = control_bonus.arms(known)
        assert [control_bonus.bonus(arm) for arm in arms] == [0.0, *control_bonus.BONUSES, *control_bonus.BONUSES]
        alike: dict[str, Any] = {"method": "dg", "ent_coef": 0.0, "temperature": 10.0}
        assert len({dataclasses.replace(arm, **alike) for arm in arms}) == 1
        shared = {"pg", "pg_entropy", "pg_more_entropy", "dg", "dg_warm"} & control.ARMS[task.env].keys()
        assert {arm.method for arm in arms if arm in known} == shared
        env = make_vec_env("CartPole-v1" if task.cnn else "Pendulum-v1", 4)
        for arm in arms:
            model = control.make_model(dataclasses.replace(arm, cnn=False), env, 0)
            assert (model.ent_coef > 0, isinstance(model, DG)) in [(False, False), (True, False), (False, True)]


def test_to_first_order_dg_holds_the_bonus_of_its_temperature() -> None:
    """Where advantages have mean 0 whatever the action, the bonus is all that is left."""
    logits = torch.tensor([[0.3, -1.0, 0.8]], dtype=torch.float64, requires_grad=True)
    log_prob = logits.log_softmax(1).expand(2, 3)
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # unit size, equally often, whatever the action

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    size = 1e-3
    weight = objectives.dg_weight(log_prob, advantage, control_bonus.temperature(size)) * log_prob.exp().detach()
    gated = gradient(-(weight * advantage * log_prob).sum() / 2)
    entropy = -(log_prob.exp() * log_prob).sum() / 2
    torch.testing.assert_close(2 * gated, gradient(-size * entropy), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("env", TASKS)
def test_methods_of_ours_share_every_setting(env: str) -> None:
    arms = control.arms(TASKS[env])
    assert len({records.run_name(arm) for arm in arms}) == len(arms)
    assert {arm.method for arm in arms} == {
        *control.OTHERS,
        *control.ARMS[env],
    }
    loops = {"_once": (False, 1), "_clip": (True, 4), "": (True, 10) if env in control_tasks.MUJOCO else (False, 1)}
    left = [arm for arm in arms if arm.method in control.ARMS[env]]
    for suffix, loop in loops.items():
        ours = [arm for arm in left if arm.method.endswith(suffix)]
        left = [arm for arm in left if arm not in ours]
        alike: Any = {"ent_coef": 0.0, "temperature": 10.0}  # but for these, of the arms that are about them
        assert len({dataclasses.replace(arm, method="dg", **alike) for arm in ours}) == bool(ours)
        apart = {"pg_entropy", "dg_entropy", "dg_warm", "pg_more_entropy", "dg_cool"}
        apart |= {"half_pg", "half_pg_entropy", "random_5_entropy"}
        assert {arm.method for arm in ours if arm.ent_coef or arm.temperature != 10} <= apart
        common = [settings(dataclasses.replace(arm, cnn=False, **alike)) for arm in ours]
        assert all(each == common[0] for each in common)
        assert {(arm.clipped, arm.n_epochs) for arm in ours} <= {loop}
        assert {"pg", "dg"} <= {arm.method.removesuffix(suffix) for arm in ours} or not ours
    assert not left


def test_dg_is_trained_with_the_settings_that_are_packaged() -> None:
    blocks = control.zoo_config("dg")
    for env, task in (control_tasks.MUJOCO | control_tasks.MINATAR).items():
        known = control.SWEEP["slow"] if env == "Ant-v5" else control.arms(task)  # which takes a smaller learning rate
        (arm,) = (arm for arm in known if (arm.env, arm.method) == (env, "dg"))
        model: Any = control.make_model(dataclasses.replace(arm, cnn=False), make_vec_env("Pendulum-v1", arm.n_envs), 0)
        block = {key: value for key, value in blocks[env].items() if key != "policy"}
        assert block.pop("normalize", False) == arm.normalize_env
        assert block.pop("n_timesteps") == arm.updates
        assert block.pop("gamma", 0.99) == model.gamma
        networks = eval(block.pop("policy_kwargs"), {"importlib": importlib})  # as RL-Zoo reads it
        assert networks == (training.MINATAR_POLICY if arm.cnn else {"log_std_init": arm.log_std_init})
        for name, value in block.items():
            found = getattr(model, name)
            assert (found(1.0) if callable(found) else found) == value, (env, name)


def test_every_budget_is_the_same() -> None:
    for tasks, steps in ((control_tasks.MUJOCO, 1_000_000), (control_tasks.MINATAR, 2_000_000)):
        for task in tasks.values():
            assert {(arm.updates, arm.evaluations, arm.normalize_env) for arm in control.arms(task)} == {
                (steps, 20, tasks is control_tasks.MUJOCO)
            }


@pytest.mark.filterwarnings("ignore:mean surprisal starts")
def test_a_lever_is_pulled_alike_for_both_methods() -> None:
    for task in control_levers.TASKS:
        arms = control_levers.arms(task)
        assert len({records.run_name(arm) for arm in arms.values()}) == len(arms)
        assert [name for name, method in arms if method == "dg"] == control_levers.NAMES
        for name in control_levers.LEVERS:
            assert dataclasses.replace(arms[name, "dg"], method="pg") == arms[name, "pg"]
            one, other = (settings(arms[name, method]) for method in ("pg", "dg"))
            assert one == other
            unchanged = ("as it is", "last 3 rollouts again, V-trace")
            assert (one == settings(arms["as it is", "pg"])) == (name in unchanged)


def test_under_the_clip_arms_differ_in_what_they_say() -> None:
    for task in control_levers.CLIP_TASKS:
        arms = control_levers.clip_arms(task)
        models: dict[str, Any] = {
            name: control.make_model(arm, make_vec_env("Pendulum-v1", 8), 0) for name, arm in arms.items()
        }
        for name, model in models.items():
            assert model.clip_range is None if "no clip" in name else model.clip_range(1.0) == 0.2
        half = models["PPO, half the weight"]
        ratio = torch.tensor([1.0, 1.5, 1.5])
        batch: Any = type("Batch", (), {"advantages": torch.tensor([1.0, 1.0, -1.0]), "old_log_prob": torch.zeros(3)})
        for model, expected in ((half, [0.5, 0.0, 0.75]), (models["PPO"], [1.0, 0.0, 1.5])):
            weight = model._clip(model._weight(ratio.log(), batch), ratio.log(), batch)
            torch.testing.assert_close(weight, torch.tensor(expected))


def test_every_method_is_tuned_in_the_same_trials() -> None:
    trials = control_tuning.TUNING
    assert {len(each) for each in trials.values()} == {control_tuning.TRIALS + 1}
    own: dict[str, set[str]] = {"pg": set(), "pg_entropy": {"ent_coef"}, "dg": {"temperature", "reference"}}
    for method, of_method in trials.items():
        for plain, trial in zip(trials["pg"], of_method, strict=True):
            assert trial == plain | {name: trial[name] for name in own[method]}
    names = [records.run_name(config) for config in control_tuning.SWEEP]
    assert len(set(names)) == len(names) == 3 * 3 * control_tuning.TRIALS
    known = {config for method in trials for config in control_tuning.configs(method, control_tuning.KNOWN)}
    assert known <= set(control_levers.CLIP_SWEEP)


def test_trials_cover_every_setting_evenly() -> None:
    trials = control_tuning.TUNING["dg"][: control_tuning.TRIALS]
    for choices in control_tuning.CHOICES:
        counts = [sum(changes.items() <= trial.items() for trial in trials) for changes in choices[1:]]
        assert counts == [control_tuning.TRIALS / len(choices)] * (len(choices) - 1)
    assert sum(isinstance(trial["learning_rate"], str) for trial in trials) == control_tuning.TRIALS / 2
    drawn = [(float(str(t["learning_rate"]).removeprefix("lin_")), 1e-4, 3e-3) for t in trials]
    for values in (drawn, [(trial["temperature"], 1.0, 30.0) for trial in trials]):
        quantiles = sorted(math.log(value / low) / math.log(high / low) for value, low, high in values)
        assert np.allclose(quantiles, (np.arange(len(trials)) + 0.5) / len(trials), atol=0.02)
    columns = [[holds(trial) for trial in trials] for holds in control_tuning.SETTINGS.values()]
    of_one = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5])  # the lines of one setting exclude each other
    correlation = np.corrcoef(np.array(columns, dtype=float))
    assert np.abs(correlation[of_one[:, None] != of_one]).max() < 0.3  # what two settings do is told apart


def test_finalists_are_the_best_by_the_screening_seed_and_judged_by_others(tmp_path: Path) -> None:
    def run(config: Config, seeds: list[int]) -> list[Row]:
        """The return falls with the seed; on the first it is the number of the trial, but for one that lacks a task."""
        low, high = REFERENCE_SCORES[config.env]
        trial = next(i for i in range(6) if config in control_tuning.configs("dg", i))
        return [{"seed": s, "step": config.updates, "deterministic": low + (trial - s) * (high - low)} for s in seeds]

    sweep = [config for trial in range(6) for config in control_tuning.configs("dg", trial)][:-1]
    experiment = dataclasses.replace(control.EXPERIMENT, sweep={"tuning": sweep}, run=run, summary={})
    harness.main(experiment, ["--seeds", "3", "--workers", "1", "--output", str(tmp_path)])
    runs = records.Runs(tmp_path / "results" / "control.csv", sweep)
    assert control_tuning.ranking(runs, "dg")[:5] == [4, 3, 2, 1, 0]
    assert control_tuning.scores(runs, "dg", 3) == pytest.approx({0: 3, 1: 2, 2: 1}, abs=1e-3)
    assert control_tuning.scores(runs, "dg", 5) == control_tuning.scores(runs, "pg", 0) == {}


def test_the_finalists_named_are_those_of_the_results() -> None:
    runs = records.Runs(harness.HERE / "results" / "control.csv", control_tuning.SWEEP)
    for method, trials in control_tuning.BEST.items():
        assert tuple(control_tuning.ranking(runs, method)[: len(trials)]) == trials
        assert not np.isnan(control_tuning.screening(runs, method)).any()


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    values = np.array([3.0, -1.0, 7.0, 2.0])
    for k in range(1, 5):
        best = [max(subset) for subset in itertools.combinations(values, k)]
        assert control_tuning.expected_best(values)[k - 1] == pytest.approx(np.mean(best))
    assert control_tuning.expected_best(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("method", control.OTHERS)
@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Swimmer-v5", "MinAtar/Breakout-v1"])
def test_references_have_their_published_settings(method: str, env: str) -> None:
    published = control.published(method, env)
    (config,) = (arm for arm in control.arms(TASKS[env]) if arm.method == method)
    assert config.n_envs == published.pop("n_envs", 1)
    model: Any = control.make_model(
        dataclasses.replace(config, cnn=False), make_vec_env("Pendulum-v1", config.n_envs), 0
    )
    assert published
    for name, value in published.items():
        if name == "learning_rate":
            assert model.lr_schedule(1.0) == float(str(value).removeprefix("lin_"))
            assert model.lr_schedule(0.5) == model.lr_schedule(1.0) / (2 if "lin_" in str(value) else 1)
        elif name == "clip_range":
            assert model.clip_range(1) == float(str(value).removeprefix("lin_"))
        elif name != "policy_kwargs":
            assert getattr(model, name) == value
    if "policy_kwargs" in published:
        log_std, width = {"ppo": (-2.0, 256), "a2c": (-0.5, 64)}[method]
        assert model.policy.log_std.mean().item() == pytest.approx(log_std)
        assert [layer.out_features for layer in model.policy.mlp_extractor.policy_net[::2]] == [width, width]


def test_methods_are_what_their_labels_say() -> None:
    env = make_vec_env("CartPole-v1", 4)
    arms = [*control.arms(TASKS["HalfCheetah-v5"]), *control.arms(TASKS["MinAtar/Breakout-v1"])]
    made: dict[str, Any] = {}
    for arm in (arm for arm in arms if arm.method in control.OURS):
        config = dataclasses.replace(CARTPOLE, method=arm.method, ent_coef=arm.ent_coef, temperature=arm.temperature)
        made[arm.method] = control.make_model(config, env, 0)
    assert made.keys() == control.OURS.keys()
    assert made["dg"].temperature(1.0) == 10.0
    assert isinstance(made["dg"], DG)
    assert isinstance(made["dg_once"], DG)
    assert isinstance(made["dg_clip"], DG)
    rates = {"kondo_1": 0.1, "kondo_3": 0.3, "kondo_price": None, "kondo_soft": None}
    rates |= {"random_1": 0.1, "random_3": 0.3, "random_5": 0.5, "random_5_entropy": 0.5}
    for method, rate in rates.items():
        model = made[method]
        assert isinstance(model, KondoDG)
        assert model.gate_rate == rate
        assert model.priority == ("random" if "random" in method else "delight")
        assert made[method]._gate_temperature() == (10.0 if method == "kondo_soft" else 0)
    assert made["pg_entropy"].ent_coef == made["dg_entropy"].ent_coef > made["pg"].ent_coef == made["dg"].ent_coef == 0
    assert isinstance(made["dg_entropy"], DG)
    assert made["dg_cool"].temperature(1.0) == 1
    temperature = made["half_pg"].temperature(1.0)
    assert (objectives.dg_weight(-torch.rand(5), torch.randn(5), temperature) == 0.5).all()
    assert isinstance(made["half_pg"], DG)
    assert 1 / (2 * made["dg_warm"].temperature(1.0)) == made["pg_entropy"].ent_coef
    assert made["pg_more_entropy"].ent_coef == 1 / (2 * 10.0)  # of DG's own temperature
    assert made["half_pg_entropy"].temperature(1.0) == temperature
    assert isinstance(made["half_pg_entropy"], DG)
    assert made["half_pg_entropy"].ent_coef == made["random_5_entropy"].ent_coef == 1 / (4 * 10.0)


def test_surprisal_less_entropy_does_not_depend_on_the_units_of_actions() -> None:
    config = dataclasses.replace(CARTPOLE, reference=1.0, temperature=1.0, log_std_init=-2.0)
    model = control.make_model(config, make_vec_env(lambda: MatchPoint(2), 4), 0)
    assert isinstance(model, LessEntropyDG)
    model.learn(128)
    rollout = flat_rollout(model.rollout_buffer)
    _, log_prob, entropy = model.policy.evaluate_actions(rollout.observations, rollout.actions)
    assert entropy is not None
    expected = torch.sigmoid(rollout.advantages * (-log_prob - entropy))
    torch.testing.assert_close(model._weight(log_prob.detach(), rollout), expected)


def test_a_gate_per_dimension_weighs_each_dimensions_own_term() -> None:
    config = dataclasses.replace(CARTPOLE, per_dimension=True, temperature=0.5)
    env = make_vec_env(lambda: MatchPoint(2), 4)
    models: list[Any] = [control.make_model(each, env, 0) for each in (config, CARTPOLE)]
    gated, plain = models
    for one, other in zip(gated.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    observations, actions = torch.randn(64, 2), torch.randn(64, 2)
    advantages = torch.randn(64)
    _, log_prob, _ = gated.policy.evaluate_actions(observations, actions)
    unused = torch.zeros(64)
    rollout = RolloutBufferSamples(observations, actions, unused, unused, advantages, unused)
    weight = gated._weight(log_prob.detach(), rollout)
    objectives.policy_gradient_loss(log_prob, advantages, weight).backward()  # type: ignore[no-untyped-call]
    terms = plain.policy.get_distribution(observations).distribution.log_prob(actions)
    gate = torch.sigmoid(advantages[:, None] * -terms.detach().clamp(-10, 10) / 0.5)
    (-(gate * advantages[:, None] * terms).sum() / 64).backward()
    for one, other in zip(gated.policy.parameters(), plain.policy.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
    assert plain.policy.log_std.grad.abs().min() > 0


def test_gradients_clipped_apart_have_the_norms_of_two_optimisers() -> None:
    config = dataclasses.replace(CARTPOLE, clip_apart=True)
    model = control.make_model(config, make_vec_env("CartPole-v1", 4), 0)
    groups = model.policy.optimizer.param_groups
    ids = [{id(parameter) for parameter in group["params"]} for group in groups]
    assert ids[0] | ids[1] == {id(parameter) for parameter in model.policy.parameters()}
    assert not ids[0] & ids[1]
    assert {id(p) for p in model.policy.action_net.parameters()} <= ids[0]
    assert {id(p) for p in model.policy.value_net.parameters()} <= ids[1]
    for scale, group in zip((100.0, 0.01), groups, strict=True):
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, scale)
    model.policy.optimizer.step()
    norms = [torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm() for group in groups]
    untouched = math.sqrt(sum(parameter.numel() for parameter in groups[1]["params"])) * 0.01
    assert norms[0].item() == pytest.approx(0.5, rel=1e-4)
    assert norms[1].item() == pytest.approx(min(untouched, 0.5), rel=1e-4)


@pytest.mark.parametrize("method", ["pg", "dg"])
def test_reuse_corrects_the_last_rollouts_and_trains_on_them_first(method: str) -> None:
    config = dataclasses.replace(CARTPOLE, method=method, reuse=3)
    model: Any = control.make_model(config, make_vec_env("Pendulum-v1", 4), 0)
    seen: list[int] = []
    correct = model.correct

    def note(buffer: Any) -> None:
        seen.append(id(buffer))
        rewards, observations = buffer.rewards.clone(), buffer.observations.clone()
        correct(buffer)
        assert torch.equal(buffer.rewards, rewards)  # what was seen stays; what it is worth is the critic's of today
        assert torch.equal(buffer.observations, observations)
        values = model.policy.predict_values(observations.reshape(-1, 3)).view(32, 4)
        torch.testing.assert_close(buffer.values, values)
        ratio = (model.policy.evaluate_actions(observations[-1], buffer.actions[-1])[1] - buffer.log_probs[-1]).exp()
        going_on = 1 - torch.as_tensor(buffer.last_dones, dtype=torch.float32)
        last = buffer.rewards[-1] + 0.99 * going_on * buffer.last_values.flatten() - values[-1]
        torch.testing.assert_close(buffer.advantages[-1], last)
        torch.testing.assert_close(buffer.returns[-1], values[-1] + ratio.clamp(max=1) * last, atol=1e-4, rtol=1e-4)

    model.correct = note
    model.learn(5 * 128)
    assert [len(model.past), model._n_updates, len(set(seen))] == [3, 1 + 2 + 3 + 4 + 4, 4]
    assert model.actor_rows == 14 * 128


# --- runs and figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "loops"),
    [
        ("levers", 4),
        ("clip", 5),
        ("tuning", 4),
        ("Hopper-v5", 8),
        ("Breakout-v1", 8),
        ("bonus", 2),
        ("bonus_mujoco", 2),
        ("slow", 6),
    ],
)
def test_a_figure_runs_and_draws(figure: str, loops: int, tmp_path: Path) -> None:
    """An arm for each class and loop."""
    classes: dict[str, Any] = {
        **control.OTHERS,
        **{name: cls for name, (cls, _) in (control.OURS | control.MUTING).items()},
    }
    arms = list({(classes[config.method], config.clipped): config for config in control.SWEEP[figure]}.values())
    assert len(arms) == loops
    experiment = dataclasses.replace(control.EXPERIMENT, sweep={figure: arms})
    harness.main(experiment, ["--smoke", "--seeds", "1", "--workers", "1", "--output", str(tmp_path)])
    (drawn,) = (tmp_path / "figures").iterdir()
    assert drawn.stat().st_size > 0


def made_up(config: Config, seeds: list[int]) -> list[Row]:
    scores = {"ppo": 900.0, "dg": 500.0}
    return [
        {"seed": s, "step": step, "deterministic": scores.get(config.method, 100.0) + s, "training_seconds": step}
        for s in seeds
        for step in (500_000, 1_000_000)
    ]


def test_the_aggregate_is_of_tasks_that_every_method_was_run_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    envs = ("Hopper-v5", "Walker2d-v5")
    sweep = [arm for env in envs for arm in control.arms(control_tasks.MUJOCO[env])][:-1]  # one method lacks Walker2d
    experiment = dataclasses.replace(control.EXPERIMENT, sweep={"aggregate": sweep}, run=made_up)
    harness.main(experiment, ["--seeds", "3", "--workers", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "not in the aggregates: Walker2d-v5" in printed
    low, high = REFERENCE_SCORES["Hopper-v5"]
    assert f"PPO, RL-Zoo: {(911 - low) / (high - low):.3f}" in printed
    chances = printed.split("probability that a run of DG is above one of\n")[1]
    assert "PPO, RL-Zoo: 0.00 [0.00, 0.00]" in chances
    assert "TRPO, RL-Zoo: 1.00 [1.00, 1.00]" in chances
    assert "policy gradient, one pass: 0.50 [" in chances  # as high as DG's one pass
    assert (tmp_path / "figures" / "control_aggregate.png").stat().st_size > 0


def test_results_are_judged_by_seeds_that_chose_no_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = control.SWEEP.keys() - {"levers", "clip", "tuning"}
    assert control.EXPERIMENT.first_seed == dict.fromkeys(chosen, control_tasks.FRESH_SEED)
    sweep = control.arms(control_tasks.MUJOCO["Hopper-v5"])[:1]
    experiment = dataclasses.replace(control.EXPERIMENT, sweep={"Hopper-v5": sweep}, run=made_up)
    harness.main(experiment, ["--seeds", "3", "--workers", "1", "--output", str(tmp_path)])
    runs = records.Runs(tmp_path / "results" / "control.csv", sweep)
    assert runs.seeds(sweep[0]) == {10, 11, 12}
    assert "PPO, RL-Zoo" + 35 * " " + "911 [910, 912], 3 seeds\n" in capsys.readouterr().out  # no DG to compare with


def test_the_confirmation_is_on_seeds_that_chose_nothing() -> None:
    rows = records.read_rows(harness.HERE / "results" / "control.csv")
    assert max(int(row["seed"]) for row in rows) < control_confirmation.FIRST_SEED
    assert control_confirmation.EXPERIMENT.first_seed == {"mujoco": control_confirmation.FIRST_SEED}


def test_a_learning_rate_is_chosen_on_seeds_that_judge_nothing() -> None:
    rows = records.read_rows(harness.HERE / "results" / "control_rates.csv")
    assert {int(row["seed"]) for row in rows} == {0, 1}
    slow = {records.run_name(arm) for arm in control.SWEEP["slow"]}
    judged = {
        int(row["seed"]) for row in records.read_rows(harness.HERE / "results" / "control.csv") if row["run"] in slow
    }
    assert min(judged) == control_tasks.FRESH_SEED


def test_a_limit_on_the_divergence_reaches_the_algorithm() -> None:
    limited, free = (control_rates.ARMS["Hopper-v5"][step, "dg"] for step in (".0003, KL .02", ".0003"))
    env = make_vec_env("Hopper-v5", limited.n_envs)
    models: list[Any] = [control_rates.make_model(config, env, 0) for config in (limited, free)]
    assert [model.target_kl for model in models] == [0.02, None]
    assert dataclasses.asdict(limited) == dataclasses.asdict(free) | {"target_kl": 0.02}


def test_scores_are_means_of_the_last_three_evaluations(tmp_path: Path) -> None:
    config = CARTPOLE

    def run(config: Config, seeds: list[int]) -> list[Row]:
        return [{"seed": s, "step": step, "deterministic": step + s} for s in seeds for step in (1, 2, 4, 9)]

    experiment = dataclasses.replace(control.EXPERIMENT, sweep={"levers": [config]}, run=run, figures={
        "levers": lambda _: plt.figure()
    })  # fmt: skip
    harness.main(experiment, ["--seeds", "2", "--workers", "1", "--output", str(tmp_path)])
    runs = records.Runs(tmp_path / "results" / "control.csv", [config])
    assert runs.late(config, "deterministic").tolist() == [5, 6]
    assert runs.late(dataclasses.replace(config, gamma=0.5), "deterministic").size == 0


def test_a_tie_is_half_an_improvement_and_intervals_do_not_depend_on_other_pairs() -> None:
    score = np.random.default_rng(0).normal
    pairs = {
        "tie": (np.array([[2.0], [2.0]]), np.array([[1.0], [2.0]])),
        "random": (score(size=(5, 2)), score(size=(5, 2))),
    }
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    found = improvements(pairs, 100)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    assert found["tie"][0] == 0.75
    assert 0 <= found["random"][1] < found["random"][0] < found["random"][2] <= 1
    assert improvements({"random": pairs["random"]}, 100)["random"] == found["random"]


def test_interquartile_mean_leaves_out_the_best_and_the_worst_of_five() -> None:
    assert control.iqm(np.array([[-1000.0, 1.0, 2.0, 3.0, 1000.0]]), axis=1) == pytest.approx([2.0])


@pytest.fixture(autouse=True)
def _close_figures() -> Any:
    yield
    plt.close("all")

"""The reproduction scripts: what their loops state, that a killed sweep resumes, and that every figure can be drawn."""

import dataclasses
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "reproduce"))

import algorithms
import bandit
import control
import control_confirmation
import control_rates
import gates
import harness
import implicit_bonus
import mnist
import plotting
import records
import stale_actors
import tabular
import temperature
import token_reversal
import training

from sb3_delight import KondoDG, PolicyGradient

SCRIPTS = [
    *(tabular, bandit, mnist, token_reversal, temperature, gates, algorithms, implicit_bonus),
    *(control_confirmation, control_rates),
]


# --- harness: a sweep that is stopped anywhere continues where it stopped -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    slope: float = 1.0
    updates: int = 2


CALLS: list[tuple[float, list[int]]] = []


def run(config: Config, seeds: list[int]) -> list[records.Row]:
    CALLS.append((config.slope, seeds))
    return [{"seed": s, "step": u, "error": config.slope * u + s} for s in seeds for u in range(config.updates + 1)]


def draw(runs: records.Runs) -> Figure:
    figure, (axes,) = plotting.panels()
    for config in runs.configs:
        plotting.draw(axes, runs, config, "error", str(config.slope))
    return figure


EXPERIMENT = harness.Experiment(
    name="toy",
    sweep={"lines": [Config(1.0), Config(2.0)]},
    run=run,
    figures={"lines": draw},
    metrics=("error",),
    seeds=3,
    seeds_per_job=2,
    smoke={},
)


def results(folder: Path) -> list[tuple[str, ...]]:
    """Rows in order, less the time they took."""
    rows = records.read_rows(folder / "results" / "toy.csv")
    return sorted(tuple(v for k, v in row.items() if k != "seconds") for row in rows)


def sweep(folder: Path, *options: str) -> None:
    harness.main(EXPERIMENT, ["--workers", "1", "--output", str(folder), *options])


def test_a_second_command_runs_nothing(tmp_path: Path) -> None:
    sweep(tmp_path)
    before = (tmp_path / "results" / "toy.csv").read_bytes()
    CALLS.clear()
    sweep(tmp_path)
    assert CALLS == []
    assert (tmp_path / "results" / "toy.csv").read_bytes() == before


def test_more_seeds_run_only_the_new_ones(tmp_path: Path) -> None:
    sweep(tmp_path, "--seeds", "2")
    CALLS.clear()
    sweep(tmp_path, "--seeds", "4")
    assert CALLS == [(1.0, [2, 3]), (2.0, [2, 3])]


def test_a_sweep_killed_at_any_byte_ends_like_one_that_was_not(tmp_path: Path) -> None:
    sweep(tmp_path / "whole")
    written = (tmp_path / "whole" / "results" / "toy.csv").read_bytes()
    wanted = results(tmp_path / "whole")
    torn = tmp_path / "torn" / "results" / "toy.csv"
    torn.parent.mkdir(parents=True)
    for end in range(0, len(written), 41):
        torn.write_bytes(written[:end])
        harness.compute(EXPERIMENT, EXPERIMENT.sweep["lines"], seeds=range(3), workers=1, path=torn)
        assert results(tmp_path / "torn") == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_kill_keeps_what_is_done_and_the_command_continues(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: Config, seeds: list[int]) -> list[records.Row]:
        if config.slope == 2.0:
            signal.raise_signal(number)
        return run(config, seeds)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    with pytest.raises(SystemExit) as stop:
        harness.main(dataclasses.replace(EXPERIMENT, run=interrupted), ["--workers", "1", "--output", str(tmp_path)])
    assert stop.value.code == 130
    assert "continues" in capsys.readouterr().out
    assert len(results(tmp_path)) == 3 * 3  # one config, three seeds, three rows
    sweep(tmp_path)
    sweep(tmp_path / "whole")
    assert results(tmp_path) == results(tmp_path / "whole")


def test_a_run_is_of_the_commit_that_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def committed_meanwhile(config: Config, seeds: list[int]) -> list[records.Row]:
        assert harness.commit.cache_info().currsize == 1
        return run(config, seeds)

    harness.commit.cache_clear()
    harness.main(
        dataclasses.replace(EXPERIMENT, run=committed_meanwhile), ["--workers", "1", "--output", str(tmp_path)]
    )


def test_without_git_runs_are_of_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    harness.commit.cache_clear()
    assert harness.commit() == "uncommitted"
    harness.commit.cache_clear()


@pytest.mark.parametrize("flag", ["--workers", "--seeds"])
def test_no_worker_and_no_seed_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.main(EXPERIMENT, [flag, "0"])
    assert "1 or more" in capsys.readouterr().err


def test_a_partial_sweep_can_be_drawn(tmp_path: Path) -> None:
    harness.compute(EXPERIMENT, [Config(1.0)], seeds=range(1), workers=1, path=tmp_path / "results" / "toy.csv")
    sweep(tmp_path, "--plot-only")
    assert (tmp_path / "figures" / "toy_lines.png").stat().st_size > 0


def test_no_empty_figure_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, "--plot-only")
    assert "holds no run of it" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


def test_a_command_says_what_it_is_about_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, "--seeds", "1")
    assert "runs that toy.csv lacks (--plot-only" in capsys.readouterr().out
    sweep(tmp_path, "--seeds", "2")
    assert "runs that toy.csv lacks, about 0 minutes of a core" in capsys.readouterr().out
    sweep(tmp_path, "--seeds", "2")
    assert "lacks" not in capsys.readouterr().out


def test_a_run_that_two_commands_computed_at_once_counts_once(tmp_path: Path) -> None:
    sweep(tmp_path)
    path = tmp_path / "results" / "toy.csv"
    before = records.Runs(path, [Config(2.0)]).get(Config(2.0), "error")[1]
    with path.open("a") as file:
        file.writelines(path.read_text().splitlines(keepends=True)[1:])
    after = records.Runs(path, [Config(2.0)]).get(Config(2.0), "error")[1]
    assert after.tolist() == before.tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 6]]


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    sweep(tmp_path, "--seeds", "1")
    for row in records.read_rows(tmp_path / "results" / "toy.csv"):
        assert row["torch"] == torch.__version__
        assert row["numpy"] == np.__version__
        assert row["device"] == "cpu"
        assert row["commit"]


def test_a_changed_field_is_another_run() -> None:
    names = {records.run_name(config) for config in (Config(), Config(2.0), Config(updates=3))}
    assert len(names) == 3
    assert records.run_name(Config(2.0)).startswith("slope=2.0 #")


def test_workers_compute_what_one_process_computes(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        options = ["--smoke", "--figure", "arms", "--workers", workers, "--output", str(tmp_path / workers)]
        harness.main(tabular.EXPERIMENT, options)
    one, two = (records.read_rows(tmp_path / w / "results" / "tabular.csv") for w in ("1", "2"))
    assert {(r["run"], r["seed"], r["step"], r["error"]) for r in one} == {
        (r["run"], r["seed"], r["step"], r["error"]) for r in two
    }


def test_interval_is_that_of_the_mean_and_survives_runs_that_never_arrive() -> None:
    values = np.random.default_rng(1).normal(5.0, 1.0, size=(50, 3))
    middle, low, high = records.interval(values)
    half_width = 1.96 * values.std(axis=0) / np.sqrt(50)
    np.testing.assert_allclose(middle, values.mean(axis=0))
    np.testing.assert_allclose(high - middle, half_width, rtol=0.1)
    np.testing.assert_allclose(middle - low, half_width, rtol=0.1)
    middle, low, high = records.interval(np.array([1.0, 2.0, 3.0, math.inf, math.inf]), np.median)
    assert middle == 3.0
    assert low <= middle
    assert high == math.inf


def test_every_seed_has_streams_of_random_numbers_of_its_own() -> None:
    def uniform(generator: torch.Generator, n: int) -> Tensor:
        return torch.rand(n, generator=generator)

    together = {stream: next(harness.draws([0, 1, 2], stream, uniform)).tolist() for stream in range(3)}
    assert len({number for numbers in together.values() for number in numbers}) == 9
    assert next(harness.draws([1], 2, uniform)).tolist() == [together[2][1]]


# --- every figure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.__name__))
def test_smoke_runs_and_draws(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure, with one config of each method, a few updates long. Only the first is turned into pixels: slow."""
    experiment = script.EXPERIMENT
    assert set(experiment.sweep) == set(experiment.figures)
    first = {
        figure: list({getattr(config, "method", None): config for config in configs}.values())
        for figure, configs in experiment.sweep.items()
    }
    saved: list[str] = []
    save = Figure.savefig

    def save_first(figure: Figure, path: Path) -> None:
        if not saved:
            save(figure, path)
        saved.append(path.name)

    monkeypatch.setattr(Figure, "savefig", save_first)
    options = ["--smoke", "--seeds", "1", "--workers", "1", "--output", str(tmp_path)]
    harness.main(dataclasses.replace(experiment, sweep=first), options)
    assert saved == [f"{experiment.name}_{figure}.png" for figure in experiment.sweep]
    assert (tmp_path / "figures" / saved[0]).stat().st_size > 0


def test_committed_results_are_of_configs_in_the_sweep() -> None:
    """A row whose config is no longer swept would silently vanish from the figures."""
    for script in [*SCRIPTS, control, stale_actors]:
        known = {records.run_name(config) for configs in script.EXPERIMENT.sweep.values() for config in configs}
        rows = records.read_rows(harness.HERE / "results" / f"{script.EXPERIMENT.name}.csv")
        assert {row["run"] for row in rows} <= known


# --- tabular and bandit: numbers of the papers ----------------------------------------------------------------------


@pytest.mark.parametrize(("method", "temperature", "angle"), [("pg", 1, 0.264), ("dg", 1, 0.220), ("dg", 2, 0.217)])
def test_angle_to_cross_entropy_with_many_contexts(method: str, temperature: float, angle: float) -> None:
    config = dataclasses.replace(tabular.CONTEXTS, method=method, temperature=temperature, updates=0)
    rows = tabular.run(config, list(range(100)))
    assert np.mean([row["one_minus_cosine"] for row in rows]) == pytest.approx(angle, abs=0.004)


def test_sampled_gradients_of_one_context_average_to_the_exact_one() -> None:
    logits = torch.randn(1, 1, 5, dtype=torch.double).requires_grad_()
    uniform = (torch.arange(200_000, dtype=torch.double) + 0.5) / 200_000  # evenly spread: no sampling noise
    for method in ("pg", "dg"):
        sampled = tabular.Config(method, arms=5, samples=200_000)
        exact = dataclasses.replace(sampled, samples=0)
        pair = [
            torch.autograd.grad(tabular.loss_of(c, logits, uniform[None, None]), logits)[0] for c in (sampled, exact)
        ]
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("right", [0.1, 0.5, 0.9])
def test_variance_across_the_gradient_as_theory_has_it(right: float) -> None:
    row = bandit.variance(bandit.Config(arms=100, right=right), np.random.default_rng(0))
    assert row["measured"] == pytest.approx(row["theory"], rel=0.01)
    hard = bandit.variance(bandit.Config(method="kondo", right=right), np.random.default_rng(0))
    assert hard["measured"] < 1e-7  # rounding, relative to the small noise of PG


def test_drift_on_the_gambling_bandit() -> None:
    reported = {0.2: 0.013, 1.0: 0.002, 2.0: -0.029, 5.0: -0.134}
    for noise, drift in reported.items():
        config = bandit.Config("drift", "dg", arms=2, right=0.9, noise_over_gap=noise)
        assert bandit.drift(config, np.random.default_rng(0))["measured"] == pytest.approx(drift, abs=0.003)
        plain = dataclasses.replace(config, method="pg")
        assert bandit.drift(plain, np.random.default_rng(0))["measured"] == pytest.approx(0.09, abs=0.003)


# --- MNIST bandit ---------------------------------------------------------------------------------------------------

SMALL = mnist.Config(width=16, updates=60, learning_rate=3e-3)


def metrics(rows: list[records.Row], seed: int) -> list[tuple[Any, ...]]:
    return [(row["step"], row["test_error"], row["backward"]) for row in rows if row["seed"] == seed]


@pytest.mark.parametrize("change", [{}, {"method": "kondo"}, {"method": "kondo", "gate_rate": 0.0}, {"delay": 7}])
def test_a_seed_does_not_depend_on_its_company(change: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **change)
    alone, together = (metrics(mnist.run(config, seeds), 4) for seeds in ([4], [0, 4, 2]))
    np.testing.assert_allclose(alone, together, atol=0.01)  # batched products of another size round differently


def test_ratio_methods_are_the_policy_gradient_while_the_actor_is_fresh() -> None:
    plain, *ratios = (mnist.run(dataclasses.replace(SMALL, method=m), [0]) for m in ("pg", "iw", "ppo"))
    stale = mnist.run(dataclasses.replace(SMALL, method="iw", delay=20), [0])
    for rows in ratios:
        assert metrics(rows, 0) == metrics(plain, 0)
    assert metrics(stale, 0) != metrics(plain, 0)


def test_the_gate_at_price_zero_is_the_full_batch_with_dropped_rows_as_zeros() -> None:
    """Gathering the kept rows, padded where seeds keep different numbers, must not change the gradient."""
    images, labels, *_ = mnist.load("digits")
    parameters = mnist.initial_parameters([0, 1], [64, 8, 10])
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(images), (2, 50), generator=generator)
    batch = mnist.act(parameters, images, index, torch.rand(2, 50, 1, generator=generator))
    noise = torch.zeros(2, 50)

    def gradient(config: mnist.Config) -> Tensor:
        loss, _ = mnist.update_loss(config, parameters, images, labels, batch, noise)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    hard_dg = mnist.Config(method="dg", temperature=0.0)
    torch.testing.assert_close(gradient(mnist.Config(method="kondo", gate_rate=0.0)), gradient(hard_dg))
    every_row = mnist.Config(method="kondo", gate_rate=1.0)
    torch.testing.assert_close(gradient(every_row), gradient(mnist.Config()))


def test_dg_learns_the_digits_faster_than_the_policy_gradient() -> None:
    plain, gated = (
        np.mean([row["test_error"] for row in mnist.run(config, list(range(8))) if row["step"] == 300])
        for config in (mnist.Config(updates=300), mnist.Config(method="dg", updates=300))
    )
    assert gated < 0.8 * plain


# --- token reversal -------------------------------------------------------------------------------------------------


def test_targets_and_rewards() -> None:
    prompt = torch.tensor([[0, 0, 1]])
    by_target = {"copy": [0, 0, 1], "flip": [1, 1, 0], "reverse": [1, 0, 0], "reverse_flip": [0, 1, 1]}
    for target, wanted in by_target.items():
        config = token_reversal.Config(target=target)
        assert token_reversal.right_answer(config, prompt).tolist() == [wanted]
    answer, right = torch.tensor([[1, 1, 0], [1, 0, 0]]), torch.tensor([[1, 0, 0], [1, 0, 0]])
    for reward, values in (("bag", [2 / 3, 1]), ("sequential", [1 / 3, 1]), ("exact", [0, 1])):
        paid = token_reversal.reward_of(token_reversal.Config(reward=reward), answer, right)
        torch.testing.assert_close(paid, torch.tensor(values, dtype=torch.float))


def test_writing_with_a_cache_gives_the_log_probabilities_of_reading_at_once() -> None:
    config = token_reversal.Config(horizon=5, symbols=3, initial="torch")
    policy = token_reversal.Transformer(config)
    prompt = torch.randint(3, (7, 5))
    dictated = torch.where(torch.rand(7, 5) < 0.3, 2, -1)
    answer, log_probs = policy.write(prompt, torch.rand(7, 5), dictated)
    torch.testing.assert_close(log_probs, policy.answer_log_probs(prompt, answer), atol=1e-5, rtol=1e-4)
    assert (answer[dictated >= 0] == 2).all()


class Dated(torch.nn.Module):
    """Stands in for a policy: writes its age into the log-probabilities."""

    update = 0

    def write(self, prompt: Tensor, uniform: Tensor, dictated: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(dictated >= 0, dictated, 1), torch.full((*prompt.shape, 2), float(self.update))


def test_actors_are_uniform_over_the_last_snapshots() -> None:
    config = token_reversal.Config(horizon=3, delay=4)
    actors, policy = token_reversal.StaleActors(config, seed=0), Dated()
    ages: list[float] = []
    for update in range(200):
        policy.update = update
        _, _, written_at = actors.batch(policy, update)  # type: ignore[arg-type]
        age = update - written_at[:, 0, 0]
        assert age.min() >= 0
        assert age.max() <= min(update, 4)
        ages += age.tolist() if update >= 4 else []
    shares = np.bincount(np.array(ages, dtype=int)) / len(ages)
    np.testing.assert_allclose(shares, 1 / 5, atol=0.02)


def test_discovery_goes_before_the_bug() -> None:
    for bug, discovery in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        config = token_reversal.Config(actor_bug=bug, discovery=discovery)
        prompt, answer, _ = token_reversal.StaleActors(config, seed=0).batch(Dated(), 0)  # type: ignore[arg-type]
        right = token_reversal.right_answer(config, prompt)
        assert torch.equal(answer, right if discovery else torch.zeros_like(answer))


def test_group_advantages_sum_to_zero_per_prompt() -> None:
    advantage = token_reversal.group_advantage(token_reversal.Config(), torch.rand(100))
    torch.testing.assert_close(advantage.view(10, 10).sum(dim=1), torch.zeros(10), atol=1e-5, rtol=0)


def test_kondo_keeps_whole_episodes() -> None:
    behaviour = torch.log(torch.full((100, 10), 0.5))
    advantage = torch.zeros(100, 1)
    advantage[[5, 17, 60]] = 1.0
    kept = token_reversal.chosen_rows(token_reversal.Config(method="kondo"), behaviour, advantage)
    assert sorted(kept.tolist()) == [5, 17, 60]


def test_every_token_method_has_a_finite_gradient_that_ppo_shares_with_pg_at_no_delay() -> None:
    gradients = {}
    for method in ("pg", "iw", "ppo", "dg", "pmpo", "scaled_po", "asympo", "kondo_token"):
        config = token_reversal.Config(method=method, horizon=4)
        torch.manual_seed(0)
        policy = token_reversal.Transformer(config)
        prompt, answer, behaviour = token_reversal.StaleActors(config, seed=0).batch(policy, 0)
        reward = token_reversal.reward_of(config, answer, token_reversal.right_answer(config, prompt))
        advantage = token_reversal.group_advantage(config, reward)
        log_probs = policy.answer_log_probs(prompt, answer)
        loss = token_reversal.loss_of(config, log_probs, answer, behaviour, advantage, batch_size=100)
        loss.backward()  # type: ignore[no-untyped-call]
        assert policy.head.weight.grad is not None
        gradients[method] = policy.head.weight.grad
        assert gradients[method].isfinite().all()
        assert gradients[method].norm() > 0
    torch.testing.assert_close(gradients["ppo"], gradients["pg"], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(gradients["iw"], gradients["pg"], atol=1e-6, rtol=1e-3)


# --- training runs of the algorithms --------------------------------------------------------------------------------


def kondo(env: VecEnv, seed: int) -> KondoDG:
    return KondoDG("MlpPolicy", env, gate_rate=0.1, critic_rate=0.5, n_steps=16, seed=seed, device="cpu")


def test_rows_are_evenly_spaced_and_count_what_was_paid_for() -> None:
    rows = training.train(kondo, "CartPole-v1", 0, 150, n_envs=4, evaluations=3)  # 64 rows an update, 7 of them kept
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert [row["env_steps"] for row in rows] == [64, 128, 192]
    assert [row["actor_rows"] for row in rows] == [7, 14, 21]
    assert [row["critic_rows"] for row in rows] == [32, 64, 96]
    assert [row["gradient_steps"] for row in rows] == [1, 2, 3]
    assert rows[0].keys() == {"seed", "step", *training.METRICS, *training.PACKAGES}


def test_an_update_past_two_steps_writes_both_rows() -> None:
    rows = training.train(kondo, "CartPole-v1", 0, 64, n_envs=4, evaluations=2)
    assert [(row["step"], row["env_steps"]) for row in rows] == [(32, 64), (64, 64)]


def test_algorithms_of_stable_baselines3_pay_for_every_row_of_every_epoch() -> None:
    def ppo(env: VecEnv, seed: int) -> PPO:
        return PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=3, seed=seed, device="cpu")

    row = training.train(ppo, "CartPole-v1", 0, 128, n_envs=4, evaluations=1)[-1]
    assert (row["actor_rows"], row["critic_rows"], row["gradient_steps"]) == (384, 384, 12)
    row = training.train(lambda env, _: A2C("MlpPolicy", env, device="cpu"), "CartPole-v1", 0, 40, evaluations=1)[-1]
    assert (row["actor_rows"], row["critic_rows"], row["gradient_steps"]) == (40, 40, 1)


def test_looking_more_often_changes_no_training() -> None:
    def weights(model: KondoDG) -> records.Row:
        return {"weights": [p.detach().clone() for p in model.policy.parameters()]}

    arguments: dict[str, Any] = {"n_envs": 4, "normalize": True, "measure": weights}
    once, often = (training.train(kondo, "CartPole-v1", 0, 640, evaluations=n, **arguments)[-1] for n in (1, 5))
    for left, right in zip(once["weights"], often["weights"], strict=True):
        assert torch.equal(left, right)
    assert once["sampled"] == often["sampled"]


def test_evaluation_is_on_other_seeds_with_the_statistics_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    seeds: list[set[int]] = []

    def make(env_id: str, n_envs: int, seed: int) -> VecEnv:
        seeds.append(set(range(seed, seed + n_envs)))  # of the environments, as make_vec_env has it
        return make_vec_env(env_id, n_envs, seed=seed)

    def look(model: Any, env: Any, **_: Any) -> tuple[list[float], list[int]]:
        seen.append((model.get_vec_normalize_env(), env, model.gamma))
        return [0.0], [1]

    monkeypatch.setattr(training, "make_vec_env", make)
    monkeypatch.setattr(training, "evaluate_policy", look)

    def slow(env: VecEnv, seed: int) -> PolicyGradient:
        return PolicyGradient("MlpPolicy", env, gamma=0.9, n_steps=16, seed=seed, device="cpu")

    training.train(slow, "CartPole-v1", 3, 64, n_envs=4, evaluations=1, normalize=True)
    of_training, of_evaluation = seeds
    assert not of_training & of_evaluation
    ((trained, held_out, gamma),) = seen
    assert held_out.obs_rms is trained.obs_rms
    assert not held_out.training
    assert not held_out.norm_reward
    assert trained.gamma == gamma == 0.9


def test_returns_are_means_of_evaluation_and_of_the_last_thirty_training_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def returns(model: KondoDG) -> records.Row:
        return {"returns": [episode["r"] for episode in model.ep_info_buffer or []]}

    monkeypatch.setattr(training, "evaluate_policy", lambda *_, **__: ([7.0, 9.0], [1, 1]))
    (row,) = training.train(kondo, "CartPole-v1", 0, 1280, n_envs=4, evaluations=1, measure=returns)
    assert len(row["returns"]) > 30
    assert row["sampled"] == pytest.approx(np.mean(row["returns"][-30:]))
    assert row["deterministic"] == 8.0


def test_seconds_leave_evaluation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    update = PolicyGradient.train

    def evaluate(*_: Any, **__: Any) -> tuple[list[float], list[int]]:
        clock[0] += 1000.0
        return [0.0], [1]

    def train(model: PolicyGradient) -> None:
        clock[0] += 2.0
        update(model)

    monkeypatch.setattr(training, "evaluate_policy", evaluate)
    monkeypatch.setattr(PolicyGradient, "train", train)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    rows = training.train(kondo, "CartPole-v1", 0, 192, n_envs=4, evaluations=3)
    assert [row["training_seconds"] for row in rows] == [row["update_seconds"] for row in rows] == [2.0, 4.0, 6.0]


def test_arms_of_a_task_differ_in_the_gate_alone() -> None:
    gate: dict[str, Any] = {
        "method": "pg",
        "priority": "delight",
        "gate_rate": 0.1,
        "temperature": 0.0,
        "critic_rate": 1.0,
    }
    for task in gates.TASKS:
        arms = gates.SWEEP[task]
        assert len({dataclasses.replace(arm, **gate) for arm in arms}) == 1
        assert len({records.run_name(arm) for arm in arms}) == len(arms) == 18
        kondo_arms = {(arm.gate_rate, arm.critic_rate, arm.priority) for arm in arms if arm.method == "kondo"}
        assert {
            (r, c, "random") for r, c, p in kondo_arms if r and p == "delight"
        } <= kondo_arms  # no rate without control


@pytest.mark.parametrize("arm", gates.SWEEP["minatar"], ids=gates.label)
def test_every_arm_takes_the_same_number_of_optimiser_steps(arm: gates.Config) -> None:
    row = gates.run(dataclasses.replace(arm, updates=256, evaluations=1), [0])[-1]
    assert (row["gradient_steps"], row["env_steps"]) == (1, 256)
    if arm.gate_rate is not None and arm.temperature == 0:
        assert row["actor_rows"] == math.ceil(256 * (arm.gate_rate if arm.method == "kondo" else 1))
    assert row["critic_rows"] == math.ceil(256 * arm.critic_rate)


# --- the bonus that DG holds ----------------------------------------------------------------------------------------


def bonus_rows(n: int) -> dict[str, tuple[Any, RolloutBufferSamples]]:
    """Method -> its model, and rows of the policy that all models begin with, their advantages +1 or -1 at random."""
    torch.manual_seed(0)
    models = {
        config.method: implicit_bonus.make_model(config, make_vec_env("Pendulum-v1", 2), 0)
        for config in implicit_bonus.SWEEP["Hopper-v5"]
    }
    observations = torch.randn(n, 3)
    with torch.no_grad():
        actions, values, log_prob = models["dg"].policy(observations)
    advantages = torch.randint(0, 2, (n,)) * 2.0 - 1
    batch = RolloutBufferSamples(observations, actions, values.flatten(), log_prob, advantages, torch.zeros(n))
    return {method: (model, batch) for method, model in models.items()}


def test_every_step_from_the_bonus_to_dg_keeps_its_size_to_first_order() -> None:
    """Entropy's gradient with respect to the logarithm of a deviation is 1."""
    found = {}
    for method, (model, batch) in bonus_rows(400_000).items():
        _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
        weight = model._clip(model._weight(log_prob.detach(), batch), log_prob.detach(), batch)
        gain = (weight * batch.advantages * log_prob).mean() + model.ent_coef * entropy.mean()
        found[method] = torch.autograd.grad(gain, model.policy.log_std)[0].item()
    assert found.pop("half_pg") == pytest.approx(0, abs=0.004)
    assert found.pop("bonus") == pytest.approx(0.05, abs=0.004)
    for method in ("sampled", "clipped", "linear"):
        assert found.pop(method) == pytest.approx(0.05, abs=0.006)
    assert found["bounded"] < 0.05
    assert found["dg"] == pytest.approx(found["bounded"], abs=0.006)


def test_the_clip_stops_the_bonus_where_it_should() -> None:
    rows, moved = bonus_rows(64), {}
    for method, (model, batch) in rows.items():
        log_prob = batch.old_log_prob + 0.5 * batch.advantages  # past the clip, in the advantage's favour
        moved[method] = model._clip(model._weight(log_prob, batch), log_prob, batch)
    sampled = moved.pop("sampled")
    assert all(torch.all(weight == 0) for weight in moved.values())
    model, batch = rows["sampled"]
    surprisal = -model._less_baseline(batch.old_log_prob + 0.5 * batch.advantages)
    torch.testing.assert_close(sampled * batch.advantages, surprisal / 20)


def test_a_row_without_advantage_has_no_share_of_the_bonus() -> None:
    for model, batch in bonus_rows(4).values():
        without = batch._replace(advantages=torch.tensor([0.0, 1.0, -1.0, 0.0]))
        assert torch.isfinite(model._weight(batch.old_log_prob, without)).all()

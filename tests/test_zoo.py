"""The zoo's commands, as a user runs them: in processes of their own, since RL-Zoo patches gymnasium when imported.

Run as a script, this file runs the checks that look inside (``check_...``) in such a process.
"""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("rl_zoo3") is None:  # importorskip would import it
    pytest.skip("needs the extra zoo", allow_module_level=True)

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "sb3_delight.zoo"]
# One interpreter for several commands: importing RL-Zoo takes longer than any of them.
SEVERAL = """
import json, sys
from sb3_delight.zoo import main
for command in json.loads(sys.argv[1]):
    try:
        main(command.split())
    except SystemExit as exit:
        print(f"exit: {exit.code}")
"""
SWEEP = ["train", "-optimize", "--no-optim-plots", "--env", "CartPole-v1", "-n", "600", "--eval-episodes", "1"]


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path.cwd(),
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()  # one that hangs must not outlive the test
    assert process.returncode == status, output
    return output


def run_several(*commands: str) -> str:
    return finish(start([sys.executable, "-c", SEVERAL, json.dumps(commands)]))


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def operations(journal: Path) -> list[dict[str, Any]]:
    """Of a journal, read from its text, without a lock."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def begun(journal: Path) -> int:
    return sum(operation["op_code"] == 4 for operation in operations(journal))


def ended(journal: Path) -> int:
    """Complete, pruned or failed."""
    return sum(operation.get("state") in (1, 2, 3) for operation in operations(journal))


def first_complete(journal: Path) -> int:
    return next(int(operation["trial_id"]) for operation in operations(journal) if operation.get("state") == 1)


def rows_of(results: Path) -> list[dict[str, str]]:
    with results.open() as file:
        return list(csv.DictReader(file))


def test_train_continue_enjoy_and_plot() -> None:
    run = "--env Pendulum-v1 -n 800 --eval-freq 400 --eval-episodes 1 --seed 1"
    output = run_several(
        f"train --algo dg {run}",
        f"train --algo dg {run} -i logs/dg/Pendulum-v1_1/Pendulum-v1.zip -params temperature:3.0",
        f"train --algo kondo_dg {run}",
        f"train --algo kondo_dg {run}",
        "enjoy --env Pendulum-v1 --no-render -n 200",
        "enjoy --algo kondo_dg --env Pendulum-v1 --exp-id 1 --load-best --no-render -n 200",
        f"train --algo pg --env CartPole-v1 {run[18:]}",
        "plots -o all --bootstrap-samples 20",
        "plots -a pg -e CartPole-v1 -o one --bootstrap-samples 20",
    )
    assert output.count("Mean reward") == 2
    assert "Loading pretrained agent" in output
    assert "dg.yml" in output
    assert "exit: " not in output
    assert (Path("logs") / "dg" / "Pendulum-v1_2" / "Pendulum-v1" / "vecnormalize.pkl").is_file()
    assert "not in the aggregates: Pendulum-v1" in output
    for folder, count in (("all", 1), ("one", 2)):  # aggregates need a reference score; a comparison, two algorithms
        figures = list(Path(folder).glob("*.png"))
        assert len(figures) == count
        assert all(figure.stat().st_size > 5000 for figure in figures)


def test_what_is_wrong_with_a_command_is_said_in_one_line() -> None:
    Path("broken.yml").write_text("default:\n  n_envs: [1\n  policy: x")
    Path("typo.yml").write_text("default:\n  n_timesteps: 100\n  policy: MlpPolicy\n  temprature: 1.0")
    output = run_several(
        "train --env CartPol-v1",
        "train --algo dgg",
        "train -conf broken.yml",
        "train -conf typo.yml",
        "train -conf missing.yml",
        "train -params temperature:-1.0",
        "train --study-name none --trial-id 0",
        "enjoy --env CartPole-v1",
        "best --study-name none",
        "best --study-name none --top 0",
        "best --study-name none --storage sqlite:///typo.db?timeout=9",
        "plots",
        "plots --bootstrap-samples 0",
        "trian",
    )
    assert "Traceback" not in output
    for message in (
        "CartPol-v1 not found in gym registry, you maybe meant CartPole-v1?",
        "invalid choice: 'dgg'",
        'broken.yml", line 3',
        "unexpected keyword argument 'temprature'",
        "No such file or directory: 'missing.yml'",
        "temperature must be positive",
        f"there is no study 'none' in {Path.cwd()}/logs/none.log",
        "there is no study 'none' in sqlite:///typo.db?timeout=9",
        "No model found for dg on CartPole-v1",
        "argument --top: must be a whole number, 1 or more, got '0'",
        "no evaluations of any algorithm on any environment in logs",
        "argument --bootstrap-samples: must be a whole number, 1 or more, got '0'",
        "usage: python -m sb3_delight.zoo COMMAND",
    ):
        assert message in output
    assert output.count("exit: ") == 14
    assert not list(Path("logs").rglob("CartPole-v1_*")), "a failed command left a run behind"
    assert not list(Path().glob("*.db")), "looking for a study made its database"


def test_ctrl_c_saves_the_agent() -> None:
    process = start([*COMMAND, "train", "--env", "CartPole-v1", "-n", "10000000"])
    monitor = Path("logs/dg/CartPole-v1_1/0.monitor.csv")
    wait_for(lambda: monitor.exists() and len(monitor.read_text().splitlines()) > 2, process)  # episodes are in
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in finish(process, status=130)
    assert Path("logs/dg/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_a_killed_sweep_resumes_and_its_best_trials_are_run_again() -> None:
    journal = Path("logs/shared.log")
    worker = [*COMMAND, *SWEEP, "-n", "1500", "--algo", "dg", "--study-name", "shared"]
    killed = start(worker)
    # Amid a trial, and not while it holds the journal's lock, which others would wait for half a minute.
    wait_for(lambda: begun(journal) > ended(journal) and time.time() - journal.stat().st_mtime > 0.2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert begun(journal) - ended(journal) == 1
    survivors = [start([*worker, "--max-total-trials", "4"]) for _ in range(2)]
    for survivor in survivors:
        finish(survivor)
    before = begun(journal)
    assert before - ended(journal) == 1, "a killed trial stays running"
    assert 4 <= before <= 5, "it counts; two workers may both begin the last"
    finish(start([*worker, "--n-trials", "2"]))
    assert begun(journal) == before + 2
    assert not list(Path("logs").rglob("CartPole-v1_*")), "a sweep left an empty run behind"
    number = first_complete(journal)

    best = "best --study-name shared --top 1 --eval-episodes 2"
    output = run_several(
        f"train --study-name shared --trial-id {number} -n 300",
        f"train --study-name shared --trial-id {number} -n 300 --env Pendulum-v1",
        f"{' '.join(SWEEP)} --study-name shared --env Pendulum-v1",
        f"{' '.join(SWEEP)} --study-name shared",
        f"{best} --seeds 1",
    )
    assert "'shared' is a study of --env CartPole-v1, not of Pendulum-v1" in output
    assert "'shared' was begun with env 'CartPole-v1', not 'Pendulum-v1': give the same command again" in output
    assert "'shared' was begun with n_timesteps 1500, not 600" in output
    assert output.count("exit: ") == 3
    results = Path("logs/shared_best.csv")
    (row,) = rows_of(results)
    # A package less, as if it was installed since; another command's row of the same run; what an older study left.
    del row["torch"]
    older = [{**row, "seed": "2", changed: "other"} for changed in ("env", "algo", "sweep_score", "sweep_began")]
    with results.open("w") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, row, *older])
    more = f"{best} --seeds 1 --eval-episodes 3"  # another score, so not to be averaged with those
    output = run_several(f"{best} --seeds 2", f"{best} --seeds 1", more, more)
    rows = rows_of(results)
    assert [row["torch"] != "" for row in rows] == [False] * 6 + [True] * 2
    assert [(row["seed"], row["eval_episodes"]) for row in rows[6:]] == [("2", "2"), ("1", "3")]
    assert [line.split()[4] for line in output.splitlines() if "<- survives" in line] == ["2", "1", "1", "1"]


def test_two_workers_share_a_study_in_a_database() -> None:
    storage = ["--storage", "sqlite:///study.db", "--study-name", "shared", "--max-total-trials", "4"]
    workers = [start([*COMMAND, *SWEEP, "--algo", "kondo_dg", *storage]) for _ in range(2)]
    for worker in workers:
        finish(worker)
    with sqlite3.connect("study.db") as database:
        assert database.execute("select count(*) from trials").fetchone()[0] >= 4


def test_inside() -> None:
    output = finish(start([sys.executable, __file__]))
    assert output.count("passed") == len(CHECKS)


# ------------------------------------------------------------------------------- checks that run in their own process


def evaluations(folder: str) -> list[float]:
    import numpy as np

    with np.load(Path(folder) / "evaluations.npz") as file:
        means: list[float] = file["results"].mean(axis=1).tolist()
    return means


def check_env_kwargs_of_a_file_or_a_study_hold_in_evaluation_and_enjoy() -> None:
    """In this variant of CartPole every episode's return is -1."""
    variant = "sutton_barto_reward:True"
    Path("variant.yml").write_text(
        "default: {n_timesteps: 300, policy: MlpPolicy, env_kwargs: {sutton_barto_reward: true}}"
    )
    run = ("train", "--env", "CartPole-v1", "--eval-freq", "100", "--eval-episodes", "2", "-n", "300", "--seed", "1")
    sweep = (*run, "-optimize", "--no-optim-plots", "--n-trials", "1")
    zoo(*run, "-conf", "variant.yml", "-f", "of_a_file")
    zoo(*sweep, "-conf", "variant.yml", "--study-name", "of_a_file")
    zoo(*sweep, "--env-kwargs", variant, "--study-name", "of_a_study")
    zoo(*run, "--study-name", "of_a_study", "--trial-id", "0", "-f", "logs")
    zoo(*run, "-i", "logs/dg/CartPole-v1_1/CartPole-v1.zip", "-f", "continued")
    added = ("--env-kwargs", "render_mode:'rgb_array'")
    zoo(*run, "-i", "of_a_file/dg/CartPole-v1_1/CartPole-v1.zip", *added, "-f", "continued_with_more")
    for folder in ("of_a_file", "logs", "continued", "continued_with_more"):
        assert set(evaluations(f"{folder}/dg/CartPole-v1_1")) == {-1.0}
        with contextlib.redirect_stdout(io.StringIO()) as output:
            zoo("enjoy", "--env", "CartPole-v1", "-f", folder, "--no-render", "-n", "300")
        assert "Mean reward: -1.00" in output.getvalue()
    for name in ("of_a_file", "of_a_study"):
        assert study(name).best_value == -1.0


def check_an_agent_is_continued_with_its_own_settings() -> None:
    from sb3_delight import DG

    run = ("train", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1")
    own = ("temperature:3.0", "clip_range:'lin_0.3'", "normalize:True", "n_envs:3")
    zoo(*run, "-f", "own", "-params", *own)
    agent = "own/dg/CartPole-v1_1/CartPole-v1.zip"
    zoo(*run, "-f", "own", "-i", agent, "-params", "surprisal_clip:2.0")
    zoo(*run, "-f", "own", "-i", agent, "-conf", str(Path(__file__).parent.parent / "zoo_configs" / "dg.yml"))
    first, continued, configured = (
        DG.load(f"own/dg/CartPole-v1_{number}/CartPole-v1.zip", device="cpu") for number in (1, 2, 3)
    )
    for model in (first, continued):
        assert (model.temperature(1.0), model.clip_range(1.0), model.n_envs) == (3.0, 0.3, 3)  # type: ignore
        assert (model.surprisal_clip == 2.0) == (model is continued)
    assert configured.temperature(1.0) == pytest.approx(0.5076, abs=1e-4)  # type: ignore[operator]
    as_before = [*run[:3], *run[5:]]  # without -n
    zoo(*as_before, "-f", "own", "-i", agent)
    fourth = DG.load("own/dg/CartPole-v1_4/CartPole-v1.zip", device="cpu")
    assert fourth._total_timesteps == first._total_timesteps == 200  # not as many as the configuration has
    assert Path("own/dg/CartPole-v1_2/CartPole-v1/vecnormalize.pkl").is_file()


def check_an_agent_is_continued_as_what_it_is_or_not_at_all() -> None:
    run = ("train", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1", "-f", "whole")
    zoo(*run, "--save-freq", "100", "-params", "normalize:True", "gamma:0.9")
    agent, statistics = (Path("whole/dg/CartPole-v1_1") / name for name in ("CartPole-v1.zip", "CartPole-v1"))
    statistics /= "vecnormalize.pkl"
    for given, message in (
        (("-params", "temprature:5.0"), "must be an argument of DG, got 'temprature'"),
        (("--algo", "pg"), "an agent of --algo dg, not of pg"),
        (("--env", "Acrobot-v1"), r"Acrobot-v1.vecnormalize.pkl .but there are for --env CartPole-v1., got True"),
        (("-params", "policy_kwargs:dict(net_arch=[8])"), "the agent that -i continues has a network"),
        (("-params", "normalize:False"), "normalize must be True with -i: there are VecNormalize statistics"),
        (("-params", "normalize:dict(norm_reward=False)"), "norm_reward must be True, the agent's, with -i, got False"),
    ):
        with pytest.raises(SystemExit, match=message):
            zoo(*run, "-i", str(agent), *given)
    Path("plain.yml").write_text("default: {policy: MlpPolicy, n_timesteps: 100, temperature: 7.0}")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        zoo(*run, "-i", str(agent), "-params", "gamma:0.5")
        zoo(*run, "-i", str(agent), "-conf", "plain.yml")
        zoo("enjoy", "--env", "CartPole-v1", "-f", "whole", "--no-render", "-n", "100")
    assert "'gamma': 0.5" in output.getvalue()
    assert output.getvalue().count("Loading saved VecNormalize stats") == 2
    assert "Loading running average" in output.getvalue()
    with Path("whole/dg/CartPole-v1_2/CartPole-v1/vecnormalize.pkl").open("rb") as file:
        assert pickle.load(file).gamma == 0.5
    # Killed after a checkpoint: what is left is of use, and without its statistics is refused.
    agent.unlink()
    (checkpoint,) = Path("whole/dg/CartPole-v1_1").glob("rl_model_1*_steps.zip")
    zoo(*run, "-i", str(checkpoint))
    watch = ("enjoy", "--env", "CartPole-v1", "-f", "whole", "--no-render", "-n", "9")
    zoo(*watch, "--exp-id", "1", "--load-last-checkpoint")
    statistics.unlink()
    with pytest.raises(SystemExit, match="normalize must be False with -i: there are no VecNormalize statistics"):
        zoo(*run, "-i", str(checkpoint))


def check_an_agent_of_rl_zoos_own_algorithms_takes_no_misspelt_argument() -> None:
    run = ("train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1", "-f", "theirs")
    zoo(*run)
    with pytest.raises(SystemExit, match="must be an argument of PPO, got 'clip_rnge'"):
        zoo(*run, "-i", "theirs/ppo/CartPole-v1_1/CartPole-v1.zip", "-params", "clip_rnge:0.1")


def check_statistics_come_with_every_checkpoint() -> None:
    from sb3_delight import DG

    class Killed(BaseException):
        pass

    learn = DG.learn

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        learn(self, *args, **kwargs)
        raise Killed

    DG.learn = killed  # type: ignore[method-assign]
    run = ("train", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1", "-f", "killed", "--save-freq", "100")
    with pytest.raises(Killed):
        zoo(*run, "-params", "normalize:True")
    DG.learn = learn  # type: ignore[method-assign]
    assert not Path("killed/dg/CartPole-v1_1/CartPole-v1.zip").exists()
    assert Path("killed/dg/CartPole-v1_1/CartPole-v1/vecnormalize.pkl").is_file()


def check_a_seeded_sweep_is_resumed_with_other_numbers() -> None:
    sweep = ["train", "-optimize", "--no-optim-plots", "--env", "CartPole-v1", "-n", "300", "--n-trials", "2"]
    sweep += ["--study-name", "seeded", "--eval-episodes", "1", "--seed", "1"]
    zoo(*sweep)
    zoo(*sweep)
    zoo(*sweep[:-4], "--study-name", "again", "--eval-episodes", "1", "--seed", "1")
    rates = [trial.params["learning_rate"] for trial in study("seeded").trials]
    assert len(set(rates)) == 4
    assert rates[:2] == [trial.params["learning_rate"] for trial in study("again").trials]


def check_runs_that_begin_together_have_folders_of_their_own() -> None:
    from sb3_delight.zoo.manager import ZooManager

    create = ZooManager.create_log_folder
    others: list[Path] = []

    def another_was_faster(self: Any) -> None:
        if not others:
            others.append(Path(self.save_path))
            others[0].mkdir(parents=True)
            (others[0] / "theirs").touch()
        create(self)

    ZooManager.create_log_folder = another_was_faster  # type: ignore[method-assign]
    run = ("train", "--env", "CartPole-v1", "-n", "100", "--eval-freq", "-1", "-f", "together")
    zoo(*run)
    others.clear()
    with pytest.raises(SystemExit, match="temprature"):
        zoo(*run, "-params", "temprature:1.0")
    ZooManager.create_log_folder = create  # type: ignore[method-assign]
    found = {path.name: sorted(each.name for each in path.iterdir()) for path in Path("together/dg").iterdir()}
    assert found.keys() == {"CartPole-v1_1", "CartPole-v1_2", "CartPole-v1_3"}
    assert found["CartPole-v1_1"] == found["CartPole-v1_3"] == ["theirs"]
    assert "CartPole-v1.zip" in found["CartPole-v1_2"]


def check_an_agent_is_filmed() -> None:
    zoo("train", "--env", "CartPole-v1", "-n", "100", "--eval-freq", "-1")
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    zoo("record_video", "--env", "CartPole-v1", "-n", "20")
    (video,) = Path("logs").rglob("*.mp4")
    assert video.stat().st_size > 1000


def check_environments_that_ctrl_c_ended_too_are_no_error() -> None:
    """Those in processes of their own may be gone when RL-Zoo closes them."""
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_delight.zoo.manager import ZooManager

    learn = ExperimentManager.learn

    def end(self: Any, model: Any) -> None:
        learn(self, model)
        ZooManager.interrupted = interrupted
        raise ConnectionResetError

    ExperimentManager.learn = end  # type: ignore[method-assign]
    run = ("train", "--env", "CartPole-v1", "-n", "100", "--eval-freq", "-1", "-f", "gone")
    interrupted = True
    with pytest.raises(SystemExit, match="130"):
        zoo(*run)
    interrupted = False
    with pytest.raises(ConnectionResetError):
        zoo(*run)
    ExperimentManager.learn = learn  # type: ignore[method-assign]
    assert len(list(Path("gone").rglob("CartPole-v1.zip"))) == 2


def check_a_run_that_fails_saves_its_agent() -> None:
    from sb3_delight import DG

    class Fails(Exception):
        pass

    update = DG._update
    updates: list[None] = []

    def fail_later(self: Any, rollout: Any) -> None:
        if len(updates) == 2:
            raise Fails
        update(self, rollout)
        updates.append(None)

    DG._update = fail_later  # type: ignore[method-assign]
    with pytest.raises(Fails):
        zoo("train", "--env", "CartPole-v1", "-n", "5000", "-f", "failing", "--eval-freq", "-1")
    DG._update = update  # type: ignore[method-assign]
    assert DG.load("failing/dg/CartPole-v1_1/CartPole-v1.zip", device="cpu")._n_updates == 2


def check_a_typo_does_not_settle_a_study_and_scores_are_alike() -> None:
    sweep = ["train", "-optimize", "--no-optim-plots", "--env", "CartPole-v1", "-n", "300", "--n-trials", "1"]
    sweep += ["--study-name", "typo", "--eval-episodes", "2"]
    with pytest.raises(SystemExit, match="temprature"):
        zoo(*sweep, "-params", "temprature:1.0")
    zoo(*sweep, "-params", "surprisal_clip:5.0")
    assert study("typo").user_attrs["setting"]["hyperparams"] == {"surprisal_clip": 5.0}
    for flag in ("--eval-episodes", "--n-evaluations", "--n-eval-envs"):
        with pytest.raises(SystemExit, match=f"'typo' was begun with {flag[2:].replace('-', '_')}"):
            zoo(*sweep, "-params", "surprisal_clip:5.0", flag, "7")


def check_bad_settings_are_named() -> None:
    Path("bare.yml").write_text("default: {policy: MlpPolicy}")
    Path("agent.zip").touch()
    Path("function.py").write_text(
        "def slow(progress): return 3.0\n"
        "hyperparams = dict(default=dict(policy='MlpPolicy', n_timesteps=100, temperature=slow))\n"
    )
    for given, message in (
        (("-params", "learning_rate:'constant_0.001'"), "learning_rate must be"),
        (("-params", "clip_range:'linear'"), "clip_range must be"),
        (("-params", "n_envs:0"), "n_envs must be a whole number, 1 or more, got 0"),
        (("-conf", "bare.yml"), "missing key 'n_timesteps'"),
        (("-optimize", "-i", "agent.zip"), "-i continues an agent, .*: give one of them"),
        (("--trial-id", "0", "-i", "agent.zip"), "--trial-id trains a trial, .*: give one of them"),
        (("-optimize", "--n-evaluations", "0"), "--n-evaluations must be a whole number, 1 or more, got 0"),
        (("--eval-episodes", "0"), "--eval-episodes must be a whole number, 1 or more, got 0"),
        (("--log-interval", "0"), "--log-interval must be 1 or more"),
        (("-n", "0"), "-n must be 1 or more, or -1 .the configuration's., got 0"),
        (("-optimize", "--n-trials", "0"), "--n-trials must be a whole number, 1 or more, got 0"),
        (("-optimize", "--max-total-trials", "0"), "--max-total-trials must be a whole number, 1 or more, got 0"),
        (("-params", "temperature:lin_5"), "name 'lin_5' is not defined .in key:value the value is Python source"),
        (("-conf", "function.py"), "temperature must be something that a YAML file can hold"),
    ):
        with pytest.raises(SystemExit, match=message):
            zoo("train", "--env", "CartPole-v1", *given)
    zoo("train", "--env", "CartPole-v1", "-conf", "bare.yml", "-n", "100", "-f", "bare", "-params", "n_steps:8")


def check_registering_twice_is_registering_once() -> None:
    import rl_zoo3
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from sb3_delight.zoo import register

    register()
    before = dict(rl_zoo3.ALGOS), dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER)
    register()
    assert before == (rl_zoo3.ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER)
    assert {"dg", "kondo_dg", "pg", "iwpg"} <= rl_zoo3.ALGOS.keys()


def check_every_block_of_every_configuration_builds() -> None:
    """Environments without MuJoCo are as good as those with, for the arguments of an algorithm."""
    import gymnasium
    import yaml
    from rl_zoo3 import ALGOS
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_delight.zoo.manager import evaluated, packaged_config

    mujoco = {f"{name}-v5" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Reacher")}
    mujoco |= {"InvertedPendulum-v5", "InvertedDoublePendulum-v5"}
    for algo in ("dg", "kondo_dg", "pg", "iwpg", "ppo", "a2c", "trpo"):
        path = packaged_config(algo, "HalfCheetah-v5")
        assert path is not None
        blocks = yaml.safe_load(Path(path).read_text())
        assert mujoco <= blocks.keys()
        for env_id, block in blocks.items():
            assert env_id in ("default", "atari") or env_id in gymnasium.registry
            arguments = ExperimentManager._preprocess_schedules(block)
            for handled_by_the_zoo in ("n_envs", "n_timesteps", "normalize", "env_wrapper", "frame_stack"):
                arguments.pop(handled_by_the_zoo, None)
            arguments["policy"] = arguments["policy"].replace("Cnn", "Mlp")
            arguments["policy_kwargs"] = evaluated(arguments.pop("policy_kwargs", {}))
            env = env_id if env_id.startswith("MinAtar/") else "Pendulum-v1"
            ALGOS[algo](env=env, **arguments)
            if algo == "kondo_dg":  # what the file advises for a cheaper gate
                ALGOS[algo](env=env, **{**arguments, "gate_rate": 0.1, "temperature": 0, "critic_rate": 0.1})
    assert packaged_config("ppo", "CartPole-v1") is None, "RL-Zoo's own settings are the ones to use"


def check_what_is_sampled_is_what_a_trial_id_trains() -> None:
    import optuna
    from rl_zoo3 import ALGOS

    from sb3_delight.zoo.manager import ZooManager
    from sb3_delight.zoo.samplers import CONVERTERS, SAMPLERS

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    temperatures = []
    passes: dict[str, set[tuple[bool, bool]]] = {algo: set() for algo in SAMPLERS}  # (clipped, several)
    baselines: dict[bool, set[str]] = {False: set(), True: set()}  # by whether a sweep should try both
    for algo, sample in SAMPLERS.items():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for env_id, n_actions in [("CartPole-v1", 0), ("Pendulum-v1", 1)] * 8:
            trial = study.ask()
            sampled = sample(trial, n_actions, 1, {})
            converted = ZooManager._preprocess_schedules(CONVERTERS[algo](trial.params))
            assert repr(sampled) == repr(converted)
            assert ("log_std_init" in sampled["policy_kwargs"]) == (n_actions > 0)
            model: Any = ALGOS[algo]("MlpPolicy", env_id, **sampled)
            assert (model.ent_coef > 0) == (algo in ("pg", "iwpg"))
            passes[algo].add((model.clip_range is not None, model.n_epochs > 1))
            temperatures += [model.temperature(1.0)] if algo == "dg" else []
            baselines[algo in ("dg", "kondo_dg") and n_actions > 0].add(model.surprisal_baseline)
    assert passes.pop("iwpg") == {(False, False), (False, True)}
    assert all(each == {(False, False), (True, True)} for each in passes.values())
    assert 0.0 in temperatures
    assert 0.3 <= max(temperatures) <= 100
    assert baselines == {False: {"none"}, True: {"none", "mode"}}


def check_what_a_trial_stores_becomes_the_arguments_it_stands_for() -> None:
    from torch import nn

    from sb3_delight.zoo.samplers import convert

    params = {"learning_rate": 0.1, "lr_schedule": "linear", "n_steps_pow": 5, "one_minus_gamma": 0.01}
    params |= {"one_minus_gae_lambda": 0.05, "net_arch": "medium", "activation_fn": "relu"}
    arguments = convert(params | {"gate": "rate", "gate_rate": 0.3})
    networks = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}, "activation_fn": nn.ReLU}
    assert arguments.pop("policy_kwargs") == networks
    passes = {"n_epochs": 1, "clip_range": None}
    of_the_loop = {"learning_rate": "lin_0.1", "n_steps": 32, "gamma": 0.99, "gae_lambda": 0.95, **passes}
    assert arguments == {**of_the_loop, "gate_rate": 0.3, "price": None, "surprisal_baseline": "none"}


def check_what_a_trial_did_not_sample_is_not_left_to_a_configuration() -> None:
    from sb3_delight.zoo.samplers import convert

    params = {"learning_rate": 0.1, "lr_schedule": "constant", "n_steps_pow": 5, "one_minus_gamma": 0.01}
    params |= {"one_minus_gae_lambda": 0.05, "net_arch": "small", "activation_fn": "tanh", "temperature": 2.0}
    arguments = convert(params)
    names = ("n_epochs", "clip_range", "surprisal_baseline", "temperature")
    assert [arguments[name] for name in names] == [1, None, "none", 2.0]


def check_a_trial_whose_settings_are_refused_is_pruned() -> None:
    import optuna

    zoo("train", "-optimize", "--no-optim-plots", "--env", "Pendulum-v1", "-n", "300", "--eval-episodes", "1", "--seed",
        "7", "--n-trials", "4", "--study-name", "noise", "-params", "use_sde:True")  # fmt: skip
    journal = optuna.storages.journal.JournalFileBackend("logs/noise.log")
    study = optuna.load_study(study_name="noise", storage=optuna.storages.JournalStorage(journal))
    states = {(trial.params["surprisal_baseline"], trial.state.name) for trial in study.trials}
    assert states == {("mode", "PRUNED"), ("none", "COMPLETE")}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    with pytest.raises(SystemExit) as stop:
        zoo("train", "--env", "Pendulum-v1", "-n", "300", "--study-name", "noise", "--trial-id", "4")
    assert "the trial ended before it had settings" in str(stop.value)


def check_a_trial_normalizes_by_its_own_gamma_and_nan_prunes_it() -> None:
    import optuna
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_delight import DG

    seen: list[tuple[float, float]] = []
    settings: list[tuple[Any, ...]] = []
    networks: list[Any] = []
    learn = DG.learn
    Path("mine.yml").write_text(
        "default: {n_envs: 2, n_timesteps: 300, policy: MlpPolicy, normalize: true, advantage_scaling: standardize, "
        "policy_kwargs: 'dict(ortho_init=False, net_arch=[8], optimizer_class=th.optim.Adamax)'}"
    )

    def learn_and_look(self: Any, *args: Any, **kwargs: Any) -> Any:
        normalization = self.get_vec_normalize_env()
        assert isinstance(normalization, VecNormalize)
        seen.append((self.gamma, normalization.gamma))
        kept = self.policy.ortho_init, type(self.policy.optimizer).__name__
        settings.append((self.surprisal_clip, self.n_envs, self.advantage_scaling, args[0], *kept))
        networks.append(self.policy.net_arch)
        if len(seen) == 2:
            raise ValueError("NaN or inf reward in the rollout")
        return learn(self, *args, **kwargs)

    DG.learn = learn_and_look  # type: ignore[method-assign]
    zoo("train", "-optimize", "--no-optim-plots", "--env", "Pendulum-v1", "-n", "600", "--eval-episodes", "1",
        "--n-trials", "3", "--study-name", "gammas", "-conf", "mine.yml", "-params", "surprisal_clip:3.0")  # fmt: skip
    again = ("train", "--env", "Pendulum-v1", "--study-name", "gammas", "--trial-id", "0", "--eval-freq", "-1")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        zoo(*again)
    assert "Hyperparameters of trial 0 of gammas and this command:" in output.getvalue()
    assert "'n_timesteps': 600" in output.getvalue()
    assert "[8]" not in output.getvalue()  # the configuration's
    zoo("best", "--study-name", "gammas", "--top", "2", "--seeds", "1", "--eval-episodes", "1")
    zoo(*again, "-params", "surprisal_clip:3.0", "policy_kwargs:'dict(ortho_init=True)'")
    DG.learn = learn  # type: ignore[method-assign]
    assert len(seen) == 7
    assert settings[:6] == [(3.0, 2, "standardize", 600, False, "Adamax")] * 6
    assert settings[6] == (3.0, 2, "standardize", 600, True, "Adamax")
    assert networks[3] == networks[6] == networks[0] != [8]
    assert sorted(map(str, networks[4:6])) == sorted(map(str, (networks[0], networks[2])))
    assert sorted(seen[4:6]) == sorted((seen[0], seen[2]))
    assert all(algorithm == normalization for algorithm, normalization in seen)
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[0]
    with Path("logs/dg/Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl").open("rb") as file:
        assert pickle.load(file).gamma == seen[0][1]
    journal = optuna.storages.journal.JournalFileBackend("logs/gammas.log")
    study = optuna.load_study(study_name="gammas", storage=optuna.storages.JournalStorage(journal))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    Path("mine.yml").write_text(Path("mine.yml").read_text().replace("n_envs: 2", "n_envs: 3"))
    sweep = ("train", "-optimize", "--env", "Pendulum-v1", "-n", "600", "--eval-episodes", "1", "--n-trials", "1")
    resumed = (*sweep, "--study-name", "gammas", "-conf", "mine.yml", "-params", "surprisal_clip:3.0")
    best = ("best", "--study-name", "gammas", "--top", "2", "--seeds", "2", "--eval-episodes", "1")
    for command in (again, resumed, best):
        with pytest.raises(SystemExit, match=r"mine.yml has changed since the study began: n_envs was 2 .*, and is 3"):
            zoo(*command)
    zoo(*again, "-params", "n_envs:2")
    Path("mine.yml").write_text("default: {n_envs: 2, n_timesteps: 300, policy: MlpPolicy, policy_kwargs: null}")
    zoo(*sweep, "--study-name", "null", "-conf", "mine.yml", "--no-optim-plots")
    with pytest.raises(SystemExit, match="-params rollout_buffer_class: a study cannot keep"):
        zoo(*sweep, "--study-name", "class", "-params", "rollout_buffer_class:sb3.common.buffers.RolloutBuffer")


def check_best_bears_a_failing_run_slashes_and_packages() -> None:
    import gymnasium

    from sb3_delight import DG

    Path("envs_of_mine.py").write_text(
        "import gymnasium\n"
        "from sb3_delight.envs.bandit import ContextualBandit\n"
        "gymnasium.register('mine/Bandit-v0', ContextualBandit)\n"
    )
    Path("stopping.yml").write_text(  # a callback's stop is no Ctrl-C
        "default: {n_timesteps: 300, policy: MlpPolicy, "
        "callback: [stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes: {max_episodes: 64}]}"
    )
    sys.path.insert(0, "")
    learn = DG.learn

    def fail_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.seed == 1:
            raise ValueError("NaN or inf reward in the rollout")
        return learn(self, *args, **kwargs)

    zoo("train", "-optimize", "--no-optim-plots", "--env", "mine/Bandit-v0", "-n", "300", "--eval-episodes", "2",
        "--n-trials", "1", "--study-name", "slash", "--gym-packages", "envs_of_mine",
        "-conf", "stopping.yml")  # fmt: skip
    gymnasium.registry.pop("mine/Bandit-v0")  # as in a new process
    sys.modules.pop("envs_of_mine")
    DG.learn = fail_once  # type: ignore[method-assign]
    for _ in range(2):  # the second time nothing is left to run
        zoo("best", "--study-name", "slash", "--seeds", "2", "--eval-episodes", "2")
    DG.learn = learn  # type: ignore[method-assign]
    scores = {row["seed"]: float(row["score"]) for row in rows_of(Path("logs/slash_best.csv"))}
    assert math.isnan(scores["1"])
    assert math.isfinite(scores["2"])
    zoo("enjoy", "--env", "mine/Bandit-v0", "-f", "logs/slash_best/trial_0", "--exp-id", "2", "--no-render", "-n", "20")


def check_a_score_is_taken_with_the_statistics_of_training() -> None:
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_delight import DG
    from sb3_delight.zoo.best import _score

    trained, evaluation = (
        VecNormalize(make_vec_env("Pendulum-v1", 1), training=training) for training in (True, False)
    )
    model = DG("MlpPolicy", trained, n_steps=16, device="cpu").learn(64)
    manager: Any = SimpleNamespace(create_envs=lambda *_, **__: evaluation, deterministic_eval=True)
    assert math.isfinite(_score(manager, model, 1))
    learned: Any = trained.obs_rms
    used: Any = evaluation.obs_rms
    assert learned.count > 64
    np.testing.assert_array_equal(used.mean, learned.mean)


def check_the_best_trials_come_first_and_the_best_on_average_survives() -> None:
    import optuna
    from optuna.trial import TrialState, create_trial

    from sb3_delight.zoo.best import _report, _top_trials

    study = optuna.create_study(direction="maximize")
    for value in (-1.0, 4.0, 3.0, -5.0, 2.0):
        study.add_trial(create_trial(value=value))
    study.add_trial(create_trial(value=9.0, state=TrialState.PRUNED))
    assert [trial.number for trial in _top_trials(study, 9)] == [1, 2, 4, 0, 3]
    trials = _top_trials(study, 3)
    scores = {1: (9.0, 1.0), 2: (6.0, 6.0), 4: (math.nan, 8.0)}  # a run that failed disqualifies
    rows = [{"trial": trial, "score": score} for trial, several in scores.items() for score in several]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        _report(trials, rows)
    lines = [line.split() for line in output.getvalue().splitlines()[1:]]
    assert [line[0] for line in lines] == ["1", "2", "4"]
    assert [line[0] for line in lines if "survives" in line] == ["2"]


def check_a_sweep_of_a_variant_is_resumed_and_repeated_as_it_was_or_not_at_all() -> None:
    from rl_zoo3 import exp_manager

    from sb3_delight import DG

    of_rl_zoo: Any = exp_manager
    for name, n_envs in (("two", 2), ("three", 3)):
        Path(f"{name}.yml").write_text(f"default: {{n_envs: {n_envs}, n_timesteps: 300, policy: MlpPolicy}}")
    cartpole, variant = ("--env", "CartPole-v1"), ("--study-name", "variant")
    one = ("train", "-optimize", "--no-optim-plots", *cartpole, "-n", "300", "--n-trials", "1", "--eval-episodes", "1")
    sweep = (*one, "--seed", "1", "-conf", "two.yml", "--env-kwargs", "sutton_barto_reward:True", *variant)
    zoo(*sweep)
    for changed in (
        ("--algo", "pg"),
        ("-params", "ent_coef:0.1"),
        ("-conf", "three.yml"),
        ("--env-kwargs", "sutton_barto_reward:False"),
    ):
        with pytest.raises(SystemExit, match="'variant' was begun with"):
            zoo(*sweep, *changed)

    learn, best = DG.learn, ("best", *variant, "--top", "1", "--seeds", "1", "--eval-episodes", "2", "-n", "64")
    DG.learn = lambda *_, **__: signal.raise_signal(signal.SIGINT)  # type: ignore
    for command in (best, sweep):
        with pytest.raises(SystemExit) as stop:
            zoo(*command)
        assert stop.value.code == 130
    DG.learn = learn  # type: ignore[method-assign]
    called_after_a_trial = of_rl_zoo.MaxTrialsCallback
    of_rl_zoo.MaxTrialsCallback = lambda *_, **__: lambda *_: signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        zoo(*sweep[:-1], "between", "--max-total-trials", "9")
    of_rl_zoo.MaxTrialsCallback = called_after_a_trial
    assert stop.value.code == 130
    assert len(study("between").trials) == 1
    assert not Path("logs/variant_best.csv").exists()
    zoo(*best)
    (row,) = rows_of(Path("logs/variant_best.csv"))
    assert (row["score"], row["n_timesteps"]) == ("-1.0", "64")
    assert Path("logs/variant_trials.csv").is_file()

    of_its_own = ("-n", "96", "-conf", "three.yml", "--env-kwargs", "sutton_barto_reward:False", "-f", "variants")
    of_the_trial = (*cartpole, *variant, "--storage", "logs/variant.log", "--trial-id", "0")
    zoo("train", *of_the_trial, *of_its_own, "--eval-freq", "48", "--eval-episodes", "1")
    model = DG.load("variants/dg/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    assert (model._total_timesteps, model.n_envs) == (96, 3)
    assert min(evaluations("variants/dg/CartPole-v1_1")) > 0

    for given, message in (
        (("--trial-id", "0"), "--trial-id needs --study-name"),
        ((*variant, "--trial-id", "7"), "'variant' has 2 trials"),
        ((*variant, "--trial-id", "0", "--algo", "pg"), "a study of --algo dg, not of pg"),
        (("-params", "temperature:lin 5"), "in key:value the value is Python source"),
        ((*one[1:], "-params", "temprature:1.0", "--study-name", "wrong"), "temprature"),
        ((*one[1:], "-params", "surprisal_clip:-1.0", "--study-name", "pruned"), "^no trial was completed"),
    ):
        with pytest.raises(SystemExit, match=message):
            zoo("train", *cartpole, *given)
    with pytest.raises(SystemExit, match="'wrong' has no completed trial"):
        zoo("best", "--study-name", "wrong")


def check_plots_are_of_interquartile_means_and_compare_algorithms() -> None:
    import numpy as np

    from sb3_delight.zoo import plots

    outlying = np.array([[-1000.0], [1.0], [2.0], [3.0], [1000.5]])
    with contextlib.redirect_stdout(io.StringIO()) as output:
        plots.aggregates({"dg": outlying}, 20)
    assert "dg: 2.000 [" in output.getvalue()
    assert plots._curve(outlying, 20)[0].tolist() == [2.0]
    for algo in ("dg", "pg"):
        (folder := Path("both") / algo / "CartPole-v1_1").mkdir(parents=True)
        np.savez(folder / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 2)))
    zoo("plots", "-f", "both", "-o", "both", "--bootstrap-samples", "20")
    assert len(list(Path("both").glob("*.png"))) == 3


def check_runs_with_a_uuid_are_runs_of_one_environment() -> None:
    import numpy as np

    from sb3_delight.zoo.plots import load_runs

    for name in ("Some_Env-v1_1", f"Some_Env-v1_2_{uuid.uuid4()}", f"Some_Env-v1_3_{uuid.uuid4()}"):
        folder = Path("runs") / "dg" / name
        folder.mkdir(parents=True)
        np.savez(folder / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 5)))
    pair = ("dg", "Some_Env-v1")
    assert {pair: returns.shape for pair, (_, returns) in load_runs(Path("runs")).items()} == {pair: (3, 3)}
    np.savez(folder / "evaluations.npz", timesteps=np.arange(0, 9, 2), results=np.arange(5)[:, None] + np.arange(-2, 3))
    timesteps, returns = load_runs(Path("runs"))[pair]
    assert timesteps.tolist() == [0, 2]  # the timesteps of all
    assert sorted(returns.tolist()) == [[0, 1], [1, 1], [1, 1]]
    np.savez(folder / "evaluations.npz", timesteps=np.array([7]), results=np.ones((1, 5)))
    other = Path("runs") / "pg" / "Some_Env-v1_1"
    other.mkdir(parents=True)
    np.savez(other / "evaluations.npz", timesteps=np.arange(3), results=np.ones((3, 5)))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert set(load_runs(Path("runs"))) == {("pg", "Some_Env-v1")}
    assert output.getvalue().startswith("skipped dg on Some_Env-v1: runs never evaluated at the same timestep; ")
    (folder / "evaluations.npz").write_bytes((folder / "evaluations.npz").read_bytes()[:100])  # torn by a kill
    assert load_runs(Path("runs"))[pair][1].shape == (2, 3)


def check_one_run_has_no_interval() -> None:
    import numpy as np

    from sb3_delight.zoo.plots import aggregates

    with contextlib.redirect_stdout(io.StringIO()) as output:
        aggregates({"one": np.array([[0.5]]), "two": np.array([[0.5], [1.0]])}, 100)
    one, two = output.getvalue().splitlines()
    assert one.strip() == "one: 0.500"
    assert two.strip().startswith("two: 0.750 [0.500, 1.000]")


def check_threads_are_those_of_the_environment_variable() -> None:
    import torch

    from sb3_delight.zoo import _threads

    for value, expected in (("", 1), ("2", 2), ("3,1", 3)):
        os.environ["OMP_NUM_THREADS"] = value
        assert _threads() == expected
    os.environ["OMP_NUM_THREADS"] = "many"
    with pytest.raises(SystemExit, match="OMP_NUM_THREADS must be"):
        _threads()
    for given, threads in (("2", 2), ("", 1)):
        os.environ["OMP_NUM_THREADS"] = given
        with pytest.raises(SystemExit, match="no evaluations"):
            zoo("plots", "-f", "nowhere")
        # the second is what children inherit
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (threads, str(threads))


def check_algorithms_are_compared_at_the_timestep_that_all_have() -> None:
    import numpy as np
    import yaml

    from sb3_delight.zoo.plots import final_scores, load_runs, normalize

    def write(run: str, steps: int, slope: float, trained_agent: str = "") -> None:
        timesteps = np.arange(100, steps + 1, 100)
        (Path("compared") / run / "CartPole-v1").mkdir(parents=True)
        np.savez(Path("compared") / run / "evaluations.npz", timesteps=timesteps, results=slope * timesteps[:, None])
        arguments = OrderedDict(trained_agent=trained_agent, wrapper=Path, numbers=(1, 2))  # as RL-Zoo writes them
        (Path("compared") / run / "CartPole-v1" / "args.yml").write_text(yaml.dump(arguments))

    write("dg/CartPole-v1_1", 500, 0.1)
    write("dg/CartPole-v1_2", 300, 0.3, trained_agent="dg/CartPole-v1_1/CartPole-v1.zip")
    write("dg/mine-Cart-v1_1", 500, 0.1)
    write("pg/CartPole-v1_1", 300, 0.2)
    write("pg/CartPole-v1_2", 200, 9.9)
    Path("compared/pg/CartPole-v1_2/CartPole-v1/args.yml").write_text("trained_agent: [")  # torn by a kill
    with contextlib.redirect_stdout(io.StringIO()) as output:
        scores = final_scores(load_runs(Path("compared"), envs=["CartPole-v1"]))
    for algo, value in (("dg", 30.0), ("pg", 60.0)):
        assert scores[algo] == pytest.approx(normalize(np.array([[value]]), "CartPole-v1"))
    write("dg/Walker2d-v5_10", 300, 9.9)
    write("dg/Walker2d-v5_2", 300, 1.0)
    write("dg/CartPole-v1_3", 300, 0.1)
    write("pg/Walker2d-v5_1", 300, 1.0)
    write("dg/CartPole-v1_4", 300, 0.1)
    write("dg/CartPole-v1_5", 300, 0.1)
    with contextlib.redirect_stdout(io.StringIO()) as unequal:
        scores = final_scores(load_runs(Path("compared"), ["dg", "pg", "pgg"], envs=["CartPole-v1", "Walker2d-v5"]))
    assert scores["dg"][:, 1] == pytest.approx(normalize(np.array([300.0, 2970.0]), "Walker2d-v5"))  # 2 before 10
    assert "no evaluations of pgg" in unequal.getvalue()
    assert "dg: not in the aggregates: the last 2 of 4 on CartPole-v1" in unequal.getvalue()
    assert "CartPole-v1: compared at timestep 300, the last that all have; longer: dg" in output.getvalue()
    assert "dg/CartPole-v1_2/evaluations.npz: it continues another run" in output.getvalue()
    assert "skipped compared/pg/CartPole-v1_2/evaluations.npz: while parsing" in output.getvalue()
    for text in ("", "!!python/object/apply:os.system ['touch ran']"):
        Path("compared/pg/CartPole-v1_1/CartPole-v1/args.yml").write_text(text)
        load_runs(Path("compared"))
    assert not Path("ran").exists()
    Path("compared/pg/CartPole-v1_1/CartPole-v1/args.yml").write_text("")
    assert ("pg", "CartPole-v1") in load_runs(Path("compared"))
    assert list(load_runs(Path("compared"), envs=["mine/Cart-v1"])) == [("dg", "mine-Cart-v1")]


def check_rl_zoo_has_what_the_manager_builds_on() -> None:
    """Names that it may change without notice: an upgrade should fail here."""
    import inspect

    import rl_zoo3.train
    from rl_zoo3.exp_manager import ExperimentManager

    source = inspect.getsource(ExperimentManager)
    overridden = ("_load_pretrained_agent", "_maybe_normalize", "_save_config", "create_callbacks", "create_log_folder")
    for name in ("_eval_env_kwargs_args", "_hyperparams", *(f"self.{method}(" for method in overridden)):
        assert name in source, name
    assert isinstance(inspect.getattr_static(ExperimentManager, "_preprocess_schedules"), staticmethod)
    assert "ExperimentManager(" in inspect.getsource(rl_zoo3.train.train)


def check_a_study_is_kept_where_its_locks_can_be_told() -> None:
    from sb3_delight.zoo import studies

    here = str(Path.cwd())
    assert studies.storage_of(None, "logs", "a/b.c") == f"{here}/logs/a/b.c.log"
    assert studies.storage_of("mine.log", "logs", "x") == f"{here}/mine.log"
    assert studies.storage_of("sqlite:///x.db", "logs", "x") == "sqlite:///x.db"
    vars(studies)["os"] = SimpleNamespace(name="nt")
    assert studies.storage_of(None, "logs", "b.c") == f"sqlite:///{here}/logs/b.c.db"
    vars(studies)["os"] = os
    studies.create_tables("sqlite:///new/folder/x.db")
    assert Path("new/folder/x.db").is_file()


def check_verbose_is_read_in_every_way_it_can_be_given() -> None:
    from sb3_delight.zoo import _verbose

    for flags, level in ((["--verbose", "2"], 2), (["--algo", "dg", "--verbose=2"], 2), ([], 1), (["--verbose"], 1)):
        assert _verbose(flags) == level
    with pytest.raises(FileNotFoundError):  # not in one line: with its traceback
        zoo("train", "-conf", "missing.yml", "--verbose", "2")


def check_commands_at_once_lose_no_row_of_one_another() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from sb3_delight.zoo.best import _append, _read

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: _append(Path("shared.csv"), {"seed": seed, f"package {seed % 3}": 1}), range(40)))
    assert sorted(int(row["seed"]) for row in _read(Path("shared.csv"))) == list(range(40))


def study(name: str) -> Any:
    from sb3_delight.zoo.studies import open_study

    return open_study(f"logs/{name}.log", name)


def zoo(*command: str) -> None:
    from sb3_delight.zoo import main

    main(list(command))


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__, "passed")

"""The examples run as the README says, shortened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def refused(script: str, flags: tuple[str, ...], message: str) -> None:
    command = [sys.executable, str(EXAMPLES / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_quickstart_trains_saves_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    stdout = run("quickstart.py", "--timesteps", "2500", "--output", "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["timesteps"] >= 2500
    last = stdout.strip().splitlines()[-1]
    assert f"evaluated return {result['trained']:.0f} " in last
    assert f"(untrained policy {result['untrained']:.0f}, random actions {result['random']:.0f})" in last
    for name in ("model.zip", "vecnormalize.pkl", "learning_curve.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert list((tmp_path / "out").glob("DG_1/events.*"))


def test_quickstart_takes_any_environment(tmp_path: Path) -> None:
    run("quickstart.py", "--env", "CartPole-v1", "--timesteps", "600", "--output", "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["random"] > 5


def test_quickstart_keeps_earlier_runs_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.zip").write_text("of another run")
    run("quickstart.py", "--env", "CartPole-v1", "--timesteps", "600", "--output", "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.zip"]
    assert (tmp_path / "out_2" / "result.json").is_file()
    for flags, message in (
        (("--env", "Nope-v1"), "error: --env Nope-v1: "),
        (("--env", "FrozenLake-v1"), "error: --env FrozenLake-v1: "),
        (("--timesteps", "0"), "must be a whole number, 1 or more, got '0'"),
        (("--seed", "-3"), "error: --seed must be 0 or more, got -3"),
        (("--env", "CartPole-v1", "--output", "out/model.zip"), "error: --output out/model.zip: "),
    ):
        refused("quickstart.py", flags, message)
    assert not (tmp_path / "runs").exists()


def test_custom_objective_trains() -> None:
    assert "MutedFailures on CartPole-v1, 1000 steps: return" in run("custom_objective.py", "--timesteps", "1000")


def test_distributed_trains() -> None:
    pytest.importorskip("ray")
    assert "DG on CartPole-v1 with two actors, 600 steps: return" in run("distributed.py", "--timesteps", "600")


@pytest.mark.parametrize(("flags", "paid"), [((), 768), (("--gate-rate", "0.1"), 78)])
def test_the_language_model_pays_for_what_the_gate_keeps(flags: tuple[str, ...], paid: int) -> None:
    assert f"3 updates, {paid} backward passes: " in run("language_model.py", "--updates", "3", *flags)


@pytest.mark.parametrize("rate", ["0", "2", "nan"])
def test_the_language_model_refuses_a_rate_that_is_none(rate: str) -> None:
    refused("language_model.py", ("--gate-rate", rate), f"--gate-rate must be above 0 and at most 1, got {rate}")

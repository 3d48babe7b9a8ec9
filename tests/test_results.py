"""What the READMEs' tables say is what the committed rows hold."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "reproduce"))

import control
import records
import stale_actors

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "reproduce" / "results"
FAULTS = ("none", *stale_actors.FRICTIONS)
#: a table of examples/README.md begins so -> its task in stale_actors.py
STALE = {
    "**Acrobot**, by the age": "acrobot",
    "**CartPole at a learning rate of .004**": "cartpole_fast",
    "**CartPole at .001**": "cartpole",
    "**Acrobot with centred advantages**": "acrobot_centred",
    "**Acrobot, faults**": "acrobot",
    "**Acrobot, faults, centred": "acrobot_centred",
    "**CartPole, faults**": "cartpole",
    "**HalfCheetah**, 200k": "halfcheetah",
    "The same with centred advantages (`--figure halfcheetah_centred`": "halfcheetah_centred",
    "**HalfCheetah, faults**": "halfcheetah",
}
GATES = ("kondo_soft", "random_5", "kondo_price", "kondo_3", "random_3", "kondo_1", "random_1")
ON_MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
ON_MINATAR = ("Breakout-v1", "Asterix-v1", "SpaceInvaders-v1")
#: a table of examples/README.md -> its tasks, and the methods of its lines
CONTROL = {
    "| 1M steps": (
        ON_MUJOCO,
        ("ppo", "trpo", "a2c", "dg", "dg_entropy", "dg_warm", "pg", "pg_entropy", *GATES, "pg_once", "dg_once"),
    ),
    "| MinAtar, 2M steps": (
        ON_MINATAR,
        (
            *("ppo", "trpo", "a2c", "dg", "dg_entropy", "dg_warm", "dg_cool"),
            *("pg", "pg_entropy", "pg_more_entropy", "half_pg", "half_pg_entropy", "dg_clip", "pg_clip"),
            *("kondo_soft", "random_5", "random_5_entropy", *GATES[2:]),
        ),
    ),
}


def table(text: str, start: str, heads: tuple[str, ...]) -> list[list[str]]:
    """The cells, headings first, of the first table after the start whose first line begins with one of the heads."""
    lines = text[text.index(start) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(heads))
    last = next(i for i, line in enumerate(lines) if i > first and not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first:last]]


def in_brackets(values: Any, digits: int, statistic: Callable[..., Any] = np.mean) -> str:
    """``5034 [3818, 5875]``; ``-500`` where all seeds are alike. No number is ``-0``."""
    middle, low, high = (
        f"{round(float(value), digits) + 0.0:.{digits}f}" for value in records.interval(values, statistic)
    )
    return middle if low == high else f"{middle} [{low}, {high}]"


@pytest.mark.parametrize(("start", "task"), STALE.items())
def test_stale_and_faulty_actors(start: str, task: str) -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    (_, *heads), _, *lines = table(text, start, ("| age", "| fault | none"))
    runs = records.Runs(RESULTS / "stale_actors.csv", stale_actors.SWEEP[task])
    methods = {name: method for method, (name, _, _) in stale_actors.LABELS.items()}
    assert [name for name, *_ in lines] == list(methods)
    for name, *cells in lines:
        for head, cell in zip(heads, cells, strict=True):
            troubled = head in FAULTS
            find = stale_actors.troubled if troubled else stale_actors.arm
            config = find(stale_actors.TASKS[task], methods[name], head if troubled else int(head))  # type: ignore
            assert cell == in_brackets(runs.late(config, "deterministic"), 0), (name, head)


@pytest.mark.parametrize("start", CONTROL)
def test_control(start: str) -> None:
    tasks, methods = CONTROL[start]
    expected: dict[str, list[str]] = {method: [] for method in methods}
    seconds: dict[str, list[str]] = {method: [] for method in methods}
    for task in tasks:
        configs = {config.method: config for config in control.SWEEP[task]}
        runs = records.Runs(RESULTS / "control.csv", list(configs.values()))
        late = {method: runs.late(configs[method], "deterministic") for method in methods}
        chances = control.improvements({method: scores[:, None] for method, scores in late.items() if scores.size})
        for method in methods:
            on_minatar = configs[method].cnn
            if not late[method].size:
                expected[method] += ["not run", "", ""]
                continue
            score = in_brackets(late[method], 1 if on_minatar else 0, control.iqm)
            chance = chances.get(method, "").replace("0.00", "0").replace("1.00", "1").replace("0.", ".")
            expected[method] += [score, chance]
            if on_minatar:
                expected[method].append(in_brackets(runs.late(configs[method], "sampled"), 1, control.iqm))
            else:
                seconds[method].append(f"{runs.last(configs[method], 'training_seconds').mean():.0f}")
    _, _, *lines = table((ROOT / "examples" / "README.md").read_text(), start, (start,))
    for method, (_, *cells) in zip(methods, lines, strict=True):
        times = " / ".join(seconds[method])
        said = [cell.split(" (of")[0] for cell in cells]  # "of one pass": which DG is above
        assert said == expected[method] + ([times] if times else []), method


def test_the_table_of_all_control_tasks() -> None:
    (_, *heads), _, *lines = table((ROOT / "README.md").read_text(), "| return, 5 seeds", ("| return",))
    tasks = (*ON_MUJOCO, *ON_MINATAR)
    assert heads == [task.removesuffix("-v1") for task in tasks]
    for place, task in enumerate(tasks):
        bonus = "pg_entropy" if task in ON_MUJOCO else "pg_more_entropy"
        configs = {config.method: config for config in control.SWEEP[task]}
        runs = records.Runs(RESULTS / "control.csv", list(configs.values()))
        methods = ("ppo", "trpo", "a2c", "dg", "pg", bonus, "kondo_soft", "random_5")
        for method, (_, *cells) in zip(methods, lines, strict=True):
            scores = runs.late(configs[method], "deterministic")
            digits = 0 if task in ON_MUJOCO else 1
            said = in_brackets(scores, digits, control.iqm) if scores.size else "not run"
            assert cells[place] == said, (task, method)

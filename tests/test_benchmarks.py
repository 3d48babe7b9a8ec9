"""The benchmark counts what it claims to count; what it times is no test's business."""

import csv
from pathlib import Path

from benchmarks import update
from benchmarks.workloads import WORKLOADS


def test_counts_are_those_of_the_workload() -> None:
    rows = WORKLOADS["mlp64"].n_steps * WORKLOADS["mlp64"].n_envs
    kondo = update.count(update.prepare("mlp64", "Kondo 0.1, critic 0.3, delight", "cpu"), "cpu")
    assert kondo["rows_forward"] == -(-rows // 10) + -(-3 * rows // 10)  # two networks, one for each kind of row
    assert kondo["gradient_steps"] == rows / WORKLOADS["mlp64"].batch_size
    plain = update.count(update.prepare("mlp64", "PolicyGradient", "cpu"), "cpu")
    assert (plain["rows_forward"], plain["gradient_steps"]) == (2 * rows, 1)


def test_a_run_writes_whole_repeats_and_a_figure(tmp_path: Path) -> None:
    arms = ("stock A2C", "PolicyGradient")
    path = tmp_path / "update_cpu.csv"
    update.measure("mlp64", ["PolicyGradient"], 2, "cpu", path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["arm"], row["repeat"]) for row in rows) == [(arm, r) for arm in sorted(arms) for r in "01"]
    table = update.ratios(path)
    assert table["mlp64"]["stock A2C"]["update_seconds"] == [1.0, 1.0, 1.0]
    assert table["mlp64"]["PolicyGradient"]["update_seconds"][1] > 0
    update.draw(table, tmp_path / "update.png")
    assert (tmp_path / "update.png").stat().st_size > 1000

"""The benchmark of actors says what was measured; what it times is no test's business."""

import csv
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("mujoco")
from benchmarks import actors


def test_one_run_of_an_arm_measures_what_it_says() -> None:
    both = actors.measure("both", "LocalActors", rollouts=2, width=8)
    alone = actors.measure("collect", "synchronous", rollouts=2, width=8)
    assert both["steps_per_second"] > 0
    assert both["staleness"] == 0
    assert 0 < both["learning_share"] < 1
    assert both["learner_microseconds"] > 0
    assert alone["learning_share"] < 0.01


def test_ratios_are_of_one_repeat_and_of_the_latest_run(tmp_path: Path) -> None:
    path = tmp_path / "actors_cpu.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, actors.COLUMNS, restval="1")
        writer.writeheader()
        for run, factor in (("2026-01-01", 5), ("2026-01-02", 1)):
            for workload in actors.COLOURS:
                for repeat, machine in enumerate((100, 10)):  # ten times slower in the second repeat
                    for arm, speed in zip(actors.ARMS, (1, 2, 3, 4), strict=True):
                        row = {"run": run, "workload": workload, "arm": arm, "repeat": repeat}
                        writer.writerow({**row, "steps_per_second": machine * speed**factor})
    found = actors.table(path)
    assert found["both"]["RayActors(2)"]["synchronous"] == [4, 4, 4]
    assert found["collect"]["RayActors(1)"]["LocalActors"] == [1.5, 1.5, 1.5]
    actors.draw(found, tmp_path / "actors.png")
    assert (tmp_path / "actors.png").stat().st_size > 1000

"""Rows of experiments: the CSV that holds them, and what is read back from it."""

import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]
Array = npt.NDArray[np.float64]
Statistic = Callable[..., Any]  # over seeds: np.mean, np.median


def run_name(config: Any) -> str:
    """Names a run in the CSV: the fields that differ from their defaults, and a hash of all of them.

    The hash makes a changed default another run; the fields make the CSV readable.
    """
    values = [(field.name, getattr(config, field.name), field.default) for field in dataclasses.fields(config)]
    changed = " ".join(f"{name}={value}" for name, value, default in values if value != default)
    return f"{changed} #{hashlib.sha256(repr(config).encode()).hexdigest()[:6]}".strip()


def read_rows(path: Path) -> list[Row]:
    """Rows of the CSV, less a torn last line: a kill in mid-write leaves one without its newline."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = lines if lines and lines[-1].endswith("\n") else lines[:-1]
    rows: list[Row] = list(csv.DictReader(whole))
    return [row for row in rows if None not in row.values() and None not in row]


def drop_torn_runs(path: Path, columns: Sequence[str]) -> None:
    """Rewrite the CSV without what a kill left half written: a torn line, or a run that lacks its last row."""
    rows = read_rows(path)
    finished = {(row["run"], row["seed"]) for row in rows if row["left"] == "0"}
    kept = [row for row in rows if (row["run"], row["seed"]) in finished]
    text = as_text(kept, columns)
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def as_text(rows: Sequence[Row], columns: Sequence[str], header: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()})
    return text.getvalue()


def append_rows(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """One write, so that the rows of a job are there as a whole, or end in a torn line that the next start drops."""
    with path.open("ab", buffering=0) as file:
        file.write(as_text(rows, columns, header=False).encode())
        os.fsync(file.fileno())


class Runs:
    """Metrics per config, read from the CSV. Rows of configs that the sweep no longer holds are ignored."""

    def __init__(self, path: Path, configs: Sequence[Any]) -> None:
        self.configs = list(configs)
        self._rows: dict[str, dict[int, list[Row]]] = {}
        for row in read_rows(path):
            rows = self._rows.setdefault(row["run"], {}).setdefault(int(row["seed"]), [])
            if not rows or rows[-1]["left"] != "0":  # two commands at once may both have computed a run: one is enough
                rows.append(row)
        self._rows = {  # without what is being written, or was left unfinished
            run: {seed: rows for seed, rows in by_seed.items() if rows[-1]["left"] == "0"}
            for run, by_seed in self._rows.items()
        }

    def get(self, config: Any, metric: str) -> tuple[Array, Array]:
        """:return: steps ``[P]`` and values ``[seeds, P]``; no seeds, ``[0, 0]``, if the config was not run"""
        runs = list(self._rows.get(run_name(config), {}).values())
        if not runs:
            return np.zeros(0), np.zeros((0, 0))
        steps = np.array([float(row["step"]) for row in runs[0]])
        return steps, np.array([[float(row[metric] or "nan") for row in rows] for rows in runs])

    def last(self, config: Any, metric: str) -> Array:
        """:return: the metric at the end of each seed's run, ``[seeds]``"""
        return np.array(list(self.last_by_seed(config, metric).values()))

    def late(self, config: Any, metric: str) -> Array:
        """:return: mean of the last three evaluations of each seed's run, ``[seeds]``: one alone is noisy"""
        values = self.get(config, metric)[1]
        return values[:, -3:].mean(axis=1) if values.size else np.zeros(0)

    def last_by_seed(self, config: Any, metric: str) -> dict[int, float]:
        """:return: seed -> the metric at the end of its run"""
        runs = self._rows.get(run_name(config), {})
        return {seed: float(rows[-1][metric] or "nan") for seed, rows in runs.items()}

    def seeds(self, config: Any) -> set[int]:
        """Of which the CSV holds the run."""
        return set(self._rows.get(run_name(config), {}))

    def seed_counts(self) -> str:
        """Of those of the figure's configs that were run: ``"5"``, or ``"3-5"``."""
        return extent([len(self.seeds(config)) for config in self.configs if self.seeds(config)])

    def seconds(self) -> list[float]:
        """Of one core, for every run of the figure's configs."""
        seeds = [self._rows.get(name, {}) for name in {run_name(config) for config in self.configs}]
        return [float(rows[0]["seconds"]) for by_seed in seeds for rows in by_seed.values()]


def interval(values: Array, statistic: Statistic = np.mean, resamples: int = 2000) -> tuple[Array, Array, Array]:
    """A statistic over seeds with its 95 % bootstrap interval (percentile).

    :param values: ``[seeds, *]``
    :return: statistic, lower and upper bound, each ``[*]``
    """
    values = np.asarray(values, dtype=float)
    choice = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    resampled = statistic(values[choice], axis=1)
    # Order statistics without interpolation: a median over runs that never got there may be infinite.
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0, method="nearest")
    return statistic(values, axis=0), low, high


def extent(counts: Sequence[int]) -> str:
    """``"5"``, or ``"3-5"`` where they differ."""
    return "-".join(map(str, sorted({min(counts, default=0), max(counts, default=0)})))


def in_words(values: Array, statistic: Statistic = np.mean) -> str:
    """``.021 [.019, .024], 30 seeds``"""
    if not len(values):
        return "not run"
    middle, low, high = interval(values, statistic)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}], {len(values)} seeds"

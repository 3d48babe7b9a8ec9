"""Environment steps a second with actors and without, paired in one run.

    python -m benchmarks.actors [--repeats 5] [--rollouts 60] [--plot-only]

Two workloads on HalfCheetah-v5. "both": a network and minibatches such that learning costs about what collecting does;
its share of the synchronous learner's processor time is measured and printed. "collect": the same without learning, so
that nothing overlaps with it and Ray's overhead shows. Every repeat times every arm once, in a new order, by the wall's
clock, from the end of the first rollout on: starting processes is not counted. Rows go to
``benchmarks/results/actors_cpu.csv``, with the machine's load, as they are measured.
"""

import argparse
import csv
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import ray
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm

from benchmarks.records import append_rows, provenance
from sb3_delight import DG
from sb3_delight.actors import ActorPool, LocalActors
from sb3_delight.arguments import count
from sb3_delight.ray_actors import RayActors

RESULTS = Path(__file__).parent / "results"
COLUMNS = [
    "run", "workload", "arm", "repeat", "steps_per_second", "learner_microseconds", "learning_share", "staleness",
    "load", "machine", "threads", "torch", "stable_baselines3", "gymnasium", "mujoco", "ray", "sb3_delight",
]  # fmt: skip
PACKAGES = COLUMNS[COLUMNS.index("torch") :]
N_ENVS, N_STEPS = 8, 128
ARMS: dict[str, Callable[[], ActorPool | None]] = {
    "synchronous": lambda: None,
    "LocalActors": LocalActors,
    "RayActors(1)": lambda: RayActors(1),
    "RayActors(2)": lambda: RayActors(2),
}
COLOURS = {"both": "tab:blue", "collect": "tab:orange"}


class Timed(DG):
    """Knows how much processor time learning took; or does not learn at all."""

    learns = True
    learning_seconds = 0.0

    def train(self) -> None:
        before = time.process_time()
        if self.learns:
            super().train()
        self.learning_seconds += time.process_time() - before


class Clock(BaseCallback):
    """From the end of the first rollout to the end of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.figures = 0, dict[str, float]()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, Timed)
        now, busy, learned = time.perf_counter(), time.process_time(), self.model.learning_seconds
        if self.seen == 0:
            self.start, self.busy_before, self.learned_before = now, busy, learned
        self.figures = {
            "steps_per_second": self.seen * N_ENVS * N_STEPS / max(now - self.start, 1e-9),
            "learner_microseconds": 1e6 * (busy - self.busy_before) / max(self.seen * N_ENVS * N_STEPS, 1),
            "learning_share": (learned - self.learned_before) / max(busy - self.busy_before, 1e-9),
            "staleness": self.logger.name_to_value.get("actors/staleness", 0.0),  # mean over all rollouts
        }
        self.seen += 1


def measure(workload: str, arm: str, rollouts: int, width: int) -> dict[str, float]:
    """One run of one arm."""
    env = make_vec_env("HalfCheetah-v5", N_ENVS, seed=0)
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": {"pi": [width, width], "vf": [width, width]}}}
    kwargs |= {"n_steps": N_STEPS, "batch_size": 16, "seed": 0, "device": "cpu", "actors": ARMS[arm]()}
    model = Timed("MlpPolicy", env, **kwargs)
    model.learns = workload == "both"
    clock = Clock()
    model.learn((rollouts + 1) * N_ENVS * N_STEPS, callback=clock, log_interval=None)  # type: ignore[arg-type]
    env.close()
    return clock.figures


def run(repeats: int, rollouts: int, width: int, path: Path) -> None:
    """Append ``repeats`` rows for every workload and arm."""
    fair: Any = {"_system_config": {"worker_niceness": 0}}  # Ray's 15 would starve actors wherever anything else runs
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **fair)
    common = provenance(PACKAGES)
    cells = [(workload, arm) for workload in COLOURS for arm in ARMS]
    for repeat in tqdm(range(repeats), desc="repeats"):
        rows = []
        for workload, arm in random.sample(cells, len(cells)):
            figures = measure(workload, arm, rollouts, width)
            written = {name: f"{value:.4g}" for name, value in figures.items()}
            place = {"workload": workload, "arm": arm, "repeat": repeat, "load": f"{os.getloadavg()[0]:.1f}"}
            rows.append({**common, **place, **written})
        append_rows(path, COLUMNS, rows)  # whole repeats only: a ratio needs its partner
    ray.shutdown()


def table(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """workload -> arm -> quartiles of its speed over the synchronous one's, and medians; the latest run."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["run"] == max(row["run"] for row in rows)]
    speed = {(row["workload"], row["repeat"], row["arm"]): float(row["steps_per_second"]) for row in rows}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for workload in COLOURS:
        for arm in ARMS:
            mine = [row for row in rows if (row["workload"], row["arm"]) == (workload, arm)]
            keys = [(workload, row["repeat"]) for row in mine]
            entry: dict[str, Any] = {}
            for reference in ("synchronous", "LocalActors"):
                ratios = [speed[*key, arm] / speed[*key, reference] for key in keys]
                entry[reference] = np.quantile(ratios, [0.25, 0.5, 0.75]).round(2).tolist()
            for name in ("steps_per_second", "learner_microseconds", "learning_share", "staleness", "load"):
                entry[name] = float(np.median([float(row[name]) for row in mine]))
            found.setdefault(workload, {})[arm] = entry
    return found


def print_table(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    for workload, arms in found.items():
        print(f"\n{workload}: environment steps a second, median; times the reference's, median [quartiles]")
        for arm, entry in arms.items():
            ratios = (f"{m:4.2f} [{a:.2f}, {b:.2f}]" for a, m, b in (entry["synchronous"], entry["LocalActors"]))
            processor = f"{entry['learner_microseconds']:4.0f} us a step, {entry['learning_share']:4.0%} of it learning"
            print(
                f"  {arm:13} {entry['steps_per_second']:6.0f}   synchronous x {next(ratios)}   LocalActors x "
                f"{next(ratios)}   learner's processor {processor}   staleness {entry['staleness']:3.0f}   "
                f"load {entry['load']:.1f}"
            )


def draw(found: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Speed of every arm relative to the synchronous one."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(reversed(ARMS))
    for (workload, arms), offset in zip(found.items(), (0.2, -0.2), strict=True):
        low, middle, high = np.array([arms[arm]["synchronous"] for arm in names]).T
        positions, spread = np.arange(len(names)) + offset, [middle - low, high - middle]
        label = {"both": "collecting and learning", "collect": "collecting alone"}[workload]
        axes.barh(positions, middle, 0.4, xerr=spread, color=COLOURS[workload], label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set(xlabel="environment steps a second, times the synchronous learner's")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=count, default=5)
    parser.add_argument("--rollouts", type=count, default=60, help="of 1024 steps each, in every run")
    parser.add_argument("--width", type=count, default=384, help="of the two hidden layers: what balances the workload")
    parser.add_argument("--plot-only", action="store_true", help="print and draw what the CSV holds, time nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV and the PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "actors_cpu.csv"
    if not arguments.plot_only:
        run(arguments.repeats, arguments.rollouts, arguments.width, path)
    found = table(path)
    print_table(found)
    draw(found, path.with_suffix(".png"))
    print(f"\n{path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()

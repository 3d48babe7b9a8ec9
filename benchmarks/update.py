"""Time the update and the whole loop against stock stable-baselines3, paired in one run.

    python -m benchmarks.update [--workloads mlp64 cnn_shared ...] [--arms "baselines.PPO" ...] [--repeats 7]
        [--device cpu|cuda] [--plot-only]    # the large workloads only by name

Every repeat times every arm once, in a new order, and its reference just before or just after it: a busy machine slows
both, and a ratio is of such a pair.
On a CPU the time is that of the process, not the wall's, and freed memory is kept (:func:`keep_memory`). Rows go to
``benchmarks/results/update_<device>.csv`` as they are measured. A gate that took fewer optimiser steps would be another
algorithm: here every arm takes the steps of its reference, and only rows differ.
"""

import argparse
import concurrent.futures
import csv
import ctypes
import multiprocessing
import platform
import random
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

from benchmarks.records import append_rows, provenance
from benchmarks.workloads import ARMS, LARGE, WORKLOADS
from sb3_delight.arguments import count as whole_number

RESULTS = Path(__file__).parent / "results"
COLUMNS = [
    "run", "workload", "arm", "reference", "repeat", "update_seconds", "loop_seconds",
    "reference_update_seconds", "reference_loop_seconds", "rows_forward", "gradient_steps",
    "peak_mib", "host_reads", "device", "machine", "threads", "torch", "stable_baselines3", "sb3_delight",
]  # fmt: skip


def keep_memory() -> None:
    """Have glibc keep freed memory, as an allocator for training does; elsewhere nothing changes.

    By default large tensors go back to the kernel at once. Up to half of a convolutional network's update is then page
    faults, unevenly from run to run, and ratios measure the kernel.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def seconds(work: Callable[[], Any], device: str, at_least: float = 0.5) -> float:
    """Of one call, the mean over as many as take half a second: a small network's update alone is too short to time.

    Of this process on a CPU; until the device is done on a GPU.
    """

    def now() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    start, calls, elapsed = now(), 0, 0.0
    while elapsed < at_least:
        work()
        calls, elapsed = calls + 1, now() - start
    return elapsed / calls


def prepare(workload: str, arm: str, device: str) -> OnPolicyAlgorithm:
    """A model with a full rollout, its first update behind it."""
    model = ARMS[arm][1](WORKLOADS[workload], device)
    model.learn(model.n_steps * model.n_envs)
    model.set_logger(configure(None, []))
    return model


def one_iteration(model: OnPolicyAlgorithm) -> None:
    """Collect a rollout and train on it."""
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)


def count(model: OnPolicyAlgorithm, device: str) -> dict[str, float]:
    """What one update costs besides time: rows with a graph through the first layer, gradient steps, host reads."""
    rows = steps = 0
    policy: Any = model.policy

    def saw(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal rows
        rows += len(output) if torch.is_grad_enabled() else 0

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal steps
        steps += 1

    layers = {id(m): m for m in (policy.pi_features_extractor, policy.vf_features_extractor) if list(m.parameters())}
    if not layers:  # a flattening extractor: the networks begin behind it
        layers = {id(m): m for m in (policy.mlp_extractor.policy_net[0], policy.mlp_extractor.value_net[0])}
    hooks = [layer.register_forward_hook(saw) for layer in layers.values()]
    hooks.append(policy.optimizer.register_step_post_hook(stepped))
    reads = float("nan")
    if device == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            model.train()
            torch.cuda.set_sync_debug_mode("default")
        reads = float(sum("called a synchronizing" in str(warning.message) for warning in caught))
    else:
        model.train()
    for hook in hooks:
        hook.remove()
    return {"rows_forward": rows, "gradient_steps": steps, "host_reads": reads}


def peak_memory(model: OnPolicyAlgorithm, device: str) -> float:
    """MiB that one update needs on top of what is there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.train()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_peak, args=(model, sender))
    child.start()
    sender.close()  # or recv() would wait for ever where the child dies
    peak: float = receiver.recv()
    child.join()
    return peak


def _measure_peak(model: OnPolicyAlgorithm, sender: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.train()
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # bytes there, KiB on Linux
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)


def measure(workload: str, arms: list[str], repeats: int, device: str, path: Path) -> None:
    """Append ``repeats`` rows for every arm and its reference."""
    wanted = [arm for arm in ARMS if arm in {*arms, *(ARMS[each][0] for each in arms)}]
    models = {arm: prepare(workload, arm, device) for arm in tqdm(wanted, desc=f"{workload}: prepare", unit=" arms")}
    costs = {arm: {**count(model, device), "peak_mib": peak_memory(model, device)} for arm, model in models.items()}
    keep_memory()  # not before: the peak is seen by what the process asks of the kernel
    common = {
        **provenance(("torch", "stable_baselines3", "sb3_delight")),
        "workload": workload,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    for repeat in tqdm(range(repeats), desc=f"{workload}: repeats"):
        rows = []
        for arm in random.sample(wanted, len(wanted)):
            reference = ARMS[arm][0]
            pair = list({arm, reference})  # one, if it is its own
            random.shuffle(pair)
            timed = {each: time_both(models[each], device) for each in pair}
            times = {**timed[arm], **{f"reference_{phase}": value for phase, value in timed[reference].items()}}
            written = {phase: f"{value:.6f}" for phase, value in times.items()}
            rows.append({**common, "arm": arm, "reference": reference, "repeat": repeat, **written, **costs[arm]})
        append_rows(path, COLUMNS, rows)


def time_both(model: OnPolicyAlgorithm, device: str) -> dict[str, float]:
    """Of one update on the rollout that is there, and of collecting and training on another."""
    return {
        "update_seconds": seconds(model.train, device),
        "loop_seconds": seconds(lambda: one_iteration(model), device),
    }


def ratios(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """workload -> arm -> median and quartiles of reference / arm, for update and loop; the latest run of each."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for workload in WORKLOADS:
        runs = [row for row in rows if row["workload"] == workload]
        for arm in dict.fromkeys(row["arm"] for row in runs):
            mine = [row for row in runs if row["arm"] == arm]
            mine = [row for row in mine if row["run"] == max(row["run"] for row in mine)]
            costs = ("rows_forward", "gradient_steps", "peak_mib", "host_reads")
            entry: dict[str, Any] = {key: float(mine[0][key]) for key in costs}
            for phase in ("update_seconds", "loop_seconds"):
                paired = [float(row[f"reference_{phase}"]) / float(row[phase]) for row in mine]
                entry[phase] = np.quantile(paired, [0.25, 0.5, 0.75]).round(2).tolist()
            entry["reference"] = mine[0]["reference"]
            table.setdefault(workload, {})[arm] = entry
    return table


def print_table(table: dict[str, dict[str, dict[str, Any]]]) -> None:
    for workload, arms in table.items():
        print(f"\n{workload}: speed relative to the reference, median [quartiles]; costs of one update")
        for arm in (arm for arm in ARMS if arm in arms):
            entry = arms[arm]
            update, loop = (
                f"{m:5.2f} [{a:.2f}, {b:.2f}]" for a, m, b in (entry["update_seconds"], entry["loop_seconds"])
            )
            costs = f"{entry['rows_forward']:7.0f} rows {entry['gradient_steps']:4.0f} steps"
            costs += f" {entry['peak_mib']:7.1f} MiB"
            if entry["host_reads"] >= 0:  # not on a CPU
                costs += f" {entry['host_reads']:5.0f} reads"
            print(f"  {arm:34} vs {entry['reference']:9}  update {update}  loop {loop}  {costs}")


def draw(table: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """One panel a workload: speed of the update relative to each arm's reference."""
    figure, panels = plt.subplots(
        1, len(table), figsize=(3.6 + 2.6 * len(table), 7), sharey=True, squeeze=False, layout="constrained"
    )
    names = [arm for arm in reversed(ARMS) if arm != ARMS[arm][0] and any(arm in arms for arms in table.values())]
    for axes, (workload, arms) in zip(panels[0], table.items(), strict=True):
        timed = [arm for arm in names if arm in arms]  # not every workload need have every arm
        for phase, offset, colour in (("update_seconds", 0.2, "tab:blue"), ("loop_seconds", -0.2, "tab:orange")):
            low, middle, high = np.array([arms[arm][phase] for arm in timed]).reshape(-1, 3).T
            positions = np.array([names.index(arm) for arm in timed]) + offset
            spread = [middle - low, high - middle]
            axes.barh(positions, middle, 0.4, xerr=spread, color=colour, label=phase.split("_")[0])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(np.arange(len(names)), [f"{arm} / {ARMS[arm][0]}" for arm in names])
        axes.set(title=workload, xlabel="times the reference's speed")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def setup() -> None:
    warnings.filterwarnings("ignore", message="You are trying to run .* on the GPU")
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in WORKLOADS if name not in LARGE]
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=usual)
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM", help=", ".join(map(repr, ARMS))
    )
    parser.add_argument("--repeats", type=whole_number, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--plot-only", action="store_true", help="print and draw what the CSV holds, time nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the CSV and the PNG")
    arguments = parser.parse_args()
    path = arguments.output / f"update_{arguments.device}.csv"
    if not arguments.plot_only:
        for workload in arguments.workloads:  # each in a process of its own: what one keeps is not the next one's
            job = (workload, arguments.arms, arguments.repeats, arguments.device, path)
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), setup) as process:
                process.submit(measure, *job).result()
    table = ratios(path)
    print_table(table)
    draw(table, path.with_suffix(".png"))
    print(f"\n{path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()

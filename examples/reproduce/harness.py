"""One harness for every experiment: a sweep is data, a run is rows in a CSV (``records.py``), a figure is drawn from
them alone (``plotting.py``).

An experiment script defines a frozen ``Config``, ``run(config, seeds) -> rows``, and two dictionaries: ``SWEEP``
(figure -> configs) and ``FIGURES`` (figure -> function drawing it). :func:`main` makes a command line of them::

    python examples/reproduce/mnist.py --figure staleness [--seeds 30] [--smoke] [--plot-only] [--workers 4]

Stopping costs nothing: a (config, seed) that the CSV holds is skipped, however the command before it ended.
"""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from plotting import STYLE
from records import Row, Runs, Statistic, append_rows, drop_torn_runs, in_words, run_name
from torch import Tensor
from tqdm import tqdm

from sb3_delight.arguments import count

HERE = Path(__file__).parent
PROVENANCE = ("seconds", "torch", "numpy", "device", "commit")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a script hands to :func:`main`."""

    name: str  # results/<name>.csv, figures/<name>_<figure>.png
    sweep: dict[str, list[Any]]  # figure -> configs, each a frozen dataclass with a field `updates`
    run: Callable[[Any, list[int]], list[Row]]  # rows hold seed, step and metrics; the last step of a run is `updates`
    figures: Mapping[str, Callable[[Runs], Figure]]
    metrics: tuple[str, ...]  # columns of the CSV; a run may leave some empty
    seeds: int  # by default; --seeds overrides
    seeds_per_job: int  # how many seeds one call of `run` computes as a batch
    smoke: dict[str, Any]  # fields replaced by --smoke, so that a run takes a second
    summary: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)  # metrics to print, at the end of runs
    first_seed: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by figure, where it is not 0


def vary(config: Any, field: str, values: Iterable[Any]) -> list[Any]:
    """One config for each value of a field."""
    return [dataclasses.replace(config, **{field: value}) for value in values]


# --- runs ---------------------------------------------------------------------------------------------------------


@functools.cache
def commit() -> str:
    """Of the code, with "-dirty" where it was changed since; rows and figures, which runs write, do not count."""

    def git(*command: str) -> str:
        try:
            done = subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    described = git("describe", "--always")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results", ":!figures")
    return (described or "uncommitted") + ("-dirty" if changed else "")


def run_job(job: tuple[Callable[[Any, list[int]], list[Row]], Any, list[int]]) -> tuple[Any, list[Row]]:
    """Runs some seeds of a config, and says of every row where it comes from."""
    run, config, seeds = job
    started = time.process_time()
    rows = run(config, seeds)
    rows.sort(key=lambda row: (row["seed"], row["step"]))
    provenance = {
        "run": run_name(config),
        "seconds": round((time.process_time() - started) / len(seeds), 2),  # of one core; a seed's share of its batch
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": "cpu",
        "commit": commit(),
    }
    per_seed = len(rows) // len(seeds)
    return config, [{**row, **provenance, "left": per_seed - 1 - i % per_seed} for i, row in enumerate(rows)]


def worker_setup() -> None:
    torch.set_num_threads(1)  # many small runs: one thread each beats many threads on one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    commit()  # now: the code that was loaded, not what it is when the first run ends


def compute(experiment: Experiment, configs: list[Any], seeds: range, workers: int, path: Path) -> None:
    """Run what the CSV lacks."""
    columns = ["run", "seed", "step", *experiment.metrics, "left", *PROVENANCE]
    drop_torn_runs(path, columns)
    recorded = Runs(path, configs)
    jobs = []
    for config in configs:
        missing = [seed for seed in seeds if seed not in recorded.seeds(config)]
        # Batches small enough to give every worker one, where there are few configs.
        size = max(1, min(experiment.seeds_per_job, -(-len(missing) * len(configs) // workers)))
        jobs += [(experiment.run, config, missing[i : i + size]) for i in range(0, len(missing), size)]
    if not jobs:
        return
    missing_runs, known = sum(len(batch) for _, _, batch in jobs), recorded.seconds()
    estimate = f", about {np.mean(known) * missing_runs / 60:.0f} minutes of a core" if known else ""
    print(f"{missing_runs} runs that {path.name} lacks{estimate} (--plot-only draws what it holds)")
    total = sum(max(1, config.updates) * len(batch) for _, config, batch in jobs)
    context = multiprocessing.get_context("spawn")
    with tqdm(total=total, unit=" updates", unit_scale=True, smoothing=0, desc=experiment.name) as bar:
        if workers == 1:
            torch.set_num_threads(1)
            commit()
            results: Iterator[tuple[Any, list[Row]]] = map(run_job, jobs)
            write_results(results, path, columns, bar)
        else:
            with context.Pool(workers, worker_setup) as pool:  # leaving the block, on Ctrl-C too, ends the workers
                write_results(pool.imap_unordered(run_job, jobs), path, columns, bar)


def write_results(results: Iterator[tuple[Any, list[Row]]], path: Path, columns: list[str], bar: Any) -> None:
    for config, rows in results:
        append_rows(path, rows, columns)
        bar.update(max(1, config.updates) * len({row["seed"] for row in rows}))


RATIO_METHODS = ("iw", "vtrace", "ppo")


def run_that_stands_for(method: str, age: int) -> str:
    """With the learner's own weights on the actor every ratio is 1: those who use it are the policy gradient."""
    return "pg" if age == 0 and method in RATIO_METHODS else method


# --- random numbers, and the command line -------------------------------------------------------------------------


def draws(seeds: Sequence[int], stream: int, draw_block: Callable[[torch.Generator, int], Tensor]) -> Iterator[Tensor]:
    """An endless stream of random tensors ``[seeds, *]``, in which a seed's numbers do not depend on its company.

    :param stream: number of the stream: one each for contexts, actions, ..., so that methods share them
    :param draw_block: ``(generator, n) -> [n, *]``; blocks, as a call per update would cost more than the update
    """
    generators = [torch.Generator().manual_seed(1000 * seed + stream) for seed in seeds]
    while True:
        yield from torch.stack([draw_block(generator, 128) for generator in generators], dim=1)


def checkpoints(updates: int, points: int = 24) -> set[int]:
    """Updates at which to write a row: geometric, as errors fall by factors, and with the first and the last."""
    return {0, updates, *np.geomspace(min(10, max(updates, 1)), max(updates, 1), points).round().astype(int).tolist()}


def main(
    experiment: Experiment,
    argv: Sequence[str] | None = None,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    override: Callable[[argparse.Namespace], dict[str, Any]] | None = None,
) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--figure", default="all", choices=["all", *experiment.sweep])
    parser.add_argument("--seeds", type=count, default=experiment.seeds)
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--plot-only", action="store_true", help="draw what the CSV holds, run nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny runs into a temporary folder: does it work at all")
    parser.add_argument("--output", type=Path, help="folder of results/ and figures/; by default that of the script")
    if options:
        options(parser)
    args = parser.parse_args(argv)
    fields = (override(args) if override else {}) | (experiment.smoke if args.smoke else {})
    seeds = min(args.seeds, 2) if args.smoke else args.seeds
    output = args.output or (Path(tempfile.mkdtemp(prefix="smoke-")) if args.smoke else HERE)
    path = output / "results" / f"{experiment.name}.csv"
    figures = list(experiment.sweep) if args.figure == "all" else [args.figure]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is Ctrl-C, or the workers would go on
    for figure in figures:
        configs = list(dict.fromkeys(dataclasses.replace(config, **fields) for config in experiment.sweep[figure]))
        first = experiment.first_seed.get(figure, 0)
        try:
            if not args.plot_only:
                compute(experiment, configs, range(first, first + seeds), args.workers, path)
        except KeyboardInterrupt:
            print(f"stopped; {path} keeps what is done, and the same command continues")
            sys.exit(130)
        runs = Runs(path, configs)
        seconds = runs.seconds()
        if not seconds:
            print(f"{figure}: {path} holds no run of it, nothing to draw")
            continue
        (output / "figures").mkdir(parents=True, exist_ok=True)
        with plt.rc_context(STYLE):
            drawn = experiment.figures[figure](runs)
            drawn.savefig(output / "figures" / f"{experiment.name}_{figure}.png")
            plt.close(drawn)
        print(f"{output / 'figures'}/{experiment.name}_{figure}.png: {sum(seconds) / 60:.1f} core minutes")
        for config in configs:
            numbers = [f"{m} {in_words(runs.last(config, m), how)}" for m, how in experiment.summary.items()]
            print(f"    {run_name(config):60}", " | ".join(numbers))

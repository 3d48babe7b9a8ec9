"""Learning curves and aggregate scores of agents that RL-Zoo trained: ``python -m sb3_delight.zoo plots``."""

import argparse
import functools
import itertools
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rliable import library, metrics
from scipy.stats import trim_mean

from sb3_delight.arguments import count

__all__ = ["REFERENCE_SCORES", "aggregates", "final_scores", "improvements", "load_runs", "normalize", "plots"]

RUN_NUMBER = re.compile(r"_\d+(_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$")
Array = npt.NDArray[np.float64]
_Interval = tuple[float, float, float]  # point estimate, lower and upper end
Runs = dict[tuple[str, str], tuple[Array, Array]]  # (algo, env) -> timesteps [T], mean return of each run [runs, T]

HELP = """Draw the evaluations of trained agents: learning_curves.png (interquartile mean over runs), and of the last
evaluations that all algorithms have aggregates.png (interquartile mean over runs and environments) and
probability_of_improvement.png. Bands and bars are 95 % intervals of the stratified bootstrap over runs (Agarwal et al.,
2021)."""

#: Returns that score 0 and 1: the random policy's, measured on these versions, and a good on-policy agent's: the best
#: documented for 1M steps, on v3 of the environments and under other protocols, so a yardstick and not a comparison.
#: [zoo]: RL-Zoo's benchmark.md, one run. [tianshou]: Tianshou's MuJoCo benchmark, 10 seeds, maximum over
#: training. [cap]: the highest return there is.
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "HalfCheetah-v5": (-237.0, 5819.0),  # [zoo] PPO
    "Hopper-v5": (18.0, 3618.0),  # [zoo] TRPO
    "Walker2d-v5": (1.5, 4933.0),  # [zoo] TRPO
    "Ant-v5": (-55.0, 4982.0),  # [zoo] TRPO
    "Swimmer-v5": (-0.6, 366.0),  # [zoo] TRPO
    "Reacher-v5": (-43.0, -4.1),  # [tianshou] PPO
    "InvertedPendulum-v5": (5.0, 1000.0),  # [cap]
    "InvertedDoublePendulum-v5": (47.5, 9258.0),  # [tianshou] A2C
    "CartPole-v1": (22.2, 500.0),  # [cap]
}


def plots(flags: list[str]) -> None:
    """The command; see its ``--help``.

    :param flags: of the command line
    :raises ValueError: if no evaluations are found
    """
    options = _parser().parse_args(flags)
    plt.switch_backend("Agg")  # figures go to files: no display needed
    runs = load_runs(Path(options.log_folder), options.algos, options.envs)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    _save(_learning_curves(runs, options.bootstrap_samples), output / "learning_curves.png")
    scores = final_scores(runs)
    if scores:
        _save(aggregates(scores, options.bootstrap_samples), output / "aggregates.png")
    if len(scores) > 1:
        _save(_improvement(scores, options.bootstrap_samples), output / "probability_of_improvement.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3_delight.zoo plots", description=HELP)
    parser.add_argument("-a", "--algos", nargs="+", help="default: all in the log folder")
    parser.add_argument("-e", "--envs", nargs="+", help="default: all in the log folder")
    parser.add_argument("-f", "--log-folder", default="logs")
    parser.add_argument("-o", "--output", default="figures", help="folder of the figures (default: figures)")
    parser.add_argument("--bootstrap-samples", type=count, default=2000)
    parser.add_argument("--verbose", type=int, default=1, help="2 shows the traceback of an error (default: 1)")
    return parser


# ---------------------------------------------------------------------------------------------------- runs and scores


def load_runs(folder: Path, algos: list[str] | None = None, envs: list[str] | None = None) -> Runs:
    """Evaluations of every run in ``folder/<algo>/<env>_<number>``, by algorithm and environment.

    ``--uuid`` of RL-Zoo adds one to the folder's name.

    Of runs of one pair the timesteps are taken at which all were evaluated. A file that a kill left torn is skipped,
    and so is a run that continued another: it is no run of its own.

    So is a pair whose runs were never evaluated at the same timestep.

    :raises ValueError: if there are none
    """
    found: dict[tuple[str, str], list[tuple[Array, Array]]] = defaultdict(list)
    wanted = [env.replace("/", "-") for env in envs or []]  # as RL-Zoo names folders
    for path in sorted(folder.glob("*/*/evaluations.npz"), key=_in_order):
        algo, env = path.parent.parent.name, RUN_NUMBER.sub("", path.parent.name)
        if (algos is None or algo in algos) and (envs is None or env in wanted):
            try:
                if _continues(path.parent):
                    print(f"skipped {path}: it continues another run")
                    continue
                with np.load(path) as file:
                    found[algo, env].append((file["timesteps"], file["results"].mean(axis=1)))
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, yaml.YAMLError) as error:
                print(f"skipped {path}: {error}")
    for name in dict.fromkeys((*(algos or ()), *wanted)):
        if found and name not in itertools.chain(*found):
            print(f"no evaluations of {name}")
    runs = {}
    for (algo, env), evaluations in found.items():
        shared = functools.reduce(np.intersect1d, [timesteps for timesteps, _ in evaluations])
        most = max(len(timesteps) for timesteps, _ in evaluations)
        if not len(shared):
            print(f"skipped {algo} on {env}: runs never evaluated at the same timestep; move some to another folder")
            continue
        if len(shared) < most:
            print(f"{algo} on {env}: runs differ in length or --eval-freq; cut to {len(shared)} of {most} evaluations")
        runs[algo, env] = (shared, np.stack([returns[np.isin(steps, shared)] for steps, returns in evaluations]))
    if not runs:
        raise ValueError(f"no evaluations of {algos or 'any algorithm'} on {envs or 'any environment'} in {folder}")
    return runs


def _in_order(evaluations: Path) -> tuple[str, str, int]:
    """Algorithm, environment, number: run 2 comes before run 10."""
    name = evaluations.parent.name
    number = RUN_NUMBER.search(name)
    return evaluations.parent.parent.name, RUN_NUMBER.sub("", name), int(number[0].split("_")[1]) if number else 0


class _Arguments(yaml.SafeLoader):  # type: ignore[misc]
    """Reads RL-Zoo's ``args.yml``, an ordered dict of Python's. Runs nothing that a file names: it may be anyone's."""


def _inert(loader: Any, _: str, node: Any) -> Any:
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None


_Arguments.add_multi_constructor("tag:yaml.org,2002:python/", _inert)


def _continues(run: Path) -> bool:
    """Whether RL-Zoo's ``-i`` began it."""
    found = [yaml.load(path.read_text(), _Arguments) for path in run.glob("*/args.yml")]
    return any(dict(ordered[0]).get("trained_agent") for ordered in found if ordered)


def normalize(returns: Array, env: str) -> Array:
    """Returns as scores: 0 is the random policy, 1 a good on-policy agent (:data:`REFERENCE_SCORES`)."""
    random, good = REFERENCE_SCORES[env]
    return (returns - random) / (good - random)


def final_scores(runs: Runs) -> dict[str, Array]:
    """Normalised returns of the last evaluations that all algorithms share, by algorithm, ``[runs, environments]``.

    Aggregates need the same environments for all, and as many runs on each: what had to be left out is printed.
    """
    algos = list(dict.fromkeys(algo for algo, _ in runs))
    envs = list(dict.fromkeys(env for _, env in runs))
    usable: dict[str, int] = {}  # environment -> timestep of the scores
    for env in envs:
        timesteps = [runs[algo, env][0] for algo in algos if (algo, env) in runs]
        shared_steps = functools.reduce(np.intersect1d, timesteps)
        if env not in REFERENCE_SCORES:
            print(f"not in the aggregates: {env} (no reference score)")
        elif len(timesteps) < len(algos):
            print(f"not in the aggregates: {env} (not run by every algorithm)")
        elif not len(shared_steps):
            print(f"not in the aggregates: {env} (algorithms never evaluated at the same timestep)")
        else:
            usable[env] = shared_steps[-1]
            longer = [algo for algo in algos if runs[algo, env][0][-1] > usable[env]]
            if longer:
                print(f"{env}: compared at timestep {usable[env]}, the last that all have; longer: {', '.join(longer)}")
    scores = {}
    for algo in algos if usable else []:
        last = {
            env: normalize(returns[:, steps.searchsorted(usable[env])], env)
            for env, (steps, returns) in ((env, runs[algo, env]) for env in usable)
        }
        shared = min(len(values) for values in last.values())
        scores[algo] = np.stack([values[:shared] for values in last.values()], axis=1)
        print(f"{algo}, on each of {', '.join(usable)}: {_count(scores[algo])}")
        latest = [f"{len(each) - shared} of {len(each)} on {env}" for env, each in last.items() if len(each) > shared]
        if latest:
            print(f"{algo}: not in the aggregates: the last {', '.join(latest)}")
    return scores


# ------------------------------------------------------------------------------------------------------------- figures


def _estimate(scores: dict[str, Any], statistic: Callable[..., Array], samples: int) -> tuple[Any, Any]:
    """Point estimates and 95 % intervals by stratified bootstrap over runs: the same every time, in any company."""
    points: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    before = np.random.get_state()
    for name, runs in scores.items():
        np.random.seed(0)  # rliable draws pairs of methods from the global generator, whatever it is given
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "random_state is deprecated", FutureWarning)  # how rliable seeds arch
            point, interval = library.get_interval_estimates(
                {name: runs}, statistic, reps=samples, random_state=np.random.RandomState(0)
            )
        points |= point
        intervals |= interval
    np.random.set_state(before)
    return points, intervals


def _count(runs: Array) -> str:
    return f"{len(runs)} runs" if len(runs) > 1 else "1 run, so no interval"


def _iqm(scores: Array) -> Array:
    return np.array([metrics.aggregate_iqm(scores)])


def _learning_curves(runs: Runs, bootstrap_samples: int) -> Figure:
    envs = list(dict.fromkeys(env for _, env in runs))
    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    algos = list(dict.fromkeys(algo for algo, _ in runs))
    for axis, env in itertools.zip_longest(axes.flat, envs):
        if env is None:
            axis.remove()
            continue
        axis.set(title=env, xlabel="environment steps", ylabel="evaluation return")
        for color, algo in enumerate(algos):
            if (algo, env) not in runs:
                continue
            timesteps, returns = runs[algo, env]
            curve, (low, high) = _curve(returns, bootstrap_samples)
            axis.plot(timesteps, curve, color=f"C{color}", label=f"{algo}, {_count(returns)}")
            axis.fill_between(timesteps, low, high, color=f"C{color}", alpha=0.2, linewidth=0)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    return figure


def _curve(returns: Array, bootstrap_samples: int) -> tuple[Array, Array]:
    """Interquartile mean over runs and its interval at every evaluation, ``[T]`` and ``[2, T]``."""

    def statistic(scores: Array) -> Array:  # metrics.aggregate_iqm of every evaluation, in one call
        iqm: Array = trim_mean(scores[:, 0], proportiontocut=0.25, axis=0)
        return iqm

    points, intervals = _estimate({"curve": returns[:, None, :]}, statistic, bootstrap_samples)
    return points["curve"], intervals["curve"]


def aggregates(scores: dict[str, Array], bootstrap_samples: int = 2000) -> Figure:
    """Interquartile mean over runs and environments of every algorithm, with its interval; printed too.

    :param scores: of :func:`final_scores`
    :param bootstrap_samples: of the interval
    """
    points, intervals = _estimate(scores, _iqm, bootstrap_samples)
    labels = {algo: (points[algo][0], *intervals[algo][:, 0]) for algo in scores}
    figure, axis = _bars(labels, {algo for algo, runs in scores.items() if len(runs) == 1})
    axis.set(xlabel="interquartile mean of normalised scores\n(0: random, 1: a good on-policy agent)")
    return figure


def improvements(pairs: dict[str, tuple[Array, Array]], bootstrap_samples: int = 2000) -> dict[str, _Interval]:
    """Probability that a run of one method scores above one of another, mean over environments; a tie counts half.

    :param pairs: name -> scores of the one and of the other, each ``[runs, environments]``
    :param bootstrap_samples: of the interval
    :return: name -> probability, lower and upper end of its 95 % interval
    """

    def statistic(scores_x: Array, scores_y: Array) -> Array:
        # metrics.probability_of_improvement, which takes fifty times as long: a test by scipy for each environment.
        difference = scores_x[:, None] - scores_y
        return np.array([((difference > 0) + 0.5 * (difference == 0)).mean()])

    points, intervals = _estimate(pairs, statistic, bootstrap_samples)
    return {pair: (points[pair][0], *intervals[pair][:, 0]) for pair in pairs}


def _improvement(scores: dict[str, Array], bootstrap_samples: int) -> Figure:
    pairs = {f"{x} > {y}": (scores[x], scores[y]) for x, y in itertools.combinations(scores, 2)}
    alone = {pair for pair, (x, y) in pairs.items() if len(x) == len(y) == 1}
    figure, axis = _bars(improvements(pairs, bootstrap_samples), alone)
    axis.axvline(0.5, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="probability of improvement", xlim=(0, 1))
    return figure


def _bars(estimates: dict[str, _Interval], alone: Container[str]) -> tuple[Figure, Axes]:
    """One line per name: the interval as a bar, the point estimate as a tick; printed too.

    :param alone: names that have one run, hence no interval
    """
    figure, axis = plt.subplots(figsize=(6.5, 1.1 + 0.45 * len(estimates)), layout="constrained")
    axis.use_sticky_edges = False
    for row, (name, (point, low, high)) in enumerate(estimates.items()):
        axis.barh(row, high - low, left=low, height=0.5, color=f"C{row}", alpha=0.6)
        axis.plot([point, point], [row - 0.25, row + 0.25], color="black", linewidth=2)
        print(f"{name:>24}: {point:.3f}" + ("" if name in alone else f" [{low:.3f}, {high:.3f}]"))
    axis.set_yticks(range(len(estimates)), list(estimates))
    axis.invert_yaxis()
    axis.grid(alpha=0.3, axis="x")
    return figure, axis


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(path)

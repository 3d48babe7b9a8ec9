"""RL-Zoo with this package's algorithms: ``python -m sb3_delight.zoo train|enjoy|record_video|best|plots ...``.

Takes RL-Zoo's own flags. ``dg``, ``kondo_dg``, ``pg`` and ``iwpg`` are algorithms like any other there, every process
runs one thread (``OMP_NUM_THREADS`` or ``--num-threads`` say otherwise), and what is wrong with a command is said in
one line.
"""

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Callable

import torch

from sb3_delight.arguments import install

__all__ = ["main", "register"]

#: of RL-Zoo's flags, those whose values it evaluates
KEY_VALUE_FLAGS = frozenset(("-params", "--hyperparams", "--env-kwargs", "--eval-env-kwargs"))
USAGE = """usage: python -m sb3_delight.zoo COMMAND [flags]      (COMMAND --help lists its flags)

  train         train an agent, continue one (-i), or sweep its settings (-optimize)
  enjoy         watch a trained agent, or score it (--no-render)
  record_video  film a trained agent
  best          re-run the best trials of a sweep with several seeds
  plots         learning curves and aggregate scores of trained agents
"""


def register() -> None:
    """Make ``dg``, ``kondo_dg``, ``pg`` and ``iwpg`` algorithms of RL-Zoo. Calling it again changes nothing.

    After it ``rl_zoo3.train.train()`` and ``rl_zoo3.enjoy.enjoy()`` know them, their packaged configurations and their
    search spaces.

    :raises ImportError: without the extra ``zoo``
    """
    import rl_zoo3.train
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from sb3_delight import DG, KondoDG, PolicyGradient
    from sb3_delight.baselines import ImportanceWeightedPG
    from sb3_delight.zoo.manager import ZooManager
    from sb3_delight.zoo.samplers import CONVERTERS, SAMPLERS

    rl_zoo3.ALGOS.update(dg=DG, kondo_dg=KondoDG, pg=PolicyGradient, iwpg=ImportanceWeightedPG)
    HYPERPARAMS_SAMPLER.update(SAMPLERS)
    HYPERPARAMS_CONVERTER.update(CONVERTERS)
    rl_zoo3.train.ExperimentManager = ZooManager  # type: ignore[attr-defined]


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's text.

    :param arguments: default: the process's own
    :raises SystemExit: with one line for a command that cannot work (``--verbose 2`` shows the traceback), with status
        130 if Ctrl-C ended training, once the agent is saved
    """
    command, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command not in COMMANDS:
        asked_for = command in ("-h", "--help")
        print(USAGE, end="", file=sys.stdout if asked_for else sys.stderr)
        sys.exit(0 if asked_for else 2)
    torch.set_num_threads(_threads())
    try:
        register()
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: this command needs RL-Zoo: {install('zoo')}")
    from sb3_delight.zoo.manager import ZooManager

    ZooManager.started = ZooManager.interrupted = False
    try:
        COMMANDS[command](flags)
        if ZooManager.interrupted:
            sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Before training starts an error is about the command, and a traceback would only bury it.
        if ZooManager.started or _verbose(flags) > 1:
            raise
        missing = "missing key " if isinstance(error, KeyError) else ""
        source = isinstance(error, SyntaxError | NameError) and not KEY_VALUE_FLAGS.isdisjoint(flags)
        hint = " (in key:value the value is Python source: n_steps:16 \"temperature:'lin_5'\")" if source else ""
        sys.exit(f"error: {missing}{' '.join(str(error).split()) or type(error).__name__}{hint}")


def _verbose(flags: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--verbose", type=int, default=1)
    try:
        return int(parser.parse_known_args(flags)[0].verbose)
    except (argparse.ArgumentError, SystemExit):
        return 1


def _threads() -> int:
    """By ``OMP_NUM_THREADS``, which children inherit; of a list ("4,2", for nested regions) the first."""
    listed = os.environ.get("OMP_NUM_THREADS") or "1"
    first = listed.split(",")[0].strip()
    if not (first.isdecimal() and int(first)):
        sys.exit(f"error: OMP_NUM_THREADS must be a whole number, 1 or more, got {first!r}")
    os.environ["OMP_NUM_THREADS"] = listed
    return int(first)


def _zoo_command(name: str, *defaults: str) -> Callable[[list[str]], None]:
    """A command of RL-Zoo, which reads ``sys.argv``; of a flag given twice the last one counts."""

    def run(flags: list[str]) -> None:
        module = importlib.import_module(f"rl_zoo3.{name}")
        sys.argv = [f"sb3_delight.zoo {name}", *defaults, *flags]
        getattr(module, name)()

    return run


def _record_video(flags: list[str]) -> None:
    """RL-Zoo's, which is a script."""
    sys.argv = ["sb3_delight.zoo record_video", "--algo", "dg", "--folder", "logs", *flags]
    runpy.run_module("rl_zoo3.record_video", run_name="__main__")


def _best(flags: list[str]) -> None:
    from sb3_delight.zoo.best import best

    best(flags)


def _plots(flags: list[str]) -> None:
    from sb3_delight.zoo.plots import plots

    plots(flags)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _zoo_command("train", "--algo", "dg"),
    "enjoy": _zoo_command("enjoy", "--algo", "dg", "--folder", "logs"),  # RL-Zoo's default downloads other agents
    "record_video": _record_video,
    "best": _best,
    "plots": _plots,
}

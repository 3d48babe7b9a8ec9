"""Which of a sweep's best trials was not just lucky: ``python -m sb3_delight.zoo best``."""

import argparse
import contextlib
import csv
import importlib
import io
import math
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import sync_envs_normalization
from tqdm import tqdm

from sb3_delight import __version__
from sb3_delight.arguments import count
from sb3_delight.zoo.manager import ZooManager
from sb3_delight.zoo.studies import open_study, storage_of

__all__ = ["best"]

HELP = """Re-run a sweep's best trials with several seeds: print each one's mean and standard deviation over seeds, and
which one survives. A finished run is a line of LOG_FOLDER/STUDY_NAME_best.csv, so repeating the command continues it,
and more seeds or trials add to it. The agents lie in LOG_FOLDER/STUDY_NAME_best/trial_NUMBER (with -n in
trial_NUMBER_N_steps), the sweep's trials in LOG_FOLDER/STUDY_NAME_trials.csv."""
SHARED = ("algo", "env", "n_timesteps")  #: by all rows of a study
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "mujoco")

Row = dict[str, Any]


def best(flags: list[str]) -> None:
    """The command; see its ``--help``.

    :param flags: of the command line
    :raises ValueError: if there is no such study, or none of its trials was completed
    :raises KeyboardInterrupt: on Ctrl-C; the interrupted run leaves no row
    """
    options = _parser().parse_args(flags)
    folder = Path(options.log_folder)
    study = open_study(storage_of(options.storage, options.log_folder, options.study_name), options.study_name)
    setting = _setting(study, options)
    for package in setting.get("gym_packages") or []:
        importlib.import_module(package)
    trials = _top_trials(study, options.top)
    folder.mkdir(parents=True, exist_ok=True)
    summary = study.trials_dataframe(attrs=("number", "value", "state", "duration", "params"))
    summary.to_csv(folder / f"{options.study_name}_trials.csv", index=False)
    results = folder / f"{options.study_name}_best.csv"
    wanted = {**{name: setting[name] for name in SHARED}, "eval_episodes": options.eval_episodes}
    identity = {str(trial.number): (str(trial.value), str(trial.datetime_start)) for trial in trials}

    def counts(row: Row) -> bool:
        """Whether a row is of these trials: not of an older study of this name, nor scored otherwise."""
        score, began = identity.get(str(row["trial"]), ("", ""))
        alike = all(str(row.get(name)) == str(value) for name, value in wanted.items())
        return alike and row["sweep_score"] == score and row["sweep_began"] == began

    def finished() -> dict[tuple[str, str], Row]:
        """One row of each trial and seed, those of other commands too."""
        return {(row["trial"], row["seed"]): row for row in _read(results) if counts(row)}

    progress = tqdm([(trial, seed) for trial in trials for seed in range(1, options.seeds + 1)], unit="run")
    for trial, seed in progress:
        progress.set_description(f"trial {trial.number}, seed {seed}")
        if (str(trial.number), str(seed)) not in finished():
            steps = f"_{options.n_timesteps}_steps" if options.n_timesteps else ""
            run_folder = folder / f"{options.study_name}_best" / f"trial_{trial.number}{steps}"
            _append(results, _run(trial, seed, setting, run_folder, options.eval_episodes, options.device))
    _report(trials, [row for row in finished().values() if int(row["seed"]) <= options.seeds])
    print(f"every run: {results}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("sb3_delight.zoo best", description=HELP)
    parser.add_argument("--study-name", required=True)
    parser.add_argument("--storage", help="as in the sweep (default: LOG_FOLDER/STUDY_NAME.log)")
    parser.add_argument("--top", type=count, default=3, help="how many trials (default: 3)")
    parser.add_argument("--seeds", type=count, default=5, help="runs of each (default: 5)")
    parser.add_argument(
        "--eval-episodes", type=count, default=20, help="of the evaluation after training (default: 20)"
    )
    parser.add_argument("-f", "--log-folder", default="logs")
    parser.add_argument("-n", "--n-timesteps", type=count, help="of each run (default: as in the sweep)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--verbose", type=int, default=1, help="2 shows the traceback of an error (default: 1)")
    return parser


def _setting(study: optuna.Study, options: argparse.Namespace) -> dict[str, Any]:
    """What every trial of the sweep had in common."""
    if "setting" not in study.user_attrs:
        raise ValueError(f"the study {study.study_name!r} has no trial that sb3_delight.zoo ran")
    setting: dict[str, Any] = study.user_attrs["setting"]
    return {**setting, "n_timesteps": options.n_timesteps or setting["n_timesteps"]}


def _top_trials(study: optuna.Study, count: int) -> list[FrozenTrial]:
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not completed:
        raise ValueError(f"the study {study.study_name!r} has no completed trial")
    return sorted(completed, key=lambda trial: trial.value or 0.0, reverse=True)[:count]


def _run(
    trial: FrozenTrial, seed: int, setting: dict[str, Any], folder: Path, n_eval_episodes: int, device: str
) -> Row:
    """Train and score a trial with one seed, quietly.

    :return: a row of the results; the score of a run that fails as a sweep's trial would, by NaN say, is NaN
    """
    algo, env_id = setting["algo"], setting["env"]
    set_random_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        manager = ZooManager(
            argparse.Namespace(**{**setting, "seed": seed}),
            algo,
            env_id,
            str(folder),
            n_timesteps=setting["n_timesteps"],
            trial=trial,
            env_kwargs=setting["env_kwargs"],
            eval_env_kwargs=setting["eval_env_kwargs"],
            config=setting["conf_file"],
            eval_freq=-1,
            log_interval=-2,
            verbose=0,
            seed=seed,
            device=device,
        )
        # One folder per seed: the repetition of an interrupted run replaces it.
        manager.save_path = f"{manager.log_path}{manager.env_name}_{seed}"
        manager.params_path = f"{manager.save_path}/{manager.env_name}"
        manager.has_folder = True
        model, _ = manager.setup_experiment() or (None, None)
        assert model is not None
        try:
            manager.learn(model)
            if ZooManager.interrupted:
                raise KeyboardInterrupt
            manager.save_trained_model(model)
            score = _score(manager, model, n_eval_episodes)
        except (ValueError, AssertionError) as error:  # those that prune a trial
            tqdm.write(f"trial {trial.number}, seed {seed} failed: {error}", file=sys.stderr)
            score = math.nan
    return {
        "trial": trial.number,
        "sweep_score": trial.value,
        "sweep_began": trial.datetime_start,
        "seed": seed,
        "score": score,
        **{name: setting[name] for name in SHARED},
        "eval_episodes": n_eval_episodes,
        "device": str(model.device),
        "sb3_delight": __version__,
        **{name: metadata.version(name) for name in PACKAGES if _is_installed(name)},
    }


def _score(manager: ZooManager, model: Any, n_eval_episodes: int) -> float:
    evaluation = manager.create_envs(1, eval_env=True)
    sync_envs_normalization(model.env, evaluation)
    score, _ = evaluate_policy(model, evaluation, n_eval_episodes, deterministic=manager.deterministic_eval)
    evaluation.close()
    return float(np.mean(score))


def _is_installed(package: str) -> bool:
    return any(metadata.distributions(name=package))


def _read(results: Path) -> list[Row]:
    if not results.is_file():
        return []
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(results: Path, row: Row) -> None:
    """All rows, those of other commands since the start too, in one move: a kill leaves the old file or the new one."""
    with FileLock(results.with_suffix(".lock")):
        rows = [*_read(results), row]
        unfinished = results.with_suffix(".part")
        with unfinished.open("w", newline="") as file:
            # Columns change as packages are installed.
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for each in rows for name in each)))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, results)


def _report(trials: list[FrozenTrial], rows: list[Row]) -> None:
    numbers = [trial.number for trial in trials]
    scores = {number: [float(row["score"]) for row in rows if int(row["trial"]) == number] for number in numbers}
    survivor = max(scores, key=lambda number: np.nan_to_num(np.mean(scores[number]), nan=-math.inf))
    print(f"{'trial':>6}{'in the sweep':>15}{'mean':>12}{'std':>10}{'seeds':>7}")
    for trial in trials:
        values = scores[trial.number]
        mark = "  <- survives" if trial.number == survivor else ""
        spread = f"{np.std(values, ddof=1):.1f}" if len(values) > 1 else "-"
        print(f"{trial.number:>6}{trial.value:>15.1f}{np.mean(values):>12.1f}{spread:>10}{len(values):>7}{mark}")

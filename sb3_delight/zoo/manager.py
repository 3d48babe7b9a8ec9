"""RL-Zoo's experiment manager without its traps."""

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from pprint import pprint
from typing import Any, ClassVar

import numpy as np
import optuna
import yaml
from optuna.trial import FrozenTrial
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_delight.arguments import as_schedule, check_keywords, is_whole, require
from sb3_delight.zoo.studies import as_json, create_tables, open_study, settled, storage_of

__all__ = ["ZooManager", "packaged_config"]


def packaged_config(algo: str, env_id: str) -> str | None:
    """Path of our configuration for an algorithm; ``None`` where RL-Zoo's own is the one to use.

    RL-Zoo's algorithms have ours for the MuJoCo -v5 environments alone, which RL-Zoo would run untuned.
    """
    here = Path(__file__).parents[1]
    installed = here / "zoo_configs"
    path = (installed if installed.is_dir() else here.parent / "zoo_configs") / f"{algo}.yml"
    if not path.is_file():
        return None
    blocks = yaml.safe_load(path.read_text())
    return str(path) if env_id in blocks or "default" in blocks else None


def evaluated(policy_kwargs: str | dict[str, Any] | None) -> dict[str, Any]:
    """As a dictionary: RL-Zoo's configurations hold it as Python source."""
    if isinstance(policy_kwargs, str):
        policy_kwargs = eval(policy_kwargs, vars(exp_manager))
    return policy_kwargs or {}  # type: ignore[return-value]


class Configured(dict[str, Any]):
    """Settings of a configuration, which RL-Zoo copies and updates by those of a trial."""

    def copy(self) -> "Configured":
        return Configured(self)

    def update(self, sampled: dict[str, Any]) -> None:  # type: ignore[override]
        """As of a dict, but ``policy_kwargs`` one by one."""
        networks = {**(self.get("policy_kwargs") or {}), **sampled.get("policy_kwargs", {})}
        super().update(sampled, policy_kwargs=networks)


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[None]:
    """Ctrl-C on record."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main one's
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def take_down(number: int, frame: Any) -> None:
        ZooManager.interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, take_down)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class ZooManager(ExperimentManager):
    """RL-Zoo's manager with these differences:

    - without ``-conf``, the packaged configuration (:func:`packaged_config`);
    - a study with a name but no ``--storage`` is kept (:func:`storage_of`), hence can be resumed;
    - a trial keeps the ``policy_kwargs`` of a configuration that it does not sample, a features extractor, say;
    - a trial's VecNormalize discounts by the trial's gamma, so that ``--trial-id`` trains what was scored;
    - ``--trial-id`` trains with what else the sweep was given and the command is not (``-conf``, ``-params``,
      ``--env-kwargs``, ``-n``); ``--trial-id 0`` is a trial; one that does not exist, or of another environment, is an
      error;
    - ``-i`` continues with the settings that the agent was trained with, but for those that the command gives, and
      refuses names that are no setting, agents of another algorithm, and a VecNormalize that begins anew;
    - a checkpoint comes with the statistics of VecNormalize, so that it is of use if the run is killed;
    - ``env_kwargs`` of a configuration or a study are those of the evaluation's environment too, and of ``enjoy``'s;
    - a run that fails amid training saves its agent, as one that Ctrl-C ends does;
    - a study is resumed with the settings it was begun with, or not at all: scores of others would be mixed; and with
      other random numbers than it was begun with, whatever its ``--seed``: trials would be repeated;
    - runs that begin at the same moment have folders of their own;
    - settings that a YAML file cannot hold, a function of a Python file, say, are refused before training;
    - a sweep, or a command that cannot work, leaves no empty run behind, which ``enjoy`` would take for the latest;
    - ``clip_range: null`` is no clip.
    """

    started: ClassVar[bool] = False  #: whether training began: errors before that are the user's to read
    interrupted: ClassVar[bool] = False  #: whether Ctrl-C ended it, which RL-Zoo takes for an early end
    has_folder = False  #: whether ``save_path`` is this run's alone

    def __init__(
        self, args: Any, algo: str, env_id: str, *rest: Any, trial: FrozenTrial | None = None, **options: Any
    ) -> None:
        """:param trial: one of the study that ``args`` are the setting of, to be trained again"""
        self.trial, self.setting = trial, vars(args) if trial else {}
        options["config"] = options.get("config") or packaged_config(algo, env_id)
        super().__init__(args, algo, env_id, *rest, **options)
        if self.continue_training + self.optimize_hyperparameters + (self.trial_id is not None) > 1:
            raise ValueError("-i continues an agent, --trial-id trains a trial, -optimize makes some: give one of them")
        counts = {"--eval-episodes": self.n_eval_episodes, "--n-eval-envs": self.n_eval_envs}
        optional = {"--n-evaluations": self.n_evaluations, "--max-total-trials": self.max_total_trials}
        counts |= {flag: value for flag, value in optional.items() if value is not None}
        if self.max_total_trials is None:  # else RL-Zoo does not look at it
            counts["--n-trials"] = self.n_trials
        for flag, value in counts.items():
            require(is_whole(value), flag, value, "a whole number, 1 or more")
        steps = self.n_timesteps
        require(steps == -1 or is_whole(steps), "-n", steps, "1 or more, or -1 (the configuration's)")
        require(self.log_interval != 0, "--log-interval", 0, "1 or more, -1 (the algorithm's own) or -2 (none)")
        if self.study_name:
            self.storage = storage_of(self.storage, self.log_folder, self.study_name)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the configuration, or of the agent or trial that is trained on, below what the command gives.

        :raises ValueError: if agent or trial do not fit the command
        """
        if self.trial_id is not None:
            self._find_trial(self.trial_id)
            self.trial_id = None  # done; RL-Zoo's own reading takes trial 0 for none
        networks = self._add_settings_of_the_trial()
        agents = self._settings_of_the_agent()
        hyperparams, saved = (dict(agents), dict(agents)) if agents else self._read_configuration()
        for each in (hyperparams, saved):
            if networks:
                each["policy_kwargs"] = {**evaluated(each.get("policy_kwargs")), **networks}
            if self.n_timesteps > 0:
                each["n_timesteps"] = self.n_timesteps  # which config.yml is to say
            if self.continue_training:
                self._normalize_as_the_agent(each)
        if agents or self.trial:
            source = f"trial {self.trial.number} of {self.study_name}" if self.trial else self.trained_agent
            print(f"Hyperparameters of {source} and this command:")
            pprint(saved)
        n_envs = hyperparams.get("n_envs", 1)
        require(is_whole(n_envs), "n_envs", n_envs, "a whole number, 1 or more")
        self.eval_env_kwargs = self._eval_env_kwargs_args or hyperparams.get("env_kwargs") or self.env_kwargs
        return hyperparams, saved

    def _read_configuration(self) -> tuple[dict[str, Any], dict[str, Any]]:
        # What RL-Zoo prints is not all of a trial's.
        with contextlib.redirect_stdout(io.StringIO()) if self.trial else contextlib.nullcontext():
            # Copies: of a configuration that is a package, what follows would change the module.
            hyperparams, saved = (dict(each) for each in super().read_hyperparameters())
        overridden = self.custom_hyperparams or {}
        self.block = as_json({name: value for name, value in saved.items() if name not in overridden})
        self._check_block(self.setting)
        return hyperparams, saved

    def _find_trial(self, number: int) -> None:
        """Of ``--trial-id``, and what its sweep was given.

        :raises ValueError: if there is none, or it is of another algorithm or environment
        """
        if not (self.storage and self.study_name):
            raise ValueError("--trial-id needs --study-name")
        study = open_study(self.storage, self.study_name)
        if not 0 <= number < len(study.trials):
            raise ValueError(f"--trial-id {number}: {self.study_name!r} has {len(study.trials)} trials")
        self.setting = setting = study.user_attrs.get("setting", {})
        for flag, own in (("algo", self.algo), ("env", self.env_name.gym_id)):
            swept = setting.get(flag, own)
            if swept != own:
                raise ValueError(f"--trial-id: {self.study_name!r} is a study of --{flag} {swept}, not of {own}")
        self.trial = study.trials[number]
        if not self.trial.params:
            raise ValueError(f"--trial-id {number}: the trial ended before it had settings")
        self._add_env_kwargs(setting)
        self.config = self.args.conf_file or setting.get("conf_file") or self.config
        if self.n_timesteps <= 0:
            self.n_timesteps = setting.get("n_timesteps", self.n_timesteps)

    def _add_settings_of_the_trial(self) -> dict[str, Any]:
        """Put them, and what its sweep was given, below what this command gives that the sweep was not.

        :return: ``policy_kwargs`` of trial and command, which go one by one over those of the configuration
        """
        if self.trial is None:
            return {}
        swept, sampled = self.setting.get("hyperparams") or {}, HYPERPARAMS_CONVERTER[self.algo](self.trial.params)
        given = (self.custom_hyperparams or {}).items()
        own = {name: value for name, value in given if name not in swept or as_json(value) != swept[name]}
        networks = {**sampled.pop("policy_kwargs", {}), **evaluated(own.pop("policy_kwargs", None))}
        self.custom_hyperparams = {**swept, **sampled, **own}
        return networks

    def _add_env_kwargs(self, earlier: dict[str, Any]) -> None:
        """Those of a study or an agent, below those of this command; they are kept for ``enjoy``."""
        self.env_kwargs = {**(earlier.get("env_kwargs") or {}), **self.env_kwargs}
        self._eval_env_kwargs_args = {
            **(earlier.get("eval_env_kwargs") or {}),
            **(self._eval_env_kwargs_args or {}),
        } or None
        self.args.env_kwargs = self.env_kwargs or None

    @property
    def _agents_folder(self) -> Path:
        """Of what RL-Zoo keeps of the agent that ``-i`` continues, besides itself."""
        return Path(self.trained_agent).parent / str(self.env_name)

    def _settings_of_the_agent(self) -> dict[str, Any]:
        """What the agent that ``-i`` continues was trained with, if RL-Zoo kept that, below what this command gives;
        nothing under ``-conf``.

        :raises ValueError: if it is of another algorithm, or the command gives it another network
        """
        if not self.continue_training:
            return {}
        for name in self.custom_hyperparams or {}:
            if name in ("policy", "policy_kwargs"):
                raise ValueError(f"-params {name}: the agent that -i continues has a network")
        if not (self._agents_folder / "config.yml").is_file():
            return {}
        # RL-Zoo writes Python's ordered dicts there, which enjoy reads in this way, too.
        settings, arguments = (
            dict(yaml.unsafe_load((self._agents_folder / name).read_text())) for name in ("config.yml", "args.yml")
        )
        if arguments.get("algo", self.algo) != self.algo:
            raise ValueError(f"-i {self.trained_agent}: an agent of --algo {arguments['algo']}, not of {self.algo}")
        if self.args.conf_file:
            return {}
        # As in RL-Zoo, the command's were the agent's in place of the configuration's.
        self._add_env_kwargs({**arguments, "env_kwargs": arguments.get("env_kwargs") or settings.get("env_kwargs")})
        own = {"env_kwargs": self.env_kwargs} if self.env_kwargs else {}
        return dict(sorted({**settings, **(self.custom_hyperparams or {}), **own}.items()))

    def _normalize_as_the_agent(self, hyperparams: dict[str, Any]) -> None:
        """RL-Zoo loads statistics of the agent's VecNormalize if there are any, and saves them if told to normalize.

        :raises ValueError: if the settings say otherwise than what there is
        """
        statistics = self._agents_folder / "vecnormalize.pkl"
        found = statistics.is_file()
        there_are = "there are" if found else "there are no"
        given = hyperparams.setdefault("normalize", found)
        allowed = f"{found} with -i: {there_are} VecNormalize statistics of the agent in {statistics}"
        others = [each.parent.name for each in Path(self.trained_agent).parent.glob("*/vecnormalize.pkl")]
        if others and not found:
            allowed += f" (but there are for --env {others[0]})"
        require(bool(given) == found, "normalize", given, allowed)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> Any:
        """As in RL-Zoo.

        :raises ValueError: if a name is no argument of the algorithm, be it RL-Zoo's own
        """
        check_keywords(ALGOS[self.algo], hyperparams)
        return super()._load_pretrained_agent(hyperparams, env)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """As in RL-Zoo; statistics that were loaded discount by the gamma of today.

        :raises ValueError: if these were to be made otherwise than they were
        """
        env = super()._maybe_normalize(env, eval_env)
        if isinstance(env, VecNormalize):
            env.gamma = self.normalize_kwargs.get("gamma", env.gamma)
            if self.continue_training and not eval_env:
                for name, value in self.normalize_kwargs.items():
                    own = getattr(env, name, value)
                    require(value == own, f"normalize's {name}", value, f"{own!r}, the agent's, with -i")
        return env

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """As in RL-Zoo.

        :raises ValueError: if ``enjoy`` and ``-i`` could not read it
        """
        for name, value in saved_hyperparams.items():
            try:
                yaml.unsafe_load(yaml.dump(value))
            except (yaml.YAMLError, TypeError) as error:
                allowed = "something that a YAML file can hold (a function: of a module that can be imported)"
                raise ValueError(f"{name} must be {allowed}, got {value!r}") from error
        super()._save_config(saved_hyperparams)

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """As in RL-Zoo, for which ``"constant_x"`` falls to 0, too; ``clip_range: null`` is no clip."""
        read = {}
        for name in ("learning_rate", "clip_range"):
            value = hyperparams.get(name, 0)
            if value is None or isinstance(value, str):
                read[name] = None if value is None else as_schedule(name, value)
                del hyperparams[name]
        return {**ExperimentManager._preprocess_schedules(hyperparams), **read}

    def setup_experiment(self) -> tuple[Any, dict[str, Any]] | None:
        """As in RL-Zoo."""
        try:
            return super().setup_experiment()
        except BaseException:
            if self.has_folder:
                shutil.rmtree(self.save_path, ignore_errors=True)
            raise

    def create_log_folder(self) -> None:
        """Of one run, which takes the next number if another has just taken its own; a sweep has none."""
        if self.optimize_hyperparameters:
            return
        while not self.has_folder:
            try:
                os.makedirs(self.save_path)
                self.has_folder = True
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = f"{self.log_path}{self.env_name}_{number}"
                self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()  # type: ignore[no-untyped-call]

    def create_callbacks(self) -> None:
        """As in RL-Zoo; statistics are saved with every checkpoint."""
        super().create_callbacks()  # type: ignore[no-untyped-call]
        if self.save_freq > 0 and self.normalize:
            self.callbacks.append(SaveVecNormalizeCallback(self.save_freq, self.params_path))

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """As in RL-Zoo; a sweep's environments write no log."""
        return super().create_envs(n_envs, eval_env, no_log or self.optimize_hyperparameters)

    def learn(self, model: Any) -> None:
        """Train, and save what there is where Ctrl-C, or an error, ends it."""
        ZooManager.started, ZooManager.interrupted = True, False
        try:
            with _noted_interrupts():
                super().learn(model)
        except Exception as error:
            if ZooManager.interrupted and isinstance(error, ConnectionError | EOFError):
                return  # environments in processes of their own had the Ctrl-C, too; RL-Zoo saves
            if model.num_timesteps:
                self.save_trained_model(model)
            raise

    def objective(self, trial: optuna.Trial) -> float:
        """Train and score one trial of a sweep."""
        if not settled(trial.study, but=trial.number):
            trial.study.set_user_attr("setting", {**self._setting(), "block": self.block})
        # Optuna suggests a name once per trial: sampled again in RL-Zoo's objective, the values are these.
        sampled = HYPERPARAMS_SAMPLER[self.algo](
            trial, self.n_actions, self.n_envs, {"using_her_replay_buffer": False, "her_kwargs": {}}
        )
        manager = copy.copy(self)  # trials of --n-jobs run in threads
        manager._hyperparams = Configured(self._hyperparams)
        if "gamma" in sampled:
            manager.normalize_kwargs = {**self.normalize_kwargs, "gamma": sampled["gamma"]}
        try:
            return ExperimentManager.objective(manager, trial)
        except ValueError as error:  # of the constructor: RL-Zoo prunes those of training
            print(f"Trial {trial.number} is pruned: {error}")
            raise optuna.TrialPruned from error
        except KeyboardInterrupt:
            optuna.logging.set_verbosity(optuna.logging.ERROR)  # no traceback: the trial fails, the sweep ends
            raise

    def _resume_study(self) -> None:
        """If there is one, check that it was begun alike, and draw what follows from other random numbers.

        :raises ValueError: if it was begun with other settings
        """
        if not (self.storage and self.study_name):
            return
        for name, value in (self.args.hyperparams or {}).items():
            try:
                json.dumps(value)
            except TypeError:
                raise ValueError(
                    f"-params {name}: a study cannot keep {value!r}, nor repeat its trials: put it into a file, -conf"
                ) from None
        try:
            study = open_study(self.storage, self.study_name)
        except ValueError:  # a new one
            return
        begun = settled(study)
        for name, value in self._setting().items():
            if begun.get(name, value) != value:
                raise ValueError(
                    f"the study {self.study_name!r} was begun with {name} {begun[name]!r}, not {value!r}: give the "
                    "same command again, or another --study-name"
                )
        self._check_block(begun)
        if study.trials:
            self.seed = int(np.random.SeedSequence((self.seed, len(study.trials))).generate_state(1)[0])
            set_random_seed(self.seed)

    def _setting(self) -> dict[str, Any]:
        """What the `best` command needs to repeat a trial; a study keeps JSON only."""
        given = ("algo", "env", "conf_file", "hyperparams", "env_kwargs", "eval_env_kwargs", "gym_packages")
        scored = ("eval_episodes", "n_evaluations", "n_eval_envs")
        setting = {name: getattr(self.args, name) for name in given + scored}
        decoded: dict[str, Any] = as_json({**setting, "n_timesteps": self.n_timesteps})
        return decoded

    def _check_block(self, begun: dict[str, Any]) -> None:
        """That the configuration is still what the study was begun with, where the command gives no other.

        :raises ValueError: if it is not
        """
        earlier = begun.get("block")
        if earlier is None or (self.args.conf_file or self.config) != (begun.get("conf_file") or self.config):
            return
        for name in sorted((earlier.keys() | self.block.keys()) - (self.custom_hyperparams or {}).keys()):
            if earlier.get(name) != self.block.get(name):
                raise ValueError(
                    f"{self.config} has changed since the study began: {name} was {earlier.get(name)!r} for "
                    f"{self.env_name.gym_id}, and is {self.block.get(name)!r}. Put it back, or use another --study-name"
                )

    def hyperparameters_optimization(self) -> None:
        """Run a sweep, or this process's share of one.

        :raises ValueError: if the study was begun with other settings
        :raises SystemExit: if it ends without a completed trial
        """
        if self.storage and not self.storage.endswith(".log"):
            create_tables(self.storage)
        self._resume_study()
        try:
            with _noted_interrupts():  # between trials, too
                super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            if ZooManager.interrupted:
                raise KeyboardInterrupt from None
            raise SystemExit("no trial was completed: all were pruned; the study keeps them") from None

"""The loop: its arguments, its refusal of what is not finite, its logs, and what it saves."""

import csv
import inspect
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import gymnasium as gym
import numpy as np
import pytest
import torch
from envs import AnySpaces, Poisoned
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.sac.policies import SACPolicy
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_delight import DG, KondoDG, PolicyGradient, objectives
from sb3_delight.actors import LocalActors
from sb3_delight.baselines import PPO, ImportanceWeightedPG, ScaledPO
from sb3_delight.buffers import DeviceRolloutBuffer, flat_rollout
from sb3_delight.finite import NotFiniteError
from sb3_delight.forward import unvalidated_distributions
from sb3_delight.keywords import Arguments

ALGORITHMS: list[type[PolicyGradient]] = [PolicyGradient, DG, KondoDG, ImportanceWeightedPG, PPO, ScaledPO]


def make(cls: type[PolicyGradient] = DG, env: Any = "CartPole-v1", **kwargs: Any) -> PolicyGradient:
    kwargs = {"policy": "MlpPolicy", "seed": 0, "device": "cpu", "n_steps": 16, **kwargs}
    return cls(env=env, **kwargs)


def parameters(model: PolicyGradient) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def identical(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (PolicyGradient, "n_steps", 0),
        (PolicyGradient, "n_steps", 2.5),
        (PolicyGradient, "n_epochs", 0),
        (PolicyGradient, "n_epochs", True),
        (PolicyGradient, "advantage_estimator", "v-trace"),
        (PolicyGradient, "extra_critic_epochs", -1),
        (PolicyGradient, "extra_critic_epochs", 0.5),
        (PolicyGradient, "batch_size", 0),
        (PolicyGradient, "learning_rate", "fast"),
        (PolicyGradient, "learning_rate", float("nan")),
        (PolicyGradient, "learning_rate", float("inf")),
        (PolicyGradient, "learning_rate", -1e-3),
        (PolicyGradient, "policy", None),
        (PolicyGradient, "policy", SACPolicy),
        (PolicyGradient, "policy", RecurrentActorCriticPolicy),
        (PolicyGradient, "policy", "MlpLstmPolicy"),
        (PolicyGradient, "sde_sample_freq", 0),
        (PolicyGradient, "sde_sample_freq", "a"),
        (PolicyGradient, "rollout_buffer_class", "RolloutBuffer"),
        (PolicyGradient, "rollout_buffer_class", ReplayBuffer),
        (PolicyGradient, "rollout_buffer_kwargs", 1),
        (PolicyGradient, "policy_kwargs", "net_arch"),
        (PolicyGradient, "stats_window_size", 2.5),
        (PolicyGradient, "stats_window_size", 0),
        (PolicyGradient, "seed", -1),
        (PolicyGradient, "seed", 2**32),
        (PolicyGradient, "seed", "0"),
        (PolicyGradient, "gamma", 1.1),
        (PolicyGradient, "gamma", -0.1),
        (PolicyGradient, "gamma", "0.9"),
        (PolicyGradient, "max_grad_norm", None),
        (PolicyGradient, "gae_lambda", float("nan")),
        (PolicyGradient, "ent_coef", float("nan")),
        (PolicyGradient, "vf_coef", float("inf")),
        (PolicyGradient, "max_grad_norm", 0),
        (PolicyGradient, "advantage_scaling", "centre"),
        (PolicyGradient, "advantage_scaling", ["scale"]),
        (PolicyGradient, "surprisal_clip", -1.0),
        (PolicyGradient, "surprisal_baseline", "median"),
        (PolicyGradient, "surprisal_baseline", ["mode"]),
        (DG, "surprisal_baseline", "mode"),  # of discrete actions
        (DG, "normalize_delight", "off"),
        (KondoDG, "normalize_delight", "off"),
        (DG, "temperature", -1.0),
        (DG, "temperature", float("nan")),
        (DG, "temperature", "lin_hot"),
        (DG, "temperature", None),
        (DG, "temperature", [1.0]),
        (DG, "temperature", lambda progress: -progress),
        (KondoDG, "gate_rate", 0.0),
        (KondoDG, "gate_rate", 1.5),
        (KondoDG, "gate_rate", "0.3"),
        (KondoDG, "gate_rate", True),
        (KondoDG, "gate_rate", float("nan")),
        (KondoDG, "price", float("nan")),
        (KondoDG, "price", float("inf")),
        (KondoDG, "temperature", -0.5),
        (KondoDG, "priority", "joy"),
        (KondoDG, "priority", ["delight"]),
        (KondoDG, "critic_rate", 0.0),
        (KondoDG, "critic_rate", 1.5),
        (KondoDG, "screen", "glance"),
        (KondoDG, "additive_alpha", 2.0),
        (KondoDG, "additive_alpha", -0.1),
        (ImportanceWeightedPG, "ratio_clip", 0.0),
        (PPO, "clip_range", float("nan")),
        (PPO, "clip_range", None),
        (DG, "clip_range", -0.2),
        (DG, "target_kl", 0.0),
        (DG, "target_kl", float("inf")),
        (DG, "clip_range", "tight"),
        (DG, "clip_range", float("inf")),
        (ImportanceWeightedPG, "clip_range", 0.2),
        (ScaledPO, "negative_scale", -0.1),
        (ScaledPO, "negative_scale", float("nan")),
    ],
)
def test_bad_arguments_are_refused_by_name(cls: type[PolicyGradient], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got "):
        make(cls, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"gate_rate": 0.5, "price": 0.1}, "price"),
        ({"gate_rate": 0.5, "temperature": float("inf")}, "temperature"),
        ({"gate_rate": 1.0, "temperature": 1.0}, "gate_rate"),
        ({"priority": "random"}, "gate_rate"),
        ({"temperature": lambda progress: "warm"}, "temperature"),
    ],
)
def test_arguments_that_exclude_each_other_are_refused_by_name(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        make(KondoDG, **arguments)


@pytest.mark.parametrize(
    ("schedule", "arguments", "name"),
    [
        (lambda progress: 1 - progress, {"gate_rate": 1.0}, "gate_rate"),
        (lambda progress: 1.0 if progress == 1 else math.inf, {"gate_rate": 0.5}, "temperature"),
        (lambda progress: progress - 0.9, {}, "temperature"),
    ],
)
def test_a_gates_temperature_that_turns_bad_is_refused_by_name(
    schedule: Any, arguments: dict[str, Any], name: str
) -> None:
    model = make(KondoDG, temperature=schedule, **arguments)
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        model.learn(64)


def test_noise_that_depends_on_the_state_is_on_or_off() -> None:
    with pytest.raises(ValueError, match=r"^use_sde must be True or False, got 'off'"):
        make(env="Pendulum-v1", use_sde="off")


@pytest.mark.parametrize("env", [None, 5, ["CartPole-v1"], DummyVecEnv])
def test_what_is_no_environment_is_refused(env: Any) -> None:
    with pytest.raises(ValueError, match=r"^env must be an environment, a vectorised environment, or a registered id"):
        make(env=env)


@pytest.mark.parametrize("arguments", [{"use_sde": True}, {"use_sde": True, "policy_kwargs": {"squash_output": True}}])
def test_noise_that_depends_on_the_state_has_no_baseline(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^surprisal_baseline must be 'none' but for .*, got 'mode'"):
        make(DG, "Pendulum-v1", surprisal_baseline="mode", **arguments)


class Masked(PolicyGradient):
    def _select(self, rollout: Any) -> torch.Tensor:
        return rollout.advantages > 0  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_selection_that_is_a_mask_is_refused(batch_size: int | None) -> None:
    with pytest.raises(
        ValueError, match=r"^what _select\(\) returns must be row numbers, whole numbers \[k\], or None"
    ):
        make(Masked, batch_size=batch_size).learn(16)


class StateDependentNoise(ActorCriticPolicy):
    """Reads the standard deviations off the observation."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        del self.log_std


def test_a_policy_without_its_own_deviations_has_no_baseline() -> None:
    with pytest.raises(ValueError, match=r"^surprisal_baseline must be 'none' but for .*, got 'mode'"):
        DG(StateDependentNoise, "Pendulum-v1", surprisal_baseline="mode", n_steps=16, device="cpu")


def test_load_checks_its_arguments_too(tmp_path: Path) -> None:
    make(DG).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^temperature must be"):
        DG.load(tmp_path / "model", temperature=-1.0)
    with pytest.raises(ValueError, match=r"^surprisal_baseline must be"):
        DG.load(tmp_path / "model", surprisal_baseline="mode")
    model = DG.load(tmp_path / "model", temperature="lin_4.0")
    assert model._current(model.temperature) == 4.0
    # Which stable-baselines3 would keep as an attribute; the last is an argument of its own constructor alone.
    for name in ("temprature", "gate_rate", "monitor_wrapper"):
        with pytest.raises(ValueError, match=rf"^a keyword of load\(\) must be an argument of DG, got '{name}'"):
            DG.load(tmp_path / "model", **{name: 0.5})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^a keyword of load\(\) must be an argument of DG other than the policy"):
        DG.load(tmp_path / "model", policy="CnnPolicy")


def test_load_takes_the_constructors_defaults(tmp_path: Path) -> None:
    saved = make(DG, rollout_buffer_class=RolloutBuffer, stats_window_size=7)
    saved.save(tmp_path / "model")
    given: dict[str, Any] = {"rollout_buffer_class": None, "rollout_buffer_kwargs": None, "stats_window_size": 5}
    model = DG.load(tmp_path / "model", "CartPole-v1", **given).learn(16)
    assert isinstance(model.rollout_buffer, DeviceRolloutBuffer)
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer.maxlen == 5


def test_a_loaded_model_learns_once_it_has_an_environment(tmp_path: Path) -> None:
    make(DG).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^env must be given: .*, got None"):
        DG.load(tmp_path / "model").learn(16)
    assert DG.load(tmp_path / "model", "CartPole-v1").learn(16).num_timesteps == 16


def test_every_tenth_update_is_logged_and_the_last(tmp_path: Path) -> None:
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(16 * 11)
    with (tmp_path / "progress.csv").open() as file:
        assert [row["train/gradient_steps"] for row in csv.DictReader(file)] == ["9", "11"]


@pytest.mark.parametrize("interval", [0, -1, 2.5, "all"])
def test_a_log_interval_is_refused_before_the_first_rollout(interval: Any) -> None:
    model = make(DG)
    with pytest.raises(ValueError, match=r"^log_interval must be a whole number, 1 or more, or None, got "):
        model.learn(16, log_interval=interval)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("steps", [-1, float("nan"), "1000", None])
def test_steps_are_refused_before_the_first_rollout(steps: Any) -> None:
    with pytest.raises(ValueError, match=r"^total_timesteps must be a number of steps, 0 or more, got "):
        make(DG).learn(steps)


def test_a_buffer_that_holds_no_dictionary_is_refused() -> None:
    env = AnySpaces(spaces.Dict({"a": spaces.Discrete(2)}), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"^rollout_buffer_class must be DictRolloutBuffer, or None, where "):
        DG("MultiInputPolicy", env, rollout_buffer_class=RolloutBuffer, device="cpu")


def test_numbers_of_numpys_are_numbers() -> None:
    model = make(DG, seed=np.int64(3), stats_window_size=np.int64(5), batch_size=np.int64(8)).learn(16)
    assert model.ep_info_buffer is not None
    assert model.ep_info_buffer.maxlen == 5
    expected = make(DG, seed=3, batch_size=8).learn(16)
    for mine, theirs in zip(model.policy.parameters(), expected.policy.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_last_minibatch_that_is_short_is_a_warning_at_the_users_line() -> None:
    with pytest.warns(UserWarning, match="the last gradient step of a pass has 1.$") as caught:
        make(DG, n_steps=17, batch_size=16)
    assert caught[0].filename == __file__
    make(DG, n_steps=16, batch_size=17)  # one step


def test_what_is_recorded_is_a_scalar() -> None:
    with pytest.raises(ValueError, match=r"^value must be a number or a scalar tensor, for train/each, got "):
        make(DG).record("each", torch.zeros(2))


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (PPO, {"clip_range": "lin_0.2", "learning_rate": "lin_1e-3", "batch_size": 16}),
        (PPO, {"clip_range": lambda progress: 0.2 * progress, "batch_size": 16}),
        (DG, {"clip_range": "lin_0.2", "n_epochs": 2, "batch_size": 16}),
        (DG, {"temperature": lambda progress: 10 * progress, "learning_rate": lambda progress: 1e-3 * progress}),
        (KondoDG, {"temperature": lambda progress: progress, "gate_rate": 0.5}),
    ],
)
@pytest.mark.parametrize("timesteps", [64, 60])  # the last rollout ends at the total, or past it
def test_schedules_end_at_0_and_the_model_can_be_loaded(
    cls: type[PolicyGradient], arguments: dict[str, Any], timesteps: int, tmp_path: Path
) -> None:
    model = make(cls, **arguments).learn(timesteps)
    assert model._current_progress_remaining == 0
    assert model.policy.optimizer.param_groups[0]["lr"] >= 0
    model.save(tmp_path / "model")
    cls.load(tmp_path / "model", env=model.env).learn(32, reset_num_timesteps=False)


@pytest.mark.parametrize("rate", [np.float32(1e-3), np.int64(1)])
def test_numbers_of_numpy_are_numbers(rate: Any) -> None:
    make(learning_rate=rate).learn(16)


def test_a_number_may_take_the_place_of_a_schedule() -> None:
    model = make(DG, temperature="lin_4.0")
    assert isinstance(model, DG)
    model.temperature = 3.0
    assert model.learn(16)._current(model.temperature) == 3.0


def test_metrics_may_be_whole_numbers_and_truth_values() -> None:
    class Counting(DG):
        def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
            self.record("positive", (batch.advantages > 0).sum())
            self.record("any", (batch.advantages > 0).any())
            self.record("rows", len(log_prob))
            return super()._weight(log_prob, batch)

    model = make(Counting).learn(16)
    model.set_logger(configure(None, []))
    model.train()
    logged = model.logger.name_to_value
    assert logged["train/rows"] == 16
    assert 0 < logged["train/positive"] == int(logged["train/positive"]) <= 16
    assert logged["train/any"] == 1
    make(KondoDG, price=1).learn(16)


@pytest.mark.parametrize("progress", [0.4, 0.6])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -1e-3])
def test_a_learning_rate_that_turns_bad_is_refused_before_a_step(bad: float, progress: float) -> None:
    model = make(learning_rate=lambda remaining: bad if remaining < progress else 1e-3)
    with pytest.raises(ValueError, match="learning_rate"):
        model.learn(64)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_users_policy_kwargs_are_left_alone() -> None:
    policy_kwargs: dict[str, Any] = {"net_arch": [8]}
    make(policy_kwargs=policy_kwargs)
    assert policy_kwargs == {"net_arch": [8]}


@pytest.mark.parametrize("default", [torch.optim.RMSprop, torch.optim.SGD, torch.optim.Adam])
def test_a_policys_own_optimizer_is_built_as_it_says(default: Any) -> None:
    class Own(ActorCriticPolicy):
        def __init__(self, *args: Any, optimizer_class: Any = default, **kwargs: Any) -> None:
            super().__init__(*args, optimizer_class=optimizer_class, **kwargs)  # type: ignore[misc]

    model = DG(Own, "CartPole-v1", n_steps=16, device="cpu").learn(32)
    assert type(model.policy.optimizer) is default
    assert bool(model.policy.optimizer.param_groups[0].get("fused")) == (default is torch.optim.Adam)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(DG, {}), (KondoDG, {"gate_rate": 0.5, "critic_rate": 0.5}), (KondoDG, {"gate_rate": 0.5, "screen": "recompute"})],
)
def test_a_policys_own_evaluation_is_used_for_every_row(cls: type[PolicyGradient], arguments: dict[str, Any]) -> None:
    """The rollout's log-probabilities are then those that the update starts from."""

    class Tempered(ActorCriticPolicy):
        def _tempered(self, obs: Any) -> Any:
            distribution: Any = self.get_distribution(obs)
            return distribution.proba_distribution(distribution.distribution.logits / 5)

        def forward(self, obs: Any, deterministic: bool = False) -> Any:
            actions = self._tempered(obs).get_actions(deterministic)
            return actions, self.predict_values(obs), self._tempered(obs).log_prob(actions)

        def evaluate_actions(self, obs: Any, actions: Any) -> Any:
            tempered = self._tempered(obs)
            return self.predict_values(obs), tempered.log_prob(actions), tempered.entropy()

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Looking(cls):  # type: ignore[misc, valid-type]
        def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
            seen.append((log_prob, batch.old_log_prob))
            weight: torch.Tensor = super()._weight(log_prob, batch)
            return weight

    model = Looking(Tempered, "CartPole-v1", n_steps=16, seed=0, device="cpu", policy_kwargs={"ortho_init": False})
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor([3.0, -3.0]))
    for name, value in arguments.items():
        setattr(model, name, value)
    model.learn(16)
    torch.testing.assert_close(*seen[0])


# -------------------------------------------------------------------------------- finite or error


@pytest.mark.parametrize("cls", [DG, KondoDG, PolicyGradient])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [20, 32])  # within a rollout, and its last step
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_not_finite_never_reaches_the_parameters(
    cls: type[PolicyGradient], what: str, value: float, at: int, tmp_path: Path
) -> None:
    model = make(cls, Poisoned(gym.make("Pendulum-v1"), what, value, at))
    model.learn(16)
    before = parameters(model)
    with pytest.raises(ValueError, match=rf"NaN or inf {what}( \(or last .*\))? in the rollout"):
        model.learn(32, reset_num_timesteps=False)
    assert identical(before, parameters(model))
    model.save(tmp_path / "model")
    resumed = cls.load(tmp_path / "model", env=model.env)
    assert identical(before, parameters(resumed))
    resumed.learn(32, reset_num_timesteps=False)
    model.learn(32, reset_num_timesteps=False)
    for survivor in (model, resumed):
        assert not identical(before, parameters(survivor))
        assert all(torch.isfinite(parameter).all() for parameter in survivor.policy.parameters())


@pytest.mark.parametrize("cls", [DG, KondoDG])
def test_gradient_overflow_is_reported_and_undone(cls: type[PolicyGradient]) -> None:
    model = make(cls, vf_coef=1e38)
    before = parameters(model)
    with pytest.raises(ValueError, match="gradient is not finite at gradient step 1 of 1"):
        model.learn(64)
    assert identical(before, parameters(model))


class BreaksOff(PolicyGradient):
    """Raises in the third gradient step."""

    error: type[BaseException] | None = None

    def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
        if self.error is not None and self._n_updates % 4 == 2:
            raise self.error
        return super()._weight(log_prob, batch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_update_that_breaks_off_is_undone(error: type[BaseException]) -> None:
    model = make(BreaksOff, batch_size=4).learn(16)
    before, state = parameters(model), str(model.policy.optimizer.state_dict())
    assert isinstance(model, BreaksOff)
    model.error = error
    with pytest.raises(error):
        model.learn(16, reset_num_timesteps=False)
    assert identical(before, parameters(model))
    assert str(model.policy.optimizer.state_dict()) == state
    assert model._n_updates == 4
    assert model.actor_rows == model.critic_rows == 16


def test_ctrl_c_stays_ctrl_c_though_the_rollout_holds_a_nan() -> None:
    model = make(BreaksOff, batch_size=4).learn(16)
    assert isinstance(model, BreaksOff)
    model.rollout_buffer.returns[0] = torch.nan
    model.error, model._n_updates = KeyboardInterrupt, 2
    with pytest.raises(KeyboardInterrupt):
        model.train()


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what makes the host wait for the device."""

    OPERATIONS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.name().split(".")[0] in self.OPERATIONS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("cls", "arguments", "expected"),
    [
        (PolicyGradient, {}, 1),
        (PolicyGradient, {"batch_size": 8, "n_epochs": 3}, 1),
        (DG, {"batch_size": 8, "normalize_delight": True}, 1),
        (KondoDG, {"batch_size": 8, "gate_rate": 0.25, "critic_rate": 0.5}, 1),
        (KondoDG, {"batch_size": 8, "price": 0.1}, 2),  # how many rows it kept
        (KondoDG, {"batch_size": 8, "gate_rate": 0.25, "temperature": 1.0}, 2),
        (PPO, {"batch_size": 8, "n_epochs": 3}, 1),
        (ImportanceWeightedPG, {"batch_size": 8}, 1),
        (ScaledPO, {"batch_size": 8}, 1),
    ],
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_device_is_read_once_per_update(
    cls: type[PolicyGradient], arguments: dict[str, Any], expected: int, env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(cls, env, **arguments).learn(32)
    model.set_logger(configure(None, []))
    tolist = torch.Tensor.tolist  # which no dispatch mode sees on a CPU
    with Reads() as reads:

        def counted(tensor: torch.Tensor) -> Any:
            reads.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)
        model.train()
    assert reads.count == expected


def test_distribution_checks_are_back_after_an_update_even_a_failed_one() -> None:
    assert torch.distributions.Distribution._validate_args
    make().learn(16)
    assert torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="gradient"):
        make(vf_coef=1e38).learn(16)
    assert torch.distributions.Distribution._validate_args


def test_distribution_checks_are_back_when_the_last_of_two_updates_ends() -> None:
    """Two learners in threads, one in its update when the other's begins and ends."""
    first, second = unvalidated_distributions(), unvalidated_distributions()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.distributions.Distribution._validate_args
    second.__exit__(None, None, None)
    assert torch.distributions.Distribution._validate_args


@pytest.fixture(params=[True, False], ids=["torch checks", "torch does not check"])
def with_and_without_torchs_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of distributions' arguments: torch.compile, for one, turns them off for good."""
    torch.distributions.Distribution.set_default_validate_args(request.param)
    yield
    torch.distributions.Distribution.set_default_validate_args(True)


@pytest.mark.usefixtures("with_and_without_torchs_checks")
@pytest.mark.parametrize(
    "action_space", [gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 2]), gym.spaces.MultiBinary(2)]
)
def test_observations_that_are_not_finite_are_reported(action_space: Any) -> None:
    env = Poisoned(AnySpaces(gym.spaces.Box(-1.0, 1.0, (2,), np.float32), action_space), "observation", np.nan, at=22)
    with pytest.raises(ValueError, match="NaN or inf observation"):
        make(DG, env).learn(64)


@pytest.mark.usefixtures("with_and_without_torchs_checks")
@pytest.mark.parametrize(
    "action_space",
    [
        gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (2, 3), np.float32),
        gym.spaces.Discrete(3),
        gym.spaces.MultiDiscrete([2, 2]),
        gym.spaces.MultiBinary(2),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_policy_that_is_not_finite_is_a_value_error(action_space: Any) -> None:
    """Of which RL-Zoo prunes a trial; of a RuntimeError, torch's, a study would end."""
    model = make(DG, AnySpaces(gym.spaces.Box(-1.0, 1.0, (2,), np.float32), action_space))
    torch.nn.init.constant_(model.policy.action_net.weight, math.nan)  # type: ignore[arg-type]
    named = "the policy's output is NaN or inf at timestep 0|NaN or inf log-probability of the policy"
    with pytest.raises(NotFiniteError, match=named):  # of which actors in other processes are not replaced
        model.learn(64)


def test_errors_are_raised_whatever_a_policy_evaluates() -> None:
    class Strict(ActorCriticPolicy):
        def evaluate_actions(self, obs: Any, actions: torch.Tensor, mask: Any) -> Any:  # type: ignore[override]
            raise AssertionError

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            raise KeyError("simulator lost")

    with pytest.raises(KeyError, match="simulator lost"):
        make(DG, policy=Strict).learn(64, callback=Stop())


@pytest.mark.parametrize("cls", [DG, KondoDG])
def test_minibatches_and_epochs_may_be_counted_in_numpys_numbers(cls: type[PolicyGradient]) -> None:
    arguments: dict[str, Any] = {name: np.int64(4) for name in ("batch_size", "n_epochs", "extra_critic_epochs")}
    assert make(cls, **arguments).learn(32)._n_updates > 0


def test_rows_of_a_frozen_critic_alone_make_no_step() -> None:
    model = make(KondoDG, price=1e9, extra_critic_epochs=1)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_("value" not in name)
    assert model.learn(32)._n_updates == 0


def test_errors_of_the_environment_are_not_blamed_on_the_policy() -> None:
    class Raises(Poisoned):
        def step(self, action: Any) -> Any:
            raise ValueError("no more joy")

    model = make(DG, Raises(gym.make("Pendulum-v1"), "reward", 0.0, 0))
    with pytest.raises(ValueError, match="no more joy"):
        model.learn(64)


def test_collecting_before_learn_is_stable_baselines3s_own_error() -> None:
    model, nothing = make(), ConvertCallback(None)
    env: Any = model.env
    with pytest.raises(AssertionError, match="No previous observation"):
        model.collect_rollouts(env, nothing, model.rollout_buffer, 16)


# ------------------------------------------------------------------------------ advantage scaling


class ConstantReward(gym.Env[Any, Any]):
    """One step, one reward."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, reward: float) -> None:
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), self.reward, True, False, {}


@pytest.mark.parametrize("cls", [DG, KondoDG])
@pytest.mark.parametrize("scaling", ["off", "scale", "standardize"])
@pytest.mark.parametrize("n_steps", [1, 8])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_degenerate_advantages_leave_no_nan(
    cls: type[PolicyGradient], scaling: str, n_steps: int, reward: float
) -> None:
    model = make(cls, ConstantReward(reward), n_steps=n_steps, advantage_scaling=scaling, normalize_delight=True)
    if reward == 0:  # with a value of 0: every advantage, hence every delight, is exactly 0
        torch.nn.init.zeros_(model.policy.value_net.weight)
    before = parameters(model)
    model.learn(5 * n_steps)
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert identical(before, parameters(model)) == (reward == 0)


# --------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_equal_seeds_give_identical_runs(cls: type[PolicyGradient]) -> None:
    runs = [parameters(make(cls, seed=seed, n_steps=64).learn(256)) for seed in (3, 3, 4)]
    assert identical(runs[0], runs[1])
    assert not identical(runs[0], runs[2])


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_loaded_model_makes_the_same_next_update(cls: type[PolicyGradient], tmp_path: Path) -> None:
    model = make(cls, n_steps=32).learn(96)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=model.env, device="cpu")
    assert identical(parameters(model), parameters(loaded))
    assert loaded.num_timesteps == model.num_timesteps
    assert (loaded.actor_rows, loaded._n_updates) == (model.actor_rows, model._n_updates)
    state, loaded_state = (each.policy.optimizer.state_dict() for each in (model, loaded))
    assert str(state) == str(loaded_state)
    model.learn(32, reset_num_timesteps=False)  # fills a rollout, which both then train on
    loaded.set_logger(configure(None, []))
    loaded.rollout_buffer = model.rollout_buffer
    model.set_parameters(str(tmp_path / "model"))
    for each in (model, loaded):
        each.set_random_seed(5)
        each._current_progress_remaining = 0.5
        each.train()
    assert identical(parameters(model), parameters(loaded))
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96 + 64


def test_nothing_that_belongs_to_one_update_is_saved(tmp_path: Path) -> None:
    make().learn(16).save(tmp_path / "model")
    saved = json.loads(zipfile.ZipFile(tmp_path / "model.zip").read("data"))
    assert "n_steps" in saved
    assert not {"_metrics", "_last_update", "_intake"} & saved.keys()


@pytest.mark.parametrize("actors", [None, LocalActors(1)], ids=["no actors", "actors"])
def test_the_policy_is_in_training_mode_while_it_is_updated_and_only_then(actors: LocalActors | None) -> None:
    """Which dropout and batch normalisation go by."""
    acting: list[bool] = []
    updating: list[bool] = []

    class Looking(PolicyGradient):
        def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
            updating.append(self.policy.training)
            return super()._weight(log_prob, batch)

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            acting.append(self.model.policy.training)
            return True

    make(Looking, actors=actors).learn(32, callback=Look())
    assert acting == [False] * 32
    assert updating == [True] * 2


def test_editors_know_the_arguments_that_are_passed_on() -> None:
    signature = inspect.signature(PolicyGradient.__init__).parameters
    own = {"self", "policy", "env", "learning_rate"}
    expected = {name: each.annotation for name, each in signature.items() if name not in own}
    assert get_type_hints(Arguments) == expected
    for cls in (DG, KondoDG, ImportanceWeightedPG, PPO, ScaledPO):
        parameters = inspect.signature(cls.__init__).parameters
        (passed_on,) = get_args(parameters["kwargs"].annotation)
        assert get_type_hints(passed_on).keys() | parameters.keys() >= expected.keys()
        assert not get_type_hints(passed_on).keys() & parameters.keys()


def test_learn_needs_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 40

    model = make().learn(callback=Stop())
    assert model._total_timesteps == 1_000_000
    assert model.num_timesteps == 40


def test_target_kl_ends_the_actors_passes_and_not_the_critics() -> None:
    """Without a clip, too. The first step of fresh data is always taken."""
    common: dict[str, Any] = {"n_epochs": 4, "extra_critic_epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    model = make(DG, target_kl=1e-9, **common).learn(16)
    assert (model._n_updates, model.actor_rows, model.critic_rows) == (1 + 2 * 2, 8, 8 + 2 * 16)
    with pytest.raises(ValueError, match=r"^target_kl must be None with actors, got 0\.1"):
        make(DG, target_kl=0.1, actors=LocalActors())


@pytest.mark.parametrize(("batch_size", "gate"), [(None, {}), (8, {}), (None, {"gate_rate": 0.25, "critic_rate": 0.5})])
def test_extra_critic_epochs_train_the_critic_alone(batch_size: int | None, gate: dict[str, float]) -> None:
    cls = KondoDG if gate else DG
    plain, extra = (make(cls, batch_size=batch_size, extra_critic_epochs=n, **gate).learn(16) for n in (0, 3))
    pairs = zip(plain.policy.named_parameters(), extra.policy.named_parameters(), strict=True)
    moved = {name: not torch.equal(one, other) for (name, one), (_, other) in pairs}
    assert not any(differs for name, differs in moved.items() if "policy_net" in name or "action_net" in name)
    assert all(differs for name, differs in moved.items() if "value_net" in name)
    assert extra.actor_rows == plain.actor_rows
    assert extra.critic_rows == 4 * plain.critic_rows
    assert extra._n_updates == 4 * plain._n_updates
    rollout = flat_rollout(extra.rollout_buffer)
    values = [model.policy.predict_values(rollout.observations).flatten() for model in (plain, extra)]
    errors = [(value - rollout.returns).square().mean() for value in values]
    assert errors[1] < errors[0]


def test_batch_size_and_epochs_set_the_number_of_steps() -> None:
    model = make(PolicyGradient, n_steps=50, batch_size=20, n_epochs=2).learn(50)
    assert model._n_updates == 2 * 3
    assert model.actor_rows == model.critic_rows == 2 * 50
    assert make(PolicyGradient, n_steps=50).learn(50)._n_updates == 1
    assert make(PolicyGradient, n_steps=50, batch_size=1000).learn(50)._n_updates == 1


# ------------------------------------------------------------------------------------------- logs


@pytest.mark.parametrize("cls", [DG, KondoDG])
def test_every_update_is_logged_the_last_one_too(cls: type[PolicyGradient], tmp_path: Path) -> None:
    model = make(cls, "Pendulum-v1", **({"gate_rate": 0.25} if cls is KondoDG else {}))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, log_interval=1)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train/gradient_steps"] for row in rows] == ["", "1", "2", "3", "4"]
    last = {key.removeprefix("train/"): float(value) for key, value in rows[-1].items() if value}
    assert {
        "policy_loss", "value_loss", "entropy", "explained_variance", "delight_mean", "delight_std", "surprisal_mean",
        "gate_mean", "kept_fraction", "actor_rows", "critic_rows", "screen_rows", "gradient_steps", "std",
        "learning_rate",
    } <= last.keys()  # fmt: skip
    assert ("price" in last) == (cls is KondoDG)
    assert last["critic_rows"] == 64
    assert last["kept_fraction"] == (0.25 if cls is KondoDG else 1)
    assert 0 < last["gate_mean"] < 1
    assert last["std"] == pytest.approx(model.policy.log_std.exp().mean().item())  # of the last update, not before it
    assert all(np.isfinite(value) for value in last.values())


def test_the_last_update_is_logged_with_returns_and_steps_before_callbacks_end(tmp_path: Path) -> None:
    """However short ``learn()`` is, and though a callback then closes the logger."""

    class Close(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            self.logger.close()

    callbacks: list[Any] = [Close(), [Close()]]
    for callback in callbacks:
        model = make(n_steps=64)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(64, callback=callback)
        with (tmp_path / "progress.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row["time/total_timesteps"] == row["train/actor_rows"] == "64"
        assert float(row["rollout/ep_rew_mean"]) > 0


def test_no_log_interval_is_no_log(tmp_path: Path) -> None:
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(64, log_interval=None)  # type: ignore[arg-type]  # as stable-baselines3 takes it
    assert (tmp_path / "progress.csv").read_text() == ""


def test_a_look_at_the_last_update_leaves_no_trace_in_the_log() -> None:
    model = make()
    model.set_logger(configure(None, []))
    model.learn(16)
    model.train()
    counts = {name: len(values) for name, values in model._metrics.items()}
    assert model.last_update is not None
    assert {name: len(values) for name, values in model._metrics.items()} == counts


def test_an_update_that_was_undone_is_no_last_update() -> None:
    model = make(KondoDG, gate_rate=0.5, screen="recompute").learn(16)
    assert model.last_update is not None
    counts = [model.actor_rows, model.critic_rows, model.screen_rows]
    assert counts == [8, 16, 16]
    weight: torch.Tensor = model.policy.get_parameter("action_net.weight")
    weight.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="gradient is not finite"):
        model.train()
    assert model.last_update is None
    assert [model.actor_rows, model.critic_rows, model.screen_rows] == counts


def test_a_compiled_policy_is_gated_screened_and_sent_to_actors() -> None:
    # In a process of its own: torch's compiler changes settings of torch.distributions.
    script = """
import torch
from sb3_delight import KondoDG
from sb3_delight.actors import LocalActors

for arguments in ({"screen": "recompute"}, {"actors": LocalActors(1)}):
    found = []
    for compiled in (False, True):
        model = KondoDG("MlpPolicy", "CartPole-v1", gate_rate=0.3, seed=0, device="cpu", **arguments)
        if compiled:
            model.policy = torch.compile(model.policy, backend="eager")
        found.append(model.learn(96).policy.state_dict().values())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("scaling", "scale"), [("off", lambda advantages: advantages), ("scale", objectives.scale_by_rms)]
)
@pytest.mark.parametrize("clip", [None, 0.6])  # of surprisals near 0.69
def test_what_is_logged_of_an_update_is_what_its_rollout_has(scaling: str, scale: Any, clip: float | None) -> None:
    model = make(advantage_scaling=scaling, surprisal_clip=clip)
    model.set_logger(configure(None, []))
    model.learn(16)
    # learn() dumped the last update, so train once more on the same rollout.
    model.train()
    rollout = flat_rollout(model.rollout_buffer)
    surprisal = (-rollout.old_log_prob).clamp(max=clip or math.inf)
    delight = surprisal * scale(rollout.advantages)
    unexplained = (rollout.returns - rollout.old_values).var(correction=0) / rollout.returns.var(correction=0)
    expected = {
        "surprisal_mean": surprisal.mean().item(),
        "delight_mean": delight.mean().item(),
        "delight_std": delight.std(correction=0).item(),
        "explained_variance": 1 - unexplained.item(),
    }
    logged = {name: model.logger.name_to_value[f"train/{name}"] for name in expected}
    assert logged == pytest.approx(expected, rel=1e-4)
    assert model.last_update is not None
    torch.testing.assert_close(model.last_update[1], surprisal)


def test_the_last_updates_weights_are_those_under_the_rollouts_log_probabilities() -> None:
    """Of which a ratio is 1, whatever the baseline."""
    model = make(ImportanceWeightedPG, "Pendulum-v1", surprisal_baseline="mode", learning_rate=1e-2).learn(3 * 16)
    assert model.last_update is not None
    torch.testing.assert_close(model.last_update[2], torch.ones(16))


def test_an_entropy_of_no_closed_form_is_the_mean_of_surprisal() -> None:
    squashed: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}}
    model = make(PolicyGradient, "Pendulum-v1", learning_rate=0.0, **squashed).learn(16)
    model.set_logger(configure(None, []))
    model.train()
    expected = -flat_rollout(model.rollout_buffer).old_log_prob.mean().item()
    assert model.logger.name_to_value["train/entropy"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_vectorised_environments_fill_one_rollout(n_envs: int) -> None:
    env: VecEnv = DummyVecEnv([lambda: gym.make("CartPole-v1")] * n_envs)
    model = make(DG, env).learn(16 * n_envs)
    assert model.num_timesteps == model.actor_rows == 16 * n_envs
    assert model.last_update is not None
    assert model.last_update[0].square().mean().item() == pytest.approx(1)  # advantages as DG scales them
    gated = make(KondoDG, env, gate_rate=0.25).learn(16 * n_envs)
    gated.set_logger(configure(None, []))
    gated.train()
    for name in ("gate_mean", "kept_fraction"):
        assert gated.logger.name_to_value[f"train/{name}"] == 0.25


def test_distribution_checks_stay_off_where_they_were_off() -> None:
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        make().learn(16)
        assert not torch.distributions.Distribution._validate_args
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_error_that_a_bad_rollout_led_to_is_blamed_on_the_rollout() -> None:
    class Strict(PolicyGradient):
        def _weight(self, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
            if not batch.advantages.isfinite().all():
                raise RuntimeError("advantages")
            return super()._weight(log_prob, batch)

    model = make(Strict, Poisoned(gym.make("Pendulum-v1"), "reward", math.nan, at=20))
    with pytest.raises(ValueError, match="NaN or inf reward"):
        model.learn(32)


@pytest.mark.parametrize("scaling", ["off", "scale", "standardize"])
def test_the_advantages_of_the_last_update_are_scaled(scaling: str) -> None:
    scales: dict[str, Any] = {"off": torch.clone, "scale": objectives.scale_by_rms}
    scale = scales.get(scaling, objectives.standardize)
    model = make(advantage_scaling=scaling).learn(16)
    assert model.last_update is not None
    torch.testing.assert_close(model.last_update[0], scale(flat_rollout(model.rollout_buffer).advantages))


def test_the_gradient_norm_is_logged_before_it_is_clipped() -> None:
    norms = []
    for limit in (1e-3, 1e9):
        model = make(PolicyGradient, max_grad_norm=limit, learning_rate=0.0).learn(16)
        model.set_logger(configure(None, []))
        model.train()
        norms.append(model.logger.name_to_value["train/gradient_norm"])
    assert norms[1] > 1e-2
    assert norms[0] == pytest.approx(norms[1])


def test_what_is_recorded_keeps_no_graph() -> None:
    """Which would hold the activations of every gradient step until the update's end."""
    model = make(KondoDG, "Pendulum-v1", clip_range=0.2, batch_size=8).learn(16)
    model.set_logger(configure(None, []))
    model.train()
    assert not any(value.requires_grad for values in model._metrics.values() for value in values)


def test_a_look_that_fails_leaves_no_trace_in_the_log_either() -> None:
    model = make().learn(16)
    metrics = model._metrics

    def fail(log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
        raise RuntimeError("no weight")

    model._weight = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no weight"):
        _ = model.last_update
    assert model._metrics is metrics


def test_a_policy_may_take_the_place_of_the_one_before() -> None:
    model = make(PolicyGradient, max_grad_norm=1e-3).learn(16)
    model.policy = make(PolicyGradient, seed=1).policy
    before = parameters(model)
    model.learn(16, reset_num_timesteps=False)
    assert not identical(before, parameters(model))
    gradients = [parameter.grad for parameter in model.policy.parameters() if parameter.grad is not None]
    assert torch.stack([gradient.norm() for gradient in gradients]).norm() < 1.1e-3

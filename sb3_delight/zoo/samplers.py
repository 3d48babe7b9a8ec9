"""What a sweep may choose: search spaces of the package's algorithms for RL-Zoo's ``-optimize``.

A trial stores plain numbers and names. A *converter* turns them into an algorithm's arguments, for ``--trial-id``; a
*sampler* asks Optuna for them and converts, for ``-optimize``.
"""

from collections.abc import Callable
from typing import Any

import optuna
from torch import nn

__all__ = ["CONVERTERS", "SAMPLERS", "convert"]

Sampler = Callable[[optuna.Trial, int, int, dict[str, Any]], dict[str, Any]]

NETWORKS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}  # names and sizes as in RL-Zoo
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def suggest_shared(trial: optuna.Trial, n_actions: int) -> None:
    """The keys of every policy gradient.

    :param n_actions: dimensions of a Box action; 0 for other actions, which have no standard deviation
    """
    trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    trial.suggest_categorical("lr_schedule", ["constant", "linear"])
    trial.suggest_int("n_steps_pow", 4, 8)
    trial.suggest_categorical("batch_size", [64, 256, None])
    trial.suggest_float("one_minus_gamma", 0.001, 0.1, log=True)
    trial.suggest_float("one_minus_gae_lambda", 0.005, 0.2, log=True)
    # The value loss and the policy share one gradient norm, so these two interact.
    trial.suggest_float("vf_coef", 0.1, 1.0, log=True)
    trial.suggest_float("max_grad_norm", 0.2, 5.0, log=True)
    trial.suggest_categorical("net_arch", list(NETWORKS))
    trial.suggest_categorical("activation_fn", list(ACTIVATIONS))
    if n_actions > 0:
        trial.suggest_float("log_std_init", -2.0, 0.0)


def suggest_passes(trial: optuna.Trial, _: int) -> None:
    """One pass over a rollout, or several under PPO's clip: the plain and the delightful weight need it for them."""
    if trial.suggest_categorical("clip", [False, True]):
        trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3])
        trial.suggest_categorical("n_epochs", [5, 10, 20])


def suggest_bonus(trial: optuna.Trial, _: int) -> None:
    """The controls' answer to the entropy bonus that is implicit in a gate; bounds as in RL-Zoo."""
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)


def suggest_baseline(trial: optuna.Trial, n_actions: int) -> None:
    """Narrow Gaussians have negative surprisal, see ``surprisal_baseline``; probabilities never have."""
    if n_actions > 0:
        trial.suggest_categorical("surprisal_baseline", ["none", "mode"])


def suggest_dg(trial: optuna.Trial, n_actions: int) -> None:
    """Successes alone, or temperatures up to nearly the plain policy gradient, in reward x nats.

    The two are no neighbours: a low temperature is the noisiest, where 0 leaves no entropy bonus at all.
    """
    if trial.suggest_categorical("soft_gate", [False, True]):
        trial.suggest_float("temperature", 0.3, 100.0, log=True)
    suggest_baseline(trial, n_actions)


def suggest_kondo_dg(trial: optuna.Trial, n_actions: int) -> None:
    """A rate or a price, with a hard or a soft gate."""
    if trial.suggest_categorical("gate", ["rate", "price"]) == "rate":
        # Of the smallest rollout, 16 steps of one environment, two rows.
        trial.suggest_float("gate_rate", 0.07, 0.9, log=True)
    else:
        trial.suggest_float("price", 0.0, 2.0)
    if trial.suggest_categorical("soft_gate", [False, True]):
        trial.suggest_float("temperature", 0.1, 30.0, log=True)
    trial.suggest_categorical("critic_rate", [0.1, 0.25, 0.5, 1.0])
    suggest_baseline(trial, n_actions)


def suggest_iwpg(trial: optuna.Trial, _: int) -> None:
    """The ratio is 1 in the first pass over a rollout, so its bound matters with several only."""
    trial.suggest_categorical("n_epochs", [1, 2, 4])
    trial.suggest_categorical("ratio_clip", [1.0, 2.0, 5.0])


def convert(params: dict[str, Any]) -> dict[str, Any]:
    """A trial's parameters as arguments of its algorithm, readable in a saved ``config.yml``.

    What depends on a choice is complete: a configuration's other keys of the gate would be kept.
    """
    arguments: dict[str, Any] = {"n_epochs": 1, "clip_range": None, "surprisal_baseline": "none", **params}
    arguments.pop("clip", None)
    arguments["gamma"] = 1 - arguments.pop("one_minus_gamma")
    arguments["gae_lambda"] = 1 - arguments.pop("one_minus_gae_lambda")
    arguments["n_steps"] = 2 ** arguments.pop("n_steps_pow")
    if arguments.pop("lr_schedule") == "linear":
        arguments["learning_rate"] = f"lin_{arguments['learning_rate']}"
    # Which of these there are; a configuration's must not stand in for the others.
    if arguments.pop("soft_gate", True) is False:
        arguments["temperature"] = 0.0
    if arguments.pop("gate", None):
        arguments = {"gate_rate": None, "price": None, **arguments}
    layers = NETWORKS[arguments.pop("net_arch")]
    policy_kwargs: dict[str, Any] = {
        "net_arch": {"pi": list(layers), "vf": list(layers)},
        "activation_fn": ACTIVATIONS[arguments.pop("activation_fn")],
    }
    if "log_std_init" in arguments:
        policy_kwargs["log_std_init"] = arguments.pop("log_std_init")
    return {**arguments, "policy_kwargs": policy_kwargs}


def sampler(*suggest_own: Callable[[optuna.Trial, int], None]) -> Sampler:
    """The shared search space and a method's own, as the function that RL-Zoo calls."""

    def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
        from sb3_delight.zoo.manager import ZooManager

        suggest_shared(trial, n_actions)
        for suggest in suggest_own:
            suggest(trial, n_actions)
        arguments = convert(trial.params)
        for name in ("gamma", "gae_lambda", "n_steps"):  # shown next to what was sampled
            trial.set_user_attr(name, arguments[name])
        # RL-Zoo parses "lin_x" before it samples, so ask it to parse what was sampled too.
        parsed: dict[str, Any] = ZooManager._preprocess_schedules(arguments)
        return parsed

    return sample


SAMPLERS: dict[str, Sampler] = {
    "pg": sampler(suggest_passes, suggest_bonus),
    "dg": sampler(suggest_passes, suggest_dg),
    "kondo_dg": sampler(suggest_passes, suggest_kondo_dg),
    "iwpg": sampler(suggest_iwpg, suggest_bonus),
}
CONVERTERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = dict.fromkeys(SAMPLERS, convert)

"""Nothing that is not finite may reach a parameter: where to look for it, and what to say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from sb3_delight.buffers import Samples, observation_parts
from sb3_delight.forward import typed_actions, unvalidated_distributions

__all__ = ["NotFiniteError", "check_gradients", "check_observations", "check_policy", "check_rollout", "finite_parts"]


class NotFiniteError(ValueError):
    """NaN or inf: in a rollout, in a gradient, or in what the policy makes of finite observations."""


def _in_rollout(what: str, timestep: int) -> NotFiniteError:
    return NotFiniteError(
        f"NaN or inf {what} in the rollout that ended at timestep {timestep}: no update was made, the "
        "parameters are as before it and can be saved. Find the source with "
        "stable_baselines3.common.vec_env.VecCheckNan; if VecNormalize saw the value, restore its statistics too."
    )


def finite_parts(rollout: Samples) -> tuple[list[str], Tensor]:
    """What a rollout consists of, and which of it is finite, ``[parts]``, on its device."""
    parts = [
        *(("observation", part) for part in observation_parts(rollout.observations)),
        ("log-probability of the policy", rollout.old_log_prob),
        ("value estimate", rollout.old_values),
        ("reward (or last observation of a truncated episode)", rollout.returns),
    ]
    parts = [(name, part) for name, part in parts if part.is_floating_point()]  # images cannot hold a NaN
    return [name for name, _ in parts], torch.stack([torch.isfinite(part).all() for _, part in parts])


def check_rollout(rollout: Samples, timestep: int) -> None:
    """:raises NotFiniteError: if some of it is not finite"""
    names, finite = finite_parts(rollout)
    flags = finite.tolist()
    if not all(flags):
        raise _in_rollout(names[flags.index(False)], timestep)


def check_observations(observations: Any, timestep: int) -> None:
    """:raises NotFiniteError: if an observation of the environments is not finite"""
    if not all(np.isfinite(part).all() for part in observation_parts(observations)):
        raise _in_rollout("observation", timestep)


@torch.no_grad()
def check_policy(policy: ActorCriticPolicy, observations: Any, timestep: int) -> None:
    """:raises NotFiniteError: if what the policy makes of observations, which are finite, is not"""
    batch, _ = policy.obs_to_tensor(observations)
    any_actions = torch.zeros((len(observation_parts(batch)[0]), get_action_dim(policy.action_space)))
    try:
        with unvalidated_distributions():
            values, log_prob, _ = policy.evaluate_actions(batch, typed_actions(policy, any_actions.to(policy.device)))
    except Exception:  # of a policy of another kind: no verdict, and what led here is to be raised
        return
    if not (values.isfinite().all() and log_prob.isfinite().all()):
        raise NotFiniteError(
            f"the policy's output is NaN or inf at timestep {timestep}, though observations are finite: its parameters "
            "have grown out of range. Load an earlier checkpoint, and lower learning_rate or max_grad_norm."
        )


def check_gradients(metrics: Mapping[str, Sequence[float]]) -> None:
    """Look at the ``gradient_norm`` of every gradient step of an update, if it has any.

    :raises NotFiniteError: if one is not finite; it tells the other metrics of that step
    """
    norms = metrics.get("gradient_norm", ())
    step = next((step for step, norm in enumerate(norms) if not math.isfinite(norm)), None)
    if step is not None:
        then = {name: values[step] for name, values in metrics.items() if len(values) == len(norms)}
        raise NotFiniteError(
            f"the gradient is not finite at gradient step {step + 1} of {len(norms)}, so the update was undone and "
            f"the parameters are as before it: {then}. Lower learning_rate or max_grad_norm, or check the scale "
            "of rewards and observations."
        )

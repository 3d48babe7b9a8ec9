"""What an update changes, kept so that a failed one can be undone."""

from collections import defaultdict
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

__all__ = ["Snapshot", "optimized_parameters"]


def optimized_parameters(policy: BasePolicy) -> list[Tensor]:
    """The parameters of the policy's optimiser: for less than a walk over its modules costs."""
    return [parameter for group in policy.optimizer.param_groups for parameter in group["params"]]


class Snapshot:
    """Parameters, buffers and optimiser state of a policy at one moment; nothing is read back from the device.

    :param policy: any policy of stable-baselines3 with an optimiser
    """

    def __init__(self, policy: BasePolicy) -> None:
        self._state: Any = policy.optimizer.state
        self._known = {parameter: dict(values) for parameter, values in self._state.items()}
        state = [value for values in self._known.values() for value in values.values() if isinstance(value, Tensor)]
        alike = defaultdict(list)
        for tensor in (*optimized_parameters(policy), *policy.buffers(), *state):
            alike[tensor.device, tensor.dtype].append(tensor.detach())
        # One copy for all tensors of a kind: many small ones cost more than the bytes do.
        self._saved = [(tensors, torch.cat([tensor.flatten() for tensor in tensors])) for tensors in alike.values()]

    @torch.no_grad()
    def restore(self) -> None:
        """Return to that moment, in place. The optimiser's settings, hence its learning rate, stay as they are now."""
        for tensors, values in self._saved:
            parts = torch.split(values, [tensor.numel() for tensor in tensors])
            for tensor, value in zip(tensors, parts, strict=True):
                tensor.copy_(value.view_as(tensor))
        self._state.clear()
        self._state.update({parameter: dict(values) for parameter, values in self._known.items()})

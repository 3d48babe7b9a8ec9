"""What a row is worth to each method, for the loops in plain torch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sb3_delight import objectives

#: (config, learner's log-probability, advantage, actor's log-probability) -> weight; DG's config has a temperature
Weight = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
WEIGHTS: dict[str, Weight] = {
    "pg": lambda config, log_prob, advantage, behaviour: objectives.pg_weight(log_prob, advantage),
    "dg": lambda config, log_prob, advantage, behaviour: objectives.dg_weight(log_prob, advantage, config.temperature),
    "iw": lambda config, log_prob, advantage, behaviour: objectives.importance_weight(log_prob, advantage, behaviour),
    "ppo": lambda config, log_prob, advantage, behaviour: objectives.ppo_clip_weight(log_prob, advantage, behaviour),
    "scaled_po": lambda config, log_prob, advantage, behaviour: objectives.scaled_weight(log_prob, advantage),
    "asympo": lambda config, log_prob, advantage, behaviour: objectives.asympo_weight(log_prob, advantage),
}
WEIGHTS["kondo"] = WEIGHTS["pg"]  # its rows are chosen before they are weighed

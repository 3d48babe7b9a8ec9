"""Why DG bears more under PPO's clip than the entropy bonus that it holds to first order: from the one to the other, a
step at a time.

    python examples/reproduce/implicit_bonus.py [--figure Hopper-v5] [--seeds 5] [--workers 2] [--plot-only]

DG's gate adds to half the policy gradient, to first order in delight, the gradient of entropy with coefficient
1 / (4 temperature): estimated from the sampled actions, weighed by the advantage squared, and under the clip. Settings
are those of ``control.py`` on MuJoCo, the temperature one at which a whole policy gradient with as large a bonus, .1,
fails there (``--figure bonus_mujoco``).
"""

from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import plotting
import records
import torch
import training
from matplotlib.figure import Figure
from records import Row, Runs
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_delight import DG, objectives
from sb3_delight.buffers import Samples

TEMPERATURE = 5.0
BONUS = 1 / (4 * TEMPERATURE)
CLIP_RANGE = 0.2


def surprisal(model: DG, log_prob: Tensor) -> Tensor:
    """As DG's gate sees it: above that of the likeliest action, and bounded."""
    mode = objectives.gaussian_mode_log_prob(model.policy.log_std)
    return objectives.surprisal(log_prob - mode, model.surprisal_clip)


class SampledBonusDG(DG):
    """Half the policy gradient and the bonus, as if surprisal were a reward: its expectation is entropy's gradient."""

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        return 0.5 + self.bonus(log_prob, batch.advantages)

    def bonus(self, log_prob: Tensor, advantages: Tensor) -> Tensor:
        # A weight is multiplied by the advantage: where that is 0, a row stays without its share.
        return BONUS * torch.where(advantages == 0, 0.0, surprisal(self, log_prob) / advantages)


class UnclippedBonusDG(SampledBonusDG):
    """The clip on the policy gradient alone, as it is in PPO with a bonus: to be made without a ``clip_range``."""

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        clip = objectives.ppo_clip_weight(log_prob, batch.advantages, batch.old_log_prob, CLIP_RANGE)
        return 0.5 * clip + self.bonus(log_prob, batch.advantages)


class LinearDG(DG):
    """DG to first order in delight."""

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        return 0.5 + BONUS * batch.advantages * surprisal(self, log_prob)


class BoundedDG(LinearDG):
    """The same, within the bounds of DG's weight."""

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        return super()._weight(log_prob, batch).clamp(0, 1)


@dataclass(frozen=True)
class Config:
    env: str = "HalfCheetah-v5"
    method: str = "dg"
    temperature: float = TEMPERATURE
    updates: int = 300_000  # environment steps
    evaluations: int = 10
    n_envs: int = 8
    normalize_env: bool = True


#: method -> what it is, its arguments, and its name, colour and line in the figure; from each to the next is one step
METHODS: dict[str, tuple[type[DG], dict[str, Any], tuple[str, Any, str]]] = {
    "half_pg": (DG, {"temperature": float("inf")}, ("half the policy gradient", plotting.COLOURS["half_pg"], "--")),
    "bonus": (
        DG,
        {"temperature": float("inf"), "ent_coef": BONUS},
        ("the same, entropy bonus .05", plotting.COLOURS["pg"], "-"),
    ),
    "sampled": (
        UnclippedBonusDG,
        {"clip_range": None},
        ("the bonus from sampled actions", plotting.COLOURS["ppo"], "-"),
    ),
    "clipped": (SampledBonusDG, {}, ("and under the clip", plotting.COLOURS["pmpo"], "-")),
    "linear": (LinearDG, {}, ("and weighed by advantage²", plotting.COLOURS["iw"], "-")),
    "bounded": (BoundedDG, {}, ("and the weight kept between 0 and 1", plotting.COLOURS["kondo"], "-")),
    "dg": (DG, {}, ("DG, temperature 5", plotting.COLOURS["dg"], "-")),
}
ENVS = ("HalfCheetah-v5", "Hopper-v5")
SWEEP = {env: [Config(env, method) for method in METHODS] for env in ENVS}


def make_model(config: Config, env: VecEnv, seed: int) -> DG:
    cls, own, _ = METHODS[config.method]
    settings: dict[str, Any] = {
        "learning_rate": 3e-4,
        "n_steps": 256,
        "batch_size": 64,
        "n_epochs": 10,
        "clip_range": CLIP_RANGE,
        "policy_kwargs": {"log_std_init": -1.0},
        "surprisal_baseline": "mode",
        "temperature": config.temperature,
    }
    return cls("MlpPolicy", env, seed=seed, device="cpu", **(settings | own))


def run(config: Config, seeds: list[int]) -> list[Row]:
    return training.run(make_model, config, seeds, evaluations=config.evaluations, measure=deviation)


def deviation(model: DG) -> Row:
    """Of the policy, mean over dimensions; it begins at .37."""
    return {"std": model.policy.log_std.exp().mean().item()}


def draw(runs: Runs) -> Figure:
    """The policy's standard deviation, and return, over steps. Prints both, late in training."""
    figure, panels = plotting.panels(2, width=5.0, height=4.2)
    for config in runs.configs:
        name, colour, line = METHODS[config.method][2]
        for axes, metric in zip(panels, ("std", "deterministic"), strict=True):
            plotting.draw(axes, runs, config, metric, name, color=colour, linestyle=line)
        late = [records.in_words(runs.late(config, metric)) for metric in ("std", "deterministic")]
        print(f"    {name:40} deviation {late[0]:32} return {late[1]}")
    panels[0].set(yscale="log", ylabel="standard deviation of the policy")
    panels[1].set(ylabel="return, deterministic actions")
    for axes in panels:
        axes.set(xlabel="environment steps")
    seeds = records.extent([len(runs.seeds(config)) for config in runs.configs])
    figure.suptitle(f"{runs.configs[0].env}, temperature {TEMPERATURE:g}, {seeds} seeds: mean and 95 % interval")
    plotting.legend_below(figure, panels[0], 3)
    return figure


EXPERIMENT = harness.Experiment(
    name="implicit_bonus",
    sweep=SWEEP,
    run=run,
    figures=dict.fromkeys(SWEEP, draw),
    metrics=(*training.METRICS, "std", *training.PACKAGES),
    seeds=5,
    seeds_per_job=1,
    smoke={"updates": 2048, "evaluations": 1},
    summary={"std": np.mean, "deterministic": np.mean},
    first_seed=dict.fromkeys(SWEEP, 10),  # of the runs in control.py by which results are judged
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

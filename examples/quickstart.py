"""Train DG on HalfCheetah-v5 in one to two minutes on a CPU, and see what it learned.

    python examples/quickstart.py [--env HalfCheetah-v5] [--timesteps 300000] [--seed 0] [--output runs/quickstart]

Writes a TensorBoard log, checkpoints, the trained model with its observation statistics, and a learning curve (PNG),
all into a folder of its own: runs/quickstart, the next time runs/quickstart_2.
Stop it at any moment with Ctrl-C: what was trained so far is saved and evaluated all the same.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_delight import DG
from sb3_delight.arguments import count

N_ENVS = 8
# The gate on top of PPO's clip, with stable-baselines3's settings for that: examples/reproduce/control.py --figure clip
SETTINGS: dict[str, Any] = {
    "n_steps": 256,
    "batch_size": 64,
    "n_epochs": 10,
    "clip_range": 0.2,
    "learning_rate": 3e-4,
    "temperature": 10.0,
}
# A policy of less noise, whose densities would be above 1, hence their surprisal negative, without a baseline.
CONTINUOUS: dict[str, Any] = {"policy_kwargs": {"log_std_init": -1.0}, "surprisal_baseline": "mode"}


class EpisodeReturns(BaseCallback):
    """Remember the return of every training episode and the step at which it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.steps.append(self.num_timesteps)
                self.returns.append(info["episode"]["r"])
        return True


def evaluate(env_id: str, model: DG, statistics: VecNormalize, episodes: int = 10) -> float:
    """Mean return of deterministic actions, in raw reward, on episodes that training never saw."""
    env = VecNormalize(make_vec_env(env_id, n_envs=1, seed=1000), training=False, norm_reward=False)
    env.obs_rms = statistics.obs_rms
    mean, _ = evaluate_policy(model, env, n_eval_episodes=episodes)
    env.close()
    return float(np.mean(mean))


def random_return(env_id: str, episodes: int = 10) -> float:
    """Mean return of uniformly random actions."""
    env = make_vec_env(env_id, n_envs=1, seed=1000)
    env.action_space.seed(1000)
    returns: list[float] = []
    env.reset()
    while len(returns) < episodes:
        _, _, _, infos = env.step(np.array([env.action_space.sample()]))
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    env.close()
    return float(np.mean(returns))


def draw_learning_curve(path: Path, title: str, episodes: EpisodeReturns, references: dict[str, float]) -> None:
    """Return of every training episode and its running mean, against environment steps."""
    steps, returns = np.array(episodes.steps), np.array(episodes.returns)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, returns, ".", markersize=3, alpha=0.4, label="training episode")
    if len(returns):
        edges = np.linspace(0, steps[-1] + 1, 41)
        bins = np.digitize(steps, edges)
        used = np.unique(bins)
        means = [returns[bins == each].mean() for each in used]
        axes.plot([steps[bins == each].mean() for each in used], means, linewidth=2, label="mean")
    for (name, value), style in zip(references.items(), ("-", "--", ":"), strict=True):
        axes.axhline(value, color="black", linewidth=1, linestyle=style, label=f"{name}: {value:.0f}")
    axes.set(xlabel="environment steps", ylabel="return", title=title, xlim=(0, None))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def unused(folder: Path) -> Path:
    """The folder, or the first of ``folder_2``, ``folder_3``, ... that holds nothing."""
    names = itertools.chain([folder], (folder.with_name(f"{folder.name}_{i}") for i in itertools.count(2)))
    return next(each for each in names if not (each.exists() and any(each.iterdir())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5", help="any Gymnasium id whose observations are a Box")
    parser.add_argument("--timesteps", type=count, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="numbered if it holds a run already"
    )
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed must be 0 or more, got {arguments.seed}")
    torch.set_num_threads(1)  # small networks: more threads make it several times slower
    try:
        env = VecNormalize(make_vec_env(arguments.env, N_ENVS, seed=arguments.seed))
    except (gym.error.Error, ValueError) as error:
        parser.error(f"--env {arguments.env}: {error}")
    try:
        output = unused(arguments.output)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output {arguments.output}: {error}")

    settings = SETTINGS | (CONTINUOUS if isinstance(env.action_space, spaces.Box) else {})
    model = DG("MlpPolicy", env, seed=arguments.seed, device="cpu", tensorboard_log=str(output), **settings)
    print("Evaluating random actions and the untrained policy ...")
    random, untrained = random_return(arguments.env), evaluate(arguments.env, model, env)

    episodes = EpisodeReturns()
    checkpoints = CheckpointCallback(50_000 // N_ENVS, str(output / "checkpoints"), save_vecnormalize=True)
    start = time.perf_counter()
    try:
        model.learn(arguments.timesteps, callback=[episodes, checkpoints], progress_bar=True)
    except KeyboardInterrupt:
        if not model.num_timesteps:
            sys.exit("Stopped before the first step: there is nothing to save.")
        print(f"Stopped after {model.num_timesteps} steps.")
    seconds = time.perf_counter() - start
    print("Evaluating the trained policy ...")

    model.save(output / "model")
    env.save(str(output / "vecnormalize.pkl"))
    statistics = VecNormalize.load(str(output / "vecnormalize.pkl"), make_vec_env(arguments.env, 1))
    trained = evaluate(arguments.env, DG.load(output / "model", device="cpu"), statistics)

    references = {"trained": trained, "untrained": untrained, "random": random}
    curve = output / "learning_curve.png"
    draw_learning_curve(curve, f"DG on {arguments.env}, seed {arguments.seed}", episodes, references)
    result = {"env": arguments.env, "timesteps": model.num_timesteps, "seed": arguments.seed, **references}
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"Model {output / 'model.zip'}, curve {curve}, TensorBoard: tensorboard --logdir {output}")
    print(
        f"DG on {arguments.env}, {model.num_timesteps} steps in {seconds:.0f} s: evaluated return {trained:.0f} "
        f"(untrained policy {untrained:.0f}, random actions {random:.0f})"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # in an evaluation
        sys.exit(130)

"""Your own objective in ten lines: a method is the weight it gives each row.

python examples/custom_objective.py [--timesteps 40000]

The weight below is the *asymmetric* one that DG's gate suggests at first sight: mute failures by how surprising they
were, leave successes alone. Everything else - rollouts, critic, scaling, logs, saving - comes with the loop.
"""

import argparse

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_delight import PolicyGradient, objectives
from sb3_delight.arguments import count


class MutedFailures(PolicyGradient):
    """1 for successes, DG's gate for failures."""

    def _weight(self, log_prob, batch):  # type: ignore
        gate = objectives.dg_weight(log_prob, batch.advantages, temperature=1.0)
        weight = torch.where(batch.advantages > 0, 1.0, gate)
        self.record("muted", (1 - weight).mean())  # logged as train/muted
        return weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=count, default=40_000)
    timesteps = parser.parse_args().timesteps
    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    model = MutedFailures("MlpPolicy", env, learning_rate=3e-3, advantage_scaling="scale", seed=0, device="cpu")
    model.learn(timesteps, progress_bar=True)
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1000), n_eval_episodes=10)
    print(f"MutedFailures on CartPole-v1, {timesteps} steps: return {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main()

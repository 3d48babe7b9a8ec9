"""Two actors, in processes of their own, collect while the learner learns.

python examples/distributed.py [--timesteps 60000]        needs: pip install -c constraints.txt -e ".[ray]"
"""

import argparse

import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_delight import DG
from sb3_delight.arguments import count
from sb3_delight.ray_actors import RayActors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=count, default=60_000)
    timesteps = parser.parse_args().timesteps
    torch.set_num_threads(1)
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    actors = RayActors(2)  # RayActors(64, address="auto") on a cluster
    model = DG("MlpPolicy", env, learning_rate=2e-3, actors=actors, seed=0, device="cpu")
    model.learn(timesteps, progress_bar=True)
    mean, std = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1000), n_eval_episodes=10)
    print(f"DG on CartPole-v1 with two actors, {timesteps} steps: return {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main()

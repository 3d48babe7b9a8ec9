"""MinAtar's ids, its network, and what both refuse."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils import env_checker
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_delight import DG, KondoDG
from sb3_delight.actors import LocalActors
from sb3_delight.envs import minatar
from sb3_delight.envs.minatar import MinAtarCNN

POLICY = {"features_extractor_class": MinAtarCNN, "net_arch": []}


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")  # ours is the wrapper
@pytest.mark.parametrize("name", ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"])
def test_every_game_is_a_sound_environment(name: str) -> None:
    """Gymnasium's passive checker watches, and any warning fails the test."""
    env = gym.make(f"MinAtar/{name}-v1")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(50):
        assert env.observation_space.contains(observation)
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not truncated
        if terminated:
            observation, _ = env.reset()
    assert gym.make(f"MinAtar/{name}-v0").action_space == spaces.Discrete(6)
    check_env(gym.make(f"MinAtar/{name}-v1"), warn=False)  # it takes ten by ten cells for an image
    env_checker.check_env(gym.make(f"MinAtar/{name}-v1", render_mode="rgb_array"), skip_render_check=True)


def test_pictures_can_be_filmed() -> None:
    env = gym.make("MinAtar/Breakout-v1", render_mode="rgb_array")
    env.reset(seed=0)
    frame: Any = env.render()
    assert (frame.shape, frame.dtype) == ((160, 160, 3), np.uint8)
    assert frame.max() > 200
    assert env.metadata["render_fps"] == 10


def test_a_seeded_reset_repeats_an_episode_whatever_went_before() -> None:
    env = gym.make("MinAtar/Breakout-v1", sticky_action_prob=0.9)

    def episode(first_action: int) -> list[np.ndarray]:
        env.reset(seed=0)
        env.step(first_action)
        observations = [env.reset(seed=1)[0]]
        for _ in range(6):
            observations.append(env.step(1)[0])
        return observations

    np.testing.assert_array_equal(episode(first_action=0), episode(first_action=2))


def test_every_game_is_registered_with_the_package() -> None:
    """In a process of its own, which has imported nothing but ``sb3_delight``."""
    code = "import gymnasium, sb3_delight; print(*sorted(name for name in gymnasium.registry if 'MinAtar' in name))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    games = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    assert names == [f"MinAtar/{game}-v{version}" for game in games for version in (0, 1)]


def test_the_network_has_the_size_of_the_paper_and_reads_channels_last() -> None:
    network = MinAtarCNN(spaces.Box(0, 1, (10, 10, 4)))
    observations = torch.rand(7, 10, 10, 4) < 0.3
    assert network(observations).shape == (7, 128)
    assert sum(p.numel() for p in network.parameters()) == (4 * 9 + 1) * 16 + (16 * 8 * 8 + 1) * 128
    # A brick in one channel at one place moves only the filters of its neighbourhood.
    filters = network.network[0]
    blank = torch.zeros(1, 10, 10, 4)
    brick = blank.clone()
    brick[0, 0, 9, 3] = 1
    moved = (filters(brick.permute(0, 3, 1, 2)) - filters(blank.permute(0, 3, 1, 2))).abs().amax(dim=(0, 1)).nonzero()
    assert moved.tolist() == [[0, 7]]


def test_actors_make_the_games_again() -> None:
    env = gym.make("MinAtar/Asterix-v1", sticky_action_prob=0.0)
    model = DG("MlpPolicy", env, n_steps=8, policy_kwargs=POLICY, device="cpu", actors=LocalActors(1))
    assert model.learn(32).num_timesteps == 32


def test_the_network_learns_to_move_through_the_algorithms() -> None:
    env = make_vec_env("MinAtar/Breakout-v1", 4, seed=0)
    for model in (
        DG("MlpPolicy", env, n_steps=8, policy_kwargs=POLICY, device="cpu"),
        KondoDG("MlpPolicy", env, n_steps=8, gate_rate=0.3, critic_rate=0.3, policy_kwargs=POLICY, device="cpu"),
    ):
        filters = model.policy.features_extractor.network[0].weight  # type: ignore[union-attr, index]
        before = filters.detach().clone()
        model.learn(32)
        assert not torch.equal(before, filters)


@pytest.mark.parametrize(
    ("shape", "arguments", "name"),
    [
        ((400,), {}, "observation_space"),
        ((2, 10, 4), {}, "observation_space"),
        ((10, 10, 4), {"features_dim": 0}, "features_dim"),
        ((10, 10, 4), {"filters": 1.5}, "filters"),
    ],
)
def test_bad_arguments_are_named(shape: tuple[int, ...], arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        MinAtarCNN(spaces.Box(0, 1, shape), **arguments)


def test_a_game_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"game must be one of .*breakout"):
        minatar.make("pong")


@pytest.mark.parametrize(
    ("name", "value"),
    [("sticky_action_prob", 2), ("sticky_action_prob", "a"), ("difficulty_ramping", "no"), ("render_mode", "x")],
)
def test_bad_arguments_of_a_game_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        minatar.make("breakout", **{name: value})


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(ImportError, match=r"\.\[minatar\]"):
        gym.make("MinAtar/Breakout-v1")

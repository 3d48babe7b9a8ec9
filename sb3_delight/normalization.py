"""VecNormalize across processes: what an actor saw is shipped as increments, merged, and sent back with the weights."""

from typing import TypeAlias

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

__all__ = ["Statistics", "load_statistics", "merge_statistics", "statistics_of", "take_increments", "track_increments"]

#: mean, variance (both of the observation's shape; scalars for the return) and count of each normalised stream
Statistics: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray, float]]


class TrackedMeanStd(RunningMeanStd):
    """A ``RunningMeanStd`` that also keeps, apart, what it was updated with since the last look."""

    def __init__(self, start: RunningMeanStd) -> None:
        super().__init__(shape=start.mean.shape)
        self.mean, self.var, self.count = start.mean, start.var, start.count
        self.increment = RunningMeanStd(epsilon=0.0, shape=start.mean.shape)

    def update_from_moments(self, batch_mean: np.ndarray, batch_var: np.ndarray, batch_count: float) -> None:
        super().update_from_moments(batch_mean, batch_var, batch_count)
        self.increment.update_from_moments(batch_mean, batch_var, batch_count)


def _streams(env: VecNormalize) -> dict[str, RunningMeanStd]:
    observation = env.obs_rms if env.norm_obs else {}
    if isinstance(observation, dict):
        streams = {f"observation {key}": stream for key, stream in observation.items()}
    else:
        streams = {"observation": observation}
    return {**streams, "return": env.ret_rms}


def statistics_of(env: VecNormalize | None) -> Statistics:
    """Copies of an environment's running statistics; none of none."""
    if env is None:
        return {}
    return {name: (each.mean.copy(), each.var.copy(), each.count) for name, each in _streams(env).items()}


def load_statistics(env: VecNormalize | None, statistics: Statistics) -> None:
    """Replace an environment's running statistics."""
    for name, stream in {} if env is None else _streams(env).items():
        mean, var, count = statistics[name]
        stream.mean, stream.var, stream.count = mean.copy(), var.copy(), count


def merge_statistics(env: VecNormalize | None, increments: Statistics) -> None:
    """Add what an actor saw, by the parallel-variance formula: the order and the number of actors do not matter."""
    for name, stream in {} if env is None else _streams(env).items():
        mean, var, count = increments[name]
        if count:
            stream.update_from_moments(mean, var, count)


def track_increments(env: VecNormalize | None) -> None:
    """From now on keep apart what the environment sees, for :func:`take_increments`."""
    if env is None:
        return
    if env.norm_obs:
        observation = env.obs_rms
        if isinstance(observation, dict):
            env.obs_rms = {key: TrackedMeanStd(stream) for key, stream in observation.items()}
        else:
            env.obs_rms = TrackedMeanStd(observation)
    env.ret_rms = TrackedMeanStd(env.ret_rms)


def take_increments(env: VecNormalize | None) -> Statistics:
    """What the environment saw since the last call; see :func:`track_increments`."""
    increments: Statistics = {}
    for name, stream in {} if env is None else _streams(env).items():
        assert isinstance(stream, TrackedMeanStd)
        seen = stream.increment
        increments[name] = (seen.mean, seen.var, seen.count)
        stream.increment = RunningMeanStd(epsilon=0.0, shape=stream.mean.shape)
    return increments

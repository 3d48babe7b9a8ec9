"""Figures of delight reach TensorBoard, the last update's too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_delight import DG, KondoDG, PolicyGradient, callbacks
from sb3_delight.buffers import flat_rollout
from sb3_delight.callbacks import DelightFigures, draw_delight


@pytest.mark.parametrize("cls", [PolicyGradient, DG, KondoDG])
def test_figures_are_written_with_the_scalars(cls: type[PolicyGradient], tmp_path: Path) -> None:
    model = cls("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, device="cpu", tensorboard_log=str(tmp_path))
    model.learn(16 * 5, callback=DelightFigures(every=2, max_points=5), log_interval=1)
    events = EventAccumulator(str(tmp_path / f"{cls.__name__}_1"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("delight/figure")] == [16 * 2, 16 * 4, 16 * 5]
    assert events.Scalars("train/delight_mean")[-1].step == 16 * 5


def test_no_figure_mixes_two_rollouts(tmp_path: Path) -> None:
    """Stopped amid a rollout, the buffer holds part of it and part of the last."""
    model = DG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, device="cpu", tensorboard_log=str(tmp_path))
    figures = DelightFigures(every=100)
    stop = StopTrainingOnMaxEpisodes(10**9)
    stop._on_step = lambda: stop.num_timesteps < 24  # type: ignore[method-assign]
    model.learn(64, callback=[figures, stop], log_interval=1)
    assert model.num_timesteps == 24
    events = EventAccumulator(str(tmp_path / "DG_1"), size_guidance={"images": 0})
    events.Reload()
    assert "delight/figure" not in events.Tags()["images"]


def test_every_run_counts_its_own_updates(tmp_path: Path) -> None:
    model = DG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, device="cpu", tensorboard_log=str(tmp_path))
    figures = DelightFigures(every=2)
    for run in ("DG_1", "DG_2"):
        model.learn(16 * 3, callback=figures, log_interval=1)
        events = EventAccumulator(str(tmp_path / run), size_guidance={"images": 0})
        events.Reload()
        assert [event.step for event in events.Images("delight/figure")] == [16 * 2, 16 * 3]


def test_other_logs_get_no_row_of_it(tmp_path: Path) -> None:
    model = DG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(16 * 3, callback=DelightFigures(every=1))
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 2  # names, and the last update


def test_last_update_weighs_dropped_rows_zero() -> None:
    model = KondoDG("MlpPolicy", "CartPole-v1", n_steps=20, gate_rate=0.25, seed=0, device="cpu")
    assert model.last_update is None
    model.learn(20)
    assert model.last_update is not None
    advantages, surprisal, weight = model.last_update
    assert advantages.shape == surprisal.shape == weight.shape == (20,)
    assert sorted(weight.tolist()) == [0.0] * 15 + [1.0] * 5
    delight = surprisal * advantages
    torch.testing.assert_close(surprisal, -flat_rollout(model.rollout_buffer).old_log_prob)
    assert delight[weight == 1].min() >= delight[weight == 0].max()
    dg = DG("MlpPolicy", "CartPole-v1", n_steps=20, temperature=2.0, seed=0, device="cpu").learn(20)
    assert dg.last_update is not None
    advantages, surprisal, weight = dg.last_update
    torch.testing.assert_close(weight, torch.sigmoid(surprisal * advantages / 2.0))


def test_nearly_equal_weights_have_a_histogram() -> None:
    model = DG("MlpPolicy", "CartPole-v1", n_steps=64, temperature=1e6, seed=0, device="cpu")
    model.learn(128, callback=DelightFigures(1))
    assert model.last_update is not None
    assert 0 < model.last_update[2].std() < 1e-5


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(ValueError, match="must be one of sb3_delight, got 'A2C'"):
        A2C("MlpPolicy", "CartPole-v1", device="cpu").learn(10, callback=DelightFigures())


@pytest.mark.parametrize("name", ["every", "max_points"])
def test_bad_arguments_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        DelightFigures(**{name: 0})


def test_a_figure_shows_what_it_says() -> None:
    advantages, surprisal, gate = torch.randn(9), torch.rand(9), torch.rand(9)
    left, middle, right = draw_delight(advantages, surprisal, gate, max_points=5).axes[:3]
    for axes, values in ((left, advantages * surprisal), (middle, gate)):
        first, last = (axes.patches[place] for place in (0, -1))
        edges = [first.get_x(), last.get_x() + last.get_width()]  # type: ignore[attr-defined]
        assert edges == pytest.approx([values.min().item(), values.max().item()], rel=1e-3)
    points: Any = right.collections[0]
    np.testing.assert_allclose(points.get_offsets(), np.stack([surprisal[::2], advantages[::2]], 1))
    np.testing.assert_allclose(points.get_array(), gate[::2])


def test_a_figure_has_no_more_points_than_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked_for: list[int] = []

    def noted(*update: Any) -> Any:
        asked_for.append(update[3])
        return draw_delight(*update)

    monkeypatch.setattr(callbacks, "draw_delight", noted)
    model = DG("MlpPolicy", "CartPole-v1", n_steps=16, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    model.learn(32, callback=DelightFigures(every=1, max_points=7))
    assert asked_for == [7, 7]

"""Figures of what the gate sees, for TensorBoard."""

from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure as LoggedFigure
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch import Tensor

from sb3_delight.arguments import is_whole, require
from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["DelightFigures"]


class DelightFigures(BaseCallback):
    """Draw, every so many updates, the histograms of delight and of the gate, and advantage against surprisal.

    Written as ``delight/figure`` to the TensorBoard log, if there is one, at the step of the update; the last at the
    end of ``learn()``.
    Use: ``DG("MlpPolicy", env, tensorboard_log="runs").learn(callback=DelightFigures())``.

    :param every: updates between two figures
    :param max_points: points drawn at most in the scatter, evenly spaced over the rollout
    :raises ValueError: if an argument is not a whole number, 1 or more
    """

    model: PolicyGradient

    def __init__(self, every: int = 50, max_points: int = 2000) -> None:
        super().__init__()
        for name, value in (("every", every), ("max_points", max_points)):
            require(is_whole(value), name, value, "a whole number, 1 or more")
        self.every = every
        self.max_points = max_points

    def _init_callback(self) -> None:
        self._rollouts = 0
        name = type(self.model).__name__
        require(isinstance(self.model, PolicyGradient), "DelightFigures' algorithm", name, "one of sb3_delight")

    def _on_rollout_start(self) -> None:
        if self._rollouts and self._rollouts % self.every == 0:
            self._draw()
        self._rollouts += 1

    def _on_training_end(self) -> None:
        if self.model.rollout_buffer.full:  # else training was stopped amid a rollout, which overwrites the last one
            self._draw()

    def _on_step(self) -> bool:
        return True

    def _draw(self) -> None:
        logs = [each for each in self.logger.output_formats if isinstance(each, TensorBoardOutputFormat)]
        update = self.model.last_update if logs else None  # computed at each look
        if update is None:
            return
        for log in logs:
            figure = LoggedFigure(draw_delight(*update, self.max_points), close=True)
            log.write({"delight/figure": figure}, {"delight/figure": ()}, self.num_timesteps)


def draw_delight(advantages: Tensor, surprisal: Tensor, gate: Tensor, max_points: int = 2000) -> Figure:
    """Histograms of delight and gate, and advantage against surprisal coloured by gate; tensors are ``[B]``."""
    # Doubles: of nearly equal weights single precision has fewer than there are bins.
    advantages, surprisal, gate = (tensor.cpu().double() for tensor in (advantages, surprisal, gate))
    delight = advantages * surprisal
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.hist(delight.numpy(), bins=50, color="tab:blue")
    left.set(xlabel="delight (advantage x surprisal)", ylabel="rows", yscale="log")
    middle.hist(gate.numpy(), bins=50, color="tab:orange")
    middle.set(xlabel="weight (0: dropped)", ylabel="rows")
    step = max(1, -(-len(gate) // max_points))
    points = right.scatter(
        surprisal[::step].numpy(), advantages[::step].numpy(), c=gate[::step].numpy(), s=6, cmap="viridis"
    )
    right.axhline(0, color="grey", linewidth=0.5)
    right.set(xlabel="surprisal (nats)", ylabel="advantage (scaled)")
    figure.colorbar(points, ax=right, label="weight")
    return figure

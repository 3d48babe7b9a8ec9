"""What the papers prove on one softmax bandit, measured; and two bandits on which delight loses.

Figure ``propositions``: Proposition 1 of Delightful Policy Gradient (2603.14608), Propositions 1 and 2 of Does This
Gradient Spark Joy? (2603.20526), and the overlap bound of the distributed sequel (2603.20521, version 2).
Figure ``gambling``: Proposition 3 of the Kondo paper. An arm is worse by a gap but noisy: its lucky draws are rare
successes, which is what delight is looking for, so DG and Kondo are *expected* to lose to the policy gradient there.
Figure ``bug``: the actor pulls the worse arm in 30 % of the draws, whatever its policy, and *both* arms are noisy. A
surprising action that is reliably worse is muted. Where noise hides that it is worse, its lucky draws are surprising
successes: worse by d, with noise s and surprisal l, it is pushed on average by w A = -d/2 + (d^2 + s^2) l / (4
temperature) to first order, hence *up* where l (d^2 + s^2) > 2 d temperature. Advantages are scaled to unit size, as
the algorithms do, so that their default temperature of 10 can be compared.

    python examples/reproduce/bandit.py [--figure gambling] [--plot-only]
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial

import harness
import numpy as np
import plotting
import torch
from matplotlib.figure import Figure
from records import Row, Runs
from torch import Tensor

from sb3_delight import objectives


@dataclasses.dataclass(frozen=True)
class Config:
    statement: str = "variance"  # variance | ranking | overlap | drift | gambling
    method: str = "dg"  # pg | scaled_po | dg | dg_10: at that temperature | kondo: the hard gate at price 0
    arms: int = 100
    right: float = 0.5  # probability of the right arm; in gambling, of the better arm at the start
    noise_over_gap: float = 1.0  # gambling: standard deviation of the worse arm, in units of the gap (1) between means
    bug: float = 0.0  # chance that the worse arm is pulled whatever the policy; both arms are noisy then
    samples: int = 100  # gambling: per update
    learning_rate: float = 0.3  # gambling: plain gradient descent on two logits
    updates: int = 0


CHANCES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
NOISES = (0.0, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0)
METHODS = ("pg", "dg", "kondo")
NAMES = {
    "pg": plotting.solid("pg"),
    "scaled_po": plotting.solid("scaled_po"),
    "dg_10": ("DG, temperature 10", plotting.COLOURS["dg"], "-"),
    "dg": ("DG, temperature 1", plotting.COLOURS["dg"], "--"),
    "kondo": ("Kondo, price 0", plotting.COLOURS["kondo"], "-"),
}
LEARNING_NOISES = (0.2, 1.0, 2.0, 5.0)


def noisy_arms(methods: Iterable[str], bug: float = 0.0) -> list["Config"]:
    """The drift at 90 % on the better arm, and learning from one half, for every noise."""
    drifts = [Config("drift", m, arms=2, right=0.9, noise_over_gap=n, bug=bug) for m in methods for n in NOISES]
    learning = [("gambling", m, n) for n in LEARNING_NOISES for m in methods]
    return drifts + [Config(s, m, arms=2, noise_over_gap=n, bug=bug, updates=300) for s, m, n in learning]


SWEEP = {
    "propositions": [Config(arms=k, right=p, method=m) for m in ("dg", "kondo") for k in (10, 100) for p in CHANCES]
    + [Config("ranking", arms=10, right=p) for p in CHANCES]
    + [Config("overlap", arms=10, right=p) for p in (0.1, 0.5, 0.9, 0.99)],
    "gambling": noisy_arms(METHODS),
    "bug": noisy_arms(NAMES, bug=0.3),
}


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pg": objectives.pg_weight,
    "scaled_po": objectives.scaled_weight,
    "dg": partial(objectives.dg_weight, temperature=1.0),
    "dg_10": partial(objectives.dg_weight, temperature=10.0),
    "kondo": partial(objectives.dg_weight, temperature=0.0),
}


def policy_of(config: Config) -> Tensor:
    """The right arm is arm 0; the others share the rest. ``[arms]``, doubles"""
    wrong = (1 - config.right) / (config.arms - 1)
    return torch.tensor([config.right] + [wrong] * (config.arms - 1), dtype=torch.double)


def gradient(method: str, policy: Tensor, counts: Tensor) -> Tensor:
    """The gradient, by the logits, of batches in which arm k was drawn ``counts[:, k]`` times. ``[batches, arms]``"""
    logits = policy.log().expand(counts.shape).clone().requires_grad_()
    log_prob = logits.log_softmax(-1)
    advantage = torch.full_like(log_prob, -0.5)
    advantage[:, 0] = 0.5
    weight = WEIGHTS[method](log_prob, advantage)
    loss = objectives.policy_gradient_loss(log_prob, advantage, weight * counts, batch_size=1)
    (step,) = torch.autograd.grad(-loss, logits)
    return step


def variance(config: Config, generator: np.random.Generator) -> Row:
    """Measured: ratio of 1 - cosine to the policy gradient's, for batches so large that the noise is small."""
    policy = policy_of(config)
    counts = torch.tensor(generator.multinomial(1_000_000, policy.numpy(), size=200), dtype=torch.double)
    truth = -policy
    truth[0] += 1  # the gradient of the expected reward, up to its length
    across = []
    for method in (config.method, "pg"):
        steps = gradient(method, policy, counts)
        along = steps @ truth / truth.norm()
        # 1 - cosine of a small angle is half its tangent squared: no cancellation
        across.append(float(((steps.square().sum(1) - along**2).clamp(min=0) / along**2).mean() / 2))
    wrong = float(policy[1])
    low, high = (1 / (1 + math.exp(sign * 0.5 * math.log(1 / p))) for sign, p in ((1, wrong), (-1, config.right)))
    theory = (low / (0.5 * high + 0.5 * low)) ** 2 if config.method == "dg" else 0.0
    return {"measured": across[0] / across[1], "theory": theory}


def ranking(config: Config, generator: np.random.Generator) -> Row:
    """Measured: least alpha at which alpha * advantage + (1 - alpha) * surprisal ranks right above wrong (b = 0)."""
    policy = policy_of(config)
    surprisal = objectives.surprisal(policy.log())
    reward = torch.zeros_like(policy)
    reward[0] = 1.0
    alphas = torch.linspace(0, 1, 100_001, dtype=torch.double)
    right, wrong = (alphas * reward[k] + (1 - alphas) * surprisal[k] for k in (0, 1))
    odds = max(0.0, math.log(config.right * (config.arms - 1) / (1 - config.right)))
    return {"measured": float(alphas[right > wrong][0]), "theory": odds / (1 + odds)}


def overlap(config: Config, generator: np.random.Generator) -> Row:
    """A stale actor's failures, weighed by DG. Measured: their second moment across the gradient relative to PG's.
    Theory: its bound, the learner's probability of the actor's failures on average. Policies are random (U)."""
    logits = torch.tensor(generator.normal(size=(2, config.arms - 1)))
    learner, actor = logits.softmax(-1)
    policy = torch.cat([torch.tensor([config.right], dtype=torch.double), (1 - config.right) * learner])
    weight = objectives.dg_weight(policy.log()[1:], torch.tensor(-0.5, dtype=torch.double))
    scores = torch.eye(config.arms, dtype=torch.double)[1:] - policy  # of each failure, by the logits
    truth = -policy
    truth[0] += 1
    across = scores - (scores @ truth)[:, None] * truth / truth.square().sum()
    chance = actor * across.square().sum(1)
    return {"measured": float((chance * weight**2).sum() / chance.sum()), "theory": float(actor @ policy[1:])}


def gamble(config: Config, better: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
    """Estimates of the gradient by the better arm's logit, ``[batches]``; ``better``: its chance, ``[batches, 1]``."""
    acted = (1 - config.bug) * better  # the actor's chance of the better arm
    worse = uniform > acted
    size = config.noise_over_gap
    noisy = torch.ones_like(worse) if config.bug else worse
    reward = torch.where(noisy, size * noise, 0.0) - worse.to(noise.dtype)  # the gap is 1
    advantage = reward + (1 - acted)  # less the expected reward
    if config.bug:
        advantage = advantage / (acted * (1 - acted) + size**2).sqrt()  # its root mean square
    log_prob = torch.where(worse, 1 - better, better).log()
    weight = WEIGHTS[config.method](log_prob, advantage)
    score = torch.where(worse, -better, 1 - better)  # of the better arm's logit
    return (weight * advantage * score).mean(dim=1)


def drift(config: Config, generator: np.random.Generator) -> Row:
    uniform, noise = torch.tensor(generator.random((1, 400_000))), torch.tensor(generator.normal(size=(1, 400_000)))
    return {"measured": float(gamble(config, torch.full((1, 1), config.right).double(), uniform, noise))}


def run(config: Config, seeds: list[int]) -> list[Row]:
    if config.statement == "gambling":
        return run_gambling(config, seeds)
    statement = {"variance": variance, "ranking": ranking, "overlap": overlap, "drift": drift}[config.statement]
    return [{"seed": seed, "step": 0, **statement(config, np.random.default_rng(seed))} for seed in seeds]


def run_gambling(config: Config, seeds: list[int]) -> list[Row]:
    uniforms = harness.draws(seeds, 0, lambda g, n: torch.rand(n, config.samples, generator=g))
    noises = harness.draws(seeds, 1, lambda g, n: torch.randn(n, config.samples, generator=g))
    logit = torch.zeros(len(seeds), 1)  # of the better arm; the other arm's is its negative
    rows: list[Row] = []
    for update in range(config.updates + 1):
        better = (2 * logit).sigmoid().clamp(1e-6, 1 - 1e-6)
        if update % max(1, config.updates // 20) == 0:
            chances = zip(seeds, better[:, 0].tolist(), strict=True)
            rows += [{"seed": seed, "step": update, "measured": chance} for seed, chance in chances]
        logit += config.learning_rate * gamble(config, better, next(uniforms), next(noises)).unsqueeze(1)
    return rows


def means(runs: Runs, configs: list[Config]) -> tuple[list[float], list[float], list[float]]:
    """Probability of the right arm, measured and theory, of the configs that were run."""
    done = [c for c in configs if runs.last(c, "theory").size]
    measured, theory = ([float(runs.last(c, name).mean()) for c in done] for name in ("measured", "theory"))
    return [c.right for c in done], measured, theory


def propositions(runs: Runs) -> Figure:
    figure, (left, middle, right) = plotting.panels(3, width=4.6)
    for arms, marker, colour in ((10, "o", plotting.COLOURS["dg"]), (100, "s", plotting.COLOURS["pg"])):
        chosen = [c for c in runs.configs if (c.statement, c.method, c.arms) == ("variance", "dg", arms)]
        x, measured, theory = means(runs, chosen)
        left.plot(x, theory, color=colour, label=f"theory, {arms} arms")
        left.plot(x, measured, marker, color=colour, label=f"measured, {arms} arms")
    left.set(yscale="log", title="DG, Proposition 1", ylabel="1 - cosine, relative to PG's")
    x, measured, theory = means(runs, [c for c in runs.configs if c.statement == "ranking"])
    middle.plot(x, theory, color="black", label="theory")
    middle.plot(x, measured, "o", color=plotting.COLOURS["kondo"], label="measured")
    middle.set(title="Kondo, Proposition 2: additive scores", ylabel="least weight of the advantage")
    for axes in (left, middle):
        axes.set(xlabel="probability of the right arm")
    for config in runs.configs:
        if config.statement == "overlap":
            bound, moment = runs.last(config, "theory"), runs.last(config, "measured")
            right.plot(bound, moment, ".", label=f"right arm {config.right:g}")
    right.plot([3e-4, 0.3], [3e-4, 0.3], color="black", linewidth=1, label="bound")
    right.set(xscale="log", yscale="log", title="Stale actor: overlap bound")
    right.set(xlabel="learner's probability of the actor's failures", ylabel="noise of failures, relative to PG's")
    for axes in (left, middle, right):
        plotting.legend(axes)
    return figure


def learning_with_noise(runs: Runs) -> Figure:
    figure, (left, *others) = plotting.panels(1 + len(LEARNING_NOISES), width=3.4)
    for method, (name, colour, line) in NAMES.items():
        mine = [c for c in runs.configs if c.method == method]
        drifts = [c for c in mine if c.statement == "drift"]
        values = [runs.last(c, "measured") for c in drifts]
        plotting.points(left, [c.noise_over_gap for c in drifts], values, name, color=colour, linestyle=line)
        for axes, noise in zip(others, LEARNING_NOISES, strict=True):
            for config in mine:
                if config.statement == "gambling" and config.noise_over_gap == noise:
                    plotting.draw(axes, runs, config, "measured", name, color=colour, linestyle=line)
    left.axhline(0, color="black", linewidth=0.8)
    whose = "of both arms" if runs.configs[0].bug else "of the worse arm"
    left.set(xlabel=f"noise {whose} / gap", ylabel="drift to the better arm", title="at 90 % on the better arm")
    for axes, noise in zip(others, LEARNING_NOISES, strict=True):
        axes.set(xlabel="update", ylim=(-0.02, 1.02), title=f"noise / gap {noise:g}")
    others[0].set(ylabel="probability of the better arm")
    plotting.legend_below(figure, left, len(NAMES))
    return figure


EXPERIMENT = harness.Experiment(
    name="bandit",
    sweep=SWEEP,
    run=run,
    figures={"propositions": propositions, "gambling": learning_with_noise, "bug": learning_with_noise},
    metrics=("measured", "theory"),
    seeds=30,
    seeds_per_job=30,
    smoke={"samples": 10},
    summary={"measured": np.mean, "theory": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

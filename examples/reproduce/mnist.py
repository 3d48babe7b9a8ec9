"""The MNIST bandit: an image is the context, a digit the action, reward 1 if right; labels are never shown.

Sources: Delightful Policy Gradient (2603.14608) section 3, its distributed sequel (2603.20521) for the stale actor,
Does This Gradient Spark Joy? (2603.20526) for the Kondo gate. "U" marks what they leave open.

    python examples/reproduce/mnist.py --figure learning [--seeds 30] [--data digits|mnist] [--plot-only]

The data are scikit-learn's bundled 8x8 digits, or with ``--data mnist`` MNIST, fetched from OpenML; rows say which.
All seeds of a config train as one stack of networks: parameters ``[seeds, in, out]``, batches ``[seeds, batch, ...]``.
"""

import argparse
import dataclasses
import functools
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import harness
import numpy as np
import plotting
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter
from records import Array, Row, Runs
from torch import Tensor
from weights import WEIGHTS

from sb3_delight import objectives
from sb3_delight.envs.digits import load_digits_split


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"
    method: str = "pg"  # pg | dg | kondo | iw | ppo | cross_entropy (the oracle that sees labels)
    temperature: float = 1.0  # of the gate; 1 in every experiment of the papers; inf: half the policy gradient
    baseline: str = "expected"  # sum_a pi(a)^2, the reward to expect if confidence were right; or zero, half
    samples: int = 1  # actions per image; 0: their exact expectation, the floor that more samples approach
    entropy_bonus: float = 0.0  # control: DG is half PG plus an implicit entropy bonus, to first order
    gate_rate: float = 0.03  # kondo: share of the batch that is paid for (Kondo's headline); 0: price 0 instead
    priority: str = "delight"  # kondo: what the share is chosen by; others are the ablation's
    delay: int = 0  # actions are drawn by the parameters of so many updates ago (DDG: up to 1000)
    delight_noise: float = 0.0  # Gaussian noise on delight, in units of the batch's root mean square (form: U)
    alignment: bool = False  # also measure angles to the oracle gradients, along this run
    width: int = 50  # two hidden layers of 100 or 50 (U)
    learning_rate: float = 1e-3  # Adam
    batch_size: int = 100  # images, drawn with replacement
    updates: int = 10_000
    target: float = 0.05  # test error whose first update is reported


DG, KONDO = Config(method="dg"), Config(method="kondo")
HALF_PG = Config(method="dg", temperature=math.inf)
DELAYS = (0, 10, 30, 100, 300, 1000)
BASELINES = ("zero", "half", "expected")
NOISES = (0.0, 0.25, 0.5, 1.0, 2.0)
SAMPLES = (1, 3, 10, 30, 100, 0)
BONUSES = (0.01, 0.03, 0.1, 0.3, 1.0)
PRIORITIES = tuple(objectives.PRIORITIES)
STALE = ("pg", "iw", "ppo", "kondo", "dg")


def stale(config: Config, method: str, delay: int) -> Config:
    return dataclasses.replace(config, method=harness.run_that_stands_for(method, delay), delay=delay)


SWEEP = {
    "learning": [Config(method="cross_entropy"), Config(), HALF_PG, DG, KONDO],
    "entropy": [
        *harness.vary(Config(), "entropy_bonus", (0.0, *BONUSES)),
        *harness.vary(DG, "temperature", (0.3, 1.0, 3.0)),
        *harness.vary(DG, "entropy_bonus", (0.1, 0.3)),
    ],
    "baselines": [*harness.vary(Config(), "baseline", BASELINES), *harness.vary(DG, "baseline", BASELINES)],
    "priority": harness.vary(KONDO, "priority", PRIORITIES),
    "rates": [Config(), *harness.vary(KONDO, "gate_rate", (0.01, 0.03, 0.1, 0.3, 1.0, 0.0))],
    "staleness": [stale(Config(), method, delay) for method in STALE for delay in DELAYS],
    "noise": [*harness.vary(DG, "delight_noise", NOISES), *harness.vary(KONDO, "delight_noise", NOISES)],
    "samples": [*harness.vary(Config(), "samples", SAMPLES), *harness.vary(DG, "samples", SAMPLES)],
    "alignment": [dataclasses.replace(DG, alignment=True)],
}


# --- data ---------------------------------------------------------------------------------------------------------


@functools.cache
def load(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:return: train images ``[N, pixels]`` in [0, 1] and labels ``[N]``, test images and labels"""
    if name == "mnist":
        from sklearn.datasets import fetch_openml

        data = fetch_openml("mnist_784", version=1, as_frame=False)
        images, labels = torch.tensor(data.data).float() / 255, torch.tensor(data.target.astype(int))
        return images[:60_000], labels[:60_000], images[60_000:], labels[60_000:]  # the usual split
    return load_digits_split()


# --- a stack of networks, one per seed ----------------------------------------------------------------------------


def initial_parameters(seeds: list[int], sizes: list[int]) -> list[Tensor]:
    """Weights ``[seeds, in, out]`` and biases ``[seeds, 1, out]``, each drawn as ``torch.nn.Linear`` draws them."""
    parameters = []
    generators = [torch.Generator().manual_seed(1000 * seed + 999) for seed in seeds]
    for fan_in, fan_out in itertools.pairwise(sizes):
        for shape in ((fan_in, fan_out), (1, fan_out)):
            values = torch.stack([torch.rand(*shape, generator=generator) for generator in generators])
            parameters.append(((2 * values - 1) / math.sqrt(fan_in)).requires_grad_())
    return parameters


def log_policy(parameters: list[Tensor], images: Tensor) -> Tensor:
    """``[seeds, batch, pixels] -> [seeds, batch, 10]``"""
    hidden = images
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        hidden = torch.baddbmm(bias, hidden, weight).relu()
    return torch.baddbmm(parameters[-1], hidden, parameters[-2]).log_softmax(-1)


class Batch(NamedTuple):
    """What the actor hands to the learner."""

    image: Tensor  # its number, [seeds, batch]
    action: Tensor  # [seeds, batch, samples]
    behaviour_log_prob: Tensor  # of the actor, [seeds, batch, samples]


@torch.no_grad()
def act(parameters: list[Tensor], images: Tensor, index: Tensor, uniform: Tensor) -> Batch:
    """:param uniform: what actions are drawn from (inverse of the cumulative sum), ``[seeds, batch, samples]``"""
    log_probs = log_policy(parameters, images[index])
    action = torch.searchsorted(log_probs.exp().cumsum(-1), uniform).clamp(max=log_probs.shape[-1] - 1)
    return Batch(index, action, log_probs.gather(-1, action))


# --- one update ---------------------------------------------------------------------------------------------------


def loss_of(config: Config, log_probs: Tensor, labels: Tensor, batch: Batch, noise: Tensor, batch_size: int) -> Tensor:
    """Summed over seeds: their networks are separate, so each gets the gradient of its own loss.

    :param log_probs: of the learner, ``[seeds, rows, 10]``
    :param labels: ``[seeds, rows]``
    :param noise: standard normal, ``[seeds, rows]``
    :param batch_size: rows of a whole batch, those that a gate dropped included
    """
    seen = labels.unsqueeze(-1)
    if config.method == "cross_entropy":
        return -log_probs.gather(-1, seen).sum() / batch_size
    if config.samples:
        action, chance = batch.action, torch.full_like(batch.behaviour_log_prob, 1 / config.samples)
        log_prob = log_probs.gather(-1, action)
    else:
        action, chance = torch.arange(log_probs.shape[-1]).expand_as(log_probs), log_probs.detach().exp()
        log_prob = log_probs
    advantage = (action == seen).float() - baseline(config, log_probs)
    weights = WEIGHTS | {"dg": functools.partial(blurred_gate, noise=noise.unsqueeze(-1))}
    weight = weights[config.method](config, log_prob, advantage, batch.behaviour_log_prob)
    loss = objectives.policy_gradient_loss(log_prob, advantage, weight * chance, batch_size=batch_size)
    if config.entropy_bonus:
        loss = loss + config.entropy_bonus * (log_probs.exp() * log_probs).sum() / batch_size
    return loss


@torch.no_grad()
def baseline(config: Config, log_probs: Tensor) -> Tensor:
    """:return: ``[seeds, rows, 1]``"""
    if config.baseline == "expected":
        return log_probs.exp().square().sum(-1, keepdim=True)
    return torch.full_like(log_probs[..., :1], {"zero": 0.0, "half": 0.5}[config.baseline])


def blurred_gate(config: Config, log_prob: Tensor, advantage: Tensor, behaviour: Tensor, noise: Tensor) -> Tensor:
    delight = objectives.delight(log_prob, advantage)
    return objectives.gate(blurred(config, delight, noise), config.temperature)


def blurred(config: Config, delight: Tensor, noise: Tensor) -> Tensor:
    """Delight known only roughly."""
    if not config.delight_noise:
        return delight
    scale = delight.square().flatten(1).mean(dim=1).sqrt().view(-1, *[1] * (delight.ndim - 1))
    return delight + config.delight_noise * scale * noise


@torch.no_grad()
def kondo_rows(
    config: Config, parameters: list[Tensor], images: Tensor, labels: Tensor, batch: Batch, noise: Tensor
) -> Tensor:
    """Rows whose backward pass is paid for, by the learner's current policy.

    :return: row numbers ``[seeds, kept]``; with price 0 seeds keep different numbers of rows, and -1 fills up
    """
    log_probs = log_policy(parameters, images[batch.image])
    log_prob = log_probs.gather(-1, batch.action).squeeze(-1)
    advantage = (batch.action.squeeze(-1) == labels).float() - baseline(config, log_probs).squeeze(-1)
    delight = blurred(config, objectives.delight(log_prob, advantage), noise)
    score = noise  # as random as any: one stream of noise serves the random arm and the blurred delight
    if config.priority == "delight":
        score = delight
    elif config.priority != "random":
        score = objectives.priority(config.priority, log_prob, advantage)  # additive: alpha = 1/2 (U)
    if config.gate_rate:
        return torch.vmap(lambda s: objectives.top_rows(s, config.gate_rate))(score)
    keep = objectives.gate(score, temperature=0.0).bool()
    rows = torch.where(keep, torch.arange(keep.shape[1]), -1).sort(descending=True).values
    return rows[:, : max(1, int(keep.sum(dim=1).max()))]


def update_loss(
    config: Config, parameters: list[Tensor], images: Tensor, labels: Tensor, batch: Batch, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """:return: the loss, and how many rows of each seed had a backward pass ``[seeds]``"""
    rows_in_batch = batch.image.shape[1]
    counted = torch.full((len(batch.image),), rows_in_batch)
    seen = labels[batch.image]
    if config.method == "kondo":
        rows = kondo_rows(config, parameters, images, seen, batch, noise)
        counted = (rows >= 0).sum(dim=1)
        chosen = rows.clamp(min=0)
        seed = torch.arange(len(rows)).unsqueeze(1)
        batch = Batch(batch.image[seed, chosen], batch.action[seed, chosen], batch.behaviour_log_prob[seed, chosen])
        seen, noise = seen[seed, chosen], noise[seed, chosen]
        log_probs = log_policy(parameters, images[batch.image])
        # Seeds that keep fewer rows than others are padded with rows that are cut off from the gradient.
        log_probs = torch.where((rows >= 0).unsqueeze(-1), log_probs, log_probs.detach())
    else:
        log_probs = log_policy(parameters, images[batch.image])
    return loss_of(config, log_probs, seen, batch, noise, rows_in_batch), counted


def run(config: Config, seeds: list[int]) -> list[Row]:
    images, labels, test_images, test_labels = load(config.data)
    classes = int(labels.max()) + 1
    rows_in_batch, samples = config.batch_size, max(config.samples, 1)
    indices = harness.draws(seeds, 0, lambda g, n: torch.randint(len(images), (n, rows_in_batch), generator=g))
    uniforms = harness.draws(seeds, 1, lambda g, n: torch.rand(n, rows_in_batch, samples, generator=g))
    noises = harness.draws(seeds, 2, lambda g, n: torch.randn(n, rows_in_batch, generator=g))
    parameters = initial_parameters(seeds, [images.shape[1], config.width, config.width, classes])
    optimiser = torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)

    # The stale actor, without a thousand copies of the network: today's parameters act on the batch that the learner
    # gets `delay` updates later. The first batches are all acted on by the initial parameters.
    ahead: deque[Batch] = deque()
    checkpoints = harness.checkpoints(config.updates)
    reached = torch.full((len(seeds),), math.inf)
    backward = torch.zeros(len(seeds))
    rows: list[Row] = []
    for update in range(config.updates + 1):
        measured = update in checkpoints
        if measured or update % 50 == 0:
            error, missing = evaluate(parameters, test_images, test_labels)
            reached = torch.where((error <= config.target) & reached.isinf(), float(update), reached)
        if measured:
            now = {"test_error": error, "missing": missing, "reached": reached, "backward": backward / max(1, update)}
            if config.alignment:
                now |= alignment(config, parameters, images, labels, next(indices), next(uniforms), next(noises))
            rows += [
                {"seed": seed, "step": update, "data": config.data}
                | {name: float(value[i]) for name, value in now.items()}
                for i, seed in enumerate(seeds)
            ]
        if update == config.updates:
            break
        while len(ahead) <= config.delay:
            ahead.append(act(parameters, images, next(indices), next(uniforms)))
        loss, counted = update_loss(config, parameters, images, labels, ahead.popleft(), next(noises))
        backward += counted / rows_in_batch
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return rows


@torch.no_grad()
def evaluate(parameters: list[Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Error of the likeliest digit on the test set, and how many digits are never predicted, both ``[seeds]``."""
    seeds = len(parameters[0])
    predicted = log_policy(parameters, images.expand(seeds, -1, -1)).argmax(-1)
    error = (predicted != labels).float().mean(dim=1)
    missing = [10 - len(row.unique()) for row in predicted]
    return error, torch.tensor(missing, dtype=torch.float)


def alignment(
    config: Config,
    parameters: list[Tensor],
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    uniform: Tensor,
    noise: Tensor,
) -> dict[str, Tensor]:
    """Cosines ``[seeds]`` of sampled gradients, all from the same batch, to two exact ones over the training set."""

    def gradient(method: Config, batch: Batch) -> Tensor:
        loss, _ = update_loss(method, parameters, images, labels, batch, noise)
        return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, parameters)], dim=1)

    batch = act(parameters, images, index, uniform)
    some = torch.arange(len(images))[:: max(1, len(images) // 2000)].expand(len(index), -1)
    everything = act(parameters, images, some, torch.zeros(*some.shape, 1))  # oracles average over actions themselves
    oracles = {
        "pg": gradient(dataclasses.replace(config, method="pg", samples=0), everything),
        "ce": gradient(dataclasses.replace(config, method="cross_entropy"), everything),
    }
    return {
        f"cos_{method}_{oracle}": torch.cosine_similarity(
            gradient(dataclasses.replace(config, method=method), batch), exact
        )
        for method in ("pg", "dg", "kondo")
        for oracle, exact in oracles.items()
    } | {"cos_oracles": torch.cosine_similarity(oracles["pg"], oracles["ce"])}


# --- figures --------------------------------------------------------------------------------------------------------


def name(config: Config) -> str:
    """In ``plotting``."""
    return "half_pg" if math.isinf(config.temperature) else config.method


def words(config: Config) -> str:
    gate = f"{100 * config.gate_rate:g} % of rows" if config.gate_rate else "price 0"
    return plotting.NAMES[name(config)] + f", {gate}" * (config.method == "kondo")


def colour(config: Config) -> str:
    return plotting.COLOURS[name(config)]


def error_axes(figure: Figure, data: str, legends: bool = True) -> Figure:
    for axes in figure.axes:
        axes.set(xscale="log", yscale="log", xlabel="update", ylabel=f"test error, {data}", xlim=(10, None))
        axes.axhline(0.05, color="black", linewidth=0.6, linestyle=":")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1])
        if legends:
            plotting.legend(axes)
    return figure


def curves(runs: Runs, groups: list[tuple[str, list[Config], list[str], list[Any]]]) -> Figure:
    """Test error over updates, one panel per group of (title, configs, labels, colours)."""
    figure, axes = plotting.panels(len(groups), sharey=all(configs for _, configs, _, _ in groups))
    for panel, (title, configs, labels, colours) in zip(axes, groups, strict=True):
        for config, label, tint in zip(configs, labels, colours, strict=True):
            plotting.draw(panel, runs, config, "test_error", label, color=tint)
        panel.set_title(title)
    return error_axes(figure, runs.configs[0].data)


def learning(runs: Runs) -> Figure:
    figure = curves(runs, [("", runs.configs, [words(c) for c in runs.configs], [colour(c) for c in runs.configs])])
    figure.axes[0].set_title(f"{runs.configs[0].data}: images as a bandit's contexts")
    return figure


def entropy(runs: Runs) -> Figure:
    groups = {
        "PG with an entropy bonus": [c for c in runs.configs if c.method == "pg"],
        "DG by temperature": [c for c in runs.configs if c.method == "dg" and not c.entropy_bonus],
        "DG with an entropy bonus": [c for c in runs.configs if c.method == "dg" and c.temperature == 1],
    }
    name = {title: "temperature" if "temperature" in title else "entropy_bonus" for title in groups}
    return curves(
        runs,
        [
            (t, g, [f"{name[t]} {getattr(c, name[t]):g}".replace("entropy_", "") for c in g], plotting.shades(len(g)))
            for t, g in groups.items()
        ],
    )


def by_method(runs: Runs, titles: dict[str, str], label: Callable[[Config], str]) -> Figure:
    """A panel a method, a curve a config."""
    groups = {title: [c for c in runs.configs if c.method == method] for method, title in titles.items()}
    return curves(runs, [(title, g, [label(c) for c in g], plotting.shades(len(g))) for title, g in groups.items()])


def baselines(runs: Runs) -> Figure:
    return by_method(runs, {"pg": "policy gradient", "dg": "DG"}, lambda c: f"baseline {c.baseline}")


def priority(runs: Runs) -> Figure:
    tints = dict(zip(PRIORITIES, ("#c44e52", "#4c72b0", "#64b5cd", "#55a868", "#8172b3", "#333333"), strict=True))
    title = f"{words(runs.configs[0])} chosen by"
    labels = [config.priority.replace("abs_advantage", "|advantage|") for config in runs.configs]
    return curves(runs, [(title, runs.configs, labels, [tints[config.priority] for config in runs.configs])])


def rates(runs: Runs) -> Figure:
    """Learning curves, and the speed-up over PG to the target error when a backward pass costs c forward passes."""
    order = plotting.shades(len(runs.configs))
    figure = curves(runs, [("", runs.configs, [words(c) for c in runs.configs], order), ("", [], [], [])])
    costs = figure.axes[1]
    costs.clear()
    c = np.linspace(0, 10, 21)
    done = [config for config in runs.configs if runs.seeds(config)]
    seeds = set.intersection(*(runs.seeds(config) for config in done))  # one reference for all: medians move with seeds
    reached, spent = (
        {config: np.array([runs.last_by_seed(config, metric)[seed] for seed in seeds]) for config in done}
        for metric in ("reached", "backward")
    )
    reference = reached.get(runs.configs[0], np.zeros(0))
    for config, tint in zip(runs.configs[1:], order[1:], strict=True):
        if arrived(reference) and config in reached and arrived(reached[config]):
            fewer_updates = np.median(reference) / np.median(reached[config])
            costs.plot(c, fewer_updates * (1 + c) / (1 + spent[config].mean() * c), color=tint, label=words(config))
    costs.plot(c, 1.34 * (1 + c) / (1 + 0.03 * c), ":", color="black", label="reported for MNIST, 3 %")
    costs.set(xlabel="cost of a backward pass, in forward passes", ylabel="speed-up over PG to 5 % error")
    plotting.legend(costs)
    return figure


def arrived(reached: Array) -> bool:
    """Half the runs or more met the target: otherwise the median is infinite, and a speed-up has no value."""
    return bool(reached.size) and bool(np.isfinite(np.median(reached)))


def staleness(runs: Runs) -> Figure:
    figure, (left, right) = plotting.panels(2)
    for method in STALE:
        chosen = [stale(runs.configs[0], method, delay) for delay in DELAYS]
        errors, ages = [runs.last(config, "test_error") for config in chosen], [max(delay, 3) for delay in DELAYS]
        label, tint = words(chosen[-1]), colour(chosen[-1])
        plotting.points(left, ages, errors, label, color=tint)
        plotting.draw(right, runs, chosen[-1], "test_error", label, color=tint)
    right.set_title(f"actor {DELAYS[-1]} updates old")
    error_axes(figure, runs.configs[0].data, legends=False)
    plotting.legend_below(figure, left, 5)
    left.set(
        xlim=(2.5, 1300),
        xlabel="age of the actor (updates)",
        ylabel=f"test error after {runs.configs[0].updates} updates",
    )
    left.set_xticks([3, *[d for d in DELAYS if d]], ["0", *[str(d) for d in DELAYS if d]])
    left.xaxis.set_minor_formatter(NullFormatter())
    return figure


def noise(runs: Runs) -> Figure:
    titles = {"dg": "DG, noise on delight (share of its size)", "kondo": "Kondo 3 %, noise on delight"}
    return by_method(runs, titles, lambda c: f"{c.delight_noise:.0%}")


def samples(runs: Runs) -> Figure:
    titles = {"pg": "policy gradient, actions per image", "dg": "DG, actions per image"}
    return by_method(runs, titles, lambda c: str(c.samples) if c.samples else "exact")


def alignment_figure(runs: Runs) -> Figure:
    figure, axes = plotting.panels(2)
    for panel, oracle, title in zip(axes, ("pg", "ce"), ("policy gradient", "cross-entropy gradient"), strict=True):
        for method in ("pg", "dg", "kondo"):
            plotting.draw(
                panel,
                runs,
                runs.configs[0],
                f"cos_{method}_{oracle}",
                plotting.NAMES[method],
                color=plotting.COLOURS[method],
            )
        panel.set(
            xscale="log", xlabel="update (of DG)", ylabel="cosine of a batch's gradient", title=f"to the exact {title}"
        )
        plotting.legend(panel)
    plotting.draw(axes[1], runs, runs.configs[0], "cos_oracles", "exact policy gradient", color="black", linestyle=":")
    plotting.legend(axes[1])
    return figure


FIGURES = {
    "learning": learning,
    "entropy": entropy,
    "baselines": baselines,
    "priority": priority,
    "rates": rates,
    "staleness": staleness,
    "noise": noise,
    "samples": samples,
    "alignment": alignment_figure,
}
METRICS = ("data", "test_error", "missing", "reached", "backward")
COSINES = tuple(f"cos_{method}_{oracle}" for method in ("pg", "dg", "kondo") for oracle in ("pg", "ce"))
EXPERIMENT = harness.Experiment(
    name="mnist",
    sweep=SWEEP,
    run=run,
    figures=FIGURES,
    metrics=(*METRICS, *COSINES, "cos_oracles"),
    seeds=30,
    seeds_per_job=10,
    smoke={"updates": 20, "width": 16},
    summary={"test_error": np.mean, "reached": np.median, "backward": np.mean},
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits", help="mnist is fetched from OpenML")


if __name__ == "__main__":
    harness.main(EXPERIMENT, options=add_options, override=lambda args: {"data": args.data})

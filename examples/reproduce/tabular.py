"""Tabular softmax policies (Delightful Policy Gradient, arXiv 2603.14608, section 4, figures 5 and 6).

Figure 5: one context, many arms, sampled gradients. Every method's expected gradient points the same way; DG's sampled
one has less noise across it. Figure 6: many contexts, exact gradients. DG's points closer to the gradient of
cross-entropy than the policy gradient does, because it spends less of a step on contexts that are already solved.

    python examples/reproduce/tabular.py [--figure contexts] [--plot-only]

All seeds run as one batch. Logits are ``[seeds, contexts, arms]``; arm 0 is the right one in every context.
"""

import dataclasses

import harness
import numpy as np
import plotting
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from records import Row, Runs
from torch import Tensor
from weights import WEIGHTS

from sb3_delight import objectives


@dataclasses.dataclass(frozen=True)
class Config:
    method: str = "pg"  # pg | dg | cross_entropy
    temperature: float = 1.0  # 1 in every experiment of the papers
    contexts: int = 1
    arms: int = 100  # figure 5
    samples: int = 100  # per context and update, figure 5; 0: exact gradient, the expectation over arms
    baseline: float = 0.5  # figure 5; figure 6 has 0
    logit_scale: float = 0.0  # figure 5 starts uniform, figure 6 from N(0, 1) logits
    step_size: float = 0.1  # every step has this length: the gradient's direction is what is compared
    updates: int = 150  # not reported: each method passes 1 % error


CONTEXTS = Config(contexts=100, arms=10, samples=0, baseline=0.0, logit_scale=1.0, updates=1200)
SWEEP = {
    "arms": [Config("cross_entropy"), Config("pg"), Config("dg")],  # figure 5
    "contexts": [  # figure 6, with the temperatures on both sides of 1/2, where theory says DG starts to win
        dataclasses.replace(CONTEXTS, method=method, temperature=temperature)
        for method, temperature in [("cross_entropy", 1), ("pg", 1), ("dg", 0.25), ("dg", 0.5), ("dg", 1), ("dg", 2)]
    ],
}


def loss_of(config: Config, logits: Tensor, uniform: Tensor) -> Tensor:
    """Summed over seeds; their logits are separate, so each seed gets its own gradient.

    :param logits: ``[seeds, contexts, arms]``
    :param uniform: ``[seeds, contexts, samples]``, what actions are drawn from
    """
    log_policy = logits.log_softmax(-1)
    if config.method == "cross_entropy":
        return -log_policy[..., 0].sum() / config.contexts
    if config.samples:
        cumulative = log_policy.detach().exp().cumsum(-1)
        action = torch.searchsorted(cumulative, uniform).clamp(max=config.arms - 1)
        log_prob, chance = log_policy.gather(-1, action), torch.full_like(uniform, 1 / config.samples)
    else:
        action = torch.arange(config.arms).expand(logits.shape)
        log_prob, chance = log_policy, log_policy.detach().exp()
    advantage = (action == 0).double() - config.baseline
    weight = WEIGHTS[config.method](config, log_prob, advantage, log_prob)
    return objectives.policy_gradient_loss(log_prob, advantage, weight * chance, batch_size=config.contexts)


def run(config: Config, seeds: list[int]) -> list[Row]:
    shape = (config.contexts, config.arms)
    start = next(harness.draws(seeds, 0, lambda g, n: torch.randn(n, *shape, generator=g, dtype=torch.double)))
    samples = max(config.samples, 1)
    uniforms = harness.draws(
        seeds, 1, lambda g, n: torch.rand(n, config.contexts, samples, generator=g, dtype=torch.double)
    )
    logits = (config.logit_scale * start).requires_grad_()
    rows: list[Row] = []
    for update in range(config.updates + 1):
        (gradient,) = torch.autograd.grad(loss_of(config, logits, next(uniforms)), logits)
        if update % max(1, config.updates // 15) == 0 or update == config.updates:
            rows += measure(logits, gradient, seeds, update)
        with torch.no_grad():
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
            logits -= config.step_size * gradient / length[:, None, None]
    return rows


@torch.no_grad()
def measure(logits: Tensor, gradient: Tensor, seeds: list[int], update: int) -> list[Row]:
    """Error, and angle to cross-entropy's exact gradient (with one context the exact policy gradient's, too)."""
    policy = logits.softmax(-1)
    right = F.one_hot(torch.zeros(policy.shape[:2], dtype=torch.long), policy.shape[-1])
    cosine = F.cosine_similarity(gradient.flatten(1), (policy - right).flatten(1), dim=1)
    error = 1 - policy[..., 0].mean(dim=1)
    return [
        {"seed": seed, "step": update, "error": e, "one_minus_cosine": max(1 - c, 0.0)}
        for seed, e, c in zip(seeds, error.tolist(), cosine.tolist(), strict=True)
    ]


def label(config: Config) -> tuple[str, str]:
    """Words and colour."""
    if config.method == "dg":
        shade = {0.25: "#f2c6c7", 0.5: "#e08e90", 1: plotting.COLOURS["dg"], 2: "#7d1f22"}[config.temperature]
        return f"DG, temperature {config.temperature:g}", shade
    return plotting.NAMES[config.method], plotting.COLOURS[config.method]


def both(runs: Runs) -> Figure:
    figure, (left, right) = plotting.panels(2)
    for config in runs.configs:
        words, colour = label(config)
        plotting.draw(left, runs, config, "error", words, color=colour)
        if config.method != "cross_entropy":
            plotting.draw(right, runs, config, "one_minus_cosine", words, color=colour)
    left.set(xlabel="update", ylabel="error, 1 - probability of the right arm", yscale="log")
    right.set(xlabel="update", ylabel="1 - cosine to cross-entropy's gradient")
    plotting.legend(left)
    return figure


def arms(runs: Runs) -> Figure:
    figure = both(runs)
    figure.axes[1].set(yscale="log", ylim=(1e-5, 2))  # below lie batches without a failure, whose angle is exactly 0
    figure.suptitle("one context, 100 arms, 100 samples an update", fontsize=10)
    return figure


def contexts(runs: Runs) -> Figure:
    figure = both(runs)
    figure.suptitle("100 contexts, 10 arms, exact gradients", fontsize=10)
    return figure


EXPERIMENT = harness.Experiment(
    name="tabular",
    sweep=SWEEP,
    run=run,
    figures={"arms": arms, "contexts": contexts},
    metrics=("error", "one_minus_cosine"),
    seeds=100,
    seeds_per_job=100,
    smoke={"updates": 20},
    summary={"error": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

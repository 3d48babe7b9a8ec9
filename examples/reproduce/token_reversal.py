"""Token reversal: read H tokens, answer with the same tokens in reverse order, be told only how many are right.

Sources: Delightful Policy Gradient (2603.14608) section 5; its distributed sequel (2603.20521) for the four frictions;
Does This Gradient Spark Joy? (2603.20526) for the Kondo gate on whole episodes. "U" marks what they leave open.

    python examples/reproduce/token_reversal.py --figure learning [--seeds 10] [--plot-only]

The policy is a small causal transformer. Advantages are one per answer; surprisal, delight and gate are per token.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import plotting
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Row, Runs
from torch import Tensor, nn
from weights import WEIGHTS

from sb3_delight import objectives
from sb3_delight.envs import token_reversal as task


@dataclasses.dataclass(frozen=True)
class Config:
    method: str = "pg"  # pg | dg | kondo (whole episodes) | kondo_token | iw | ppo | pmpo | scaled_po | asympo
    temperature: float = 1.0  # of DG's gate; 1 in every experiment of the papers; inf: half the policy gradient
    entropy_bonus: float = 0.0  # control, see mnist.py
    gate_rate: float = 0.03  # kondo: share of episodes (or tokens) that is paid for
    horizon: int = 10  # H
    symbols: int = 2  # M
    target: str = "reverse"  # copy | flip | reverse | reverse_flip
    reward: str = "bag"  # share of tokens right; sequential: length of the right prefix / H; exact: all or nothing
    delay: int = 0  # friction 1: each row's actor is uniform over the last delay + 1 snapshots
    actor_bug: float = 0.0  # friction 2: chance that an answer is replaced by all zeros
    corruption: float = 0.0  # friction 3: chance that a reward is replaced by a fair coin
    discovery: float = 0.0  # friction 4: chance that an answer is replaced by the right one; goes before the bug
    prompts: int = 10  # per update
    samples: int = 10  # per prompt; the advantage is reward minus their mean
    learning_rate: float = 3e-4  # Adam, one step per batch
    layers: int = 2  # U: 2 layers of 2 heads, or 3 of 4
    heads: int = 2
    width: int = 64
    feedforward: int = 128
    # How weights start is U, and decides how far the methods lie apart (figure `initial`). lecun: normal of variance
    # 1 / inputs, the default of JAX's libraries; gpt2: normal of standard deviation .02; torch: what its layers do.
    initial: str = "lecun"
    updates: int = 700  # DG is reported to be below .001 by about 500


@dataclasses.dataclass(frozen=True)
class WarmConfig(Config):
    """Asynchronous learning by a policy that already succeeds now and then, as in the paper of Scaled PO and ASymPO.

    That paper (2606.03070) trains language models. Here: answers of eight tokens, all or nothing, and old actors.
    """

    horizon: int = 8
    reward: str = "exact"
    delay: int = 8  # U, as are the next two
    learning_rate: float = 1e-3
    warm_start: float = 0.3  # share of sampled answers that are right when learning begins
    updates: int = 300


DG, KONDO = Config(method="dg"), Config(method="kondo")
FRICTIONS: dict[str, Any] = {
    "delay": 30,
    "actor_bug": 0.1,
    "corruption": 0.1,
    "discovery": 0.01,
}  # U: levels are not reported
BONUS = Config(entropy_bonus=0.01)  # the best one of the figure `entropy`
MAIN = [  # under frictions learning takes longer
    dataclasses.replace(arm, updates=2000)
    for arm in (Config(), BONUS, Config(method="pmpo"), Config(method="ppo"), Config(method="scaled_po"), KONDO, DG)
]
FRESH = (Config(), BONUS, Config(method="pmpo"), DG)  # without old actors every ratio is 1, and PPO the policy gradient


def scaled_frictions(config: Config, level: float) -> Config:
    """All four frictions at a multiple of their levels."""
    return dataclasses.replace(config, **{name: type(value)(level * value) for name, value in FRICTIONS.items()})


SWEEP: dict[str, list[Config]] = {
    "learning": [Config(method=method) for method in ("pg", "iw", "ppo", "pmpo", "dg", "kondo", "kondo_token")]
    + [dataclasses.replace(DG, temperature=math.inf)],
    "initial": [
        Config(method=method, initial=initial)
        for initial in ("lecun", "gpt2", "torch")
        for method in ("pg", "dg", "kondo")
    ],
    "entropy": [
        Config(),
        *harness.vary(Config(), "entropy_bonus", (0.01, 0.03, 0.1, 0.3)),
        *harness.vary(DG, "temperature", (0.3, 1.0, 3.0)),
    ],
    "frictions": [scaled_frictions(arm, 1) for arm in MAIN],
    "each_friction": [dataclasses.replace(arm, **{name: value}) for name, value in FRICTIONS.items() for arm in MAIN],
    "friction_levels": [scaled_frictions(arm, level) for level in (0.3, 1, 3) for arm in MAIN],
    "variants": [
        dataclasses.replace(arm, target=target, reward=reward)
        for reward in ("bag", "sequential")
        for target in ("copy", "flip", "reverse", "reverse_flip")
        for arm in FRESH
    ],
    "scaling": [
        *(config for arm in FRESH for config in harness.vary(arm, "horizon", (5, 10, 15, 20))),
        *(config for arm in FRESH for config in harness.vary(arm, "symbols", (2, 4, 8, 16))),
        *(
            scaled_frictions(config, 1)
            for arm in MAIN
            for config in harness.vary(arm, "horizon", (2, 4, 6, 8, 10, 12, 14))
        ),
    ],
    "asynchronous": [
        WarmConfig(method=m, learning_rate=rate)
        for rate in (1e-3, 3e-3)
        for m in ("pg", "iw", "ppo", "scaled_po", "asympo", "dg", "kondo")
    ],
}


# --- task -----------------------------------------------------------------------------------------------------------


def right_answer(config: Config, prompt: Tensor) -> Tensor:
    """``[rows, H] -> [rows, H]``"""
    return task.right_answer(prompt, config.target, config.symbols)


def reward_of(config: Config, answer: Tensor, right: Tensor) -> Tensor:
    """``[rows, H], [rows, H] -> [rows]`` in [0, 1]"""
    return task.reward_of(answer, right, config.reward)


# --- policy ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-norm transformer block. While an answer is written, ``past`` holds earlier keys and values."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width))

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """``[rows, time, width] -> [rows, time, width]``"""
        rows, time, width = x.shape
        by_head = (rows, time, self.heads, width // self.heads)
        query, key, value = (part.view(by_head).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        first = not past
        if past is not None:
            key, value = (key, value) if first else (torch.cat([past[0], key], 2), torch.cat([past[1], value], 2))
            past[:] = [key, value]
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=first)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, time, width))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Causal transformer with learned positions over prompt and answer: position t predicts token t + 1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.horizon = config.horizon
        self.tokens = nn.Embedding(config.symbols, config.width)
        self.positions = nn.Embedding(2 * config.horizon, config.width)
        self.blocks = nn.ModuleList(
            [Block(config.width, config.heads, config.feedforward) for _ in range(config.layers)]
        )
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, config.symbols)
        if config.initial != "torch":
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    lecun = module.weight.shape[1] ** -0.5  # an embedding as if its width were its inputs
                    nn.init.normal_(module.weight, std=lecun if config.initial == "lecun" else 0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, past: list[list[Tensor]] | None = None, start: int = 0) -> Tensor:
        """``[rows, time]`` from position ``start`` ``-> [rows, time, symbols]``, log-probabilities of the next token"""
        x = self.tokens(tokens) + self.positions.weight[start : start + tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, None if past is None else past[i])
        return self.head(self.norm(x)).log_softmax(-1)  # type: ignore[no-any-return]

    def answer_log_probs(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """Of every symbol at every place of the answer, ``[rows, H, symbols]``"""
        return self(torch.cat([prompt, answer[:, :-1]], dim=1))[:, self.horizon - 1 :]  # type: ignore[no-any-return]

    @torch.no_grad()
    def write(self, prompt: Tensor, uniform: Tensor, dictated: Tensor) -> tuple[Tensor, Tensor]:
        """Sample answers token by token.

        :param prompt: ``[rows, H]``
        :param uniform: what tokens are drawn from, ``[rows, H]``
        :param dictated: tokens to write whatever the policy says, or -1, ``[rows, H]``
        :return: answer ``[rows, H]``, and the policy's log-probabilities of all symbols there ``[rows, H, symbols]``
        """
        past: list[list[Tensor]] = [[] for _ in self.blocks]
        tokens, written, log_probs = prompt, [], []
        for place in range(self.horizon):
            start = 0 if place == 0 else self.horizon + place - 1
            log_prob = self(tokens, past, start)[:, -1]
            drawn = torch.searchsorted(log_prob.exp().cumsum(-1), uniform[:, place : place + 1].contiguous())
            drawn = drawn.clamp(max=log_prob.shape[-1] - 1)
            tokens = torch.where(dictated[:, place : place + 1] >= 0, dictated[:, place : place + 1], drawn)
            written.append(tokens)
            log_probs.append(log_prob)
        return torch.cat(written, dim=1), torch.stack(log_probs, dim=1)


# --- actor ----------------------------------------------------------------------------------------------------------


class StaleActors:
    """Answers by snapshots of up to ``delay`` updates ago, without keeping a snapshot.

    A row that update t learns from, and whose actor is d updates old, is written at update t - d by the weights of
    that moment. So batches are prepared ``delay`` updates ahead, and each update writes the rows that are due. First
    batches find nothing older than the initial parameters.

    An actor bug and a rare discovery replace the answer while it is written: the log-probability on record is what the
    snapshot gave the tokens on record (U).
    """

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(1000 * seed)
        rows, horizon = config.prompts * config.samples, config.horizon
        self.slots = config.delay + 1
        self.prompt = torch.zeros(self.slots, rows, horizon, dtype=torch.long)
        self.dictated = torch.zeros(self.slots, rows, horizon, dtype=torch.long)
        self.answer = torch.zeros(self.slots, rows, horizon, dtype=torch.long)
        self.log_probs = torch.zeros(self.slots, rows, horizon, config.symbols)
        self.uniform = torch.zeros(self.slots, rows, horizon)
        self.due = torch.zeros(self.slots, rows, dtype=torch.long)
        self.prepared = 0  # updates whose batch has its prompts, delays and frictions drawn

    def prepare(self, update: int) -> None:
        config, generator, slot = self.config, self.generator, update % self.slots
        rows, horizon = config.prompts * config.samples, config.horizon
        prompts = torch.randint(config.symbols, (config.prompts, horizon), generator=generator)
        prompt = prompts.repeat_interleave(config.samples, dim=0)
        age = torch.randint(config.delay + 1, (rows,), generator=generator)
        bug, discovery = torch.rand(2, rows, 1, generator=generator)
        dictated = torch.where(bug < config.actor_bug, 0, -1).expand(rows, horizon)
        self.prompt[slot] = prompt
        self.dictated[slot] = torch.where(discovery < config.discovery, right_answer(config, prompt), dictated)
        self.uniform[slot] = torch.rand(rows, horizon, generator=generator)
        self.due[slot] = (update - age).clamp(min=0)

    def batch(self, policy: Transformer, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """:return: prompt and answer ``[rows, H]``, the actors' log-probabilities ``[rows, H, symbols]``"""
        while self.prepared <= update + self.config.delay:
            self.prepare(self.prepared)
            self.prepared += 1
        now = self.due == update
        self.answer[now], self.log_probs[now] = policy.write(self.prompt[now], self.uniform[now], self.dictated[now])
        slot = update % self.slots
        return self.prompt[slot], self.answer[slot], self.log_probs[slot]


# --- learner --------------------------------------------------------------------------------------------------------


def group_advantage(config: Config, reward: Tensor) -> Tensor:
    """Reward minus the mean of the prompt's samples, ``[rows] -> [rows, 1]``"""
    groups = reward.view(config.prompts, config.samples)
    return (groups - groups.mean(dim=1, keepdim=True)).view(-1, 1)


def chosen_rows(config: Config, behaviour: Tensor, advantage: Tensor) -> Tensor:
    """Kondo on whole episodes, scored by their mean token delight: rows ``[kept]``. ``behaviour``: ``[rows, H]``"""
    score = objectives.sequence_mean(objectives.delight(behaviour, advantage))
    return objectives.top_rows(score, config.gate_rate)


def loss_of(
    config: Config, log_probs: Tensor, answer: Tensor, behaviour: Tensor, advantage: Tensor, batch_size: int
) -> Tensor:
    """
    :param log_probs: of the learner, ``[rows, H, symbols]``
    :param behaviour: log-probabilities of the actor, of all symbols, ``[rows, H, symbols]``
    :param advantage: ``[rows, 1]``
    :param batch_size: answers in a whole batch, those that a gate dropped included
    """
    taken = answer.unsqueeze(-1)
    log_prob, actor_log_prob = log_probs.gather(-1, taken).squeeze(-1), behaviour.gather(-1, taken).squeeze(-1)
    if config.method == "pmpo":  # whose loss is not a weight alone
        return pmpo_loss(log_prob, log_probs, behaviour, advantage)
    weights = WEIGHTS | {"kondo_token": token_gate}
    weight = weights[config.method](config, log_prob, advantage, actor_log_prob)
    # Terms of a whole batch; ASymPO divides by the tokens itself.
    size = batch_size * (1 if config.method == "asympo" else config.horizon)
    loss = objectives.policy_gradient_loss(log_prob, advantage, weight, batch_size=size)
    return loss + config.entropy_bonus * (log_probs.exp() * log_probs).sum() / size


def token_gate(config: Config, log_prob: Tensor, advantage: Tensor, behaviour: Tensor) -> Tensor:
    """Kondo on single tokens."""
    delight = objectives.delight(log_prob, advantage)
    return objectives.gate(delight, temperature=0.0, price=objectives.price_for_rate(delight, config.gate_rate))


def pmpo_loss(
    log_prob: Tensor, log_probs: Tensor, behaviour: Tensor, advantage: Tensor, alpha: float = 0.5, beta: float = 0.1
) -> Tensor:
    """PMPO (Abdolmaleki et al., 2024): imitate the better half, avoid the worse half, stay near the actor.

    Only the sign of the advantage matters. The reference of the KL term is the actor (U), so that at zero delay its
    gradient vanishes.
    """
    sign = torch.sign(advantage)
    share = torch.where(sign > 0, alpha / (sign > 0).sum().clamp(min=1), (1 - alpha) / (sign < 0).sum().clamp(min=1))
    divergence = (behaviour.exp() * (behaviour - log_probs)).sum(-1).mean()
    return objectives.policy_gradient_loss(log_prob, sign, share, batch_size=log_prob.shape[1]) + beta * divergence


def imitate(config: WarmConfig, policy: Transformer, seed: int) -> None:
    """Cross-entropy towards right answers, until the wanted share of sampled ones is right."""
    optimiser = torch.optim.Adam(policy.parameters(), lr=3e-4, fused=True)
    generator = torch.Generator().manual_seed(1000 * seed + 3)
    while evaluate(config, policy, generator) > 1 - config.warm_start:
        prompt = torch.randint(config.symbols, (config.prompts * config.samples, config.horizon), generator=generator)
        right = right_answer(config, prompt)
        loss = -policy.answer_log_probs(prompt, right).gather(-1, right.unsqueeze(-1)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def run_seed(config: Config, seed: int) -> list[Row]:
    torch.manual_seed(seed)  # the network's initial parameters
    policy = Transformer(config)
    optimiser = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, fused=True)
    if isinstance(config, WarmConfig):
        imitate(config, policy, seed)
    actors = StaleActors(config, seed)
    coins = torch.Generator().manual_seed(1000 * seed + 1)
    exam = torch.Generator().manual_seed(1000 * seed + 2)
    every = max(1, config.updates // 40)
    rows: list[Row] = []
    reached = math.inf
    for update in range(config.updates + 1):
        if update % every == 0 or update == config.updates:
            error = evaluate(config, policy, exam)
            reached = min(reached, update) if error <= 0.01 else reached
            rows.append({"seed": seed, "step": update, "error": error, "reached": float(reached)})
        if update == config.updates:
            break
        prompt, answer, behaviour = actors.batch(policy, update)
        reward = reward_of(config, answer, right_answer(config, prompt))
        corrupt, coin = torch.rand(2, len(reward), generator=coins)
        reward = torch.where(corrupt < config.corruption, (coin < 0.5).float(), reward)
        advantage = group_advantage(config, reward)
        if config.method == "kondo":
            # The delight on record decides before the learner's forward pass: a dropped answer costs none.
            record = behaviour.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
            kept = chosen_rows(config, record, advantage)
            prompt, answer, behaviour, advantage = prompt[kept], answer[kept], behaviour[kept], advantage[kept]
        log_probs = policy.answer_log_probs(prompt, answer)
        loss = loss_of(config, log_probs, answer, behaviour, advantage, batch_size=len(reward))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return rows


def evaluate(config: Config, policy: Transformer, generator: torch.Generator, count: int = 500) -> float:
    """Error, 1 - reward, of sampled answers to fresh prompts, without frictions."""
    prompt = torch.randint(config.symbols, (count, config.horizon), generator=generator)
    uniform = torch.rand(prompt.shape, generator=generator)
    answer, _ = policy.write(prompt, uniform, torch.full_like(prompt, -1))
    return 1 - float(reward_of(config, answer, right_answer(config, prompt)).mean())


def run(config: Config, seeds: list[int]) -> list[Row]:
    return [row for seed in seeds for row in run_seed(config, seed)]


# --- figures --------------------------------------------------------------------------------------------------------

NAMES = plotting.NAMES | {"kondo": "Kondo, 3 % of episodes", "kondo_token": "Kondo, 3 % of tokens"}
COLOURS = plotting.COLOURS | {"kondo_token": "#e8b98a", "bonus": "#8c8c8c"}


def words(config: Config) -> str:
    bonus = f", entropy bonus {config.entropy_bonus:g}" if config.entropy_bonus else ""
    return NAMES["half_pg" if math.isinf(config.temperature) else config.method] + bonus


def colour(config: Config) -> str:
    name = "half_pg" if math.isinf(config.temperature) else "bonus" if config.entropy_bonus else config.method
    return COLOURS[name]


def curves(runs: Runs, groups: dict[str, list[Config]], label: Callable[[Config], str] = words) -> Figure:
    """Error over updates, one panel per titled group of configs."""
    figure, axes = plotting.panels(len(groups), width={1: 7.0, 2: 5.2}.get(len(groups), 3.8))
    for panel, (title, configs) in zip(axes, groups.items(), strict=True):
        tints = [colour(c) for c in configs]
        if len(set(tints)) < len(tints):
            tints = plotting.shades(len(configs))
        for config, tint in zip(configs, tints, strict=True):
            dashes = {"ppo": (0, (2, 2)), "iw": (0, (5, 5))}.get(config.method, "-")  # they often lie on PG
            plotting.draw(panel, runs, config, "error", label(config), color=tint, linestyle=dashes)
        panel.set(title=title, xlabel="update")
        scale_errors(panel)
    axes[0].set_ylabel("error of sampled answers")
    label_lines(figure, axes)
    return figure


def label_lines(figure: Figure, axes: list[Axes]) -> None:
    """One legend below, if one panel shows all that the others show; else one in each."""
    shown = [set(panel.get_legend_handles_labels()[1]) for panel in axes]
    most = max(shown, key=len)
    if most and all(most >= each for each in shown):
        plotting.legend_below(figure, axes[shown.index(most)], len(most) if len(axes) > 1 else 3)
        return
    for panel in axes:
        plotting.legend(panel)


def grouped(configs: list[Config], name: Callable[[Config], str]) -> dict[str, list[Config]]:
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(name(config), []).append(config)
    return groups


def learning(runs: Runs) -> Figure:
    return curves(runs, grouped(runs.configs, lambda c: f"{c.horizon} tokens of {c.symbols} symbols"))


def initial(runs: Runs) -> Figure:
    return curves(runs, grouped(runs.configs, lambda c: f"initial weights: {c.initial}"))


def entropy(runs: Runs) -> Figure:
    groups = grouped(
        runs.configs, lambda c: {"pg": "PG with an entropy bonus", "dg": "DG by temperature (1: paper)"}[c.method]
    )
    return curves(
        runs, groups, lambda c: f"bonus {c.entropy_bonus:g}" if c.method == "pg" else f"temperature {c.temperature:g}"
    )


def frictions_of(config: Config) -> str:
    titles = {
        "delay": "stale actor",
        "actor_bug": "actor bug",
        "corruption": "false rewards",
        "discovery": "rare discovery",
    }
    active = [title for name, title in titles.items() if getattr(config, name)]
    return "all four frictions" if len(active) == len(titles) else ", ".join(active) or "no friction"


def frictions(runs: Runs) -> Figure:
    return curves(runs, grouped(runs.configs, frictions_of))


def friction_levels(runs: Runs) -> Figure:
    return curves(runs, grouped(runs.configs, lambda c: f"actor up to {c.delay} updates old, bug {c.actor_bug:.0%}"))


REWARDS = {"bag": "reward: share of right tokens", "sequential": "reward: length of the right prefix"}


def variants(runs: Runs) -> Figure:
    """Final error by target, one panel per reward."""
    groups = grouped(runs.configs, lambda c: REWARDS[c.reward])
    figure, axes = plotting.panels(len(groups))
    for panel, (title, configs) in zip(axes, groups.items(), strict=True):
        targets = list(dict.fromkeys(config.target for config in configs))
        for i, (label, chosen) in enumerate(grouped(configs, words).items()):
            places = [targets.index(config.target) + 0.16 * (i - (len(FRESH) - 1) / 2) for config in chosen]
            errors = [runs.last(config, "error") for config in chosen]
            plotting.intervals(panel, places, errors, label, upright=True, color=colour(chosen[0]))
        show_final_errors(panel)
        panel.set_title(title)
        panel.set_xticks(range(len(targets)), [target.replace("_", "\n") for target in targets])
    label_lines(figure, axes)
    return figure


def show_final_errors(panel: Axes) -> None:
    panel.set_ylabel("error of sampled answers at the end")
    scale_errors(panel)


def scale_errors(panel: Axes) -> None:
    """Linear below .001, to show an error of 0."""
    panel.set_yscale("symlog", linthresh=1e-3)
    panel.set_ylim(-1e-4, 1.3)


def scaling(runs: Runs) -> Figure:
    """Final error by horizon and by number of symbols; a task counts as solved below 5 % error."""
    figure, axes = plotting.panels(3, width=4.4)
    fresh = [config for config in runs.configs if not config.delay]
    by_field = [
        ("horizon", [config for config in fresh if config.symbols == DG.symbols]),
        ("symbols", [config for config in fresh if config.horizon == DG.horizon]),
        ("horizon", [config for config in runs.configs if config.delay]),
    ]
    for panel, (field, configs) in zip(axes, by_field, strict=True):
        if configs:  # a smoke run has another horizon, and none of these
            panel.set_title(f"{frictions_of(configs[0])}, {configs[0].updates} updates")
        for name, chosen in grouped(configs, words).items():
            x, errors = [getattr(c, field) for c in chosen], [runs.last(c, "error") for c in chosen]
            plotting.points(panel, x, errors, name, color=colour(chosen[0]))
        panel.axhline(0.05, color="black", linewidth=0.6, linestyle=":")
        panel.set_xlabel(field)
        panel.set_xticks(sorted({getattr(config, field) for config in configs}))
        show_final_errors(panel)
    label_lines(figure, axes)
    return figure


def asynchronous(runs: Runs) -> Figure:
    return curves(runs, grouped(runs.configs, lambda c: f"warm start, old actors, learning rate {c.learning_rate:g}"))


FIGURES = {
    "learning": learning,
    "initial": initial,
    "entropy": entropy,
    "frictions": frictions,
    "each_friction": frictions,
    "friction_levels": friction_levels,
    "variants": variants,
    "scaling": scaling,
    "asynchronous": asynchronous,
}
EXPERIMENT = harness.Experiment(
    name="token_reversal",
    sweep=SWEEP,
    run=run,
    figures=FIGURES,
    metrics=("error", "reached"),
    seeds=10,
    seeds_per_job=1,
    smoke={"updates": 4, "width": 16, "horizon": 3},
    summary={"error": np.mean, "reached": np.median},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

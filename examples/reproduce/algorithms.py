"""The papers' tasks once more, by the algorithms themselves: the same orderings as in the plain loops?

    python examples/reproduce/algorithms.py [--figure digits] [--seeds 5] [--plot-only]

``DG`` and ``PolicyGradient`` learn ``sb3_delight/Digits-v0`` and ``sb3_delight/TokenReversal-v0``; beside them stand
the loops of mnist.py and token_reversal.py with the same number of images or answers per update, network, initial
weights and optimiser. What the algorithms cannot have is the loops' baseline: the policy's own expected reward for the
digits, the mean of ten answers to one prompt for the tokens. They learn a critic, and every answer has a prompt of its
own.
"""

import dataclasses
from importlib.metadata import version
from typing import Any

import harness
import mnist
import numpy as np
import plotting
import token_reversal
import torch
from matplotlib.figure import Figure
from records import Row, Runs
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_delight import DG, PolicyGradient
from sb3_delight.envs.extractors import CausalTransformer
from sb3_delight.envs.token_reversal import reward_of, right_answer


@dataclasses.dataclass(frozen=True)
class Config:
    task: str = "digits"  # digits | tokens
    loop: str = "class"  # class: DG or PolicyGradient; plain: the loop of mnist.py or token_reversal.py
    method: str = "pg"  # pg | dg, with temperature 1 and unscaled advantages, as in every experiment of the papers
    horizon: int = 5  # tokens: H; 10 in the papers, where an update of the algorithms costs four times as much
    updates: int = 1000


PACKAGES = ("stable-baselines3", "gymnasium")
SWEEP = {
    task.task: [
        dataclasses.replace(task, loop=loop, method=method) for loop in ("plain", "class") for method in ("pg", "dg")
    ]
    for task in (Config("digits"), Config("tokens", updates=150))
}


def run(config: Config, seeds: list[int]) -> list[Row]:
    if config.loop == "plain":
        rows = plain_rows(config, seeds)
    else:
        rows = [row for seed in seeds for row in class_rows(config, seed)]
    return [row | {package: version(package) for package in PACKAGES} for row in rows]


def plain_rows(config: Config, seeds: list[int]) -> list[Row]:
    if config.task == "digits":
        rows = mnist.run(mnist.Config(method=config.method, updates=config.updates), seeds)
        return [{"seed": row["seed"], "step": row["step"], "error": row["test_error"]} for row in rows]
    return token_reversal.run(token_config(config), seeds)


def token_config(config: Config) -> token_reversal.Config:
    return token_reversal.Config(method=config.method, horizon=config.horizon, updates=config.updates)


def class_rows(config: Config, seed: int) -> list[Row]:
    """The same measure of error as in the plain loops, at some of their updates."""
    digits = config.task == "digits"
    evenly = {*range(0, config.updates, max(1, config.updates // 12)), config.updates}
    steps = sorted(harness.checkpoints(config.updates) if digits else evenly)
    model = digits_model(config, seed) if digits else token_model(config, seed)
    prompts = torch.Generator().manual_seed(1000 * seed + 2)
    rows: list[Row] = []
    for done, step in zip([0, *steps[:-1]], steps, strict=True):
        if step > done:
            model.learn((step - done) * model.n_envs * model.n_steps, reset_num_timesteps=False)
        error = digits_error(model) if digits else token_error(config, model, prompts)
        rows.append({"seed": seed, "step": step, "error": error})
    return rows


def make_model(config: Config, env: str, n_envs: int, seed: int, **arguments: Any) -> PolicyGradient:
    """:param arguments: ``env_kwargs``, and those of the algorithm. One gradient step per rollout, never clipped."""
    vec_env = make_vec_env(f"sb3_delight/{env}", n_envs, seed=seed, env_kwargs=arguments.pop("env_kwargs", None))
    common = {"advantage_scaling": "off", "max_grad_norm": np.inf, "seed": seed, "device": "cpu", **arguments}
    if config.method == "dg":
        return DG("MlpPolicy", vec_env, temperature=1.0, **common)
    return PolicyGradient("MlpPolicy", vec_env, **common)


def digits_model(config: Config, seed: int) -> PolicyGradient:
    plain = mnist.Config()
    policy = {
        "net_arch": {"pi": [plain.width] * 2, "vf": [plain.width] * 2},
        "activation_fn": nn.ReLU,
        "ortho_init": False,  # torch's own initial weights, as in the plain loop
        "optimizer_kwargs": {"fused": True},
    }
    arguments = {"n_steps": 1, "learning_rate": plain.learning_rate, "policy_kwargs": policy}
    return make_model(config, "Digits-v0", plain.batch_size, seed, **arguments)


def token_model(config: Config, seed: int) -> PolicyGradient:
    """Reward comes at the end of an answer, hence discount and lambda of 1: reward minus value, for every token."""
    plain = token_config(config)
    sizes = {name: getattr(plain, name) for name in ("layers", "width", "heads", "feedforward")}
    policy = {
        "features_extractor_class": CausalTransformer,
        "features_extractor_kwargs": {**sizes, "padding": plain.symbols},
        "net_arch": [],
        "ortho_init": False,
        "share_features_extractor": False,  # as the plain loop has no critic; shared, its gradient slows both methods
        "optimizer_kwargs": {"fused": True},
    }
    arguments = {"n_steps": plain.horizon, "learning_rate": plain.learning_rate, "gamma": 1.0, "gae_lambda": 1.0}
    task = {"horizon": plain.horizon, "symbols": plain.symbols, "target": plain.target, "reward": plain.reward}
    n_envs = plain.prompts * plain.samples
    model = make_model(config, "TokenReversal-v0", n_envs, seed, policy_kwargs=policy, env_kwargs=task, **arguments)
    draw_weights(model.policy)
    return model


def draw_weights(policy: BasePolicy) -> None:
    """The law of the plain loop: normal weights of variance 1 / inputs, no biases."""
    for name, parameter in policy.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def digits_error(model: PolicyGradient) -> float:
    """Of the likeliest digit on the test set."""
    _, _, images, labels = mnist.load("digits")
    actions, _ = model.predict(images.numpy(), deterministic=True)
    return float((actions != labels.numpy()).mean())


def token_error(config: Config, model: PolicyGradient, generator: torch.Generator, count: int = 500) -> float:
    """Error, 1 - reward, of sampled answers to fresh prompts."""
    plain = token_config(config)
    prompt = torch.randint(plain.symbols, (count, plain.horizon), generator=generator)
    slots = np.concatenate([prompt.numpy(), np.full(prompt.shape, plain.symbols)], axis=1)
    for place in range(plain.horizon, 2 * plain.horizon):
        slots[:, place], _ = model.predict(slots)
    right = right_answer(prompt, plain.target, plain.symbols)
    return 1 - float(reward_of(torch.from_numpy(slots[:, plain.horizon :]), right, plain.reward).mean())


def curves(runs: Runs) -> Figure:
    """Error over updates: the plain loops dotted, the algorithms drawn through."""
    figure, (axes,) = plotting.panels()
    for config in runs.configs:
        label = f"{plotting.NAMES[config.method]}, {'plain loop' if config.loop == 'plain' else 'on stable-baselines3'}"
        style = {"color": plotting.COLOURS[config.method], "linestyle": ":" if config.loop == "plain" else "-"}
        plotting.draw(axes, runs, config, "error", label, **style)
    axes.set(xlabel="update", yscale="log")
    plotting.legend(axes)
    return figure


def digits(runs: Runs) -> Figure:
    figure = curves(runs)
    figure.axes[0].set(title="digits", ylabel="test error of the likeliest digit")
    return figure


def tokens(runs: Runs) -> Figure:
    figure = curves(runs)
    title = f"token reversal, {runs.configs[0].horizon} tokens of 2 symbols"
    figure.axes[0].set(title=title, ylabel="error of sampled answers")
    return figure


EXPERIMENT = harness.Experiment(
    name="algorithms",
    sweep=SWEEP,
    run=run,
    figures={"digits": digits, "tokens": tokens},
    metrics=("error", *PACKAGES),
    seeds=5,
    seeds_per_job=1,
    smoke={"updates": 3, "horizon": 2},
    summary={"error": np.mean},
)

if __name__ == "__main__":
    harness.main(EXPERIMENT)

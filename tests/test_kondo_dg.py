"""KondoDG: what the gate keeps, what a dropped row costs, and what the critic sees."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_delight import DG, KondoDG, PolicyGradient, objectives
from sb3_delight.actors import LocalActors
from sb3_delight.buffers import flat_rollout, take
from sb3_delight.forward import evaluate_log_prob, evaluate_rows, slices_without_gradient
from sb3_delight.minibatches import deal_rows

ROWS = 64


def make(env: Any = "Pendulum-v1", policy: str = "MlpPolicy", **kwargs: Any) -> KondoDG:
    return KondoDG(policy, env, **{"seed": 0, "device": "cpu", "n_steps": ROWS, **kwargs})


class Count:
    """Rows through a layer: in forward passes that keep a graph, in those that do not, and backward."""

    def __init__(self, layer: nn.Module) -> None:
        self.forward = self.screened = self.backward = 0
        layer.register_forward_hook(self._saw)

    def _saw(self, layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            self.screened += len(output)
            return
        self.forward += len(output)
        output.register_hook(self._saw_gradient)  # type: ignore[no-untyped-call]

    def _saw_gradient(self, gradient: torch.Tensor) -> None:
        self.backward += len(gradient)


def rollout_of(model: PolicyGradient) -> Any:
    """Fill the model's buffer (and train once); return the rollout, its advantages of both signs."""
    model.learn(model.n_steps * model.n_envs)
    model.set_logger(configure(None, []))
    rollout = flat_rollout(model.rollout_buffer)
    return rollout._replace(advantages=objectives.standardize(rollout.advantages))


# ---------------------------------------------------------------------------- which rows it keeps


@pytest.mark.parametrize("rate", [1 / ROWS, 0.03, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("priority", ["delight", "advantage", "abs_advantage", "surprisal", "additive", "random"])
def test_fixed_rate_keeps_exactly_its_share(rate: float, priority: Any) -> None:
    model = make(gate_rate=rate, priority=priority)
    kept = model._select(rollout_of(model))
    assert kept is not None
    assert len(set(kept.tolist())) == len(kept) == math.ceil(rate * ROWS)


def test_fixed_rate_keeps_its_share_of_ties_too() -> None:
    model = make(gate_rate=0.25)
    rollout = rollout_of(model)
    tied = rollout._replace(advantages=torch.ones(ROWS), old_log_prob=torch.full((ROWS,), -1.0))
    assert len(model._select(tied)) == ROWS / 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "priority"),
    [
        ({}, lambda advantage, surprisal: advantage * surprisal),
        (
            {"priority": "additive", "additive_alpha": 0.9},
            lambda advantage, surprisal: 0.9 * advantage + 0.1 * surprisal,
        ),
    ],
    ids=["delight", "additive"],
)
def test_fixed_rate_keeps_the_rows_of_the_highest_priority(arguments: dict[str, Any], priority: Any) -> None:
    model = make(gate_rate=0.25, **arguments)
    rollout = rollout_of(model)
    score = priority(rollout.advantages, -rollout.old_log_prob)
    kept = model._select(rollout)
    dropped = np.setdiff1d(np.arange(ROWS), kept)  # type: ignore[arg-type]
    assert score[kept].min() >= score[dropped].max()
    torch.testing.assert_close(model._metrics["price"][-1], score[kept].min())


@pytest.mark.filterwarnings("ignore:mean surprisal starts")
@pytest.mark.parametrize("clip", [10.0, 1.0])
def test_price_keeps_what_exceeds_it(clip: float) -> None:
    model = make(price=0.3, surprisal_clip=clip)
    rollout = rollout_of(model)
    delight = (-rollout.old_log_prob).clamp(-clip, clip) * rollout.advantages
    kept = model._select(rollout)
    assert 0 < len(kept) < ROWS  # type: ignore[arg-type]
    assert set(kept.tolist()) == set((delight > 0.3).nonzero().flatten().tolist())  # type: ignore[union-attr]
    assert model._metrics["price"][-1] == pytest.approx(0.3)


def test_price_0_acts_as_dg_at_temperature_0_does() -> None:
    """A hard gate draws no random numbers, which would change the actions that follow."""
    hard = DG("MlpPolicy", "CartPole-v1", temperature=0.0, seed=0, device="cpu").learn(320)
    kondo = KondoDG("MlpPolicy", "CartPole-v1", price=0.0, seed=0, device="cpu").learn(320)
    torch.testing.assert_close(kondo.policy.state_dict(), hard.policy.state_dict())


def test_a_soft_gate_has_its_price_and_follows_the_schedule_of_its_temperature() -> None:
    model = make(price=0.3, temperature="lin_2.0")
    rollout = rollout_of(model)
    net_delight = -rollout.old_log_prob * rollout.advantages - 0.3
    for progress in (1.0, 0.25, 0.0):
        model._current_progress_remaining = progress
        kept = model._select(rollout)
        gate = torch.sigmoid(net_delight / (2.0 * progress))
        torch.testing.assert_close(model._metrics["gate_mean"][-1], gate.mean())
    assert torch.equal(kept, (net_delight > 0).nonzero().flatten())  # type: ignore[arg-type]


def test_the_gate_is_that_of_dg_unless_a_price_or_a_rate_makes_it_hard(tmp_path: Path) -> None:
    coin, price, rate = make(), make(price=0.0), make(gate_rate=0.25)
    rollout = rollout_of(coin)
    delight = -rollout.old_log_prob * rollout.advantages
    for model in (coin, price, rate):
        model.set_logger(configure(None, []))
        kept = model._select(rollout)
        hard = {price: delight > 0, rate: delight >= delight.sort().values[-ROWS // 4]}
        if model is not coin:
            assert torch.equal(kept.sort().values, hard[model].nonzero().flatten())  # type: ignore[union-attr]
    gate = DG("MlpPolicy", "Pendulum-v1", device="cpu")._weight(rollout.old_log_prob, rollout)
    torch.testing.assert_close(coin._metrics["gate_mean"][-1], gate.mean())
    assert coin._select(rollout).tolist() != coin._select(rollout).tolist()  # type: ignore[union-attr]
    others: list[dict[str, Any]] = [{"normalize_delight": True}, {"priority": "advantage"}]
    for model in (make(**other) for other in others):  # what they judge has another unit: a hard gate at price 0
        model.set_logger(configure(None, []))
        assert model._select(rollout).tolist() == (delight > 0).nonzero().flatten().tolist()  # type: ignore[union-attr]
    coin.save(tmp_path / "coin")  # the default follows what load() changes
    loaded = KondoDG.load(tmp_path / "coin", env=coin.env, device="cpu", gate_rate=0.25)
    loaded.set_logger(configure(None, []))
    assert loaded._select(rollout).tolist() == rate._select(rollout).tolist()  # type: ignore[union-attr]


def test_a_loaded_gate_is_judged_as_a_new_one(tmp_path: Path) -> None:
    """Not by the progress at which it was saved, where a schedule may have ended."""
    make(gate_rate=0.5, temperature="lin_1").learn(ROWS).save(tmp_path / "model")
    with pytest.raises(ValueError, match="gate_rate must be below 1 with a positive temperature"):
        KondoDG.load(tmp_path / "model", gate_rate=1.0)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_soft_gate_with_a_rate_keeps_its_share_on_average(temperature: float) -> None:
    model = make(gate_rate=0.1, temperature=temperature)
    rollout = rollout_of(model)
    kept = [len(model._select(rollout)) for _ in range(400)]  # type: ignore[arg-type]
    standard_error = np.std(kept) / math.sqrt(len(kept))
    assert standard_error > 0
    assert abs(np.mean(kept) - 0.1 * ROWS) < 4 * standard_error


@pytest.mark.filterwarnings("ignore:mean surprisal starts")
@pytest.mark.parametrize("screen", ["stored", "recompute"])
def test_a_narrow_policys_successes_are_kept_by_surprisal_less_the_likeliest_actions(screen: Any) -> None:
    narrow: dict[str, Any] = {
        "policy_kwargs": {"log_std_init": -3.0},
        "screen": screen,
        "learning_rate": 0.0,
        "price": 0,
    }
    relative, plain = make(surprisal_baseline="mode", **narrow), make(**narrow)
    rollout = rollout_of(relative)
    success, narrow_density = rollout.advantages > 0, rollout.old_log_prob > 0
    assert narrow_density.float().mean() > 0.8
    for model, expected in ((relative, success), (plain, success != narrow_density)):
        kept = model._select(rollout)
        assert kept is not None
        assert torch.equal(kept, expected.nonzero().flatten())


def test_a_gate_trained_on_many_environments_loads_with_one(tmp_path: Path) -> None:
    KondoDG("MlpPolicy", make_vec_env("CartPole-v1", 8), gate_rate=0.03, n_steps=16, device="cpu").save(tmp_path / "m")
    model = KondoDG.load(tmp_path / "m", env=make_vec_env("CartPole-v1", 1), device="cpu").learn(32)
    assert model.actor_rows == 2  # of 16 rows, one at least


class Dropped(nn.Dropout):
    def __init__(self) -> None:
        super().__init__(0.9)


def test_a_recomputed_screen_judges_by_the_policy_as_it_acts() -> None:
    model = make(screen="recompute", gate_rate=0.5, policy_kwargs={"activation_fn": Dropped})
    rollout = rollout_of(model)
    model.policy.set_training_mode(True)
    kept = [model._select(rollout) for _ in range(3)]
    assert torch.equal(kept[0], kept[1])  # type: ignore[arg-type]
    assert torch.equal(kept[0], kept[2])  # type: ignore[arg-type]
    assert model.policy.training


def test_a_stored_log_probability_has_no_learners_baseline() -> None:
    allowed: dict[str, Any] = {"surprisal_baseline": "mode", "actors": LocalActors(staleness=1)}
    make(**allowed)
    make(**allowed, screen="recompute")
    with pytest.raises(ValueError, match=r"^screen must be 'recompute' with actors and surprisal_baseline='mode'"):
        make(**allowed, screen="stored")


def test_every_pass_under_a_clip_is_over_the_rows_that_were_kept() -> None:
    model = make(gate_rate=0.25, clip_range=0.2, n_epochs=3, batch_size=16, learning_rate=3e-2)
    seen: list[torch.Tensor] = []
    clip = model._clip

    def note(weight: torch.Tensor, log_prob: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(batch.actions[:, 0])
        return clip(weight, log_prob, batch)

    model._clip = note  # type: ignore[method-assign]
    rollout_of(model)
    rollout, (_, _, weight) = flat_rollout(model.rollout_buffer), model.last_update  # type: ignore[misc]
    kept = rollout.actions[weight > 0, 0]
    assert torch.equal(torch.cat(seen).sort().values, kept.repeat(3).sort().values)
    assert (model.actor_rows, model.critic_rows) == (3 * ROWS / 4, 3 * ROWS)


def test_recomputed_screen_judges_by_the_current_policy() -> None:
    stored, recomputed = make(gate_rate=0.25), make(gate_rate=0.25, screen="recompute", batch_size=20)
    rollout = rollout_of(recomputed)
    stale = rollout._replace(old_log_prob=torch.rand(ROWS))  # what some other actor may have thought
    with torch.no_grad():
        log_prob = recomputed.policy.get_distribution(rollout.observations).log_prob(rollout.actions)
    expected = stored._select(rollout._replace(old_log_prob=log_prob))
    before = recomputed.screen_rows
    torch.testing.assert_close(recomputed._select(stale), expected)
    assert recomputed.screen_rows == before + ROWS
    assert set(expected.tolist()) != set(stored._select(stale).tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("priority", "screened"),
    [("delight", ROWS), ("surprisal", ROWS), ("additive", ROWS), ("advantage", 0), ("random", 0)],
)
def test_with_actors_the_screen_is_paid_for_by_those_who_judge_by_it(priority: Any, screened: int) -> None:
    model = make(gate_rate=0.25, priority=priority, actors=LocalActors(1)).learn(ROWS)
    assert model.screen_rows == screened


def test_batch_normalisation_is_refused() -> None:
    class Normalized(nn.Sequential):
        features_dim = 3

        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(nn.BatchNorm1d(3))

    with pytest.raises(ValueError, match=r"^policy must be without batch normalisation, .*, got .*ActorCriticPolicy"):
        make(policy_kwargs={"features_extractor_class": Normalized})


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_normalized_delight_prices_in_its_own_scale_and_is_not_centred(scale: float) -> None:
    model = make(price=1.0, normalize_delight=True)
    rollout = rollout_of(model)
    advantages = scale * (rollout.advantages + 1)  # successes for the most part: their delight has a mean
    delight = -rollout.old_log_prob * advantages
    expected = (delight > delight.square().mean().sqrt()).nonzero().flatten()
    torch.testing.assert_close(model._select(rollout._replace(advantages=advantages)), expected)


# ----------------------------------------------------------------------- what a dropped row costs


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize(("rate", "critic_rate"), [(0.1, 1.0), (0.1, 0.3), (0.3, 0.1), (1.0, 1.0)])
def test_dropped_rows_enter_no_pass_with_separate_networks(
    rate: float, critic_rate: float, batch_size: int | None
) -> None:
    model = make(gate_rate=rate, critic_rate=critic_rate, batch_size=batch_size)
    actor = Count(model.policy.mlp_extractor.policy_net[0])
    critic = Count(model.policy.mlp_extractor.value_net[0])
    model.learn(ROWS)
    actor_rows, critic_rows = math.ceil(rate * ROWS), math.ceil(critic_rate * ROWS)
    assert actor.forward == actor.backward == model.actor_rows == actor_rows
    assert critic.forward == critic.backward == model.critic_rows == critic_rows
    assert model.screen_rows == 0


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize(("rate", "critic_rate"), [(0.1, 1.0), (0.1, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("share", [True, False])
def test_shared_extractor_sees_the_union_of_rows_once(
    rate: float, critic_rate: float, batch_size: int | None, share: bool
) -> None:
    env = FakeImageEnv(screen_height=36, screen_width=36, discrete=True)
    policy_kwargs = {"share_features_extractor": share, "features_extractor_kwargs": {"features_dim": 16}}
    model = make(
        env, "CnnPolicy", gate_rate=rate, critic_rate=critic_rate, n_steps=30, batch_size=batch_size,
        policy_kwargs=policy_kwargs,
    )  # fmt: skip
    counts = {name: Count(getattr(model.policy, f"{name}_features_extractor").cnn[0]) for name in ("pi", "vf")}
    unions: list[int] = []
    deal = PolicyGradient._gradient_step

    def spy(self: PolicyGradient, rollout: Any, rows: Any) -> bool:
        assert len(set(rows.paid.tolist())) == rows.n_paid
        unions.append(rows.n_paid)
        return deal(self, rollout, rows)

    model._gradient_step = spy.__get__(model)  # type: ignore
    model.learn(30)
    actor_rows, critic_rows = math.ceil(rate * 30), math.ceil(critic_rate * 30)
    if share:  # one module under both names, so both count the same passes
        assert counts["pi"].forward == counts["vf"].forward == counts["pi"].backward == sum(unions)
        assert max(actor_rows, critic_rows) <= sum(unions) <= min(30, actor_rows + critic_rows)
    else:
        assert counts["pi"].forward == counts["pi"].backward == actor_rows
        assert counts["vf"].forward == counts["vf"].backward == critic_rows


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: torch.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


class OwnFeatures(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(2 * obs, features_extractor)


class OwnWayToAct(ActorCriticPolicy):
    """Which no update takes part in."""

    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(2 * obs)

    def predict_values(self, obs: Any) -> torch.Tensor:
        return 2 * super().predict_values(obs)


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnEvaluation, OwnFeatures, OwnWayToAct])
@pytest.mark.parametrize("share", [True, False])
def test_rows_that_one_side_pays_for_are_evaluated_as_if_both_did(policy: Any, share: bool) -> None:
    model = make(policy=policy, policy_kwargs={"share_features_extractor": share})
    rollout = rollout_of(model)
    (rows,) = deal_rows(ROWS, None, kept=torch.arange(20), n_critic=30)
    assert max(rows.n_actor, rows.n_critic) < rows.n_paid < ROWS
    batch = take(rollout, rows.paid)
    values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    assert entropy is not None
    expected = values.flatten()[rows.critic], log_prob[rows.actor], entropy[rows.actor]
    torch.testing.assert_close(evaluate_rows(model.policy, batch, rows), expected)
    screened = evaluate_log_prob(model.policy, batch, 8)
    torch.testing.assert_close(screened, log_prob.detach())


def test_rows_without_a_gradient_are_evaluated_two_minibatches_at_a_time() -> None:
    assert slices_without_gradient(100, 20) == [slice(0, 40), slice(40, 80), slice(80, 120)]
    assert slices_without_gradient(100, None) == [slice(0, 100)]


def test_recomputed_screen_costs_one_forward_without_gradient() -> None:
    model = make(gate_rate=0.1, screen="recompute")
    rollout_of(model)
    actor = Count(model.policy.mlp_extractor.policy_net[0])
    model.train()
    assert actor.screened == ROWS
    assert actor.forward == actor.backward == math.ceil(0.1 * ROWS)


def test_the_number_of_gradient_steps_does_not_depend_on_the_rate() -> None:
    steps = {make(gate_rate=rate, batch_size=16).learn(ROWS)._n_updates for rate in (0.1, 0.3, 1.0)}
    assert steps == {ROWS // 16}


# ---------------------------------------------------------------------------- what it learns from


def test_an_empty_keep_set_skips_the_actors_step_but_not_the_critics() -> None:
    model = make(price=1e6)
    policy: Any = model.policy
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters(), policy.log_std]
    critic = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    before = [[parameter.detach().clone() for parameter in part] for part in (actor, critic)]
    model.learn(3 * ROWS)
    assert model.actor_rows == 0
    assert all(torch.equal(old, new) for old, new in zip(before[0], actor, strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(before[1], critic, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())


def test_an_empty_keep_set_leaves_adams_momentum_of_the_actor_alone() -> None:
    model = make(gate_rate=0.5).learn(ROWS)
    layer: Any = model.policy.action_net
    before = layer.weight.detach().clone()
    model.gate_rate, model.price = None, 1e6
    model.learn(2 * ROWS, reset_num_timesteps=False)
    assert torch.equal(before, layer.weight)


def test_a_minibatch_without_any_row_takes_no_step() -> None:
    model = make(price=1e6, critic_rate=1 / ROWS, batch_size=8).learn(ROWS)
    assert (model.actor_rows, model.critic_rows, model._n_updates) == (0, 1, 1)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_rate_one_is_the_policy_gradient(batch_size: int | None) -> None:
    common: dict[str, Any] = {"seed": 0, "device": "cpu", "n_steps": ROWS, "batch_size": batch_size}
    plain = PolicyGradient("MlpPolicy", "Pendulum-v1", advantage_scaling="scale", **common).learn(2 * ROWS)
    kondo = KondoDG("MlpPolicy", "Pendulum-v1", gate_rate=1.0, **common).learn(2 * ROWS)
    for one, other in zip(plain.policy.parameters(), kondo.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_expected_step_is_dgs() -> None:
    """E[Kondo] = DG at price 0 and equal temperature: one SGD step, over many coins, from the same rollout."""
    common: dict[str, Any] = {
        "seed": 0, "device": "cpu", "n_steps": 32, "vf_coef": 0.0, "max_grad_norm": 1e9, "learning_rate": 1.0,
        "temperature": 1.0, "policy_kwargs": {"optimizer_class": torch.optim.SGD},
    }  # fmt: skip
    dg = DG("MlpPolicy", "Pendulum-v1", **common)
    start = nn.utils.parameters_to_vector(dg.policy.parameters()).detach().clone()
    dg.learn(32)
    kondo = KondoDG("MlpPolicy", "Pendulum-v1", **common)  # seeds anew, hence acts alike
    wanted = nn.utils.parameters_to_vector(dg.policy.parameters()).detach() - start
    rollout_of(kondo)
    steps = []
    for _ in range(1500):
        nn.utils.vector_to_parameters(start.clone(), kondo.policy.parameters())
        kondo.train()
        steps.append(nn.utils.parameters_to_vector(kondo.policy.parameters()).detach() - start)
    sample = torch.stack(steps)
    standard_error = sample.std(dim=0) / math.sqrt(len(steps))
    moving = standard_error > 1e-8
    z = (sample.mean(dim=0) - wanted)[moving] / standard_error[moving]
    assert moving.sum() > 100
    assert z.square().mean() < 1.5  # 1 in expectation if unbiased; coordinates are correlated
    assert (sample[0] - wanted).norm() > 5 * (sample.mean(dim=0) - wanted).norm()


def test_the_critic_sees_rows_chosen_regardless_of_delight() -> None:
    model = make(gate_rate=0.25, critic_rate=0.25)
    rollout = rollout_of(model)
    seen = torch.zeros(ROWS)
    original = model._gradient_step

    def spy(given: Any, rows: Any) -> bool:
        seen[rows.paid[rows.critic]] += 1
        return original(given, rows)

    model._gradient_step = spy  # type: ignore
    for _ in range(400):
        model.train()
    kept = model._select(rollout._replace(advantages=flat_rollout(model.rollout_buffer).advantages))
    mask = torch.zeros(ROWS, dtype=torch.bool).index_fill(0, kept, True)  # type: ignore[arg-type]
    # 400 draws at rate .25: a group's mean frequency has a standard error below .006 in either group.
    assert seen[mask].mean().item() / 400 == pytest.approx(0.25, abs=0.025)
    assert seen[~mask].mean().item() / 400 == pytest.approx(0.25, abs=0.025)


def test_the_critics_loss_is_a_mean_over_the_rows_it_sees() -> None:
    """However few these are: its gradient does not shrink with the rate."""
    model = make(gate_rate=0.25, critic_rate=0.25, learning_rate=0.0, max_grad_norm=1e9)
    rollout, seen = rollout_of(model), []
    original = model._gradient_step

    def spy(given: Any, rows: Any) -> bool:
        seen.append(rows.paid[rows.critic])
        return original(given, rows)

    model._gradient_step = spy  # type: ignore
    model.train()
    error = (rollout.old_values - rollout.returns)[seen[0]]
    assert len(error) == ROWS / 4
    assert model.logger.name_to_value["train/value_loss"] == pytest.approx(error.square().mean().item(), rel=1e-4)
    bias: Any = model.policy.value_net.bias
    assert bias.grad.item() == pytest.approx(model.vf_coef * 2 * error.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("scaling", "scale"),
    [
        ("off", lambda advantages: advantages),
        ("scale", objectives.scale_by_rms),
        ("standardize", objectives.standardize),
    ],
)
@pytest.mark.parametrize("critic_rate", [1.0, 0.25])
def test_gating_scales_by_the_whole_batch_and_divides_by_it(scaling: str, scale: Any, critic_rate: float) -> None:
    """Also by those of its rows that nobody pays for."""
    model = make(gate_rate=0.25, critic_rate=critic_rate, advantage_scaling=scaling, learning_rate=0.0)
    rollout = rollout_of(model)
    rollout = rollout._replace(advantages=scale(flat_rollout(model.rollout_buffer).advantages))
    kept = model._select(rollout)
    model.train()
    log_prob, advantages = rollout.old_log_prob[kept], rollout.advantages[kept]
    expected = objectives.policy_gradient_loss(log_prob, advantages, torch.ones(len(advantages)), batch_size=ROWS)
    assert model.logger.name_to_value["train/policy_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_dict_observations_are_gated_too() -> None:
    class Pair(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(gym.make("CartPole-v1"))
            box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
            self.observation_space = gym.spaces.Dict({"position": box, "angle": box})

        def observation(self, observation: Any) -> Any:
            return {"position": observation[:2], "angle": observation[2:]}

    model = make(Pair(), "MultiInputPolicy", gate_rate=0.25, critic_rate=0.5)
    actor = Count(model.policy.mlp_extractor.policy_net[0])
    model.learn(ROWS)
    assert actor.forward == ROWS / 4


@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_critic_may_pay_for_fewer_rows_than_an_actor_that_keeps_all(batch_size: int | None) -> None:
    model = make(gate_rate=1.0, critic_rate=0.25, batch_size=batch_size).learn(ROWS)
    assert (model.actor_rows, model.critic_rows) == (ROWS, ROWS / 4)


class Features(nn.Sequential):
    features_dim = 4

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(nn.Linear(observation_space.shape[0], 4), nn.Tanh())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("of", [0, 1], ids=["values", "log-probabilities"])
def test_rows_that_one_side_pays_for_have_the_gradient_as_if_both_did(share: bool, of: int) -> None:
    """That of a shared feature extractor, too."""
    model = make(policy_kwargs={"share_features_extractor": share, "features_extractor_class": Features})
    rollout = rollout_of(model)
    (rows,) = deal_rows(ROWS, None, kept=torch.arange(20), n_critic=30)
    batch = take(rollout, rows.paid)
    every: Any = model.policy.evaluate_actions(batch.observations, batch.actions)[of]
    found: Any = evaluate_rows(model.policy, batch, rows)[of]
    wanted = every[(rows.critic, rows.actor)[of]]
    both = [
        torch.autograd.grad(each.sum(), list(model.policy.parameters()), allow_unused=True, materialize_grads=True)
        for each in (wanted, found)
    ]
    torch.testing.assert_close(both[1], both[0])


def test_a_recomputed_screen_asks_a_policys_own_evaluation() -> None:
    class Halved(ActorCriticPolicy):
        def evaluate_actions(self, obs: Any, actions: torch.Tensor) -> Any:
            values, log_prob, entropy = super().evaluate_actions(obs, actions)
            return values, log_prob / 2, entropy

    model = make(policy=Halved)  # type: ignore[arg-type]
    rollout = rollout_of(model)
    _, expected, _ = model.policy.evaluate_actions(rollout.observations, rollout.actions)
    torch.testing.assert_close(evaluate_log_prob(model.policy, rollout, 2), expected.detach())


def test_a_recomputed_screen_evaluates_two_minibatches_at_a_time() -> None:
    model = make(screen="recompute", batch_size=2)
    rollout, passed = rollout_of(model), []
    layer: Any = model.policy.mlp_extractor.policy_net[0]
    layer.register_forward_hook(lambda layer, inputs, output: passed.append(len(output)))
    model._select(rollout)
    assert passed == [4] * (ROWS // 4)


def test_the_price_of_a_soft_gate_with_a_rate_is_logged() -> None:
    model = make(gate_rate=0.25, temperature=1.0)
    rollout = rollout_of(model)
    model._select(rollout)
    expected = objectives.price_for_rate(-rollout.old_log_prob * rollout.advantages, 0.25, 1.0)
    assert abs(expected) > 0.1
    torch.testing.assert_close(model._metrics["price"][-1], expected)

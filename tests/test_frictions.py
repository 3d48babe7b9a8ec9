"""Frictions: how often, what is put on record, seeded, composable."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from envs import AnySpaces
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_delight import DG, PolicyGradient
from sb3_delight.actors import Actor, ActorSpec, LocalActors, Rollout, Weights
from sb3_delight.frictions import ActorBug, Friction, MismatchedSampler, RareDiscovery, RewardCorruption, _uniform

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)
N_ENVS, N_STEPS = 40, 25


def model_of(action_space: spaces.Space[Any], observation_space: spaces.Space[Any] = BOX, **kwargs: Any) -> DG:
    env = DummyVecEnv([lambda: AnySpaces(observation_space, action_space)] * N_ENVS)
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    return DG(policy, env, n_steps=N_STEPS, seed=0, device="cpu", **kwargs)


def collect(model: PolicyGradient, frictions: Sequence[Friction], stream: tuple[int, ...] = ()) -> Rollout:
    spec = ActorSpec.of(model, lambda: AnySpaces(model.observation_space, model.action_space), frictions)
    actor = Actor(spec, stream)
    actor.load(Weights(model.policy.state_dict(), {}), 0)
    return actor.collect()


def recorded_log_prob(model: PolicyGradient, rollout: Rollout) -> np.ndarray:
    """Of the recorded actions, under the policy."""
    observations = torch.as_tensor(rollout.observations.reshape(-1, *rollout.observations.shape[2:]))
    actions = torch.as_tensor(rollout.actions.reshape(-1, rollout.actions.shape[-1]))
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    _, log_prob, _ = model.policy.evaluate_actions(observations, actions)
    return np.asarray(log_prob.detach().reshape(rollout.log_probs.shape))


def expert(observations: np.ndarray) -> np.ndarray:
    """Does what it sees."""
    clipped: np.ndarray = np.clip(observations, -0.5, 0.5)
    return clipped


SPACES = [spaces.Discrete(5), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), BOX]
TABLE = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
LOPSIDED = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([3.0, 5.0], np.float32))


@pytest.mark.parametrize("space", [*SPACES, TABLE], ids=str)
@pytest.mark.parametrize(
    "friction", [ActorBug(0.3), ActorBug(0.3, "random"), MismatchedSampler(2.0)], ids=["bug", "random", "mismatch"]
)
def test_the_record_holds_the_action_taken_and_the_policys_opinion_of_it(
    space: spaces.Space[Any], friction: Friction
) -> None:
    model = model_of(space)
    rollout = collect(model, [friction])
    assert not np.array_equal(rollout.actions, collect(model, []).actions)
    np.testing.assert_allclose(recorded_log_prob(model, rollout), rollout.log_probs, atol=1e-5)


def test_a_random_bug_draws_from_the_whole_space_however_narrow_its_type() -> None:
    drawn = _uniform(spaces.Box(-128, 127, (2,), np.int8), 100, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    assert -128 <= drawn.min() < -100
    assert 100 < drawn.max() <= 127


def test_a_bug_happens_as_often_as_it_says() -> None:
    happened = (collect(model_of(BOX), [ActorBug(0.3)]).actions == 0).all(axis=-1)
    assert happened.mean() == pytest.approx(0.3, abs=0.058)  # four standard errors
    assert happened.mean(axis=0).std() < 0.2  # in every environment
    assert happened.mean(axis=1).std() < 0.2  # and in each on its own: one coin for all would give 0.46


@pytest.mark.parametrize(
    ("space", "action"), [(spaces.Discrete(5), 3), (spaces.MultiDiscrete([3, 4]), [2, 1]), (BOX, [0.1, 0.2, 0.3])]
)
def test_a_fixed_action(space: spaces.Space[Any], action: Any) -> None:
    rollout = collect(model_of(space), [ActorBug(1.0, action)])
    expected = np.broadcast_to(np.asarray(action, np.float32), rollout.actions.shape)
    np.testing.assert_array_equal(rollout.actions, expected)


@pytest.mark.parametrize("space", [*SPACES, LOPSIDED], ids=str)
def test_random_actions_are_uniform_over_the_space(space: spaces.Space[Any]) -> None:
    actions = collect(model_of(space), [ActorBug(1.0, "random")]).actions.reshape(N_ENVS * N_STEPS, -1)
    if isinstance(space, spaces.Box):
        shares = (actions - space.low) / (space.high - space.low)
        assert shares.min() >= 0
        assert shares.max() <= 1
        np.testing.assert_allclose(shares.mean(0), 0.5, atol=0.037)
        np.testing.assert_allclose(shares.std(0), 1 / np.sqrt(12), atol=0.025)
        return
    sizes = {"Discrete": [5], "MultiDiscrete": [3, 4], "MultiBinary": [2, 2, 2]}[type(space).__name__]
    for column, size in zip(actions.T.astype(int), sizes, strict=True):
        np.testing.assert_allclose(np.bincount(column, minlength=size) / len(column), 1 / size, atol=0.065)


def test_a_squashing_policy_is_given_actions_in_its_own_terms() -> None:
    wide = spaces.Box(-4.0, 4.0, (2,), np.float32)
    model = model_of(wide, use_sde=True, policy_kwargs={"squash_output": True})
    rollout = collect(model, [ActorBug(1.0, [2.0, -1.0])])
    np.testing.assert_allclose(rollout.actions, np.broadcast_to([0.5, -0.25], rollout.actions.shape), atol=1e-6)
    assert np.isfinite(rollout.log_probs).all()
    assert np.abs(collect(model, [ActorBug(1.0, [4.0, -4.0])]).actions).max() < 1  # at 1 its density would be 0
    mismatched = collect(model, [MismatchedSampler(1.0)])
    assert np.abs(mismatched.actions).max() <= 1
    assert np.isfinite(mismatched.log_probs).all()


def test_actions_of_two_dimensions_keep_their_places() -> None:
    action = np.arange(6).reshape(2, 3) / 10
    for friction in (ActorBug(1.0, action), RareDiscovery(1.0, lambda observations: action[None].repeat(N_ENVS, 0))):
        assert np.allclose(collect(model_of(TABLE), [friction]).actions, action.flatten())


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(2), 2),
        (spaces.Discrete(2), 0.7),
        (spaces.MultiBinary(3), [1, 0.5, 0]),
        (BOX, [3.0, 0.0, 0.0]),
        (BOX, [np.nan, 0.0, 0.0]),
        (BOX, [0.0]),
        (spaces.Discrete(2), {}),
    ],
)
def test_actions_outside_the_space_are_refused(space: spaces.Space[Any], action: Any) -> None:
    with pytest.raises(ValueError, match=r"^action must be in "):
        collect(model_of(space), [ActorBug(0.5, action)])


def test_rare_discovery_does_what_the_expert_would() -> None:
    rollout = collect(model_of(BOX), [RareDiscovery(0.2, expert)])
    discovered = (rollout.actions == expert(rollout.observations)).all(axis=-1)
    assert discovered.mean() == pytest.approx(0.2, abs=0.051)
    np.testing.assert_allclose(recorded_log_prob(model_of(BOX), rollout), rollout.log_probs, atol=1e-5)


def test_the_expert_sees_dict_observations() -> None:
    space = spaces.Dict({"near": BOX, "far": BOX})
    rollout = collect(model_of(BOX, space), [RareDiscovery(1.0, lambda observations: observations["far"] / 2)])
    np.testing.assert_allclose(rollout.actions, rollout.observations["far"] / 2)


def test_an_expert_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expert's actions must be of shape \(40, 3\), got \(40, 1\)"):
        collect(model_of(BOX), [RareDiscovery(1.0, lambda observations: observations[:, :1])])


def test_an_expert_that_gives_no_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expert's actions must be numbers"):
        collect(model_of(BOX), [RareDiscovery(1.0, lambda observations: np.full((N_ENVS, 3), None))])


@pytest.mark.parametrize(("space", "action"), [(spaces.Discrete(2), 0.9), (spaces.Discrete(2), 7)])
def test_an_expert_that_leaves_the_space_is_refused(space: spaces.Space[Any], action: float) -> None:
    with pytest.raises(ValueError, match=r"^expert's actions must be in "):
        collect(model_of(space), [RareDiscovery(1.0, lambda observations: np.full(N_ENVS, action))])


@pytest.mark.parametrize("squash", [False, True])
def test_noise_on_a_mean_is_as_large_as_it_says(squash: bool) -> None:
    """The variance of what the policy drew grows by scale squared, in units of its own."""
    kwargs: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}} if squash else {}
    model = model_of(BOX, **kwargs)
    with torch.no_grad():
        model.policy.action_net.bias.fill_(0.3)  # type: ignore[operator]
        model.policy.log_std.fill_(-2.0)
    actions = [collect(model, [MismatchedSampler(scale)]).actions for scale in (0.0, 2.0)]
    spreads = [(np.arctanh(each) if squash else each).std() for each in actions]
    assert spreads[1] / spreads[0] == pytest.approx(np.sqrt(1 + 2.0**2), rel=0.075)


@pytest.mark.parametrize(
    ("space", "logits", "action"),
    [(spaces.Discrete(2), [2.0, 0.0], 0), (spaces.MultiBinary(3), [2.0, 2.0, 2.0], 1)],
    ids=str,
)
def test_noise_on_logits_moves_shares_towards_the_uniform_ones(
    space: spaces.Space[Any], logits: list[float], action: int
) -> None:
    model = model_of(space)
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor(logits))  # type: ignore[operator]
    shares = [(collect(model, [MismatchedSampler(scale)]).actions == action).mean() for scale in (0.0, 8.0)]
    assert shares[0] == pytest.approx(1 / (1 + np.exp(-2)), abs=0.042)
    assert 0.5 < shares[1] < 0.65


def test_rewards_are_replaced_by_a_fair_coin_and_monitor_keeps_the_true_ones() -> None:
    model = DG("MlpPolicy", make_vec_env("CartPole-v1", N_ENVS), n_steps=N_STEPS, seed=0, device="cpu")
    actor = Actor(ActorSpec.of(model, frictions=[RewardCorruption(0.4, low=-3.0, high=5.0)]))
    actor.load(Weights(model.policy.state_dict(), {}), 0)
    rewards = actor.collect().rewards
    assert set(np.unique(rewards)) == {-3.0, 1.0, 5.0}
    assert (rewards == -3).mean() == pytest.approx(0.2, abs=0.051)
    assert (rewards == 5).mean() == pytest.approx(0.2, abs=0.051)
    episodes = list(actor.algorithm.ep_info_buffer or [])
    assert episodes
    assert all(episode["r"] == episode["l"] for episode in episodes)


@pytest.mark.parametrize("space", [spaces.Discrete(8), spaces.MultiDiscrete([8, 2]), spaces.MultiBinary(3)], ids=str)
def test_a_sampler_without_noise_draws_from_the_policy(space: spaces.Space[Any]) -> None:
    model = model_of(space)
    last: Any = model.policy.action_net
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[0] = 2
    drawn = collect(model, [MismatchedSampler(0.0)]).actions.reshape(N_ENVS * N_STEPS, -1)
    distribution: Any = model.policy.get_distribution(torch.zeros(1, 3)).distribution
    if isinstance(distribution, torch.distributions.Bernoulli):
        expected, shares = distribution.probs[0], drawn.mean(axis=0)
    else:
        first = distribution[0] if isinstance(distribution, list) else distribution
        expected, shares = first.probs[0], np.bincount(drawn[:, 0].astype(int), minlength=8) / len(drawn)
    np.testing.assert_allclose(shares, expected.detach().numpy(), atol=0.06)


def test_corrupted_rewards_are_what_vecnormalize_sees() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2), norm_obs=False)
    pool = LocalActors(frictions=[RewardCorruption(1.0, 0.0, 0.0)])
    model = DG("MlpPolicy", env, n_steps=32, seed=0, device="cpu", actors=pool).learn(64)
    normalize = model.get_vec_normalize_env()
    assert normalize is not None
    assert normalize.ret_rms.mean == 0


def test_equal_seeds_give_equal_frictions_and_other_streams_others() -> None:
    model = model_of(spaces.Discrete(5))
    frictions = [MismatchedSampler(1.0, probability=0.5), ActorBug(0.2, "random"), RewardCorruption(0.2)]
    frictions = pickle.loads(pickle.dumps(frictions))
    one, other, unlike = (collect(model, frictions, stream) for stream in ((1,), (1,), (2,)))
    np.testing.assert_array_equal(one.actions, other.actions)
    np.testing.assert_array_equal(one.rewards, other.rewards)
    assert not np.array_equal(one.actions, unlike.actions)


@pytest.mark.parametrize(
    ("space", "friction"),
    [
        (BOX, MismatchedSampler(1.0)),
        (BOX, ActorBug(1.0, "random")),
        (spaces.Discrete(5), MismatchedSampler(1.0)),
        (spaces.Discrete(5), ActorBug(1.0, "random")),
        (spaces.MultiDiscrete([3, 4]), ActorBug(1.0, "random")),
        (spaces.MultiDiscrete([3, 4]), MismatchedSampler(1.0)),
        (spaces.MultiBinary(3), ActorBug(1.0, "random")),
        (spaces.MultiBinary(3), MismatchedSampler(1.0)),
        (BOX, RewardCorruption(0.5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_frictions_draw_moves_no_generator_but_their_own(space: spaces.Space[Any], friction: Friction) -> None:
    model = model_of(space)
    states = []
    for frictions in ([], [friction]):
        collect(model, frictions)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_frictions_compose_in_order() -> None:
    """The second bug covers the first; what it leaves is the first's."""
    rollout = collect(model_of(spaces.Discrete(5)), [ActorBug(1.0, 1), ActorBug(0.25, 4)])
    assert set(np.unique(rollout.actions)) == {1, 4}
    assert (rollout.actions == 4).mean() == pytest.approx(0.25, abs=0.055)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_a_mismatched_sampler_leaves_a_bug_as_it_is(space: spaces.Space[Any]) -> None:
    rollout = collect(model_of(space), [MismatchedSampler(8.0), RewardCorruption(0.5), ActorBug(1.0)])
    assert (rollout.actions == 0).all()


@pytest.mark.parametrize("other", [ActorBug(0.1), RareDiscovery(0.1, expert), MismatchedSampler(2.0)])
def test_a_sampler_that_would_undo_what_others_replaced_is_refused(other: Friction) -> None:
    with pytest.raises(ValueError, match="frictions must be with MismatchedSampler before all"):
        LocalActors(frictions=[RewardCorruption(0.1), other, MismatchedSampler(1.0)])


def test_frictions_that_never_happen_change_nothing() -> None:
    found = []
    never = [MismatchedSampler(1.0, probability=0.0), ActorBug(0.0), RareDiscovery(0.0, expert), RewardCorruption(0.0)]
    for frictions in ([], never):
        env = make_vec_env("Pendulum-v1", 2)
        model = DG("MlpPolicy", env, n_steps=16, seed=0, device="cpu", actors=LocalActors(frictions=frictions))
        found.append(torch.cat([each.detach().flatten() for each in model.learn(128).policy.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ActorBug(1.5), "probability"),
        (lambda: ActorBug(-0.1), "probability"),
        (lambda: ActorBug(float("nan")), "probability"),
        (lambda: ActorBug(0.1, "left"), "action"),
        (lambda: RareDiscovery(0.1, 3), "expert"),  # type: ignore[arg-type]
        (lambda: RareDiscovery(2, expert), "probability"),
        (lambda: MismatchedSampler(-1.0), "scale"),
        (lambda: MismatchedSampler(float("inf")), "scale"),
        (lambda: MismatchedSampler(1.0, probability=2.0), "probability"),
        (lambda: RewardCorruption(0.1, low=float("nan")), "low"),
        (lambda: RewardCorruption(0.1, high="much"), "high"),  # type: ignore[arg-type]
        (lambda: RewardCorruption(0.1, high=float("inf")), "high"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        make()


def test_frictions_of_one_actor_toss_coins_of_their_own() -> None:
    actions = collect(model_of(spaces.Discrete(5)), [ActorBug(0.5, 1), ActorBug(0.5, 4)]).actions
    bare = collect(model_of(spaces.Discrete(5)), []).actions  # about a fifth each
    assert (actions == 4).mean() == pytest.approx(0.5 + 0.25 * (bare == 4).mean(), abs=0.065)
    assert (actions == 1).mean() == pytest.approx(0.25 + 0.25 * (bare == 1).mean(), abs=0.065)


def test_actors_and_seeds_have_bugs_at_other_times() -> None:
    model, other_model = model_of(BOX), model_of(BOX)
    other_model.seed = 1
    rolled = [collect(model, [ActorBug(0.5)], stream) for stream in ((1,), (1,), (2,))]
    rolled.append(collect(other_model, [ActorBug(0.5)], (1,)))
    one, again, other_stream, other_seed = ((each.actions == 0).all(axis=-1) for each in rolled)
    assert (one == again).all()
    for unlike in (other_stream, other_seed):
        assert (one == unlike).mean() == pytest.approx(0.5, abs=0.065)


def test_corrupted_rewards_keep_their_type_and_are_tossed_for_each_environment() -> None:
    rewards = collect(model_of(BOX), [RewardCorruption(1.0)]).rewards
    assert rewards.dtype == np.float32
    assert rewards.mean() == pytest.approx(0.5, abs=0.065)
    assert rewards.mean(axis=1).std() < 0.2  # one coin for all would give 0.5


def test_frictions_that_replace_no_action_may_come_before_a_sampler() -> None:
    frictions = [RewardCorruption(0.1), MismatchedSampler(1.0), ActorBug(0.1)]
    assert LocalActors(frictions=frictions).frictions == tuple(frictions)

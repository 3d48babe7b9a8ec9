"""The training loop, written once.

A method decides what a row is worth (``_weight``), which rows pay for a backward pass (``_select``), and how many pay
for the critic's.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from sb3_delight import objectives
from sb3_delight.arguments import (
    SUPPORTED_SPACES,
    as_schedule,
    check_keywords,
    check_spaces,
    is_flag,
    is_whole,
    number,
    require,
    warn,
)
from sb3_delight.buffers import DeviceRolloutBuffer, Samples, flat_rollout, take
from sb3_delight.finite import (
    NotFiniteError,
    check_gradients,
    check_observations,
    check_policy,
    check_rollout,
    finite_parts,
)
from sb3_delight.forward import evaluate_rows, unvalidated_distributions
from sb3_delight.minibatches import Rows, deal_rows
from sb3_delight.normalization import load_statistics, statistics_of
from sb3_delight.returns import explained_variance
from sb3_delight.rollouts import ActorPool, Intake
from sb3_delight.snapshot import Snapshot, optimized_parameters

__all__ = ["PolicyGradient"]

SelfPolicyGradient = TypeVar("SelfPolicyGradient", bound="PolicyGradient")

ADVANTAGE_SCALING: dict[str, Callable[[Tensor], Tensor]] = {
    "off": lambda advantages: advantages,
    "scale": objectives.scale_by_rms,
    "standardize": objectives.standardize,
}

ESTIMATORS = ["gae", "vtrace"]
BASELINES = ["none", "mode"]
COUNTS = ("_n_updates", "actor_rows", "critic_rows", "screen_rows")  #: what an update that is undone leaves as it was


class PolicyGradient(OnPolicyAlgorithm):
    """Policy gradient with a learned critic: :math:`g = B^{-1} \\sum_t w_t A_t \\nabla \\log \\pi(a_t | s_t)`.

    As it stands every row weighs 1: with the same settings it is stable-baselines3's A2C, parameter for parameter.
    A subclass decides what a row is worth (:meth:`_weight`) and which rows pay for a backward pass (:meth:`_select`).

    Defaults are those of its A2C, but for Adam, PPO's ``gae_lambda``, and 32 steps: with five, the scale of the
    advantages, hence of delight, would be read off five rows.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or an ``ActorCriticPolicy`` class
    :param env: environment, vectorised environment, or registered Gymnasium id
    :param learning_rate: a number, a function of the remaining progress (1 to 0), or ``"lin_x"``. Lower it if
        ``train/std`` or the return jumps between updates.
    :param n_steps: steps of every environment per update; a rollout has ``n_steps * n_envs`` rows. Raise it for less
        noisy, less frequent updates.
    :param batch_size: rows of one gradient step; ``None``, or more than there are, is the whole rollout
    :param n_epochs: passes over a rollout. Above 1 the data grows stale between gradient steps, which the plain and the
        delightful weight bear badly or not at all without a ``clip_range``.
    :param extra_critic_epochs: further passes over a rollout for the critic alone, after the ``n_epochs``. A better
        critic makes less noisy advantages; a shared feature extractor, and so the policy, moves with it.
    :param clip_range: PPO's clip on top of the method's weight: times the ratio of the learner's probability to the
        behaviour's, and 0 once that has moved further than this in the advantage's favour. With it a rollout bears
        several epochs of minibatches. A number, a schedule, or ``"lin_x"``; ``None``: neither ratio nor clip.
    :param target_kl: as in stable-baselines3's PPO: the passes over a rollout end before the first gradient step at
        which the policy's divergence from the behaviour, estimated on the rows that the actor pays for, is above 1.5
        times this. The critic's further passes are made all the same. Costs a read of the device at every gradient
        step. ``None``: no limit; the only choice with ``actors``, whose policy may be as far away from the start.
    :param gamma: discount
    :param gae_lambda: 1 is the Monte-Carlo advantage (more variance), 0 the one-step one (more bias)
    :param ent_coef: weight of the entropy bonus, a mean over the rows that the actor pays for. The delightful weight
        already holds one, of about ``Var(A) / (4 * temperature)``.
    :param vf_coef: weight of the value loss, which shares the optimiser and the gradient norm with the policy's
    :param max_grad_norm: the gradient is scaled down to this norm
    :param advantage_estimator: ``"gae"``; with ``actors`` also ``"vtrace"`` (Espeholt et al., 2018), which corrects
        values and advantages of older weights' rollouts by the ratio of the learner's probabilities to the actor's,
        truncated at 1: for actors whose recorded log-probabilities are true. The row's own ratio is the weight's
        matter: ``ImportanceWeightedPG(ratio_clip=1, advantage_estimator="vtrace")`` is IMPALA's policy gradient where
        ``gae_lambda`` is 1. Without ``actors``, and for weights that are the learner's still, it is GAE.
    :param advantage_scaling: ``"off"``; ``"scale"`` divides by the root mean square, which keeps every sign;
        ``"standardize"`` also centres, as stable-baselines3's ``normalize_advantage`` does: with ``actors`` that
        removes the constant that a lagging critic adds, which would push the policy away from the actors' actions, or
        towards them. Statistics are of all rows of the gradient step (for a gate: of the rollout). Equal advantages
        become 1 or -1 by ``"scale"`` (zeros stay 0), and 0 by ``"standardize"`` (a single row stays as it is).
    :param surprisal_clip: bound on the surprisal inside delight, in nats; ``None`` for none (DG, Algorithm 2: 10).
        It is taken after the baseline. A Gaussian of standard deviation 1 has 1.4 nats per dimension of the action:
        with 8 of them three rows of four are at the bound, with 17 all: delight is the advantage times 10. Take
        ``surprisal_baseline="mode"`` there, or raise it.
    :param surprisal_baseline: ``"none"``: surprisal is -log pi, as the papers have it. For continuous actions that is a
        density's, which depends on the action's units and is below 0, the gate turned round, where standard deviations
        are under about 0.24 (``log_std_init=-2``, say; watch ``train/surprisal_mean``). ``"mode"`` subtracts the
        surprisal of the policy's likeliest action, so that it is never below 0; for Gaussian policies whose standard
        deviations are ``policy.log_std``, without gSDE. (With stale actors the logged surprisal can be below 0: it
        takes the actor's log-probability and the learner's likeliest action.)
    :param use_sde: generalised state-dependent exploration instead of independent noise (continuous actions)
    :param sde_sample_freq: steps between its new noise matrices; -1 draws one per rollout
    :param rollout_buffer_class: default :class:`~sb3_delight.buffers.DeviceRolloutBuffer`, for every observation space
    :param rollout_buffer_kwargs: its further arguments
    :param actors: where rollouts come from: a pool of :mod:`sb3_delight.actors`, whose actors run copies of ``env`` and
        may act with older weights; ``env`` itself takes no step, and what is set on it later does not reach them.
        ``None``, the default, collects here. It is not saved: pass it to ``load()`` too.
    :param stats_window_size: episodes averaged in the ``rollout/`` statistics
    :param tensorboard_log: directory of the TensorBoard log; ``None`` writes none
    :param policy_kwargs: arguments of the policy. Its optimiser is Adam, fused, unless they or the policy name another.
    :param verbose: 0 nothing, 1 information, 2 debugging
    :param seed: of every pseudo-random generator; runs with equal seeds are identical on CPU, but for the order
        in which actors in processes of their own are finished
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    :param _init_setup_model: whether to build the network at once
    :raises ValueError: for an argument outside its range, or an unsupported space; it names the argument
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 7e-4,
        *,
        n_steps: int = 32,
        batch_size: int | None = None,
        n_epochs: int = 1,
        extra_critic_epochs: int = 0,
        clip_range: float | str | Schedule | None = None,
        target_kl: float | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        advantage_estimator: Literal["gae", "vtrace"] = "gae",
        advantage_scaling: Literal["off", "scale", "standardize"] = "off",
        surprisal_clip: float | None = 10.0,
        surprisal_baseline: Literal["none", "mode"] = "none",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        actors: ActorPool | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if env is not None or _init_setup_model:  # load() gives it later
            known = isinstance(env, str | gymnasium.Env | VecEnv)
            require(known, "env", env, "an environment, a vectorised environment, or a registered id")
            env = maybe_make_env(env, verbose)
            check_spaces(env.observation_space, env.action_space)
            fits = policy != "MultiInputPolicy" or isinstance(env.observation_space, spaces.Dict)
            require(fits, "policy", policy, "'MlpPolicy' or 'CnnPolicy' where observations are no Dict")
            named = isinstance(policy, str) and policy in self.policy_aliases
            known = named or (isinstance(policy, type) and issubclass(policy, ActorCriticPolicy))
            require(known, "policy", policy, f"one of {list(self.policy_aliases)}, or an ActorCriticPolicy class")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # type: ignore[arg-type]  # a string becomes a schedule below
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=SUPPORTED_SPACES,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.extra_critic_epochs = extra_critic_epochs
        self.clip_range = clip_range
        self.target_kl = target_kl
        self.advantage_estimator = advantage_estimator
        self.advantage_scaling = advantage_scaling
        self.surprisal_clip = surprisal_clip
        self.surprisal_baseline = surprisal_baseline
        self.actors = actors
        #: rows paid for so far: forward and backward for the actor, for the critic, forward alone for a gate's screen
        self.actor_rows, self.critic_rows, self.screen_rows = 0, 0, 0
        if _init_setup_model:
            self._setup_model()

    @classmethod
    def load(
        cls: type[SelfPolicyGradient],
        path: str | Path | BufferedIOBase,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPolicyGradient:
        """As in stable-baselines3, but that no misspelt argument is taken in silence.

        :param env: to train on; a registered id, too
        :param kwargs: arguments of the constructor, instead of those that were saved
        :raises ValueError: if one is no argument of the constructor, or outside its range
        """
        check_keywords(cls, kwargs)
        allowed = f"an argument of {cls.__name__} other than the policy, which is the saved one"
        require("policy" not in kwargs, "a keyword of load()", "policy", allowed)
        if "stats_window_size" in kwargs:  # by the name under which stable-baselines3 keeps it
            kwargs["_stats_window_size"] = kwargs.pop("stats_window_size")
        env = None if env is None else maybe_make_env(env, kwargs.get("verbose", 0))
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def _setup_model(self) -> None:
        self._resolve_arguments()
        super()._setup_model()
        fits = self.surprisal_baseline == "none" or self._is_plain_gaussian()
        allowed = "'none' but for continuous actions with independent Gaussian noise (no gSDE)"
        require(fits, "surprisal_baseline", self.surprisal_baseline, allowed)
        require(not hasattr(self.policy, "lstm_actor"), "policy", self.policy_class, "without recurrent layers")
        if "optimizer_kwargs" not in self.policy_kwargs and type(self.policy.optimizer) is torch.optim.Adam:
            for group in self.policy.optimizer.param_groups:
                group["fused"] = True
        n_rows, batch_size = self.n_steps * self.n_envs, self.batch_size
        if batch_size is not None and batch_size < n_rows and n_rows % batch_size:
            warn(
                f"batch_size={batch_size} does not divide the n_steps * n_envs = {n_rows} rows of a rollout: "
                f"the last gradient step of a pass has {n_rows % batch_size}."
            )
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)
        self._last_update: tuple[Samples, Tensor, Tensor | None] | None = None
        self._intake: Intake | None = None

    def _is_plain_gaussian(self) -> bool:
        """Whether actions are drawn with independent noise of the deviations ``policy.log_std``."""
        kind = self.policy.action_dist
        plain = isinstance(kind, DiagGaussianDistribution) and not isinstance(kind, SquashedDiagGaussianDistribution)
        return plain and hasattr(self.policy, "log_std")

    def _warn_of_densities(self, sign_alone: bool) -> None:
        """Of a Gaussian whose surprisal misleads a gate from the start; for methods that judge by it, or its sign."""
        if self.surprisal_baseline == "mode" or not self._is_plain_gaussian():
            return
        log_std = self.policy.log_std.detach()
        mean = float(log_std.numel() / 2 - objectives.gaussian_mode_log_prob(log_std))  # the policy's entropy
        if mean < 0:
            trouble = "below 0: densities above 1 turn the gate round"
        elif mean > (self.surprisal_clip or math.inf) and not sign_alone:
            trouble = f"beyond surprisal_clip={self.surprisal_clip:g}: at the bound all rows are alike"
        else:
            return
        warn(f"mean surprisal starts at {mean:.1f} nats, {trouble}. Pass surprisal_baseline='mode'.")

    def _resolve_arguments(self) -> None:
        """Refuse what cannot be, and turn the rest into what the loop takes; also of ``load(path, argument=...)``."""
        for name in ("n_steps", "n_epochs"):
            require(is_whole(getattr(self, name)), name, getattr(self, name), "a whole number, 1 or more")
        extra = self.extra_critic_epochs
        require(is_whole(extra, least=0), "extra_critic_epochs", extra, "a whole number, 0 or more")
        schedule = as_schedule("learning_rate", self.learning_rate)
        require(0 <= schedule(1.0) < math.inf, "learning_rate", self.learning_rate, "finite and 0 or more")
        if not callable(self.learning_rate):  # stable-baselines3 takes no string, and no number of numpy's
            self.learning_rate = schedule if isinstance(self.learning_rate, str) else number(self.learning_rate)
        if self.clip_range is not None:
            self.clip_range = as_schedule("clip_range", self.clip_range)
            start = self.clip_range(1.0)
            # 0: as RL-Zoo's enjoy loads every model
            require(0 <= start < math.inf, "clip_range", start, "finite and 0 or more, or None")
        target = self.target_kl
        require(target is None or 0 < number(target) < math.inf, "target_kl", target, "positive and finite, or None")
        require(target is None or self.actors is None, "target_kl", target, "None with actors")
        batch = self.batch_size
        require(batch is None or is_whole(batch), "batch_size", batch, "a whole number, 1 or more, or None")
        self.batch_size = None if batch is None else int(batch)  # torch's split takes no number of numpy's
        for name in ("gamma", "gae_lambda"):
            require(0 <= number(getattr(self, name)) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("ent_coef", "vf_coef"):
            require(math.isfinite(number(getattr(self, name))), name, getattr(self, name), "a finite number")
        require(number(self.max_grad_norm) > 0, "max_grad_norm", self.max_grad_norm, "positive")
        estimator = self.advantage_estimator
        require(estimator in ESTIMATORS, "advantage_estimator", estimator, f"one of {ESTIMATORS}")
        scaling = self.advantage_scaling
        require(scaling in list(ADVANTAGE_SCALING), "advantage_scaling", scaling, f"one of {list(ADVANTAGE_SCALING)}")
        require(is_flag(self.use_sde), "use_sde", self.use_sde, "True or False")
        frequency = self.sde_sample_freq
        require(
            frequency == -1 or is_whole(frequency), "sde_sample_freq", frequency, "a whole number, 1 or more, or -1"
        )
        window = self._stats_window_size
        require(is_whole(window), "stats_window_size", window, "a whole number, 1 or more")
        self._stats_window_size = int(window)
        seed = self.seed
        require(
            seed is None or (is_whole(seed, least=0) and seed < 2**32), "seed", seed, "from 0 to 2**32 - 1, or None"
        )
        self.seed = None if seed is None else int(seed)
        self.rollout_buffer_class = self.rollout_buffer_class or DeviceRolloutBuffer
        self.rollout_buffer_kwargs = self.rollout_buffer_kwargs or {}
        for name in ("rollout_buffer_kwargs", "policy_kwargs"):
            require(isinstance(getattr(self, name), dict), name, getattr(self, name), "a dictionary, or None")
        buffer: Any = self.rollout_buffer_class
        known = isinstance(buffer, type) and issubclass(buffer, RolloutBuffer)
        require(known, "rollout_buffer_class", buffer, "RolloutBuffer, a class derived from it, or None")
        fits = buffer is not RolloutBuffer or not isinstance(self.observation_space, spaces.Dict)
        require(fits, "rollout_buffer_class", buffer, "DictRolloutBuffer, or None, where observations are a Dict")
        fits = estimator == "gae" or issubclass(buffer, DeviceRolloutBuffer)
        require(fits, "rollout_buffer_class", buffer, "a DeviceRolloutBuffer with advantage_estimator='vtrace'")
        pool = self.actors
        fits = pool is None or (isinstance(pool, ActorPool) and not isinstance(pool, type))
        require(fits, "actors", pool, "a pool of sb3_delight.actors, or None")
        clip = self.surprisal_clip
        require(clip is None or number(clip) > 0, "surprisal_clip", clip, "a positive number of nats, or None")
        baseline = self.surprisal_baseline
        require(baseline in BASELINES, "surprisal_baseline", baseline, f"one of {BASELINES}")

    # ---------------------------------------------------------------------- decisions of a method

    def _weight(self, log_prob: Tensor, batch: Samples) -> Tensor:
        """What each row is worth.

        :param log_prob: under the policy being trained, ``[n]``
        :param batch: the actor's rows of one gradient step, advantages scaled; ``old_log_prob`` is the behaviour's
        :return: weight ``[n]``, taken as a constant. :attr:`last_update` asks for it again: nothing but :meth:`record`
            should change by the call
        """
        return objectives.pg_weight(log_prob, batch.advantages)

    def _select(self, rollout: Samples) -> Tensor | None:
        """Which rows pay for the policy's backward pass, decided once per rollout.

        :param rollout: all rows ``[B]``, advantages scaled; ``old_log_prob`` is the behaviour's
        :return: distinct row numbers ``[k]``, k from 0 to B; ``None`` means all
        """
        return None

    def _critic_row_count(self, n_rows: int) -> int:
        """How many rows, drawn uniformly at random, pay for the value loss."""
        return n_rows

    def _less_baseline(self, log_prob: Tensor) -> Tensor:
        """What surprisal is read off: log-probabilities ``[n]``, less that of the likeliest action if so asked."""
        if self.surprisal_baseline == "none":
            return log_prob
        return log_prob - objectives.gaussian_mode_log_prob(self.policy.log_std)

    def _current(self, schedule: Any, remaining: float | None = None) -> float:
        """Value of a schedule, or of a number that took its place since, at the remaining progress: today's."""
        remaining = self._current_progress_remaining if remaining is None else remaining
        return float(schedule(remaining) if callable(schedule) else schedule)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # The last rollout may end past the total: no schedule is asked what comes after its end.
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def record(self, name: str, value: Tensor | float) -> None:
        """Log ``train/name``: the mean of this update's values, scalars that stay on the device until its end."""
        single = not isinstance(value, Tensor) or value.ndim == 0
        require(single, "value", value, f"a number or a scalar tensor, for train/{name}")
        scalar = (
            value.detach().float() if isinstance(value, Tensor) else torch.full((), float(value), device=self.device)
        )
        self._metrics[name].append(scalar)

    # ----------------------------------------------------------------------------------- the loop

    def train(self) -> None:
        """Update the policy on the rollout in the buffer.

        The device is read once, at the end (a gate of no fixed rate reads its number of rows besides, and ``target_kl``
        every gradient step). Whatever goes wrong before that, an interrupt too, undoes the update.

        :raises ValueError: if the rollout or a gradient is not finite; parameters are as they were
        """
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        learning_rate = self.policy.optimizer.param_groups[0]["lr"]
        allowed = "finite and 0 or more throughout its schedule"
        require(0 <= learning_rate < math.inf, "learning_rate", learning_rate, allowed)
        self._metrics.clear()
        self._last_update = None  # its rows are overwritten
        rollout = flat_rollout(self.rollout_buffer)
        before, counts = Snapshot(self.policy), {name: getattr(self, name) for name in COUNTS}
        try:
            self._update(rollout)
        except BaseException as error:
            before.restore()
            vars(self).update(counts)
            if isinstance(error, Exception) and not isinstance(error, NotFiniteError):
                check_rollout(rollout, self.num_timesteps)  # which may be why
            raise

    def _update(self, rollout: Samples) -> None:
        n_rows = len(rollout.advantages)
        with unvalidated_distributions():
            scaled = rollout._replace(advantages=self._scale_advantages(rollout.advantages))
            relative = self._less_baseline(rollout.old_log_prob)  # now: the baseline moves with the policy
            kept = self._select(scaled)
            fits = kept is None or (kept.ndim == 1 and kept.dtype == torch.long)  # no mask
            require(fits, "what _select() returns", kept, "row numbers, whole numbers [k], or None")
            n_critic = self._critic_row_count(n_rows)
            for _ in range(self.n_epochs):
                if not self._pass_over(rollout, kept, n_critic):
                    break
            none = torch.empty(0, dtype=torch.long, device=self.device)
            for _ in range(self.extra_critic_epochs):
                self._pass_over(rollout, none, n_critic)
        surprisal = objectives.surprisal(relative, self.surprisal_clip)
        self._log_update(scaled, surprisal, n_rows if kept is None else len(kept))
        self._last_update = (scaled, relative, kept)

    def _scale_advantages(self, advantages: Tensor) -> Tensor:
        return ADVANTAGE_SCALING[self.advantage_scaling](advantages)

    def _pass_over(self, rollout: Samples, actor_rows: Tensor | None, n_critic: int) -> bool:
        """Whether it came to its end, and was not ended by ``target_kl``."""
        dealt = deal_rows(len(rollout.advantages), self.batch_size, actor_rows, n_critic, self.device)
        return all(self._gradient_step(rollout, rows) for rows in dealt)

    def _gradient_step(self, rollout: Samples, rows: Rows) -> bool:
        """One optimiser step; none if no row is paid for.

        :return: whether the policy may be trained on: ``False``, and no step, if it is beyond ``target_kl``
        """
        if rows.n_paid == 0:
            return True
        batch = take(rollout, rows.paid)
        values, log_prob, entropy = evaluate_rows(self.policy, batch, rows)
        losses: list[Tensor] = []
        if log_prob is not None:
            every = batch.advantages
            if rows.index is not None and rows.n_paid < rows.size:
                every = rollout.advantages.index_select(0, rows.index)
            advantages = self._scale_advantages(every)[rows.actor]
            actor_batch = take(batch, rows.actor)._replace(advantages=advantages)
            if self._is_beyond_target_kl(log_prob.detach(), actor_batch):
                return False
            weight = self._clip(self._weight(log_prob.detach(), actor_batch), log_prob.detach(), actor_batch)
            policy_loss = objectives.policy_gradient_loss(log_prob, advantages, weight, batch_size=rows.size)
            # No closed form (squashed gSDE): the sample mean of -log pi, as in stable-baselines3.
            mean_entropy = -log_prob.mean() if entropy is None else entropy.mean()
            losses.append(policy_loss - self.ent_coef * mean_entropy if self.ent_coef else policy_loss)
            self.record("policy_loss", policy_loss)
            self.record("entropy", mean_entropy)
        if values is not None:
            value_loss = functional.mse_loss(values, batch.returns[rows.critic])
            losses.append(self.vf_coef * value_loss)
            self.record("value_loss", value_loss)
        loss = functools.reduce(torch.add, losses)
        if loss.requires_grad:  # not where the critic alone pays, and is frozen
            self._step_optimizer(loss)
            self._n_updates += 1
        self.actor_rows += rows.n_actor
        self.critic_rows += rows.n_critic
        return True

    def _is_beyond_target_kl(self, log_prob: Tensor, batch: Samples) -> bool:
        """Logs how far the policy has moved from the behaviour, where that matters."""
        if self.clip_range is None and self.target_kl is None:
            return False
        log_ratio = log_prob - batch.old_log_prob
        change = torch.expm1(log_ratio)
        approx_kl = (change - log_ratio).mean()
        self.record("approx_kl", approx_kl)
        if self.clip_range is not None:
            self.record("clip_fraction", (change.abs() > self._current(self.clip_range)).float().mean())
        return self.target_kl is not None and float(approx_kl) > 1.5 * self.target_kl

    def _clip(self, weight: Tensor, log_prob: Tensor, batch: Samples) -> Tensor:
        """The method's weight under PPO's clip, if there is one."""
        if self.clip_range is None:
            return weight
        clip_range = self._current(self.clip_range)
        return weight * objectives.ppo_clip_weight(log_prob, batch.advantages, batch.old_log_prob, clip_range)

    def _step_optimizer(self, loss: Tensor) -> None:
        parameters = optimized_parameters(self.policy)
        for parameter in parameters:  # what zero_grad() does, less its hooks for profilers
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        self.record("gradient_norm", torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))
        self.policy.optimizer.step()

    # ------------------------------------------------------------------------ collecting and logging

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in stable-baselines3, with a clear error where something is not finite; or the next rollout of the actors.

        :raises ValueError: if an observation, or what the policy makes of it, is not finite
        """
        if self._intake is not None:
            return self._intake.collect_rollout(self, callback)
        try:
            complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except Exception as error:  # of a distribution, or of an environment that was given a NaN
            if self._last_obs is not None:
                self._check_last_observation(error)
                check_policy(self.policy, self._last_obs, self.num_timesteps)
            raise
        self._check_last_observation()
        return complete

    def _check_last_observation(self, cause: Exception | None = None) -> None:
        try:
            check_observations(self._last_obs, self.num_timesteps)
        except NotFiniteError as error:
            self._last_obs = None  # the next learn() resets the environment
            raise error from cause

    def _log_update(self, rollout: Samples, surprisal: Tensor, n_kept: int) -> None:
        """Everything logged of one update, read from the device at once.

        :raises ValueError: if the rollout or a gradient was not finite
        """
        delight = rollout.advantages * surprisal
        self.record("surprisal_mean", surprisal.mean())
        self.record("delight_mean", delight.mean())
        self.record("delight_std", delight.std(correction=0))
        self.record("explained_variance", explained_variance(rollout.old_values, rollout.returns))
        if hasattr(self.policy, "log_std"):
            self.record("std", self.policy.log_std.exp().mean())
        finite = finite_parts(rollout)[1].all()
        read = iter(torch.stack([*itertools.chain(*self._metrics.values()), finite.float()]).tolist())
        metrics = {name: list(itertools.islice(read, len(values))) for name, values in self._metrics.items()}
        if not next(read):
            check_rollout(rollout, self.num_timesteps)
        check_gradients(metrics)
        for name, values in metrics.items():
            self.logger.record(f"train/{name}", sum(values) / len(values))
        self.logger.record("train/kept_fraction", n_kept / len(delight))
        self.logger.record("train/actor_rows", self.actor_rows)
        self.logger.record("train/critic_rows", self.critic_rows)
        self.logger.record("train/screen_rows", self.screen_rows)
        self.logger.record("train/gradient_steps", self._n_updates)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not isinstance(callback, list):
            callback = [callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)]
        return super()._init_callback([_LastUpdateLogged(), *callback], progress_bar)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.actors is None:
            self._intake = None
            return super()._setup_learn(*args, **kwargs)
        before = statistics_of(self._vec_normalize_env)
        prepared = super()._setup_learn(*args, **kwargs)
        load_statistics(self._vec_normalize_env, before)  # its reset is no data: the actors' environments are
        self._intake = Intake(self.actors, self)
        return prepared

    def learn(
        self: SelfPolicyGradient,
        total_timesteps: int = 1_000_000,
        callback: MaybeCallback = None,
        log_interval: int = 10,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPolicyGradient:
        """Train for a number of environment steps; see ``BaseAlgorithm.learn``.

        :param log_interval: updates between two rows of the log, which also has one of the last update; ``None``: none
        :param tb_log_name: name of the run in the TensorBoard log; default: the class's name
        """
        allowed = "a whole number, 1 or more, or None"
        require(log_interval is None or is_whole(log_interval), "log_interval", log_interval, allowed)
        require(number(total_timesteps) >= 0, "total_timesteps", total_timesteps, "a number of steps, 0 or more")
        require(self.env is not None, "env", None, "given: load(path, env=...) or set_env(...)")
        try:
            super().learn(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name or type(self).__name__,
                reset_num_timesteps,
                progress_bar,
            )
        finally:
            if self.actors is not None:
                self.actors.close()
        return self

    @property
    def last_update(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Advantages (scaled), surprisal (clipped) and weights ``[B]`` of the last update.

        ``None`` before the first, and after one that was undone.
        The last two are those under the rollout's log-probabilities; dropped rows weigh 0. Valid until the next rollout
        begins to overwrite the buffer.
        """
        if self._last_update is None:
            return None
        rollout, relative, kept = self._last_update
        # Of today's policy, which the weight takes off.
        log_prob = relative - self._less_baseline(torch.zeros_like(relative))
        metrics, self._metrics = self._metrics, defaultdict(list)  # of training alone: weights record some
        try:
            weight = self._weight(log_prob, rollout._replace(old_log_prob=log_prob))
        finally:
            self._metrics = metrics
        if kept is not None:
            weight = torch.zeros_like(weight).index_copy(0, kept, weight[kept])
        return rollout.advantages, objectives.surprisal(relative, self.surprisal_clip), weight

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_metrics", "_last_update", "_intake", "actors"]


class _LastUpdateLogged(BaseCallback):
    """stable-baselines3 dumps its log before it trains. First of the callbacks, as others may close the logger."""

    def _on_training_end(self) -> None:
        if self.locals["log_interval"] is not None and self.logger.name_to_value:
            self.model.dump_logs()

    def _on_step(self) -> bool:
        return True

r"""The equations: surprisal, delight, the gate and its price, one weight per method, and the one loss they share.

Every method in this field is a detached weight :math:`w` on the same term,

.. math:: g = \frac{1}{B} \sum_t w_t \, A_t \, \nabla \log \pi(a_t \mid s_t),

so a method *is* its weight: call :func:`policy_gradient_loss` with it and take the gradient.
The printed loss value is not comparable between methods or libraries; its gradient is.

This module needs nothing but torch, so that the file alone also serves trainers that never saw stable-baselines3.

Shapes. ``log_prob`` (nats) has any shape, and is finite where it counts: mask out tokens that a sampler's top-p or
grammar has made impossible (``-inf``), as 0 times that is NaN. ``advantage`` and ``behaviour_log_prob`` are scalar
tensors, or have as many dimensions as ``log_prob`` with every size equal to its size or to 1. So one advantage per
sequence meets per-token log-probabilities ``[B, T]`` as ``[B, 1]``; ``[B]`` is refused: it would silently broadcast
along time.
Errors. What must be a tensor and is none is a ``TypeError``, everything else a ``ValueError``; both name the argument.
Units. ``advantage`` is in units of reward; delight, price and temperature are in reward x nats.

Sources. DG: Delightful Policy Gradient (arXiv 2603.14608). DDG: Delightful Distributed Policy Gradient (2603.20521).
Kondo: Does This Gradient Spark Joy? (2603.20526). Asynchronous post-training weights: 2606.03070.
"""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

__all__ = [
    "PRIORITIES",
    "asympo_weight",
    "delight",
    "dg_weight",
    "gate",
    "gaussian_mode_log_prob",
    "importance_weight",
    "pg_weight",
    "policy_gradient_loss",
    "ppo_clip_weight",
    "price_for_rate",
    "priority",
    "rows_at_rate",
    "scale_by_rms",
    "scaled_weight",
    "sequence_mean",
    "simple_po_weight",
    "standardize",
    "surprisal",
    "top_rows",
]


# ---------------------------------------------------------------------------------------------------------------------
# Delight
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def surprisal(log_prob: Tensor, clip: float | None = None) -> Tensor:
    r"""How unlikely the *learner* found its action, :math:`\ell = -\log \pi(a \mid s)`.

    :param log_prob: log-probability, or log-density for continuous actions, under the learner's current policy, ``[*]``
    :param clip: bound on both sides. Needed for densities, whose surprisal depends on the action's units and can be
        negative (DG, Algorithm 2 uses 10); ``None`` leaves it unbounded.
    :return: surprisal in nats, ``[*]``, without gradient
    :raises ValueError: if ``clip`` is not positive
    """
    _check_tensor("log_prob", log_prob)
    if clip is None:
        return -log_prob
    _check_number("clip", clip)
    if not clip > 0:
        raise ValueError(f"clip must be a positive number of nats or None, got {clip!r}")
    bound = min(clip, torch.finfo(log_prob.dtype).max)
    return (-log_prob).clamp(-bound, bound)


@torch.no_grad()
def gaussian_mode_log_prob(log_std: Tensor) -> Tensor:
    r"""Log-density of the likeliest action of independent Gaussians, :math:`-\sum_i \log(\sigma_i \sqrt{2\pi})`.

    Subtracted from an action's own, it leaves a surprisal of :math:`\tfrac12 \sum_i z_i^2`, z the action's distance
    from the mean in standard deviations: never negative, and the same in whatever units actions are.

    :param log_std: logarithms of the standard deviations, ``[*, dimensions]``
    :return: nats, ``[*]``, without gradient
    """
    _check_tensor("log_std", log_std)
    return -(log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


@torch.no_grad()
def delight(log_prob: Tensor, advantage: Tensor, clip: float | None = None) -> Tensor:
    r"""Delight :math:`\chi = A \, \ell`: large for a rare success, very negative for a rare failure (DG, section 2).

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param clip: bound on the surprisal, see :func:`surprisal`
    :return: delight in reward x nats, ``[*]``, float32 for half-precision input, without gradient
    :raises ValueError: if the shapes do not fit, or ``clip`` is not positive
    """
    return priority("delight", log_prob, advantage, clip)


@torch.no_grad()
def priority(
    name: str, log_prob: Tensor, advantage: Tensor, clip: float | None = None, additive_alpha: float = 0.5
) -> Tensor:
    r"""The score a gate judges by: delight, or one of the controls that its ablation needs (Kondo, priority ablation).

    :param name: ``"delight"``, ``"advantage"``, ``"abs_advantage"``, ``"surprisal"``, ``"additive"``
        (:math:`\alpha A + (1-\alpha) \ell`), or ``"random"`` (uniform in [0, 1))
    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param clip: bound on the surprisal, see :func:`surprisal`
    :param additive_alpha: :math:`\alpha`, in [0, 1]
    :return: score, ``[*]``, a tensor of its own (mask it in place if you like), float32 for half-precision input,
        without gradient
    :raises ValueError: if the name is none of these, or ``additive_alpha`` is outside its range
    """
    _check_shapes(log_prob, advantage=advantage)
    if name not in PRIORITIES:
        raise ValueError(f"priority must be one of {list(PRIORITIES)}, got {name!r}")
    _check_number("additive_alpha", additive_alpha)
    if not 0 <= additive_alpha <= 1:
        raise ValueError(f"additive_alpha must be in [0, 1], got {additive_alpha!r}")
    # In half precision products overflow, and there are so few numbers that ties, which go by position, would decide.
    wide = _wide(log_prob.dtype)
    score = PRIORITIES[name](surprisal(log_prob, clip).to(wide), advantage, additive_alpha).expand(log_prob.shape)
    return score.to(torch.promote_types(score.dtype, wide), copy=True)  # advantages may be whole numbers


PRIORITIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "delight": lambda surprisal, advantage, _: advantage * surprisal,
    "advantage": lambda surprisal, advantage, _: advantage,
    "abs_advantage": lambda surprisal, advantage, _: advantage.abs(),
    "surprisal": lambda surprisal, advantage, _: surprisal,
    "additive": lambda surprisal, advantage, alpha: alpha * advantage + (1 - alpha) * surprisal,
    "random": lambda surprisal, advantage, _: torch.rand_like(surprisal),
}
"""Score by name: ``(surprisal, advantage, additive_alpha) -> score``."""


@torch.no_grad()
def sequence_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the tokens of each sequence, for scores that must keep or drop whole sequences. Not for a loss.

    The Kondo gate needs it: keeping the most delightful *tokens* does not learn what keeping the most delightful
    *sequences* does. Its score is the mean token delight.

    :param values: ``[B, T]``
    :param mask: 1 for tokens that count, ``[B, T]``; ``None`` counts all
    :return: ``[B]``, float32 for half-precision input, without gradient; 0 for a sequence without counted tokens, which
        is above any failure's delight: before :func:`top_rows` set it to ``-inf`` where there may be such sequences
    :raises ValueError: if the shapes differ or ``values`` is not two-dimensional
    """
    counted = _token_mask("values", values, mask)
    total = values.masked_fill(~counted, 0).sum(dim=1, dtype=_wide(values.dtype))
    return total / counted.sum(dim=1).clamp(min=1)


@torch.no_grad()
def scale_by_rms(values: Tensor) -> Tensor:
    """Divide by the root mean square: unit scale without moving zero, so that no sign changes.

    Standardising would centre, and centring flips signs: of advantages, hence of delight.
    All-zero values stay zero; a single value, or equal values, become +1 or -1, unless about as small as the 1e-8 that
    keeps zeros from dividing by zero.

    :param values: ``[*]``
    :return: ``[*]``, without gradient
    """
    _check_tensor("values", values)
    wide = values.to(_wide(values.dtype))
    return _narrow(wide / (wide.square().mean().sqrt() + 1e-8), values)


@torch.no_grad()
def standardize(values: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation, as stable-baselines3 does to advantages.

    A single value is returned unchanged (its standard deviation is undefined); equal values become 0. GRPO's advantages
    are standardised group by group: ``torch.func.vmap(standardize)(reward.view(prompts, answers))``.

    :param values: ``[*]``, all of one group
    :return: ``[*]``, without gradient
    """
    _check_tensor("values", values)
    wide = values.to(_wide(values.dtype), copy=True)
    if values.numel() < 2:
        return _narrow(wide, values)
    low, high = wide.aminmax()
    # The mean of equal values rounds, and so, divided by their deviation, would become an advantage of up to 1.
    return _narrow(((wide - wide.mean()) / (wide.std() + 1e-8)).masked_fill(low == high, 0), values)


# ---------------------------------------------------------------------------------------------------------------------
# The gate and its price
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gate(delight: Tensor, temperature: float = 1.0, price: float | Tensor = 0.0) -> Tensor:
    r"""The gate :math:`w = \sigma((\chi - \lambda)/\eta)`, which maximises :math:`w(\chi-\lambda) + \eta H(w)`.

    Its limits are exact: temperature 0 is the hard gate :math:`1[\chi > \lambda]`, temperature ``inf`` is 1/2.

    :param delight: delight, or any other score, ``[*]``
    :param temperature: softness :math:`\eta` of the gate, in units of delight; 0 and ``inf`` are allowed
    :param price: what one sample must be worth, :math:`\lambda`, in units of delight; a scalar or ``[*]``
    :return: gate in [0, 1], ``[*]``, without gradient
    :raises ValueError: if ``temperature`` is negative or NaN, or ``price`` is NaN or does not fit
    """
    _check_tensor("delight", delight)
    _check_temperature(temperature)
    if isinstance(price, Tensor):
        if price.shape not in ((), delight.shape):
            raise ValueError(f"price must be a scalar or shaped like delight, got shape {tuple(price.shape)}")
    else:
        _check_number("price", price)
        if not -math.inf <= price <= math.inf:  # isnan would make torch.compile trace every price anew
            raise ValueError("price must be a number, got nan")
    wide = delight.to(_wide(delight.dtype))
    if temperature < torch.finfo(wide.dtype).tiny:  # 0, and what rounds to it
        opened = (wide > price).to(wide.dtype)
    elif temperature == math.inf:
        opened = torch.full_like(wide, 0.5)
    else:
        opened = torch.sigmoid((wide - price) / temperature)
    return _narrow(opened, delight)


def rows_at_rate(n_rows: int, rate: float) -> int:
    """How many of ``n_rows`` a rate keeps: the ceiling of ``rate * n_rows``, robust to float noise (7 of 100 at .07).

    :raises ValueError: if ``rate`` is outside (0, 1]
    """
    _check_rate(rate)
    return min(n_rows, max(1, math.ceil(round(rate * n_rows, 6))))


@torch.no_grad()
def top_rows(score: Tensor, rate: float) -> Tensor:
    """Rows with the highest score, exactly ``ceil(rate * B)`` of them: ties are broken, never kept in excess.

    The number of rows is known from the shape alone, so nothing is read back from the device.

    :param score: ``[B]``, without NaN, which would count as the highest; of the *whole* batch: at least one row
        is kept, so a call per part would keep one of every part
    :param rate: share of rows to keep, in (0, 1]
    :return: row numbers, ``[ceil(rate * B)]``, highest score first
    :raises ValueError: if ``rate`` is outside (0, 1], or ``score`` is not one-dimensional
    """
    _check_tensor("score", score)
    if score.ndim != 1:
        raise ValueError(f"score must be one value per row, [B], got shape {tuple(score.shape)}")
    return torch.topk(score, rows_at_rate(score.shape[0], rate)).indices


@torch.no_grad()
def price_for_rate(delight: Tensor, rate: float, temperature: float = 0.0) -> Tensor:
    r"""The price :math:`\lambda` at which the mean gate :math:`\frac1B \sum \sigma((\chi-\lambda)/\eta)` is the rate.

    Exact for hard and soft gates alike. With temperature 0 the mean gate is ``ceil(rate * B) / B``, or less where equal
    delights straddle the boundary (:func:`top_rows` breaks such ties). With a positive temperature the price is
    solved for, not taken from a quantile, at which a soft gate's mean is drawn towards one half.

    :param delight: delight, or any other score, ``[*]``, finite, not empty; of padded sequences ``delight[mask]``
    :param rate: wanted mean gate, in (0, 1]; below 1 if the temperature is positive
    :param temperature: of the gate, in units of delight; finite
    :return: the price, a scalar tensor on the device of ``delight``, float32 for half-precision input; nothing is read
        back
    :raises ValueError: if ``rate`` or ``temperature`` is outside its range, or ``delight`` is empty
    """
    _check_tensor("delight", delight)
    _check_rate(rate)
    _check_temperature(temperature)
    if temperature == math.inf:
        raise ValueError("temperature must be finite to solve for a price: an infinite one fixes the gate at 1/2")
    if delight.numel() == 0:
        raise ValueError("delight must hold at least one value, got an empty tensor")
    flat = delight.flatten().to(_wide(delight.dtype))
    if temperature == 0:
        kept = rows_at_rate(flat.numel(), rate)
        if kept == flat.numel():
            return torch.nextafter(flat.min(), flat.new_tensor(-math.inf))
        return torch.topk(flat, kept + 1).values[-1]
    if rate == 1:
        raise ValueError("rate must be below 1 for a soft gate: sigmoid never reaches 1")
    # If all delights were c, the price would be c - temperature * logit(rate): that brackets the root.
    wide = flat if flat.device.type == "mps" else flat.double()  # of which there is no double precision
    margin = temperature * (math.log(rate) - math.log1p(-rate))
    low, high = wide.min() - margin, wide.max() - margin
    for _ in range(64):  # halves the bracket to the last bit of a double, without a look at the values
        middle = (low + high) / 2
        too_cheap = torch.sigmoid((wide - middle) / temperature).mean() > rate
        low, high = torch.where(too_cheap, middle, low), torch.where(too_cheap, high, middle)
    return ((low + high) / 2).to(flat.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# One weight per method
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pg_weight(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Plain policy gradient (REINFORCE with a baseline, A2C): every sample weighs 1.

    :return: ones, ``[*]``
    :raises ValueError: if the shapes do not fit
    """
    _check_shapes(log_prob, advantage=advantage)
    return torch.ones_like(log_prob)


@torch.no_grad()
def dg_weight(log_prob: Tensor, advantage: Tensor, temperature: float = 1.0, clip: float | None = None) -> Tensor:
    r"""Delightful policy gradient: :math:`\sigma(A \ell / \eta)` (DG, Algorithm 1; with ``clip=10``, Algorithm 2).

    Temperature ``inf`` is half the plain policy gradient, temperature 0 keeps positive delight only.

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param temperature: of the gate, in reward x nats. 1 suits rewards of 0 and 1; for advantages of unit size (GRPO's,
        say) start from 10, the default of the algorithm ``DG``
    :param clip: bound on the surprisal inside the gate
    :return: weight in [0, 1], ``[*]``, float32 for half-precision input, without gradient
    :raises ValueError: if the shapes do not fit, ``clip`` is not positive, or ``temperature`` is negative
    """
    return gate(delight(log_prob, advantage, clip), temperature)


@torch.no_grad()
def importance_weight(
    log_prob: Tensor, advantage: Tensor, behaviour_log_prob: Tensor, clip: float | None = None
) -> Tensor:
    r"""Importance-weighted policy gradient: the ratio :math:`r = \pi/\mu` of learner to behaviour probability.

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param behaviour_log_prob: log-probability under the policy that acted
    :param clip: upper bound on the ratio (truncated importance sampling); ``None`` leaves it unbounded, and unbiased
    :return: weight, ``[*]``, float32 for half-precision input; finite, as an advantage of 0 must stay 0
    :raises ValueError: if ``clip`` is not positive
    """
    _check_shapes(log_prob, advantage=advantage, behaviour_log_prob=behaviour_log_prob)
    if clip is not None:
        _check_number("clip", clip)
        if not clip > 0:
            raise ValueError(f"clip must be a positive ratio or None, got {clip!r}")
    wide = _wide(torch.promote_types(log_prob.dtype, behaviour_log_prob.dtype))
    ratio = torch.exp(log_prob.to(wide) - behaviour_log_prob.to(wide))
    return ratio.clamp(max=min(clip or math.inf, torch.finfo(ratio.dtype).max))


@torch.no_grad()
def ppo_clip_weight(log_prob: Tensor, advantage: Tensor, behaviour_log_prob: Tensor, clip_range: float = 0.2) -> Tensor:
    r"""PPO: the ratio :math:`r`, or 0 once it has moved past :math:`1 \pm \epsilon` in the advantage's direction.

    Has exactly the gradient of :math:`\min(rA, \mathrm{clip}(r, 1-\epsilon, 1+\epsilon) A)` (Schulman et al., 2017).

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param behaviour_log_prob: log-probability under the policy that acted
    :param clip_range: :math:`\epsilon`; 0, where a schedule ends, stops every row that has moved
    :return: weight, ``[*]``, float32 for half-precision input; at most 1e8: a failure that the behaviour hardly ever
        chose has a ratio without bound, and the square of a gradient must not overflow
    :raises ValueError: if ``clip_range`` is negative, infinite or NaN
    """
    _check_not_negative("clip_range", clip_range)
    ratio = importance_weight(log_prob, advantage, behaviour_log_prob, clip=1e8)
    clipped = torch.where(advantage > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    return ratio.masked_fill(clipped, 0)


@torch.no_grad()
def simple_po_weight(
    log_prob: Tensor, advantage: Tensor, behaviour_log_prob: Tensor, clip_range: float = 0.2
) -> Tensor:
    r"""Simple policy optimisation: :math:`r (1 - \mathrm{sign}(A)(r-1)/\epsilon)`, PPO's clip as a quadratic penalty.

    Has exactly the gradient of :math:`rA - |A| (r-1)^2 / (2\epsilon)` (Xie et al., 2024).

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes
    :param behaviour_log_prob: log-probability under the policy that acted
    :param clip_range: :math:`\epsilon`
    :return: weight, negative once the ratio is past :math:`1 \pm \epsilon` in the advantage's direction, ``[*]``,
        float32 for half-precision input; by a ratio of at most 1e8, as in :func:`ppo_clip_weight`
    :raises ValueError: if ``clip_range`` is not positive
    """
    _check_positive("clip_range", clip_range)
    ratio = importance_weight(log_prob, advantage, behaviour_log_prob, clip=1e8)
    return ratio * (1 - torch.sign(advantage) * (ratio - 1) / clip_range)


@torch.no_grad()
def scaled_weight(log_prob: Tensor, advantage: Tensor, negative_scale: float = 0.2) -> Tensor:
    r"""Scaled PO: 1 where :math:`A \ge 0`, :math:`\alpha` where :math:`A < 0` (2606.03070 v1, which uses 0.2).

    :param log_prob: log-probability under the learner's current policy, ``[*]``
    :param advantage: see the module's note on shapes; the source takes reward minus the group's mean
    :param negative_scale: :math:`\alpha`; 1 is the plain policy gradient, 0 learns from successes only
    :return: weight, ``[*]``
    :raises ValueError: if ``negative_scale`` is negative, infinite or NaN
    """
    _check_shapes(log_prob, advantage=advantage)
    _check_not_negative("negative_scale", negative_scale)
    return torch.ones_like(log_prob).masked_fill(advantage < 0, negative_scale)


@torch.no_grad()
def asympo_weight(
    log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor | None = None,
    p_low: float | None = 0.01,
    p_high: float | None = 0.99,
    surprisal_floor: float = 1e-3,
) -> Tensor:
    r"""ASymPO: divide each response's term by its mean surprisal :math:`S` (2606.03070 v1).

    The loss is :math:`\frac1B \sum_b A_b S_b / \mathrm{sg}(S_b)`, :math:`S_b = -\frac1m \sum_i \log \pi_i`, so a token
    of a response with :math:`m` tokens weighs :math:`1/(m S_b)`. **Pass** ``batch_size=B`` (the number of responses) to
    :func:`policy_gradient_loss`. Advantages must sum to zero over the group: centre them.

    The stable form, the default, stops pushing a token that is already likely enough to be left alone
    (:math:`\pi > p_{high}` and :math:`A \ge 0`) or unlikely enough (:math:`\pi < p_{low}` and :math:`A < 0`): its
    log-probability enters :math:`S` clamped and its weight is 0.

    :param log_prob: per token, under the learner's current policy, ``[B, T]``
    :param advantage: ``[B, 1]`` (one per response) or ``[B, T]``
    :param mask: 1 for tokens of the response, 0 for prompt and padding, ``[B, T]``; ``None`` counts all
    :param p_low: lower bound of the stable form; ``None`` for the plain form
    :param p_high: upper bound of the stable form; ``None`` for the plain form
    :param surprisal_floor: lower bound on :math:`S`, so that a certain response does not divide by zero
    :return: weight, ``[B, T]``, float32 for half-precision input, 0 outside the mask
    :raises ValueError: if a shape is not as stated, or a bound is outside (0, 1), or they cross
    """
    _check_shapes(log_prob, advantage=advantage)
    for name, bound in (("p_low", p_low), ("p_high", p_high)):
        if bound is None:
            continue
        _check_number(name, bound)
        if not 0 < bound < 1:
            raise ValueError(f"{name} must be a probability in (0, 1) or None, got {bound!r}")
    if p_low is not None and p_high is not None and p_low >= p_high:
        raise ValueError(f"p_low must be below p_high, got {p_low!r} and {p_high!r}")
    _check_positive("surprisal_floor", surprisal_floor)
    counted = _token_mask("log_prob", log_prob, mask)
    wide = _wide(log_prob.dtype)
    tokens = counted.sum(dim=1, keepdim=True, dtype=wide).clamp(min=1)
    bounded = log_prob
    if p_high is not None:
        bounded = torch.where(advantage >= 0, bounded.clamp(max=math.log(p_high)), bounded)
    if p_low is not None:
        bounded = torch.where(advantage < 0, bounded.clamp(min=math.log(p_low)), bounded)
    total = -bounded.masked_fill(~counted, 0).sum(dim=1, keepdim=True, dtype=wide)
    pushed = counted & (bounded == log_prob)
    return pushed / total.clamp(min=tokens * surprisal_floor)


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------


def policy_gradient_loss(
    log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    batch_size: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The one loss: :math:`-\frac1B \sum_t \mathrm{sg}(w_t A_t) \log \pi(a_t \mid s_t)`.

    Rows that a gate dropped count as zeros: give ``batch_size`` the size of the *whole* batch, dropped rows included.
    So weight 1 on the rows that won a coin of DG's gate estimates the gradient of DG without bias (Kondo).

    :param log_prob: log-probability under the learner's current policy, ``[*]``; the gradient flows through it alone
    :param advantage: see the module's note on shapes
    :param weight: of any function above, shaped like ``advantage`` or like ``log_prob``; taken as a constant
    :param batch_size: :math:`B`, above 0; by default the number of terms (of counted terms, if there is a mask).
        Micro-batches of different sizes need that of the whole step, their losses summed; processes whose gradients
        are averaged (DistributedDataParallel) that of all processes divided by their number. As a scalar tensor it
        is used unchecked: nothing is read back.
    :param mask: 1 for terms that count, shaped like ``log_prob``; the others contribute nothing, whatever they hold
    :return: scalar, in the precision of ``log_prob``, float32 for half-precision input
    :raises ValueError: if the shapes do not fit, or ``batch_size`` is not positive and finite
    """
    _check_shapes(log_prob, advantage=advantage, weight=weight)
    if isinstance(batch_size, Tensor):
        if batch_size.ndim != 0:
            raise ValueError(f"batch_size must be a number or a scalar tensor, got shape {tuple(batch_size.shape)}")
    elif batch_size is not None:
        _check_positive("batch_size", batch_size)
    wide = _wide(log_prob.dtype)
    coefficient = (weight.to(wide) * advantage.to(wide)).detach()
    log_prob = log_prob.to(wide)
    if mask is None:
        terms: int | Tensor = max(log_prob.numel(), 1)
    else:
        _check_tensor("mask", mask)
        if mask.shape != log_prob.shape:
            raise ValueError(f"mask must have log_prob's shape {tuple(log_prob.shape)}, got {tuple(mask.shape)}")
        counted = mask.to(torch.bool)
        terms = counted.sum().clamp(min=1)
        # Both factors are blanked: a NaN in either would reach the gradient of the other as 0 * NaN.
        coefficient, log_prob = coefficient.masked_fill(~counted, 0), log_prob.masked_fill(~counted, 0)
    return -(coefficient * log_prob).sum() / (terms if batch_size is None else batch_size)


# ---------------------------------------------------------------------------------------------------------------------
# Precision, checks
# ---------------------------------------------------------------------------------------------------------------------


def _wide(dtype: torch.dtype) -> torch.dtype:
    """In which to sum and divide: half precision overflows, and rounds small constants to 0."""
    return torch.promote_types(dtype, torch.float32)


def _narrow(result: Tensor, values: Tensor) -> Tensor:
    """Back to the precision of the values; of whole numbers there is none to go back to."""
    return result.to(values.dtype) if values.is_floating_point() else result


def _check_shapes(log_prob: Tensor, **others: Tensor) -> None:
    """Each other tensor must be a scalar, or fit ``log_prob`` dimension by dimension: nothing may broadcast it."""
    _check_tensor("log_prob", log_prob)
    if not log_prob.is_floating_point():
        raise TypeError(f"log_prob must be a tensor of floats, got one of {log_prob.dtype}")
    for name, other in others.items():
        _check_tensor(name, other)
        if other.ndim == 0 or other.shape == log_prob.shape:
            continue
        fits = other.ndim == log_prob.ndim and all(
            size in (1, wanted) for size, wanted in zip(other.shape, log_prob.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} must be a scalar, or have {log_prob.ndim} dimension(s) with each size equal to log_prob's "
                f"or to 1: log_prob is {tuple(log_prob.shape)}, {name} is {tuple(other.shape)}"
            )


def _check_tensor(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}")


def _check_number(name: str, value: float) -> None:
    """Or a scalar tensor, as a learned temperature is; with dimensions it would change a result's shape."""
    if not (value.ndim == 0 if isinstance(value, Tensor) else isinstance(value, Real)):
        raise ValueError(f"{name} must be a number, got {value!r}")


def _check_temperature(temperature: float) -> None:
    _check_number("temperature", temperature)
    if not temperature >= 0:
        raise ValueError(
            f"temperature must be 0 (hard gate), positive, or inf (half the policy gradient), got {temperature!r}"
        )


def _check_rate(rate: float) -> None:
    if not (isinstance(rate, Real) and 0 < rate <= 1):  # no tensor: the number of rows is the host's to know
        raise ValueError(f"rate must be in (0, 1], got {rate!r}")


def _check_not_negative(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")


def _check_positive(name: str, value: float) -> None:
    _check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive, finite number, got {value!r}")


def _token_mask(name: str, values: Tensor, mask: Tensor | None) -> Tensor:
    _check_tensor(name, values)
    if values.ndim != 2:
        raise ValueError(f"{name} must be sequences, [B, T], got shape {tuple(values.shape)}")
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    _check_tensor("mask", mask)
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape {tuple(values.shape)} of the sequences, got {tuple(mask.shape)}")
    return mask.to(torch.bool)

"""Weights that adapt to the training: dynamic distillation.

Each is a `kd_jax.objective.Weight` for `Term(fn, weight)`, whatever the term. What it multiplies,
`of`, is a number, a schedule of the step (`optax.linear_schedule(1.0, 0.0, 1000)` lets the teacher
go) or another of these: `confidence(balanced(adversarial, 0.5))`. Their values are in the metrics,
as `g/NAME/weight`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.objective import Forward, Schedule, Weight, as_weight
from kd_jax.types import Array


def scaled(of: float | Schedule | Weight, by: float | Schedule | Weight) -> Weight:
    """The product of two weights."""
    first, second = as_weight(of), as_weight(by)

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        a, a_state = first.fn(forward, term, value, state[0])
        b, b_state = second.fn(forward, term, value, state[1])
        return a * b, (a_state, b_state)

    return Weight(fn, lambda: (first.init(), second.init()))


def balanced(
    against: Callable[[Forward], Array],
    of: float | Schedule | Weight = 1.0,
    *,
    decay: float = 0.9,
    limit: float = 1e4,
) -> Weight:
    """The ratio of two terms' gradient norms at the generated image.

    `of * ||d against / d image|| / (||d term / d image|| + 1e-6)`, norms over the batch: with
    `of = 1` the image is pulled as hard by the term as by `against`, whatever their units. Esser et
    al. 2021 (VQGAN), eq. 7, which measures at the last layer. The ratio of a
    term that reads no image, and has no gradient there, runs to the limit.

    Args:
      against: a term's function, the adversarial one usually; without state.
      of: the pull wanted, as a multiple of that of `against`.
      decay: of the ratio's average over the steps, in [0, 1).
      limit: the ratio is at most this.

    Raises:
      ValueError: when `decay` is outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay={decay} is not in [0, 1)")
    inner = as_weight(of)

    def pull(term: Callable[[Forward], Array], forward: Forward) -> Array:
        image = jax.lax.stop_gradient(forward.fake)
        gradient = jax.grad(lambda x: jnp.mean(term(forward.at(x))))(image)
        return jnp.linalg.norm(gradient.astype(jnp.float32).reshape(-1))

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        total, count, rest = state
        ratio = jnp.minimum(pull(against, forward) / (pull(term, forward) + 1e-6), limit)
        total, count = decay * total + (1 - decay) * ratio, decay * count + (1 - decay)
        scale, rest = inner.fn(forward, term, value, rest)
        return scale * total / count, (total, count, rest)

    return Weight(fn, lambda: (jnp.zeros(()), jnp.zeros(()), inner.init()))


def confidence(of: float | Schedule | Weight = 1.0) -> Weight:
    """Each example's weight is the probability that the teacher's image of it is real.

    `of * sigmoid(D_T(T))` by the teacher's discriminator, `[B]` in (0, of): what the teacher does
    badly is not worth learning. For terms that give one value per example. Where scores are maps,
    it is their mean's.

    Raises:
      ValueError: (when traced) without a teacher or a teacher's discriminator.
    """
    inner = as_weight(of)

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        if forward.teacher_score is None or forward.teacher is None:
            raise ValueError("confidence() needs nets.teacher and nets.teacher_discriminator")
        if value.ndim == 0:
            raise ValueError(
                "confidence() weighs examples, and this term is one value of the batch"
            )
        scale, state = inner.fn(forward, term, value, state)
        scores, _ = forward.teacher_score(forward.teacher)
        scores = scores.reshape(scores.shape[0], -1).mean(axis=1)
        return scale * jax.nn.sigmoid(scores), state

    return Weight(fn, inner.init)


def uncertainty(
    of: float | Schedule | Weight = 1.0,
    *,
    rate: float = 0.01,
    start: float = 1.0,
    limit: float = 1e4,
) -> Weight:
    """The inverse of the term's learned scale, `of * exp(-s)`.

    s descends by gradient on `exp(-s) L + s`, of which `s = log L` is the least: terms of any size
    come to count alike, each the less the larger it stays. For terms that are positive: at 0 and
    below the weight grows to its limit. Kendall et al. 2018, section 3, with `s = log 2 sigma^2`,
    where s / 2 stands for our s; the summand moves no network, and is not part of the total here.

    Args:
      of: what the weight is multiplied by.
      rate: of the descent of s, per step, > 0.
      start: `exp(-s)` before the first step, in (0, limit].
      limit: `exp(-s)` is at most this.

    Raises:
      ValueError: when `rate` is not positive, or `start` not in (0, limit].
    """
    if rate <= 0:
        raise ValueError(f"rate={rate} is not positive")
    if not 0 < start <= limit:
        raise ValueError(f"start={start} is not in (0, limit={limit}]")
    least = -math.log(limit)
    inner = as_weight(of)

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        log_scale, rest = state
        scale, rest = inner.fn(forward, term, value, rest)
        # A step of at most 1 in s: a huge value must not throw it past where it is small.
        slope = jnp.clip(1.0 - jnp.exp(-log_scale) * value.mean(), -1.0 / rate, 1.0 / rate)
        moved = jnp.maximum(log_scale - rate * slope, least)
        return scale * jnp.exp(-log_scale), (moved, rest)

    return Weight(fn, lambda: (-jnp.log(jnp.asarray(start, jnp.float32)), inner.init()))

"""Weights that adapt during training: dynamic distillation.

Each is a `kd_jax.Weight` for the `weight` of any `Term`. Its factor `of` is a number, a
schedule of the step (`optax.linear_schedule(1.0, 0.0, 1000)` fades the teacher out) or another
adaptive weight: `confidence(gradient_balanced(adversarial, 0.5))`. Their values are in the
metrics, as `g/NAME/weight`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.core.objective import Forward, Schedule, Weight, as_weight
from kd_jax.core.types import Array


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


def gradient_balanced(
    against: Callable[[Forward], Array],
    of: float | Schedule | Weight = 1.0,
    *,
    decay: float = 0.9,
    limit: float = 1e4,
) -> Weight:
    """The ratio of two terms' gradient norms at the generated image.

    `of * ||d against / d image|| / (||d term / d image|| + 1e-6)`, norms over the batch: with
    `of = 1` the term and `against` have equal gradient norms at the image, whatever their units.
    Esser et al. 2021 (VQGAN), eq. 7, which measures at the last layer. For a term without gradient
    at the image the ratio reaches the limit.

    Args:
      against: the function of a stateless term, usually the adversarial one.
      of: the target gradient-norm ratio, relative to `against`.
      decay: the decay of the moving average of the ratio, in [0, 1).
      limit: the maximum ratio.

    Raises:
      ValueError: when `decay` is outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay={decay} is not in [0, 1)")
    inner = as_weight(of)

    def gradient_norm(term: Callable[[Forward], Array], forward: Forward) -> Array:
        image = jax.lax.stop_gradient(forward.student.output)
        gradient = jax.grad(lambda x: jnp.mean(term(forward.with_output(x))))(image)
        return jnp.linalg.norm(gradient.astype(jnp.float32).reshape(-1))

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        total, count, rest = state
        ratio = jnp.minimum(
            gradient_norm(against, forward) / (gradient_norm(term, forward) + 1e-6), limit
        )
        total, count = decay * total + (1 - decay) * ratio, decay * count + (1 - decay)
        scale, rest = inner.fn(forward, term, value, rest)
        return scale * total / count, (total, count, rest)

    return Weight(fn, lambda: (jnp.zeros(()), jnp.zeros(()), inner.init()))


def confidence(of: float | Schedule | Weight = 1.0) -> Weight:
    """Weights each example by the probability that the teacher's image is real.

    `of * sigmoid(D_T(T))` by the teacher's discriminator, `[B]` in (0, of), which discounts the
    teacher's failures. For terms with one value per example. Score maps are averaged first.

    Raises:
      ValueError: (when traced) without a teacher or a teacher's discriminator, or for a scalar
        term.
    """
    inner = as_weight(of)

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        if value.ndim == 0:
            raise ValueError(
                "confidence() weights examples, but this term is a scalar for the batch"
            )
        scale, state = inner.fn(forward, term, value, state)
        scores, _ = forward.teacher_discriminator(forward.teacher.output)
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

    s follows gradient descent on `exp(-s) L + s`, whose minimum is at `s = log L`: terms of any
    scale converge to equal contributions. For positive terms only: at 0 and below the weight grows
    to its limit. Kendall et al. 2018, section 3, with `s = log 2 sigma^2`, where s / 2 stands for
    our s; the summand s has no gradient to any network and is not part of the total here.

    Args:
      of: a factor of the weight.
      rate: the learning rate of s, > 0.
      start: `exp(-s)` before the first step, in (0, limit].
      limit: the maximum of `exp(-s)`.

    Raises:
      ValueError: when `rate` is not positive, or `start` not in (0, limit].
    """
    if rate <= 0:
        raise ValueError(f"rate={rate} is not positive")
    if not 0 < start <= limit:
        raise ValueError(f"start={start} is not in (0, limit={limit}]")
    minimum = -math.log(limit)
    inner = as_weight(of)

    def fn(
        forward: Forward, term: Callable[[Forward], Array], value: Array, state: Any
    ) -> tuple[Array, Any]:
        log_scale, rest = state
        scale, rest = inner.fn(forward, term, value, rest)
        # Steps of s are at most 1, so that a huge value cannot overshoot.
        slope = jnp.clip(1.0 - jnp.exp(-log_scale) * value.mean(), -1.0 / rate, 1.0 / rate)
        updated = jnp.maximum(log_scale - rate * slope, minimum)
        return scale * jnp.exp(-log_scale), (updated, rest)

    return Weight(fn, lambda: (-jnp.log(jnp.asarray(start, jnp.float32)), inner.init()))

"""Augmentation as part of a discriminator, and ADA's adaptive augmentation probability."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.augment.ada import augment_pipe
from kd_jax.core.checks import per_example_mean
from kd_jax.core.network import Applied, Network
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import Teacher
from kd_jax.core.state import Metrics, Step, TrainState
from kd_jax.core.types import Array, Batch, Variables

COLLECTION = "augment"
"""The collection of an adaptive discriminator's variables: `p`, `signs` and `count`."""


def with_augmentation(discriminator: Network, augment: Callable[[Array, Array], Array]) -> Network:
    """A discriminator that augments its inputs, real and generated images, during training.

    Gradients with respect to the images, such as those of R1, propagate through the augmentation.
    Outside of training, or without a key, images are not augmented.

    Args:
      discriminator: `(images, ...) -> scores`.
      augment: `augment(key, images) -> images`, such as `diff_augment` or
        `partial(augment_pipe, p=0.2)`.
    """

    def apply(
        variables: Variables,
        images: Array,
        *condition: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        if train and rngs is not None:
            rngs, key = jax.random.split(rngs)
            images = augment(key, images)
        return discriminator.apply(variables, images, *condition, train=train, rngs=rngs, **options)

    return discriminator._replace(apply=apply)


def with_ada(
    discriminator: Network,
    augment: Callable[[Array, Array, Array], Array] = augment_pipe,
    start: float = 0.0,
) -> Network:
    """A discriminator that augments its inputs with a probability stored in its variables.

    The probability is `variables["augment"]["p"]`, a float32 scalar, next to the statistics since
    its last change. It is not a parameter: only `adapt` changes it. It is checkpointed with the
    other variables.

    Args:
      discriminator: `(images, ...) -> scores`.
      augment: `augment(key, images, p) -> images`; by default `augment_pipe`, the
        pipeline of the paper.
      start: the initial probability, in [0, 1].

    Raises:
      ValueError: `start` is outside [0, 1]; or (from the network) `discriminator` already is a
        result of `with_ada`, or the variables have no "augment" collection.
    """
    if not 0.0 <= start <= 1.0:
        raise ValueError(f"start={start} is not a probability in [0, 1]")

    def init(key: Array, *inputs: Any) -> Variables:
        variables = discriminator.init(key, *inputs)
        if COLLECTION in variables:
            raise ValueError(
                f"the discriminator already has variables {COLLECTION!r}: with_ada was applied "
                "twice"
            )
        return {**variables, COLLECTION: _with_zero_counts(jnp.asarray(start, jnp.float32))}

    def apply(variables: Variables, *inputs: Any, **options: Any) -> Applied:
        ada_state = _ada_state(variables)
        network = with_augmentation(
            discriminator, lambda key, images: augment(key, images, ada_state["p"])
        )
        remaining = {name: value for name, value in variables.items() if name != COLLECTION}
        output, taps, after = network.apply(remaining, *inputs, **options)
        return output, taps, {**after, COLLECTION: ada_state}

    return discriminator._replace(init=init, apply=apply)


def sign_statistic() -> Term:
    """The overfitting statistic that `adapt` reads: a discriminator term of weight 0.

    `r_t = E[sign(D(x))]` over the real images: 0 for a discriminator that generalises and 1 for one
    that memorizes the training set. Reported as the metric `d/NAME`. Karras et al. 2020, eq. 1.

    Raises:
      ValueError: (from the term) there are no real images.
    """

    def fn(forward: Forward) -> Array:
        return per_example_mean(jnp.sign(forward.discriminator.real_scores))

    return Term(fn, weight=0.0)


def adapt(
    step: Step[TrainState],
    *,
    target: float = 0.6,
    interval: int = 4,
    images: int = 500_000,
    term: str = "sign_statistic",
) -> Step[TrainState]:
    """A step that also adapts the augmentation probability to the discriminator's overfitting.

    Every `interval` steps, p increases if r_t, the mean of `sign(D(x))` over the real images since
    the last change, is above `target`, and decreases if it is below, at a rate that takes it from 0
    to 1 in `images` real images; p is clipped to [0, 1]. Karras et al. 2020, section 3.

    Args:
      step: a training step whose discriminator is from `with_ada`, with the term
        `sign_statistic()`.
      target: the target of r_t, in (-1, 1).
      interval: the number of steps between changes.
      images: the number of real images in which p can change from 0 to 1.
      term: the name of `sign_statistic()` among the discriminator's terms.

    Returns:
      A step with the additional metric `augment/p`, the probability after the step.

    Raises:
      ValueError: an argument is out of range; or (when traced) the discriminator is not from
        `with_ada`, the step does not have the term, or the batch is empty.
    """
    if not -1.0 < target < 1.0:
        raise ValueError(f"target={target} is not in (-1, 1), the range of a mean of signs")
    if interval < 1 or images < 1:
        raise ValueError(f"interval={interval} and images={images} must both be at least 1")

    def adapting_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _ada_state(state.discriminator.variables if state.discriminator else {})
        leaves = jax.tree.leaves(dict(batch))
        if not leaves:
            raise ValueError("adapt() counts the images of the batch, but the batch is empty")
        state, metrics = step(state, teacher_variables, batch)
        if f"d/{term}" not in metrics:
            raise ValueError(
                f"adapt() reads the metric 'd/{term}', which the step does not return: add "
                f"sign_statistic() to the discriminator terms as {term!r}"
            )
        network = state.discriminator
        before, batch_size = network.variables[COLLECTION], leaves[0].shape[0]
        signs = before["signs"] + batch_size * metrics[f"d/{term}"]
        count = before["count"] + batch_size
        direction = jnp.sign(signs / count - target)
        p = jnp.clip(before["p"] + direction * (count / images), 0.0, 1.0)
        after = jax.tree.map(
            lambda new, old: jnp.where(state.step % interval == 0, new, old),
            _with_zero_counts(p),
            {"p": before["p"], "signs": signs, "count": count},
        )
        variables = {**network.variables, COLLECTION: after}
        state = state._replace(discriminator=network._replace(variables=variables))
        return state, {**metrics, "augment/p": after["p"]}

    return adapting_step


def _with_zero_counts(p: Array) -> dict[str, Array]:
    """The collection after a change of p, with the sum of signs and the image count reset."""
    return {"p": p, "signs": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}


def _ada_state(variables: Variables) -> dict[str, Array]:
    if COLLECTION not in variables:
        raise ValueError(
            f"the discriminator's variables must have {COLLECTION!r}, got "
            f"{', '.join(variables) or 'none'}: create the network with with_ada()"
        )
    return variables[COLLECTION]

"""Augmentation as part of a discriminator, and ADA's probability that follows its overfitting."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.augment.ada import augment_pipe
from kd_jax.checks import per_example_mean
from kd_jax.network import Applied, Network
from kd_jax.objective import Forward, Term
from kd_jax.state import Teacher, TrainState
from kd_jax.step import Metrics, Step
from kd_jax.types import Array, Batch, Variables

COLLECTION = "augment"
"""The collection of an adaptive discriminator's variables: `p`, `signs` and `count`."""


def with_augmentation(discriminator: Network, augment: Callable[[Array, Array], Array]) -> Network:
    """`discriminator`, which in training sees its images augmented, real and generated ones.

    Gradients with respect to the images, R1's too, pass through the augmentation. Outside of
    training, or without a key, images are seen as they are.

    Args:
      discriminator: `(images, ...) -> scores`.
      augment: `augment(key, images) -> images`: `diff_augment`, say, or
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
    """`discriminator`, augmented with a probability that is part of its variables.

    `adapt` changes it; without that it stays. It is `variables["augment"]["p"]`, a float32 scalar,
    beside what has been counted since its last change: no parameter, and checkpointed with the
    rest.

    Args:
      discriminator: `(images, ...) -> scores`.
      augment: `augment(key, images, p) -> images`; by default the paper's, `augment_pipe`.
      start: the probability before the first step, in [0, 1].

    Raises:
      ValueError: `start` is outside [0, 1]; or (of the network) the discriminator is adaptive
        already, or the variables are not an adaptive network's.
    """
    if not 0.0 <= start <= 1.0:
        raise ValueError(f"start={start} is no probability: it must be in [0, 1]")

    def init(key: Array, *inputs: Any) -> Variables:
        variables = discriminator.init(key, *inputs)
        if COLLECTION in variables:
            raise ValueError("the discriminator is adaptive already")
        return {**variables, COLLECTION: _counted_from(jnp.asarray(start, jnp.float32))}

    def apply(variables: Variables, *inputs: Any, **options: Any) -> Applied:
        mine = _adaptive(variables)
        network = with_augmentation(
            discriminator, lambda key, images: augment(key, images, mine["p"])
        )
        others = {name: value for name, value in variables.items() if name != COLLECTION}
        output, taps, after = network.apply(others, *inputs, **options)
        return output, taps, {**after, COLLECTION: mine}

    return discriminator._replace(init=init, apply=apply)


def sign_statistic() -> Term:
    """What `adapt` goes by, a discriminator's term that changes nothing: the metric `d/NAME`.

    `r_t = E[sign(D(x))]` over the real images, 0 for a discriminator that generalises and 1 for one
    that knows them all by heart. Karras et al. 2020, eq. 1.

    Raises:
      ValueError: (of the term) there are no real images.
    """

    def fn(forward: Forward) -> Array:
        if forward.real_scores is None:
            raise ValueError("overfitting shows on real images, and there are none")
        return per_example_mean(jnp.sign(forward.real_scores))

    return Term(fn, weight=0.0)


def adapt(
    step: Step[TrainState],
    *,
    target: float = 0.6,
    interval: int = 4,
    images: int = 500_000,
    term: str = "sign_statistic",
) -> Step[TrainState]:
    """`step`, after which the probability of augmentation follows the discriminator's overfitting.

    Each `interval` steps p rises if r_t, the mean of `sign(D(x))` over the real images since the
    last time, is above `target`, and falls if it is below, so fast that it crosses [0, 1] in as
    many real images as `images` says; it stays in [0, 1]. Karras et al. 2020, section 3.

    Args:
      step: of an discriminator of `with_ada`, whose terms have `sign_statistic()`.
      target: of r_t, in (-1, 1).
      interval: steps between changes.
      images: how many it takes from 0 to 1.
      term: the name of `sign_statistic()` among the discriminator's terms.

    Returns:
      A step with the metric `augment/p`, the probability after it.

    Raises:
      ValueError: a number is out of its range; or (when traced) the discriminator is not adaptive,
        the step has no such term, or the batch is empty.
    """
    if not -1.0 < target < 1.0:
        raise ValueError(f"target={target} of a mean of signs is not in (-1, 1)")
    if interval < 1 or images < 1:
        raise ValueError(f"interval={interval} and images={images} must both be at least 1")

    def adapting_step(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        _adaptive(state.discriminator.variables if state.discriminator else {})
        leaves = jax.tree.leaves(dict(batch))
        if not leaves:
            raise ValueError("adapt() counts the batch's images, and the batch is empty")
        state, metrics = step(state, teacher_variables, batch)
        if f"d/{term}" not in metrics:
            raise ValueError(
                f"adapt() reads the metric 'd/{term}': give the discriminator the term "
                f"{term!r}: sign_statistic()"
            )
        player = state.discriminator
        before, seen = player.variables[COLLECTION], leaves[0].shape[0]
        signs = before["signs"] + seen * metrics[f"d/{term}"]
        count = before["count"] + seen
        towards = jnp.sign(signs / count - target)
        moved = jnp.clip(before["p"] + towards * (count / images), 0.0, 1.0)
        after = jax.tree.map(
            lambda new, old: jnp.where(state.step % interval == 0, new, old),
            _counted_from(moved),
            {"p": before["p"], "signs": signs, "count": count},
        )
        variables = {**player.variables, COLLECTION: after}
        state = state._replace(discriminator=player._replace(variables=variables))
        return state, {**metrics, "augment/p": after["p"]}

    return adapting_step


def _counted_from(p: Array) -> dict[str, Array]:
    """The collection just after a change of p: images counted since, and the sum of their signs."""
    return {"p": p, "signs": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}


def _adaptive(variables: Variables) -> dict[str, Array]:
    if COLLECTION not in variables:
        raise ValueError(
            f"an adaptive discriminator's variables have {COLLECTION!r}; these have "
            f"{', '.join(variables) or 'nothing'}: make the network with adaptive()"
        )
    return variables[COLLECTION]

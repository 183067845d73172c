"""What a player minimises: named terms, each a function of everything one forward pass knows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.checks import at_least_float32
from kd_jax.types import Array, Batch, Taps

Schedule: TypeAlias = Callable[[Array], Any]
"""A number that depends on the step, as in optax."""


class Inputs(NamedTuple):
    """What the networks see in one pass.

    Attributes:
      generator: the positional inputs of the generator and of the teacher: `(latents, labels)`.
      condition: the discriminator's inputs after the image: `(labels,)`.
      real: the images `[B, ...]` that the discriminator takes for real; None where there are none.
      extra: whatever else the terms of a task read (masks, class labels, ...), by name.
    """

    generator: tuple[Any, ...]
    condition: tuple[Any, ...] = ()
    real: Array | None = None
    extra: Mapping[str, Any] = {}


MakeInputs: TypeAlias = Callable[[Array, Batch], Inputs]
"""`(key, batch) -> Inputs`: a task. Latents are drawn here, from the key."""


def latents(size: int, conditional: bool = True) -> MakeInputs:
    """The task of generating images from noise, given class labels or not.

    Args:
      size: the latent's length; latents are standard normal `[B, size]`.
      conditional: whether the networks take `batch["label"]`, int `[B]`, beside the latents.

    Raises:
      ValueError: (of the task) when the batch has neither `label` nor `image` to count.
    """

    def make(key: Array, batch: Batch) -> Inputs:
        counted = batch.get("label", batch.get("image"))
        if counted is None or (conditional and "label" not in batch):
            needed = "'label'" if conditional else "'label' or 'image'"
            raise ValueError(f"the batch has {sorted(batch)}; drawing latents needs {needed}")
        labels = (batch["label"],) if conditional else ()
        count = counted.shape[0]
        z = jax.random.normal(key, (count, size))
        return Inputs((z, *labels), labels, batch.get("image"), batch)

    return make


class Forward(NamedTuple):
    """All that a term may read. `[B, ...]` everywhere; what no term reads is not computed.

    Attributes:
      step: the traced step, int scalar.
      key: a key of this player and step, for terms that draw (fold in a constant of your own).
      inputs: what the networks were given.
      real: the real images, or None.
      fake: the student generator's images for `inputs.generator`.
      taps: the student generator's taps.
      teacher: the teacher's images for the same inputs, without gradient; None without a teacher.
      teacher_taps: the teacher's taps; None without a teacher.
      real_scores, real_taps: the student discriminator's on the real images; None without those.
      fake_scores, fake_taps: the student discriminator's on the generated images.
      generate: `generate(*inputs) -> (images, taps)`, the student generator in further passes.
      teach: `teach(*inputs) -> (images, taps)`, the teacher likewise; None without a teacher.
      score: `score(images) -> (scores, taps)`, the student discriminator, same condition.
      teacher_score: `teacher_score(images) -> (scores, taps)`, the teacher's discriminator; None
        without one.
    """

    step: Array
    key: Array
    inputs: Inputs
    real: Array | None
    fake: Array
    taps: Taps
    teacher: Array | None
    teacher_taps: Taps | None
    real_scores: Array | None
    real_taps: Taps | None
    fake_scores: Array
    fake_taps: Taps
    generate: Callable[..., tuple[Array, Taps]]
    teach: Callable[..., tuple[Array, Taps]] | None
    score: Callable[[Array], tuple[Array, Taps]]
    teacher_score: Callable[[Array], tuple[Array, Taps]] | None


class Term(NamedTuple):
    """One summand of a player's objective: `weight * mean(fn(forward))`.

    Attributes:
      fn: `fn(forward) -> [B]`, or a scalar where it relates the examples of the batch; with `init`,
        `fn(forward, term_state) -> (value, term_state)`.
      weight: a number, or a schedule of the step.
      every: evaluate only each `every`-th step, with `every` times the weight (lazy
        regularisation, Karras et al. 2020, section 3.1).
      init: `init() -> term_state`, for a term that remembers. Its state is part of the train state.
    """

    fn: Callable[..., Any]
    weight: float | Schedule = 1.0
    every: int = 1
    init: Callable[[], Any] | None = None


Terms: TypeAlias = Mapping[str, Term]


class TermState(NamedTuple):
    """What the train state keeps of one term.

    Attributes:
      state: what a stateful term remembers; empty for others.
      last: a lazy term's value when it was last evaluated; empty for others.
    """

    state: Any = ()
    last: Any = ()


def init_terms(terms: Terms) -> dict[str, TermState]:
    """The state of each term before the first step.

    Raises:
      ValueError: when an entry is not a `Term`, or its `every` is not a positive integer.
    """
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise ValueError(f"term {name!r} is a {type(term).__name__}; write Term(fn, weight)")
        if not isinstance(term.every, int) or term.every < 1:
            raise ValueError(f"term {name!r}: every={term.every!r} is not a positive integer")
    return {
        name: TermState(
            state=term.init() if term.init else (),
            last=jnp.zeros(()) if term.every > 1 else (),
        )
        for name, term in terms.items()
    }


def weighted_total(
    terms: Terms, forward: Forward, states: Mapping[str, TermState]
) -> tuple[Array, dict[str, Array], dict[str, TermState]]:
    """The objective: the sum of the terms' means, each times its weight.

    Returns:
      The total (scalar), each term's unweighted mean (of a lazy term, the latest one evaluated),
      and the terms' states after this step.

    Raises:
      ValueError: when a term fails or returns another shape than `[B]` or `[]`; it names the term.
    """
    total, values, after = jnp.zeros(()), {}, {}
    for name, term in terms.items():
        kept = states[name]

        def evaluate(
            name: str = name, term: Term = term, kept: TermState = kept
        ) -> tuple[Array, Any]:
            return _evaluate(name, term, forward, kept.state)

        weight = term.weight(forward.step) if callable(term.weight) else term.weight
        if term.every == 1:
            value, state = evaluate()
            last: Any = ()
        else:
            due = forward.step % term.every == 0
            idle = jax.eval_shape(lambda evaluate=evaluate: evaluate()[0])
            value, state = jax.lax.cond(
                due,
                evaluate,
                lambda idle=idle, kept=kept: (jnp.zeros(idle.shape, idle.dtype), kept.state),
            )
            weight = weight * term.every
            last = jnp.where(due, value, kept.last)
        total = total + weight * value
        values[name] = value if term.every == 1 else last
        after[name] = TermState(state, jax.lax.stop_gradient(last))
    return total, values, after


def _evaluate(name: str, term: Term, forward: Forward, state: Any) -> tuple[Array, Any]:
    try:
        value, state = term.fn(forward, state) if term.init else (term.fn(forward), ())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"term {name!r}: {error}") from error
    value = at_least_float32(value)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] != forward.fake.shape[0]):
        raise ValueError(
            f"term {name!r} returned shape {value.shape}; it must return one value per example "
            f"({forward.fake.shape[0]},) or a scalar ()"
        )
    return value.mean(), jax.lax.stop_gradient(state)

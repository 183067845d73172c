"""Objectives: named, weighted terms, each a function of the results of one forward pass."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array, Batch, Taps

Schedule: TypeAlias = Callable[[Array], Any]
"""A function from the step to a number, as in optax."""


class Inputs(NamedTuple):
    """The inputs of the networks in one pass.

    Attributes:
      generator: the positional inputs of the generator and of the teacher: `(latents, labels)`.
      condition: the discriminator's inputs after the image: `(labels,)`.
      real: the real images `[B, ...]` for the discriminator, or the targets; None without either.
      extra: further arrays that the terms of a task read (masks, class labels, ...), by name.
    """

    generator: tuple[Any, ...]
    condition: tuple[Any, ...] = ()
    real: Array | None = None
    extra: Mapping[str, Any] = {}


MakeInputs: TypeAlias = Callable[[Array, Batch], Inputs]
"""`(key, batch) -> Inputs`: a task, which draws all random inputs; see `kd_jax.tasks`."""


class BoundNetwork(NamedTuple):
    """A network with its variables, for further passes: `bound(*inputs) -> (output, taps)`.

    Attributes:
      apply: `apply(*inputs) -> (output, taps)`, which a call runs.
      mapping: for a style network, `mapping(*inputs, **options) -> styles`; None for others.
      synthesis: for a style network, `synthesis(styles, **options) -> (images, taps)`; None for
        others.
    """

    apply: Callable[..., tuple[Array, Taps]]
    mapping: Callable[..., Array] | None = None
    synthesis: Callable[..., tuple[Array, Taps]] | None = None

    def __call__(self, *inputs: Any) -> tuple[Array, Taps]:
        """The output and the taps for these inputs."""
        return self.apply(*inputs)


class Forward(NamedTuple):
    """The values that a term may read. Arrays are `[B, ...]`; under jit, unused ones cost nothing.

    Attributes:
      step: the traced step, int scalar.
      key: a key for this network and step, for terms that draw (fold in a constant of your own).
      inputs: the inputs of the networks.
      real: the real images, or None.
      fake: the student generator's images for `inputs.generator`.
      taps: the student generator's taps.
      teacher: the teacher's images for the same inputs, without gradient; None without a teacher.
      teacher_taps: the teacher's taps, without gradient; None without a teacher.
      real_scores, real_taps: the student discriminator's outputs on the real images; None without
        real images or a discriminator.
      fake_scores, fake_taps: the student discriminator's outputs on the generated images; None
        without a discriminator.
      generate: `generate(*inputs) -> (images, taps)`, further passes of the student generator; for
        a style network also `generate.mapping` and `generate.synthesis`.
      teacher_fn: `teacher_fn(*inputs) -> (images, taps)`, further passes of the teacher; None
        without a teacher.
      discriminate: `discriminate(images) -> (scores, taps)`, the student discriminator under the
        same condition; None without a discriminator.
      teacher_discriminate: `teacher_discriminate(images) -> (scores, taps)`, the teacher's
        discriminator; None without one.
      extract: `extract(images) -> taps`, the extractor's features; raises without an extractor.
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
    fake_scores: Any
    fake_taps: Any
    generate: BoundNetwork
    teacher_fn: BoundNetwork | None
    discriminate: Any
    teacher_discriminate: BoundNetwork | None
    extract: Callable[[Array], Taps]

    def with_fake(self, image: Array) -> "Forward":
        """The same pass with `image` as the generated one, and its discriminator scores and taps.

        A term's gradient at the image is that of `lambda x: term(forward.with_fake(x))`. The
        generator's taps are unchanged, so a term that reads only these has gradient 0.
        """
        if self.discriminate is None:
            return self._replace(fake=image)
        scores, taps = self.discriminate(image)
        return self._replace(fake=image, fake_scores=scores, fake_taps=taps)


class Weight(NamedTuple):
    """A weight that adapts during training; see `kd_jax.methods.weights`.

    Attributes:
      fn: `fn(forward, term, value, weight_state) -> (weight, weight_state)`, where `value` is the
        term's value, `[B]` or a scalar, and `term(forward)` computes it for another forward. The
        weight is a scalar, or `[B]`, one for each example. No gradient passes through it.
      init: `init() -> weight_state`; by default the state is empty.
    """

    fn: Callable[..., tuple[Any, Any]]
    init: Callable[[], Any] = tuple


def as_weight(weight: "float | Schedule | Weight") -> Weight:
    """A number or a schedule of the step, as a `Weight`."""
    if isinstance(weight, Weight):
        return weight
    if callable(weight):
        return Weight(lambda forward, _, value, state: (weight(forward.step), state))
    return Weight(lambda forward, _, value, state: (weight, state))


class Term(NamedTuple):
    """A summand of a network's objective: `weight * mean(fn(forward))`.

    Attributes:
      fn: `fn(forward) -> [B]`, or a scalar for a term that relates the examples of the batch; with
        `init`, `fn(forward, term_state) -> (value, term_state)`.
      weight: a number, a schedule of the step, or a `Weight`.
      every: evaluate only every `every`-th step, with `every` times the weight (lazy
        regularisation, Karras et al. 2020, section 3.1).
      init: `init() -> term_state`, for a stateful term. Its state is part of the train state.
      lower_bound: the smallest possible value, if the term has no useful gradient there;
        `kd_jax.train.diagnostics` warns when a term reaches it.
    """

    fn: Callable[..., Any]
    weight: float | Schedule | Weight = 1.0
    every: int = 1
    init: Callable[[], Any] | None = None
    lower_bound: float | None = None


Terms: TypeAlias = Mapping[str, Term]


class TermState(NamedTuple):
    """The state of one term, part of the train state.

    Attributes:
      state: the state of a stateful term; empty for others.
      weight: the state of its weight; empty for numbers and schedules.
      last: the last evaluated value and weight of a lazy term; empty for others.
    """

    state: Any = ()
    weight: Any = ()
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
            weight=as_weight(term.weight).init(),
            last=(jnp.zeros(()), jnp.zeros(())) if term.every > 1 else (),
        )
        for name, term in terms.items()
    }


def weighted_total(
    terms: Terms, forward: Forward, states: Mapping[str, TermState]
) -> tuple[Array, dict[str, Array], dict[str, TermState]]:
    """The objective: the weighted sum of the terms' means.

    Returns:
      The total, a scalar; the metrics: each term's unweighted mean, and each weight that is not a
      number as `NAME/weight` (for a lazy term, as last evaluated); the terms' states after this
      step.

    Raises:
      ValueError: when a term fails or returns a shape other than `[B]` or `[]`; the message names
        the term.
    """
    total, metrics, after = jnp.zeros(()), {}, {}
    for name, term in terms.items():
        previous = states[name]

        def evaluate(
            name: str = name, term: Term = term, previous: TermState = previous
        ) -> _Evaluated:
            return _evaluate(name, term, forward, previous)

        if term.every == 1:
            result = evaluate()
            value, weight, last = result.value, result.weight, ()
        else:
            due = forward.step % term.every == 0
            idle = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate)
            )._replace(state=previous.state, weight_state=previous.weight)
            result = jax.lax.cond(due, evaluate, lambda idle=idle: idle)
            value, weight = last = jax.tree.map(
                lambda new, old, due=due: jnp.where(due, new, old),
                (result.value, result.weight),
                previous.last,
            )
        total = total + term.every * result.weighted
        metrics[name] = value
        if callable(term.weight) or isinstance(term.weight, Weight):
            metrics[f"{name}/weight"] = weight
        after[name] = jax.lax.stop_gradient(TermState(result.state, result.weight_state, last))
    return total, metrics, after


class _Evaluated(NamedTuple):
    weighted: Array
    value: Array
    weight: Array
    state: Any
    weight_state: Any


def _evaluate(name: str, term: Term, forward: Forward, previous: TermState) -> _Evaluated:
    def compute(forward: Forward) -> tuple[Array, Any]:
        return term.fn(forward, previous.state) if term.init else (term.fn(forward), ())

    try:
        value, state = compute(forward)
        value = at_least_float32(value)
        weight, weight_state = as_weight(term.weight).fn(
            forward, lambda other: at_least_float32(compute(other)[0]), value, previous.weight
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"term {name!r}: {error}") from error
    examples = forward.fake.shape[:1]
    if value.shape not in ((), examples):
        raise ValueError(
            f"term {name!r} returned shape {value.shape}; it must return one value per example "
            f"{examples} or a scalar ()"
        )
    weight = jax.lax.stop_gradient(at_least_float32(weight))
    if weight.shape not in ((), value.shape):
        raise ValueError(
            f"term {name!r}: a weight {weight.shape} does not fit values {value.shape}"
        )
    mean = value.mean()
    weighted = (weight * value).mean() if weight.ndim else weight * mean
    return _Evaluated(weighted, mean, weight.mean(), state, weight_state)

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
"""`(key, batch) -> Inputs`: a task; `kd_jax.tasks` has several. What is random is drawn here."""


class Bound(NamedTuple):
    """A network with its variables, for further passes: `bound(*inputs) -> (output, taps)`.

    Attributes:
      apply: what a call calls.
      mapping: of a style network `mapping(*inputs, **options) -> styles`; None of others.
      synthesis: of a style network `synthesis(styles, **options) -> (images, taps)`.
    """

    apply: Callable[..., tuple[Array, Taps]]
    mapping: Callable[..., Array] | None = None
    synthesis: Callable[..., tuple[Array, Taps]] | None = None

    def __call__(self, *inputs: Any) -> tuple[Array, Taps]:
        """The output and the taps for these inputs."""
        return self.apply(*inputs)


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
      fake_scores, fake_taps: the student discriminator's on the generated images; these, the former
        and `score` are None where there is no discriminator.
      generate: `generate(*inputs) -> (images, taps)`, the student generator in further passes; of
        a style network also `generate.mapping` and `generate.synthesis`.
      teach: `teach(*inputs) -> (images, taps)`, the teacher likewise; None without a teacher.
      score: `score(images) -> (scores, taps)`, the student discriminator, same condition.
      teacher_score: `teacher_score(images) -> (scores, taps)`, the teacher's discriminator; None
        without one.
      extract: `extract(images) -> taps`, the extractor's features; an error without one.
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
    generate: Bound
    teach: Bound | None
    score: Any
    teacher_score: Bound | None
    extract: Callable[[Array], Taps]

    def at(self, image: Array) -> "Forward":
        """The same pass as if `image` had been generated: it and its scores are other ones.

        A term's gradient at the image is that of `lambda x: term(forward.at(x))`. The generator's
        taps stay, so that a term that reads nothing else has none.
        """
        if self.score is None:
            return self._replace(fake=image)
        scores, taps = self.score(image)
        return self._replace(fake=image, fake_scores=scores, fake_taps=taps)


class Weight(NamedTuple):
    """A weight that adapts to what it sees; `kd_jax.weights` has several.

    Attributes:
      fn: `fn(forward, term, value, weight_state) -> (weight, weight_state)`, where `value` is the
        term's value, `[B]` or a scalar, and `term(forward)` computes it for another forward. The
        weight is a scalar, or `[B]`, one for each example. No gradient passes through it.
      init: `init() -> weight_state`, where it remembers anything.
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
    """One summand of a player's objective: `weight * mean(fn(forward))`.

    Attributes:
      fn: `fn(forward) -> [B]`, or a scalar where it relates the examples of the batch; with `init`,
        `fn(forward, term_state) -> (value, term_state)`.
      weight: a number, a schedule of the step, or a `Weight`.
      every: evaluate only each `every`-th step, with `every` times the weight (lazy
        regularisation, Karras et al. 2020, section 3.1).
      init: `init() -> term_state`, for a term that remembers. Its state is part of the train state.
      floor: the least value that the term can take, where it has nothing left to say there:
        `kd_jax.health` warns of a term that has got to it.
    """

    fn: Callable[..., Any]
    weight: float | Schedule | Weight = 1.0
    every: int = 1
    init: Callable[[], Any] | None = None
    floor: float | None = None


Terms: TypeAlias = Mapping[str, Term]


class TermState(NamedTuple):
    """What the train state keeps of one term.

    Attributes:
      state: what a stateful term remembers; empty for others.
      weight: what its weight remembers; empty for numbers and schedules.
      last: a lazy term's value and weight when last evaluated; empty for others.
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
    """The objective: the sum of the terms' means, each times its weight.

    Returns:
      The total (scalar); the metrics: each term's unweighted mean, and as `NAME/weight` each weight
      that is not a number (of a lazy term, what was last evaluated); the terms' states after this
      step.

    Raises:
      ValueError: when a term fails or returns another shape than `[B]` or `[]`; it names the term.
    """
    total, metrics, after = jnp.zeros(()), {}, {}
    for name, term in terms.items():
        kept = states[name]

        def evaluate(name: str = name, term: Term = term, kept: TermState = kept) -> _Evaluated:
            return _evaluate(name, term, forward, kept)

        if term.every == 1:
            result = evaluate()
            value, weight, last = result.value, result.weight, ()
        else:
            due = forward.step % term.every == 0
            idle = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate)
            )._replace(state=kept.state, weight_state=kept.weight)
            result = jax.lax.cond(due, evaluate, lambda idle=idle: idle)
            value, weight = last = jax.tree.map(
                lambda new, old, due=due: jnp.where(due, new, old),
                (result.value, result.weight),
                kept.last,
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


def _evaluate(name: str, term: Term, forward: Forward, kept: TermState) -> _Evaluated:
    def compute(forward: Forward) -> tuple[Array, Any]:
        return term.fn(forward, kept.state) if term.init else (term.fn(forward), ())

    try:
        value, state = compute(forward)
        value = at_least_float32(value)
        weight, weight_state = as_weight(term.weight).fn(
            forward, lambda other: at_least_float32(compute(other)[0]), value, kept.weight
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

"""Objectives: named, weighted terms, each a function of the results of one forward pass."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.representation import record_repr
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
      answer: the teacher's output for these inputs, where it was computed before. The teacher then
        runs only for features and further passes that a term reads.
    """

    generator: tuple[Any, ...]
    condition: tuple[Any, ...] = ()
    real: Array | None = None
    extra: Mapping[str, Any] = {}
    answer: Array | None = None


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


class Absent:
    """Stands for a part that a step does not have: false, and any use of it raises a ValueError."""

    def __init__(self, message: str):
        self._message = message

    def __bool__(self) -> bool:
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises the ValueError."""
        raise ValueError(self._message)

    def __getattr__(self, name: str) -> Any:
        raise ValueError(self._message)


def _absent(name: str) -> Any:
    return Absent(f"the step has no {name}: networks.{name} is None")


@dataclasses.dataclass(frozen=True)
class GeneratorPass:
    """A generator's results for the inputs of the step; a call is a further pass.

    Attributes:
      output: the images (or waveforms, logits), `[B, ...]`.
      taps: its features, by name.
      network: the generator with its variables: `network(*inputs) -> (output, taps)`.
    """

    output: Array
    taps: Taps
    network: BoundNetwork

    def __call__(self, *inputs: Any) -> tuple[Array, Taps]:
        """The output and the taps for other inputs."""
        return self.network(*inputs)

    @property
    def is_style(self) -> bool:
        """Whether `mapping` and `synthesis` exist."""
        return None not in (self.network.mapping, self.network.synthesis)

    @property
    def mapping(self) -> Callable[..., Array]:
        """Of a style network: `mapping(*inputs, **options) -> styles [B, layers, style]`."""
        if self.network.mapping is None:
            raise ValueError("the generator is not a style network: it has no mapping")
        return self.network.mapping

    @property
    def synthesis(self) -> Callable[..., tuple[Array, Taps]]:
        """Of a style network: `synthesis(styles, **options) -> (images, taps)`."""
        if self.network.synthesis is None:
            raise ValueError("the generator is not a style network: it has no synthesis")
        return self.network.synthesis


@dataclasses.dataclass(frozen=True)
class DiscriminatorPass:
    """The discriminator's results; a call scores other images under the same condition.

    Attributes:
      fake_scores, fake_taps: for the generator's output.
      real: `(scores, taps)` for the real images; None without any.
      network: the discriminator with its variables: `network(images) -> (scores, taps)`.
    """

    fake_scores: Array
    fake_taps: Taps
    real: tuple[Array, Taps] | None
    network: BoundNetwork

    def __call__(self, images: Array) -> tuple[Array, Taps]:
        """The scores and the taps for other images."""
        return self.network(images)

    @property
    def real_scores(self) -> Array:
        """The scores of the real images."""
        return self._real()[0]

    @property
    def real_taps(self) -> Taps:
        """The features of the real images, by name."""
        return self._real()[1]

    def _real(self) -> tuple[Array, Taps]:
        if self.real is None:
            raise ValueError(_NO_REAL)
        return self.real


_NO_REAL = "there are no real images: the task returns Inputs(real=None)"


class Forward(NamedTuple):
    """The values that a term may read. Arrays are `[B, ...]`; under jit, unused ones cost nothing.

    A part that the step does not have is false (`if forward.teacher`), and raises when it is used.

    Attributes:
      step: the traced step, int scalar.
      key: a key for this network and step, for terms that draw (fold in a constant of your own).
      inputs: the inputs of the networks.
      student: the trained generator's pass: `student.output`, `student.taps["8x8"]`,
        `student(*inputs)`; of a style network also `student.mapping` and `student.synthesis`.
      teacher: the teacher's pass for the same inputs, without gradient.
      discriminator: the trained discriminator's: `discriminator.fake_scores`, `fake_taps`,
        `real_scores`, `real_taps`, `discriminator(images) -> (scores, taps)`.
      teacher_discriminator: `teacher_discriminator(images) -> (scores, taps)`.
      extractor: `extractor(images) -> (output, taps)`, the network whose features compare images.
    """

    step: Array
    key: Array
    inputs: Inputs
    student: GeneratorPass
    teacher: GeneratorPass = _absent("teacher")
    discriminator: DiscriminatorPass = _absent("discriminator")
    teacher_discriminator: BoundNetwork = _absent("teacher_discriminator")
    extractor: BoundNetwork = _absent("extractor")

    @property
    def real(self) -> Array:
        """The real images, or the targets, `[B, ...]`."""
        if self.inputs.real is None:
            raise ValueError(_NO_REAL)
        return self.inputs.real

    def with_output(self, output: Array) -> "Forward":
        """The same pass with another output of the student, and the discriminator's scores of it.

        A term's gradient at the output is that of `lambda x: term(forward.with_output(x))`. The
        generator's taps are unchanged, so a term that reads only these has gradient 0.
        """
        changed = self._replace(student=dataclasses.replace(self.student, output=output))
        if not self.discriminator:
            return changed
        scores, taps = self.discriminator(output)
        return changed._replace(
            discriminator=dataclasses.replace(
                self.discriminator, fake_scores=scores, fake_taps=taps
            )
        )


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

    def __repr__(self) -> str:
        return record_repr(self)


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

    def __repr__(self) -> str:
        return record_repr(self)


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
    """The state of each term before the first step."""
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
      ValueError: when a term fails, returns a shape other than `[B]` or `[]`, or has no state; the
        message names the term.
    """
    if missing := [name for name in terms if name not in states]:
        raise ValueError(
            f"the state has no term {missing[0]!r}; it has {', '.join(states) or 'none'}: it "
            "belongs to another setup"
        )
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
    except AttributeError as error:
        part = error.obj
        if not isinstance(part, Forward | GeneratorPass | DiscriminatorPass | Inputs):
            raise
        known = [attribute for attribute in dir(part) if not attribute.startswith("_")]
        known = [attribute for attribute in known if attribute not in ("count", "index")]
        raise ValueError(
            f"term {name!r}: {type(part).__name__} has no {error.name!r}; it has {', '.join(known)}"
        ) from error
    examples = forward.student.output.shape[:1]
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

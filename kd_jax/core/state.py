"""The state of a training run, as one pytree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax

from kd_jax.core.network import Network
from kd_jax.core.objective import MakeInputs, Terms, TermState, init_terms
from kd_jax.core.types import Array, Batch, Variables


class PerNetwork(NamedTuple):
    """A value for the generator and one for the discriminator."""

    generator: Any
    discriminator: Any = None


class Teacher(NamedTuple):
    """The variables of the frozen networks: the argument `teacher_variables` of every step.

    Attributes:
      generator, discriminator: the teacher's.
      extractor: those of the network whose features compare images.
    """

    generator: Any = None
    discriminator: Any = None
    extractor: Any = None


class Networks(NamedTuple):
    """The networks of one step.

    Attributes:
      generator, discriminator: the student's, trained. Without a discriminator, the teacher is the
        generator's only supervision.
      teacher: the frozen teacher generator, with the same inputs as `generator`.
      teacher_discriminator: the frozen teacher discriminator.
      extractor: a frozen network whose taps are the features that compare images, such as VGG.
    """

    generator: Network
    discriminator: Network | None = None
    teacher: Network | None = None
    teacher_discriminator: Network | None = None
    extractor: Network | None = None


class NetworkState(NamedTuple):
    """A trained network: its variables, and its optimizer state over `variables["params"]`."""

    variables: Variables
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """Everything that a step updates and a checkpoint must hold.

    Attributes:
      step: the number of steps taken, int32 scalar.
      key: the run's typed PRNG key; constant, each step folds its number in.
      generator, discriminator: the trained networks; `()` without a discriminator.
      ema: the exponential moving average of the generator's variables, for evaluation and
        deployment.
      terms: the terms' states, by network.
      teachers: for `kd_jax.online_distillation`, the teachers' train states, by name.
      skipped: for `kd_jax.skip_nonfinite`, the number of skipped steps, int32 scalar.
    """

    step: Array
    key: Array
    generator: NetworkState
    discriminator: Any
    ema: Variables
    terms: PerNetwork
    teachers: Mapping[str, "TrainState"] = {}
    skipped: Any = ()


Metrics: TypeAlias = dict[str, Array]
State = TypeVar("State")
Step: TypeAlias = Callable[[State, Teacher | None, Batch], tuple[State, Metrics]]
"""`(state, teacher_variables, batch) -> (state, metrics)`."""

_INIT = 2**32 - 1  # folded into the key; larger than any step number


def init_state(
    key: Array,
    batch: Batch,
    *,
    nets: Networks,
    optimizers: PerNetwork,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    start: Mapping[str, Variables] | None = None,
) -> TrainState:
    """The state before the first step.

    A pure function of `key` and `batch`: under `jax.jit(..., out_shardings=...)` a large model
    never exists unsharded, and `jax.eval_shape` returns its shapes.

    Args:
      key: a typed PRNG key, `jax.random.key(seed)`.
      batch: an example batch of the step; only its shapes matter.
      nets: the networks.
      optimizers: a `PerNetwork` of optax transformations.
      g_terms: the generator's terms.
      d_terms: the discriminator's terms.
      inputs: the task, `(key, batch) -> Inputs`.
      start: initial variables instead of random ones, by network: `{"generator": ...}`. Entries
        that they lack (connectors, a layer) are random.

    Raises:
      ValueError: when `start` names an unknown network, or has a variable that the network does not
        have or that has another shape there; the message names it.
    """
    init_key, generator_key, discriminator_key = jax.random.split(jax.random.fold_in(key, _INIT), 3)
    example = inputs(init_key, batch)
    initial = dict(start or {})
    generator = _with_initial(
        "generator",
        nets.generator.init(generator_key, *example.generator),
        initial.pop("generator", {}),
    )
    discriminator_state: Any = ()
    if nets.discriminator is not None:
        fake, _, _ = nets.generator.apply(generator, *example.generator)
        discriminator = _with_initial(
            "discriminator",
            nets.discriminator.init(discriminator_key, fake, *example.condition),
            initial.pop("discriminator", {}),
        )
        discriminator_state = NetworkState(
            discriminator, optimizers.discriminator.init(discriminator["params"])
        )
    if initial:
        known = ["'generator'"] + ["'discriminator'"] * (nets.discriminator is not None)
        raise ValueError(f"start has {sorted(initial)}; it may have {', '.join(known)}")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jnp.copy(key),
        generator=NetworkState(generator, optimizers.generator.init(generator["params"])),
        discriminator=discriminator_state,
        # A copy: donating a state with two leaves in one buffer fails.
        ema=jax.tree.map(jnp.copy, generator),
        terms=PerNetwork(_copy_states(init_terms(g_terms)), _copy_states(init_terms(d_terms))),
        skipped=jnp.zeros((), jnp.int32),
    )


def _with_initial(name: str, fresh: Any, initial: Any) -> Any:
    """`fresh` with the entries of `initial` in place of its own, copied for donation."""
    if not isinstance(fresh, Mapping) or not isinstance(initial, Mapping):
        expected, actual = (
            f"{sorted(x)}" if isinstance(x, Mapping) else f"an array {jnp.shape(x)}"
            for x in (fresh, initial)
        )
        if expected != actual:
            raise ValueError(f"start: {name} is {actual}, and {expected} in the network")
        return jnp.array(initial, fresh.dtype)
    if unknown := sorted(set(initial) - set(fresh)):
        known = ", ".join(map(str, fresh))
        raise ValueError(
            f"start: {name} has {unknown}, which the network does not have; it has {known}"
        )
    return {
        key: _with_initial(f"{name}/{key}", value, initial[key]) if key in initial else value
        for key, value in fresh.items()
    }


def _copy_states(states: dict[str, TermState]) -> dict[str, TermState]:
    # Strongly typed copies: the weak dtype of a Python number would change at the first step.
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), states)

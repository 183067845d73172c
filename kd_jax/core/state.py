"""The state of a training run, as one pytree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax

from kd_jax.core.checks import check_batch
from kd_jax.core.objective import TermState, init_terms
from kd_jax.core.representation import record_repr
from kd_jax.core.setup import TRAINED, PerNetwork, Setup, Teacher
from kd_jax.core.types import Array, Batch, Variables


class NetworkState(NamedTuple):
    """A trained network: its variables, and its optimizer state over `variables["params"]`."""

    variables: Variables
    opt_state: optax.OptState

    def __repr__(self) -> str:
        return record_repr(self)


class TrainState(NamedTuple):
    """Everything that a step updates and a checkpoint must hold.

    Attributes:
      step: the number of steps taken, int32 scalar.
      key: the run's typed PRNG key; constant, each step folds its number in.
      generator, discriminator: the trained networks; `()` without a discriminator.
      ema: the exponential moving average of the generator's variables, for evaluation and
        deployment.
      terms: the terms' states, by network.
      wrappers: the states of wrappers of the step, by name: `skipped` of `skip_nonfinite`,
        `teachers` of `online_distillation`.
    """

    step: Array
    key: Array
    generator: NetworkState
    discriminator: Any
    ema: Variables
    terms: PerNetwork
    wrappers: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return record_repr(self)


def check_state(state: Any) -> None:
    """Raises a ValueError unless a state is a `TrainState`."""
    if not isinstance(state, TrainState):
        kind = type(state)
        raise ValueError(
            f"the state is a {kind.__module__}.{kind.__qualname__}; it must be a "
            "kd_jax.TrainState, from kd_jax.init_state(setup, key, batch)"
        )


Metrics: TypeAlias = dict[str, Array]
State = TypeVar("State")
Step: TypeAlias = Callable[[State, Teacher | None, Batch], tuple[State, Metrics]]
"""`(state, teacher_variables, batch) -> (state, metrics)`."""

_INIT = 2**32 - 1  # folded into the key; larger than any step number


def init_state(
    setup: Setup, key: Array, batch: Batch, *, initial: Mapping[str, Variables] | None = None
) -> TrainState:
    """The state before the first step.

    A pure function of `key` and `batch`: under `jax.jit(..., out_shardings=...)` a large model
    never exists unsharded (`kd_jax.initialize`), and `jax.eval_shape` returns its shapes.

    Args:
      setup: the setup.
      key: a typed PRNG key, `jax.random.key(seed)`.
      batch: an example batch of the step; only its shapes matter.
      initial: initial variables instead of random ones, by network: `{"generator": ...}`. Entries
        that they lack (connectors, a layer) are random.

    Raises:
      ValueError: `batch` is not a dict, or `initial` names an unknown network, or has a variable
        that the network does not have or that has another shape there; the message names it.
    """
    check_batch(batch)
    variables = dict(initial or {})
    known = [name for name in TRAINED if getattr(setup.networks, name) is not None]
    if unknown := sorted(set(variables) - set(known)):
        raise ValueError(f"initial has {unknown}; it may have {', '.join(map(repr, known))}")

    def make(key: Array, variables: Mapping[str, Variables]) -> TrainState:
        init_key, generator_key, discriminator_key = jax.random.split(
            jax.random.fold_in(key, _INIT), 3
        )
        networks, optimizers = setup.networks, setup.optimizers
        example = setup.task(init_key, batch)
        generator = _with_initial(
            "generator",
            networks.generator.init(generator_key, *example.generator),
            variables.get("generator", {}),
        )
        discriminator_state: Any = ()
        if networks.discriminator is not None:
            output, _, _ = networks.generator.apply(generator, *example.generator)
            discriminator = _with_initial(
                "discriminator",
                networks.discriminator.init(discriminator_key, output, *example.condition),
                variables.get("discriminator", {}),
            )
            discriminator_state = NetworkState(
                discriminator, optimizers.discriminator.init(discriminator["params"])
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jnp.copy(key),
            generator=NetworkState(generator, optimizers.generator.init(generator["params"])),
            discriminator=discriminator_state,
            # A copy: donating a state with two leaves in one buffer fails.
            ema=jax.tree.map(jnp.copy, generator),
            terms=PerNetwork(
                *(_copy_states(init_terms(getattr(setup.losses, name))) for name in TRAINED)
            ),
        )

    # Compiled, since the operations one by one take several times as long.
    return jax.jit(make)(key, variables)


def _with_initial(name: str, fresh: Any, initial: Any) -> Any:
    """`fresh` with the entries of `initial` in place of its own, copied for donation."""
    if not isinstance(fresh, Mapping) or not isinstance(initial, Mapping):
        expected, actual = (
            f"{sorted(x)}" if isinstance(x, Mapping) else f"an array {jnp.shape(x)}"
            for x in (fresh, initial)
        )
        if expected != actual:
            raise ValueError(f"initial: {name} is {actual}, and {expected} in the network")
        return jnp.array(initial, fresh.dtype)
    if unknown := sorted(set(initial) - set(fresh)):
        known = ", ".join(map(str, fresh))
        raise ValueError(
            f"initial: {name} has {unknown}, which the network does not have; it has {known}"
        )
    return {
        key: _with_initial(f"{name}/{key}", value, initial[key]) if key in initial else value
        for key, value in fresh.items()
    }


def _copy_states(states: dict[str, TermState]) -> dict[str, TermState]:
    # Strongly typed copies: the weak dtype of a Python number would change at the first step.
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), states)

"""The whole of a training run's state, as one pytree."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.network import Network
from kd_jax.objective import MakeInputs, Terms, TermState, init_terms
from kd_jax.types import Array, Batch, Variables


class Pair(NamedTuple):
    """One thing for the generator and one for the discriminator."""

    generator: Any
    discriminator: Any = None


class Teacher(NamedTuple):
    """The frozen networks' variables, an argument of every step: `teacher_variables`.

    Attributes:
      generator, discriminator: the teacher's.
      extractor: those of the network whose features images are compared in.
    """

    generator: Any = None
    discriminator: Any = None
    extractor: Any = None


class Networks(NamedTuple):
    """The networks of one step.

    Attributes:
      generator, discriminator: the student's, trained. Without a discriminator the generator learns
        from the teacher alone.
      teacher: the frozen generator to learn from, with the same inputs as `generator`.
      teacher_discriminator: a frozen discriminator to learn from.
      extractor: a frozen network `images -> features` (its taps) to compare images in: VGG, say.
    """

    generator: Network
    discriminator: Network | None = None
    teacher: Network | None = None
    teacher_discriminator: Network | None = None
    extractor: Network | None = None


class Player(NamedTuple):
    """A trained network: its variables, and its optimizer's state over `variables["params"]`."""

    variables: Variables
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """Everything that a step changes, and that a checkpoint must hold.

    Attributes:
      step: the number of steps taken, int32 scalar.
      key: the run's typed PRNG key; never advanced, each step folds its number in.
      generator, discriminator: the players; the latter is empty where there is none.
      ema: the generator's variables, exponentially averaged: what is evaluated and deployed.
      terms: the terms' states, by player.
      teachers: of `kd_jax.online`, the states of the teachers' trainings, by name.
      skipped: of `kd_jax.guarded`, how many steps left no trace, int32 scalar.
    """

    step: Array
    key: Array
    generator: Player
    discriminator: Any
    ema: Variables
    terms: Pair
    teachers: Mapping[str, "TrainState"] = {}
    skipped: Any = ()


_INIT = 2**32 - 1  # folded into the key where no step's number can be


def init_state(
    key: Array,
    batch: Batch,
    *,
    nets: Networks,
    optimizers: Pair,
    g_terms: Terms,
    d_terms: Terms,
    inputs: MakeInputs,
    start: Mapping[str, Variables] | None = None,
) -> TrainState:
    """The state before the first step.

    A pure function of `key` and `batch`: run it under `jax.jit(..., out_shardings=...)` and a large
    model never exists unsharded, or under `jax.eval_shape` for shapes alone.

    Args:
      key: a typed PRNG key, `jax.random.key(seed)`.
      batch: an example of what the step will get; only its shapes matter.
      nets: the networks.
      optimizers: a `Pair` of optax transformations.
      g_terms: the generator's terms.
      d_terms: the discriminator's terms.
      inputs: the task, `(key, batch) -> Inputs`.
      start: variables to begin with instead of random ones, by player: `{"generator": ...}`. What
        they lack (connectors, a layer) is random.

    Raises:
      ValueError: when `start` names no player, or has a variable that the network has not or that
        has another shape there; it is named.
    """
    init_key, generator_key, discriminator_key = jax.random.split(jax.random.fold_in(key, _INIT), 3)
    given = inputs(init_key, batch)
    chosen = dict(start or {})
    generator = _begun(
        "generator",
        nets.generator.init(generator_key, *given.generator),
        chosen.pop("generator", {}),
    )
    player: Any = ()
    if nets.discriminator is not None:
        fake, _, _ = nets.generator.apply(generator, *given.generator)
        discriminator = _begun(
            "discriminator",
            nets.discriminator.init(discriminator_key, fake, *given.condition),
            chosen.pop("discriminator", {}),
        )
        player = Player(discriminator, optimizers.discriminator.init(discriminator["params"]))
    if chosen:
        players = ["'generator'"] + ["'discriminator'"] * (nets.discriminator is not None)
        raise ValueError(f"start has {sorted(chosen)}; it may have {', '.join(players)}")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jnp.copy(key),
        generator=Player(generator, optimizers.generator.init(generator["params"])),
        discriminator=player,
        # A copy: donating a state in which two leaves share one buffer fails.
        ema=jax.tree.map(jnp.copy, generator),
        terms=Pair(_distinct(init_terms(g_terms)), _distinct(init_terms(d_terms))),
        skipped=jnp.zeros((), jnp.int32),
    )


def _begun(name: str, fresh: Any, given: Any) -> Any:
    """`fresh` with the entries that `given` has; copies, since a donated state is lost."""
    if not isinstance(fresh, Mapping) or not isinstance(given, Mapping):
        here, there = (
            f"{sorted(x)}" if isinstance(x, Mapping) else f"an array {jnp.shape(x)}"
            for x in (fresh, given)
        )
        if here != there:
            raise ValueError(f"start: {name} is {there}, and {here} in the network")
        return jnp.array(given, fresh.dtype)
    if unknown := sorted(set(given) - set(fresh)):
        there = ", ".join(map(str, fresh))
        raise ValueError(f"start: {name} has {unknown}, which the network has not; it has {there}")
    return {
        key: _begun(f"{name}/{key}", value, given[key]) if key in given else value
        for key, value in fresh.items()
    }


def _distinct(states: dict[str, TermState]) -> dict[str, TermState]:
    # Of a definite dtype: that of a Python number is weak, and would change with the first step.
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), states)

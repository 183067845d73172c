"""Gradient accumulation: an update from the mean over equal parts of the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kd_jax.core.objective import Inputs, TermState
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array, Variables


class Update(NamedTuple):
    """The results of a pass for one network.

    Attributes:
      grads: the gradients of the parameters.
      collections: its other variables after the pass (batch statistics).
      metrics: scalars by name.
      terms: the terms' states after the pass.
    """

    grads: Any
    collections: Variables
    metrics: dict[str, Array]
    terms: dict[str, TermState]


Updates = dict[str, Update]
"""Updates by the name of the network."""


def check_count(micro_batches: Any) -> None:
    """Raises a ValueError unless the number of parts is a positive integer."""
    if not isinstance(micro_batches, int) or micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches!r} is not a positive integer")


def mean_updates(
    compute: Callable[[PerNetwork, Inputs, Array], Updates],
    terms: PerNetwork,
    inputs: Inputs,
    count: int,
) -> Updates:
    """The mean of the updates of `count` parts of the inputs, computed one after another.

    Floating-point gradients, collections, metrics, and the last values of lazy terms are means over
    the parts. The terms' states and those of their weights are passed from part to part. Other
    arrays (integers, keys) are those of the last part.

    Args:
      compute: `(terms' states, inputs of a part, index of the part) -> updates`.
      terms: the terms' states before the first part.
      inputs: the inputs of the whole batch; example i belongs to part `i % count`.
      count: the number of parts.

    Raises:
      ValueError: the inputs cannot be divided, or the state of a term or of its weight changes its
        shape or dtype.
    """
    parts = _split(inputs, count)
    part = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parts)
    shapes = jax.eval_shape(compute, terms, part, jnp.zeros((), jnp.int32))
    _check_states(terms, shapes, count)

    def separate(updates: Updates) -> tuple[list[Array], list[Array], PerNetwork]:
        """The leaves to average, the other ones, and the states for the next part."""
        leaves = jax.tree.leaves(_with_last_values(updates))
        return (
            [leaf for leaf in leaves if _is_averaged(leaf)],
            [leaf for leaf in leaves if not _is_averaged(leaf)],
            terms._replace(**{name: update.terms for name, update in updates.items()}),
        )

    def accumulate(
        carry: tuple[list[Array], PerNetwork], part: tuple[Inputs, Array]
    ) -> tuple[tuple[list[Array], PerNetwork], list[Array]]:
        means, states = carry
        part_inputs, index = part
        new, others, states = separate(compute(states, part_inputs, index))
        # A running mean, which is exact where all parts agree.
        means = [
            mean + (leaf.astype(mean.dtype) - mean) / (index + 1).astype(mean.dtype)
            for mean, leaf in zip(means, new, strict=True)
        ]
        return (means, states), others

    leaves, structure = jax.tree.flatten(_with_last_values(shapes))
    zeros = [
        jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in leaves
        if _is_averaged(leaf)
    ]
    known = {
        name: {term: getattr(terms, name)[term] for term in update.terms}
        for name, update in shapes.items()
    }
    (means, states), others = jax.lax.scan(
        accumulate, (zeros, terms._replace(**known)), (parts, jnp.arange(count, dtype=jnp.int32))
    )
    mean, other = iter(means), iter(others)
    results = [
        next(mean).astype(leaf.dtype) if _is_averaged(leaf) else next(other)[-1] for leaf in leaves
    ]
    updates: Updates = jax.tree.unflatten(structure, results)
    return {
        name: update._replace(
            terms={
                term: getattr(states, name)[term]._replace(last=last)
                for term, last in update.terms.items()
            }
        )
        for name, update in updates.items()
    }


def _is_averaged(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _with_last_values(updates: Updates) -> dict[str, Any]:
    """The updates with only the last value and weight of each term's state."""
    return {
        name: update._replace(terms={term: state.last for term, state in update.terms.items()})
        for name, update in updates.items()
    }


def _split(inputs: Inputs, count: int) -> Inputs:
    """The inputs as `[count, B / count, ...]`.

    Parts are strided, so that every device of a mesh, which holds adjacent examples, has an equal
    share of each part.
    """
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    examples = next((leaf.shape[0] for _, leaf in leaves if jnp.ndim(leaf)), 0)
    for path, leaf in leaves:
        if jnp.shape(leaf)[:1] != (examples,):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"micro_batches={count}: the task's input {name} has shape {jnp.shape(leaf)}; to "
                f"be split, it needs a first axis of the batch's {examples} examples"
            )
    if not examples or examples % count:
        raise ValueError(
            f"micro_batches={count}: a batch of {examples} is not divisible into {count} parts"
        )
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and (examples // count) % mesh.size:
        raise ValueError(
            f"micro_batches={count}: parts of {examples // count} examples are not divisible by "
            f"the mesh's {mesh.size} devices"
        )

    def split(leaf: Array) -> Array:
        parts = leaf.reshape(examples // count, count, *leaf.shape[1:]).swapaxes(0, 1)
        if mesh.empty:
            return parts
        return jax.lax.with_sharding_constraint(parts, PartitionSpec(None, mesh.axis_names))

    return jax.tree.map(split, inputs)


def _check_states(terms: PerNetwork, shapes: Updates, count: int) -> None:
    for network, update in shapes.items():
        before = getattr(terms, network)
        for name, after in update.terms.items():
            old, new = (
                jax.tree.map(lambda leaf: f"{leaf.dtype} {leaf.shape}", (state.state, state.weight))
                for state in (before[name], after)
            )
            if old != new:
                raise ValueError(
                    f"micro_batches={count}: the state of term {name!r} changes from {old} to "
                    f"{new}; shapes and dtypes must stay, whatever the number of examples"
                )

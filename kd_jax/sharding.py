"""One program for one device or a thousand: meshes, where each array lives, compiled steps.

A step is written for the global batch. Here it is compiled for a mesh with two axes: `data`, over
which only the batch is split, and `model`, over which the batch is split too and parameters and
optimizer state may be (fully sharded data parallelism, Rajbhandari et al. 2020). Batch statistics
and batch-relational losses see the global batch, because the compiler sees it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kd_jax.state import Teacher, TrainState
from kd_jax.step import Metrics, Step
from kd_jax.types import Array, Batch

Rule: TypeAlias = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]
"""`(path, shape, mesh) -> PartitionSpec`: where one leaf of a state lives."""

BATCH = PartitionSpec(("data", "model"))


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data * model` devices with the axes `data` and `model`.

    Args:
      data: devices along `data`; by default as many as there are for the given `model`.
      model: devices along `model`.
      devices: those to use; by default all of `jax.devices()`.

    Raises:
      ValueError: when the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = f"a mesh of data={data or '?'} x model={model}"
    if model < 1 or (data is not None and data < 1):
        raise ValueError(f"{wanted}: both axes need at least one device")
    if data is None:
        data, left = divmod(len(devices), model)
        if left:
            raise ValueError(f"{wanted}: {len(devices)} devices do not divide by {model}")
    if data * model != len(devices):
        raise ValueError(f"{wanted} needs {data * model} devices; there are {len(devices)}")
    return Mesh(
        np.asarray(devices).reshape(data, model),
        ("data", "model"),
        # Explicit axes, the default of jax.make_mesh, refuse minibatch-stddev's reshape.
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def replicated(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule of plain data parallelism: every leaf whole on every device."""
    del path, shape, mesh
    return PartitionSpec()


def fully_sharded(min_size: int = 2**12) -> Rule:
    """A rule that splits each leaf of `min_size` elements or more over `model`.

    The longest axis that the mesh's `model` divides is split (the last of equals); a leaf without
    one stays whole, and so do small leaves, whose transfers would cost more than their memory.
    """

    def rule(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        del path
        parts = mesh.shape["model"]
        fits = [axis for axis, length in enumerate(shape) if length % parts == 0]
        if parts == 1 or math.prod(shape) < min_size or not fits:
            return PartitionSpec()
        split = max(fits, key=lambda axis: (shape[axis], axis))
        return PartitionSpec(*("model" if axis == split else None for axis in range(len(shape))))

    return rule


def shardings(tree: Any, mesh: Mesh, rule: Rule = replicated) -> Any:
    """A `NamedSharding` for each leaf of `tree` (arrays or `ShapeDtypeStruct`s)."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, rule(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def initialize(
    init: Callable[[], TrainState], mesh: Mesh | None = None, rule: Rule = replicated
) -> TrainState:
    """Runs `init()` so that every leaf is made where it will live, never whole before.

    Args:
      init: makes a state; usually `lambda: init_state(key, batch, ...)`.
      mesh: where; None for the default device.
      rule: which leaf is split how.
    """
    if mesh is None:
        return jax.jit(init)()
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init), mesh, rule))()


def place(tree: Any, mesh: Mesh | None, rule: Rule = replicated) -> Any:
    """A copy of `tree` (a teacher's variables, a state) on the mesh; `tree` itself without one."""
    if mesh is None:
        return tree
    # A copy, since device_put shares buffers that a donation would then take from the caller; its
    # may_alias=False does so too where a whole array goes to many devices.
    return jax.tree.map(
        lambda leaf, sharding: jnp.copy(jax.device_put(leaf, sharding)),
        tree,
        shardings(tree, mesh, rule),
    )


def place_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """This process's part of a global batch, as global arrays split along their first axis.

    Raises:
      ValueError: when the global batch does not divide by the mesh's devices.
    """
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, BATCH)

    def one(leaf: Any) -> Array:
        check_batch_size(leaf.shape[0] * jax.process_count(), mesh)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(one, batch)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError unless a global batch of this size divides by the mesh's devices."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        near = [size for size in (below, below + mesh.size) if size]
        raise ValueError(
            f"a batch of {batch_size} does not divide by the mesh's {mesh.size} devices; "
            f"{' or '.join(map(str, near))} would"
        )


def compile_step(
    step: Step, mesh: Mesh | None = None, rule: Rule = replicated, *, donate: bool | None = None
) -> Step:
    """The same step, jitted; the state stays where `rule` says.

    Args:
      step: any `(state, teacher_variables, batch) -> (state, metrics)`.
      mesh: the devices; None for the default device.
      rule: how the state is split; the one it was made with.
      donate: whether the next state takes the memory of the given one, which cannot be read again
        then. None is for everywhere but on CPU: there XLA copies most of what is donated, which
        saves no memory and takes 3 to 5 % longer (DCGAN, jax 0.10.2).
    """

    def sharded(
        state: TrainState, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        if mesh is not None:
            for leaf in jax.tree.leaves(batch):
                check_batch_size(leaf.shape[0], mesh)
            batch = jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, BATCH))
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                state, metrics = step(state, teacher_variables, batch)
            state = jax.lax.with_sharding_constraint(state, shardings(state, mesh, rule))
        else:
            state, metrics = step(state, teacher_variables, batch)
        return state, metrics

    if donate is None:
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        donate = platform != "cpu"
    return jax.jit(sharded, donate_argnums=0 if donate else ())

"""Parallel training on a device mesh: meshes, sharding rules, compiled steps.

A step is written for the global batch. It is compiled for a mesh with two axes: `data`, over which
only the batch is split, and `model`, over which the batch and, depending on the rule, parameters
and optimizer state are split (fully sharded data parallelism, Rajbhandari et al. 2020). Batch
statistics and batch-relational losses are computed over the global batch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kd_jax.core.checks import check_batch, non_numeric
from kd_jax.core.setup import Teacher, check_teacher
from kd_jax.core.state import Metrics, Step, TrainState, check_state
from kd_jax.core.types import Array, Batch

Rule: TypeAlias = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]
"""`(path, shape, mesh) -> PartitionSpec`: how a leaf of a state is sharded."""

BATCH = PartitionSpec(("data", "model"))


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data * model` devices with the axes `data` and `model`.

    Args:
      data: devices along `data`; by default the number of devices divided by `model`.
      model: devices along `model`.
      devices: the devices of the mesh; by default all of `jax.devices()`.

    Raises:
      ValueError: the product of the axes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    description = f"a mesh of data={data or '?'} x model={model}"
    if model < 1 or (data is not None and data < 1):
        raise ValueError(f"{description}: both axes need at least one device")
    if data is None:
        data, remainder = divmod(len(devices), model)
        if remainder:
            raise ValueError(
                f"{description}: {len(devices)} devices are not divisible by model={model}"
            )
    if data * model != len(devices):
        raise ValueError(f"{description} needs {data * model} devices; there are {len(devices)}")
    return Mesh(
        np.asarray(devices).reshape(data, model),
        ("data", "model"),
        # Explicit axes, the default of jax.make_mesh, do not allow minibatch-stddev's reshape.
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def replicated(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule of plain data parallelism: every leaf is replicated on every device."""
    del path, shape, mesh
    return PartitionSpec()


def fully_sharded(min_size: int = 2**12) -> Rule:
    """A rule that splits each leaf of `min_size` elements or more over `model`.

    The longest axis divisible by the mesh's `model` is split (the last of equal ones). A leaf
    without such an axis is replicated, and so are small leaves, for which the communication costs
    more than the memory it saves.
    """

    def rule(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        del path
        parts = mesh.shape["model"]
        divisible = [axis for axis, length in enumerate(shape) if length % parts == 0]
        if parts == 1 or math.prod(shape) < min_size or not divisible:
            return PartitionSpec()
        split = max(divisible, key=lambda axis: (shape[axis], axis))
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
    """Runs `init()` with sharded outputs, so that a split leaf never exists on one device.

    Args:
      init: returns a state; usually `lambda: init_state(setup, key, batch)`.
      mesh: the devices; None for the default device.
      rule: how each leaf is sharded.
    """
    if mesh is None:
        return jax.jit(init)()
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init), mesh, rule))()


def place(tree: Any, mesh: Mesh | None, rule: Rule = replicated) -> Any:
    """A copy of `tree` (a teacher's variables, a state) on the mesh; `tree` itself without one."""
    if mesh is None:
        return tree
    # A copy, since device_put may share buffers with the caller's array, which a donation would
    # delete; with may_alias=False it still does when an array is replicated to many devices.
    return jax.tree.map(
        lambda leaf, sharding: jnp.copy(jax.device_put(leaf, sharding)),
        tree,
        shardings(tree, mesh, rule),
    )


def place_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """This process's part of a global batch, as global arrays split along their first axis.

    Raises:
      ValueError: the global batch size is not divisible by the number of devices of the mesh.
    """
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, BATCH)

    def one(leaf: Any) -> Array:
        check_batch_size(leaf.shape[0] * jax.process_count(), mesh)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(one, batch)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError unless the global batch size is divisible by the number of devices."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = [size for size in (below, below + mesh.size) if size]
        raise ValueError(
            f"batch size {batch_size} is not divisible by the mesh's {mesh.size} devices; "
            f"nearest valid sizes: {', '.join(map(str, nearest))}"
        )


def compile_step(
    step: Step, mesh: Mesh | None = None, rule: Rule = replicated, *, donate: bool | None = None
) -> "CompiledStep":
    """Jits a step; the state keeps the sharding of `rule`.

    Args:
      step: any `(state, teacher_variables, batch) -> (state, metrics)`.
      mesh: the devices; None for the default device.
      rule: how the state is sharded; the same as in `initialize`.
      donate: whether the next state reuses the memory of the input state, which cannot be read
        afterwards. None: everywhere but on CPU, where XLA copies most of the donated buffers, which
        saves no memory and takes 3 to 5 % longer (DCGAN, jax 0.10.2).

    Returns:
      The compiled step; like a jitted function it also has `lower`, `trace` and `eval_shape`.

    Raises:
      ValueError: (by the compiled step, before anything is traced) the state, the teacher's
        variables or the batch has a type that no step takes.
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
    return CompiledStep(jax.jit(sharded, donate_argnums=0 if donate else ()))


class CompiledStep:
    """A jitted step that checks the types of its arguments, in a few microseconds per call.

    Without the check, jit would reject an argument that is not an array before the step, whose
    messages are about networks and batches, reads it.
    """

    def __init__(self, jitted: Any):
        self._jitted = jitted

    def __call__(
        self, state: Any, teacher_variables: Teacher | None, batch: Batch
    ) -> tuple[Any, Metrics]:
        """The next state and the metrics."""
        _check_arguments(state, teacher_variables, batch)
        result: tuple[Any, Metrics] = self._jitted(state, teacher_variables, batch)
        return result

    def lower(self, state: Any, teacher_variables: Teacher | None, batch: Batch) -> Any:
        """`jax.jit(...).lower` of the step; arrays or `ShapeDtypeStruct`s."""
        _check_arguments(state, teacher_variables, batch)
        return self._jitted.lower(state, teacher_variables, batch)

    def trace(self, state: Any, teacher_variables: Teacher | None, batch: Batch) -> Any:
        """`jax.jit(...).trace` of the step; arrays or `ShapeDtypeStruct`s."""
        _check_arguments(state, teacher_variables, batch)
        return self._jitted.trace(state, teacher_variables, batch)

    def eval_shape(self, state: Any, teacher_variables: Teacher | None, batch: Batch) -> Any:
        """The shapes of the results; arrays or `ShapeDtypeStruct`s."""
        _check_arguments(state, teacher_variables, batch)
        return self._jitted.eval_shape(state, teacher_variables, batch)


def _check_arguments(state: Any, teacher_variables: Any, batch: Any) -> None:
    # A state of arrays of another type is left to the step, which may be one of the user.
    if not isinstance(state, TrainState) and non_numeric(state):
        check_state(state)
    check_teacher(teacher_variables)
    check_batch(batch)

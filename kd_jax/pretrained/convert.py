"""Shared by the converters: a state dict reader that records which tensors have been read."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network, by_path, shape_differences
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Array, Variables
from kd_jax.models.layers.spectral import singular_values

StateDict = Mapping[str, np.ndarray]
"""A PyTorch module's tensors by their dotted names, in PyTorch's layouts."""


class Converted(NamedTuple):
    """A published network, ready for `network.apply(variables, ...)`.

    Attributes:
      network: the network of this configuration.
      variables: float32 arrays.
      config: the keyword arguments of the network's factory, as read from the file.
      inputs: shapes and dtypes of the network's inputs for one example.
      notes: one line for each value that the file does not determine and that was assumed.
      options: the arguments of the converter that the file does not determine, and their values:
        as passed, or as assumed.
    """

    network: Network
    variables: Variables
    config: Mapping[str, Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})

    def __repr__(self) -> str:
        return record_repr(self)


class Shape(tuple[int, ...]):
    """The shape of a tensor; an axis that it lacks is a ValueError that names the tensor."""

    def __new__(cls, shape: tuple[int, ...], name: str) -> "Shape":
        """The shape of the tensor of this name."""
        result = super().__new__(cls, shape)
        result.name = name
        return result

    name: str

    def __getitem__(self, index: Any) -> Any:
        try:
            return super().__getitem__(index)
        except IndexError:
            raise ValueError(f"{self.name} has shape {tuple(self)}: too few axes") from None


class StateDictReader:
    """Reads tensors from a state dict by name and records which have been read.

    Args:
      tensors: the tensors by name.
      what: the expected network, for error messages: "a StyleGAN2 generator".
    """

    def __init__(self, tensors: StateDict, what: str):
        self.tensors = dict(tensors)
        self.what = what
        self.unread = dict.fromkeys(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without marking it as read.

        Raises:
          ValueError: there is no tensor of that name.
        """
        if name not in self.tensors:
            raise ValueError(f"not {self.what}: {name} is missing")
        return Shape(self.tensors[name].shape, f"{self.what}: {name}")

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor in its own layout, as float32.

        Raises:
          ValueError: there is no tensor of that name, it has another shape or no values, or they
            are not finite floating-point numbers (in float32).
        """
        stored = self.shape(name)
        if shape is not None and stored != tuple(shape):
            raise ValueError(f"{self.what}: {name} has shape {stored} instead of {tuple(shape)}")
        self.unread.pop(name, None)
        value = self.tensors[name]
        if not value.size:
            raise ValueError(f"{self.what}: {name} is empty, of shape {stored}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{self.what}: {name} has numbers of type {value.dtype}, not floating-point"
            )
        with np.errstate(over="ignore"):  # float64 values may become infinite
            result = value.astype(np.float32)
        # A conversion may be differentiated: of traced tensors there are no values.
        if isinstance(result, np.ndarray) and not np.isfinite(result).all():
            count = int((~np.isfinite(result)).sum())
            raise ValueError(
                f"{self.what}: {name} has {count:,} of {result.size:,} values that are not finite"
            )
        return result

    def vector(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """A bias, scale or buffer in its own layout."""
        return jnp.asarray(self.take(name, shape))

    def dense(self, name: str) -> Array:
        """A linear layer's weight `[out, in]`, as `[in, out]`."""
        return jnp.asarray(self._take_of_rank(name, 2).T)

    def kernel(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """A convolution's weight `[out, in, h, w]`, as `[h, w, in, out]`; `shape` is the latter."""
        theirs = None if shape is None else (shape[3], shape[2], shape[0], shape[1])
        return jnp.asarray(self._take_of_rank(name, 4, theirs).transpose(2, 3, 1, 0))

    def image(self, name: str) -> Array:
        """Features `[..., channels, height, width]`, as `[..., height, width, channels]`."""
        return jnp.asarray(np.moveaxis(self.take(name), -3, -1))

    def spectral_vectors(self, source: str) -> dict[str, Array]:
        """The state of `torch.nn.utils.spectral_norm` of the layer `source`, without its weight.

        Returns:
          The variables of `kd_jax.models.layers.spectral`: `u`, `v` and their singular value
          `sigma`.
        """
        weight = f"{source}.weight_orig"
        rows, *inputs = self.shape(weight)
        u = self.vector(f"{source}.weight_u", (rows,))
        v = self.vector(f"{source}.weight_v", (math.prod(inputs),))
        matrix = jnp.asarray(self.take(weight).reshape(rows, -1).T)
        sigma = singular_values(matrix, u[None], v[None])
        if len(inputs) == 3:  # flattened as channels, rows, columns; channels come last in kd_jax
            v = v.reshape(inputs).transpose(1, 2, 0).reshape(-1)
        return {"u": u[None], "v": v[None], "sigma": sigma}

    def drop(self, *names: str) -> None:
        """Marks tensors as read that are not needed (counters, values that are recomputed)."""
        for name in names:
            self.unread.pop(name, None)

    def check_all_read(self) -> None:
        """Checks that every tensor has been read.

        Raises:
          ValueError: tensors are left; the first three are named.
        """
        if self.unread:
            names = list(self.unread)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"not {self.what}: unknown tensors {', '.join(names[:3])}{more}")

    def _take_of_rank(
        self, name: str, rank: int, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        value = self.take(name, shape)
        if value.ndim != rank:
            raise ValueError(f"{self.what}: {name} has shape {value.shape}, not {rank} axes")
        return value


def check_variables(what: str, converted: Converted, *inputs: jax.ShapeDtypeStruct) -> Converted:
    """Checks that converted variables have the paths and shapes that the network's `init` gives.

    Nothing is computed.

    Args:
      what: the expected network, for error messages.
      converted: the network and its variables.
      *inputs: the network's inputs for one example.

    Returns:
      `converted` with `inputs`.

    Raises:
      ValueError: a variable is missing, unexpected or of another shape; it is named.
    """
    for path, actual, expected in shape_differences(
        converted.network, converted.variables, *inputs
    ):
        if actual is None or expected is None:
            state = "missing" if actual is None else "unexpected"
            raise ValueError(f"not {what}: {path} is {state}")
        raise ValueError(f"not {what}: {path} has shape {actual}; the others imply {expected}")
    return converted._replace(inputs=inputs)


class Layout(NamedTuple):
    """How an original program stores a network.

    Attributes:
      convert: the reader, `convert(state dict) -> Converted`.
      shapes: the shapes of the tensors by name.
    """

    convert: Callable[[StateDict], Converted]
    shapes: Mapping[str, tuple[int, ...]]


def invert(layout: Layout, variables: Variables) -> dict[str, np.ndarray]:
    """The state dict that a reader converts to these variables.

    Readers move numbers and add only those that are 0 here, so that the transpose of a reader, its
    derivative in reverse mode, is its inverse. The result is read again and compared.

    Raises:
      ValueError: the layout does not have these variables; the first that differs is named.
    """
    actual = by_path(variables)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
    layout.convert(zeros)  # errors of the layout, without those of JAX around them
    expected, pull = jax.vjp(lambda tensors: layout.convert(tensors).variables, zeros)
    shapes = {path: leaf.shape for path, leaf in by_path(expected).items()}
    for path in sorted({*actual, *shapes}):
        if path not in actual or path not in shapes or actual[path].shape != shapes[path]:
            raise ValueError(f"the original program's network has another {path}, or none")
    tree = jax.tree.unflatten(
        jax.tree.structure(expected), [jnp.asarray(actual[path], jnp.float32) for path in shapes]
    )
    tensors = {name: np.asarray(x) for name, x in pull(tree)[0].items()}
    for path, leaf in by_path(layout.convert(tensors).variables).items():
        if not np.array_equal(leaf, actual[path]):
            raise ValueError(f"the original program's network cannot store the values of {path}")
    return tensors


def average_style(converted: Converted, latents: np.ndarray) -> Array:
    """The average style `[style]` of latents `[N, latent]`, without truncation."""
    mapping = converted.network.mapping
    assert mapping is not None  # it is a style network
    mean = jax.jit(lambda variables, z: mapping(variables, z)[:, 0].mean(axis=0))
    return mean(converted.variables, jnp.asarray(latents, jnp.float32))

"""What every reader shares: taking tensors out of a state dict by name, until none is left."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.network import Network
from kd_jax.types import Array, Variables

StateDict = Mapping[str, np.ndarray]
"""A PyTorch module's tensors by their dotted names, in PyTorch's layouts."""


class Converted(NamedTuple):
    """A published network, ready for `network.apply(variables, ...)`.

    Attributes:
      network: made for the configuration.
      variables: float32 arrays.
      config: what was read from the file: the keyword arguments of the network's factory.
      inputs: the shapes of the network's inputs for one example.
    """

    network: Network
    variables: Variables
    config: Mapping[str, Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...] = ()


class Tensors:
    """A state dict that knows which of its tensors have been taken.

    Args:
      found: the tensors by name.
      what: what they should make, for errors: "a StyleGAN2 generator".
    """

    def __init__(self, found: StateDict, what: str):
        self.found = dict(found)
        self.what = what
        self.left = dict.fromkeys(self.found)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not taken by this.

        Raises:
          ValueError: there is none of that name.
        """
        if name not in self.found:
            raise ValueError(f"not {self.what}: {name} is missing")
        return tuple(self.found[name].shape)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor as it is, in float32 where it is of floating point.

        Raises:
          ValueError: there is none of that name, or it has another shape.
        """
        found = self.shape(name)
        if shape is not None and found != tuple(shape):
            raise ValueError(f"{self.what}: {name} has shape {found} instead of {tuple(shape)}")
        self.left.pop(name, None)
        value = self.found[name]
        return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def vector(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """A bias, a scale, a buffer: in the layout it has."""
        return jnp.asarray(self.take(name, shape))

    def dense(self, name: str) -> Array:
        """A linear layer's weight `[out, in]`, as `[in, out]`."""
        return jnp.asarray(self._of_rank(name, 2).T)

    def kernel(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """A convolution's weight `[out, in, h, w]`, as `[h, w, in, out]`; `shape` is the latter."""
        theirs = None if shape is None else (shape[3], shape[2], shape[0], shape[1])
        return jnp.asarray(self._of_rank(name, 4, theirs).transpose(2, 3, 1, 0))

    def image(self, name: str) -> Array:
        """Features `[..., channels, height, width]`, as `[..., height, width, channels]`."""
        return jnp.asarray(np.moveaxis(self.take(name), -3, -1))

    def drop(self, *names: str) -> None:
        """Takes tensors that have no meaning here (counters, what is computed anyway)."""
        for name in names:
            self.left.pop(name, None)

    def done(self) -> None:
        """Raises a ValueError that names what has not been taken, if anything."""
        if self.left:
            names = list(self.left)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"not {self.what}: unknown tensors {', '.join(names[:3])}{more}")

    def _of_rank(self, name: str, rank: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
        value = self.take(name, shape)
        if value.ndim != rank:
            raise ValueError(f"{self.what}: {name} has shape {value.shape}, not {rank} axes")
        return value


def checked(what: str, converted: Converted, *inputs: jax.ShapeDtypeStruct) -> Converted:
    """A conversion, once its variables are known to be those that the network makes for itself.

    Args:
      what: what it should be, for errors.
      converted: the conversion.
      *inputs: of the network for one example. Nothing is computed.

    Returns:
      The conversion with its inputs.

    Raises:
      ValueError: a variable is missing, is one too many or has another shape; it is named.
    """
    wanted = _shapes(jax.eval_shape(converted.network.init, jax.random.key(0), *inputs))
    found = _shapes(converted.variables)
    for path in wanted | found:
        if path not in found or path not in wanted:
            state = "missing" if path not in found else "one too many"
            raise ValueError(f"not {what}: {path} is {state}")
        if wanted[path] != found[path]:
            raise ValueError(
                f"not {what}: {path} has shape {found[path]}; the others ask for {wanted[path]}"
            )
    return converted._replace(inputs=inputs)


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }

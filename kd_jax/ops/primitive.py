"""Linear and bilinear maps as JAX primitives: differentiable at will, and fast on each platform.

JAX differentiates a map by transposing the operations that it is written in, and some derivatives
of a convolution take a form that XLA has no fast code for. As primitives with stated transposes,
such maps are closed under differentiation: forward mode, reverse mode and their compositions of any
order apply the same few maps. Under `jax.vmap` the plain map is batched. A second implementation
may be given for CPU; programs for every other platform contain the plain one. Converters to other
formats know the operations of `jax.lax` only, and get those within `portable`.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kd_jax.core.types import Array

Map: TypeAlias = Callable[..., Array]
"""`(geometry, *arrays) -> array`, linear in each of the arrays."""


_PORTABLE: ContextVar[bool] = ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Within it, functions are traced without these primitives; sizes may then be symbolic.

    A function that `jax.jit` has traced before for the same shapes is not traced again, except
    within `jax.disable_jit`.
    """
    token = _PORTABLE.set(True)
    try:
        yield
    finally:
        _PORTABLE.reset(token)


def is_portable() -> bool:
    """Whether a function is being traced within `portable`."""
    return _PORTABLE.get()


class LinearMap(NamedTuple):
    """A primitive, linear in each of its arrays: `linear_map(geometry, *arrays) -> array`."""

    primitive: Primitive
    portable: Map

    def __call__(self, geometry: Hashable, *arrays: Any) -> Array:
        """The map's value; `geometry` is hashable."""
        if is_portable():
            return self.portable(geometry, *arrays)
        return self.primitive.bind(*arrays, geometry=geometry)


def define(
    name: str, plain: Map, on_cpu: Map | None = None, *, portable: Map | None = None
) -> LinearMap:
    """A primitive; `set_transpose` or `set_transposes` states its derivatives.

    Args:
      name: in jaxprs.
      plain: the map, in operations of `jax.lax`.
      on_cpu: the same map where the program is compiled for CPU; by default `plain`.
      portable: the same map for other formats; by default `plain`.
    """
    primitive = Primitive(name)
    linear_map = LinearMap(primitive, portable or plain)

    def with_keyword(function: Map) -> Callable[..., Array]:
        return lambda *arrays, geometry: function(geometry, *arrays)

    def abstract(*arrays: Any, geometry: Hashable) -> Any:
        shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        result = jax.eval_shape(partial(plain, geometry), *shapes)
        return arrays[0].update(shape=result.shape, dtype=result.dtype)

    def batch(
        arrays: Sequence[Any], axes: Sequence[Any], *, geometry: Hashable
    ) -> tuple[Array, int]:
        return jax.vmap(partial(plain, geometry), in_axes=tuple(axes))(*arrays), 0

    primitive.def_impl(
        jax.jit(lambda *arrays, geometry: linear_map(geometry, *arrays), static_argnames="geometry")
    )
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(with_keyword(plain), multiple_results=False))
    if on_cpu is not None:
        lowering = mlir.lower_fun(with_keyword(on_cpu), multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform="cpu")
    return linear_map


def set_transpose(linear: LinearMap, transpose: Map) -> None:
    """States the derivative of a linear map: `transpose(geometry, cotangent)`."""
    ad.deflinear2(linear.primitive, lambda cotangent, _, geometry: [transpose(geometry, cotangent)])


def set_transposes(bilinear: LinearMap, first: Map, second: Map) -> None:
    """States the derivatives of a bilinear map.

    Args:
      bilinear: from `define`, of two arrays x and y.
      first: `(geometry, cotangent, y) ->` the cotangent of x.
      second: `(geometry, cotangent, x) ->` the cotangent of y.
    """
    ad.defbilinear(
        bilinear.primitive,
        lambda cotangent, x, y, geometry: first(geometry, cotangent, y),
        lambda cotangent, x, y, geometry: second(geometry, cotangent, x),
    )

"""Linear and bilinear maps as JAX primitives: differentiable at will, and fast on each platform.

JAX differentiates a map by transposing the operations that it is written in, and some derivatives
of a convolution take a form that XLA has no fast code for. As primitives with stated transposes,
such maps are closed under differentiation: forward mode, reverse mode and their compositions of any
order apply the same few maps. Under `jax.vmap` the plain map is batched. A second implementation
may be given for CPU; programs for every other platform contain the plain one.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from kd_jax.types import Array

Map: TypeAlias = Callable[..., Array]
"""`(geometry, *arrays) -> array`, linear in each of the arrays."""


def define(name: str, plain: Map, on_cpu: Map | None = None) -> Map:
    """A primitive; its transposes are set by `set_transposes`.

    Args:
      name: in jaxprs.
      plain: the map, in operations of `jax.lax`.
      on_cpu: the same map where the program is compiled for CPU; by default `plain`.

    Returns:
      `(geometry, *arrays) -> array`, where `geometry` is hashable. Its attribute `primitive` is
      the primitive.
    """
    primitive = Primitive(name)

    def bind(geometry: Hashable, *arrays: Any) -> Array:
        return primitive.bind(*arrays, geometry=geometry)

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
        jax.jit(lambda *arrays, geometry: bind(geometry, *arrays), static_argnames="geometry")
    )
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(with_keyword(plain), multiple_results=False))
    if on_cpu is not None:
        lowering = mlir.lower_fun(with_keyword(on_cpu), multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform="cpu")
    bind.primitive = primitive  # type: ignore[attr-defined]
    return bind


def set_transpose(linear: Any, transpose: Map) -> None:
    """States the derivative of a linear map: `transpose(geometry, cotangent)`."""
    ad.deflinear2(linear.primitive, lambda cotangent, _, geometry: [transpose(geometry, cotangent)])


def set_transposes(bilinear: Any, first: Map, second: Map) -> None:
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

"""A network as two pure functions, and connectors that make two networks' features comparable."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.types import Array, Taps, Variables

Applied = tuple[Array, Taps, Variables]

CONNECTORS = "connectors"
"""The entry of `params` that holds a connected network's projections."""


class Network(NamedTuple):
    """Two pure functions; every generator, discriminator and classifier is one of these.

    Attributes:
      init: `init(key, *inputs) -> variables`.
      apply: `apply(variables, *inputs, train=False, rngs=None) -> (output, taps, variables)`. The
        returned variables are the given ones with the updates of this call (batch statistics) if
        `train`, and the given ones otherwise. `rngs` is a key for networks that draw noise. `taps`
        are named intermediate features; under jit those that nobody reads cost nothing.
    """

    init: Callable[..., Variables]
    apply: Callable[..., Applied]


def from_linen(module: nn.Module) -> Network:
    """A `Network` from a Flax Linen module.

    Args:
      module: its `__call__(*inputs, train: bool)` returns `(output, {tap name: feature})`.
    """

    def init(key: Array, *inputs: Any) -> Variables:
        return module.init(key, *inputs, train=False)

    def apply(
        variables: Variables, *inputs: Any, train: bool = False, rngs: Array | None = None
    ) -> Applied:
        if not train:
            output, taps = module.apply(variables, *inputs, train=False, rngs=rngs)
            return output, Taps(taps), variables
        kept = [name for name in variables if name != "params"]
        (output, taps), updates = module.apply(
            variables, *inputs, train=True, rngs=rngs, mutable=kept
        )
        return output, Taps(taps), {**variables, **updates}

    return Network(init, apply)


def tap_shapes(network: Network, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tap of `network` for these inputs (arrays or `ShapeDtypeStruct`s).

    Nothing is computed or allocated.
    """

    def taps(key: Array, *inputs: Any) -> Taps:
        return network.apply(network.init(key, *inputs), *inputs)[1]

    shapes = jax.eval_shape(taps, jax.random.key(0), *inputs)
    return {name: feature.shape for name, feature in shapes.items()}


def connected(name: str) -> str:
    """The tap under which a connected network shows its projected feature `name`."""
    return f"connected/{name}"


def connect(network: Network, targets: Mapping[str, Sequence[int]]) -> Network:
    """`network` with learned projections of some of its taps to another network's feature shapes.

    Each named feature is resampled to the target's height and width and sent through a learned
    1x1 convolution with bias, and appears as the tap `connected(name)`. This is the regressor of
    FitNets (Romero et al. 2015, eq. 3) and the mapping of GAN Compression (Li et al. 2020, eq. 3).
    The projections are parameters of the network (`params["connectors"]`), so they are trained,
    averaged and checkpointed with it; `disconnect` takes them away again.

    Args:
      network: the student, usually.
      targets: for tap names of `network`, the shape of the feature to become comparable with,
        `[..., H, W, C]` with any number of leading axes, as `tap_shapes` gives it for the teacher.

    Raises:
      MissingTapError: when a name is not a tap of `network`; it lists those that are.
      ValueError: when a target or a tap is not of the form `[..., H, W, C]`.
    """
    for name, shape in targets.items():
        if len(shape) < 3:
            raise ValueError(f"target of tap {name!r} has shape {tuple(shape)}, not [..., H, W, C]")

    def init(key: Array, *inputs: Any) -> Variables:
        variables = network.init(key, *inputs)
        if CONNECTORS in variables["params"]:
            raise ValueError("the network is connected already; give all targets in one call")
        taps = jax.eval_shape(lambda v: network.apply(v, *inputs)[1], variables)
        projections = {}
        for index, (name, shape) in enumerate(targets.items()):
            width, target = _channels(name, taps[name].shape), shape[-1]
            kernel = jax.random.normal(jax.random.fold_in(key, index), (width, target))
            projections[name] = {
                "kernel": kernel / math.sqrt(width),
                "bias": jnp.zeros((target,)),
            }
        return {**variables, "params": {**variables["params"], CONNECTORS: projections}}

    def apply(
        variables: Variables, *inputs: Any, train: bool = False, rngs: Array | None = None
    ) -> Applied:
        projections = variables["params"][CONNECTORS]
        output, taps, after = network.apply(disconnect(variables), *inputs, train=train, rngs=rngs)
        taps = Taps(taps)
        for name, shape in targets.items():
            feature, projection = taps[name], projections[name]
            _channels(name, feature.shape)
            height_width = tuple(shape[-3:-1])
            if feature.shape[1:3] != height_width:
                size = (feature.shape[0], *height_width, feature.shape[-1])
                feature = jax.image.resize(feature, size, "linear")
            projected = feature @ projection["kernel"].astype(feature.dtype)
            taps[connected(name)] = projected + _as_row(projection["bias"], projected)
        return output, taps, {**after, "params": variables["params"]}

    return Network(init, apply)


def disconnect(variables: Variables) -> Variables:
    """A connected network's variables without the projections: what is deployed."""
    params = {k: v for k, v in variables["params"].items() if k != CONNECTORS}
    return {**variables, "params": params}


def _channels(name: str, shape: tuple[int, ...]) -> int:
    if len(shape) != 4:
        raise ValueError(f"tap {name!r} has shape {shape}; a connector needs [B, H, W, C]")
    return shape[-1]


def _as_row(vector: Array, like: Array) -> Array:
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))

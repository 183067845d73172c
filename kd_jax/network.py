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
        are named intermediate features; under jit those that nobody reads cost nothing. Networks
        may have further options by keyword (`truncation`); their factories say which.
      mapping: of a style network `mapping(variables, latents[, labels], **options) -> styles`, and
        None of others. The styles w are `[B, layers, style]`, one for each layer that reads one.
      synthesis: of a style network `synthesis(variables, styles, rngs=None, **options) ->
        (images, taps)`, so that losses can work on w; None of others.
      module: the Linen module that it was made from, for `kd_jax.architecture`; None of others.
    """

    init: Callable[..., Variables]
    apply: Callable[..., Applied]
    mapping: Callable[..., Array] | None = None
    synthesis: Callable[..., tuple[Array, Taps]] | None = None
    module: nn.Module | None = None


def from_linen(module: nn.Module, *, style: bool = False) -> Network:
    """A `Network` from a Flax Linen module.

    Args:
      module: its `__call__(*inputs, train: bool, **options)` returns `(output, {tap name:
        feature})`.
      style: whether it has submodules `mapping`, which makes `styles` of the inputs, and
        `synthesis`, which makes `(output, taps)` of the styles.
    """

    def init(key: Array, *inputs: Any) -> Variables:
        return module.init(key, *inputs, train=False)

    def apply(
        variables: Variables,
        *inputs: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        if not train:
            output, taps = module.apply(variables, *inputs, train=False, rngs=rngs, **options)
            return output, Taps(taps), variables
        kept = [name for name in variables if name != "params"]
        (output, taps), updates = module.apply(
            variables, *inputs, train=True, rngs=rngs, mutable=kept, **options
        )
        return output, Taps(taps), {**variables, **updates}

    if not style:
        return Network(init, apply, module=module)

    def mapping(variables: Variables, *inputs: Any, **options: Any) -> Array:
        def part(module: Any, *inputs: Any) -> Array:
            return module.mapping(*inputs, train=False, **options)

        return module.apply(variables, *inputs, method=part)

    def synthesis(
        variables: Variables, styles: Array, rngs: Array | None = None, **options: Any
    ) -> tuple[Array, Taps]:
        def part(module: Any, styles: Array) -> tuple[Array, dict[str, Array]]:
            return module.synthesis(styles, train=False, **options)

        output, taps = module.apply(variables, styles, method=part, rngs=rngs)
        return output, Taps(taps)

    return Network(init, apply, mapping, synthesis, module)


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

    Each named feature is resampled to the target's height and width (or whatever axes lie between
    batch and channels), sent through a learned 1x1 convolution with bias, and appears as the tap
    `connected(name)`. This is the regressor of FitNets (Romero et al. 2015, eq. 3) and the
    mapping of GAN Compression (Li et al. 2020, eq. 3).
    The projections are parameters of the network (`params["connectors"]`), so they are trained,
    averaged and checkpointed with it; `disconnect` takes them away again.

    Args:
      network: the student, usually.
      targets: for tap names of `network`, the shape of the feature to become comparable with, as
        `tap_shapes` gives it for the teacher: `[B, H, W, C]`, where B does not matter.

    Raises:
      MissingTapError: when a name is not a tap of `network`; it lists those that are.
      ValueError: when a tap and its target have different numbers of axes.
    """

    def init(key: Array, *inputs: Any) -> Variables:
        variables = network.init(key, *inputs)
        if CONNECTORS in variables["params"]:
            raise ValueError("the network is connected already; give all targets in one call")
        taps = jax.eval_shape(lambda v: network.apply(v, *inputs)[1], variables)
        projections = {}
        for index, (name, shape) in enumerate(targets.items()):
            width, target = _fitting(name, taps[name].shape, shape)[-1], shape[-1]
            kernel = jax.random.normal(jax.random.fold_in(key, index), (width, target))
            projections[name] = {
                "kernel": kernel / math.sqrt(width),
                "bias": jnp.zeros((target,)),
            }
        return {**variables, "params": {**variables["params"], CONNECTORS: projections}}

    def apply(
        variables: Variables,
        *inputs: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        projections = variables["params"][CONNECTORS]
        output, taps, after = network.apply(
            disconnect(variables), *inputs, train=train, rngs=rngs, **options
        )
        taps = Taps(taps)
        for name, shape in targets.items():
            feature, projection = taps[name], projections[name]
            batch, *_, width = _fitting(name, feature.shape, shape)
            size = (batch, *shape[1:-1], width)
            if feature.shape != size:
                feature = jax.image.resize(feature, size, "linear")
            projected = feature @ projection["kernel"].astype(feature.dtype)
            taps[connected(name)] = projected + _as_row(projection["bias"], projected)
        return output, taps, {**after, "params": variables["params"]}

    return network._replace(init=init, apply=apply)


def tap_pairs(taps: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """`{student's tap: teacher's tap}`, of names that both have or of pairs.

    Raises:
      ValueError: when there are none, or one string stands where a sequence is meant.
    """
    if isinstance(taps, str) or not taps:
        raise ValueError(
            f"taps={taps!r}: a sequence of names is needed, or {{student's: teacher's}}"
        )
    return dict(taps) if isinstance(taps, Mapping) else {name: name for name in taps}


def connect_to(
    student: Network, teacher: Network, taps: Sequence[str] | Mapping[str, str], *inputs: Any
) -> Network:
    """`connect`, with the targets that the teacher's taps have for these inputs.

    Args:
      student: the network to connect.
      teacher: the network whose features to become comparable with.
      taps: names that both have, or `{student's tap: teacher's tap}`.
      *inputs: of both networks, arrays or `ShapeDtypeStruct`s. Nothing is computed.

    Raises:
      ValueError: when a network lacks a tap (it lists those it has), or two taps do not fit.
    """
    ours, theirs = tap_shapes(student, *inputs), tap_shapes(teacher, *inputs)
    targets = {}
    for name, other in tap_pairs(taps).items():
        for whose, tap, shapes in (("student", name, ours), ("teacher", other, theirs)):
            if tap not in shapes:
                raise ValueError(f"the {whose} has no tap {tap!r}; it has {', '.join(shapes)}")
        targets[name] = theirs[other]
        _fitting(name, ours[name], theirs[other])
    return connect(student, targets)


def disconnect(variables: Variables) -> Variables:
    """A connected network's variables without the projections: what is deployed."""
    params = {k: v for k, v in variables["params"].items() if k != CONNECTORS}
    return {**variables, "params": params}


def _fitting(name: str, shape: tuple[int, ...], target: Sequence[int]) -> tuple[int, ...]:
    if len(shape) < 2 or len(target) != len(shape):
        raise ValueError(
            f"tap {name!r} has shape {shape} and its target {tuple(target)}; a connector needs "
            "[batch, ..., channels] of both, with as many axes between"
        )
    return shape


def _as_row(vector: Array, like: Array) -> Array:
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def check_variables(
    network: Network, variables: Variables, *inputs: Any, name: str = "variables"
) -> None:
    """Refuses variables that are not of this network with these inputs; nothing is computed.

    Args:
      network: the network.
      variables: arrays or `ShapeDtypeStruct`s.
      *inputs: a batch of what it takes, likewise.
      name: what the error calls the variables.

    Raises:
      ValueError: the first path (in alphabetical order) that is missing, that the network has not,
        or that is of another shape or dtype.
    """
    expected = by_path(jax.eval_shape(network.init, jax.random.key(0), *inputs))
    given = by_path(variables)
    for path in sorted({*expected, *given}):
        if path not in given:
            raise ValueError(f"{name} has no {path}, which the network has")
        if path not in expected:
            raise ValueError(f"{name} has {path}, which the network has not")
        here, there = (
            f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in (expected[path], given[path])
        )
        if here != there:
            raise ValueError(
                f"{name}: {path} is {there}, and {here} in the network with inputs of "
                + " and ".join(str(tuple(x.shape)) for x in inputs)
            )


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, whose parts `/` separates."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

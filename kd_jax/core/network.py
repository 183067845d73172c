"""Networks as pairs of pure functions, and connectors that project features to other shapes."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.representation import record_repr, short
from kd_jax.core.types import Array, Taps, Variables

Applied = tuple[Array, Taps, Variables]

CONNECTORS = "connectors"
"""The entry of `params` that holds the projections of a connected network."""


class Factory(NamedTuple):
    """A call that makes a network: `factory(**arguments)`, as checkpoints describe it.

    Attributes:
      path: the factory, `"package.module:function"`.
      arguments: its keyword arguments.
    """

    path: str
    arguments: Mapping[str, Any]


class Network(NamedTuple):
    """Two pure functions; every generator, discriminator and classifier is a `Network`.

    `from_linen`, `from_nnx` and `from_functions` make one.

    Attributes:
      init: `init(key, *inputs) -> variables`, a dict of collections with the entry `params`.
      apply: `apply(variables, *inputs, train=False, rngs=None) -> (output, taps, variables)`. The
        returned variables include the updates of this call (batch statistics) if `train`, and are
        the argument itself otherwise. `rngs` is a key for networks that draw noise. `taps` are
        named intermediate features; under jit, unused taps cost nothing. Networks may accept
        further keyword options (`truncation`), documented by their factories.
      mapping: for a style network, `mapping(variables, latents[, labels], **options) -> styles`;
        None for others. The styles w are `[B, layers, style]`, one for each layer that reads one.
      synthesis: for a style network, `synthesis(variables, styles, rngs=None, **options) ->
        (images, taps)`, so that losses can work on w; None for others.
      module: the Linen module behind the network; None for others.
      factory: the call that made the network, from `from_factory`; None for others. Checkpoints
        describe a network by its module or its factory.
    """

    init: Callable[..., Variables]
    apply: Callable[..., Applied]
    mapping: Callable[..., Array] | None = None
    synthesis: Callable[..., tuple[Array, Taps]] | None = None
    module: nn.Module | None = None
    factory: Factory | None = None

    def __repr__(self) -> str:
        known = self.module or self.factory
        return f"Network({short(known)})" if known is not None else record_repr(self)


def from_linen(module: nn.Module, *, style: bool = False, capture_taps: bool = False) -> Network:
    """A `Network` from a Flax Linen module.

    Args:
      module: its `__call__(*inputs, **options)` returns the output, or `(output, {tap name:
        feature})`. An argument `train`, `training`, `deterministic` or `use_running_average` is
        set by the step; no other argument is required.
      style: whether it has submodules `mapping`, from the inputs to `styles`, and `synthesis`,
        from the styles to `(output, taps)`; both take `train`.
      capture_taps: whether the outputs of all submodules, and what the module sows in
        `intermediates`, are taps, by path: `"Conv_0"`, `"block/Dense_0"`.

    Raises:
      ValueError: it is not a Linen module; or (of the network) it returns something else.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"from_linen takes a flax.linen.Module, not a {type(module).__name__}; there are also "
            "from_nnx and from_functions"
        )
    mode = _mode_of(type(module).__call__)

    def init(key: Array, *inputs: Any) -> Variables:
        variables = module.init(key, *inputs, **mode(False))
        return {name: value for name, value in variables.items() if name != "intermediates"}

    def apply(
        variables: Variables,
        *inputs: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        mutable = [name for name in variables if name != "params"] if train else []
        captured = ["intermediates"] if capture_taps else []
        result = module.apply(
            variables,
            *inputs,
            **mode(train),
            rngs=rngs,
            mutable=mutable + captured if train or captured else False,
            capture_intermediates=capture_taps,
            **options,
        )
        result, updates = result if train or captured else (result, {})
        output, taps = _output_and_taps(result, type(module).__name__)
        updates = dict(updates)
        taps = Taps({**_captured(updates.pop("intermediates", {})), **taps})
        return output, taps, {**variables, **updates} if train else variables

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


def from_functions(init: Callable[..., Any], apply: Callable[..., Any]) -> Network:
    """A `Network` from two plain functions, as of Haiku or Equinox.

        hk.transform(f): from_functions(f.init, lambda params, *x: f.apply(params, None, *x))
        Equinox: arrays, static = eqx.partition(model, eqx.is_array)
                 from_functions(lambda key, *x: arrays, lambda a, *x: eqx.combine(a, static)(*x))

    Args:
      init: `init(key, *inputs) -> parameters`, any pytree of arrays.
      apply: `apply(parameters, *inputs) -> output` or `(output, taps)`, for a batch. Arguments
        `train` and `rngs` are passed where it has them.
    """
    mode, takes_key = _mode_of(apply), "rngs" in inspect.signature(apply).parameters

    def init_variables(key: Array, *inputs: Any) -> Variables:
        return {"params": init(key, *inputs)}

    def apply_variables(
        variables: Variables,
        *inputs: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        key = {"rngs": rngs} if takes_key else {}
        result = apply(variables["params"], *inputs, **mode(train), **key, **options)
        output, taps = _output_and_taps(result, getattr(apply, "__name__", "apply"))
        return output, Taps(taps), variables

    return Network(init_variables, apply_variables)


def from_nnx(make: Callable[[Any], Any]) -> Network:
    """A `Network` from a Flax NNX module.

    Parameters (`nnx.Param`) are the collection `params`, all other state (batch statistics, random
    states) is `state`. Dropout and batch normalisation are switched by `module.train()` and
    `module.eval()`.

    Args:
      make: `make(nnx.Rngs) -> module`, which maps `*inputs` to the output or `(output, taps)`.

    Raises:
      ValueError: `make` is a module instead of a function that makes one.
    """
    from flax import nnx

    if isinstance(make, nnx.Module):
        raise ValueError(
            f"from_nnx takes a function of nnx.Rngs, not a {type(make).__name__}: from_nnx(lambda "
            f"rngs: {type(make).__name__}(..., rngs=rngs))"
        )

    def split(module: Any) -> tuple[Any, Variables]:
        graph, params, state = nnx.split(module, nnx.Param, ...)
        return graph, {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(state)}

    graphs: list[Any] = []  # the static part, the same for each key

    def init(key: Array, *inputs: Any) -> Variables:
        del inputs
        graph, variables = split(make(nnx.Rngs(key)))
        graphs[:] = [graph]
        return variables

    def apply(
        variables: Variables,
        *inputs: Any,
        train: bool = False,
        rngs: Array | None = None,
        **options: Any,
    ) -> Applied:
        if not graphs:
            jax.eval_shape(init, jax.random.key(0))
        module = nnx.merge(graphs[0], variables["params"], variables["state"], copy=True)
        module.train() if train else module.eval()
        if rngs is not None:
            nnx.reseed(module, default=rngs)
        output, taps = _output_and_taps(module(*inputs, **options), type(module).__name__)
        return output, Taps(taps), split(module)[1] if train else variables

    return Network(init, apply)


def from_factory(factory: Callable[..., Network], **arguments: Any) -> Network:
    """`factory(**arguments)`, a network that checkpoints can describe and rebuild.

    Args:
      factory: a function of a module, not a lambda, that returns a `Network`.
      **arguments: values with a JSON form: numbers, strings, dtypes, sequences, dicts.

    Raises:
      ValueError: it has no path by which it could be imported again, or returns something else.
    """
    path = f"{factory.__module__}:{factory.__qualname__}"
    if "<" in path or factory.__module__ == "__main__":
        raise ValueError(f"{path} cannot be imported; from_factory needs a function of a module")
    network = factory(**arguments)
    if not isinstance(network, Network):
        raise ValueError(f"{path} returned a {type(network).__name__}, not a kd_jax.Network")
    return network._replace(factory=Factory(path, arguments))


_MODES = {
    "train": lambda train: train,
    "training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def _mode_of(call: Callable[..., Any]) -> Callable[[bool], dict[str, bool]]:
    """The keyword argument that switches a function to training, as a function of `train`."""
    parameters = inspect.signature(call).parameters
    for name, value in _MODES.items():
        if name in parameters:
            return lambda train: {name: value(train)}
    return lambda train: {}


def _output_and_taps(result: Any, name: str) -> tuple[Array, Mapping[str, Array]]:
    if isinstance(result, tuple | list):
        if len(result) != 2 or not isinstance(result[1], Mapping):
            raise ValueError(
                f"{name} returned a {type(result).__name__} of {len(result)}; a network returns "
                "the output, or (output, {tap name: feature})"
            )
        return result[0], result[1]
    return result, {}


def _captured(intermediates: Mapping[str, Any]) -> dict[str, Array]:
    """Linen's intermediates as taps: `{"Conv_0": {"__call__": (x,)}}` is the tap `Conv_0`."""
    taps = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        names = [str(getattr(key, "key", getattr(key, "idx", ""))) for key in path]
        names = [name for name in names[:-1] + names[-1:] * (names[-1] != "0") if name]
        name = "/".join(part for part in names if part != "__call__")
        if name and hasattr(leaf, "ndim"):
            taps[name] = leaf
    return taps


def tap_shapes(network: Network, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tap of `network` for these inputs (arrays or `ShapeDtypeStruct`s).

    Nothing is computed or allocated.
    """

    def taps(key: Array, *inputs: Any) -> Taps:
        return network.apply(network.init(key, *inputs), *inputs)[1]

    shapes = jax.eval_shape(taps, jax.random.key(0), *inputs)
    return {name: feature.shape for name, feature in shapes.items()}


def connected(name: str) -> str:
    """The tap name of the projected feature `name` of a connected network."""
    return f"connected/{name}"


def connect(network: Network, targets: Mapping[str, Sequence[int]]) -> Network:
    """`network` with learned projections of some of its taps to another network's feature shapes.

    Each named feature is resampled to the target's height and width (or all axes between batch and
    channels), passed through a learned 1x1 convolution with bias, and returned as the tap
    `connected(name)`. This is the regressor of FitNets (Romero et al. 2015, eq. 3) and the
    mapping of GAN Compression (Li et al. 2020, eq. 3).
    The projections are parameters of the network (`params["connectors"]`), so they are trained,
    averaged and checkpointed with it; `disconnect` removes them.

    Args:
      network: usually the student.
      targets: by tap name of `network`, the shape to project to, as `tap_shapes` returns it for the
        teacher: `[B, H, W, C]`, where B is ignored.

    Raises:
      MissingTapError: when a name is not a tap of `network`; the message lists its taps.
      ValueError: when a tap and its target have different numbers of axes.
    """

    def init(key: Array, *inputs: Any) -> Variables:
        variables = network.init(key, *inputs)
        if CONNECTORS in variables["params"]:
            raise ValueError("the network is connected already; pass all targets in one call")
        taps = jax.eval_shape(lambda v: network.apply(v, *inputs)[1], variables)
        projections = {}
        for index, (name, shape) in enumerate(targets.items()):
            width, target = _check_axes(name, taps[name].shape, shape)[-1], shape[-1]
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
            batch, *_, width = _check_axes(name, feature.shape, shape)
            size = (batch, *shape[1:-1], width)
            if feature.shape != size:
                feature = jax.image.resize(feature, size, "linear")
            projected = feature @ projection["kernel"].astype(feature.dtype)
            taps[connected(name)] = projected + _as_row(projection["bias"], projected)
        return output, taps, {**after, "params": variables["params"]}

    return network._replace(init=init, apply=apply)


def tap_pairs(taps: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """`{student's tap: teacher's tap}`, from common names or from pairs.

    Raises:
      ValueError: when `taps` is empty, or a single string.
    """
    if isinstance(taps, str) or not taps:
        raise ValueError(
            f"taps={taps!r}: expected a sequence of names, or {{student's: teacher's}}"
        )
    return dict(taps) if isinstance(taps, Mapping) else {name: name for name in taps}


def connect_to(
    student: Network, teacher: Network, taps: Sequence[str] | Mapping[str, str], *inputs: Any
) -> Network:
    """`connect` with the shapes of the teacher's taps for these inputs as targets.

    Args:
      student: the network to connect.
      teacher: the network whose features are the targets.
      taps: names that both networks have, or `{student's tap: teacher's tap}`.
      *inputs: inputs of both networks, arrays or `ShapeDtypeStruct`s. Nothing is computed.

    Raises:
      ValueError: when a network lacks a tap (the message lists its taps), or two taps differ in
        their number of axes.
    """
    ours, theirs = tap_shapes(student, *inputs), tap_shapes(teacher, *inputs)
    targets = {}
    for name, other in tap_pairs(taps).items():
        for owner, tap, shapes in (("student", name, ours), ("teacher", other, theirs)):
            if tap not in shapes:
                raise ValueError(f"the {owner} has no tap {tap!r}; it has {', '.join(shapes)}")
        targets[name] = theirs[other]
        _check_axes(name, ours[name], theirs[other])
    return connect(student, targets)


def disconnect(variables: Variables) -> Variables:
    """The variables of a connected network without the projections, for deployment."""
    params = {k: v for k, v in variables["params"].items() if k != CONNECTORS}
    return {**variables, "params": params}


def _check_axes(name: str, shape: tuple[int, ...], target: Sequence[int]) -> tuple[int, ...]:
    if len(shape) < 2 or len(target) != len(shape):
        raise ValueError(
            f"tap {name!r} has shape {shape} and its target {tuple(target)}; a connector needs "
            "[batch, ..., channels] for both, with equally many axes"
        )
    return shape


def _as_row(vector: Array, like: Array) -> Array:
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def check_variables(
    network: Network, variables: Variables, *inputs: Any, name: str = "variables"
) -> None:
    """Checks that variables belong to this network with these inputs; nothing is computed.

    Args:
      network: the network.
      variables: arrays or `ShapeDtypeStruct`s.
      *inputs: a batch of its inputs, arrays or `ShapeDtypeStruct`s.
      name: the name of the variables in the error message.

    Raises:
      ValueError: a path is missing, unknown to the network, or of another shape or dtype; the
        message names the first in alphabetical order.
    """
    expected = by_path(jax.eval_shape(network.init, jax.random.key(0), *inputs))
    actual = by_path(variables)
    for path in sorted({*expected, *actual}):
        if path not in actual:
            raise ValueError(f"{name} has no {path}, which the network has")
        if path not in expected:
            raise ValueError(f"{name} has {path}, which the network does not have")
        here, there = (
            f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in (expected[path], actual[path])
        )
        if here != there:
            raise ValueError(
                f"{name}: {path} is {there}, and {here} in the network with inputs of "
                + " and ".join(str(tuple(x.shape)) for x in inputs)
            )


def shape_differences(
    network: Network, variables: Variables, *inputs: Any
) -> Iterator[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]]:
    """The variables whose shapes differ from those of `network.init`; nothing is computed.

    Args:
      network: the network.
      variables: its variables, as arrays or `ShapeDtypeStruct`s.
      *inputs: its inputs, as arrays or `ShapeDtypeStruct`s.

    Yields:
      The path, the shape in `variables` and the shape of the network; None where it is absent.
    """
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    expected, actual = (
        {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
        for tree in (like, variables)
    )
    for path in expected | actual:
        if expected.get(path) != actual.get(path):
            yield path, actual.get(path), expected.get(path)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, with parts separated by `/`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

"""The networks of perceptual distances: torchvision's trunks, and LPIPS's weights for them.

LPIPS (Zhang et al. 2018) is published in two halves: torchvision's classifier (`features.N...`),
of which the layers above the last convolution are left out here, and a small file of the weights of
its channels, `lin0.model.1.weight` and so on. The state dict of the authors' whole module has both,
under names of its own.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import perceptual
from kd_jax.network import Network
from kd_jax.pretrained.containers import read
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked
from kd_jax.types import Array

_SCALING = ("scaling_layer.shift", "scaling_layer.scale")
_SIDE = 64  # of the images by whose shapes a conversion is checked


class _Layer(NamedTuple):
    """A convolution: its path here, its name in torchvision, and the part of LPIPS it is in."""

    path: str
    name: str
    part: int


class _Kind(NamedTuple):
    """One of the three trunks."""

    what: str
    make: Callable[..., Network]
    layers: tuple[_Layer, ...]
    widths: tuple[str, ...]  # the layers whose features are the factory's widths
    taps: tuple[str, ...]
    classifier: tuple[str, ...]  # what is above


def _vgg16() -> Iterator[_Layer]:
    index = 0
    for group, depth in enumerate(perceptual.VGG16_DEPTHS, 1):
        for number in range(1, depth + 1):
            yield _Layer(f"conv{group}_{number}", f"features.{index}", group)
            index += 2  # with its ReLU
        index += 1  # the pool


def _squeezenet() -> Iterator[_Layer]:
    yield _Layer("conv1", "features.0", 1)
    # Pools lie between, and LPIPS divides so that each of its parts ends with a tap.
    indices, parts = (3, 4, 6, 7, 9, 10, 11, 12), (2, 2, 3, 3, 4, 5, 6, 7)
    for number, (index, part) in enumerate(zip(indices, parts, strict=True), 2):
        for inner in ("squeeze", "expand1x1", "expand3x3"):
            yield _Layer(f"fire{number}/{inner}", f"features.{index}.{inner}", part)


_VGG16 = _Kind(
    "a VGG16",
    perceptual.vgg16,
    tuple(_vgg16()),
    tuple(f"conv{group}_1" for group in range(1, 6)),
    tuple(f"relu{group}_{depth}" for group, depth in enumerate(perceptual.VGG16_DEPTHS, 1)),
    ("classifier.0", "classifier.3", "classifier.6"),
)
_ALEXNET = _Kind(
    "an AlexNet",
    perceptual.alexnet,
    tuple(
        _Layer(f"conv{number}", f"features.{index}", number)
        for number, index in enumerate((0, 3, 6, 8, 10), 1)
    ),
    tuple(f"conv{number}" for number in range(1, 6)),
    tuple(f"relu{number}" for number in range(1, 6)),
    ("classifier.1", "classifier.4", "classifier.6"),
)
_SQUEEZENET = _Kind(
    "a SqueezeNet 1.1",
    perceptual.squeezenet,
    tuple(_squeezenet()),
    ("conv1", *(f"fire{n}/{part}" for n in range(2, 10) for part in ("squeeze", "expand1x1"))),
    tuple(f"relu{number}" for number in range(1, 8)),
    ("classifier.1",),
)
_KINDS = {"features.2": _VGG16, "features.6": _ALEXNET, "features.3.squeeze": _SQUEEZENET}
"""The trunks, by a layer that no other one has."""


def is_trunk(names: Iterable[str]) -> bool:
    """Whether the tensors are those of a trunk, in torchvision's names."""
    found = set(names)
    return any({"features.0.weight", f"{name}.weight"} <= found for name in _KINDS)


def is_lpips(names: Iterable[str]) -> bool:
    """Whether the tensors are those of LPIPS's whole module."""
    found = set(names)
    return "net.slice1.0.weight" in found and any(name.startswith("lin0.model.") for name in found)


def load(
    path: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None, **overrides: Any
) -> Converted:
    """LPIPS from its file or its two files; or a trunk alone, from torchvision's.

        network, variables, *_ = perceptual.load("vgg16-397923af.pth", "vgg.pth")
        between = losses.perceptual.distance(network.apply, variables, variables["heads"])

    Args:
      path: torchvision's file, or one of LPIPS's whole module.
      heads: LPIPS's file of weights, for the former.
      **overrides: of `lpips` or `trunk`.

    Raises:
      ValueError: a file cannot be read, or is not what it should be.
    """
    files = [path] if heads is None else [path, heads]
    tensors: list[StateDict] = []
    for file in files:
        found = read(file)
        if not isinstance(found, Mapping):
            raise ValueError(f"{file}: not a state dict, but a {type(found).__name__}")
        tensors.append({str(k): v for k, v in found.items() if isinstance(v, np.ndarray)})
    try:
        if heads is None and not is_lpips(tensors[0]):
            return trunk(tensors[0], **overrides)
        return lpips(*tensors, **overrides)
    except ValueError as error:
        raise ValueError(f"{' and '.join(map(str, files))}: {error}") from None


def trunk(
    tensors: StateDict,
    *,
    shift: perceptual.Triple = perceptual.SHIFT,
    scale: perceptual.Triple = perceptual.SCALE,
) -> Converted:
    """A trunk of `kd_jax.models.perceptual`, without LPIPS's weights.

    Args:
      tensors: of torchvision's classifier, whose upper layers may be missing.
      shift: see `kd_jax.models.perceptual`.
      scale: see there.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    kind = _kind(tensors)
    t = Tensors(tensors, kind.what)
    params, widths = _trunk(t, kind, lambda layer: layer.name)
    t.drop(*(f"{name}.{part}" for name in kind.classifier for part in ("weight", "bias")))
    t.done()
    config = {"widths": widths, "shift": tuple(shift), "scale": tuple(scale)}
    return _checked(t, kind, {"params": params}, config)


def lpips(tensors: StateDict, heads: StateDict | None = None, *, scaled: bool = True) -> Converted:
    """A trunk with LPIPS's weights, in the collection `heads` of its variables: `{tap: [C]}`.

    Args:
      tensors: of LPIPS's whole module, or of torchvision's classifier.
      heads: LPIPS's weights, `lin0.model.1.weight` and so on, for the latter.
      scaled: whether the trunk sees images with ImageNet's deviations, as LPIPS does since its
        version 0.1; for weights of version 0.0 it does not.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    whole = heads is None
    if heads is not None:
        if both := sorted(tensors.keys() & heads.keys()):
            raise ValueError(f"{both[0]} is in both files")
        tensors = {**tensors, **heads}
    if whole:
        plain = {_without_slice(name): value for name, value in tensors.items()}
        kind = _kind(plain)
    else:
        kind = _kind(tensors)
    t = Tensors(tensors, f"LPIPS of {kind.what}")
    name_of = _in_lpips if whole else (lambda layer: layer.name)
    params, widths = _trunk(t, kind, name_of)
    shift, scale = perceptual.SHIFT, perceptual.SCALE
    if whole and all(name in t for name in _SCALING):
        stored = (t.take(name, (1, 3, 1, 1)).reshape(3).tolist() for name in _SCALING)
        shift, scale = (tuple(values) for values in stored)
    if not whole:
        t.drop(*(f"{name}.{part}" for name in kind.classifier for part in ("weight", "bias")))
    if not scaled:
        shift, scale = (0.0,) * 3, (1.0,) * 3
    weights = {tap: _head(t, index) for index, tap in enumerate(kind.taps)}
    t.done()
    config = {"widths": widths, "shift": shift, "scale": scale, "heads": True}
    return _checked(t, kind, {"params": params, perceptual.HEADS: weights}, config)


def _kind(names: Iterable[str]) -> _Kind:
    found = set(names)
    for name, kind in _KINDS.items():
        if f"{name}.weight" in found:
            return kind
    raise ValueError(
        "not a VGG16, AlexNet or SqueezeNet 1.1: none of "
        f"{', '.join(f'{name}.weight' for name in _KINDS)} is there"
    )


def _in_lpips(layer: _Layer) -> str:
    return layer.name.replace("features.", f"net.slice{layer.part}.")


def _without_slice(name: str) -> str:
    """`net.slice2.5.weight` as torchvision's `features.5.weight`."""
    start, _, rest = name.removeprefix("net.slice").partition(".")
    return f"features.{rest}" if name.startswith("net.slice") and start.isdigit() else name


def _trunk(
    t: Tensors, kind: _Kind, name_of: Callable[[_Layer], str]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The trunk's parameters, and its factory's widths."""
    params: dict[str, Any] = {}
    counts = {}
    for layer in kind.layers:
        name = name_of(layer)
        values = {"kernel": t.kernel(f"{name}.weight"), "bias": t.vector(f"{name}.bias")}
        counts[layer.path] = values["kernel"].shape[3]
        outer, _, inner = layer.path.partition("/")
        if inner:
            params.setdefault(outer, {})[inner] = values
        else:
            params[outer] = values
    return params, tuple(counts[path] for path in kind.widths)


def _head(t: Tensors, index: int) -> Array:
    """A layer's weights `[C]`, which a whole module has twice; dropout may come before them."""
    names = [f"lin{index}.model.{position}.weight" for position in (1, 0)]
    name = next((name for name in names if name in t), names[0])
    weights = t.take(name)
    if weights.ndim != 4 or weights.shape != (1, weights.size, 1, 1):
        raise ValueError(f"{t.what}: {name} has shape {weights.shape} instead of (1, C, 1, 1)")
    t.drop(name.replace(f"lin{index}.", f"lins.{index}."))
    return jnp.asarray(weights.reshape(-1))


def _checked(
    t: Tensors, kind: _Kind, variables: Mapping[str, Any], config: Mapping[str, Any]
) -> Converted:
    image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
    return checked(t.what, Converted(kind.make(**config), variables, config), image)

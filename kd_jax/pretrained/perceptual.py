"""The networks of perceptual distances: torchvision's trunks, and LPIPS's weights for them.

LPIPS (Zhang et al. 2018) is published in two files: torchvision's classifier (`features.N...`),
whose layers above the last convolution are left out here, and a small file of channel weights,
`lin0.model.1.weight` and so on. The state dict of the authors' whole module has both under other
names.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.types import Array
from kd_jax.models import perceptual
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader, check_variables
from kd_jax.pretrained.io.containers import read

_SCALING = ("scaling_layer.shift", "scaling_layer.scale")
_SIDE = 64  # size of the image whose shape a conversion is checked with


class _Layer(NamedTuple):
    """A convolution: its path here, its name in torchvision, and its slice in LPIPS."""

    path: str
    name: str
    part: int


class _Kind(NamedTuple):
    """A trunk architecture."""

    what: str
    make: Callable[..., Network]
    layers: tuple[_Layer, ...]
    widths: tuple[str, ...]  # the layers whose features are the factory's widths
    taps: tuple[str, ...]
    classifier: tuple[str, ...]  # the layers above the trunk


def _vgg16() -> Iterator[_Layer]:
    index = 0
    for group, depth in enumerate(perceptual.VGG16_DEPTHS, 1):
        for number in range(1, depth + 1):
            yield _Layer(f"conv{group}_{number}", f"features.{index}", group)
            index += 2  # with its ReLU
        index += 1  # the pool


def _squeezenet() -> Iterator[_Layer]:
    yield _Layer("conv1", "features.0", 1)
    # Pooling layers lie between. LPIPS slices the network so that each slice ends with a tap.
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
"""The trunks, by a layer that only they have."""


def is_trunk(names: Iterable[str]) -> bool:
    """Whether the tensors are those of a trunk, in torchvision's names."""
    names = set(names)
    return any({"features.0.weight", f"{name}.weight"} <= names for name in _KINDS)


def is_lpips(names: Iterable[str]) -> bool:
    """Whether the tensors are those of LPIPS's whole module."""
    names = set(names)
    return "net.slice1.0.weight" in names and any(name.startswith("lin0.model.") for name in names)


def load(
    path: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None, **overrides: Any
) -> Converted:
    """Loads LPIPS from one or two files, or a trunk from torchvision's file.

        network, variables, *_ = perceptual.load("vgg16-397923af.pth", "vgg.pth")
        distances = losses.perceptual.distance(network.apply, variables, variables["heads"])

    Args:
      path: torchvision's file, or a file of LPIPS's whole module.
      heads: LPIPS's file of channel weights, if `path` is torchvision's.
      **overrides: arguments of `lpips` or `trunk`.

    Raises:
      ValueError: a file cannot be read, or does not have the expected tensors.
    """
    files = [path] if heads is None else [path, heads]
    tensors: list[StateDict] = []
    for file in files:
        tree = read(file)
        if not isinstance(tree, Mapping):
            raise ValueError(f"{file}: not a state dict, but a {type(tree).__name__}")
        tensors.append({str(k): v for k, v in tree.items() if isinstance(v, np.ndarray)})
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
      tensors: the state dict of torchvision's classifier, whose upper layers may be missing.
      shift: see `kd_jax.models.perceptual`.
      scale: see `kd_jax.models.perceptual`.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    kind = _kind(tensors)
    reader = StateDictReader(tensors, kind.what)
    params, widths = _trunk(reader, kind, lambda layer: layer.name)
    reader.drop(*(f"{name}.{part}" for name in kind.classifier for part in ("weight", "bias")))
    reader.check_all_read()
    config = {"widths": widths, "shift": tuple(shift), "scale": tuple(scale)}
    rest = {name: config[name] for name in ("shift", "scale")}
    return _convert(reader, kind, {"params": params}, config)._replace(options=rest)


def lpips(tensors: StateDict, heads: StateDict | None = None, *, scaled: bool = True) -> Converted:
    """A trunk with LPIPS's weights, in the collection `heads` of its variables: `{tap: [C]}`.

    Args:
      tensors: the state dict of LPIPS's whole module, or of torchvision's classifier.
      heads: LPIPS's channel weights, `lin0.model.1.weight` and so on, for the latter.
      scaled: whether images are normalised by ImageNet's mean and deviation before the trunk, as
        in LPIPS since version 0.1; False for weights of version 0.0.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
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
    reader = StateDictReader(tensors, f"LPIPS of {kind.what}")
    name_of = _lpips_name if whole else (lambda layer: layer.name)
    params, widths = _trunk(reader, kind, name_of)
    shift, scale = perceptual.SHIFT, perceptual.SCALE
    if whole and all(name in reader for name in _SCALING):
        stored = (reader.take(name, (1, 3, 1, 1)).reshape(3).tolist() for name in _SCALING)
        shift, scale = (tuple(values) for values in stored)
    if not whole:
        reader.drop(*(f"{name}.{part}" for name in kind.classifier for part in ("weight", "bias")))
    if not scaled:
        shift, scale = (0.0,) * 3, (1.0,) * 3
    weights = {tap: _head(reader, index) for index, tap in enumerate(kind.taps)}
    reader.check_all_read()
    config = {"widths": widths, "shift": shift, "scale": scale, "heads": True}
    converted = _convert(reader, kind, {"params": params, perceptual.HEADS: weights}, config)
    return converted._replace(options={"scaled": scaled})


def _kind(names: Iterable[str]) -> _Kind:
    names = set(names)
    for name, kind in _KINDS.items():
        if f"{name}.weight" in names:
            return kind
    raise ValueError(
        "not a VGG16, AlexNet or SqueezeNet 1.1: none of "
        f"{', '.join(f'{name}.weight' for name in _KINDS)} is present"
    )


def _lpips_name(layer: _Layer) -> str:
    return layer.name.replace("features.", f"net.slice{layer.part}.")


def _without_slice(name: str) -> str:
    """`net.slice2.5.weight` as torchvision's `features.5.weight`."""
    start, _, rest = name.removeprefix("net.slice").partition(".")
    return f"features.{rest}" if name.startswith("net.slice") and start.isdigit() else name


def _trunk(
    reader: StateDictReader, kind: _Kind, name_of: Callable[[_Layer], str]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The trunk's parameters, and the widths for its factory."""
    params: dict[str, Any] = {}
    counts = {}
    for layer in kind.layers:
        name = name_of(layer)
        values = {"kernel": reader.kernel(f"{name}.weight"), "bias": reader.vector(f"{name}.bias")}
        counts[layer.path] = values["kernel"].shape[3]
        outer, _, inner = layer.path.partition("/")
        if inner:
            params.setdefault(outer, {})[inner] = values
        else:
            params[outer] = values
    return params, tuple(counts[path] for path in kind.widths)


def _head(reader: StateDictReader, index: int) -> Array:
    """A layer's channel weights `[C]`. The whole module has them twice, perhaps after dropout."""
    names = [f"lin{index}.model.{position}.weight" for position in (1, 0)]
    name = next((name for name in names if name in reader), names[0])
    weights = reader.take(name)
    if weights.ndim != 4 or weights.shape != (1, weights.size, 1, 1):
        raise ValueError(f"{reader.what}: {name} has shape {weights.shape} instead of (1, C, 1, 1)")
    reader.drop(name.replace(f"lin{index}.", f"lins.{index}."))
    return jnp.asarray(weights.reshape(-1))


def _convert(
    reader: StateDictReader, kind: _Kind, variables: Mapping[str, Any], config: Mapping[str, Any]
) -> Converted:
    image = jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32)
    return check_variables(reader.what, Converted(kind.make(**config), variables, config), image)

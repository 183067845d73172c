"""Named feature extractors, whose features the metrics are computed on."""

import glob
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from kd_jax.core.files import file_lock, naming, write_atomically
from kd_jax.core.network import Network, from_linen
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Array, Variables
from kd_jax.losses.perceptual import distance
from kd_jax.metrics import resize
from kd_jax.models.classifier import classifier
from kd_jax.models.inception import SIDE
from kd_jax.models.perceptual import VGG16_WIDTHS, vgg16
from kd_jax.pretrained import inception as registry, perceptual
from kd_jax.pretrained.io.containers import read

_LEARNING_RATE = 1e-3

PIXELS = 64 * 128**2
"""The most pixels in a pass of a network that takes images of any size: features need memory."""


class Extractor(NamedTuple):
    """A named function from images to features.

    Attributes:
      name: stated with every metric value; includes the hash of the weights.
      features: `images [N, H, W, C] in [-1, 1] -> [N, D]` float32, batched internally.
      logits: `images -> [N, classes]`; a KeyError for `random_network`, which has none.
      outputs: `images -> {name: [N, ...]}`: `features` and `logits` in one pass; for an Inception
        network also `logits_unbiased`, the logits without their bias. None if not available.
    """

    name: str
    features: Callable[[Any], np.ndarray]
    logits: Callable[[Any], np.ndarray]
    outputs: Callable[[Any], dict[str, np.ndarray]] | None = None

    def __repr__(self) -> str:
        return record_repr(self)


def classifier_extractor(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    classes: int,
    cache: Path,
    steps: int = 1000,
    batch: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> Extractor:
    """The penultimate features `[N, 128]` of a small classifier trained on the given data.

    It needs no downloaded network. Distances are comparable only between equal extractors, so the
    name includes the hash of the weights, and they are not an "FID".

    The training is deterministic (Adam at 1e-3). Its result is cached under the hash of the data
    and of these settings, so later runs use the same weights.

    Args:
      images: `[N, H, W, C]` in [-1, 1].
      labels: int `[N]` in [0, classes).
      name: the name of the data.
      classes: the number of classes.
      cache: the folder of cached weights.
      steps: training steps. A thousand take ten seconds on two cores with images of 16x16, and
        minutes with 64x64.
      batch: the training batch size.
      progress: called with the number of finished steps, unless the weights are cached.

    A damaged file of the cache is named on stderr, and made again.
    """
    network = classifier(classes)
    abstract = jax.eval_shape(network.init, jax.random.key(0), images[:1])
    digest = hashlib.sha256()
    for part in (images.tobytes(), labels.tobytes(), repr(abstract).encode()):
        digest.update(part)
    digest.update(f"{classes} {steps} {batch} {_LEARNING_RATE}".encode())
    folder, key = cache / "classifiers", f"{name}-{digest.hexdigest()[:16]}"
    stored = _read_weights(folder, key)
    if stored is None:
        with (
            naming(f"write the classifier {folder / key} to the cache"),
            file_lock(folder, f".{key}.lock", wait=True, needed=False),
        ):
            stored = _read_weights(folder, key)  # of a process that was waited for
            if stored is None:
                x, y = jnp.asarray(images), jnp.asarray(labels)
                trained = _train(network, x, y, steps, batch, progress)
                stored = serialization.to_bytes(jax.device_get(trained))
                name_of_content = f"{key}.{hashlib.sha256(stored).hexdigest()}.msgpack"
                write_atomically(folder / name_of_content, stored)
    variables = serialization.from_bytes(jax.tree.map(jnp.zeros_like, abstract), stored)
    weights_hash = hashlib.sha256(stored).hexdigest()[:8]
    return from_network(f"{name}-classifier-{weights_hash}", network, variables)


def _read_weights(folder: Path, key: str) -> bytes | None:
    """The cached weights, whose file's name has their hash: those that do not are removed."""
    for path in sorted(folder.glob(f"{glob.escape(key)}.*.msgpack")):
        stored = path.read_bytes()
        if path.name == f"{key}.{hashlib.sha256(stored).hexdigest()}.msgpack":
            return stored
        print(f"{path} is damaged: the classifier is trained again", file=sys.stderr, flush=True)
        path.unlink(missing_ok=True)
    return None


def from_network(
    name: str, network: Network, variables: Variables, tap: str = "features", batch: int = 256
) -> Extractor:
    """An extractor from a classifier and one of its taps, of shape `[N, D]`."""

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        logits, taps, _ = network.apply(variables, images)
        return {"features": taps[tap], "logits": logits}

    return _in_batches(name, lambda images: apply(variables, images), batch)


def inception(
    path: str | os.PathLike[str],
    convention: str = "tf1-bilinear",
    *,
    quantise: bool = True,
    batch: int = 16,
) -> Extractor:
    """The features `[N, 2048]` of the Frechet inception distance (FID).

    Heusel et al. 2017. The logits are of 1,008 classes; `outputs` also has the logits without bias,
    for the inception score.

    Images are `[N, H, W, C]` in [-1, 1], of any size, in colour or grey (repeated to 3 channels).
    The network is compiled once; only a small resize program is compiled for each size. The
    extractor's name includes the convention, "unquantised" if images are not quantised, and the
    first 8 digits of the file's SHA-256 (6726825d for the published file).

    Args:
      path: the weights file, as published by pytorch-fid and torch-fidelity.
      convention: how images are resized to 299x299, one of `kd_jax.metrics.resize.CONVENTIONS`.
      quantise: whether images are rounded to 8 bits first, as the published tools read them.
      batch: the number of images per pass.

    Raises:
      ValueError: the file or convention does not exist, or the file is of another network. The
        extractor raises it for images of another shape or number of channels, outside [-1, 1] or
        not finite.
    """
    how = resize.convention(convention)
    if not Path(path).is_file():
        names = " or ".join(f"{name!r} by {tool}" for tool, name in registry.PUBLISHED.items())
        raise ValueError(f"no Inception weights at {path}; the file is published as {names}")
    converted = registry.load(path)
    network = converted.network
    if jax.default_backend() == "cpu" and batch % 2 == 0:
        assert network.module is not None
        network = from_linen(network.module.clone(stem_batch=2))
    variables = jax.device_put(converted.variables)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]

    @jax.jit
    def prepare(images: Array) -> Array:
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))
        return resize.prepared(images, how, SIDE, quantise=quantise)

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        logits, taps, _ = network.apply(variables, images)
        unbiased = taps["logits_unbiased"]
        return {"features": taps["2048"], "logits": logits, "logits_unbiased": unbiased}

    def outputs(images: np.ndarray) -> dict[str, Array]:
        return apply(variables, prepare(images))

    name = f"inception-{convention}{'' if quantise else '-unquantised'}-{digest}"
    return _in_batches(name, outputs, batch, check=_check_images, pixels=sys.maxsize)


def trunk(path: str | os.PathLike[str], batch: int = 64) -> Extractor:
    """The last features `[N, C]` of a VGG16, AlexNet or SqueezeNet, averaged over the image.

    For networks trained on photographs, as those of LPIPS are. Their distance is not an FID, and
    they have no logits.

    Images are `[N, H, W, C]` in [-1, 1] of at least 32x32, in colour or grey.

    Args:
      path: torchvision's file, or LPIPS's whole module.
      batch: the number of images per pass.

    Raises:
      ValueError: the file is of another network. The extractor raises it as that of `inception`.
    """
    converted = perceptual.load(path)
    network, variables = converted.network, jax.device_put(converted.variables)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))
        return {"features": network.apply(variables, images)[0].mean(axis=(1, 2))}

    name = f"{type(network.module).__name__.lower()}-{digest}"
    return _in_batches(name, lambda images: apply(variables, images), batch, check=_check_images)


def from_file(path: str | os.PathLike[str], convention: str = "tf1-bilinear") -> Extractor:
    """The extractor of a weight file: `trunk` or `inception`.

    Args:
      path: the file.
      convention: how images are resized for an Inception network.

    Raises:
      ValueError: the file does not exist, or is of another network.
    """
    if Path(path).is_file():
        tree = read(path)
        if isinstance(tree, Mapping):
            names = [str(name) for name in tree]
            if perceptual.is_trunk(names) or perceptual.is_lpips(names):
                return trunk(path)
    return inception(path, convention)


def random_network(batch: int = 64) -> Extractor:
    """Features `[N, 80]` of a VGG16 with fixed random weights; it needs no labels and no file.

    The means over the image of the features of its five groups of convolutions, each projected to
    16 numbers by a random orthonormal matrix. Random embeddings serve for images that are unlike
    the photographs that published networks are trained on (Naeem et al. 2020, section 4, where the
    last layer alone is used; the earlier ones are more sensitive to blur and noise). Distances are
    comparable only between equal extractors, and they are not an "FID". There are no logits.

    Images are `[N, H, W, C]` in [-1, 1] of at least 16x16, in colour or grey.

    Args:
      batch: the number of images per pass.
    """
    network = vgg16()
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    keys = jax.random.split(jax.random.key(1), len(VGG16_WIDTHS))
    projections = [
        jnp.linalg.qr(jax.random.normal(key, (width, 16)))[0]
        for key, width in zip(keys, VGG16_WIDTHS, strict=True)
    ]
    digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(variables)))

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))
        _, taps, _ = network.apply(variables, images)
        means = [taps[name].mean(axis=(1, 2)) for name in sorted(taps)]  # from first to last
        parts = [mean @ matrix for mean, matrix in zip(means, projections, strict=True)]
        return {"features": jnp.concatenate(parts, axis=1)}

    name = f"random-vgg16-80-{digest.hexdigest()[:8]}"
    return _in_batches(name, lambda images: apply(variables, images), batch, check=_check_images)


class Perceptual(NamedTuple):
    """A named distance of images.

    Attributes:
      name: stated with every metric value; includes the hash of the weights.
      distance: `images [B, H, W, 3] in [-1, 1], others -> [B]`.
    """

    name: str
    distance: Callable[[Any, Any], Array]

    def __repr__(self) -> str:
        return record_repr(self)


def lpips(path: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None) -> Perceptual:
    """The perceptual distance of Zhang et al. 2018; grey images are repeated to 3 channels.

    Args:
      path: torchvision's VGG16, AlexNet or SqueezeNet, or LPIPS's whole module.
      heads: LPIPS's weights, with a torchvision network.

    Raises:
      ValueError: a file does not exist, or is of another network.
    """
    files = [Path(file) for file in (path, heads) if file is not None]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"no LPIPS weights at {file}: torchvision's network and LPIPS's weights "
                "('vgg16-397923af.pth' and lpips's 'weights/v0.1/vgg.pth') or LPIPS's whole module "
                "are needed"
            )
    converted = perceptual.load(*files)
    if "heads" not in converted.variables:
        raise ValueError(f"{path} is a network without LPIPS's weights; pass their file as well")
    variables = jax.device_put(converted.variables)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]

    @jax.jit
    def apply(variables: Variables, images: Array, others: Array) -> Array:
        colour = [jnp.broadcast_to(x, (*x.shape[:3], 3)) for x in (images, others)]
        return distance(converted.network.apply, variables, variables["heads"])(*colour)

    return Perceptual(f"lpips-{digest}", lambda images, others: apply(variables, images, others))


def _check_images(images: np.ndarray, first: int) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < 1 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images have shape {images.shape}; [N, H, W, C] of 1 or 3 channels are needed"
        )
    invalid = ~((images >= -1) & (images <= 1)).reshape(len(images), -1).all(axis=1)
    if invalid.any():
        index = int(np.argmax(invalid))
        low, high = images[index].min(), images[index].max()
        raise ValueError(
            f"image {first + index} has values from {low:g} to {high:g}; values in [-1, 1] are "
            "needed"
        )


def _in_batches(
    name: str,
    outputs: Callable[[np.ndarray], Mapping[str, Array]],
    batch: int,
    check: Callable[[np.ndarray, int], None] = lambda images, first: None,
    pixels: int = PIXELS,
) -> Extractor:
    """An extractor that calls `outputs` with full batches; the last one is padded with zeros.

    A batch has at most `batch` images, and `pixels` unless it has a single image.
    """

    def run(images: Any) -> dict[str, np.ndarray]:
        if not len(images):
            raise ValueError("there are no images")
        area = max(1, int(np.prod(images[0].shape[:2])))
        parts, size = [], max(1, min(batch, pixels // area))
        for start in range(0, len(images), size):
            part = np.asarray(images[start : start + size])
            check(part, start)
            padding = ((0, size - len(part)), *((0, 0),) * (part.ndim - 1))
            padded = outputs(np.pad(part, padding))
            parts.append({key: np.asarray(value)[: len(part)] for key, value in padded.items()})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return Extractor(
        name, lambda images: run(images)["features"], lambda images: run(images)["logits"], run
    )


def _train(
    network: Network,
    images: Array,
    labels: Array,
    steps: int,
    batch: int,
    progress: Callable[[int], None],
) -> Mapping[str, Any]:
    optimizer = optax.adam(_LEARNING_RATE)
    key = jax.random.key(0)
    progress(0)  # before the compilations
    variables = jax.jit(network.init)(key, images[:1])

    @jax.jit
    def step(variables: Any, opt_state: Any, images: Array, labels: Array, number: int) -> Any:
        indices = jax.random.randint(jax.random.fold_in(key, number), (batch,), 0, images.shape[0])

        def loss(variables: Any) -> Array:
            logits, _, _ = network.apply(variables, images[indices], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[indices]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    opt_state = optimizer.init(variables)
    for number in range(steps):
        if number % 5 == 0:
            jax.block_until_ready(variables)  # dispatched steps are not finished ones
            progress(number)
        variables, opt_state = step(variables, opt_state, images, labels, number)
    progress(steps)
    return variables

"""Feature extractors: what a Frechet distance is measured in, and its name."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from kd_jax.evaluate import resize
from kd_jax.losses.perceptual import distance
from kd_jax.models.classifier import classifier
from kd_jax.models.inception import SIDE
from kd_jax.network import Network
from kd_jax.pretrained import inception as published
from kd_jax.pretrained import perceptual
from kd_jax.types import Array, Variables

_LEARNING_RATE = 1e-3


class Extractor(NamedTuple):
    """A named function from images to features.

    Attributes:
      name: what goes beside every figure measured with it, with the hash of its weights.
      features: `images [N, H, W, C] in [-1, 1] -> [N, D]` float32, in batches of its own choice.
      logits: `images -> [N, classes]`.
      outputs: `images -> {name: [N, ...]}`: both, as `features` and `logits`, in one pass; of an
        Inception network `logits_unbiased` too, the logits without their bias. None of extractors
        made by hand.
    """

    name: str
    features: Callable[[Any], np.ndarray]
    logits: Callable[[Any], np.ndarray]
    outputs: Callable[[Any], dict[str, np.ndarray]] | None = None


def classifier_extractor(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    classes: int,
    cache: Path,
    steps: int = 1000,
    batch: int = 64,
) -> Extractor:
    """The penultimate features `[N, 128]` of a small classifier trained on the data at hand.

    It makes distances without any downloaded network. They are comparable only with those of the
    same extractor: the name carries the hash of its weights, and they are no "FID".

    The training is deterministic (Adam at 1e-3); its result is cached under the hash of the data
    and of these settings, so that later runs measure with the very same weights.

    Args:
      images: `[N, H, W, C]` in [-1, 1].
      labels: int `[N]` in [0, classes).
      name: the data's name.
      classes: the number of classes.
      cache: the folder of cached weights.
      steps: of the training. A thousand take two cores ten seconds with images of 16x16, and
        minutes with 64x64.
      batch: images in each.

    Raises:
      ValueError: when the cached file is damaged; it is named.
    """
    network = classifier(classes)
    abstract = jax.eval_shape(network.init, jax.random.key(0), images[:1])
    digest = hashlib.sha256()
    for part in (images.tobytes(), labels.tobytes(), repr(abstract).encode()):
        digest.update(part)
    digest.update(f"{classes} {steps} {batch} {_LEARNING_RATE}".encode())
    path = cache / "classifiers" / f"{name}-{digest.hexdigest()[:16]}.msgpack"
    if not path.exists():
        trained = jax.device_get(
            _train(network, jnp.asarray(images), jnp.asarray(labels), steps, batch)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(serialization.to_bytes(trained))
        os.replace(partial, path)
    stored = path.read_bytes()
    try:
        variables = serialization.from_bytes(jax.tree.map(jnp.zeros_like, abstract), stored)
    except Exception as error:  # msgpack raises errors of many kinds for damaged bytes
        raise ValueError(f"{path} is damaged; delete it, and it will be made again") from error
    weights_hash = hashlib.sha256(stored).hexdigest()[:8]
    return from_network(f"{name}-classifier-{weights_hash}", network, variables)


def from_network(
    name: str, network: Network, variables: Variables, tap: str = "features", batch: int = 256
) -> Extractor:
    """An extractor from any classifier and one of its taps, of shape `[N, D]`."""

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        logits, taps, _ = network.apply(variables, images)
        return {"features": taps[tap], "logits": logits}

    return _batched(name, lambda images: apply(variables, images), batch)


def inception(
    path: str | os.PathLike[str],
    convention: str = "tf1-bilinear",
    *,
    quantise: bool = True,
    batch: int = 16,
) -> Extractor:
    """The features `[N, 2048]` in which the Frechet inception distance is measured.

    Heusel et al. 2017. The logits are of 1,008 classes; `outputs` has them without their bias too,
    of which the inception score is made.

    Images are `[N, H, W, C]` in [-1, 1], of any size, in colour or grey (which is repeated). One
    program serves all, and one small one each size. The extractor's name holds the beginning of the
    file's SHA-256 (6726825d of the published one) and the convention, and says so if images are not
    quantised.

    Args:
      path: the weights, as pytorch-fid and torch-fidelity publish them.
      convention: how images are resized to 299x299, one of `kd_jax.evaluate.resize.CONVENTIONS`.
      quantise: whether images are rounded to bytes first, as the published tools find them.
      batch: images at a time.

    Raises:
      ValueError: there is no such file or convention, or the file is another network's. By the
        extractor: images have another shape or number of channels, are outside [-1, 1] or not
        finite.
    """
    how = resize.convention(convention)
    if not Path(path).is_file():
        names = " or ".join(f"{name!r} by {tool}" for tool, name in published.PUBLISHED.items())
        raise ValueError(
            f"no Inception weights at {path}: give the path of the file, published as {names}"
        )
    converted = published.load(path)
    variables = jax.device_put(converted.variables)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]

    @jax.jit
    def prepared(images: Array) -> Array:
        images = jnp.broadcast_to(images, (*images.shape[:3], 3))
        return resize.prepared(images, how, SIDE, quantise=quantise)

    @jax.jit
    def apply(variables: Variables, images: Array) -> dict[str, Array]:
        logits, taps, _ = converted.network.apply(variables, images)
        unbiased = taps["logits_unbiased"]
        return {"features": taps["2048"], "logits": logits, "logits_unbiased": unbiased}

    def outputs(images: np.ndarray) -> dict[str, Array]:
        return apply(variables, prepared(images))

    name = f"inception-{convention}{'' if quantise else '-unquantised'}-{digest}"
    return _batched(name, outputs, batch, check=_check_images)


class Perceptual(NamedTuple):
    """A named distance of images.

    Attributes:
      name: what goes beside every figure measured with it, with the hash of its weights.
      distance: `images [B, H, W, 3] in [-1, 1], others -> [B]`.
    """

    name: str
    distance: Callable[[Any, Any], Array]


def lpips(path: str | os.PathLike[str], heads: str | os.PathLike[str] | None = None) -> Perceptual:
    """The perceptual distance of Zhang et al. 2018; grey images are repeated.

    Args:
      path: torchvision's VGG16, AlexNet or SqueezeNet, or LPIPS's whole module.
      heads: LPIPS's weights, for the former.

    Raises:
      ValueError: there is no such file, or it is not what it should be.
    """
    files = [Path(file) for file in (path, heads) if file is not None]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"no LPIPS weights at {file}: give torchvision's network and LPIPS's own file "
                "('vgg16-397923af.pth' and lpips's 'weights/v0.1/vgg.pth'), or its whole module's"
            )
    converted = perceptual.load(*files)
    if "heads" not in converted.variables:
        raise ValueError(f"{path} is a network without LPIPS's weights: give their file too")
    variables = jax.device_put(converted.variables)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]

    @jax.jit
    def of(variables: Variables, images: Array, others: Array) -> Array:
        colour = [jnp.broadcast_to(x, (*x.shape[:3], 3)) for x in (images, others)]
        return distance(converted.network.apply, variables, variables["heads"])(*colour)

    return Perceptual(f"lpips-{digest}", lambda images, others: of(variables, images, others))


def _check_images(images: np.ndarray, first: int) -> None:
    if images.ndim != 4 or min(images.shape[1:3]) < 1 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images [N, H, W, C] of 1 or 3 channels are needed, not of shape {images.shape}"
        )
    wrong = ~((images >= -1) & (images <= 1)).reshape(len(images), -1).all(axis=1)
    if wrong.any():
        index = int(np.argmax(wrong))
        low, high = images[index].min(), images[index].max()
        raise ValueError(
            f"image {first + index} has values from {low:g} to {high:g}; images in [-1, 1] are "
            "needed"
        )


def _batched(
    name: str,
    outputs: Callable[[np.ndarray], Mapping[str, Array]],
    batch: int,
    check: Callable[[np.ndarray, int], None] = lambda images, first: None,
) -> Extractor:
    """An extractor of `outputs`, which is given full batches, the last one filled up with zeros."""

    def run(images: Any) -> dict[str, np.ndarray]:
        if not len(images):
            raise ValueError("there are no images")
        parts = []
        for start in range(0, len(images), batch):
            part = np.asarray(images[start : start + batch])
            check(part, start)
            padding = ((0, batch - len(part)), *((0, 0),) * (part.ndim - 1))
            found = outputs(np.pad(part, padding))
            parts.append({key: np.asarray(value)[: len(part)] for key, value in found.items()})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return Extractor(
        name, lambda images: run(images)["features"], lambda images: run(images)["logits"], run
    )


def _train(
    network: Network, images: Array, labels: Array, steps: int, batch: int
) -> Mapping[str, Any]:
    optimizer = optax.adam(_LEARNING_RATE)
    key = jax.random.key(0)
    variables = jax.jit(network.init)(key, images[:1])

    @jax.jit
    def step(variables: Any, opt_state: Any, images: Array, labels: Array, number: int) -> Any:
        chosen = jax.random.randint(jax.random.fold_in(key, number), (batch,), 0, images.shape[0])

        def loss(variables: Any) -> Array:
            logits, _, _ = network.apply(variables, images[chosen], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    opt_state = optimizer.init(variables)
    for number in range(steps):
        variables, opt_state = step(variables, opt_state, images, labels, number)
    return variables

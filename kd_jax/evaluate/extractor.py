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

from kd_jax.models.classifier import classifier
from kd_jax.network import Network
from kd_jax.types import Array, Variables

_STEPS, _BATCH, _LEARNING_RATE = 1000, 64, 1e-3


class Extractor(NamedTuple):
    """A named function from images to features.

    Attributes:
      name: what goes beside every figure measured with it, with the hash of its weights.
      features: `images [N, H, W, C] in [-1, 1] -> [N, D]` float32, in batches of its own choice.
      logits: `images -> [N, classes]`.
    """

    name: str
    features: Callable[[Any], np.ndarray]
    logits: Callable[[Any], np.ndarray]


def classifier_extractor(
    images: np.ndarray, labels: np.ndarray, *, name: str, classes: int, cache: Path
) -> Extractor:
    """The penultimate features `[N, 128]` of a small classifier trained on the data at hand.

    It makes distances without any downloaded network. They are comparable only with those of the
    same extractor: the name carries the hash of its weights, and they are no "FID".

    The training is deterministic (1,000 steps of Adam at 1e-3, batches of 64); its result is cached
    under the hash of the data, so that later runs measure with the very same weights.

    Args:
      images: `[N, H, W, C]` in [-1, 1].
      labels: int `[N]` in [0, classes).
      name: the data's name.
      classes: the number of classes.
      cache: the folder of cached weights.

    Raises:
      ValueError: when the cached file is damaged; it is named.
    """
    network = classifier(classes)
    abstract = jax.eval_shape(network.init, jax.random.key(0), images[:1])
    digest = hashlib.sha256()
    for part in (images.tobytes(), labels.tobytes(), repr(abstract).encode()):
        digest.update(part)
    digest.update(f"{classes} {_STEPS} {_BATCH} {_LEARNING_RATE}".encode())
    path = cache / "classifiers" / f"{name}-{digest.hexdigest()[:16]}.msgpack"
    if not path.exists():
        trained = jax.device_get(_train(network, jnp.asarray(images), jnp.asarray(labels)))
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
    def apply(variables: Variables, images: Array) -> tuple[Array, Array]:
        logits, taps, _ = network.apply(variables, images)
        return taps[tap], logits

    def batched(which: int) -> Callable[[Any], np.ndarray]:
        def run(images: Any) -> np.ndarray:
            parts = []
            for start in range(0, len(images), batch):
                part = np.asarray(images[start : start + batch])
                padding = ((0, batch - len(part)), *((0, 0),) * (part.ndim - 1))
                result = apply(variables, np.pad(part, padding))[which]
                parts.append(np.asarray(result)[: len(part)])
            return np.concatenate(parts)

        return run

    return Extractor(name, batched(0), batched(1))


def _train(network: Network, images: Array, labels: Array) -> Mapping[str, Any]:
    optimizer = optax.adam(_LEARNING_RATE)
    key = jax.random.key(0)
    variables = jax.jit(network.init)(key, images[:1])

    @jax.jit
    def step(variables: Any, opt_state: Any, images: Array, labels: Array, number: int) -> Any:
        chosen = jax.random.randint(jax.random.fold_in(key, number), (_BATCH,), 0, images.shape[0])

        def loss(variables: Any) -> Array:
            logits, _, _ = network.apply(variables, images[chosen], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(variables), opt_state)
        return optax.apply_updates(variables, updates), opt_state

    opt_state = optimizer.init(variables)
    for number in range(_STEPS):
        variables, opt_state = step(variables, opt_state, images, labels, number)
    return variables

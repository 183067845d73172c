"""LPIPS, the learned perceptual distance of images (Zhang et al. 2018).

LPIPS compares the features of two images in a pretrained network (`kd_jax.models.perceptual`), with
a learned weight for each channel. All functions are differentiable in both images' features and in
the weights; no argument is treated as a constant.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.core.checks import same_shape
from kd_jax.core.types import Array

EPSILON = 1e-10
"""Added to a feature's norm over channels, as in the authors' code."""

Features = Mapping[str, Array]
"""Features `[B, H, W, C]` by layer; H, W and C may differ between layers."""


def lpips(features: Features, others: Features, heads: Mapping[str, Array] | None = None) -> Array:
    """The perceptual distance of images, from their features.

    Zhang et al. 2018, eq. 1: at each position of a layer, the squared difference of the two
    features, each divided by its norm over channels, summed over channels with the layer's weights;
    averaged over positions; summed over layers. As in the authors' code a weight multiplies the
    squared difference, so it is the equation's `w^2`.

    Args:
      features: features of the images.
      others: features of the images to compare with.
      heads: the non-negative weights `[C]` of each layer to compare; None for all layers of
        `features` with weight 1 (the authors' `baseline`).

    Returns:
      `[B]`, >= 0; 0 for equal features. Mostly below 1 with the published weights.

    Raises:
      ValueError: an argument is missing, there is no layer, or a layer (named in the message) is
        missing on one side, has shapes that differ or are not `[B, H, W, C]`, or weights of the
        wrong length.
    """
    layers = _layer_distances(features, others, heads)
    return sum((x.mean(axis=(1, 2)) for x in layers[1:]), layers[0].mean(axis=(1, 2)))


def lpips_map(
    features: Features,
    others: Features,
    heads: Mapping[str, Array] | None = None,
    *,
    size: Sequence[int],
) -> Array:
    """The distance at each position instead of its mean: `[B, *size]` (the authors' `spatial`).

    Each layer's distances are resized to `size` with linear interpolation, then summed.

    Args:
      features: as in `lpips`.
      others: as in `lpips`.
      heads: as in `lpips`.
      size: the images' height and width.

    Raises:
      ValueError: as in `lpips`, or the size is not two positive numbers.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={tuple(size)} is not a positive height and width")
    total = jnp.zeros(())
    for x in _layer_distances(features, others, heads):
        shape = (x.shape[0], *size)
        resized = jax.image.resize(x, shape, "linear", antialias=False)
        total = resized if total.ndim == 0 else total + resized
    return total


def distance(
    apply: Callable[..., tuple[Any, Features, Any]],
    variables: Mapping[str, Any],
    heads: Mapping[str, Array] | None = None,
) -> Callable[[Array, Array], Array]:
    """`(images, others) -> [B]`: LPIPS between images, with features computed by a network.

    Both batches pass through the network as one.

    Args:
      apply: `apply(variables, images) -> (output, taps, variables)` of a `Network`.
      variables: the network's variables.
      heads: as in `lpips`.
    """

    def images_distance(images: Array, others: Array) -> Array:
        images, others = same_shape(images=images, others=others)
        taps = apply(variables, jnp.concatenate([images, others]))[1]
        count = images.shape[0]
        first = {name: x[:count] for name, x in taps.items()}
        return lpips(first, {name: x[count:] for name, x in taps.items()}, heads)

    return images_distance


def directions(
    layers: Iterable[str], sides: Mapping[str, Features], epsilon: float = 0.0
) -> Iterator[tuple[str, Array, Array]]:
    """Each layer's name and both images' features, divided by their norms over channels.

    Args:
      layers: the layers' names.
      sides: features of the images and of the others, by the names to use in errors.
      epsilon: added to the norms. Features of norm 0 stay 0 and get no gradient.

    Raises:
      ValueError: as in `lpips`, except for the weights.
    """
    for side, features in sides.items():
        if features is None:
            raise ValueError(f"{side} is missing: the step has no network or input for it")
    batch: int | None = None
    for layer in layers:
        pair = {}
        for side, features in sides.items():
            if layer not in features:
                available = ", ".join(repr(name) for name in features) or "none at all"
                raise ValueError(f"{side} has no layer {layer!r}; it has {available}")
            pair[f"layer {layer!r} of {side}"] = features[layer]
        first, second = same_shape(**pair)
        if first.ndim != 4:
            raise ValueError(f"{next(iter(pair))} has shape {first.shape}; [B, H, W, C] is needed")
        if batch not in (None, first.shape[0]):
            raise ValueError(
                f"layer {layer!r} has a batch of {first.shape[0]} but those before {batch}"
            )
        batch = first.shape[0]
        yield layer, _unit_vectors(first, epsilon), _unit_vectors(second, epsilon)
    if batch is None:
        raise ValueError("there is no layer to compare")


def _layer_distances(
    features: Features, others: Features, heads: Mapping[str, Array] | None
) -> list[Array]:
    """The distances `[B, H, W]` of each layer."""
    layers = (features or ()) if heads is None else heads
    distances: list[Array] = []
    for layer, a, b in directions(layers, {"features": features, "others": others}, EPSILON):
        squares = (a - b) ** 2
        if heads is None:
            distances.append(squares.sum(axis=3))
            continue
        weights = jnp.asarray(heads[layer], squares.dtype)
        if weights.shape != squares.shape[3:]:
            raise ValueError(
                f"layer {layer!r} has {squares.shape[3]} channels but weights of shape "
                f"{weights.shape}"
            )
        distances.append(jnp.matmul(squares, weights, precision=jax.lax.Precision.HIGHEST))
    return distances


def _unit_vectors(feature: Array, epsilon: float) -> Array:
    squares = jnp.sum(feature**2, axis=3, keepdims=True)
    # Both branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, feature / (norm + epsilon), 0.0)

"""LPIPS, the learned perceptual distance of images (Zhang et al. 2018).

It compares two images' features in a network that knows images (`kd_jax.models.perceptual`), with a
learned weight for each channel. Everything here is a differentiable function of both images'
features and of the weights; the caller decides what is constant.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.checks import same_shape
from kd_jax.types import Array

EPSILON = 1e-10
"""Added to a feature's norm over channels, as in the authors' code."""

Features = Mapping[str, Array]
"""Features `[B, H, W, C]` by layer; each layer has H, W and C of its own."""


def lpips(features: Features, others: Features, heads: Mapping[str, Array] | None = None) -> Array:
    """The perceptual distance of images, from their features.

    Zhang et al. 2018, eq. 1: at each place of a layer, the squared difference of the two features,
    each divided by its norm over channels, summed over channels with the layer's weights; the mean
    over places; the sum over layers. As in the authors' code a weight multiplies the square, the
    equation's `w^2`.

    Args:
      features: of the images.
      others: of the images to compare them with.
      heads: the layers to compare, each with its weights `[C]`, not negative; None for all of
        `features`, with weight 1 (the authors' `baseline`).

    Returns:
      `[B]`, >= 0; 0 for equal features. With the published weights mostly below 1.

    Raises:
      ValueError: an argument is missing, there is no layer, or one (it is named) is missing on one
        side, has shapes that differ or are no images, or weights of another length.
    """
    layers = _layers(features, others, heads)
    return sum((x.mean(axis=(1, 2)) for x in layers[1:]), layers[0].mean(axis=(1, 2)))


def lpips_map(
    features: Features,
    others: Features,
    heads: Mapping[str, Array] | None = None,
    *,
    size: Sequence[int],
) -> Array:
    """The distance at each place, instead of its mean: `[B, *size]` (the authors' `spatial`).

    Each layer's distances are enlarged to the images' size with linear interpolation, then summed.

    Args:
      features: as in `lpips`.
      others: as in `lpips`.
      heads: as in `lpips`.
      size: the images' height and width.

    Raises:
      ValueError: as in `lpips`, or the size is not two positive numbers.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={tuple(size)} is not a height and a width")
    total = jnp.zeros(())
    for x in _layers(features, others, heads):
        shape = (x.shape[0], *size)
        larger = jax.image.resize(x, shape, "linear", antialias=False)
        total = larger if total.ndim == 0 else total + larger
    return total


def distance(
    apply: Callable[..., tuple[Any, Features, Any]],
    variables: Mapping[str, Any],
    heads: Mapping[str, Array] | None = None,
) -> Callable[[Array, Array], Array]:
    """`(images, others) -> [B]`: LPIPS of images, which a network makes the features of.

    Both batches go through the network as one.

    Args:
      apply: `apply(variables, images) -> (output, taps, variables)`, of a `Network`.
      variables: the network's.
      heads: as in `lpips`.
    """

    def of(images: Array, others: Array) -> Array:
        images, others = same_shape(images=images, others=others)
        taps = apply(variables, jnp.concatenate([images, others]))[1]
        count = images.shape[0]
        first = {name: x[:count] for name, x in taps.items()}
        return lpips(first, {name: x[count:] for name, x in taps.items()}, heads)

    return of


def directions(
    layers: Iterable[str], sides: Mapping[str, Features], epsilon: float = 0.0
) -> Iterator[tuple[str, Array, Array]]:
    """Each layer's name, and both images' features over their norms over channels.

    Args:
      layers: which.
      sides: features of the images and of the others, under the names that an error should use.
      epsilon: added to the norms. Features of norm 0 stay 0, and have no gradient.

    Raises:
      ValueError: as in `lpips`, but for the weights.
    """
    for side, features in sides.items():
        if features is None:
            raise ValueError(f"{side} is missing: this step was made without what provides it")
    batch: int | None = None
    for layer in layers:
        pair = {}
        for side, features in sides.items():
            if layer not in features:
                known = ", ".join(repr(name) for name in features) or "none at all"
                raise ValueError(f"{side} has no layer {layer!r}; it has {known}")
            pair[f"layer {layer!r} of {side}"] = features[layer]
        first, second = same_shape(**pair)
        if first.ndim != 4:
            raise ValueError(f"{next(iter(pair))} has shape {first.shape}; [B, H, W, C] is needed")
        if batch not in (None, first.shape[0]):
            raise ValueError(
                f"layer {layer!r} has a batch of {first.shape[0]} but those before {batch}"
            )
        batch = first.shape[0]
        yield layer, _direction(first, epsilon), _direction(second, epsilon)
    if batch is None:
        raise ValueError("there is no layer to compare")


def _layers(features: Features, others: Features, heads: Mapping[str, Array] | None) -> list[Array]:
    """The distances `[B, H, W]` of each layer."""
    layers = (features or ()) if heads is None else heads
    found: list[Array] = []
    for layer, a, b in directions(layers, {"features": features, "others": others}, EPSILON):
        squares = (a - b) ** 2
        if heads is None:
            found.append(squares.sum(axis=3))
            continue
        weights = jnp.asarray(heads[layer], squares.dtype)
        if weights.shape != squares.shape[3:]:
            raise ValueError(
                f"layer {layer!r} has {squares.shape[3]} channels but weights of shape "
                f"{weights.shape}"
            )
        found.append(jnp.matmul(squares, weights, precision=jax.lax.Precision.HIGHEST))
    return found


def _direction(feature: Array, epsilon: float) -> Array:
    squares = jnp.sum(feature**2, axis=3, keepdims=True)
    # Both branches of `where` are differentiated, so the root must be finite in the unused one.
    positive = squares > 0
    norm = jnp.sqrt(jnp.where(positive, squares, 1.0))
    return jnp.where(positive, feature / (norm + epsilon), 0.0)

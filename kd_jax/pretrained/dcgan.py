"""DCGAN, from the program of PyTorch's examples, whose layers are called `main.N`."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.models import dcgan
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked
from kd_jax.types import Array


def is_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `generator`, whose first layer has a norm."""
    return {"main.0.weight", "main.1.running_mean"} <= set(names)


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `discriminator`, whose first layer has none."""
    return {"main.0.weight", "main.3.running_mean"} <= set(names)


def generator(tensors: StateDict) -> Converted:
    """The generator; its latents are `[B, latent]`, without the two axes of length 1.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(tensors, "a DCGAN generator")
    # A transposed convolution's weight is [in, out, h, w].
    layers = _layers(t, first_norm=1)
    widths = [_kernel(t, f"main.{3 * i}.weight")[1] for i in range(layers)]
    channels = widths.pop()
    latent = _kernel(t, "main.0.weight")[0]
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    first = t.take("main.0.weight", (latent, widths[0], 4, 4))
    params["Dense_0"] = {"kernel": jnp.asarray(first.transpose(0, 2, 3, 1).reshape(latent, -1))}
    for index, before in enumerate(widths):
        name, source = f"BatchNorm_{index}", f"main.{3 * index + 1}"
        params[name], stats[name] = _norm(t, source, before)
        after = (*widths, channels)[index + 1]
        weight = t.take(f"main.{3 * index + 3}.weight", (before, after, 4, 4))
        # PyTorch spreads each pixel over the kernel; ours looks at it from the other side.
        kernel = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
        params[f"Conv_{index}"] = {"kernel": jnp.asarray(kernel)}
    params[f"Conv_{len(widths) - 1}"]["bias"] = jnp.zeros(channels)  # theirs has none
    t.done()
    config: dict[str, Any] = {
        "size": _size(t, widths),
        "width": widths,
        "channels": channels,
    }
    network = dcgan.generator(**config)
    return checked(
        t.what,
        Converted(network, {"params": params, "batch_stats": stats}, config),
        jax.ShapeDtypeStruct((1, latent), jnp.float32),
    )


def discriminator(tensors: StateDict) -> Converted:
    """The discriminator; its scores are logits, without the sigmoid at the end of the original.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(tensors, "a DCGAN discriminator")
    layers = _layers(t, first_norm=3)
    # After the first convolution come two layers, after each other one three.
    sources = ["main.0", *(f"main.{3 * i - 1}" for i in range(1, layers))]
    widths = [_kernel(t, f"{source}.weight")[0] for source in sources[:-1]]
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    before = channels = _kernel(t, "main.0.weight")[1]
    for index, (source, after) in enumerate(zip(sources, (*widths, 1), strict=True)):
        t.take(f"{source}.weight", (after, before, 4, 4))
        name = "score" if source == sources[-1] else f"conv_{index}"
        params[name] = {"kernel": t.kernel(f"{source}.weight")}
        if 0 < index < len(widths):
            name = f"norm_{index}"
            params[name], stats[name] = _norm(t, f"main.{3 * index}", after)
        before = after
    t.done()
    config: dict[str, Any] = {"size": _size(t, widths), "width": widths[::-1]}
    network = dcgan.original_discriminator(**config)
    return checked(
        t.what,
        Converted(network, {"params": params, "batch_stats": stats}, config),
        jax.ShapeDtypeStruct((1, config["size"], config["size"], channels), jnp.float32),
    )


def _layers(t: Tensors, first_norm: int) -> int:
    """How many convolutions there are: all but two ends have a norm, counted in steps of three."""
    norms = 0
    while f"main.{first_norm + 3 * norms}.running_mean" in t:
        norms += 1
    if norms < 2:
        raise ValueError(f"not {t.what}: main.{first_norm + 3 * norms}.running_mean is missing")
    return norms + first_norm // 3 + 1


def _kernel(t: Tensors, name: str) -> tuple[int, ...]:
    shape = t.shape(name)
    if len(shape) != 4:
        raise ValueError(f"{t.what}: {name} has shape {shape}, not 4 axes")
    return shape


def _size(t: Tensors, widths: list[int]) -> int:
    size = dcgan.SMALLEST * 2 ** len(widths)
    if size not in dcgan.SIZES:
        raise ValueError(f"{t.what} has one of {dcgan.SIZES} pixels a side, not {size}")
    return size


def _norm(t: Tensors, source: str, width: int) -> tuple[dict[str, Array], dict[str, Array]]:
    t.drop(f"{source}.num_batches_tracked")
    scale, bias, mean, var = (
        t.vector(f"{source}.{name}", (width,))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return {"scale": scale, "bias": bias}, {"mean": mean, "var": var}

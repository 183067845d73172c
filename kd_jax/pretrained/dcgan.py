"""DCGAN from PyTorch's example program, whose layers are named `main.N`."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.core.types import Array
from kd_jax.models import dcgan
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader, check_variables


def is_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `generator`, whose first layer has a norm."""
    return {"main.0.weight", "main.1.running_mean"} <= set(names)


def is_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `discriminator`, whose first layer has no norm."""
    return {"main.0.weight", "main.3.running_mean"} <= set(names)


def generator(tensors: StateDict) -> Converted:
    """The generator; its latents are `[B, latent]`, without the two axes of length 1.

    Args:
      tensors: its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(tensors, "a DCGAN generator")
    # A transposed convolution's weight is [in, out, h, w].
    layers = _layers(reader, first_norm=1)
    widths = [_kernel(reader, f"main.{3 * i}.weight")[1] for i in range(layers)]
    channels = widths.pop()
    latent = _kernel(reader, "main.0.weight")[0]
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    first = reader.take("main.0.weight", (latent, widths[0], 4, 4))
    params["Dense_0"] = {"kernel": jnp.asarray(first.transpose(0, 2, 3, 1).reshape(latent, -1))}
    for index, before in enumerate(widths):
        name, source = f"BatchNorm_{index}", f"main.{3 * index + 1}"
        params[name], stats[name] = _norm(reader, source, before)
        after = (*widths, channels)[index + 1]
        weight = reader.take(f"main.{3 * index + 3}.weight", (before, after, 4, 4))
        # PyTorch scatters each pixel over the kernel; ours gathers, with the kernel flipped.
        kernel = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
        params[f"Conv_{index}"] = {"kernel": jnp.asarray(kernel)}
    params[f"Conv_{len(widths) - 1}"]["bias"] = jnp.zeros(channels)  # the original has no bias
    reader.check_all_read()
    config: dict[str, Any] = {
        "size": _size(reader, widths),
        "width": widths,
        "channels": channels,
    }
    network = dcgan.generator(**config)
    return check_variables(
        reader.what,
        Converted(network, {"params": params, "batch_stats": stats}, config),
        jax.ShapeDtypeStruct((1, latent), jnp.float32),
    )


def discriminator(tensors: StateDict, *, size: int | None = None) -> Converted:
    """The discriminator; its scores are logits, without the final sigmoid of the original.

    A state dict does not determine the stride and the padding of the last convolution. The example
    has 1 and 0, which reads images of `2**(N + 2)` pixels after N convolutions of stride 2.
    Variants for other sizes, such as 28, have 2 and 1.

    Args:
      tensors: its state dict.
      size: the side of the images; by default that of the example.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(tensors, "a DCGAN discriminator")
    layers = _layers(reader, first_norm=3)
    # The second convolution is layer 2; the others follow at intervals of three.
    sources = ["main.0", *(f"main.{3 * i - 1}" for i in range(1, layers))]
    widths = [_kernel(reader, f"{source}.weight")[0] for source in sources[:-1]]
    params: dict[str, dict[str, Array]] = {}
    stats: dict[str, dict[str, Array]] = {}
    before = channels = _kernel(reader, "main.0.weight")[1]
    for index, (source, after) in enumerate(zip(sources, (*widths, 1), strict=True)):
        reader.take(f"{source}.weight", (after, before, 4, 4))
        name = "score" if source == sources[-1] else f"conv_{index}"
        params[name] = {"kernel": reader.kernel(f"{source}.weight")}
        if 0 < index < len(widths):
            name = f"norm_{index}"
            params[name], stats[name] = _norm(reader, f"main.{3 * index}", after)
        before = after
    reader.check_all_read()
    config: dict[str, Any] = {"size": size, "width": widths[::-1]}
    notes: tuple[str, ...] = ()
    if size is None:
        size = config["size"] = _size(reader, widths)
        notes = (
            f"images of {size}x{size} are assumed; a file of this kind may also be for "
            f"{size // 2} to {size - 1} pixels (a last convolution of stride 2): option size",
        )
    elif size != dcgan.SMALLEST * 2 ** len(widths):
        config["final_stride"] = 2
    network = dcgan.original_discriminator(**config)
    return check_variables(
        reader.what,
        Converted(
            network,
            {"params": params, "batch_stats": stats},
            config,
            notes=notes,
            options={"size": size},
        ),
        jax.ShapeDtypeStruct((1, config["size"], config["size"], channels), jnp.float32),
    )


def _layers(reader: StateDictReader, first_norm: int) -> int:
    """The number of convolutions, counted by their norms, which are three layers apart."""
    norms = 0
    while f"main.{first_norm + 3 * norms}.running_mean" in reader:
        norms += 1
    if norms < 2:
        raise ValueError(
            f"not {reader.what}: main.{first_norm + 3 * norms}.running_mean is missing"
        )
    return norms + first_norm // 3 + 1


def _kernel(reader: StateDictReader, name: str) -> tuple[int, ...]:
    shape = reader.shape(name)
    if len(shape) != 4:
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not 4 axes")
    return shape


def _size(reader: StateDictReader, widths: list[int]) -> int:
    size = dcgan.SMALLEST * 2 ** len(widths)
    if size not in dcgan.SIZES:
        raise ValueError(f"{reader.what} has an image size of {dcgan.SIZES}, not {size}")
    return size


def _norm(
    reader: StateDictReader, source: str, width: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    reader.drop(f"{source}.num_batches_tracked")
    scale, bias, mean, var = (
        reader.vector(f"{source}.{name}", (width,))
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    return {"scale": scale, "bias": bias}, {"mean": mean, "var": var}

"""BigGAN and BigGAN-deep, from the two PyTorch programs whose weights are about.

* Brock's (BigGAN-PyTorch): generators and discriminators of both architectures, trained further as
  well as used. Files of several devices have their tensors under `module.`.
* Hugging Face's (pytorch-pretrained-BigGAN): BigGAN-deep generators, converted from the authors'.
  Their statistics are fixed, and so are the vectors of their spectral normalisation: the weights
  are divided by their singular values once, when they are read, and the network has none.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kd_jax.models import biggan, biggan_deep, resnet, tinygan
from kd_jax.models.spectral import SpectralNorm, singular_values
from kd_jax.network import Network
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked
from kd_jax.types import Array

_PARALLEL = "module."

_PAIRS = {"theta": "query", "phi": "key", "g": "value", "o": "output"}  # attention, in both


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `huggingface_generator`."""
    return {"generator.gen_z.weight_orig", "embeddings.weight"} <= set(names)


def is_brock_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `brock_generator`."""
    return {"linear.weight", "output_layer.2.weight", "blocks.0.0.conv1.weight"} <= _stripped(names)


def is_brock_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `brock_discriminator`."""
    found = _stripped(names)
    return {"linear.weight", "blocks.0.0.conv1.weight"} <= found and not any(
        name.startswith("output_layer.") for name in found
    )


def brock_generator(
    tensors: StateDict,
    *,
    depth: int | None = None,
    iterations: int = 1,
    spectral_epsilon: float = 1e-12,
    norm_epsilon: float = 1e-5,
) -> Converted:
    """A generator of Brock's program, BigGAN or BigGAN-deep.

    Args:
      tensors: of its state dict.
      depth: of BigGAN-deep, blocks for each side. By default it is found from where the channels
        become fewer; where they never do, three doublings of the side are assumed (32 pixels).
      iterations: of the power iteration, in training (the program's `num_G_SV_itrs`).
      spectral_epsilon: of the spectral normalisation (its `SN_eps`, often 1e-6 or 1e-8).
      norm_epsilon: of the batch normalisation (its `BN_eps`).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(_without_parallel(tensors), "a BigGAN generator")
    deep = "blocks.0.0.conv4.weight" in t
    blocks = _count(t, r"blocks\.(\d+)\.")
    widths = [_shape(t, "blocks.0.0.conv1.weight", 4)[1]]
    last = "conv4" if deep else "conv2"
    widths += [_shape(t, f"blocks.{i}.0.{last}.weight", 4)[0] for i in range(blocks)]
    rows, first = _shape(t, "linear.weight", 2)
    if rows != resnet.BOTTOM**2 * widths[0]:
        raise ValueError(
            f"{t.what}: linear.weight has {rows} rows; {resnet.BOTTOM**2 * widths[0]} would make "
            f"{resnet.BOTTOM}x{resnet.BOTTOM} features of {widths[0]} channels"
        )
    attention = [i for i in range(blocks) if f"blocks.{i}.1.gamma" in t]
    is_shared = "shared.weight" in t
    gain = _shape(t, "blocks.0.0.bn1.gain.weight", 2)
    classes, shared = _shape(t, "shared.weight", 2) if is_shared else (gain[0], 0)
    config: dict[str, Any] = {
        "channels": _shape(t, "output_layer.2.weight", 4)[0],
        "classes": classes,
        "shared": shared,
        "spectral": _spectral_norm(t, iterations, spectral_epsilon),
        "epsilon": norm_epsilon,
        # The program's own implementation is told by its counter; it keeps the biased variance.
        "unbiased": "output_layer.0.bn.stored_mean" not in t,
    }
    if deep:
        depth = depth or _depth(widths, blocks, t.what)
        sides = [2 ** (i // depth + 1) * resnet.BOTTOM for i in attention]
        size = resnet.BOTTOM * 2 ** (blocks // depth)
        config |= {"size": size, "width": widths[::depth], "depth": depth, "attention": sides}
        latent = first - shared
    else:
        sides = [2 ** (i + 1) * resnet.BOTTOM for i in attention]
        size = resnet.BOTTOM * 2**blocks
        hierarchical = is_shared and gain[1] > shared
        config |= {"size": size, "width": widths, "attention": sides, "hierarchical": hierarchical}
        latent = first * (blocks + 1) if hierarchical else first

    out = _Converter(t)
    if is_shared:
        out.put("params/shared/embedding", t.vector("shared.weight"))
    out.layer("dense", "linear", outputs=_channels_last(widths[0]))
    for i in range(blocks):
        numbers = range(1, 5 if deep else 3)
        for number in numbers:
            out.layer(f"block_{i}/conv{number}", f"blocks.{i}.0.conv{number}")
            out.conditional_norm(f"block_{i}/norm{number}", f"blocks.{i}.0.bn{number}")
        if not deep:
            out.layer(f"block_{i}/shortcut", f"blocks.{i}.0.conv_sc")
        if i in attention:
            out.attention(f"attention_{i}", f"blocks.{i}.1")
    out.put("params/norm/scale", t.vector("output_layer.0.gain"))
    out.put("params/norm/bias", t.vector("output_layer.0.bias"))
    out.statistics("norm", "output_layer.0")
    out.layer("image", "output_layer.2")
    make = biggan_deep.generator if deep else biggan.generator
    return out.done(make, config, _latents(latent), _labels())


def brock_discriminator(
    tensors: StateDict, *, iterations: int = 1, spectral_epsilon: float = 1e-12
) -> Converted:
    """A discriminator of Brock's program, of BigGAN or BigGAN-deep.

    Args:
      tensors: of its state dict.
      iterations: of the power iteration, in training (the program's `num_D_SV_itrs`).
      spectral_epsilon: of the spectral normalisation (its `SN_eps`, often 1e-6 or 1e-8).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(_without_parallel(tensors), "a BigGAN discriminator")
    deep = "input_conv.weight" in t
    blocks = _count(t, r"blocks\.(\d+)\.")
    last = "conv4" if deep else "conv2"
    widths = [_shape(t, f"blocks.{i}.0.{last}.weight", 4)[0] for i in range(blocks)]
    image = "input_conv.weight" if deep else "blocks.0.0.conv1.weight"
    channels = _shape(t, image, 4)[1]
    classes = _shape(t, "embed.weight", 2)[0]
    size = 32 if blocks == (3 if deep else 4) else 2 ** (blocks + (2 if deep else 1))
    depth = 1
    while deep and f"blocks.0.{depth}.conv1.weight" in t:
        depth += 1
    attention = [i for i in range(blocks) if f"blocks.{i}.{depth}.gamma" in t]
    halvings = resnet.halvings(size)
    sides = sorted({size // 2 ** min(i + 1, halvings) for i in attention}, reverse=True)
    config: dict[str, Any] = {
        "size": size,
        "width": [_shape(t, image, 4)[0], *widths] if deep else widths,
        "classes": classes,
        "attention": sides,
        "spectral": _spectral_norm(t, iterations, spectral_epsilon),
    }
    if deep:
        config["depth"] = depth
    else:
        hidden = [_shape(t, f"blocks.{i}.0.conv1.weight", 4)[0] for i in range(blocks)]
        config["wide"] = hidden == widths

    out = _Converter(t)
    if deep:
        out.layer("stem", "input_conv")
    for i in range(blocks):
        for j in range(depth):
            block, source = f"block_{i * depth + j}", f"blocks.{i}.{j}"
            for number in range(1, 5 if deep else 3):
                out.layer(f"{block}/conv{number}", f"{source}.conv{number}")
            if f"{source}.conv_sc.weight" in t:
                out.layer(f"{block}/{'added' if deep else 'shortcut'}", f"{source}.conv_sc")
        if i in attention:
            out.attention(f"attention_{(i + 1) * depth - 1}", f"blocks.{i}.{depth}")
    out.layer("score", "linear")
    out.embedding("label", "embed")
    make = biggan_deep.discriminator if deep else biggan.discriminator
    return out.done(make, config, _images(size, channels), _labels())


def huggingface_generator(
    tensors: StateDict,
    *,
    doublings: Sequence[bool] | None = None,
    norm_epsilon: float = 1e-4,
) -> Converted:
    """A generator of Hugging Face's program; its option `truncation` is that of the latents.

    Args:
      tensors: of its state dict.
      doublings: of each block, whether it doubles the side: the first entries of `layers` in the
        configuration. By default every second block does, as in all published files.
      norm_epsilon: of the batch normalisation (the configuration's `eps`).

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named. Or
        there are more or fewer `doublings` than blocks.
    """
    t = Tensors(tensors, "a Hugging Face BigGAN generator")
    layers = range(_count(t, r"generator\.layers\.(\d+)\."))
    attentions = [i for i in layers if f"generator.layers.{i}.gamma" in t]
    sources = [f"generator.layers.{i}" for i in layers if i not in attentions]
    after = [i - 1 - number for number, i in enumerate(attentions)]
    if doublings is None:
        doublings = [bool(index % 2) for index in range(len(sources))]
    widths = [_shape(t, f"{source}.conv_0.weight_orig", 4)[1] for source in sources[:1]]
    widths += [_shape(t, f"{source}.conv_3.weight_orig", 4)[0] for source in sources]
    shared, classes = _shape(t, "embeddings.weight", 2)
    latent = _shape(t, "generator.gen_z.weight_orig", 2)[1] - shared
    config = {
        "channels": min(3, _shape(t, "generator.conv_to_rgb.weight_orig", 4)[0]),
        "widths": widths,
        "doublings": list(doublings),
        "classes": classes,
        "shared": shared,
        "attention": after,
        "spectral": None,
        "epsilon": norm_epsilon,
        "statistics": _shape(t, "generator.bn.running_means", 2)[0],
    }

    out = _Converter(t)
    condition = np.roll(np.arange(latent + shared), shared)  # theirs begins with the latents

    def fold(
        target: str, source: str, inputs: Any = slice(None), outputs: Any = slice(None)
    ) -> None:
        weight = t.take(f"{source}.weight_orig")
        u, v = t.take(f"{source}.weight_u"), t.take(f"{source}.weight_v")
        if u.shape != weight.shape[:1] or v.size * u.size != weight.size:
            raise ValueError(
                f"{t.what}: {source}.weight_u and weight_v, {u.shape} and {v.shape}, do not fit "
                f"weight_orig {weight.shape}"
            )
        weight = weight / (u @ weight.reshape(len(weight), -1) @ v)
        kernel = weight.transpose(*range(2, weight.ndim), 1, 0)[..., inputs, :][..., outputs]
        out.put(f"params/{target}/kernel", jnp.asarray(kernel))
        if f"{source}.bias" in t:
            bias = t.vector(f"{source}.bias")[outputs]
            out.put(f"params/{target}/bias", bias)

    def statistics(target: str, source: str) -> None:
        for name, theirs in (("mean", "running_means"), ("var", "running_vars")):
            path = f"{source}.{theirs}"
            out.put(f"batch_stats/{target}/{name}", t.vector(path))

    out.put("params/shared/embedding", t.dense("embeddings.weight"))
    fold("dense", "generator.gen_z", inputs=condition)
    for index, source in enumerate(sources):
        for number in range(4):
            target = f"block_{index}/norm{number + 1}"
            fold(f"{target}/gain", f"{source}.bn_{number}.scale", inputs=condition)
            fold(f"{target}/bias", f"{source}.bn_{number}.offset", inputs=condition)
            statistics(f"{target}/norm", f"{source}.bn_{number}")
            fold(f"block_{index}/conv{number + 1}", f"{source}.conv_{number}")
    for index, layer in zip(after, attentions, strict=True):
        source = f"generator.layers.{layer}"
        for theirs, ours in _PAIRS.items():
            name = "o_conv" if theirs == "o" else theirs
            fold(f"attention_{index}/{ours}", f"{source}.snconv1x1_{name}")
        gamma = t.vector(f"{source}.gamma", (1,)).reshape(())
        out.put(f"params/attention_{index}/gamma", gamma)
    out.put("params/norm/scale", t.vector("generator.bn.weight"))
    out.put("params/norm/bias", t.vector("generator.bn.bias"))
    statistics("norm", "generator.bn")
    # It makes as many channels as the last block, of which the image are the first three.
    fold("image", "generator.conv_to_rgb", outputs=slice(3))
    return out.done(biggan_deep.generator_of_blocks, config, _latents(latent), _labels())


def tinygan_discriminator(
    tensors: StateDict, *, size: int | None = None, iterations: int = 1
) -> Converted:
    """A discriminator of TinyGAN's program (ACCV_TinyGAN).

    Args:
      tensors: of its state dict.
      size: the side of its images; by default that at which the last layer's features are 4x4.
      iterations: of the power iteration, in training.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(tensors, "a TinyGAN discriminator")
    layers = range(_count(t, r"layers\.(\d+)\."))
    sources = [f"layers.{i}" for i in layers if f"layers.{i}.weight_orig" in t]
    config: dict[str, Any] = {
        "size": size or resnet.BOTTOM * 2 ** len(sources),
        "width": [_shape(t, f"{source}.weight_orig", 4)[0] for source in sources],
        "classes": _shape(t, "embeding.weight_orig", 2)[0],
        "spectral": SpectralNorm(iterations=iterations, stored=True),
    }
    out = _Converter(t)
    for index, source in enumerate(sources):
        out.layer(f"conv_{index}", source)
    out.layer("score", "fc_src")
    out.embedding("label", "embeding")
    channels = _shape(t, f"{sources[0]}.weight_orig", 4)[1] if sources else 3
    return out.done(tinygan.discriminator, config, _images(config["size"], channels), _labels())


class _Converter:
    """Variables, path by path; the singular vectors of a layer come with it."""

    def __init__(self, tensors: Tensors):
        self.tensors = tensors
        self.variables: dict[str, Array] = {}

    def put(self, path: str, value: Array) -> None:
        self.variables[path] = value

    def layer(self, target: str, source: str, outputs: Any = slice(None)) -> None:
        """A convolution or linear layer; `outputs` is the order that its outputs get."""
        t, name = self.tensors, self._weight(source)
        read = t.dense if len(t.shape(name)) == 2 else t.kernel
        self.put(f"params/{target}/kernel", read(name)[..., outputs])
        if f"{source}.bias" in t:
            self.put(f"params/{target}/bias", t.vector(f"{source}.bias")[outputs])
        self._vectors(target, source, outputs)

    def embedding(self, target: str, source: str) -> None:
        name = self._weight(source)
        self.put(f"params/{target}/embedding", self.tensors.vector(name))
        self._vectors(target, source, slice(None))

    def conditional_norm(self, target: str, source: str) -> None:
        for name in ("gain", "bias"):
            inner = f"{source}.{name}"
            # A linear layer of the shared embedding, or an embedding of the norm's own.
            kind = self.layer if "shared.weight" in self.tensors else self.embedding
            kind(f"{target}/{name}", inner)
        self.statistics(f"{target}/norm", source)

    def statistics(self, target: str, source: str) -> None:
        t = self.tensors
        if f"{source}.bn.stored_mean" in t:
            source = f"{source}.bn"
        t.drop(f"{source}.accumulation_counter")
        for name in ("mean", "var"):
            path = f"{source}.stored_{name}"
            self.put(f"batch_stats/{target}/{name}", t.vector(path))

    def attention(self, target: str, source: str) -> None:
        for theirs, ours in _PAIRS.items():
            self.layer(f"{target}/{ours}", f"{source}.{theirs}")
        gamma = self.tensors.vector(f"{source}.gamma", ())
        self.put(f"params/{target}/gamma", gamma)

    def done(self, make: Callable[..., Network], config: dict[str, Any], *inputs: Any) -> Converted:
        """The network of that configuration with these variables, which have to be all of its."""
        self.tensors.done()
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        return checked(self.tensors.what, Converted(make(**config), variables, config), *inputs)

    def _weight(self, source: str) -> str:
        stored = f"{source}.weight_orig"
        return stored if stored in self.tensors else f"{source}.weight"

    def _vectors(self, target: str, source: str, outputs: Any) -> None:
        t = self.tensors
        if f"{source}.u0" in t:
            numbers = range(_vectors(t, source))
            u = [t.vector(f"{source}.u{i}")[0, outputs] for i in numbers]
            self.put(f"spectral/{target}/u", jnp.stack(u))
            values = [t.vector(f"{source}.sv{i}", (1,))[0] for i in numbers]
            self.put(f"spectral/{target}/sigma", jnp.stack(values))
        elif f"{source}.weight_u" in t:
            self._stored_vectors(target, source)

    def _stored_vectors(self, target: str, source: str) -> None:
        """Both vectors of PyTorch's own spectral normalisation, and the value they stand for."""
        t, weight = self.tensors, f"{source}.weight_orig"
        rows, *inputs = t.shape(weight)
        u = t.vector(f"{source}.weight_u", (rows,))
        v = t.vector(f"{source}.weight_v", (math.prod(inputs),))
        matrix = jnp.asarray(t.take(weight).reshape(rows, -1).T)
        sigma = singular_values(matrix, u[None], v[None])
        if len(inputs) == 3:  # flattened channels, rows, columns; kd_jax's channels are the last
            v = v.reshape(inputs).transpose(1, 2, 0).reshape(-1)
        self.put(f"spectral/{target}/u", u[None])
        self.put(f"spectral/{target}/v", v[None])
        self.put(f"spectral/{target}/sigma", sigma)


def _stripped(names: Iterable[str]) -> set[str]:
    return {name.removeprefix(_PARALLEL) for name in names}


def _without_parallel(tensors: StateDict) -> StateDict:
    return {name.removeprefix(_PARALLEL): value for name, value in tensors.items()}


def _shape(t: Tensors, name: str, rank: int) -> tuple[int, ...]:
    shape = t.shape(name)
    if len(shape) != rank:
        raise ValueError(f"{t.what}: {name} has shape {shape}, not {rank} axes")
    return shape


def _count(t: Tensors, pattern: str) -> int:
    """One more than the largest number that the names have where the pattern's group is."""
    numbers = [int(match[1]) for name in t if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _spectral_norm(t: Tensors, iterations: int, epsilon: float) -> SpectralNorm | None:
    vectors = _vectors(t, "linear")
    return SpectralNorm(iterations, vectors, epsilon) if vectors else None


def _vectors(t: Tensors, source: str) -> int:
    return _count(t, re.escape(source) + r"\.u(\d+)$")


def _depth(widths: Sequence[int], blocks: int, what: str) -> int:
    """Blocks for each side: the second side's last block is the first that drops channels."""
    drops = [i for i in range(blocks) if widths[i + 1] < widths[i]]
    depth, rest = divmod(drops[0] + 1, 2) if drops else divmod(blocks, 3)
    if rest or not depth or blocks % depth:
        raise ValueError(f"{what}: {blocks} blocks of channels {list(widths)}; give their depth")
    return depth


def _channels_last(channels: int) -> np.ndarray:
    """The order that makes flattened `[channels, 4, 4]` features `[4, 4, channels]`."""
    side = resnet.BOTTOM
    return np.arange(channels * side**2).reshape(channels, side, side).transpose(1, 2, 0).ravel()


def _latents(length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, length), jnp.float32)


def _labels() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1,), jnp.int32)


def _images(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)

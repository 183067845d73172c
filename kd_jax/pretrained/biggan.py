"""BigGAN and BigGAN-deep, from the two PyTorch programs with published weights.

* Brock's (BigGAN-PyTorch): generators and discriminators of both architectures, which can be
  trained further. Files from several devices have the prefix `module.` on their tensor names.
* Hugging Face's (pytorch-pretrained-BigGAN): BigGAN-deep generators, converted from the authors'.
  Their batch statistics and the vectors of their spectral normalisation are fixed: the weights are
  divided by their singular values once, on reading, and the network has no spectral normalisation.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kd_jax.core.network import Network
from kd_jax.core.types import Array
from kd_jax.models import biggan, biggan_deep, resnet, tinygan
from kd_jax.models.layers.spectral import SpectralNorm
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader, check_variables

_PARALLEL = "module."

_PAIRS = {"theta": "query", "phi": "key", "g": "value", "o": "output"}  # attention, in both


def is_huggingface(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `huggingface_generator`."""
    return {"generator.gen_z.weight_orig", "embeddings.weight"} <= set(names)


def is_brock_generator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `brock_generator`."""
    return {"linear.weight", "output_layer.2.weight", "blocks.0.0.conv1.weight"} <= _strip_prefix(
        names
    )


def is_brock_discriminator(names: Iterable[str]) -> bool:
    """Whether the tensors are those of `brock_discriminator`."""
    names = _strip_prefix(names)
    return {"linear.weight", "blocks.0.0.conv1.weight"} <= names and not any(
        name.startswith("output_layer.") for name in names
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
      tensors: its state dict.
      depth: for BigGAN-deep, the number of blocks per resolution. By default it is inferred from
        where the number of channels decreases; if it never does, three doublings of the resolution
        are assumed (32 pixels).
      iterations: power iterations per training step (the program's `num_G_SV_itrs`).
      spectral_epsilon: epsilon of the spectral normalisation (its `SN_eps`, often 1e-6 or 1e-8).
      norm_epsilon: epsilon of the batch normalisation (its `BN_eps`).

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(_strip_parallel(tensors), "a BigGAN generator")
    deep = "blocks.0.0.conv4.weight" in reader
    blocks = _count(reader, r"blocks\.(\d+)\.")
    widths = [_shape(reader, "blocks.0.0.conv1.weight", 4)[1]]
    last = "conv4" if deep else "conv2"
    widths += [_shape(reader, f"blocks.{i}.0.{last}.weight", 4)[0] for i in range(blocks)]
    rows, first = _shape(reader, "linear.weight", 2)
    if rows != resnet.BOTTOM**2 * widths[0]:
        raise ValueError(
            f"{reader.what}: linear.weight has {rows} rows; {resnet.BOTTOM**2 * widths[0]} are "
            f"needed for {resnet.BOTTOM}x{resnet.BOTTOM} features of {widths[0]} channels"
        )
    attention = [i for i in range(blocks) if f"blocks.{i}.1.gamma" in reader]
    is_shared = "shared.weight" in reader
    gain = _shape(reader, "blocks.0.0.bn1.gain.weight", 2)
    classes, shared = _shape(reader, "shared.weight", 2) if is_shared else (gain[0], 0)
    config: dict[str, Any] = {
        "channels": _shape(reader, "output_layer.2.weight", 4)[0],
        "classes": classes,
        "shared": shared,
        "spectral": _spectral_norm(reader, iterations, spectral_epsilon),
        "epsilon": norm_epsilon,
        # The program's own batch norm, recognised by its counter, stores the biased variance.
        "unbiased": "output_layer.0.bn.stored_mean" not in reader,
    }
    if deep:
        depth = depth or _depth(widths, blocks, reader.what)
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

    out = _Converter(reader)
    if is_shared:
        out.put("params/shared/embedding", reader.vector("shared.weight"))
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
    out.put("params/norm/scale", reader.vector("output_layer.0.gain"))
    out.put("params/norm/bias", reader.vector("output_layer.0.bias"))
    out.statistics("norm", "output_layer.0")
    out.layer("image", "output_layer.2")
    make = biggan_deep.generator if deep else biggan.generator
    converted = out.convert(make, config, _latent_shape(latent), _label_shape())
    options = {"norm_epsilon": norm_epsilon, **_spectral_options(config["spectral"])}
    return converted._replace(options={**options, **({"depth": depth} if deep else {})})


def brock_discriminator(
    tensors: StateDict, *, iterations: int = 1, spectral_epsilon: float = 1e-12
) -> Converted:
    """A discriminator of Brock's program, of BigGAN or BigGAN-deep.

    Args:
      tensors: its state dict.
      iterations: power iterations per training step (the program's `num_D_SV_itrs`).
      spectral_epsilon: epsilon of the spectral normalisation (its `SN_eps`, often 1e-6 or 1e-8).

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(_strip_parallel(tensors), "a BigGAN discriminator")
    deep = "input_conv.weight" in reader
    blocks = _count(reader, r"blocks\.(\d+)\.")
    last = "conv4" if deep else "conv2"
    widths = [_shape(reader, f"blocks.{i}.0.{last}.weight", 4)[0] for i in range(blocks)]
    image = "input_conv.weight" if deep else "blocks.0.0.conv1.weight"
    channels = _shape(reader, image, 4)[1]
    classes = _shape(reader, "embed.weight", 2)[0]
    size = 32 if blocks == (3 if deep else 4) else 2 ** (blocks + (2 if deep else 1))
    depth = 1
    while deep and f"blocks.0.{depth}.conv1.weight" in reader:
        depth += 1
    attention = [i for i in range(blocks) if f"blocks.{i}.{depth}.gamma" in reader]
    halvings = resnet.halvings(size)
    sides = sorted({size // 2 ** min(i + 1, halvings) for i in attention}, reverse=True)
    config: dict[str, Any] = {
        "size": size,
        "width": [_shape(reader, image, 4)[0], *widths] if deep else widths,
        "classes": classes,
        "attention": sides,
        "spectral": _spectral_norm(reader, iterations, spectral_epsilon),
    }
    if deep:
        config["depth"] = depth
    else:
        hidden = [_shape(reader, f"blocks.{i}.0.conv1.weight", 4)[0] for i in range(blocks)]
        config["wide"] = hidden == widths

    out = _Converter(reader)
    if deep:
        out.layer("stem", "input_conv")
    for i in range(blocks):
        for j in range(depth):
            block, source = f"block_{i * depth + j}", f"blocks.{i}.{j}"
            for number in range(1, 5 if deep else 3):
                out.layer(f"{block}/conv{number}", f"{source}.conv{number}")
            if f"{source}.conv_sc.weight" in reader:
                out.layer(f"{block}/{'added' if deep else 'shortcut'}", f"{source}.conv_sc")
        if i in attention:
            out.attention(f"attention_{(i + 1) * depth - 1}", f"blocks.{i}.{depth}")
    out.layer("score", "linear")
    out.embedding("label", "embed")
    make = biggan_deep.discriminator if deep else biggan.discriminator
    converted = out.convert(make, config, _image_shape(size, channels), _label_shape())
    return converted._replace(options=_spectral_options(config["spectral"]))


def huggingface_generator(
    tensors: StateDict,
    *,
    doublings: Sequence[bool] | None = None,
    norm_epsilon: float = 1e-4,
) -> Converted:
    """A generator of Hugging Face's program; its option `truncation` truncates the latents.

    Args:
      tensors: its state dict.
      doublings: whether each block doubles the resolution: the first entries of `layers` in the
        configuration. By default every second block does, as in all published files.
      norm_epsilon: epsilon of the batch normalisation (`eps` in the configuration).

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named. Or
        the numbers of `doublings` and blocks differ.
    """
    reader = StateDictReader(tensors, "a Hugging Face BigGAN generator")
    layers = range(_count(reader, r"generator\.layers\.(\d+)\."))
    attentions = [i for i in layers if f"generator.layers.{i}.gamma" in reader]
    sources = [f"generator.layers.{i}" for i in layers if i not in attentions]
    after = [i - 1 - number for number, i in enumerate(attentions)]
    if doublings is None:
        doublings = [bool(index % 2) for index in range(len(sources))]
    widths = [_shape(reader, f"{source}.conv_0.weight_orig", 4)[1] for source in sources[:1]]
    widths += [_shape(reader, f"{source}.conv_3.weight_orig", 4)[0] for source in sources]
    shared, classes = _shape(reader, "embeddings.weight", 2)
    latent = _shape(reader, "generator.gen_z.weight_orig", 2)[1] - shared
    config = {
        "channels": min(3, _shape(reader, "generator.conv_to_rgb.weight_orig", 4)[0]),
        "widths": widths,
        "doublings": list(doublings),
        "classes": classes,
        "shared": shared,
        "attention": after,
        "spectral": None,
        "epsilon": norm_epsilon,
        "statistics": _shape(reader, "generator.bn.running_means", 2)[0],
    }

    out = _Converter(reader)
    condition = np.roll(np.arange(latent + shared), shared)  # their vector starts with the latents

    def fold(
        target: str, source: str, inputs: Any = slice(None), outputs: Any = slice(None)
    ) -> None:
        weight = reader.take(f"{source}.weight_orig")
        u, v = reader.take(f"{source}.weight_u"), reader.take(f"{source}.weight_v")
        if u.shape != weight.shape[:1] or v.size * u.size != weight.size:
            raise ValueError(
                f"{reader.what}: {source}.weight_u and weight_v, {u.shape} and {v.shape}, do not "
                f"fit weight_orig {weight.shape}"
            )
        weight = weight / (u @ weight.reshape(len(weight), -1) @ v)
        kernel = weight.transpose(*range(2, weight.ndim), 1, 0)[..., inputs, :][..., outputs]
        out.put(f"params/{target}/kernel", jnp.asarray(kernel))
        if f"{source}.bias" in reader:
            bias = reader.vector(f"{source}.bias")[outputs]
            out.put(f"params/{target}/bias", bias)

    def statistics(target: str, source: str) -> None:
        for name, theirs in (("mean", "running_means"), ("var", "running_vars")):
            path = f"{source}.{theirs}"
            out.put(f"batch_stats/{target}/{name}", reader.vector(path))

    out.put("params/shared/embedding", reader.dense("embeddings.weight"))
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
        gamma = reader.vector(f"{source}.gamma", (1,)).reshape(())
        out.put(f"params/attention_{index}/gamma", gamma)
    out.put("params/norm/scale", reader.vector("generator.bn.weight"))
    out.put("params/norm/bias", reader.vector("generator.bn.bias"))
    statistics("norm", "generator.bn")
    # The layer has as many outputs as the last block has channels; the first three are the image.
    fold("image", "generator.conv_to_rgb", outputs=slice(3))
    converted = out.convert(
        biggan_deep.generator_of_blocks, config, _latent_shape(latent), _label_shape()
    )
    options = {"doublings": config["doublings"], "norm_epsilon": norm_epsilon}
    return converted._replace(options=options)


def tinygan_discriminator(
    tensors: StateDict, *, size: int | None = None, iterations: int = 1
) -> Converted:
    """A discriminator of TinyGAN's program (ACCV_TinyGAN).

    Args:
      tensors: its state dict.
      size: the image size; by default the one for which the last layer's features are 4x4.
      iterations: power iterations per training step.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(tensors, "a TinyGAN discriminator")
    layers = range(_count(reader, r"layers\.(\d+)\."))
    sources = [f"layers.{i}" for i in layers if f"layers.{i}.weight_orig" in reader]
    config: dict[str, Any] = {
        "size": size or resnet.BOTTOM * 2 ** len(sources),
        "width": [_shape(reader, f"{source}.weight_orig", 4)[0] for source in sources],
        "classes": _shape(reader, "embeding.weight_orig", 2)[0],
        "spectral": SpectralNorm(iterations=iterations, stored=True),
    }
    out = _Converter(reader)
    for index, source in enumerate(sources):
        out.layer(f"conv_{index}", source)
    out.layer("score", "fc_src")
    out.embedding("label", "embeding")
    channels = _shape(reader, f"{sources[0]}.weight_orig", 4)[1] if sources else 3
    return out.convert(
        tinygan.discriminator, config, _image_shape(config["size"], channels), _label_shape()
    )


class _Converter:
    """Collects variables by path, including the singular vectors of each layer."""

    def __init__(self, reader: StateDictReader):
        self.reader = reader
        self.variables: dict[str, Array] = {}

    def put(self, path: str, value: Array) -> None:
        self.variables[path] = value

    def layer(self, target: str, source: str, outputs: Any = slice(None)) -> None:
        """Adds a convolution or linear layer, with its outputs in the order `outputs`."""
        reader, name = self.reader, self._weight(source)
        read = reader.dense if len(reader.shape(name)) == 2 else reader.kernel
        self.put(f"params/{target}/kernel", read(name)[..., outputs])
        if f"{source}.bias" in reader:
            _shape(reader, f"{source}.bias", 1)
            self.put(f"params/{target}/bias", reader.vector(f"{source}.bias")[outputs])
        self._vectors(target, source, outputs)

    def embedding(self, target: str, source: str) -> None:
        name = self._weight(source)
        self.put(f"params/{target}/embedding", self.reader.vector(name))
        self._vectors(target, source, slice(None))

    def conditional_norm(self, target: str, source: str) -> None:
        for name in ("gain", "bias"):
            inner = f"{source}.{name}"
            # A linear layer of the shared embedding, or the norm's own embedding.
            kind = self.layer if "shared.weight" in self.reader else self.embedding
            kind(f"{target}/{name}", inner)
        self.statistics(f"{target}/norm", source)

    def statistics(self, target: str, source: str) -> None:
        reader = self.reader
        if f"{source}.bn.stored_mean" in reader:
            source = f"{source}.bn"
        reader.drop(f"{source}.accumulation_counter")
        for name in ("mean", "var"):
            path = f"{source}.stored_{name}"
            self.put(f"batch_stats/{target}/{name}", reader.vector(path))

    def attention(self, target: str, source: str) -> None:
        for theirs, ours in _PAIRS.items():
            self.layer(f"{target}/{ours}", f"{source}.{theirs}")
        gamma = self.reader.vector(f"{source}.gamma", ())
        self.put(f"params/{target}/gamma", gamma)

    def convert(
        self, make: Callable[..., Network], config: dict[str, Any], *inputs: Any
    ) -> Converted:
        """The network of this configuration; the collected variables must be complete."""
        self.reader.check_all_read()
        variables = traverse_util.unflatten_dict(self.variables, sep="/")
        return check_variables(
            self.reader.what, Converted(make(**config), variables, config), *inputs
        )

    def _weight(self, source: str) -> str:
        stored = f"{source}.weight_orig"
        return stored if stored in self.reader else f"{source}.weight"

    def _vectors(self, target: str, source: str, outputs: Any) -> None:
        reader = self.reader
        if f"{source}.u0" in reader:
            numbers = range(_vectors(reader, source))
            for number in numbers:
                _shape(reader, f"{source}.u{number}", 2)
            u = [reader.vector(f"{source}.u{i}")[0, outputs] for i in numbers]
            self.put(f"spectral/{target}/u", jnp.stack(u))
            values = [reader.vector(f"{source}.sv{i}", (1,))[0] for i in numbers]
            self.put(f"spectral/{target}/sigma", jnp.stack(values))
        elif f"{source}.weight_u" in reader:
            for name, value in reader.spectral_vectors(source).items():
                self.put(f"spectral/{target}/{name}", value)


def _strip_prefix(names: Iterable[str]) -> set[str]:
    return {name.removeprefix(_PARALLEL) for name in names}


def _strip_parallel(tensors: StateDict) -> StateDict:
    return {name.removeprefix(_PARALLEL): value for name, value in tensors.items()}


def _shape(reader: StateDictReader, name: str, rank: int) -> tuple[int, ...]:
    shape = reader.shape(name)
    if len(shape) != rank:
        raise ValueError(f"{reader.what}: {name} has shape {shape}, not {rank} axes")
    return shape


def _count(reader: StateDictReader, pattern: str) -> int:
    """The largest number that the pattern's group matches in the tensor names, plus 1."""
    numbers = [int(match[1]) for name in reader if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _spectral_norm(reader: StateDictReader, iterations: int, epsilon: float) -> SpectralNorm | None:
    vectors = _vectors(reader, "linear")
    return SpectralNorm(iterations, vectors, epsilon) if vectors else None


def _spectral_options(spectral: SpectralNorm | None) -> dict[str, Any]:
    """The options of `_spectral_norm`, which do nothing without it."""
    if spectral is None:
        return {}
    return {"iterations": spectral.iterations, "spectral_epsilon": spectral.epsilon}


def _vectors(reader: StateDictReader, source: str) -> int:
    return _count(reader, re.escape(source) + r"\.u(\d+)$")


def _depth(widths: Sequence[int], blocks: int, what: str) -> int:
    """Blocks per resolution: the first one that reduces channels is the last of the second."""
    drops = [i for i in range(blocks) if widths[i + 1] < widths[i]]
    depth, rest = divmod(drops[0] + 1, 2) if drops else divmod(blocks, 3)
    if rest or not depth or blocks % depth:
        raise ValueError(f"{what}: {blocks} blocks of channels {list(widths)}; pass their depth")
    return depth


def _channels_last(channels: int) -> np.ndarray:
    """The permutation from flattened `[channels, 4, 4]` features to `[4, 4, channels]`."""
    side = resnet.BOTTOM
    return np.arange(channels * side**2).reshape(channels, side, side).transpose(1, 2, 0).ravel()


def _latent_shape(length: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, length), jnp.float32)


def _label_shape() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1,), jnp.int32)


def _image_shape(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)

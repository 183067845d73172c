"""Finds the networks in a published weight file and converts them."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Variables
from kd_jax.pretrained import (
    biggan,
    dcgan,
    inception,
    ncnn,
    perceptual,
    r3gan,
    realesrgan,
    snapshots,
    stylegan1,
    stylegan2,
    stylegan3,
    translation,
)
from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.io.allowed_types import Persistent, TFNetwork
from kd_jax.pretrained.io.containers import read
from kd_jax.pretrained.io.ncnn import Graph
from kd_jax.pretrained.state_dicts import is_averaged, state_dicts


class Kind(NamedTuple):
    """A kind of state dict.

    Attributes:
      name: a readable name.
      fits: whether tensor names are those of such a network.
      convert: `convert(state dict, **overrides) -> Converted`.
      generates: whether it is a generator.
      purpose: the use of a network that is neither a generator nor a discriminator.
    """

    name: str
    fits: Callable[[Iterable[str]], bool]
    convert: Callable[..., Converted]
    generates: bool
    purpose: str = ""


def _is_torchvision_inception(names: Iterable[str]) -> bool:
    names = set(names)
    return inception.is_inception(names) and any(name.startswith("AuxLogits.") for name in names)


KINDS = (
    Kind("StyleGAN3 generator", stylegan3.is_generator, stylegan3.generator, True),
    Kind("StyleGAN2 generator", stylegan2.is_generator, stylegan2.generator, True),
    Kind("StyleGAN2 discriminator", stylegan2.is_discriminator, stylegan2.discriminator, False),
    Kind(
        "StyleGAN2 generator (rosinality)",
        stylegan2.is_rosinality_generator,
        stylegan2.rosinality_generator,
        True,
    ),
    Kind(
        "StyleGAN2 discriminator (rosinality)",
        stylegan2.is_rosinality_discriminator,
        stylegan2.rosinality_discriminator,
        False,
    ),
    Kind(
        "StyleGAN2 generator (genforce)",
        stylegan2.is_genforce_generator,
        stylegan2.genforce_generator,
        True,
    ),
    Kind(
        "StyleGAN2 discriminator (genforce)",
        stylegan2.is_genforce_discriminator,
        stylegan2.genforce_discriminator,
        False,
    ),
    Kind(
        "StyleGAN1 generator (genforce)",
        stylegan1.is_genforce_generator,
        stylegan1.genforce_generator,
        True,
    ),
    Kind(
        "StyleGAN1 discriminator (genforce)",
        stylegan1.is_genforce_discriminator,
        stylegan1.genforce_discriminator,
        False,
    ),
    Kind(
        "StyleGAN1 generator (rosinality)",
        stylegan1.is_rosinality_generator,
        stylegan1.rosinality_generator,
        True,
    ),
    Kind(
        "StyleGAN1 discriminator (rosinality)",
        stylegan1.is_rosinality_discriminator,
        stylegan1.rosinality_discriminator,
        False,
    ),
    Kind(
        "BigGAN-deep generator (Hugging Face)",
        biggan.is_huggingface,
        biggan.huggingface_generator,
        True,
    ),
    Kind("BigGAN generator (Brock)", biggan.is_brock_generator, biggan.brock_generator, True),
    Kind(
        "BigGAN discriminator (Brock)",
        biggan.is_brock_discriminator,
        biggan.brock_discriminator,
        False,
    ),
    Kind("DCGAN generator", dcgan.is_generator, dcgan.generator, True),
    Kind("DCGAN discriminator", dcgan.is_discriminator, dcgan.discriminator, False),
    Kind(
        "ResNet generator (CycleGAN)",
        translation.is_resnet_generator,
        translation.resnet_generator,
        True,
    ),
    Kind(
        "U-Net generator (pix2pix)", translation.is_unet_generator, translation.unet_generator, True
    ),
    Kind(
        "patch discriminator (pix2pix, CycleGAN)",
        translation.is_patch_discriminator,
        translation.patch_discriminator,
        False,
    ),
    Kind(
        "pixel discriminator (pix2pix, CycleGAN)",
        translation.is_pixel_discriminator,
        translation.pixel_discriminator,
        False,
    ),
    Kind("R3GAN generator", r3gan.is_generator, r3gan.generator, True),
    Kind("R3GAN discriminator", r3gan.is_discriminator, r3gan.discriminator, False),
    Kind("RRDBNet (Real-ESRGAN)", realesrgan.is_rrdb, realesrgan.rrdb, True),
    Kind("SRVGGNetCompact (Real-ESRGAN)", realesrgan.is_srvgg, realesrgan.srvgg, True),
    Kind(
        "U-Net discriminator (Real-ESRGAN)",
        realesrgan.is_unet_discriminator,
        realesrgan.unet_discriminator,
        False,
    ),
    Kind(
        "Inception-v3 (torchvision)",
        _is_torchvision_inception,
        inception.torchvision,
        False,
        "features of images",
    ),
    Kind(
        "Inception-v3 (FID)",
        inception.is_inception,
        inception.fid,
        False,
        "the Frechet inception distance: kd-jax evaluate --features FILE",
    ),
    Kind(
        "LPIPS",
        perceptual.is_lpips,
        perceptual.lpips,
        False,
        "distances between images: kd-jax evaluate --lpips FILE",
    ),
    Kind(
        "VGG16, AlexNet or SqueezeNet (torchvision)",
        perceptual.is_trunk,
        perceptual.trunk,
        False,
        "features of images: kd-jax evaluate --features FILE; with LPIPS's weights distances "
        "between them: kd-jax evaluate --lpips FILE WEIGHTS",
    ),
)
"""The supported kinds of state dicts, recognised by their tensor names."""

UNKNOWN = "unknown network"
"""The kind of a part that is an averaged network by its name, but not a known one."""

_TF_NAMES = ("G", "D", "Gs")


class Part(NamedTuple):
    """A network of a file.

    Attributes:
      kind: a readable name of its kind.
      convert: `convert(**overrides) -> Converted`; raises a ValueError if the tensors do not fit.
      generates: whether it is a generator.
      purpose: the use of a network that is neither a generator nor a discriminator.
    """

    kind: str
    convert: Callable[..., Converted]
    generates: bool
    purpose: str = ""

    def __repr__(self) -> str:
        return record_repr(self)


class Loaded(NamedTuple):
    """A published network: `network.apply(variables, ...)`."""

    network: Network
    variables: Variables

    def __repr__(self) -> str:
        return record_repr(self)


def load(path: str | os.PathLike[str], part: str | None = None, **overrides: Any) -> Loaded:
    """Loads a network from a published weight file; nothing in the file is executed.

        network, variables = pretrained.load("ffhq.pkl")
        images, taps, _ = network.apply(variables, latents, truncation=0.7)

    Supported are NVIDIA's StyleGAN2 and StyleGAN3 snapshots (PyTorch, and TensorFlow's of
    StyleGAN2), and the state dicts, as `.pkl`, `.pt`, `.pth` or `.safetensors`, of rosinality's and
    genforce's StyleGAN1 and StyleGAN2, Hugging Face's BigGAN-deep, Brock's BigGAN and BigGAN-deep,
    PyTorch's example DCGAN, pix2pix and CycleGAN, R3GAN, Real-ESRGAN, the Inception-v3 of the FID
    and torchvision's, and LPIPS and its trunks; and Real-ESRGAN's generators in ncnn's format, a
    `.param` file with the `.bin` file beside it.

    Args:
      path: the file. Its format is recognised by its content, not by its name.
      part: the name of the network in `parts`; by default the averaged generator, else the only
        generator.
      **overrides: arguments of the network's factory that the file does not determine
        (`conv_clamp`, ...).

    Raises:
      ValueError: the file is damaged or contains something unknown; it has no known network, or
        none of the name `part`; or a tensor is missing, unknown or of a wrong shape.
      OSError: the file cannot be read.
    """
    available = parts(path)
    converted = convert(path, available[choose(path, available, part)], **overrides)
    return Loaded(converted.network, converted.variables)


def choose(path: str | os.PathLike[str], available: Mapping[str, Part], part: str | None) -> str:
    """The name of the part to load: `part`, or the averaged generator, or the only candidate.

    Raises:
      ValueError: there is no part of that name, or the choice is ambiguous.
    """
    if part is not None:
        if part not in available:
            raise ValueError(f"{path}: no part {part!r}; it has {', '.join(available)}")
        return part
    generators = [name for name, candidate in available.items() if candidate.generates]
    known = [name for name, candidate in available.items() if candidate.kind != UNKNOWN]
    unknown = [name for name in available if name not in known]
    networks = [name for name in known if name in generators] or known
    averaged = [name for name in networks if is_averaged(name)]
    # Never the raw generator in place of an averaged one that cannot be read.
    candidates = averaged or unknown or networks
    if len(candidates) > 1:
        raise ValueError(
            f"{path}: specify the part to load: {', '.join(available)} (part=NAME; of commands, "
            "FILE#NAME or --part)"
        )
    return candidates[0]


def convert(path: str | os.PathLike[str], part: Part, **overrides: Any) -> Converted:
    """Converts a part to a network; errors are prefixed with the file's name."""
    try:
        return part.convert(**overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except TypeError as error:
        if not overrides:
            raise
        listed = ", ".join(f"{name}={value!r}" for name, value in overrides.items())
        raise ValueError(
            f"{path}: {part.kind} does not take the options {listed}: {error}"
        ) from None


def parts(path: str | os.PathLike[str]) -> dict[str, Part]:
    """The networks in a published weight file, by their names there.

    The state dict of a single network has no name: it is called "generator", "discriminator" or
    "features".

    Raises:
      ValueError: the file is damaged, or it has no known network.
      OSError: the file cannot be read.
    """
    tree = read(path)
    try:
        networks = _parts(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not networks:
        raise ValueError(f"{path}: no known network; {_describe(tree)}")
    return networks


def _parts(tree: Any) -> dict[str, Part]:
    if isinstance(tree, Persistent):
        return _module_parts({"network": tree})
    if isinstance(tree, tuple | list) and tree and all(isinstance(x, TFNetwork) for x in tree):
        names = _TF_NAMES if len(tree) == 3 else [f"network{i}" for i in range(len(tree))]
        return {
            name: Part(
                "StyleGAN2 " + ("discriminator" if name == "D" else "generator") + " (TensorFlow)",
                partial(snapshots.from_tensorflow, network),
                name != "D",
            )
            for name, network in zip(names, tree, strict=True)
        }
    if isinstance(tree, Graph):
        return {"generator": Part(*ncnn.converter(tree), True)}
    if not isinstance(tree, Mapping):
        return {}
    modules = {k: v for k, v in tree.items() if isinstance(v, Persistent)}
    if modules:
        return _module_parts(modules)
    networks: dict[str, Part] = {}
    for name, entry in state_dicts(tree, lambda tensors: _kind(tensors) is not None).items():
        if entry.tensors is None:
            networks[name] = Part(UNKNOWN, partial(_raise_unknown, name), False)
            continue
        kind = _kind(entry.tensors)
        assert kind is not None
        options = {}
        if kind.convert is stylegan2.rosinality_generator and entry.average is not None:
            options = {"average": entry.average}
        default = "generator" if kind.generates else "features" if kind.purpose else "discriminator"
        networks[name or default] = _part(kind, entry.tensors, **options)
    return networks


def _raise_unknown(name: str) -> Converted:
    raise ValueError(
        f"{name}, by its name the averaged weights, is not a known network; another part can be "
        "named"
    )


def _part(kind: Kind, tensors: Mapping[str, np.ndarray], **options: Any) -> Part:
    make = partial(kind.convert, tensors, **options)
    return Part(kind.name, make, kind.generates, kind.purpose)


def _module_parts(modules: Mapping[str, Persistent]) -> dict[str, Part]:
    networks = {}
    for name, module in modules.items():
        if module.class_name in ("Generator", "Discriminator"):
            generates = module.class_name == "Generator"
            kind = f"{module.class_name.lower()} of an NVIDIA snapshot"
            make = partial(snapshots.from_module, module)
            networks[str(name)] = Part(kind, make, generates)
    return networks


def _kind(tensors: Mapping[str, np.ndarray]) -> Kind | None:
    return next((kind for kind in KINDS if tensors and kind.fits(tensors)), None)


def _describe(tree: Any) -> str:
    if isinstance(tree, Mapping):
        names = ", ".join(map(str, list(tree)[:4]))
        return f"it is a dict of {len(tree)} entries: {names}{', ...' if len(tree) > 4 else ''}"
    return f"it is a {type(tree).__name__}"

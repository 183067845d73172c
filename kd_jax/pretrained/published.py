"""From a published file to a network: which networks are in it, and what makes each of them."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kd_jax.network import Network
from kd_jax.pretrained import (
    biggan,
    dcgan,
    inception,
    perceptual,
    snapshots,
    stylegan1,
    stylegan2,
    stylegan3,
    translation,
)
from kd_jax.pretrained.containers import read
from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.stand_ins import Persistent, TFNetwork
from kd_jax.types import Variables


class Kind(NamedTuple):
    """A kind of state dict.

    Attributes:
      name: what it is, for people.
      fits: whether these tensors' names are such a network's.
      convert: `convert(state dict, **overrides) -> Converted`.
      generates: whether it is a generator.
      purpose: what it is for, of a network that is neither generator nor discriminator.
    """

    name: str
    fits: Callable[[Iterable[str]], bool]
    convert: Callable[..., Converted]
    generates: bool
    purpose: str = ""


def _is_torchvision_inception(names: Iterable[str]) -> bool:
    found = set(names)
    return inception.is_inception(found) and any(name.startswith("AuxLogits.") for name in found)


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
        "the Frechet inception distance: kd_jax.evaluate --inception FILE",
    ),
    Kind(
        "LPIPS",
        perceptual.is_lpips,
        perceptual.lpips,
        False,
        "distances between images: kd_jax.evaluate --lpips FILE",
    ),
    Kind(
        "VGG16, AlexNet or SqueezeNet (torchvision)",
        perceptual.is_trunk,
        perceptual.trunk,
        False,
        "features of images, and with LPIPS's weights for distances between them: "
        "kd_jax.evaluate --lpips FILE WEIGHTS",
    ),
)
"""The state dicts that can be read, by the names of their tensors."""

AVERAGED = ("G_ema", "Gs", "g_ema", "generator_smooth", "g_running", "ema")
"""What files call the averaged generator, which is the one to use."""

_TF_NAMES = ("G", "D", "Gs")


class Part(NamedTuple):
    """One network of a file.

    Attributes:
      kind: what it is, for people.
      convert: `convert(**overrides) -> Converted`; raises a ValueError where the tensors do not
        fit.
      generates: whether it is a generator.
      purpose: what it is for, of a network that is neither generator nor discriminator.
    """

    kind: str
    convert: Callable[..., Converted]
    generates: bool
    purpose: str = ""


class Loaded(NamedTuple):
    """A published network: `network.apply(variables, ...)`."""

    network: Network
    variables: Variables


def load(path: str | os.PathLike[str], part: str | None = None, **overrides: Any) -> Loaded:
    """A network of a published weight file, ready for use; nothing in the file is executed.

        network, variables = pretrained.load("ffhq.pkl")
        images, taps, _ = network.apply(variables, latents, truncation=0.7)

    Reads NVIDIA's StyleGAN2 and StyleGAN3 snapshots (PyTorch, and StyleGAN2's of TensorFlow),
    rosinality's and genforce's StyleGAN1 and StyleGAN2, BigGAN-deep of Hugging Face, BigGAN and
    BigGAN-deep of Brock, PyTorch's example DCGAN, pix2pix and CycleGAN, the Inception-v3 of the FID
    and torchvision's, and LPIPS and its trunks: state dicts as `.pkl`, `.pt`, `.pth` or
    `.safetensors`.

    Args:
      path: the file. Its content says what it is, not its name.
      part: which network, as `parts` names them; by default the averaged generator, else the only
        generator.
      **overrides: of the network's factory, for what the file does not tell (`conv_clamp`, ...).

    Raises:
      ValueError: the file is not what it should be, or holds something unknown; no network in it
        is known, or none of the name `part`; or a tensor is missing, unknown or of a wrong shape.
      OSError: it cannot be read.
    """
    found = parts(path)
    converted = convert(path, found[choose(path, found, part)], **overrides)
    return Loaded(converted.network, converted.variables)


def choose(path: str | os.PathLike[str], found: Mapping[str, Part], part: str | None) -> str:
    """The name of the part that is meant: `part`, or the averaged generator, or the only one.

    Raises:
      ValueError: there is none of that name, or several could be meant.
    """
    if part is not None:
        if part not in found:
            raise ValueError(f"{path}: no part {part!r}; it has {', '.join(found)}")
        return part
    generators = [name for name, one in found.items() if one.generates]
    averaged = [name for name in AVERAGED if name in generators]
    chosen = averaged or generators or list(found)
    if not averaged and len(chosen) > 1:
        raise ValueError(f"{path}: say which part to load: {', '.join(found)}")
    return chosen[0]


def convert(path: str | os.PathLike[str], part: Part, **overrides: Any) -> Converted:
    """A part's network, with the file's name in errors."""
    try:
        return part.convert(**overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parts(path: str | os.PathLike[str]) -> dict[str, Part]:
    """The networks of a published weight file, by the names they have there.

    A file that holds the tensors of one network only names none: it is then "generator",
    "discriminator" or "features".

    Raises:
      ValueError: the file is not what it should be, or no network in it is known.
      OSError: it cannot be read.
    """
    tree = read(path)
    try:
        found = _parts(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path}: no known network; {_described(tree)}")
    return found


def _parts(tree: Any) -> dict[str, Part]:
    if isinstance(tree, Persistent):
        return _of_modules({"network": tree})
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
    if not isinstance(tree, Mapping):
        return {}
    modules = {k: v for k, v in tree.items() if isinstance(v, Persistent)}
    if modules:
        return _of_modules(modules)
    if (kind := _kind(tensors := _tensors(tree))) is not None:
        name = "generator" if kind.generates else "features" if kind.purpose else "discriminator"
        return {name: _part(kind, tensors)}
    found: dict[str, Part] = {}
    average = tree.get("latent_avg")
    for name, inner in tree.items():
        if not isinstance(inner, Mapping):
            continue
        if (kind := _kind(tensors := _tensors(inner))) is not None:
            options = {}
            if kind.convert is stylegan2.rosinality_generator and average is not None:
                options = {"average": average}
            found[str(name)] = _part(kind, tensors, **options)
        elif name in ("models", "state_dict", "state_dicts"):
            found |= _parts(inner)
    return found


def _part(kind: Kind, tensors: Mapping[str, np.ndarray], **options: Any) -> Part:
    make = partial(kind.convert, tensors, **options)
    return Part(kind.name, make, kind.generates, kind.purpose)


def _of_modules(modules: Mapping[str, Persistent]) -> dict[str, Part]:
    found = {}
    for name, module in modules.items():
        if module.class_name in ("Generator", "Discriminator"):
            generates = module.class_name == "Generator"
            kind = f"{module.class_name.lower()} of an NVIDIA snapshot"
            make = partial(snapshots.from_module, module)
            found[str(name)] = Part(kind, make, generates)
    return found


def _tensors(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a flat dict; without the prefix that data-parallel training leaves."""
    found = {str(k): v for k, v in tree.items() if isinstance(v, np.ndarray)}
    if found and all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _kind(tensors: Mapping[str, np.ndarray]) -> Kind | None:
    return next((kind for kind in KINDS if tensors and kind.fits(tensors)), None)


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping):
        names = ", ".join(map(str, list(tree)[:4]))
        return f"it is a dict of {len(tree)} entries: {names}{', ...' if len(tree) > 4 else ''}"
    return f"it is a {type(tree).__name__}"

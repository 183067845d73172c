"""The families of generators that kd_jax distils, and the family of a network."""

from collections.abc import Sequence

from kd_jax.core.family import Family, Interface
from kd_jax.core.network import Network
from kd_jax.models import (
    biggan,
    biggan_deep,
    dcgan,
    inpainting,
    mlp,
    r3gan,
    realesrgan,
    resnet,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    tinygan,
    translation,
)

FAMILIES: tuple[Family, ...] = (
    dcgan.FAMILY,
    mlp.FAMILY,
    resnet.FAMILY,
    biggan.FAMILY,
    biggan_deep.FAMILY,
    tinygan.FAMILY,
    stylegan1.FAMILY,
    stylegan2.FAMILY,
    stylegan3.FAMILY,
    r3gan.FAMILY,
    inpainting.FAMILY,
    *realesrgan.FAMILIES,
    *superres.FAMILIES,
    *translation.FAMILIES,
)
"""All families, each described beside its architecture."""


def family_of(network: Network, families: Sequence[Family] = FAMILIES) -> Family:
    """The family whose generators have this network's Linen module.

    Args:
      network: a generator.
      families: the families to choose from.

    Raises:
      ValueError: there is none.
    """
    family = find_family(network, families)
    if family is not None:
        return family
    kind = "no Linen module" if network.module is None else type(network.module).__name__
    raise ValueError(
        f"the network is of no known family: its module is {kind}, and the families are "
        f"{', '.join(family.name for family in families)}; pass family=kd_jax.Family(...)"
    )


def find_family(network: Network, families: Sequence[Family] = FAMILIES) -> Family | None:
    """As `family_of`, but None if there is none."""
    matching = (family for family in families if isinstance(network.module, family.modules))
    return next(matching, None)


def family_named(name: str, families: Sequence[Family] = FAMILIES) -> Family:
    """The family of this name, to choose a student from.

    Raises:
      ValueError: there is none, or it offers no students.
    """
    offered = {family.name: family for family in families if family.student is not None}
    if name not in offered:
        raise ValueError(f"no students of a family {name!r}; there are {', '.join(offered)}")
    return offered[name]


def make_discriminator(family: Family, interface: Interface) -> Network:
    """The family's discriminator, or one that fits the images.

    A DCGAN's where it has the image's size, a StyleGAN2's for other powers of two, and a patch
    discriminator otherwise and for images of any size.
    """
    if family.discriminator is not None:
        return family.discriminator(interface)
    size, square = interface.size, interface.output[0] == interface.output[1]
    if interface.takes_images or not square:
        return translation.patch_discriminator(32, norm=None)
    if size in dcgan.SIZES:
        return dcgan.discriminator(size, 32, classes=interface.classes)
    if size >= 8 and size & (size - 1) == 0:
        return stylegan2.discriminator(
            size, channels=interface.channels, classes=interface.classes, channel_base=4096
        )
    return translation.patch_discriminator(32, norm=None)

"""Methods by name: each makes the losses of a distillation from what is at hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from kd_jax import losses, methods
from kd_jax.core.axes import tensors
from kd_jax.core.network import Network, connect_to
from kd_jax.core.objective import Forward, Term
from kd_jax.core.setup import PerNetwork
from kd_jax.core.types import Array, Variables


class Parts(NamedTuple):
    """The parts that a method may use.

    Attributes:
      student, teacher: the generators.
      teacher_variables: the teacher's variables.
      inputs: their inputs, arrays or `ShapeDtypeStruct`s.
      taps: names of features that both have.
      adversarial: the adversarial losses of both networks.
      discriminator_taps: names of the student's discriminator's features.
      teacher_discriminator_taps: those of the file's discriminator; empty without one.
      layers: names of the extractor's features; empty without perceptual weights.
      heads: LPIPS's weights of their channels, by name; None for equal weights.
      steps: the number of training steps.
    """

    student: Network
    teacher: Network
    teacher_variables: Variables
    inputs: Sequence[Any]
    taps: Sequence[str]
    adversarial: PerNetwork
    discriminator_taps: Sequence[str]
    teacher_discriminator_taps: Sequence[str]
    layers: Sequence[str]
    heads: Mapping[str, Any] | None
    steps: int

    def connected(self) -> Network:
        """The student with learned projections of its taps to the teacher's widths."""
        return connect_to(self.student, self.teacher, self.taps, *self.inputs)


class Method(NamedTuple):
    """A method.

    Attributes:
      about: one line for people.
      losses: `parts -> losses of both networks`.
      needs: fields of `Parts` that must not be empty.
      adversarial: whether the student has a discriminator.
      connects: whether the student's features are connected to the teacher's.
      perceptual: whether its losses include the perceptual distance, if there is an extractor.
    """

    about: str
    losses: Callable[[Parts], PerNetwork]
    needs: tuple[str, ...] = ()
    adversarial: bool = True
    connects: bool = False
    perceptual: bool = False


NEEDS = {
    "taps": "features that the student and the teacher have in common",
    "layers": "weights of a perceptual network (perceptual=[...], of commands --perceptual FILE)",
    "teacher_discriminator_taps": "a file with the teacher's discriminator",
}
"""The parts that methods need, in words."""


def _pixel(parts: Parts) -> PerNetwork:
    del parts
    return PerNetwork({"pixel": Term(_l1, 1.0)}, {})


def _l1(f: Forward) -> Array:
    return losses.response.l1(f.student.output, f.teacher.output)


def _directions(parts: Parts) -> Array:
    """Directions of the latent that change images most: of the styles, where there are any."""
    leaves = tensors(parts.teacher_variables)
    if parts.teacher.mapping is not None:
        named = [leaf for path, leaf in leaves.items() if path.endswith("affine/weight")]
        return methods.sefa_directions([jnp.asarray(leaf) for leaf in named])
    length = parts.inputs[0].shape[1]
    first = next(leaf for leaf in leaves.values() if leaf.ndim == 2 and leaf.shape[0] >= length)
    return methods.sefa_directions([jnp.asarray(first[:length].T)])


METHODS = {
    "response": Method(
        "L1 to the teacher's image, and a discriminator",
        lambda p: methods.response(adversarial=p.adversarial),
    ),
    "pixel": Method("L1 to the teacher's image, without a discriminator", _pixel, (), False),
    "adversarial": Method(
        "a discriminator alone: a GAN on the teacher's images, without their pairing",
        lambda p: p.adversarial,
    ),
    "tinygan": Method(
        "TinyGAN (Chang & Lu 2020): L1 of the discriminator's features, and a fading L1",
        lambda p: methods.tinygan(p.discriminator_taps, p.steps, adversarial=p.adversarial),
    ),
    "gan_compression": Method(
        "GAN Compression (Li et al. 2020): L1, and connected features",
        lambda p: methods.gan_compression(p.taps, adversarial=p.adversarial),
        ("taps",),
        connects=True,
    ),
    "cat": Method(
        "CAT (Jin et al. 2021): L1, and kernel alignment of features",
        lambda p: methods.cat(p.taps, adversarial=p.adversarial),
        ("taps",),
    ),
    "omgd": Method(
        "OMGD (Ren et al. 2021): structure, style, content and smoothness; no discriminator",
        lambda p: methods.omgd(p.layers),
        ("layers",),
        adversarial=False,
        perceptual=True,
    ),
    "stylekd": Method(
        "StyleKD (Xu et al. 2022): L1, and relations along latent directions",
        lambda p: methods.stylekd(_directions(p), p.taps, p.layers, adversarial=p.adversarial),
        ("taps",),
        perceptual=True,
    ),
    "mobile_stylegan": Method(
        "MobileStyleGAN (Belousov 2021): L1 and L2 at several scales and of wavelets",
        lambda p: methods.mobile_stylegan(adversarial=p.adversarial),
    ),
    "aguinaldo": Method(
        "Aguinaldo et al. 2019: mean squared error beside the adversarial loss",
        lambda p: methods.aguinaldo(adversarial=p.adversarial),
    ),
    "soft_label": Method(
        "the discriminator's prediction for the teacher's image as a label",
        lambda p: methods.soft_label(adversarial=p.adversarial),
    ),
    "discriminator_distillation": Method(
        "the student's discriminator learns the predictions of the teacher's",
        lambda p: methods.discriminator_distillation(adversarial=p.adversarial),
        ("teacher_discriminator_taps",),
    ),
    "dgl": Method(
        "DGL-GAN (Tian et al. 2023): a second adversarial loss, by the teacher's discriminator",
        lambda p: methods.dgl(adversarial=p.adversarial),
        ("teacher_discriminator_taps",),
    ),
    "dcd": Method(
        "DCD (Hu et al. 2023): features compared by the teacher's discriminator",
        lambda p: methods.dcd(p.taps, p.teacher_discriminator_taps, adversarial=p.adversarial),
        ("taps", "teacher_discriminator_taps"),
        connects=True,
    ),
}
"""The methods by their names; any other is a function of a researcher's own."""


def make_losses(name: str, method: Method, parts: Parts) -> tuple[Network, PerNetwork]:
    """The student, connected if the method needs it, and the losses of a method.

    With an extractor, methods without perceptual distance of their own get one.

    Args:
      name: the method's name, for messages.
      method: the method.
      parts: what is at hand.

    Raises:
      ValueError: the method needs a part that is not there.
    """
    for need in method.needs:
        if not getattr(parts, need):
            raise ValueError(f"the method {name} needs {NEEDS[need]}")
    generator, discriminator = method.losses(parts)
    if parts.layers and not method.perceptual and name != "adversarial":
        generator = {**generator, "perceptual": Term(_lpips(parts.heads), 1.0)}
    student = parts.connected() if method.connects else parts.student
    return student, PerNetwork(generator, discriminator)


def _lpips(heads: Any) -> Callable[[Forward], Array]:
    """LPIPS between the student's and the teacher's image, with these weights of channels."""

    def term(f: Forward) -> Array:
        ours, theirs = (f.extractor(images)[1] for images in (f.student.output, f.teacher.output))
        return losses.perceptual.lpips(dict(ours), dict(theirs), heads)

    return term

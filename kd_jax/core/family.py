"""Families of generators: what distillation must know of an architecture, in one record.

A family is described once, beside its architecture; pruning, distillation and the commands read
only this description.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.core.axes import Axes
from kd_jax.core.network import Network
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Array, Variables


class Interface(NamedTuple):
    """The inputs and the output of a generator; a student has those of its teacher.

    Attributes:
      inputs: shapes and dtypes for a batch of one: latents `[1, N]` float, or images `[1, H, W, C]`
        float, and, of a class-conditional generator, labels `[1]` int. Further inputs may be masks
        `[1, H, W, 1]` float, or tokens `[1, L]` int.
      output: `(H, W, C)` of the image, in [-1, 1].
      classes: the number of classes of the labels; 0 without labels.
    """

    inputs: tuple[jax.ShapeDtypeStruct, ...]
    output: tuple[int, ...]
    classes: int

    @property
    def takes_images(self) -> bool:
        """Whether the generator maps images to images; otherwise it maps latents to images."""
        return len(self.inputs[0].shape) == 4

    @property
    def latent(self) -> int:
        """The length of the latents."""
        return int(self.inputs[0].shape[1])

    @property
    def size(self) -> int:
        """The height of the image."""
        return self.output[0]

    @property
    def channels(self) -> int:
        """The channels of the image."""
        return self.output[2]

    @property
    def scale(self) -> int:
        """Of a generator of images from images: how many times larger the output's sides are."""
        return self.output[0] // self.inputs[0].shape[1]

    def describe(self) -> str:
        """The interface in words: `latents [64] and labels of 10 classes -> images 16x16x1`."""
        inputs = " and ".join(self._describe_input(number) for number in range(len(self.inputs)))
        return f"{inputs} -> images {'x'.join(map(str, self.output))}"

    def _describe_input(self, number: int) -> str:
        shape = list(self.inputs[number].shape[1:])
        if jnp.issubdtype(self.inputs[number].dtype, jnp.integer):
            return f"tokens {shape}" if shape else f"labels of {self.classes} classes"
        if len(shape) == 3:
            return f"{'masks' if number and shape[2] == 1 else 'images'} {shape}"
        return f"latents {shape}"

    @property
    def takes_tokens(self) -> bool:
        """Whether an input is sequences of tokens `[B, L]`, such as captions."""
        return any(jnp.issubdtype(x.dtype, jnp.integer) and len(x.shape) > 1 for x in self.inputs)

    def check_drawn(self) -> None:
        """Checks that inputs can be drawn at random.

        Raises:
          ValueError: the generator takes tokens, whose distribution is that of captions.
        """
        if self.takes_tokens:
            raise ValueError(
                f"a generator of {self.describe()} cannot be sampled: its tokens are sequences of "
                "captions, which are not drawn at random"
            )


def interface_of(
    network: Network, variables: Variables, inputs: Sequence[Any], classes: int
) -> Interface:
    """The interface of a generator, from an abstract evaluation.

    Args:
      network: the generator.
      variables: its variables, arrays or `ShapeDtypeStruct`s.
      inputs: its inputs for a batch of one, arrays or `ShapeDtypeStruct`s.
      classes: the number of classes of its labels; 0 without labels.

    Raises:
      ValueError: it does not generate images.
    """
    like = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)
    output = output_shape(network, variables, like)
    if len(output) != 3:
        raise ValueError(
            f"a generator of images is needed; the outputs of this network have shape {output}"
        )
    return Interface(like, output, classes)


def output_shape(network: Network, variables: Variables, inputs: Sequence[Any]) -> tuple[int, ...]:
    """The shape of an output without the batch, from an abstract evaluation; as `interface_of`."""
    output = jax.eval_shape(lambda v, *x: network.apply(v, *x)[0], variables, *inputs)
    return tuple(output.shape[1:])


def scale_widths(widths: Any, share: float, *, multiple: int = 1, distinct: bool = False) -> Any:
    """A share of a width or of each width of a sequence, rounded down, but at least `multiple`.

    Args:
      widths: a positive int, or a sequence of them.
      share: the share, in (0, 1].
      multiple: results are multiples of it.
      distinct: whether different widths remain different: the larger one is then increased. For
        architectures in which layers of equal widths are connected in another way.

    Returns:
      An int, or a tuple.
    """
    scaled: dict[int, int] = {}
    for width in sorted({widths} if isinstance(widths, int) else set(widths)):
        # The addend: a share that is a quotient of two widths must give that width.
        least = max(scaled.values(), default=0) + multiple if distinct else multiple
        count = math.floor(width * share / multiple + 1e-9) * multiple
        scaled[width] = min(max(count, least), width)
    return scaled[widths] if isinstance(widths, int) else tuple(scaled[width] for width in widths)


def narrowed(*fields: str, **options: Any) -> Callable[[Any, float], nn.Module]:
    """`Family.narrow` of modules whose widths are in these fields; options of `scale_widths`."""

    def narrow(module: Any, share: float) -> nn.Module:
        widths = {name: scale_widths(getattr(module, name), share, **options) for name in fields}
        narrower: nn.Module = module.clone(**widths)
        return narrower

    return narrow


def last_of_each_side(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The taps at which features are compared by default: the last of each height, in their order.

    Args:
      shapes: the shapes of a generator's taps `[B, H, W, C]`; taps of other ranks are left out.
    """
    last = {shape[1]: name for name, shape in shapes.items() if len(shape) == 4}
    return [name for name in shapes if name in last.values()]


def evenly_spaced_taps(shapes: Mapping[str, tuple[int, ...]], count: int = 4) -> list[str]:
    """`count` taps spread over the depth, the last one among them, for networks of one size."""
    names = [name for name, shape in shapes.items() if len(shape) == 4]
    step = max(len(names) / count, 1)
    chosen = {round(len(names) - 1 - step * number) for number in range(min(count, len(names)))}
    return [name for index, name in enumerate(names) if index in chosen]


class Family(NamedTuple):
    """A family of generators, as distillation sees it.

        FAMILY = Family(
            name="dcgan",
            modules=(Generator,),
            axes=generator_axes,
            narrow=narrowed("widths"),
            discriminator=lambda i: discriminator(i.size, 64, classes=i.classes),
            student=lambda i, width: generator(
                i.size, width, channels=i.channels, classes=i.classes
            ),
        )

    Attributes:
      name: a short name, by which commands choose students of another family.
      modules: the Linen modules of its generators, by which a network is recognised.
      narrow: `(module, share) -> module` with about this share of the channels, nondecreasing in
        the share; 1 is the module itself.
      axes: `variables -> axes`: the channels of the generator's variables, for pruning.
      discriminator: `interface -> network`: a discriminator for a student's images, which takes
        labels after the images if the interface has classes; None for a family that is distilled
        without one.
      student: `(interface, width) -> network`: a generator with another family's interface, whose
        cost does not decrease in the width; raises a ValueError if the interface does not fit. None
        for a family that offers none.
      taps: `shapes of the taps -> names`: the features that methods compare by default.
      method: the name of the default method; the methods are those of
        `kd_jax.distillation.METHODS`.
      patch: of generators of images from images: the side of the outputs to train on.
      degrade: of generators of images from images: `(numbers [B] int, images [B, H, W, C]) ->
        inputs`, a pure function, equal for equal numbers and images; the images, in [-1, 1], are
        those of the outputs. By default the images, smaller by the generator's scale.
    """

    name: str
    modules: tuple[type[nn.Module], ...]
    narrow: Callable[[Any, float], nn.Module]
    axes: Callable[[Variables], Axes]
    discriminator: Callable[[Interface], Network] | None = None
    student: Callable[[Interface, int], Network] | None = None
    taps: Callable[[Mapping[str, tuple[int, ...]]], list[str]] = last_of_each_side
    method: str = "mobile_stylegan"
    patch: int = 128
    degrade: Callable[[Array, Array], tuple[Array, ...]] | None = None

    def __repr__(self) -> str:
        return record_repr(self)

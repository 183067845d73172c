"""Generators as pure functions of described arrays, which converters write in other formats.

    program = make_program(kd_jax.load("runs/small"), truncation=0.7)
    images = program.apply(*program.draw(seed=0, count=4))

A program is a network in evaluation mode: with stored statistics, without dropout and with fixed
noise. Its variables are constants.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from kd_jax.core.family import Interface, output_shape
from kd_jax.core.network import Network
from kd_jax.core.types import Array, Variables
from kd_jax.model import Model
from kd_jax.models.classifier import Classifier

BATCH, HEIGHT, WIDTH = "batch", "height", "width"

PARTS = ("mapping", "synthesis")
"""The parts of a style network."""

LABELS = ("integer", "one-hot")

PICTURES = ("images", "masks")
"""Inputs with a height and a width, which are equal."""

IMAGES = "-1 to 1"
"""The values of images, in words."""

LARGEST_MULTIPLE = 1 << 9
"""The largest multiple of image sides that is tried."""

Arrays = tuple[np.ndarray, ...]
Draw = Callable[[np.random.Generator, int, tuple[int, int]], Arrays]
"""`(random, count, sides of images) -> inputs`."""


class _Scope(jax_export.SymbolicScope):
    """A scope that a copy of a symbol shares: one with constraints cannot be copied."""

    def __deepcopy__(self, memo: Any) -> "_Scope":
        return self


class Slot(NamedTuple):
    """An input or the output of a program.

    Attributes:
      name: its name in the file.
      shape: its axes: numbers, and names of those of any length, such as `batch` or `4*height`.
      dtype: "float32" or "int32".
      values: the values in words: "standard normal", "-1 to 1".
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    values: str

    @property
    def dynamic(self) -> bool:
        """Whether an axis has any length."""
        return any(isinstance(n, str) for n in self.shape)

    @property
    def multiple(self) -> int:
        """The number that the height and the width are multiples of; 1 if they are numbers."""
        sides = (n for n in self.shape if isinstance(n, str))
        return max((int(n.rpartition("*")[0] or 1) for n in sides), default=1)


class Program(NamedTuple):
    """A function of arrays with described inputs and one described output.

    Attributes:
      name: in words, for messages.
      inputs: its inputs.
      output: its output.
      of: `of(network, variables, *inputs) -> output`, the same of other networks.
      network: its network.
      variables: the variables of its network, constants of the program.
      sample: draws inputs.
      sides: heights and widths of the images to draw: one, or several if they are dynamic.
      least: the least values of the names in the axes; 1 for others.
    """

    name: str
    inputs: tuple[Slot, ...]
    output: Slot
    of: Callable[..., Array]
    network: Network
    variables: Variables
    sample: Draw
    sides: tuple[tuple[int, int], ...] = ((1, 1),)
    least: Mapping[str, int] = {}

    def apply(self, *inputs: Any) -> Array:
        """The output for these inputs."""
        return self.of(self.network, self.variables, *inputs)

    @property
    def batch(self) -> int | None:
        """The examples in a batch; None for any number."""
        first = self.inputs[0].shape[0]
        return first if isinstance(first, int) else None

    def draw(self, seed: int, count: int, variant: int = 0) -> Arrays:
        """Example inputs.

        Args:
          seed: of the numbers.
          count: the number of examples.
          variant: an index in `sides`.
        """
        drawn = self.sample(np.random.default_rng(seed), count, self.sides[variant])
        return tuple(np.asarray(x, slot.dtype) for x, slot in zip(drawn, self.inputs, strict=True))

    def arguments(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The inputs as abstract arrays, with symbolic sides where they are dynamic."""
        scope = _Scope([f"{name} >= {n}" for name, n in self.least.items()])
        return tuple(
            jax.ShapeDtypeStruct(
                jax_export.symbolic_shape(", ".join(map(str, slot.shape)), scope=scope), slot.dtype
            )
            for slot in self.inputs
        )

    def describe(self) -> dict[str, Any]:
        """The inputs and the output as JSON values."""
        slots = {"inputs": self.inputs, "outputs": (self.output,)}
        return {
            kind: [{**slot._asdict(), "shape": list(slot.shape)} for slot in group]
            for kind, group in slots.items()
        }


def make_program(
    model: Model,
    *,
    batch: int | None = None,
    size: int | tuple[int, int] | str | None = None,
    truncation: float | str | None = None,
    labels: str = "integer",
    part: str | None = None,
    options: Mapping[str, Any] = {},
) -> Program:
    """The program of a generator.

    Args:
      model: a generator of images from latents or from images, perhaps with labels, masks or
        tokens; a generator of waves from waves; or a classifier of images.
      batch: the examples in a batch; by default any number.
      size: for a generator that takes images, their sides `(height, width)`, one number for both,
        or "any"; by default those that the model describes.
      truncation: the truncation psi, or "input" for an input of the program; by default none.
      labels: "integer" for `[B]`, or "one-hot" for `[B, classes]`.
      part: of a style network, "mapping" from latents to styles, or "synthesis" from styles to
        images; by default both.
      options: further keyword options of the network's `apply`, such as `{"noise": "none"}`.

    Raises:
      ValueError: it is another network, or an argument does not fit it; nothing is computed before.
    """
    interface, values_of_output = _interface(model)
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch} is not positive")
    if labels not in LABELS:
        raise ValueError(f"labels={labels!r} is neither {' nor '.join(map(repr, LABELS))}")
    if labels == "one-hot" and not interface.classes:
        raise ValueError(f"labels={labels!r}: the generator takes {interface.describe()}")
    if part is not None and (part not in PARTS or model.network.mapping is None):
        fitting = "has no parts" if model.network.mapping is None else f"has {', '.join(PARTS)}"
        raise ValueError(f"part={part!r}: the generator {fitting}")
    if part == "synthesis" and truncation is not None:
        raise ValueError(f"truncation={truncation} is an option of the mapping")
    if isinstance(truncation, str) and truncation != "input":
        raise ValueError(f"truncation={truncation!r} is neither a number nor 'input'")
    names: tuple[int | str, ...] = (batch or BATCH,)
    images, sides, least = _image_axes(model, size)
    slots: list[Slot] = []
    for number, like in enumerate(interface.inputs):
        whole = jnp.issubdtype(like.dtype, jnp.integer)
        if len(like.shape) == 4 and number and like.shape[3] == 1:
            slots.append(Slot("masks", (*names, *images, 1), "float32", "0 or 1, 1 where unknown"))
        elif len(like.shape) == 4:
            slots.append(Slot("images", (*names, *images, like.shape[3]), "float32", IMAGES))
        elif len(like.shape) == 3:
            slots.append(Slot("waves", (*names, *like.shape[1:]), "float32", IMAGES))
        elif whole and len(like.shape) == 2:
            vocabulary = getattr(model.network.module, "vocabulary", None)
            if vocabulary is None:
                raise ValueError("the generator takes tokens, and does not state its vocabulary")
            shape = (*names, like.shape[1])
            slots.append(Slot("tokens", shape, "int32", f"0 to {vocabulary - 1}"))
        elif whole:
            shape = (*names, interface.classes) if labels == "one-hot" else names
            values = "one 1 per row" if labels == "one-hot" else f"0 to {interface.classes - 1}"
            dtype = "float32" if labels == "one-hot" else "int32"
            slots.append(Slot("labels", shape, dtype, values))
        else:
            slots.append(Slot("latents", (*names, like.shape[1]), "float32", "standard normal"))
    fixed = dict(options)
    if isinstance(truncation, int | float):
        fixed["truncation"] = float(truncation)
    if truncation == "input":
        slots.append(Slot("truncation", (), "float32", "0 to 1"))

    def sample(random: np.random.Generator, count: int, sides: tuple[int, int]) -> Arrays:
        return tuple(_draw(slot, random, count, sides) for slot in slots)

    def arguments(inputs: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        named = dict(zip((slot.name for slot in slots), inputs, strict=True))
        psi = {"truncation": named.pop("truncation")} if truncation == "input" else {}
        if labels == "one-hot":
            named["labels"] = jnp.argmax(named["labels"], axis=1).astype(jnp.int32)
        return list(named.values()), {**fixed, **psi}

    def generate(network: Network, variables: Variables, *inputs: Any) -> Array:
        values, chosen = arguments(inputs)
        return network.apply(variables, *values, **chosen)[0].astype(jnp.float32)

    def map_styles(network: Network, variables: Variables, *inputs: Any) -> Array:
        assert network.mapping is not None
        values, chosen = arguments(inputs)
        return network.mapping(variables, *values, **chosen).astype(jnp.float32)

    def synthesize(network: Network, variables: Variables, styles: Any) -> Array:
        assert network.synthesis is not None
        return network.synthesis(variables, styles, **options)[0].astype(jnp.float32)

    def sample_styles(random: np.random.Generator, count: int, sides: tuple[int, int]) -> Arrays:
        return (np.asarray(map_styles(*own, *sample(random, count, sides))),)

    own = model.network, model.variables
    apply = generate if part is None else map_styles
    outputs = _outputs(partial(apply, *own), slots, sides, truncation)
    taken = tuple(slots)
    if part == "synthesis":
        apply, taken = (
            synthesize,
            (Slot("styles", (*names, *outputs), "float32", "styles of the mapping"),),
        )
        outputs = interface.output
    shape = (*names, *outputs)
    if len(outputs) == 3 and not part and interface.takes_images and isinstance(images[0], str):
        factors = [n // m for n, m in zip(outputs[:2], sides[0], strict=True)]
        axes = (_times(axis, factor) for axis, factor in zip(images, factors, strict=True))
        shape = (*names, *axes, outputs[2])
    output = Slot("output", shape, "float32", "styles" if part == "mapping" else values_of_output)
    draw = sample_styles if part == "synthesis" else sample
    name = f"{part} of a generator" if part else "a generator"
    described = f"{name} of {interface.describe()}"
    if values_of_output != IMAGES:
        inputs_text = " and ".join(slot.name for slot in slots)
        described = f"a network from {inputs_text} to {values_of_output}"
    return Program(described, taken, output, apply, *own, draw, sides, least)


def _interface(model: Model) -> tuple[Interface, str]:
    """The inputs and the output of a network that can be exported, and the values of its output."""
    inputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in model.inputs)
    output = output_shape(model.network, model.variables, inputs)
    interface = Interface(inputs, output, model.classes)
    if model.generates and len(output) == 3:
        return interface, IMAGES
    if len(output) == 2 and len(inputs[0].shape) == 3:
        return interface, "waves"
    if isinstance(model.network.module, Classifier):
        return interface, "logits"
    raise ValueError(
        f"a generator is needed, not {model.info.get('kind', 'this network')}: its outputs have "
        f"shape {list(output)}"
    )


def _structs(slots: list[Slot], sides: tuple[int, int]) -> list[jax.ShapeDtypeStruct]:
    """The inputs of a batch of one."""
    shapes = [
        (1, *sides, slot.shape[3]) if slot.name in PICTURES else (1, *slot.shape[1:])
        for slot in slots
    ]
    return [
        jax.ShapeDtypeStruct(() if slot.name == "truncation" else shape, slot.dtype)
        for slot, shape in zip(slots, shapes, strict=True)
    ]


def _outputs(
    apply: Callable[..., Array],
    slots: list[Slot],
    sides: tuple[tuple[int, int], ...],
    truncation: float | str | None,
) -> tuple[int, ...]:
    """The output's shape for the first sides, without the batch."""
    try:
        return tuple(jax.eval_shape(apply, *_structs(slots, sides[0])).shape[1:])
    except TypeError:
        if truncation is None:
            raise
        raise ValueError(f"truncation={truncation}: the generator takes no truncation") from None


def _image_axes(
    model: Model, size: int | tuple[int, int] | str | None
) -> tuple[tuple[int | str, int | str], tuple[tuple[int, int], ...], dict[str, int]]:
    """Height and width of the input images, the sides of images to draw, and the least names."""
    interface, _ = _interface(model)
    if not interface.takes_images:
        if size is not None:
            raise ValueError(f"size={size}: the generator takes {interface.describe()}")
        return (1, 1), ((1, 1),), {}
    height, width = interface.inputs[0].shape[1:3]

    def accepts(sides: tuple[int, int]) -> bool:
        images, *rest = (
            jax.ShapeDtypeStruct((1, *sides, x.shape[3]) if len(x.shape) == 4 else x.shape, x.dtype)
            for x in interface.inputs
        )
        try:
            jax.eval_shape(
                lambda v, *x: model.network.apply(v, *x)[0], model.variables, images, *rest
            )
        except (ValueError, TypeError):
            return False
        return True

    if size is None or isinstance(size, int | tuple):
        sides = (height, width) if size is None else (size, size) if isinstance(size, int) else size
        if min(sides) < 1 or not accepts(sides):
            raise ValueError(f"size={size}: the network does not take images of {sides}")
        return sides, (sides,), {}
    if size != "any":
        raise ValueError(f"size={size!r} is neither a number, a pair of numbers nor 'any'")
    powers = itertools.takewhile(
        lambda n: n <= LARGEST_MULTIPLE, (1 << power for power in itertools.count())
    )
    step = next((n for n in powers if accepts((height + n, width + n))), None)
    if step is None or height % step or width % step:
        raise ValueError(
            f"size='any': the network takes images of {height}x{width}, and of no other size that "
            f"is up to {LARGEST_MULTIPLE} larger"
        )
    # Small images, of several proportions, where they fit.
    low = step * max(1, math.ceil(32 / step))
    drawn: tuple[tuple[int, int], ...] = ((low, low + step), (low + 2 * step, low))
    if not all(accepts(sides) for sides in drawn):
        low = min(height, width)
        drawn = ((height, width), (height + step, width + 2 * step))
    axes = (_times(HEIGHT, step), _times(WIDTH, step))
    return axes, drawn, dict.fromkeys((HEIGHT, WIDTH), low // step)


def _times(axis: int | str, factor: int) -> int | str:
    """An axis times a number."""
    if isinstance(axis, int):
        return factor * axis
    number, _, name = axis.rpartition("*")
    factor *= int(number or 1)
    return name if factor == 1 else f"{factor}*{name}"


def _draw(
    slot: Slot, random: np.random.Generator, count: int, sides: tuple[int, int]
) -> np.ndarray:
    """Values for an input."""
    if slot.name == "truncation":
        return np.asarray(random.uniform(0.3, 1))
    if slot.name in ("labels", "tokens"):
        lengths = [int(n) for n in slot.shape[1:]]
        if slot.dtype == "float32":
            return np.eye(lengths[0])[random.integers(lengths[0], size=count)]
        largest = int(slot.values.rpartition(" ")[2])
        return random.integers(largest + 1, size=(count, *lengths))
    if slot.name == "latents":
        return random.standard_normal((count, int(slot.shape[1])))
    channels = int(slot.shape[-1])
    spans = sides if slot.name in PICTURES else (int(slot.shape[1]), 1)
    # Patches of 4x4 pixels and noise: neither flat nor white.
    coarse = random.uniform(-1, 1, (count, *(-(-n // 4) for n in spans), channels))
    patches = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : spans[0], : spans[1]]
    if slot.name == "masks":
        return patches > 0.5
    values = np.clip(patches + 0.1 * random.standard_normal(patches.shape), -1, 1)
    return values[:, :, 0] if slot.name == "waves" else values

"""The examples of a distillation: the generators' inputs, with the teacher's answers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data as kd_data
from kd_jax.core.family import Family, Interface
from kd_jax.core.types import Array, Variables
from kd_jax.data import BatchIterator
from kd_jax.data.source import digest, read_examples, to_batch
from kd_jax.model import Model
from kd_jax.tasks import degradations, real_degradation

DEGRADATIONS = {
    "bicubic": "smaller by a bicubic filter",
    "real": "blur, noise and JPEG compression in two rounds, for Real-ESRGAN",
}
"""How the inputs of a generator that enlarges images are made from images."""

REAL_DEGRADATIONS = 8
"""The number of times that an image is in the set of real degradations, with different draws."""

LATENTS_PER_PASS, IMAGES_PER_PASS = 16, 2
"""Examples of a teacher's pass, which is always of one size, so that its bits are always equal."""

Answer = Callable[[Variables, tuple[Any, ...]], Array]
"""`(variables, inputs [B, ...]) -> outputs [B, H, W, C]`."""


class Examples(NamedTuple):
    """Inputs of a generator: without end, or a numbered set.

    Attributes:
      name: a description of them, for people.
      batches: `(batch size, seed) -> iterator` of batches that `prepare` takes; of a numbered set,
        they have an entry `number`.
      prepare: `batch -> inputs`, a pure function, the inputs as a tuple of arrays `[B, ...]`.
      total: the size of the set; None without end.
      select: of a numbered set, `numbers -> batch`.
      fingerprint: of a numbered set, a digest of everything that determines it.
      targets: whether the images of a batch are what the outputs should be, and the inputs are made
        from them.
    """

    name: str
    batches: Callable[[int, int], BatchIterator]
    prepare: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    total: int | None = None
    select: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    fingerprint: str = ""
    targets: bool = False


def latent_examples(interface: Interface, count: int | None = None) -> Examples:
    """Standard normal latents, and uniform labels if the generator takes labels.

    Args:
      interface: of a generator that takes latents.
      count: the size of a set that is used again and again; None for new latents in every batch.
    """
    classes, length = interface.classes, interface.latent

    def draw(random: np.random.Generator, number: int) -> dict[str, np.ndarray]:
        drawn: dict[str, np.ndarray] = {
            "latents": random.standard_normal((number, length), np.float32)
        }
        if classes:
            drawn["label"] = random.integers(classes, size=number, dtype=np.int32)
        return drawn

    def prepare(batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return (batch["latents"], *([batch["label"]] if classes else []))

    labels = f" with labels of {classes} classes" if classes else ""
    if count is None:
        name = f"latents of {length} numbers{labels}"

        def batches(batch_size: int, seed: int) -> BatchIterator:
            return kd_data.generated_batches(draw, batch_size, seed, name=name, **_part())

        return Examples(name, batches, prepare)
    name = f"{count} latents of {length} numbers{labels}"
    table = draw(np.random.default_rng(0), count)

    def select(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {"number": numbers, **{key: values[numbers] for key, values in table.items()}}

    def numbered(batch_size: int, seed: int) -> BatchIterator:
        def choose(random: np.random.Generator, number: int) -> dict[str, np.ndarray]:
            return select(random.integers(count, size=number))

        return kd_data.generated_batches(choose, batch_size, seed, name=name, **_part())

    fingerprint = digest(name, "numpy.random.default_rng(0)")
    return Examples(name, numbered, prepare, count, select, fingerprint)


class ImageInputs(NamedTuple):
    """How the inputs of a generator are made from images.

    Attributes:
      channels: of the images.
      make: `(numbers [B], images [B, H, W, C]) -> inputs`; images have the height and width of the
        outputs.
      targets: whether the images are what the outputs should be; otherwise they are the inputs.
      name: of the family or the degradation that makes the inputs; empty for the default of all
        families.
      versions: how many numbers, with different inputs, an image has.
    """

    channels: int
    make: Callable[[Any, Any], tuple[Any, ...]]
    targets: bool
    name: str = ""
    versions: int = 1


def image_inputs(
    interface: Interface, family: Family | None, degradation: str = "bicubic"
) -> ImageInputs:
    """The inputs of a generator that takes images: those of its family, or smaller images.

    Args:
      interface: of the generator.
      family: its family; None if it is unknown.
      degradation: a name in `DEGRADATIONS`.

    Raises:
      ValueError: the generator takes further inputs, and its family does not make them; or it does
        not fit the degradation.
    """
    check_degradation(degradation, interface, family)
    if degradation == "real":
        return ImageInputs(
            interface.channels,
            partial(_degrade_numbered, interface.scale),
            True,
            "real degradation",
            REAL_DEGRADATIONS,
        )
    if family is not None and family.degrade is not None:
        return ImageInputs(interface.channels, family.degrade, True, family.name)
    if len(interface.inputs) > 1:
        raise ValueError(
            f"the inputs of a generator of {interface.describe()} cannot be made from images"
        )
    scale = interface.scale
    if scale > 1:
        return ImageInputs(
            interface.channels, lambda _, images: (degradations.downsample(images, scale),), True
        )
    return ImageInputs(interface.inputs[0].shape[3], lambda _, images: (images,), False)


def check_degradation(degradation: str, interface: Interface, family: Family | None) -> None:
    """Refuses degradations that do not fit a generator.

    Raises:
      ValueError: the degradation is unknown; or it is not `bicubic`, and the generator does not
        enlarge RGB images, or has a family with inputs of its own.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(f"no degradation {degradation!r}; there are {', '.join(DEGRADATIONS)}")
    own = family is not None and family.degrade is not None
    if degradation != "bicubic" and (
        own or not interface.takes_images or interface.scale < 2 or interface.channels != 3
    ):
        raise ValueError(
            f"degradation={degradation!r} is for generators that enlarge images of 3 channels, "
            f"and this one is of {interface.describe()}"
        )


def _degrade_numbered(factor: int, numbers: Array, images: Array) -> tuple[Array]:
    """Real degradations that depend only on an image and its number."""

    # A loop, so that the bits of an image do not depend on its batch.
    def degrade(example: tuple[Array, Array]) -> Array:
        number, image = example
        key = jax.random.fold_in(jax.random.key(0), number)
        return real_degradation(key, image[None], factor)[0]

    return (jax.lax.map(degrade, (jnp.asarray(numbers), jnp.asarray(images))),)


def image_examples(
    source: kd_data.Source,
    interface: Interface,
    family: Family | None = None,
    degradation: str = "bicubic",
) -> Examples:
    """The images of a source as inputs, as `image_inputs` makes them.

    Args:
      source: images of the height and width of the generator's outputs.
      interface: of a generator that takes images.
      family: its family.
      degradation: a name in `DEGRADATIONS`.
    """
    inputs = image_inputs(interface, family, degradation)
    count = len(source)
    # Batches have labels, not numbers: the label of an image is its number here.
    numbered = dataclasses.replace(
        source,
        length=inputs.versions * count,
        read=lambda i: (source.read(i % count)[0], i),
        read_labels=lambda: np.arange(inputs.versions * count, dtype=np.int32),
        num_classes=inputs.versions * count,
    )

    def batches(batch_size: int, seed: int) -> BatchIterator:
        return kd_data.batches(numbered, batch_size, seed, **_part())

    def prepare(batch: Mapping[str, Any]) -> tuple[Any, ...]:
        return inputs.make(batch["label"], batch["image"])

    def select(numbers: np.ndarray) -> dict[str, np.ndarray]:
        images, labels, _ = read_examples(numbered, numbers.tolist())
        return to_batch(images, labels)

    made_by = [inputs.name] if inputs.name else []
    fingerprint = digest(source.fingerprint, *made_by)
    name = source.name
    if inputs.versions > 1:
        name = f"{name}, {inputs.versions} times with {inputs.name}"
    return Examples(name, batches, prepare, len(numbered), select, fingerprint, inputs.targets)


def _part() -> dict[str, Any]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def make_answer(model: Model, options: Mapping[str, Any] = {}) -> Answer:
    """The teacher's outputs for any number of inputs, compiled once.

    Every pass has the same number of examples, so that the answer to an input does not depend on
    the batch that it is in, and stored answers are those that a training would compute.

    Args:
      model: the teacher.
      options: keyword options of `network.apply`.
    """
    size = IMAGES_PER_PASS if model.interface.takes_images else LATENTS_PER_PASS

    @jax.jit
    def apply(variables: Variables, inputs: tuple[Any, ...]) -> Array:
        groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), inputs)
        outputs = jax.lax.map(
            lambda group: model.network.apply(variables, *group, **options)[0], groups
        )
        return outputs.reshape(-1, *outputs.shape[2:])

    def answer(variables: Variables, inputs: tuple[Any, ...]) -> Array:
        count = len(inputs[0])
        padding = -count % size
        if padding:
            rows = np.arange(count + padding) % count
            inputs = tuple(x[rows] for x in inputs)
        return apply(variables, inputs)[:count]

    return answer


class AnsweredBatches(Iterator[dict[str, Any]]):
    """Batches of inputs with the teacher's answers, for `kd_jax.tasks.answered`.

    Args:
      examples: the inputs.
      batch_size: the size of the global batch.
      seed: the seed of the order, or of the draws.
      answer: `inputs -> answers`; or, of stored ones, `numbers -> answers`.
      stored: whether the answers are stored.
      real: further batches whose images are the real ones, in whose place the answers stand without
        them; their labels are those of the latents.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        seed: int,
        answer: Callable[[Any], Any],
        *,
        stored: bool = False,
        real: BatchIterator | None = None,
    ):
        self._inputs, self._answer, self._stored = (
            examples.batches(batch_size, seed),
            answer,
            stored,
        )
        self._prepare, self._real = jax.jit(examples.prepare), real

    def __next__(self) -> dict[str, Any]:
        batch = dict(next(self._inputs))
        real = {}
        if self._real is not None:
            images = next(self._real)
            real = {"real": images["image"]}
            if "label" in batch:
                batch["label"] = images["label"]
        numbers = batch.pop("number", batch.get("label"))
        inputs = self._prepare(batch)
        return {
            "inputs": inputs,
            "answer": self._answer(numbers if self._stored else inputs),
            **real,
        }

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch returned: JSON values."""
        real = {} if self._real is None else {"real": self._real.get_state()}
        return {"inputs": self._inputs.get_state(), **real}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a position.

        Raises:
          ValueError: it belongs to other data.
        """
        if ("real" in state) != (self._real is not None):
            raise ValueError("the position belongs to a training with other real images")
        self._inputs.set_state(state["inputs"])
        if self._real is not None:
            self._real.set_state(state["real"])


def teacher_answers(model: Model) -> Callable[[Any], Array]:
    """`inputs -> answers` of a teacher."""
    return partial(make_answer(model), jax.device_put(model.variables))

"""The networks to be measured: trainings' checkpoints and published files, and their images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from kd_jax import checkpoint
from kd_jax.evaluate.paths import slerp
from kd_jax.evaluate.pictures import to_uint8
from kd_jax.network import Network
from kd_jax.pretrained import published
from kd_jax.sharding import BATCH, make_mesh, place, place_batch
from kd_jax.types import Array, Variables

_INNER = ("checkpoints", "checkpoint")
"""Where a training's folder, or that of `python -m kd_jax.pretrained`, has its checkpoints."""

GROUP = 16
"""Examples that a network sees at once when it is sampled."""


class Subject(NamedTuple):
    """A generator to be measured.

    Attributes:
      name: what the report calls it.
      path: where it was read from.
      network: the generator.
      variables: its variables.
      inputs: what it takes, for a batch of one: latents, and labels if it has classes.
      classes: labels are below it; 0 without.
      options: of `network.apply`, by keyword (`truncation`).
    """

    name: str
    path: str
    network: Network
    variables: Variables
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    classes: int
    options: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`; nothing is computed."""
        made = jax.eval_shape(
            lambda v, *x: self.network.apply(v, *x, **self.options)[0], self.variables, *self.inputs
        )
        return made.shape[1:]


def open_subject(spec: str, packages: Sequence[str] = (), **options: Any) -> Subject:
    """A generator from `PATH` or `NAME=PATH`.

    Args:
      spec: the path of a published file, of a folder of checkpoints, or of a training's folder,
        which has them in `checkpoints` (or `checkpoint`); a name before it is the report's.
      packages: further packages whose modules a checkpoint may be of.
      **options: of `network.apply`.

    Raises:
      ValueError: it is none of these, no generator, or does not take the options.
      OSError, CheckpointError: it cannot be read, or is damaged.
    """
    name, equals, path = spec.rpartition("=")
    if not equals:
        name, path = "", spec
    place_ = Path(path).expanduser()
    if place_.is_dir():
        inner = [place_ / part for part in _INNER if (place_ / part).is_dir()]
        within = sorted(str(f.parent.relative_to(place_)) for f in place_.glob(f"**/{_INNER[0]}"))
        if within and not inner:
            raise ValueError(
                f"{path} holds several trainings; name those to measure: {', '.join(within)}"
            )
        made, variables = checkpoint.load_network(inner[0] if inner else place_, packages)
        network, inputs, classes = made
    elif place_.is_file():
        found = published.parts(place_)
        part = found[published.choose(place_, found, None)]
        if not part.generates:
            purpose = f", which is for {part.purpose}" if part.purpose else ""
            raise ValueError(f"{path}: a generator is needed, not {part.kind}{purpose}")
        converted = published.convert(place_, part)
        network, variables, inputs = converted.network, converted.variables, converted.inputs
        classes = int(converted.config.get("classes", 0))
    else:
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    if any(len(like.shape) == 4 for like in inputs):
        raise ValueError(f"{path} takes images, not latents: there is nothing to draw for it")
    subject = Subject(name or _named(place_), path, network, variables, inputs, classes, options)
    try:
        shape = subject.image_shape
    except TypeError as error:
        raise ValueError(f"{path} does not take {', '.join(options)}: {error}") from None
    if len(shape) != 3:
        raise ValueError(f"{path} makes {shape}, not images [H, W, C]")
    return subject


def _named(path: Path) -> str:
    """The last parts that tell trainings apart: `seed0/teacher`."""
    parts = [part for part in path.parts if part not in _INNER]
    return "/".join(parts[-2:]) if path.is_dir() else path.name


def draw(subject: Subject, count: int, seed: int) -> tuple[Array, ...]:
    """The inputs of `count` images: the same latents for every network that takes their shape.

    Latents are standard normal; labels go through the classes in turn.
    """
    inputs: list[Array] = []
    for number, like in enumerate(subject.inputs):
        shape = (count, *like.shape[1:])
        if jnp.issubdtype(like.dtype, jnp.integer):
            inputs.append(jnp.arange(count, dtype=like.dtype) % max(subject.classes, 1))
        else:
            key = jax.random.fold_in(jax.random.key(seed), number)
            inputs.append(jax.random.normal(key, shape, like.dtype))
    return tuple(inputs)


class Samples(NamedTuple):
    """Images as published tools store them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      labels: int32 `[N]`; None of a network without classes.
      clipped: the share of values that lay outside [-1, 1] by more than half a step.
    """

    images: np.ndarray
    labels: np.ndarray | None
    clipped: float


def sampler(subject: Subject, batch: int, mesh: Mesh | None = None) -> Callable[..., Samples]:
    """`sample(inputs, progress=...) -> Samples`: images, clipped to [-1, 1] and rounded to 8 bits.

    It is compiled once for any number of inputs, those of `draw` or `interpolate`. `progress` is
    told after each batch how many images there are.

    The network always sees `GROUP` examples at once, so that the images are the same bits whatever
    the batch and the number of devices: else a different rounding here and there decides between
    two of the 256 levels, which can be seen in the sixth digit of a distance.

    Args:
      subject: the generator.
      batch: how many to make before they leave the devices, rounded up to a whole number of groups
        on each.
      mesh: the devices that share a batch; by default the first one alone.

    Raises:
      ValueError: by the function: an image is not finite; the first is named.
    """

    def of_groups(variables: Variables, inputs: Sequence[Array]) -> Array:
        groups = tuple(x.reshape(-1, GROUP, *x.shape[1:]) for x in inputs)
        made = jax.lax.map(
            lambda group: subject.network.apply(variables, *group, **subject.options)[0], groups
        )
        return made.reshape(-1, *made.shape[2:])

    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    apply = jax.jit(
        jax.shard_map(
            of_groups,
            mesh=mesh,
            in_specs=(PartitionSpec(), BATCH),
            out_specs=BATCH,
            check_vma=False,
        )
    )
    variables = place(subject.variables, mesh)
    batch = -(-batch // (GROUP * mesh.size)) * GROUP * mesh.size

    def sample(
        inputs: Sequence[Any], progress: Callable[[int], None] = lambda done: None
    ) -> Samples:
        count, images, outside = len(inputs[0]), [], 0
        for start in range(0, count, batch):
            chosen = np.arange(start, start + batch) % count
            given = place_batch({str(i): np.asarray(x)[chosen] for i, x in enumerate(inputs)}, mesh)
            made = np.asarray(apply(variables, tuple(given[str(i)] for i in range(len(inputs)))))
            made = made[: count - start]
            finite = np.isfinite(made).all(axis=(1, 2, 3))
            if not finite.all():
                bad = start + int(finite.argmin())
                raise ValueError(f"{subject.name}: image {bad} is not finite")
            outside += int((np.abs(made) > 1 + 1 / 255).sum())
            images.append(to_uint8(made))
            progress(min(start + batch, count))
        joined = np.concatenate(images)
        labels = [np.asarray(x) for x in inputs if jnp.issubdtype(x.dtype, jnp.integer)]
        return Samples(joined, labels[0] if labels else None, outside / joined.size)

    return sample


def interpolate(subject: Subject, seed: int, rows: int, columns: int) -> tuple[np.ndarray, ...]:
    """Inputs along `rows` ways between two latents each, row by row.

    Great circles of z (White 2016), of one class each. Style networks are walked in z as well, so
    that all networks are shown the same way.
    """
    ends = draw(subject, 2 * rows, seed)
    places = np.tile(np.linspace(0.0, 1.0, columns), rows)[:, None]
    walked = []
    for x in ends:
        a, b = (np.repeat(np.asarray(end), columns, axis=0) for end in (x[:rows], x[rows:]))
        if jnp.issubdtype(x.dtype, jnp.integer):
            walked.append(a)
            continue
        first, last = (end.reshape(len(end), -1).astype(np.float64) for end in (a, b))
        walked.append(slerp(first, last, places).reshape(a.shape).astype(np.float32))
    return tuple(walked)

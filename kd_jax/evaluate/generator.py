"""Generators under evaluation, from checkpoints and published files, and their samples."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from kd_jax.core.files import naming
from kd_jax.core.mesh import BATCH, make_mesh, place, place_batch
from kd_jax.core.network import Network
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Array, Variables
from kd_jax.metrics.ppl import slerp
from kd_jax.model import FOLDERS, load
from kd_jax.report.pictures import to_uint8

GROUP = 16
"""The number of examples per forward pass in sampling."""


class EvaluatedGenerator(NamedTuple):
    """A generator under evaluation.

    Attributes:
      name: its name in the report.
      path: the path it was read from.
      network: the generator.
      variables: its variables.
      inputs: its inputs for a batch of one: latents, and labels if it is conditional.
      classes: the number of classes; 0 if it is unconditional.
      options: keyword options of `network.apply` (`truncation`).
    """

    name: str
    path: str
    network: Network
    variables: Variables
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    classes: int
    options: dict[str, Any]

    def __repr__(self) -> str:
        return record_repr(self)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(H, W, C)`, from an abstract evaluation."""
        images = jax.eval_shape(
            lambda v, *x: self.network.apply(v, *x, **self.options)[0], self.variables, *self.inputs
        )
        return images.shape[1:]


def open_generator(
    spec: str,
    packages: Sequence[str] = (),
    file_options: Mapping[str, Any] = {},
    **options: Any,
) -> EvaluatedGenerator:
    """Loads a generator from `[NAME=]PATH[#PART]`; of a training, the latest, as its report does.

    Args:
      spec: the path of a published file, of a checkpoint folder, or of the folder of a training run
        with its checkpoints in `checkpoints` (or `checkpoint`); the optional name is used in the
        report. The part is a network of the file; by default the averaged generator.
      packages: further packages whose modules a checkpoint may contain.
      file_options: of a published file, the options of `kd_jax.load`; a checkpoint has none.
      **options: options of `network.apply`.

    Raises:
      ValueError: the path holds none of these, the network is not a generator, or it does not take
        the options.
      OSError, CheckpointError: the file or checkpoint cannot be read, or is damaged.
    """
    name, path = split_spec(spec)
    path, part = split_part(path)
    with naming(f"read the network {path}"):
        own = file_options if path.is_file() else {}
        model = load(path, part, options=own, packages=packages, latest=True, generator=True)
    network, variables, inputs, classes = model[:4]
    if any(len(like.shape) == 4 for like in inputs):
        raise ValueError(
            f"{path} takes images, not latents: it cannot be sampled; "
            "its experiment's report compares it on held-out images"
        )
    if model.interface.takes_tokens:
        raise ValueError(f"{path} takes the tokens of captions, which are not drawn at random")
    subject = EvaluatedGenerator(
        name or display_name(path) + (f"#{part}" if part else ""),
        str(path),
        network,
        variables,
        inputs,
        classes,
        options,
    )
    try:
        shape = subject.image_shape
    except TypeError as error:
        raise ValueError(f"{path} does not take {', '.join(options)}: {error}") from None
    if len(shape) != 3:
        raise ValueError(f"{path} generates shape {shape}; images [H, W, C] are needed")
    return subject


def split_spec(spec: str) -> tuple[str, Path]:
    """The name and the path of `NAME=PATH`; of `PATH`, an empty name. A path may have a `=`."""
    if "=" not in spec or Path(spec).expanduser().exists():
        return "", Path(spec).expanduser()
    splits = spec.partition("="), spec.rpartition("=")
    existing = (split for split in splits if Path(split[2]).expanduser().exists())
    name, _, path = next(existing, splits[1])
    return name, Path(path).expanduser()


def split_part(path: Path) -> tuple[Path, str | None]:
    """The path and the part of `PATH#PART`; a path without a part may have a `#`."""
    if "#" not in path.name or path.exists():
        return path, None
    stem, _, part = path.name.rpartition("#")
    return path.with_name(stem), part


def display_name(path: Path) -> str:
    """The last two parts of the path, without the checkpoint folder: `seed0/teacher`."""
    parts = [part for part in path.parts if part not in FOLDERS[1:]] or [path.resolve().name]
    return "/".join(parts[-2:]) if path.is_dir() else path.name


def draw(subject: EvaluatedGenerator, count: int, seed: int) -> tuple[Array, ...]:
    """The inputs of `count` images; networks with the same latent shape get the same latents.

    Latents are standard normal; labels cycle through the classes.
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
    """Images in 8 bits, as published tools store them.

    Attributes:
      images: `[N, H, W, C]` uint8.
      labels: int32 `[N]`; None for an unconditional network.
      clipped: the share of values outside [-1, 1] by more than half a quantisation step.
    """

    images: np.ndarray
    labels: np.ndarray | None
    clipped: float


def sampler(
    subject: EvaluatedGenerator, batch: int, mesh: Mesh | None = None, group: int = GROUP
) -> Callable[..., Samples]:
    """`sample(inputs, progress=..., variables=None) -> Samples`, clipped and rounded to 8 bits.

    The function is compiled once for any number of inputs from `draw` or `interpolate`, and for any
    `variables`, by default the subject's. `progress` is called after each batch with the number of
    finished images.

    Every forward pass has `group` examples, so the images are bit-identical for any batch size and
    any number of devices. Otherwise a rounding difference could select another of the 256 levels,
    which is visible in the sixth digit of a distance.

    Args:
      subject: the generator.
      batch: the number of images per transfer from the devices, rounded up to a whole number of
        groups on each device.
      mesh: the devices that share a batch; by default only the first one.
      group: the number of examples of a forward pass.

    Raises:
      ValueError: by the returned function: an image (the first is named) is not finite.
    """

    def generate(variables: Variables, inputs: Sequence[Array]) -> Array:
        groups = tuple(x.reshape(-1, group, *x.shape[1:]) for x in inputs)
        images = jax.lax.map(
            lambda group: subject.network.apply(variables, *group, **subject.options)[0], groups
        )
        return images.reshape(-1, *images.shape[2:])

    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    apply = jax.jit(
        jax.shard_map(
            generate,
            mesh=mesh,
            in_specs=(PartitionSpec(), BATCH),
            out_specs=BATCH,
            check_vma=False,
        )
    )
    own = place(subject.variables, mesh)
    batch = -(-batch // (group * mesh.size)) * group * mesh.size

    def sample(
        inputs: Sequence[Any],
        progress: Callable[[int], None] = lambda done: None,
        variables: Variables | None = None,
    ) -> Samples:
        placed_variables = own if variables is None else place(variables, mesh)
        count, parts, outside = len(inputs[0]), [], 0
        for start in range(0, count, batch):
            indices = np.arange(start, start + batch) % count
            arrays = {str(i): np.asarray(x)[indices] for i, x in enumerate(inputs)}
            placed = place_batch(arrays, mesh)
            ordered = tuple(placed[str(i)] for i in range(len(inputs)))
            images = np.asarray(apply(placed_variables, ordered))
            images = images[: count - start]
            finite = np.isfinite(images).all(axis=(1, 2, 3))
            if not finite.all():
                index = start + int(finite.argmin())
                raise ValueError(f"{subject.name}: image {index} is not finite")
            outside += int((np.abs(images) > 1 + 1 / 255).sum())
            parts.append(to_uint8(images))
            progress(min(start + batch, count))
        joined = np.concatenate(parts)
        labels = [np.asarray(x) for x in inputs if jnp.issubdtype(x.dtype, jnp.integer)]
        return Samples(joined, labels[0] if labels else None, outside / joined.size)

    return sample


def interpolate(
    subject: EvaluatedGenerator, seed: int, rows: int, columns: int
) -> tuple[np.ndarray, ...]:
    """Inputs of `rows` interpolations of `columns` steps between two latents each, row by row.

    Interpolates on great circles in z (White 2016), within one class. Style networks are
    interpolated in z as well, for comparability.
    """
    ends = draw(subject, 2 * rows, seed)
    positions = np.tile(np.linspace(0.0, 1.0, columns), rows)[:, None]
    paths = []
    for x in ends:
        a, b = (np.repeat(np.asarray(end), columns, axis=0) for end in (x[:rows], x[rows:]))
        if jnp.issubdtype(x.dtype, jnp.integer):
            paths.append(a)
            continue
        first, last = (end.reshape(len(end), -1).astype(np.float64) for end in (a, b))
        paths.append(slerp(first, last, positions).reshape(a.shape).astype(np.float32))
    return tuple(paths)

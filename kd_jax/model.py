"""A network with its variables, from a published weight file or a checkpoint: `kd_jax.load`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from kd_jax.core.architecture import rebuild
from kd_jax.core.family import Interface, interface_of, output_shape
from kd_jax.core.network import Network, by_path, check_variables
from kd_jax.core.representation import record_repr
from kd_jax.core.types import Variables
from kd_jax.models import pair
from kd_jax.pretrained import registry
from kd_jax.pretrained.io import safetensors
from kd_jax.pretrained.io.containers import read
from kd_jax.train import checkpoint, manifest

STUDENT = "student"
"""The folder of the finished student within that of a distillation."""

EXPORTED = "kd_jax"
"""The name of the network's description in the metadata of an exported safetensors file."""

FOLDERS = ("best", "checkpoints", "checkpoint")
"""Folders of checkpoints within the folder of a training, in order of preference."""


class Model(NamedTuple):
    """A network and its variables.

    Attributes:
      network: the network; `network.apply(variables, *inputs) -> (output, taps, variables)`.
      variables: its variables.
      inputs: the shapes and dtypes of its inputs, for a batch of one.
      classes: the number of classes of its labels; 0 if it takes none.
      generates: whether its outputs are images, and not scores or features.
      info: what the file or the checkpoint says of it, as JSON values; of a file, also `options`:
        the arguments of `load` that it does not determine and their values, and `notes` on them.
    """

    network: Network
    variables: Variables
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    classes: int
    generates: bool
    info: Mapping[str, Any]

    def __repr__(self) -> str:
        return record_repr(self)

    @property
    def interface(self) -> Interface:
        """Its inputs and its output, if it generates images; otherwise a ValueError is raised."""
        return interface_of(self.network, self.variables, self.inputs, self.classes)


def load(
    path: str | os.PathLike[str],
    part: str | None = None,
    *,
    options: Mapping[str, Any] = {},
    packages: Sequence[str] = (),
    latest: bool = False,
    generator: bool = False,
) -> Model:
    """A model from a published weight file, a training's folder or a checkpoint folder.

        teacher = kd_jax.load("ffhq.pkl")
        student = kd_jax.load("runs/digits/seed0/scarce/distilled")
        images, taps, _ = student.network.apply(student.variables, latents)

    Nothing in a file or a folder is executed. Of a training, the best averaged generator is loaded;
    of a distillation, its student; of a checkpoint of two generators in parallel
    (`kd_jax.models.pair`), one of them.

    Args:
      path: the file or folder.
      part: of a file, the name of the network (`kd_jax.pretrained.parts` lists them); by default
        the averaged generator, else the only candidate. Of a checkpoint of two generators in
        parallel, `first` or `second`, the direction of a translation.
      options: of a file, arguments of the network's factory that the file does not determine, such
        as `{"conv_clamp": 256}`.
      packages: of a checkpoint, further packages whose modules or factories it may name.
      latest: of a training, whether to load the latest checkpoint instead of the best.
      generator: whether to refuse other networks.

    Raises:
      ValueError: the file is damaged or unknown, the folder holds several trainings, or the network
        is not a generator, or is two generators in parallel, of which no part is selected.
      CheckpointError: there is no intact checkpoint, or it does not describe its network.
      OSError: there is no such file or folder.
    """
    location = Path(path).expanduser()
    if location.is_file() and EXPORTED in (metadata := safetensors.read_metadata(location)):
        if part is not None or options:
            argument = f"part={part!r}" if part is not None else f"options={dict(options)}"
            raise ValueError(
                f"{path} holds one network with its description: {argument} does not fit it"
            )
        exported = _load_exported(location, metadata[EXPORTED], packages)
        if generator and not exported.generates:
            raise ValueError(f"{path}: a generator of images is needed, not another network")
        return exported
    if location.is_file():
        available = registry.parts(location)
        name = registry.choose(location, available, part)
        chosen = available[name]
        if generator and not chosen.generates:
            which = f", which is for {chosen.purpose}" if chosen.purpose else ""
            raise ValueError(f"{path}: a generator is needed, not {chosen.kind}{which}")
        converted = registry.convert(location, chosen, **options)
        return Model(
            converted.network,
            converted.variables,
            tuple(converted.inputs),
            int(converted.config.get("classes", 0)),
            chosen.generates,
            {
                "file": location.name,
                "part": name,
                "kind": chosen.kind,
                **converted.config,
                **({"notes": converted.notes} if converted.notes else {}),
                **({"options": dict(converted.options)} if converted.options else {}),
            },
        )
    if options:
        raise ValueError(f"{path} is not a weight file: it has no options")
    if not location.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    if (location / STUDENT).is_dir() and holds_checkpoints(location / STUDENT):
        location /= STUDENT
    order = FOLDERS[1:] + FOLDERS[:1] if latest else FOLDERS
    inner = [location / name for name in order if (location / name).is_dir()]
    trainings = {file.parent for name in FOLDERS for file in location.glob(f"**/{name}")}
    within = sorted(str(training.relative_to(location)) for training in trainings)
    if within and not inner:
        raise ValueError(
            f"{path} holds several trainings; pass the path of one of: {', '.join(within[:8])}"
            f"{f' and {len(within) - 8} more' if len(within) > 8 else ''}"
        )
    folder = inner[0] if inner else location
    architecture, variables, configuration = checkpoint.load_described(folder, packages)
    info = {"folder": str(folder), "configuration": configuration}
    if isinstance(architecture.network.module, pair.Parallel):
        if part not in pair.PARTS:
            raise ValueError(
                f"{path} holds two networks in parallel: part={part} is not "
                f"{' or '.join(pair.PARTS)} (of commands --part, or PATH#PART)"
            )
        architecture, variables = pair.select(architecture, variables, part)
        info["part"] = part
    elif part is not None:
        raise ValueError(f"{path} is a checkpoint of one network: it has no part {part!r}")
    output = output_shape(architecture.network, variables, architecture.inputs)
    if generator and len(output) != 3:
        raise ValueError(
            f"{path}: a generator of images is needed, and the outputs of this network have shape "
            f"{list(output)}"
        )
    return Model(
        architecture.network,
        variables,
        architecture.inputs,
        architecture.classes,
        len(output) == 3,
        info,
    )


def _load_exported(path: Path, text: str, packages: Sequence[str]) -> Model:
    """The model in a file of `kd_jax.export`, whose metadata describe its network."""
    try:
        architecture = rebuild(json.loads(text)["architecture"], packages)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: the description of its network is damaged ({error})") from None
    network, inputs, classes = architecture
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    arrays = read(path)
    dtypes = {name: leaf.dtype for name, leaf in by_path(like).items()}
    # A file may have fewer bits.
    variables = traverse_util.unflatten_dict(
        {name: jnp.asarray(x, dtypes.get(name, x.dtype)) for name, x in arrays.items()}, sep="/"
    )
    check_variables(network, variables, *inputs, name=str(path))
    generates = len(output_shape(network, variables, inputs)) == 3
    return Model(network, variables, inputs, classes, generates, {"file": path.name})


def holds_checkpoints(folder: Path) -> bool:
    """Whether a folder is, or contains, one of a training, of checkpoints or of a single step."""
    for place, folders, files in os.walk(folder):
        if any(name in folders for name in FOLDERS[1:]):
            return True
        if manifest.MANIFEST in files and "generator" in folders:
            return True
        # The steps of an interrupted save: without a manifest, but other than classes 0, 1, ...
        if Path(place).name.isdecimal() and {"generator", "meta"} & set(folders):
            return True
    return False

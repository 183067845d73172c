"""Describes a weight file or a training, and writes samples and a checkpoint of a network.

    kd-jax inspect FILE --out DIR

Prints the networks in a file, and the inputs, the cost and the configuration of the selected one.
Writes `DIR/samples.png` (of a generator) and `DIR/checkpoint`, an Orbax checkpoint that all
commands read. Exits with status 2 if the file is refused.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.cli import common
from kd_jax.core import architecture, cost
from kd_jax.core.family import output_shape
from kd_jax.core.files import naming
from kd_jax.data.source import to_float
from kd_jax.distillation.examples import image_inputs
from kd_jax.evaluate.generator import split_part
from kd_jax.evaluate.samples import generate, seeded_inputs
from kd_jax.model import Model
from kd_jax.models.families import find_family
from kd_jax.pretrained import registry
from kd_jax.report import pictures
from kd_jax.train import checkpoint

SAMPLES, LARGE_SIDE = 8, 256
"""Images in the picture, and the largest side of embedded photographs."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="kd-jax inspect", description=(__doc__ or "").partition("\n")[0]
    )
    common.add_network(parser)
    parser.add_argument("--out", help="a new folder for samples and a checkpoint")
    parser.add_argument(
        "--truncation", type=float, help="truncation psi, for networks that support it"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed of the samples")
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with common.exit_codes():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Describes the network, and writes the samples and the checkpoint.

    Raises:
      ValueError, UsageError, CheckpointError: the file is refused, an argument does not fit, or
        the folder cannot be written; a one-line message.
    """
    if not 0 <= args.seed < 2**32 - SAMPLES:
        raise ValueError(f"--seed={args.seed} is not from 0 to 2**32 - {SAMPLES + 1}")
    out = None if args.out is None else Path(args.out).expanduser()
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is not a new or empty folder")
    model = common.open_network(args.network, args, generator=False)
    samples = None
    if model.generates and (args.truncation is not None or out is not None):
        samples = sample(model, args.seed, args.truncation)
    elif args.truncation is not None:
        raise ValueError(f"--truncation={args.truncation}: this network takes no truncation")
    path, _ = split_part(Path(args.network).expanduser())
    if path.is_file():
        print_parts(path, model)
    print_model(model)
    if out is None:
        return
    described = architecture.describe(model.network, *model.inputs)
    with naming(f"write to --out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        if samples is not None:
            pictures.save_grid(out / "samples.png", samples, scale=1)
            print(f"wrote {out / 'samples.png'}")
        checkpoint.save_generator(out / "checkpoint", model.variables, settings(model), described)
    print(f"wrote {out / 'checkpoint'}")


def print_parts(path: Path, model: Model) -> None:
    """Prints a line for each network in a file, with a star at the selected one."""
    for name, part in registry.parts(path).items():
        purpose = f", for {part.purpose}" if part.purpose else ""
        print(f"{'*' if name == model.info['part'] else ' '} {name}: {part.kind}{purpose}")


def print_model(model: Model) -> None:
    """Prints the configuration, the inputs and the cost of a network."""
    info = dict(model.info)
    notes, options = info.pop("notes", ()), info.pop("options", {})
    for key, value in {**info, **info.pop("configuration", {})}.items():
        if key not in ("file", "part", "kind", "configuration", "student"):
            print(f"    {key}: {value}")
    if model.generates:
        print(f"    inputs: {model.interface.describe()}")
    else:
        output = output_shape(model.network, model.variables, model.inputs)
        print(f"    outputs: of shape {list(output)}, not images")
    macs = cost.multiply_accumulates(model.network, model.variables, *model.inputs)
    print(f"    parameters: {cost.parameter_count(model.variables):,}")
    print(f"    multiply-accumulates: {macs:,.0f}")
    for note in notes:
        print(f"    note: {note}")
    if options:
        print("    not determined by the file, as assumed:")
    for name, value in options.items():
        text = value if isinstance(value, str) else json.dumps(plain(value))
        print(f"      --option {shlex.quote(f'{name}={text}')}")


def sample(model: Model, seed: int, truncation: float | None) -> dict[str, np.ndarray] | None:
    """Rows of `SAMPLES` images in [-1, 1]: of these seeds, or of the embedded photographs.

    None for a generator that takes tokens, further inputs that its family does not make from
    images, or images that are large or transparent.

    Raises:
      ValueError: the generator does not take a truncation.
    """
    name, interface = str(model.info.get("part", "samples")), model.interface
    if interface.takes_tokens:
        return None
    if not interface.takes_images:
        inputs = seeded_inputs(model, range(seed, seed + SAMPLES))
        return {name: to_float(generate(model, inputs, truncation=truncation))}
    family = find_family(model.network)
    if len(interface.inputs) > 1 and (family is None or family.degrade is None):
        return None
    make = image_inputs(interface, family)
    if interface.size > LARGE_SIDE or 4 in (make.channels, interface.channels):
        return None
    source = kd_data.open_source("photos", "test", interface.size, make.channels, resize=True)
    chosen = np.linspace(0, len(source) - 1, SAMPLES).astype(int)
    images = np.stack([source[int(i)]["image"] for i in chosen])
    inputs = tuple(np.asarray(x) for x in jax.jit(make.make)(chosen, images))
    outputs = to_float(generate(model, inputs, truncation=truncation))
    shown = inputs[0].repeat(interface.scale, axis=1).repeat(interface.scale, axis=2)
    return {"input": shown, name: outputs}


def settings(model: Model) -> dict[str, Any]:
    """The origin and the configuration of a network, as JSON values."""
    info = dict(plain(model.info))
    for name in ("notes", "options"):
        info.pop(name, None)
    origin = {name: info.pop(name) for name in ("file", "part") if name in info}
    return {**origin, "config": info}


def plain(value: Any) -> Any:
    """The value as JSON types."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    main()

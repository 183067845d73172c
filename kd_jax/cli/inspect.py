"""Describes a published weight file, and writes eight samples and a checkpoint of a network.

    kd-jax inspect FILE --out DIR

Prints the networks in the file, and the configuration and number of parameters of the selected one.
Writes `DIR/samples.png` (of a generator) and `DIR/checkpoint`, an Orbax checkpoint of the variables
for `kd_jax.train.checkpoint.load_network`. Exits with status 2 if the file is refused.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core import architecture, cost
from kd_jax.core.checks import UsageError
from kd_jax.core.files import naming
from kd_jax.pretrained.convert import Converted
from kd_jax.pretrained.registry import choose, convert, parts
from kd_jax.report import pictures
from kd_jax.train import checkpoint

SAMPLES = 8


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="kd-jax inspect", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", help="a .pkl, .pt, .pth, .safetensors or .param file")
    parser.add_argument("--out", help="a new folder for samples and a checkpoint")
    parser.add_argument("--part", help="the network in the file; default: the averaged generator")
    parser.add_argument(
        "--truncation", type=float, help="truncation psi, for networks that support it"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the network's factory that the file does not determine, such as "
        "conv_clamp=256 or size=28; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (OSError, ValueError, UsageError, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    """Describes the file, and writes the samples and the checkpoint.

    Raises:
      ValueError, UsageError, CheckpointError: the file is refused, an argument does not fit, or
        the folder cannot be written; a one-line message.
    """
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed={args.seed} is not from 0 to 2**63 - 1")
    out = None if args.out is None else Path(args.out)
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is not a new or empty folder")
    with naming(f"read {args.file}"):
        available = parts(args.file)
        name = choose(args.file, available, args.part)
        converted = convert(args.file, available[name], **parse_options(args.option))
    apply = None
    if args.truncation is not None or (available[name].generates and out is not None):
        apply = _make_apply(converted, args.truncation)
    for other, part in available.items():
        purpose = f", for {part.purpose}" if part.purpose else ""
        print(f"{'*' if other == name else ' '} {other}: {part.kind}{purpose}")
    for key, value in converted.config.items():
        print(f"    {key}: {value}")
    print(f"    parameters: {cost.parameter_count(converted.variables):,}")
    for note in converted.notes:
        print(f"    note: {note}")
    if converted.options:
        print("    not determined by the file, as assumed:")
    for option, value in converted.options.items():
        text = value if isinstance(value, str) else json.dumps(_plain(value))
        print(f"      --option {shlex.quote(f'{option}={text}')}")
    if out is None:
        return
    settings = {"file": str(Path(args.file).name), "part": name, "config": _plain(converted.config)}
    described = architecture.describe(converted.network, *converted.inputs)
    with naming(f"write to --out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        if apply is not None and not any(len(like.shape) == 4 for like in converted.inputs):
            images = _samples(converted, apply, args.seed)
            pictures.save_grid(out / "samples.png", {name: images}, scale=1)
            print(f"wrote {out / 'samples.png'}")
        checkpoint.save_generator(out / "checkpoint", converted.variables, settings, described)
    print(f"wrote {out / 'checkpoint'}")


def parse_options(options: list[str]) -> dict[str, Any]:
    """The values of `NAME=VALUE`, read as JSON where they are JSON, and as text otherwise.

    Raises:
      ValueError: one of them has no `=`.
    """
    result: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ValueError(f"--option {option!r} is not of the form NAME=VALUE")
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result


def _make_apply(converted: Converted, truncation: float | None) -> Callable[..., jax.Array]:
    """`(variables, *inputs) -> images`, compiled at its first call.

    Raises:
      ValueError: the network does not take a truncation.
    """
    options: dict[str, Any] = {} if truncation is None else {"truncation": truncation}
    apply = jax.jit(
        lambda variables, *inputs: converted.network.apply(variables, *inputs, **options)[0]
    )
    try:
        jax.eval_shape(apply, converted.variables, *converted.inputs)
    except TypeError:
        if truncation is None:
            raise
        raise ValueError(f"--truncation={truncation}: this network takes no truncation") from None
    return apply


def _samples(converted: Converted, apply: Callable[..., jax.Array], seed: int) -> np.ndarray:
    """Images `[SAMPLES, H, W, C]`, generated one at a time, since networks may be large."""
    images = []
    for index in range(SAMPLES):
        key = jax.random.fold_in(jax.random.key(seed), index)
        inputs = []
        for number, like in enumerate(converted.inputs):
            input_key = jax.random.fold_in(key, number)
            if jnp.issubdtype(like.dtype, jnp.integer):
                classes = int(converted.config["classes"])
                inputs.append(jax.random.randint(input_key, like.shape, 0, classes, like.dtype))
            else:
                inputs.append(jax.random.normal(input_key, like.shape, like.dtype))
        images.append(np.asarray(apply(converted.variables, *inputs)))
    return np.concatenate(images)


def _plain(value: Any) -> Any:
    """The value as JSON types."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


if __name__ == "__main__":
    main()

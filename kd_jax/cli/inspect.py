"""Describes a published weight file, and writes eight samples and a checkpoint of a network.

    kd-jax inspect FILE --out DIR

Prints the networks in the file, and the configuration and number of parameters of the selected one.
Writes `DIR/samples.png` (of a generator) and `DIR/checkpoint`, an Orbax checkpoint of the variables
for `kd_jax.train.checkpoint.load_network`. Exits with status 2 if the file is refused.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core import architecture, cost
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
    parser.add_argument("--seed", type=int, default=0, help="seed of the latents")
    args = parser.parse_args(arguments)
    try:
        out = None if args.out is None else _new_folder(Path(args.out))
        available = parts(args.file)
        name = choose(args.file, available, args.part)
        converted = convert(args.file, available[name])
        images = None
        takes_images = any(len(like.shape) == 4 for like in converted.inputs)
        if available[name].generates and out is not None and not takes_images:
            images = _samples(converted, args.seed, args.truncation)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for other, part in available.items():
        purpose = f", for {part.purpose}" if part.purpose else ""
        print(f"{'*' if other == name else ' '} {other}: {part.kind}{purpose}")
    for key, value in converted.config.items():
        print(f"    {key}: {value}")
    print(f"    parameters: {cost.parameter_count(converted.variables):,}")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    if images is not None:
        pictures.save_grid(out / "samples.png", {name: images}, scale=1)
        print(f"wrote {out / 'samples.png'}")
    settings = {"file": str(Path(args.file).name), "part": name, "config": _plain(converted.config)}
    described = architecture.describe(converted.network, *converted.inputs)
    checkpoint.save_generator(out / "checkpoint", converted.variables, settings, described)
    print(f"wrote {out / 'checkpoint'}")


def _new_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is not a new or empty folder")
    return out


def _samples(converted: Converted, seed: int, truncation: float | None) -> np.ndarray:
    """Images `[SAMPLES, H, W, C]`, generated one at a time, since networks may be large."""
    options: dict[str, Any] = {} if truncation is None else {"truncation": truncation}
    apply = jax.jit(
        lambda variables, *inputs: converted.network.apply(variables, *inputs, **options)[0]
    )
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

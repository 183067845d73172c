"""Writes a generator as files for other programs; each is compared with JAX before it is kept.

    kd-jax export FILE_OR_DIR --out exported
    kd-jax export FILE_OR_DIR --out exported --to onnx,safetensors --dtype float16 --size any

Formats: ONNX for onnxruntime, browsers and phones; StableHLO, which JAX reads for six months;
safetensors, which kd-jax reads; and original, the state dict of the program that published the
architecture. A file whose outputs differ from JAX's is not kept. Exits with status 2 if an argument
does not fit, or a file differs.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from kd_jax.cli import common
from kd_jax.export import DTYPES, FORMATS, export
from kd_jax.export.program import LABELS, PARTS


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    with common.exit_codes():
        run(args)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="kd-jax export", description=(__doc__ or "").partition("\n")[0]
    )
    common.add_network(result)
    result.add_argument("--out", required=True, help="a new or empty folder")
    result.add_argument(
        "--to", default="onnx", metavar="FORMATS", help=f"of {', '.join(FORMATS)}; by default onnx"
    )
    result.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="of the weights; int8: of onnx"
    )
    result.add_argument(
        "--keep", action="append", default=[], metavar="LAYER", help="a layer that is not int8"
    )
    result.add_argument(
        "--batch", default="any", metavar="N", help="examples in a batch, or any (the default)"
    )
    result.add_argument(
        "--size",
        metavar="N|HEIGHTxWIDTH|any",
        help="of the images that a generator takes; by default those of its training",
    )
    result.add_argument(
        "--truncation", metavar="PSI|input", help="truncation psi, a number or an input of the file"
    )
    result.add_argument("--labels", choices=LABELS, default=LABELS[0])
    result.add_argument("--only", choices=PARTS, help="of a style network, only this part")
    return result


def run(args: argparse.Namespace) -> None:
    """Exports the generator.

    Raises:
      ValueError, OSError, UsageError, CheckpointError: an argument does not fit, or a file differs.
    """
    options: dict[str, Any] = {"labels": args.labels, "part": args.only}
    if args.batch != "any":
        options["batch"] = _number(args.batch, "--batch", int)
    if args.size is not None:
        options["size"] = parse_size(args.size)
    if args.truncation is not None:
        psi = args.truncation
        options["truncation"] = psi if psi == "input" else _number(psi, "--truncation", float)
    model = common.open_network(args.network, args)
    files = export(
        model,
        Path(args.out).expanduser(),
        args.to.split(","),
        dtype=args.dtype,
        keep=args.keep,
        **options,
    )
    for file in files.values():
        size, parity = file.path.stat().st_size, file.parity
        print(
            f"wrote {file.path} ({size / 1e6:.2f} MB), up to {parity.difference:.1e} from JAX"
            + (f", PSNR {parity.psnr:.1f} dB" if args.dtype != "float32" else "")
            + (f"; in float32: {', '.join(file.in_float)}" if file.in_float else "")
        )


def parse_size(text: str) -> int | tuple[int, int] | str:
    """The sides `N`, `HEIGHTxWIDTH` or `any`.

    Raises:
      ValueError: it has another form.
    """
    if text == "any":
        return text
    sides = [_number(side, "--size", int) for side in text.split("x")]
    if len(sides) > 2:
        raise ValueError(f"--size={text} is not of the form N, HEIGHTxWIDTH or any")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _number(text: str, name: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}={text} is not a number") from None

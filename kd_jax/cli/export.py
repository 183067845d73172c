"""Writes a generator as files for other programs; each is compared with JAX before it is kept.

    kd-jax export FILE_OR_DIR --out exported
    kd-jax export FILE_OR_DIR --out exported --to onnx,safetensors --dtype float16 --size any
    kd-jax export FILE_OR_DIR --out site --page --teacher TEACHER

Formats: ONNX for onnxruntime, browsers and phones; StableHLO, which JAX reads for six months;
safetensors, which kd-jax reads; and original, the state dict of the program that published the
architecture. A file whose outputs differ from JAX's is not kept. With --page, the folder is a site
that runs the generator in the browser. Exits with status 2 if an argument does not fit, or a file
differs.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_jax.cli import common
from kd_jax.export import DTYPES, FORMATS, Exported, export, page
from kd_jax.export.program import LABELS, PARTS

PAGE = ("teacher", "runtime", "title")
"""The arguments of a page."""


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
    site = result.add_argument_group("a page for browsers")
    site.add_argument("--page", action="store_true", help="also write index.html and its files")
    site.add_argument("--teacher", metavar="PATH[#PART]", help="a generator to show beside it")
    site.add_argument(
        "--runtime",
        metavar="FILE.tgz|FOLDER",
        help="the npm package onnxruntime-web; by default it is fetched once",
    )
    site.add_argument("--title", help="of the page")
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
    if not args.page and (extra := [x for x in PAGE if getattr(args, x) is not None]):
        raise ValueError(f"--{extra[0]} is an argument of --page, which is absent")
    model = common.open_network(args.network, args)
    folder, formats = Path(args.out).expanduser(), args.to.split(",")
    options = {"dtype": args.dtype, "keep": args.keep, **options}
    if not args.page:
        _print(export(model, folder, formats, **options).values(), args.dtype)
        return
    teacher = None
    if args.teacher is not None:
        # A part and the options are those of the other file.
        alone = argparse.Namespace(part=None, option=[], package=args.package)
        teacher = common.open_network(args.teacher, alone)
    site = page.write(
        model,
        folder,
        formats,
        teacher=teacher,
        runtime=args.runtime,
        title=args.title,
        **options,
    )
    _print(site.files.values(), args.dtype)
    if site.teacher is not None:
        _print([site.teacher], "float32")
    print(
        f"wrote {site.path} with {site.directions} directions and a runtime of "
        f"{site.runtime / 1e6:.2f} MB: python -m http.server --directory {folder}"
    )


def _print(files: Iterable[Exported], dtype: str) -> None:
    for file in files:
        size, parity = file.path.stat().st_size, file.parity
        print(
            f"wrote {file.path} ({size / 1e6:.2f} MB), up to {parity.difference:.1e} from JAX"
            + (f", PSNR {parity.psnr:.1f} dB" if dtype != "float32" else "")
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

"""Writes a generator as files for other programs; each is compared with JAX before it is kept.

    kd-jax export FILE_OR_DIR --out exported
    kd-jax export FILE_OR_DIR --out exported --to onnx,safetensors --dtype float16 --size any
    kd-jax export FILE_OR_DIR --out exported --dtype int8 --images folder:PICTURES
    kd-jax export FILE_OR_DIR --out site --page --teacher TEACHER

Formats: ONNX for onnxruntime, browsers and phones; TFLite for LiteRT; StableHLO, which JAX reads
for six months; safetensors, which kd-jax reads; and original, the state dict of the program that
published the architecture. README.md beside them is their card. A file whose outputs differ from
JAX's is not kept. With --page, the folder is a site that runs the generator in the browser. Exits
with status 2 if an argument does not fit, or a file differs.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.cli import common
from kd_jax.core.files import naming
from kd_jax.distillation.examples import image_inputs
from kd_jax.distillation.measurement import open_features
from kd_jax.evaluate.generator import split_part
from kd_jax.export import DTYPES, FORMATS, INDEX, Exported, card, export, make_program, page
from kd_jax.export.program import LABELS, PARTS
from kd_jax.model import Model
from kd_jax.models.families import find_family

EXAMPLES = 128
"""Images, of which one half calibrates an int8 file, and the other measures its quality."""

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
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="of the weights; of int8 activations have it too, where onnxruntime uses it",
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
    result.add_argument(
        "--license", default="", metavar="TEXT", help="of the weights, for the card"
    )
    real = result.add_argument_group("the inputs that files are calibrated and compared on")
    real.add_argument(
        "--images",
        metavar="DATA",
        help="of a generator that takes images, what its inputs are made from: photos, digits, "
        "folder:PATH, tfds:NAME, or none for artificial ones; by default photos, if the extra data "
        "is installed",
    )
    real.add_argument("--split", default="test", help="the split of --images")
    real.add_argument("--resize", action="store_true", help="convert images of other shapes")
    real.add_argument(
        "--features",
        metavar="FILE",
        help="weights for the Frechet distance of float16 and int8, as kd-jax distill has them",
    )
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
    model = common.open_network(args.network, args, generator=False)
    chosen, name = read_examples(model, args, options.get("size"))
    features = None
    if args.dtype != "float32" and args.only != "mapping" and model.generates:
        features = open_features(model.interface, args.features)
    folder, formats = Path(args.out).expanduser(), args.to.split(",")
    exporting = {
        "dtype": args.dtype,
        "keep": args.keep,
        "examples": chosen,
        "examples_name": name,
        "features": features,
    }
    if args.page:
        write_page(model, folder, formats, args, exporting, options)
    else:
        _print(export(model, folder, formats, **exporting, **options).values())
    path, _ = split_part(Path(args.network).expanduser())
    report = path / "report.md"
    written = card.write(
        folder,
        INDEX,
        model,
        make_program(model, **options),
        license=args.license,
        report=report.read_text() if report.is_file() else "",
    )
    print(f"wrote {written}")


def write_page(
    model: Model,
    folder: Path,
    formats: Sequence[str],
    args: argparse.Namespace,
    exporting: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Exports the generator with a page; `exporting` are arguments of `export`."""
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
        exporting=exporting,
        **options,
    )
    _print([*site.files.values(), *([site.teacher] if site.teacher is not None else [])])
    print(
        f"wrote {site.path} with {site.directions} directions and a runtime of "
        f"{site.runtime / 1e6:.2f} MB: python -m http.server --directory {folder}"
    )


def _print(files: Iterable[Exported]) -> None:
    for file in files:
        size, parity, quality = file.path.stat().st_size, file.parity, file.quality
        print(
            f"wrote {file.path} ({size / 1e6:.2f} MB), up to {parity.difference:.1e} from JAX"
            + (f"; in float32: {', '.join(file.in_float)}" if file.in_float else "")
        )
        if quality is not None:
            print(f"  {quality.sentence()}")


def read_examples(
    model: Model, args: argparse.Namespace, size: int | tuple[int, int] | str | None
) -> tuple[tuple[np.ndarray, ...] | None, str]:
    """Inputs of a generator that takes images, made from real ones, and their description.

    Args:
      model: the generator.
      args: the arguments.
      size: of the program's images, as `kd_jax.export.make_program` takes it.

    Returns:
      The inputs; None for those that the export draws.

    Raises:
      ValueError, OSError: an argument does not fit.
    """
    if not model.generates or not model.interface.takes_images:
        if args.images is not None:
            raise ValueError(f"--images={args.images}: the generator does not take images")
        return None, ""
    interface = model.interface
    if args.images == "none" or (args.images is None and not _has_photos()):
        print("the inputs are artificial images: real ones are closer to use (--images)")
        return None, ""
    inputs, spec = image_inputs(interface, find_family(model.network)), args.images or "photos"
    sides = interface.inputs[0].shape[1:3]
    if isinstance(size, int | tuple):
        sides = (size, size) if isinstance(size, int) else size
    height, width = (interface.scale * side for side in sides)
    with naming(f"read --images {spec}"):
        source = kd_data.open_source(
            spec,
            "train" if spec.startswith("folder:") else args.split,
            max(height, width),
            inputs.channels,
            resize=args.resize or spec == "photos",
        )
    # Evenly spaced, so that the halves are of different parts of the set.
    numbers = np.unique(np.linspace(0, len(source) - 1, EXAMPLES).astype(int))
    images = np.stack([source[int(number)]["image"] for number in numbers])
    images = images[:, :height, :width]
    examples = tuple(np.asarray(x) for x in jax.jit(inputs.make)(numbers, images))
    return examples, source.name


def _has_photos() -> bool:
    """Whether the extra `data` is installed."""
    return all(importlib.util.find_spec(name) for name in ("skimage", "tensorflow_datasets"))


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

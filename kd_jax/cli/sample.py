"""Writes images of a generator for numbered seeds, or a video of an interpolation.

    kd-jax sample FILE_OR_DIR --seeds 0-63 --grid 8x8 --out samples.png
    kd-jax sample FILE_OR_DIR --seeds 0-3 --interpolate 60 --out way.mp4

`--out` is a PNG file for a grid, an MP4 or GIF file for an interpolation, or a folder for a PNG
file of each image. A generator that takes images is applied to `--images`. Exits with status 2 if
an argument does not fit.
"""

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.cli import common
from kd_jax.core.checks import UsageError
from kd_jax.core.files import naming
from kd_jax.distillation.examples import image_inputs
from kd_jax.evaluate.samples import Images, generate, interpolated_inputs, seeded_inputs
from kd_jax.model import Model
from kd_jax.models.families import find_family
from kd_jax.report.page import tile
from kd_jax.report.progress import Progress

VIDEOS = (".mp4", ".gif")

FRAMES_PER_SECOND = 30


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    args = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    with common.exit_codes():
        run(args)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="kd-jax sample", description=(__doc__ or "").partition("\n")[0]
    )
    common.add_network(result)
    result.add_argument(
        "--out", required=True, help="a .png, .mp4 or .gif file, or a folder of PNG files"
    )
    result.add_argument(
        "--seeds",
        type=common.numbers,
        default=list(range(16)),
        help="seeds of the latents, as 0-63 or 3,7,10-12; by default 0-15",
    )
    result.add_argument("--classes", type=common.numbers, help="labels; by default seed by seed")
    result.add_argument(
        "--truncation", type=float, help="truncation psi, for networks that support it"
    )
    result.add_argument(
        "--grid",
        metavar="COLUMNSxROWS",
        help="of a .png file, by default as square as it is; of a video, whose places share the "
        "seeds in their order, by default 1x1",
    )
    result.add_argument(
        "--interpolate",
        type=int,
        metavar="FRAMES",
        help="frames from each seed to the next, and from the last to the first",
    )
    result.add_argument(
        "--images",
        metavar="DATA",
        help="the inputs of a generator that takes images: photos, digits, folder:PATH, tfds:NAME; "
        "--seeds then numbers them",
    )
    result.add_argument("--split", default="test", help="the split of --images")
    result.add_argument("--resize", action="store_true", help="convert images of other shapes")
    result.add_argument("--size", type=int, help="the side of the outputs for --images")
    return result


def run(args: argparse.Namespace) -> None:
    """Generates and writes the images.

    Raises:
      ValueError, OSError, UsageError, CheckpointError: an argument does not fit.
    """
    out = Path(args.out).expanduser()
    check_out(out, args.interpolate)
    model = common.open_network(args.network, args)
    count = len(args.seeds) * (args.interpolate or 1)
    video = out.suffix.lower() in VIDEOS
    if video:
        columns, places = parse_video_grid(args.grid, len(args.seeds))
    else:
        columns, places = parse_grid(args.grid, count), 1
    inputs = read_inputs(model, args)
    if args.interpolate is not None:
        parts = zip(*(np.split(x, places) for x in inputs), strict=True)
        paths = [interpolated_inputs(part, args.interpolate) for part in parts]
        inputs = tuple(np.concatenate(values) for values in zip(*paths, strict=True))
    images = generate(
        model,
        inputs,
        truncation=args.truncation,
        progress=Progress().stage("images", count),
    )
    if video:
        frames = zip(*np.split(images, places), strict=True)
        images = np.stack([tile(np.stack(frame), columns, gap=0) for frame in frames])
    names = [f"seed{seed:04d}" for seed in args.seeds]
    with naming(f"write to --out={out}"):
        write(out, images, columns, names if args.interpolate is None else [])
    print(f"wrote {out}")


def check_out(out: Path, interpolate: int | None) -> None:
    """Checks the output before a network runs.

    Raises:
      ValueError: it cannot be written, or does not fit the other arguments.
    """
    if out.suffix.lower() in VIDEOS and interpolate is None:
        raise ValueError(f"--out={out} is a video; --interpolate=FRAMES makes one")
    if out.suffix.lower() in (*VIDEOS, ".png"):
        if out.is_dir():
            raise ValueError(f"--out={out} is a folder; a file of this name cannot be written")
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out={out}: the folder {out.parent} does not exist")
    elif out.suffix and not out.is_dir():
        raise ValueError(f"--out={out} is neither .png, .mp4, .gif nor a folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out={out} is not a new or empty folder")
    if out.suffix.lower() == ".mp4":
        _import_ffmpeg()


def parse_grid(grid: str | None, count: int) -> int:
    """The number of columns of a grid of `count` images.

    Raises:
      ValueError: it is not of the form 8x8, or does not hold the images.
    """
    if grid is None:
        return max(1, int(np.ceil(np.sqrt(count))))
    columns, rows = _columns_and_rows(grid)
    if columns * rows < count:
        raise ValueError(f"--grid={grid} has {columns * rows} places for {count} images")
    return columns


def parse_video_grid(grid: str | None, seeds: int) -> tuple[int, int]:
    """The columns and the places of a video's grid, which have at least two seeds each.

    Raises:
      ValueError: it is not of the form 8x8, or the seeds cannot be shared equally.
    """
    columns, rows = _columns_and_rows(grid or "1x1")
    places = columns * rows
    if seeds % places or seeds < 2 * places:
        raise ValueError(
            f"{seeds} seeds for a video of {places} places (--grid={columns}x{rows}): as many for "
            "each place are needed, and at least 2"
        )
    return columns, places


def _columns_and_rows(grid: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", grid)
    if match is None:
        raise ValueError(f"--grid={grid} is not of the form COLUMNSxROWS, such as 8x8")
    return int(match[1]), int(match[2])


def read_inputs(model: Model, args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """The latents of the seeds, or the images of a generator that takes images.

    Raises:
      ValueError, OSError: an argument does not fit.
    """
    interface = model.interface
    if not interface.takes_images:
        if args.images is not None:
            raise ValueError(f"--images={args.images}: the generator takes {interface.describe()}")
        return seeded_inputs(model, args.seeds, args.classes)
    inputs = image_inputs(interface, find_family(model.network))
    if args.images is None:
        raise ValueError(
            f"the generator takes {interface.describe()}: --images=DATA names the images that "
            f"{'its inputs are made from' if inputs.targets else 'are its inputs'}"
        )
    if args.interpolate is not None:
        raise ValueError(f"--interpolate={args.interpolate}: the generator takes no latents")
    split = "train" if args.images.startswith("folder:") else args.split
    size = args.size or interface.size
    with naming(f"read --images {args.images}"):
        source = kd_data.open_source(
            args.images,
            split,
            size,
            inputs.channels,
            resize=args.resize or args.images == "photos",
        )
    if max(args.seeds) >= len(source):
        args.seeds = [seed for seed in args.seeds if seed < len(source)]
    images = np.stack([source[seed]["image"] for seed in args.seeds])
    return tuple(np.asarray(x) for x in jax.jit(inputs.make)(np.array(args.seeds), images))


def write(out: Path, images: Images, columns: int, names: list[str]) -> None:
    """Writes images as a grid, a video, or files of a folder.

    Args:
      out: the file or the folder.
      images: `[N, H, W, C]`.
      columns: of a grid.
      names: of files in a folder; empty for numbers.
    """
    from PIL import Image

    suffix = out.suffix.lower()
    if suffix == ".mp4":
        writer = _import_ffmpeg().write_frames(
            str(out),
            (images.shape[2], images.shape[1]),
            fps=FRAMES_PER_SECOND,
            quality=8,
            macro_block_size=2,
        )
        with warnings.catch_warnings():
            # JAX warns of forks, and this one starts another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            writer.send(None)
        for image in images:
            writer.send(
                np.ascontiguousarray(np.broadcast_to(image[..., :3], (*image.shape[:2], 3)))
            )
        writer.close()
        return
    pictures = [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in images]
    if suffix == ".gif":
        pictures[0].save(
            out,
            save_all=True,
            append_images=pictures[1:],
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
        )
    elif suffix == ".png":
        sheet = tile(images, columns, gap=0)
        Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            name = names[number] if names else f"{number:06d}"
            picture.save(out / f"{name}.png")


def _import_ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise UsageError(
            "an .mp4 file needs imageio-ffmpeg: pip install 'kd_jax[video]'; a .gif file needs none"
        ) from None
    return imageio_ffmpeg

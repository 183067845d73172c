"""Evaluates generators against real images and writes a self-contained comparison report.

    kd-jax evaluate CHECKPOINT_OR_FILE ... --data digits --out DIR

Each network is a checkpoint folder of a training run, or a published weight file; `NAME=PATH` names
it. Writes `report.html`, `report.md` and `report.json` to DIR, and appends one line per network and
metric to `metric-METRIC.jsonl`. Exits with status 2 on invalid arguments, before any computation.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.core.mesh import make_mesh
from kd_jax.data.source import to_float
from kd_jax.evaluate import measure
from kd_jax.evaluate.generator import (
    EvaluatedGenerator,
    Samples,
    draw,
    interpolate,
    open_generator,
    sampler,
)
from kd_jax.evaluate.reference import Reference, open_extractor, read_reference
from kd_jax.metrics import prdc
from kd_jax.metrics.conventions import TOOLS
from kd_jax.metrics.extractor import lpips
from kd_jax.report import page
from kd_jax.report.columns import Entry, Table, plain
from kd_jax.report.environment import environment
from kd_jax.report.page import Gallery, Picture, tile
from kd_jax.report.pictures import to_uint8
from kd_jax.report.progress import Progress
from kd_jax.train.checkpoint import CheckpointError

SAMPLES, INTERPOLATIONS, POSITIONS, QUERIES, NEIGHBOURS = 24, 4, 12, 12, 3
"""Numbers of samples, of interpolations, of images in each, of queries and of their neighbours."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: parses the arguments, evaluates the networks and writes the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    try:
        report = run(args, shlex.join(["kd-jax", "evaluate", *arguments]))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(page.plain_text(report))
    for name in ("html", "md", "json"):
        print(f"wrote {Path(args.out) / f'report.{name}'}")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="kd-jax evaluate", description=(__doc__ or "").partition("\n")[0]
    )
    result.add_argument(
        "networks", nargs="+", metavar="[NAME=]PATH", help="checkpoint folders and weight files"
    )
    result.add_argument(
        "--data", required=True, help="the real images: digits, photos, folder:PATH or tfds:NAME"
    )
    result.add_argument("--split", default="train", help="the split of the real images")
    result.add_argument(
        "--resize",
        action="store_true",
        help="convert real images of other sizes, colours and bits; transparency becomes white",
    )
    result.add_argument("--out", default="evaluation", help="the output folder")
    result.add_argument(
        "--samples", type=int, help="samples per network; by default as many as real images"
    )
    result.add_argument("--seed", type=int, default=0, help="the seed of the latents")
    result.add_argument(
        "--draws",
        type=int,
        default=3,
        help="draws of the latents for the Frechet distance: its mean and deviation are reported",
    )
    result.add_argument("--batch", type=int, default=64, help="the sampling batch size")
    result.add_argument(
        "--truncation", type=float, help="the truncation psi, for networks that support it"
    )
    result.add_argument(
        "--inception",
        metavar="FILE",
        help="weights of the FID Inception-v3; by default a classifier trained on the data, or, "
        "without labels, a VGG16 with random weights; their distance is not an FID",
    )
    result.add_argument(
        "--lpips",
        nargs="+",
        metavar="FILE",
        help="torchvision's network and LPIPS's weights, or LPIPS's whole module; enables path "
        "length and diversity",
    )
    result.add_argument(
        "--paths", type=int, default=1000, help="the number of paths of the path length"
    )
    result.add_argument(
        "--convention",
        choices=TOOLS,
        default="torch-fidelity",
        help="the tool whose metric definitions are used",
    )
    result.add_argument(
        "--package", action="append", default=[], help="a package of custom modules in checkpoints"
    )
    result.add_argument("--title", default="Generator comparison", help="the title of the report")
    return result


def run(args: argparse.Namespace, command: str) -> page.Report:
    """Evaluates all networks, and writes and returns the report."""
    options = {} if args.truncation is None else {"truncation": args.truncation}
    subjects = [open_generator(spec, args.package, **options) for spec in args.networks]
    check(subjects, args)
    source = kd_data.open_source(
        args.data, args.split, *_size(subjects), _cache() / "tfds", resize=args.resize
    )
    for note in source.notes:
        print(f"{source.name}: {note}", file=sys.stderr)
    count = args.samples or len(source)
    conventions = measure.fit_conventions(TOOLS[args.convention], count, len(source))
    bar = Progress()
    name, resize = args.data.partition(":")[0], TOOLS[args.convention].resize
    extractor = open_extractor(args.inception or "auto", source, name, _cache(), resize, bar)
    perceptual = lpips(*args.lpips) if args.lpips else None
    if perceptual is not None:  # raises for images that are too small for its network
        image = jax.ShapeDtypeStruct((1, *subjects[0].image_shape), np.float32)
        jax.eval_shape(perceptual.distance, image, image)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    reference = read_reference(
        source, extractor, args.split, _cache(), progress=bar.stage("real images", len(source))
    )
    entries, galleries, per_class = [], Galleries(reference), {}
    for subject in subjects:
        sample = sampler(subject, args.batch, make_mesh())
        samples = sample(draw(subject, count, args.seed), bar.stage(subject.name, count))
        images = to_float(samples.images)
        outputs = measure.extract(extractor, images)
        # Labels are the data's classes only where the numbers of classes match.
        labels = samples.labels if subject.classes == source.num_classes else None
        if labels is not None:
            per_class[subject.name] = measure.by_class(outputs, labels, reference, conventions.ddof)
        classes = per_class.get(subject.name)
        further = []
        for number in range(1, args.draws):
            show = bar.stage(f"{subject.name}, draw {number + 1} of {args.draws}", count)
            images_of_draw = sample(draw(subject, count, args.seed + number), show).images
            further.append(measure.extract(extractor, to_float(images_of_draw)).features)
        figures = measure.quality(outputs, classes, reference, conventions, further)
        if perceptual is not None:
            figures |= measure.perceptual_figures(
                subject, images, perceptual, args.seed, args.paths
            )
        figures |= measure.cost_of(subject, draw(subject, args.batch, args.seed))
        entries.append(Entry(subject.name, subject.path, figures))
        paths = sample(interpolate(subject, args.seed, INTERPOLATIONS, POSITIONS))
        galleries.add(subject.name, samples, paths.images, outputs.features)
    facts: dict[str, Any] = {
        **reference.facts,
        "samples": count,
        "seed": args.seed,
        "draws": args.draws,
        "convention": f"{args.convention}: {conventions}",
        "perceptual": f"{perceptual.name}, {args.paths} paths" if perceptual else "none",
        "truncation": args.truncation,
        "labels": "cycling through the classes, for conditional networks",
        "batch": args.batch,
    }
    table = Table(
        "Metrics",
        f"The Frechet distance is a mean over {args.draws} draws of the latents, ± its standard "
        "deviation; of other metrics, ± is as they define it."
        if args.draws > 1
        else "± is as each metric defines it.",
        (*measure.quality_columns(extractor), *measure.COST),
        tuple(entries),
    )
    result = page.Report(
        title=args.title,
        summary=[
            f"{count:,} samples of each network against {len(source):,} images of "
            f"{source.name}, in features of {extractor.name}."
        ],
        tables=[table, *([measure.class_table(per_class)] if per_class else [])],
        galleries=galleries.build(),
        protocol=facts,
        environment={
            **environment(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        command=command,
    )
    _append_metrics(out, result)
    page.write(result, out)
    return result


def check(subjects: list[EvaluatedGenerator], args: argparse.Namespace) -> None:
    """Checks that the networks can be compared and that the arguments are valid.

    Raises:
      ValueError: names or image shapes conflict, or an argument is out of range.
    """
    names = [subject.name for subject in subjects]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two networks have the name {min(duplicates)}; name them by NAME=PATH")
    first = subjects[0]
    for subject in subjects:
        if subject.image_shape != first.image_shape:
            raise ValueError(
                f"{subject.name} generates images {subject.image_shape} but {first.name} "
                f"{first.image_shape}; all networks must have the same image shape"
            )
    if len(args.lpips or ()) > 2:
        raise ValueError(f"--lpips takes one file or two, not {len(args.lpips)}")
    counts = {
        "samples": args.samples,
        "batch": args.batch,
        "paths": args.paths,
        "draws": args.draws,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} is not a positive number")


def _size(subjects: list[EvaluatedGenerator]) -> tuple[int, int]:
    height, width, channels = subjects[0].image_shape
    if height != width:
        raise ValueError(f"{subjects[0].name} generates {height}x{width}; square images are needed")
    return height, channels


def _cache() -> Path:
    return Path(os.environ.get("KD_JAX_CACHE", "~/.cache/kd_jax")).expanduser()


class Galleries:
    """Collects the pictures of the report, network by network."""

    def __init__(self, reference: Reference):
        self._reference = reference
        indices = _interleave_classes(reference.labels, SAMPLES)
        images = [reference.source[i]["image"] for i in indices]
        self._paths: list[Picture] = []
        self._nearest: list[Picture] = []
        side = reference.source.image_shape[0]
        self._scale = max(1, round(72 / side))
        real = tile(to_uint8(np.stack(images)), POSITIONS, scale=self._scale)
        self._samples = [Picture("real images", real)]
        neighbours = prdc.nearest(reference.features, reference.features, 2)
        # The first neighbour is the image itself.
        self._real_distance = float(np.median(neighbours.distances[:, 1]))

    def add(self, name: str, samples: Samples, ways: np.ndarray, features: np.ndarray) -> None:
        """Adds the pictures of one network.

        Args:
          name: the network's name.
          samples: its samples.
          ways: `INTERPOLATIONS` interpolations of `POSITIONS` images each, row by row.
          features: features of the samples.
        """
        sheet = tile(samples.images[:SAMPLES], POSITIONS, scale=self._scale)
        clipped = f"; {samples.clipped:.1%} of the values clipped" if samples.clipped else ""
        self._samples.append(Picture(f"{name}{clipped}", sheet))
        self._paths.append(Picture(name, tile(ways, POSITIONS, scale=self._scale)))
        distances, indices = prdc.nearest(features, self._reference.features, NEIGHBOURS)
        closest = np.argsort(distances[:, 0])[:QUERIES]
        rows = [samples.images[closest]]
        for rank in range(NEIGHBOURS):
            images = [self._reference.source[int(i)]["image"] for i in indices[closest, rank]]
            rows.append(to_uint8(np.stack(images)))
        median = float(np.median(distances[:, 0]))
        caption = (
            f"{name}: median distance to the nearest real image {median:.3g}; between real images "
            f"{self._real_distance:.3g}"
        )
        stacked = np.concatenate(rows)
        self._nearest.append(Picture(caption, tile(stacked, len(closest), scale=self._scale)))

    def build(self) -> list[Gallery]:
        """The galleries of the report."""
        return [
            Gallery(
                "Samples",
                "All networks use the same latents at the same positions; real images come first.",
                self._samples,
            ),
            Gallery(
                "Interpolations",
                "Great-circle interpolations between two latents of a class.",
                self._paths,
            ),
            Gallery(
                "Nearest neighbours (memorization check)",
                "The samples closest to a real image (first row) and their nearest real images, in "
                "the extractor's features. Samples of a generator that memorizes images are much "
                "closer to real images than real images are to each other.",
                self._nearest,
            ),
        ]


def _interleave_classes(labels: np.ndarray, count: int) -> list[int]:
    """Indices of up to `count` images whose labels cycle through the classes."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    longest = max(map(len, by_class))
    order = [int(own[rank]) for rank in range(longest) for own in by_class if rank < len(own)]
    return order[:count]


def _append_metrics(out: Path, result: page.Report) -> None:
    """Appends one line per network and metric to the files of earlier reports."""
    for entry in result.tables[0].entries:
        for name, figure in entry.figures.items():
            assert not isinstance(figure, str)
            line = {
                "metric": name,
                "network": entry.name,
                "path": entry.path,
                **plain(figure),
                "protocol": dict(result.protocol),
                "environment": dict(result.environment),
            }
            with (out / f"metric-{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()

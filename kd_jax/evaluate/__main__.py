"""Generators measured side by side, with a report that needs nothing but itself.

    python -m kd_jax.evaluate CHECKPOINT_OR_FILE ... --data digits --out DIR

Each network is a folder of checkpoints (a training's), or a published weight file; `NAME=PATH`
gives it a name. Writes `report.html`, `report.md`, `report.json` and one line per network and
figure to `metric-NAME.jsonl` in DIR, which earlier lines stay in. Exits with 2 where something is
refused; nothing is computed then.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.checkpoint import CheckpointError
from kd_jax.data.source import to_float
from kd_jax.evaluate import measure, neighbours, report
from kd_jax.evaluate.conventions import TOOLS
from kd_jax.evaluate.extractor import Extractor, classifier_extractor, inception, lpips
from kd_jax.evaluate.pictures import to_uint8
from kd_jax.evaluate.reference import Reference, read_reference
from kd_jax.evaluate.subject import Samples, Subject, draw, interpolate, open_subject, sampler
from kd_jax.sharding import make_mesh

SHOWN, WAYS, PLACES, COPIES, NEIGHBOURS = 24, 4, 12, 12, 3
"""Samples, interpolations and their places, samples whose neighbours are shown, and how many."""


def main(arguments: list[str] | None = None) -> None:
    """Reads, measures and writes."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(given)
    try:
        text = run(args, shlex.join(["python", "-m", "kd_jax.evaluate", *given]))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(text)
    for name in ("html", "md", "json"):
        print(f"wrote {Path(args.out) / f'report.{name}'}")


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(
        prog="python -m kd_jax.evaluate", description=(__doc__ or "").partition("\n")[0]
    )
    found.add_argument("networks", nargs="+", metavar="[NAME=]PATH", help="checkpoints and files")
    found.add_argument(
        "--data", required=True, help="the real images: digits, photos, folder:PATH or tfds:NAME"
    )
    found.add_argument("--split", default="train", help="of the real images")
    found.add_argument("--resize", action="store_true", help="makes other sizes of data fit")
    found.add_argument("--out", default="evaluation", help="the report's folder")
    found.add_argument("--samples", type=int, help="of each network; by default as many as real")
    found.add_argument("--seed", type=int, default=0, help="of the latents")
    found.add_argument("--batch", type=int, default=64, help="images made at a time")
    found.add_argument("--truncation", type=float, help="psi, of networks that truncate")
    found.add_argument(
        "--inception",
        metavar="FILE",
        help="weights of the FID Inception-v3; without it, a classifier trained on the data, whose "
        "distance is no FID",
    )
    found.add_argument(
        "--lpips",
        nargs="+",
        metavar="FILE",
        help="torchvision's network and LPIPS's weights, or LPIPS's whole module: for path length "
        "and diversity",
    )
    found.add_argument("--paths", type=int, default=1000, help="of the path length")
    found.add_argument(
        "--convention", choices=TOOLS, default="torch-fidelity", help="whose definitions to follow"
    )
    found.add_argument(
        "--package", action="append", default=[], help="of your own modules in checkpoints"
    )
    found.add_argument("--title", default="Generators side by side", help="of the page")
    return found


def run(args: argparse.Namespace, command: str) -> str:
    """Measures everything and writes the report; returns its Markdown."""
    options = {} if args.truncation is None else {"truncation": args.truncation}
    subjects = [open_subject(spec, args.package, **options) for spec in args.networks]
    check(subjects, args)
    source = kd_data.open_source(
        args.data, args.split, *_size(subjects), _cache() / "tfds", resize=args.resize
    )
    count = args.samples or len(source)
    conventions = measure.fitting(TOOLS[args.convention], count, len(source))
    extractor = _extractor(args, source)
    perceptual = lpips(*args.lpips) if args.lpips else None
    if perceptual is not None:  # refuses images that are too small for its network
        one = jax.ShapeDtypeStruct((1, *subjects[0].image_shape), np.float32)
        jax.eval_shape(perceptual.distance, one, one)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    bar = Bar()
    reference = read_reference(
        source, extractor, args.split, _cache(), progress=bar.stage("real images", len(source))
    )
    entries, galleries, per_class = [], Galleries(reference), {}
    for subject in subjects:
        sample = sampler(subject, args.batch, make_mesh())
        samples = sample(draw(subject, count, args.seed), bar.stage(subject.name, count))
        images = to_float(samples.images)
        seen = measure.see(extractor, images)
        # Labels mean the data's classes only where there are as many of them.
        labels = samples.labels if subject.classes == source.num_classes else None
        if labels is not None:
            per_class[subject.name] = measure.by_class(seen, labels, reference, conventions.ddof)
        classes = per_class.get(subject.name)
        figures = measure.quality(seen, classes, reference, conventions)
        if perceptual is not None:
            figures |= measure.perceptual_figures(
                subject, images, perceptual, args.seed, args.paths
            )
        figures |= measure.cost_of(subject, draw(subject, args.batch, args.seed))
        entries.append(report.Entry(subject.name, subject.path, figures))
        ways = sample(interpolate(subject, args.seed, WAYS, PLACES))
        galleries.add(subject.name, samples, ways.images, seen.features)
    columns = [
        column
        for column in (*measure.quality_columns(extractor), *measure.COST)
        if any(column.name in entry.figures for entry in entries)
    ]
    facts: dict[str, Any] = {
        **reference.facts,
        "samples": count,
        "seed": args.seed,
        "convention": f"{args.convention}: {conventions}",
        "perceptual": f"{perceptual.name}, {args.paths} paths" if perceptual else "none",
        "truncation": args.truncation,
        "labels": "the classes in turn, where a network takes them",
        "batch": args.batch,
    }
    written = report.Report(
        title=args.title,
        summary=f"{count:,} samples of each against {len(source):,} images of {source.name}, in "
        f"the features of {extractor.name}.",
        columns=columns,
        entries=entries,
        galleries=galleries.finished(),
        classes=measure.class_table(per_class) if per_class else None,
        protocol=facts,
        environment=environment(),
        command=command,
    )
    _append(out, written)
    return report.write(written, out)


def check(subjects: list[Subject], args: argparse.Namespace) -> None:
    """Refuses what cannot be compared.

    Raises:
      ValueError: one line.
    """
    names = [subject.name for subject in subjects]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two networks are called {min(twice)}; say NAME=PATH")
    first = subjects[0]
    for subject in subjects:
        if subject.image_shape != first.image_shape:
            raise ValueError(
                f"{subject.name} makes images {subject.image_shape} and {first.name} "
                f"{first.image_shape}: a comparison needs one resolution"
            )
    if len(args.lpips or ()) > 2:
        raise ValueError(f"--lpips takes one file or two, not {len(args.lpips)}")
    counts = {"samples": args.samples, "batch": args.batch, "paths": args.paths}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} is not a positive number")


def _size(subjects: list[Subject]) -> tuple[int, int]:
    height, width, channels = subjects[0].image_shape
    if height != width:
        raise ValueError(f"{subjects[0].name} makes {height}x{width}; real images are square")
    return height, channels


def _cache() -> Path:
    return Path(os.environ.get("KD_JAX_CACHE", "~/.cache/kd_jax")).expanduser()


def _extractor(args: argparse.Namespace, source: kd_data.Source) -> Extractor:
    if args.inception:
        return inception(args.inception, TOOLS[args.convention].resize)
    if source.num_classes < 2:
        raise ValueError(
            f"{source.name} has one class, so no classifier can be trained on it: give the weights "
            "of an Inception-v3 with --inception FILE"
        )
    real = kd_data.arrays(source)
    name = args.data.partition(":")[0]
    return classifier_extractor(
        real["image"], real["label"], name=name, classes=source.num_classes, cache=_cache()
    )


class Galleries:
    """Collects the report's pictures, network by network."""

    def __init__(self, reference: Reference):
        self._reference = reference
        shown = [reference.source[i]["image"] for i in _of_classes_in_turn(reference.labels, SHOWN)]
        self._ways: list[report.Picture] = []
        self._copies: list[report.Picture] = []
        side = reference.source.image_shape[0]
        self._scale = max(1, round(72 / side))
        real = report.tiled(to_uint8(np.stack(shown)), PLACES, scale=self._scale)
        self._samples = [report.Picture("real images", real)]
        found = neighbours.nearest(reference.features, reference.features, 2)
        self._usual = float(np.median(found.distances[:, 1]))  # the first is the image itself

    def add(self, name: str, samples: Samples, ways: np.ndarray, features: np.ndarray) -> None:
        """Takes what is shown of one network.

        Args:
          name: the network's.
          samples: its samples.
          ways: `WAYS` interpolations of `PLACES` images each, row by row.
          features: of the samples.
        """
        sheet = report.tiled(samples.images[:SHOWN], PLACES, scale=self._scale)
        clipped = f"; {samples.clipped:.1%} of the values clipped" if samples.clipped else ""
        self._samples.append(report.Picture(f"{name}{clipped}", sheet))
        self._ways.append(report.Picture(name, report.tiled(ways, PLACES, scale=self._scale)))
        distances, indices = neighbours.nearest(features, self._reference.features, NEIGHBOURS)
        closest = np.argsort(distances[:, 0])[:COPIES]
        rows = [samples.images[closest]]
        for place in range(NEIGHBOURS):
            found = [self._reference.source[int(i)]["image"] for i in indices[closest, place]]
            rows.append(to_uint8(np.stack(found)))
        median = float(np.median(distances[:, 0]))
        caption = (
            f"{name}: a sample is {median:.3g} from its nearest real image (median), a "
            f"real image {self._usual:.3g} from another"
        )
        stacked = np.concatenate(rows)
        self._copies.append(
            report.Picture(caption, report.tiled(stacked, len(closest), scale=self._scale))
        )

    def finished(self) -> list[report.Gallery]:
        """All of them, as the report has them."""
        return [
            report.Gallery(
                "Samples",
                "The same latents, place by place, for all networks; real images first.",
                self._samples,
            ),
            report.Gallery(
                "Interpolations", "On great circles between two latents of a class.", self._ways
            ),
            report.Gallery(
                "Copies?",
                "The samples that are nearest to a real image (first row), above their nearest "
                "real images in the extractor's features. A generator that copies is much nearer "
                "to the data than the data are to each other.",
                self._copies,
            ),
        ]


def _of_classes_in_turn(labels: np.ndarray, count: int) -> list[int]:
    """Numbers of images, as many as there are, whose labels go round the classes."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    longest = max(map(len, by_class))
    turns = [int(own[turn]) for turn in range(longest) for own in by_class if turn < len(own)]
    return turns[:count]


class Bar:
    """A line of progress for each stage, on a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def stage(self, name: str, total: int) -> Any:
        """A function that is told how many are done."""

        def told(done: int) -> None:
            if self._on:
                full = 30 * done // total
                line = f"\r{name[:28]:28} [{'#' * full}{'.' * (30 - full)}] {done}/{total}"
                print(line, end="\n" if done >= total else "", file=sys.stderr, flush=True)

        return told


def environment() -> dict[str, str]:
    """Versions and hardware."""
    packages = ("kd_jax", "jax", "jaxlib", "flax", "numpy")
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _append(out: Path, written: report.Report) -> None:
    """One line per network and figure, after those of earlier reports."""
    for entry in written.entries:
        for name, figure in entry.figures.items():
            line = {
                "metric": name,
                "network": entry.name,
                "path": entry.path,
                **{k: v for k, v in figure._asdict().items() if v is not None},
                "protocol": dict(written.protocol),
                "environment": dict(written.environment),
            }
            with (out / f"metric-{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()

"""Evaluates generators against real images and writes a self-contained comparison report.

    kd-jax evaluate CHECKPOINT_OR_FILE_OR_IMAGES ... --data digits --out DIR

Each network is a checkpoint folder of a training run, a published weight file, or a folder of
images; `NAME=PATH` names it. Writes `report.html`, `report.md` and `report.json` to DIR, and
appends one line per network and metric to `metric-METRIC.jsonl`. Exits with status 2 on invalid
arguments, before any computation.
"""

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import data as kd_data
from kd_jax.cli.common import parse_options
from kd_jax.core.checks import UsageError
from kd_jax.core.files import cache_dir, naming
from kd_jax.data.source import to_float
from kd_jax.evaluate import measure
from kd_jax.evaluate.galleries import INTERPOLATIONS, POSITIONS, Galleries
from kd_jax.evaluate.generator import Samples, draw
from kd_jax.evaluate.reference import (
    Reference,
    check_features,
    open_extractor,
    read_reference,
)
from kd_jax.evaluate.subject import Subject, labels_in, open_subjects
from kd_jax.metrics.conventions import TOOLS, Conventions
from kd_jax.metrics.extractor import Extractor, Perceptual, lpips
from kd_jax.metrics.ppl import diversity
from kd_jax.report import page
from kd_jax.report.columns import Entry, Figure, Table, plain
from kd_jax.report.environment import environment
from kd_jax.report.progress import Progress
from kd_jax.train.checkpoint import CheckpointError

DIGITS = ((8, 8, 1), (16, 16, 1))
"""The shapes of the digits: as they are, and as the experiments enlarge them."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: parses the arguments, evaluates the networks and writes the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    try:
        report = run(args, shlex.join(["kd-jax", "evaluate", *arguments]))
    except (OSError, ValueError, UsageError, CheckpointError) as error:
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
        "networks",
        nargs="+",
        metavar="[NAME=]PATH[#PART]",
        help="folders of trainings or checkpoints, weight files, and folders of images, such as "
        "samples of another program; PART: a network of a file, by default the averaged generator",
    )
    result.add_argument(
        "--data", required=True, help="the real images: digits, photos, folder:PATH or tfds:NAME"
    )
    result.add_argument("--split", default="train", help="the split of the real images")
    result.add_argument(
        "--resize",
        action="store_true",
        help="convert images of other sizes, colours and bits; transparency becomes white. Without "
        "it, the images of --data and of folders must fit the networks",
    )
    result.add_argument(
        "--background",
        metavar="COLOUR",
        help="accept transparent images, of --data and of folders, on this colour (red, #7f7f7f)",
    )
    result.add_argument("--out", default="evaluation", help="the output folder")
    result.add_argument(
        "--samples",
        type=int,
        help="samples per network; by default as many as real images, or as the smallest of the "
        "compared folders of images has",
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
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the weight files that they do not determine, as kd-jax inspect lists "
        "them; may be repeated",
    )
    result.add_argument(
        "--features",
        metavar="FILE",
        help="weights of the FID Inception-v3, or of torchvision's VGG16, AlexNet or SqueezeNet; "
        "by default a classifier trained on the data, or, without labels, a VGG16 with random "
        "weights. Only the distance in features of the Inception-v3 is an FID",
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


class Protocol(NamedTuple):
    """The settings that all networks are evaluated with.

    Attributes:
      reference: the real images.
      extractor: the extractor of the features.
      conventions: the metric definitions.
      perceptual: the distance for path length and diversity; None without.
      samples: the number of samples of each network.
      seed: the seed of the first draw of the latents.
      draws: the number of draws of each generator.
      paths: the number of paths of the path length.
      batch: the batch size of the cost.
    """

    reference: Reference
    extractor: Extractor
    conventions: Conventions
    perceptual: Perceptual | None
    samples: int
    seed: int
    draws: int
    paths: int
    batch: int


class Result(NamedTuple):
    """The evaluation of one network.

    Attributes:
      figures: metrics by column name.
      by_class: metrics by class; None if its classes are not those of the data.
      samples: the samples of the first draw.
      features: their features, `[N, D]`.
      interpolations: images of interpolations, row by row; None for a folder of images.
    """

    figures: dict[str, Figure]
    by_class: measure.ByClass | None
    samples: Samples
    features: np.ndarray
    interpolations: np.ndarray | None


def run(args: argparse.Namespace, command: str) -> page.Report:
    """Evaluates all networks, and writes and returns the report."""
    check(args)
    options = {} if args.truncation is None else {"truncation": args.truncation}
    subjects = open_subjects(
        args.networks,
        args.package,
        batch=args.batch,
        resize=args.resize,
        background=args.background,
        file_options=parse_options(args.option),
        **options,
    )
    protocol = open_protocol(args, subjects)
    entries, galleries, by_class = [], Galleries(protocol.reference), {}
    for subject in subjects:
        result = evaluate(subject, protocol)
        entries.append(Entry(subject.name, subject.path, result.figures))
        if result.by_class is not None:
            by_class[subject.name] = result.by_class
        galleries.add(subject.name, result.samples, result.features, result.interpolations)
    report = page.Report(
        title=args.title,
        summary=summarize(subjects, protocol),
        tables=[
            metrics_table(subjects, protocol, entries),
            *([measure.class_table(by_class)] if by_class else []),
        ],
        galleries=galleries.build(),
        protocol=protocol_facts(args, protocol),
        environment={
            **environment(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        command=command,
    )
    with naming(f"write to --out {args.out}"):
        _append_metrics(Path(args.out), report)
        page.write(report, Path(args.out))
    return report


def check(args: argparse.Namespace) -> None:
    """Checks the numbers among the arguments.

    Raises:
      ValueError: an argument is out of range.
    """
    if len(args.lpips or ()) > 2:
        raise ValueError(f"--lpips takes one file or two, not {len(args.lpips)}")
    for name in ("samples", "batch", "paths", "draws"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} is not a positive number")


def open_protocol(args: argparse.Namespace, subjects: Sequence[Subject]) -> Protocol:
    """Opens the real images and the extractors, creates `--out`, and reads the reference.

    Raises:
      ValueError, OSError: an argument does not fit; nothing has been computed then.
      UsageError: `--out` or the cache cannot be written.
    """
    tool = TOOLS[args.convention]
    source = open_data(args, subjects)
    notes = [(images.name, images.notes) for images in subjects] + [(source.name, source.notes)]
    for label, note in [(label, note) for label, own in notes for note in own]:
        print(f"{label}: {note}", file=sys.stderr)
    count = sample_count(args.samples, subjects, len(source))
    conventions = measure.fit_conventions(tool, count, len(source))
    kind = args.features or "auto"
    check_features(kind, source)
    with naming(f"read --lpips {' '.join(args.lpips or ())}"):
        perceptual = lpips(*args.lpips) if args.lpips else None
    if perceptual is not None:  # raises for images that are too small for its network
        image = jax.ShapeDtypeStruct((1, *source.image_shape), np.float32)
        jax.eval_shape(perceptual.distance, image, image)
    with naming(f"write to --out {args.out}"):
        Path(args.out).mkdir(parents=True, exist_ok=True)
    bar, name = Progress(), args.data.partition(":")[0]
    with naming(f"open the extractor of features {kind}"):
        extractor = open_extractor(kind, source, name, cache_dir(), tool.resize, bar)
    show = bar.stage("real images", len(source))
    reference = read_reference(source, extractor, args.split, cache_dir(), progress=show)
    return Protocol(
        reference,
        extractor,
        conventions,
        perceptual,
        count,
        args.seed,
        args.draws,
        args.paths,
        args.batch,
    )


def open_data(args: argparse.Namespace, subjects: Sequence[Subject]) -> kd_data.Source:
    """Opens the real images in the shape of the networks.

    Raises:
      ValueError, OSError: there are no such images, or, without `--resize`, they have another
        shape.
    """
    subject = subjects[0]
    height, _, channels = subject.image_shape
    if args.data == "digits" and subject.image_shape not in DIGITS and not args.resize:
        shapes = ["x".join(map(str, shape)) for shape in (subject.image_shape, *DIGITS)]
        raise ValueError(
            f"{subject.name} has images of {shapes[0]}, and the digits are {shapes[1]}, or "
            f"{shapes[2]} enlarged; --resize converts the digits"
        )
    # Digits and photos have no transparency, but the folders beside them may have.
    opaque = args.data in ("digits", "photos") and any(other.available for other in subjects)
    with naming(f"read --data {args.data}"):
        return kd_data.open_source(
            args.data,
            args.split,
            height,
            channels,
            resize=args.resize,
            background=None if opaque else args.background,
        )


def sample_count(requested: int | None, subjects: Sequence[Subject], real: int) -> int:
    """The number of samples of each network: equal, since the metrics depend on it.

    Args:
      requested: `--samples`; None for as many as there are real images, or as the smallest folder
        has.
      subjects: the networks.
      real: the number of real images.

    Raises:
      ValueError: a folder has fewer images than requested.
    """
    folders = [(subject.available, subject.name) for subject in subjects if subject.available]
    fewest, name = min(folders, key=lambda folder: folder[0], default=(real, ""))
    if requested is None:
        if fewest < real:
            print(
                f"{name} has {fewest:,} images: {fewest:,} samples of each network are compared",
                file=sys.stderr,
            )
        return min(fewest, real)
    if folders and fewest < requested:
        raise ValueError(
            f"{name} has {fewest} images, fewer than --samples={requested}; without --samples, "
            f"{min(fewest, real)} of each network are compared"
        )
    return requested


def evaluate(subject: Subject, protocol: Protocol) -> Result:
    """All metrics of one network, with its samples of the first draw.

    Raises:
      ValueError: an image or a metric is not finite, or a class has too few images.
    """
    seed, perceptual = protocol.seed, protocol.perceptual
    samples, first, further = _draw_all(subject, protocol)
    labels = labels_in(subject, samples.labels, protocol.reference.source)
    ddof = protocol.conventions.ddof
    classes = None
    if labels is not None:
        classes = measure.by_class(first, labels, protocol.reference, ddof)
    figures = measure.quality(first, classes, protocol.reference, protocol.conventions, further)
    if perceptual is not None:
        pairs = protocol.paths
        shown = _with_progress(perceptual, f"{subject.name}: diversity", pairs)
        value = diversity(to_float(samples.images), shown.distance, pairs=pairs, seed=seed)
        figures["diversity"] = Figure(value)
    interpolations = None
    if subject.generator is not None and subject.interpolate is not None:
        if perceptual is not None:
            shown = _with_progress(perceptual, f"{subject.name}: path length", protocol.paths)
            figures["path"] = measure.path_length(subject.generator, shown, seed, protocol.paths)
        inputs = draw(subject.generator, protocol.batch, seed)
        figures |= measure.cost_of(subject.generator, inputs)
        interpolations = subject.interpolate(seed, INTERPOLATIONS, POSITIONS)
    return Result(figures, classes, samples, first.features, interpolations)


def _draw_all(
    subject: Subject, protocol: Protocol
) -> tuple[Samples, measure.Features, list[np.ndarray]]:
    """Samples and extractor outputs of the first draw, and the features of further draws."""
    count, draws = protocol.samples, protocol.draws if subject.generator else 1
    show = Progress().stage(subject.name, draws * count)

    def one(number: int) -> tuple[Samples, measure.Features]:
        start = number * count
        show(start)
        seed = protocol.seed + number
        samples = subject.sample(count, seed, lambda done: show(start + done // 2))
        outputs = measure.extract_in_chunks(
            protocol.extractor, samples.images, lambda done: show(start + (count + done) // 2)
        )
        return samples, outputs

    samples, outputs = one(0)
    return samples, outputs, [one(number)[1].features for number in range(1, draws)]


def _with_progress(perceptual: Perceptual, name: str, pairs: int) -> Perceptual:
    """The distance, which shows the progress of `pairs` pairs of images."""
    show = Progress().stage(name, pairs)
    done = 0
    show(done)

    def distance(images: Any, others: Any) -> Any:
        nonlocal done
        result = perceptual.distance(images, others)
        done += len(images)
        show(done)
        return result

    return perceptual._replace(distance=distance)


def summarize(subjects: Sequence[Subject], protocol: Protocol) -> list[str]:
    """The sentences below the report's title."""
    source, count = protocol.reference.source, protocol.samples
    return [
        f"{count:,} samples of each network against {len(source):,} images of {source.name}, in "
        f"features of {protocol.extractor.name}.",
        *(
            f"{subject.name}: {count:,} of its {subject.available:,} images, drawn at random."
            for subject in subjects
            if subject.available and subject.available > count
        ),
    ]


def metrics_table(
    subjects: Sequence[Subject], protocol: Protocol, entries: Sequence[Entry]
) -> Table:
    """The table of all metrics, with the meaning of its deviations."""
    about = "± is as each metric defines it."
    if protocol.draws > 1 and any(subject.generator for subject in subjects):
        about = (
            f"The Frechet distance is a mean over {protocol.draws} draws of the latents, ± its "
            "standard deviation; of other metrics, ± is as they define it."
        )
    if any(subject.available for subject in subjects):
        about += " A folder of images is a single draw, without a cost."
    columns = (*measure.quality_columns(protocol.extractor), *measure.COST)
    return Table("Metrics", about, columns, tuple(entries))


def protocol_facts(args: argparse.Namespace, protocol: Protocol) -> Mapping[str, Any]:
    """The settings of the evaluation, as JSON values."""
    perceptual = protocol.perceptual
    return {
        **protocol.reference.facts,
        "samples": protocol.samples,
        "seed": args.seed,
        "draws": args.draws,
        "convention": f"{args.convention}: {protocol.conventions}",
        "perceptual": f"{perceptual.name}, {args.paths} paths" if perceptual else "none",
        "truncation": args.truncation,
        "labels": "cycling through the classes, for conditional networks",
        "batch": args.batch,
        **({"background": args.background} if args.background is not None else {}),
        **({"options": ", ".join(args.option)} if args.option else {}),
    }


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

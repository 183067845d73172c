"""All metrics of a generator: quality, perceptual metrics, and cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.core import cost
from kd_jax.core.types import Variables
from kd_jax.data.source import to_float
from kd_jax.evaluate.generator import EvaluatedGenerator, draw
from kd_jax.evaluate.reference import Reference
from kd_jax.metrics.conditional import accuracy, intra_class_frechet_distance
from kd_jax.metrics.conventions import Conventions
from kd_jax.metrics.extractor import Extractor, Perceptual
from kd_jax.metrics.frechet import frechet_distance_of_features
from kd_jax.metrics.inception_score import inception_score
from kd_jax.metrics.kid import kid
from kd_jax.metrics.ppl import cropped_mean, path_distances, slerp
from kd_jax.metrics.prdc import neighbourhoods
from kd_jax.report.columns import Column, Entry, Figure, Table
from kd_jax.report.summary import over_draws

COST = (
    Column("parameters", "parameters", "Trainable parameters.", "cost", "lower", 0),
    Column("macs", "MACs", "Multiply-accumulates per image, from XLA.", "cost", "lower"),
    Column("memory", "memory (B)", "For one batch, from the compiler.", "cost", "lower"),
    Column("latency", "latency (ms)", "Median latency of one image.", "cost", "lower", 2, 1e3),
    Column("per_image", "per image (ms)", "Median batch time per image.", "cost", "lower", 3, 1e3),
)
"""The columns of `cost_of`."""


def quality_columns(extractor: Extractor) -> tuple[Column, ...]:
    """The columns of all metrics that `quality` may return, in table order.

    Args:
      extractor: the feature extractor; only an Inception network's distance is called FID.
    """
    is_fid = extractor.name.startswith("inception")
    distance = "FID" if is_fid else "Frechet distance"
    score = "IS" if is_fid else "classifier score"
    return (
        Column("frechet", distance, f"In features of {extractor.name}.", "quality", "lower", 2),
        Column("kid", "KID x1000", "Unbiased kernel distance.", "quality", "lower", 2, 1e3)
        if is_fid
        else Column("kid", "kernel distance", "KID in these features.", "quality", "lower"),
        Column("score", score, "exp E KL(p(y|x) || p(y)).", "quality", "higher", 2),
        Column("precision", "precision", "Share of realistic samples.", "quality", "higher", 3),
        Column("recall", "recall", "Share of real images covered.", "quality", "higher", 3),
        Column("density", "density", "Real images around a sample.", "quality", "higher", 3),
        Column("coverage", "coverage", "Real images near a sample.", "quality", "higher", 3),
        Column("accuracy", "class accuracy", "Of requested classes.", "quality", "higher", 3),
        Column("intra", "intra-class", f"Mean per-class {distance}.", "quality", "lower", 2),
        Column("path", "path length", "Perceptual, in z; cropped mean.", "quality", "lower", 1),
        Column("diversity", "diversity", "LPIPS between samples.", "quality", "higher", 3),
    )


class Features(NamedTuple):
    """The outputs of an extractor for a set of images.

    Attributes:
      features: `[N, D]`.
      logits: `[N, classes]`; None if the extractor has none.
      unbiased: the logits without the last layer's bias, `[N, classes]`; equal to `logits` if the
        extractor does not provide them.
    """

    features: np.ndarray
    logits: np.ndarray | None
    unbiased: np.ndarray | None


def extract(extractor: Extractor, images: np.ndarray) -> Features:
    """Features and logits of images `[N, H, W, C]` in [-1, 1], in one pass where possible."""
    if extractor.outputs is None:
        own = extractor.logits(images)
        return Features(extractor.features(images), own, own)
    outputs = extractor.outputs(images)
    logits = outputs.get("logits")
    return Features(outputs["features"], logits, outputs.get("logits_unbiased", logits))


def extract_in_chunks(
    extractor: Extractor, images: np.ndarray, progress: Callable[[int], None], size: int = 256
) -> Features:
    """`extract` of uint8 images, converted `size` at a time; the same values.

    Args:
      extractor: the extractor.
      images: `[N, H, W, C]` uint8.
      progress: called after each chunk with the number of finished images.
      size: a multiple of the extractor's batch size.
    """
    parts = []
    for start in range(0, len(images), size):
        parts.append(extract(extractor, to_float(images[start : start + size])))
        progress(min(start + size, len(images)))
    features, *scores = (
        None if any(x is None for x in column) else np.concatenate(column)
        for column in zip(*parts, strict=True)
    )
    assert features is not None
    return Features(features, *scores)


def fit_conventions(conventions: Conventions, samples: int, real: int) -> Conventions:
    """The conventions with KID's subset size limited to the size of the sets.

    Raises:
      ValueError: there are too few images for a metric.
    """
    fewest = min(samples, real)
    minimum = max(conventions.splits, conventions.k + 1, 2)
    if fewest < minimum:
        raise ValueError(
            f"{samples} samples and {real} real images; {minimum} of each are needed for the "
            f"score's {conventions.splits} splits and the {conventions.k} nearest neighbours"
        )
    return conventions._replace(kid_size=min(conventions.kid_size, fewest))


class ByClass(NamedTuple):
    """Metrics by class label, and their totals.

    Attributes:
      distance: Frechet distances.
      intra: the mean of the distances.
      accuracy: shares of images that the extractor assigns to the requested class; empty if its
        classes are not the data's.
      top1: the share over all images; None where `accuracy` is empty.
    """

    distance: Mapping[int, float]
    intra: float
    accuracy: Mapping[int, float]
    top1: float | None


def by_class(outputs: Features, labels: np.ndarray, reference: Reference, ddof: int) -> ByClass:
    """Frechet distance and classification accuracy of each class.

    Args:
      outputs: extractor outputs of generated images.
      labels: int `[N]`, the requested classes.
      reference: the real images.
      ddof: see `frechet.finish`.

    Raises:
      ValueError: a class has too few images.
    """
    distances = intra_class_frechet_distance(
        outputs.features, labels, reference.features, reference.labels, ddof=ddof
    )
    logits = outputs.logits
    if logits is None or logits.shape[1] != reference.source.num_classes:
        return ByClass(distances.classes, distances.mean, {}, None)
    accuracies = accuracy(logits, labels)
    return ByClass(distances.classes, distances.mean, accuracies.classes, accuracies.top1)


def quality(
    outputs: Features,
    classes: ByClass | None,
    reference: Reference,
    conventions: Conventions,
    further: Sequence[np.ndarray] = (),
) -> dict[str, Figure]:
    """The metrics of `quality_columns` for generated images.

    Args:
      outputs: extractor outputs of the images.
      further: features of images of further draws of the latents, for the Frechet distance: its
        figure is the mean and the standard deviation over all draws.
      classes: metrics of the same images by class, from `by_class`; None without labels.
      reference: the real images.
      conventions: the metric definitions to use.

    Raises:
      ValueError: there are too few images, or a feature is not finite.
    """
    features, real, ddof = outputs.features, reference.features, conventions.ddof
    kernel = kid(
        features,
        real,
        subsets=conventions.kid_subsets,
        size=conventions.kid_size,
        seed=conventions.kid_seed,
    )
    overlap = neighbourhoods(features, real, conventions.k, strict=conventions.strict)
    figures = {
        "frechet": frechet_over_draws([features, *further], real, ddof),
        "kid": Figure(*kernel),
        **{name: Figure(value) for name, value in overlap._asdict().items()},
    }
    logits = outputs.logits if conventions.logits_bias else outputs.unbiased
    if logits is not None:
        score = inception_score(logits, conventions.splits, shuffle_seed=conventions.shuffle_seed)
        figures["score"] = Figure(*score)
    if classes is not None:
        figures["intra"] = Figure(classes.intra)
        if classes.top1 is not None:
            figures["accuracy"] = Figure(classes.top1)
    return figures


def frechet_over_draws(features: Sequence[np.ndarray], real: np.ndarray, ddof: int = 1) -> Figure:
    """The Frechet distance to real images: its mean and standard deviation over draws of latents.

    Args:
      features: `[N, D]` for each draw.
      real: `[M, D]`.
      ddof: see `frechet.finish`.

    Raises:
      ValueError: there are too few images, or a feature is not finite.
    """
    return over_draws([frechet_distance_of_features(x, real, ddof) for x in features])


def path_length(subject: EvaluatedGenerator, measure: Perceptual, seed: int, paths: int) -> Figure:
    """The perceptual path length in z (Karras et al. 2019, eq. 2).

    Args:
      subject: the generator.
      measure: the perceptual distance.
      seed: the seed of the paths.
      paths: the number of paths.
    """
    a, *condition = draw(subject, paths, seed + 1)
    b = draw(subject, paths, seed + 2)[0]
    positions = np.random.default_rng(seed).uniform(size=paths)

    @jax.jit
    def apply(variables: Variables, *inputs: Any) -> Any:
        return subject.network.apply(variables, *inputs, **subject.options)[0]

    def generate(*inputs: Any) -> Any:
        return apply(subject.variables, *inputs)

    labels = np.asarray(condition[0]) if condition else None
    distances = path_distances(
        generate, measure.distance, a, b, positions, interpolate=slerp, labels=labels
    )
    return Figure(cropped_mean(distances))


def cost_of(subject: EvaluatedGenerator, inputs: Sequence[Any]) -> dict[str, Figure]:
    """The metrics of `COST`; latencies are medians with half the interquartile range.

    Args:
      subject: the generator.
      inputs: a batch of inputs.
    """
    network, variables = subject.network, subject.variables
    one, batch = [x[:1] for x in inputs], len(inputs[0])
    single = cost.generator_latency(network, variables, *one, **subject.options)
    many, memory = cost.running_cost(network, variables, *inputs, runs=10, **subject.options)
    return {
        "parameters": Figure(cost.parameter_count(variables)),
        "macs": Figure(cost.multiply_accumulates(network, variables, *one, **subject.options)),
        "memory": Figure(memory),
        "latency": Figure(single.median, (single.upper - single.lower) / 2),
        "per_image": Figure(many.median / batch, (many.upper - many.lower) / 2 / batch),
    }


def class_table(by_network: Mapping[str, ByClass]) -> Table:
    """The table of classes in the report.

    Args:
      by_network: metrics by class, by network name.
    """
    columns: list[Column] = []
    rows: dict[int, dict[str, Figure | str]] = {}
    for name, each in by_network.items():
        for title, digits, better, values in (
            ("accuracy", 3, "higher", each.accuracy),
            ("distance", 2, "lower", each.distance),
        ):
            key = f"{name}: {title}"
            columns.append(Column(key, key, group="", better=better, digits=digits))
            for label, value in values.items():
                rows.setdefault(label, {})[key] = Figure(value)
    return Table(
        "Classes",
        "Per class: the distance between samples and real images, and the share of samples that "
        "the classifier assigns to the requested class.",
        tuple(columns),
        tuple(Entry(str(label), "", rows[label]) for label in sorted(rows)),
        "class",
    ).present()

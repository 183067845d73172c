"""What is measured of a generator."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.evaluate import cost
from kd_jax.evaluate.columns import Column, Figure
from kd_jax.evaluate.conditional import accuracy, intra_class_frechet_distance
from kd_jax.evaluate.conventions import Conventions
from kd_jax.evaluate.extractor import Extractor, Perceptual
from kd_jax.evaluate.frechet import frechet_distance_of_features
from kd_jax.evaluate.inception_score import inception_score
from kd_jax.evaluate.kernel import kid
from kd_jax.evaluate.neighbours import neighbourhoods
from kd_jax.evaluate.paths import cropped_mean, diversity, path_distances, slerp
from kd_jax.evaluate.reference import Reference
from kd_jax.evaluate.report import Classes
from kd_jax.evaluate.subject import Subject, draw
from kd_jax.types import Variables

COST = (
    Column("parameters", "parameters", "Trained parameters.", "cost", "lower"),
    Column("macs", "MACs", "Multiply-accumulates of one image, by XLA's count.", "cost", "lower"),
    Column("memory", "memory (B)", "Of a batch, by the compiler's account.", "cost", "lower"),
    Column("latency", "one image (ms)", "Median latency of one image.", "cost", "lower", 2, 1e3),
    Column("per_image", "in a batch (ms)", "Median time per image.", "cost", "lower", 3, 1e3),
)
"""The figures of `cost_of`."""


def quality_columns(extractor: Extractor) -> tuple[Column, ...]:
    """All figures that `quality` may make, in the order of a table.

    Args:
      extractor: in whose features they are; only an Inception's distance is called FID.
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
        Column("precision", "precision", "Samples among real images.", "quality", "higher", 3),
        Column("recall", "recall", "Real images among samples.", "quality", "higher", 3),
        Column("density", "density", "Real images around a sample.", "quality", "higher", 3),
        Column("coverage", "coverage", "Real images with a sample near.", "quality", "higher", 3),
        Column("accuracy", "right class", "Of the one asked for.", "quality", "higher", 3),
        Column("intra", "intra-class", f"Mean {distance} of classes.", "quality", "lower", 2),
        Column("path", "path length", "Perceptual, in z; cropped mean.", "quality", "lower", 1),
        Column("diversity", "diversity", "LPIPS between samples.", "quality", "higher", 3),
    )


class Seen(NamedTuple):
    """What an extractor makes of some images.

    Attributes:
      features: `[N, D]`.
      logits: `[N, classes]`.
      unbiased: the logits without the last layer's bias, `[N, classes]`; of a network that does
        not tell them, the logits.
    """

    features: np.ndarray
    logits: np.ndarray
    unbiased: np.ndarray


def see(extractor: Extractor, images: np.ndarray) -> Seen:
    """Features and logits of images `[N, H, W, C]` in [-1, 1], in one pass where it can be."""
    if extractor.outputs is None:
        logits = extractor.logits(images)
        return Seen(extractor.features(images), logits, logits)
    found = extractor.outputs(images)
    logits = found["logits"]
    return Seen(found["features"], logits, found.get("logits_unbiased", logits))


def fitting(conventions: Conventions, samples: int, real: int) -> Conventions:
    """These conventions with KID's subsets no larger than the sets; what is used is recorded.

    Raises:
      ValueError: there are too few images for a figure; it says how many it needs.
    """
    fewest = min(samples, real)
    needed = max(conventions.splits, conventions.k + 1, 2)
    if fewest < needed:
        raise ValueError(
            f"{samples} samples and {real} real images: the figures need {needed} of each, for "
            f"the score's {conventions.splits} splits and the {conventions.k} nearest neighbours"
        )
    return conventions._replace(kid_size=min(conventions.kid_size, fewest))


class ByClass(NamedTuple):
    """Figures of each class, by label, and of all.

    Attributes:
      distance: Frechet distances.
      intra: their mean.
      accuracy: shares of images that the extractor gives the class asked for; empty where its
        classes are not the data's.
      top1: that share of all images; None where there is none.
    """

    distance: Mapping[int, float]
    intra: float
    accuracy: Mapping[int, float]
    top1: float | None


def by_class(seen: Seen, labels: np.ndarray, reference: Reference, ddof: int) -> ByClass:
    """Frechet distance and classification accuracy of each class.

    Args:
      seen: of generated images.
      labels: int `[N]`, the classes asked for.
      reference: the real images.
      ddof: of the covariances.

    Raises:
      ValueError: a class has too few images.
    """
    distances = intra_class_frechet_distance(
        seen.features, labels, reference.features, reference.labels, ddof=ddof
    )
    if seen.logits.shape[1] != reference.source.num_classes:
        return ByClass(distances.classes, distances.mean, {}, None)
    right = accuracy(seen.logits, labels)
    return ByClass(distances.classes, distances.mean, right.classes, right.top1)


def quality(
    seen: Seen,
    classes: ByClass | None,
    reference: Reference,
    conventions: Conventions,
) -> dict[str, Figure]:
    """The figures of `quality_columns` for generated images.

    Args:
      seen: of the images.
      classes: of the same images, from `by_class`; None where there were no labels.
      reference: the real images.
      conventions: whose definitions to follow.

    Raises:
      ValueError: too few images, or features that are not finite.
    """
    features, real, ddof = seen.features, reference.features, conventions.ddof
    kernel = kid(
        features,
        real,
        subsets=conventions.kid_subsets,
        size=conventions.kid_size,
        seed=conventions.kid_seed,
    )
    logits = seen.logits if conventions.logits_bias else seen.unbiased
    score = inception_score(logits, conventions.splits, shuffle_seed=conventions.shuffle_seed)
    around = neighbourhoods(features, real, conventions.k, strict=conventions.strict)
    found = {
        "frechet": Figure(frechet_distance_of_features(features, real, ddof)),
        "kid": Figure(*kernel),
        "score": Figure(*score),
        **{name: Figure(value) for name, value in around._asdict().items()},
    }
    if classes is not None:
        found["intra"] = Figure(classes.intra)
        if classes.top1 is not None:
            found["accuracy"] = Figure(classes.top1)
    return found


def perceptual_figures(
    subject: Subject, images: np.ndarray, measure: Perceptual, seed: int, paths: int
) -> dict[str, Figure]:
    """The perceptual path length in z (Karras et al. 2019, eq. 2) and the samples' diversity.

    Args:
      subject: the generator.
      images: its samples, `[N, H, W, C]` in [-1, 1].
      measure: the distance.
      seed: of the paths.
      paths: how many, and how many pairs of samples.
    """
    a, *condition = draw(subject, paths, seed + 1)
    b = draw(subject, paths, seed + 2)[0]
    places = np.random.default_rng(seed).uniform(size=paths)

    @jax.jit
    def apply(variables: Variables, *inputs: Any) -> Any:
        return subject.network.apply(variables, *inputs, **subject.options)[0]

    def generate(*inputs: Any) -> Any:
        return apply(subject.variables, *inputs)

    labels = np.asarray(condition[0]) if condition else None
    found = path_distances(
        generate, measure.distance, a, b, places, interpolate=slerp, labels=labels
    )
    return {
        "path": Figure(cropped_mean(found)),
        "diversity": Figure(diversity(images, measure.distance, pairs=paths, seed=seed)),
    }


def cost_of(subject: Subject, inputs: Sequence[Any]) -> dict[str, Figure]:
    """The figures of `COST`; latencies are medians, with half the distance of the quartiles.

    Args:
      subject: the generator.
      inputs: a batch of its inputs.
    """
    network, variables = subject.network, subject.variables
    one, batch = [x[:1] for x in inputs], len(inputs[0])
    single = cost.generator_latency(network, variables, *one, **subject.options)
    many, memory = cost.running(network, variables, *inputs, runs=10, **subject.options)
    return {
        "parameters": Figure(cost.parameter_count(variables)),
        "macs": Figure(cost.multiply_accumulates(network, variables, *one, **subject.options)),
        "memory": Figure(memory),
        "latency": Figure(single.median, (single.upper - single.lower) / 2),
        "per_image": Figure(many.median / batch, (many.upper - many.lower) / 2 / batch),
    }


def class_table(found: Mapping[str, ByClass]) -> Classes:
    """The report's table of classes.

    Args:
      found: by the network's name.
    """
    columns, digits, figures = [], [], []
    for name, each in found.items():
        for title, places, values in (("right", 3, each.accuracy), ("distance", 2, each.distance)):
            if values:
                columns.append(f"{name}: {title}")
                digits.append(places)
                figures.append(values)
    labels = sorted(set.intersection(*map(set, figures)))
    return Classes(
        "The distance of each class's samples to its real images, and the share of samples that "
        "the classifier gives the class asked for.",
        columns,
        digits,
        [[label, *(values[label] for values in figures)] for label in labels],
    )

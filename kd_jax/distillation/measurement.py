"""How close a student is to its teacher, and to real images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax.core.family import Interface
from kd_jax.core.mesh import make_mesh
from kd_jax.core.network import Network
from kd_jax.core.types import Variables
from kd_jax.data.source import Source, to_float
from kd_jax.distillation.examples import Examples
from kd_jax.evaluate import measure
from kd_jax.evaluate.generator import EvaluatedGenerator, draw, sampler
from kd_jax.metrics.extractor import PIXELS, Extractor, Perceptual, from_file, random_network
from kd_jax.metrics.image_quality import psnr
from kd_jax.metrics.kid import kid
from kd_jax.model import Model
from kd_jax.report.columns import Column, Figure

SMALLEST = 16
"""The smallest side of images that the network with random weights takes."""

Sampler = Callable[[Variables, Sequence[Any]], np.ndarray]
"""`(variables, inputs [N, ...]) -> images [N, H, W, C]` uint8."""


class Measurement(NamedTuple):
    """Inputs, the teacher's outputs for them, and what students are compared by.

    Attributes:
      inputs: the inputs, `[N, ...]`.
      answers: the teacher's outputs for them, uint8.
      reference: features `[N, D]` of the teacher's samples for other latents; of a teacher that
        takes images, those of its answers. None without an extractor.
      extractor: the features of the Frechet and kernel distances; None for images that are too
        small, or by wish.
      perceptual: LPIPS; None without weights.
      real: features of real images; None without any.
      targets: of inputs made from images, the images themselves, uint8; None for others.
    """

    inputs: tuple[Any, ...]
    answers: np.ndarray
    reference: np.ndarray | None
    extractor: Extractor | None
    perceptual: Perceptual | None
    real: np.ndarray | None
    targets: np.ndarray | None

    def columns(self) -> tuple[Column, ...]:
        """The columns of `figures`, the first of which selects the best checkpoint."""
        features = self.extractor.name if self.extractor else ""
        is_fid = features.startswith("inception")
        name = "FID" if is_fid else "Frechet distance"
        return (
            Column("frechet", name, f"To the teacher's samples, in features of {features}."),
            Column("error", "L1 to teacher", "Of images in [-1, 1].", digits=4),
            Column("psnr", "PSNR to teacher (dB)", "Mean.", better="higher", digits=2),
            Column("lpips", "LPIPS to teacher", "Mean.", digits=4),
            Column("kid", "kernel distance", "To the teacher's samples, in these features."),
            Column("real", f"{name} to real images", "In these features."),
            Column("target", "PSNR to images (dB)", "Mean.", better="higher", digits=2),
        )

    def figures(self, images: np.ndarray, few: bool = False) -> dict[str, Figure]:
        """The figures of a network's outputs for the inputs.

        Args:
          images: `[N, H, W, C]` uint8; fewer are outputs for the first inputs.
          few: whether to compute only what a training is observed by.
        """
        answers, result = self.answers[: len(images)], {}
        ours, theirs = to_float(images), to_float(answers)
        features = None
        if self.extractor is not None and self.reference is not None:
            features = self.extractor.features(ours)
            result["frechet"] = measure.frechet_over_draws([features], self.reference)
        result["error"] = Figure(float(np.abs(ours - theirs).mean()))
        if not few and features is not None and self.reference is not None:
            size = min(1000, len(features), len(self.reference))
            result["kid"] = Figure(*kid(features, self.reference, subsets=20, size=size, seed=0))
        if not np.array_equal(images, answers):  # not of the teacher itself
            result["psnr"] = _mean_psnr(ours, theirs)
            if self.perceptual is not None and not few:
                size = max(1, min(16, PIXELS // (ours.shape[1] * ours.shape[2])))
                parts = [
                    np.asarray(self.perceptual.distance(ours[i : i + size], theirs[i : i + size]))
                    for i in range(0, len(ours), size)
                ]
                result["lpips"] = _mean(np.concatenate(parts))
        if few:
            return result
        if self.real is not None and features is not None:
            result["real"] = measure.frechet_over_draws([features], self.real)
        if self.targets is not None:
            result["target"] = _mean_psnr(ours, to_float(self.targets))
        return result


def _mean(values: np.ndarray) -> Figure:
    return Figure(float(np.mean(values)))


def _mean_psnr(images: np.ndarray, targets: np.ndarray) -> Figure:
    """The mean over images, in which equal images count as 100 dB."""
    return _mean(np.minimum(psnr(images, targets), 100.0))


def make_sampler(model: Model, network: Network) -> Sampler:
    """The outputs of a network with the model's interface, for any number of inputs."""
    subject = EvaluatedGenerator("the generator", "", network, {}, model.inputs, model.classes, {})
    sample = sampler(subject, 64, make_mesh(devices=jax.local_devices()))

    def run(variables: Variables, inputs: Sequence[Any]) -> np.ndarray:
        images: np.ndarray = sample(inputs, variables=variables).images
        return images

    return run


def open_features(interface: Interface, features: str | None) -> Extractor | None:
    """The extractor of the distances.

    Args:
      interface: of the teacher.
      features: a file of weights (`from_file`), or `none`; None for a network with random weights,
        if the images are large enough for it.

    Raises:
      ValueError: the file is not one of such weights.
    """
    if features == "none":
        return None
    if features is not None:
        return from_file(features)
    fits = min(interface.output[:2]) >= SMALLEST and interface.channels < 4
    return random_network() if fits else None


def make_measurement(
    teacher: Model,
    held_out: Examples | None,
    count: int,
    *,
    extractor: Extractor | None = None,
    perceptual: Perceptual | None = None,
    real: Source | None = None,
) -> Measurement:
    """The measurement of the students of a teacher.

    Args:
      teacher: the teacher.
      held_out: inputs that are not trained on, of a teacher that takes images; None for latents.
      count: the number of latents; of held-out images, the largest number.
      extractor: the features of the distances, from `open_features`.
      perceptual: LPIPS.
      real: real images of the teacher's domain, for a teacher that takes latents.
    """
    sample = make_sampler(teacher, teacher.network)
    inputs: tuple[Any, ...]
    targets: np.ndarray | None = None
    if held_out is None:
        subject = EvaluatedGenerator(
            "", "", teacher.network, {}, teacher.inputs, teacher.classes, {}
        )
        inputs, others = (tuple(draw(subject, count, seed)) for seed in (0, 1))
    else:
        assert held_out.select is not None
        batch = held_out.select(np.arange(min(count, held_out.total or 0)))
        inputs = tuple(np.asarray(x) for x in jax.jit(held_out.prepare)(batch))
        if held_out.targets:
            from kd_jax.report.pictures import to_uint8

            targets = to_uint8(batch["image"])
    answers = sample(teacher.variables, inputs)
    reference = None
    if extractor is not None:
        samples = answers if held_out is not None else sample(teacher.variables, others)
        reference = extractor.features(to_float(samples))
    real_features = None
    if real is not None and extractor is not None:
        images = [real[i]["image"] for i in range(min(len(real), 10_000))]
        real_features = extractor.features(np.stack(images))
    return Measurement(inputs, answers, reference, extractor, perceptual, real_features, targets)

"""Shared parts of the image restoration tasks: super-resolution, inpainting, paired translation.

The student from scratch is trained on the target images, the distilled student on those and the
teacher's. All networks are evaluated on held-out photographs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import harness, prediction, runner
from experiments.runner import Comparison, Evaluation, Predictions
from kd_jax import data as kd_data, losses, methods, tasks
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs, MakeInputs, Term
from kd_jax.core.setup import Networks, Teacher
from kd_jax.core.types import Array, Batch
from kd_jax.metrics import extractor, frechet, image_quality
from kd_jax.models import translation
from kd_jax.models.resnet import upsample
from kd_jax.report import pictures
from kd_jax.report.columns import Column
from kd_jax.train.training import TrainingPlan

_WINDOW = 11

Restore: TypeAlias = Callable[[Inputs, kd_data.Source], Any]
"""`(the generators' inputs, the training images) -> images [N, H, W, C]`: a baseline."""

METRICS = (
    Column("psnr", "PSNR, dB", better="higher", digits=2),
    Column("ssim", "SSIM", better="higher", digits=4),
    Column("lpips", "LPIPS", digits=4),
    Column("frechet", "Frechet distance", digits=2),
)


def base_config() -> ConfigDict:
    """The settings that these experiments share; each completes `teacher` and `student`."""
    config = prediction.base_config()
    config.update(
        {
            "data": {
                "source": "photos",  # or folder:PATH, tfds:NAME
                "test": "",  # the held-out images; by default the source's split `test`
                "size": 64,
                "channels": 3,
                "resize": False,  # resize images of other sizes
                "background": "",  # a colour behind transparent images; by default white
                "patches": False,  # instead cut a folder's images into patches of that size
                "augment": True,  # random mirroring and rotations by 90 degrees
            },
            "distilled": {
                "truth": 1.0,  # weight of the L1 to the target
                "response": 1.0,  # of the L1 to the teacher's image
                "feature": 0.0,  # of the connected features' L2
            },
            "adversarial": 0.0,  # weight of a least-squares loss with a PatchGAN; 0 for none
            "discriminator": {"width": 16, "layers": 2, "rate": 2e-4},
        }
    )
    config.evaluate.images = 0  # 0: all
    # Published weights: one file, or trunk and heads separated by a comma; empty: no LPIPS.
    config.evaluate.lpips = ""
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """Shrinks the settings for tests: seconds of training, too few steps to learn anything."""
    prediction.tiny(config)
    config.data.size = 16
    config.evaluate.images = 12
    return config


def open_images(config: ConfigDict) -> tuple[kd_data.Source, kd_data.Source]:
    """Opens the training images and the held-out images.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    prediction.check(config)
    prediction.check_distilled(config)
    if config.data.source.startswith("folder:") and not config.data.test:
        raise ValueError(
            "a folder has no held-out images: --config.data.test=folder:PATH is needed too"
        )
    if config.data.size < _WINDOW:
        raise ValueError(
            f"config.data.size={config.data.size} is below {_WINDOW}, the side of SSIM's window"
        )
    other = config.data.test or config.data.source
    train, test = (
        runner.open_images(config, spec, prediction.split_name(spec, part))
        for spec, part in ((config.data.source, "train"), (other, "test"))
    )
    prediction.check_held_out(train, test, "--config.data.test")
    if train.num_classes > 1:
        prediction.check_frechet_count(
            min(config.evaluate.images or len(test), len(test)),
            test,
            "--config.evaluate.images=0 takes all images, --config.data.test others",
        )
    return train, test


def make_comparison(
    config: ConfigDict,
    title: str,
    task: MakeInputs,
    teacher: Network,
    student: Network,
    taps: Sequence[str] | Mapping[str, str],
    *,
    baselines: Mapping[str, Restore],
    show_inputs: Callable[[Inputs], Any],
) -> Comparison:
    """Opens the images and builds the comparison.

    Args:
      config: the configuration.
      title: the report's title.
      task: the task, without augmentation.
      teacher: the large generator.
      student: the small generator.
      taps: names of features to match, or `{student's: teacher's}`.
      baselines: non-learned methods, by name.
      show_inputs: the generator's inputs as images `[N, H, W, C]` for a picture.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    train, test = open_images(config)
    distance = _lpips(config)
    inputs = tasks.dihedral_augmentation(task) if config.data.augment else task
    discriminator = make_discriminator(config)
    comparison = prediction.make_comparison(
        config,
        title=title,
        batches=prediction.make_batches(config, train),
        task=inputs,
        teacher=teacher,
        student=student,
        plan=partial(training_plan, config, train, inputs, teacher, student, discriminator, taps),
        evaluation=lambda: make_evaluation(
            config, task, train, test, distance, baselines, show_inputs
        ),
        tracked=("psnr", "PSNR, dB"),
    )
    batch = runner.example_batch(config, train)
    example = jax.eval_shape(inputs, jax.random.key(0), batch)
    check_images(teacher, student, example)
    if discriminator is not None:
        jax.eval_shape(discriminator.init, jax.random.key(0), example.real, *example.condition)
    return comparison


def check_images(teacher: Network, student: Network, example: Inputs) -> None:
    """Checks that the generators' images have the shape of the targets.

    Raises:
      ValueError: a one-line message.
    """
    for name, network in (("teacher", teacher), ("student", student)):
        image = jax.eval_shape(
            lambda *x, network=network: network.apply(network.init(jax.random.key(0), *x), *x)[0],
            *example.generator,
        )
        target: Any = example.real
        if image.shape != target.shape:
            raise ValueError(
                f"the {name} makes images {image.shape[1:]}; {target.shape[1:]} is expected"
            )


def make_discriminator(config: ConfigDict) -> Network | None:
    """The PatchGAN of Isola et al. 2017, or None without an adversarial loss.

    Raises:
      ValueError: a setting does not fit.
    """
    if not config.adversarial:
        return None
    sizes = config.discriminator
    return translation.patch_discriminator(
        sizes.width, layers=sizes.layers, dtype=prediction.dtype(config)
    )


def training_plan(
    config: ConfigDict,
    train: kd_data.Source,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    discriminator: Network | None,
    taps: Sequence[str] | Mapping[str, str],
    name: str,
    variables: Teacher | None = None,
) -> TrainingPlan:
    """The plan of the training of this name: teacher, from_scratch or distilled.

    The loss is the L1 to the targets and, for the distilled student, to the teacher's images.
    """
    batch = runner.example_batch(config, train)
    if name == runner.DISTILLED:
        nets, terms = make_distillation(config, teacher, student, taps, inputs, batch)
    else:
        nets = Networks(teacher if name == runner.TEACHER else student)
        terms = {"truth": Term(lambda f: losses.response.l1(f.student.output, f.real))}
    nets = nets._replace(discriminator=discriminator)
    rate = config.discriminator.rate
    all_terms = prediction.with_adversarial(terms, config.adversarial)
    return prediction.training_plan(config, name, nets, all_terms, inputs, variables, d_rate=rate)


def make_distillation(
    config: ConfigDict,
    teacher: Network,
    student: Network,
    taps: Sequence[str] | Mapping[str, str],
    inputs: MakeInputs,
    batch: Batch,
) -> tuple[Networks, dict[str, Term]]:
    """The networks and the non-adversarial terms of the distilled student.

    The student's features are connected to the teacher's if a feature term needs it.
    """
    weights = config.distilled
    terms = {
        "truth": Term(lambda f: losses.response.l1(f.student.output, f.real), weights.truth),
        "response": Term(
            lambda f: losses.response.l1(f.student.output, f.teacher.output), weights.response
        ),
        "feature": Term(methods.on_taps(losses.feature.l2, taps, connect=True), weights.feature),
    }
    terms = {name: term for name, term in terms.items() if term.weight}
    if "feature" in terms:
        student = prediction.connect_features(student, teacher, taps, inputs, batch)
    return Networks(student, teacher=teacher), terms


def make_evaluation(
    config: ConfigDict,
    task: MakeInputs,
    train: kd_data.Source,
    test: kd_data.Source,
    distance: extractor.Perceptual | None,
    baselines: Mapping[str, Restore],
    show_inputs: Callable[[Inputs], Any],
) -> Evaluation:
    """The evaluation on held-out images; trains the classifier, or reads it from the cache."""
    batch = subsample(test, config.evaluate.images or len(test))
    inputs = jax.jit(task)(jax.random.key(config.evaluate.seed), batch)
    targets = np.asarray(inputs.real)
    notes = ["PSNR and SSIM are means over images, of all channels and pixels."]
    measures: dict[str, Callable[[Predictions], float]] = {
        "psnr": lambda images: float(np.minimum(image_quality.psnr(images, targets), 100.0).mean()),
        "ssim": lambda images: float(image_quality.ssim(images, targets, window=_WINDOW).mean()),
    }
    if distance is not None:
        notes.append(f"LPIPS is `{distance.name}`.")
        measures["lpips"] = lambda images: float(
            runner.apply_in_chunks(distance.distance, (images, targets), chunk_size=32).mean()
        )
    if train.num_classes > 1:
        features = classifier(config, train)
        reference = frechet.moments(features.features(targets))
        notes.append(distance_note(features.name, "the targets"))
        measures["frechet"] = lambda images: frechet.frechet_distance(
            frechet.moments(features.features(images)), reference
        )

    shown = runner.evenly_spaced(len(targets), config.evaluate.examples)
    first_rows = {"input": np.asarray(show_inputs(inputs))[shown]}

    def draw(file: Path, predictions: Mapping[str, Predictions]) -> None:
        pictures.save_grid(file, {**first_rows, **predictions, "truth": targets[shown]})

    def compute_validation(images: Predictions) -> dict[str, float]:
        images = np.clip(images, -1, 1)
        squared_error = float(((images - targets) ** 2).mean())
        return {"squared_error": squared_error, "psnr": measures["psnr"](images)}

    return Evaluation(
        inputs=inputs,
        metrics=[metric for metric in METRICS if metric.name in measures],
        compute=lambda x: {name: fn(np.clip(x, -1, 1)) for name, fn in measures.items()},
        compute_validation=compute_validation,
        baselines={
            name: np.asarray(restore(inputs, train), np.float32)
            for name, restore in baselines.items()
        },
        description=f"{len(targets):,} held-out images",
        notes=notes,
        shown=shown,
        draw=draw,
        predict=runner.predict_in_chunks,
    )


def subsample(source: kd_data.Source, count: int) -> Batch:
    """At most `count` images, evenly spaced in the source, as one batch."""
    examples = [source[int(i)] for i in runner.evenly_spaced(len(source), count)]
    return {name: np.stack([example[name] for example in examples]) for name in ("image", "label")}


def classifier(config: ConfigDict, source: kd_data.Source) -> extractor.Extractor:
    """The classifier whose features the Frechet distance is measured in."""
    real = kd_data.load_all(source)
    return extractor.classifier_extractor(
        real["image"],
        real["label"],
        name=config.data.source.partition(":")[0],
        classes=source.num_classes,
        cache=harness.cache_dir(),
        steps=300,  # of large patches; it only has to recognise textures
        batch=32,
    )


def distance_note(name: str, reference: str) -> str:
    """A report's sentence on the Frechet distance to the reference images."""
    return (
        f"Frechet distance: to {reference}, in the features of `{name}` (a small classifier "
        "trained on this data; comparable only with itself, and not an FID)."
    )


def _lpips(config: ConfigDict) -> extractor.Perceptual | None:
    files = [part.strip() for part in config.evaluate.lpips.split(",") if part.strip()]
    if len(files) > 2:
        raise ValueError(
            f"config.evaluate.lpips={config.evaluate.lpips!r} names {len(files)} files"
        )
    return extractor.lpips(*files) if files else None


def enlarge(images: Array, size: int) -> Array:
    """Images enlarged to height `size` by repeating pixels, for a picture."""
    return upsample(images, size // images.shape[1])

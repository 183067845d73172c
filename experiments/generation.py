"""Shared parts of the experiments whose generators map latents, and labels, to images.

A configuration has the sections `seeds`, `latent`, `batch_size`, `data`, `evaluate`, `mesh`, `run`,
`log_every`, `evaluate_every` and `checkpoint_every`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import kd_jax as kd
from experiments import harness, runner
from experiments.runner import Evaluation, Predict, Predictions, Result, Run
from kd_jax import data as kd_data
from kd_jax.core.family import Interface
from kd_jax.core.mesh import make_mesh
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs, MakeInputs
from kd_jax.core.setup import PerNetwork, Teacher
from kd_jax.core.types import Variables
from kd_jax.core.wrappers import data_free
from kd_jax.data.source import to_float
from kd_jax.evaluate import measure
from kd_jax.evaluate.generator import EvaluatedGenerator, draw, sampler
from kd_jax.evaluate.reference import check_features, open_extractor, read_reference
from kd_jax.metrics import prdc
from kd_jax.metrics.conventions import TOOLS
from kd_jax.report import pictures
from kd_jax.report.page import Gallery, Picture
from kd_jax.report.progress import Progress
from kd_jax.train.checkpoint import CheckpointError
from kd_jax.train.training import TrainingPlan

CONVENTION = "torch-fidelity"
"""The tool whose definition of the Frechet distance is used, as by `kd-jax evaluate`."""

COLUMNS = 20
"""The number of samples in a picture."""


class Task(NamedTuple):
    """The data, the networks and the devices that a configuration describes.

    Attributes:
      source: the images.
      teacher: the teacher's networks; the discriminator is needed only if the teacher is trained.
      student: the student's networks.
      inputs: the task.
      mesh: the devices to train on.
      teacher_variables: the teacher's variables, if they are loaded.
    """

    source: kd_data.Source
    teacher: PerNetwork
    student: PerNetwork
    inputs: MakeInputs
    mesh: Mesh
    teacher_variables: Teacher | None = None


def evaluate_config(samples: int) -> dict[str, Any]:
    """The section `evaluate`.

    Args:
      samples: the number of samples of each draw; 0: as many as there are real images.
    """
    return {
        "samples": samples,
        "seed": 0,
        "draws": 3,  # of the latents, in the report: a distance has a deviation over them
        # Of the distance: classifier, random (a network that needs no labels), a file of Inception
        # weights, auto (the classifier for labelled data, else random), or none: no distance.
        "features": "auto",
    }


def open_source(config: ConfigDict) -> kd_data.Source:
    """Checks the settings that all these experiments share, and opens the images.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    source = runner.open_images(config, config.data.source, "train")
    runner.check_schedule(config)
    settings = config.evaluate
    if settings.features != "none":
        try:
            check_features(settings.features, source)
        except ValueError as error:
            raise ValueError(f"config.evaluate.{error}; 'none' measures no distance") from None
    if settings.samples == 1:
        raise ValueError(f"config.evaluate.samples={settings.samples} must be 0 or at least 2")
    return source


def load_teacher(
    config: ConfigDict, setting: str, path: str, part: str, inputs: Sequence[Any], classes: int = 0
) -> tuple[Network, Variables]:
    """Loads a teacher from a weight file or from a training, such as that of another run.

    Args:
      config: the configuration.
      setting: the name of the setting that holds `path`, for messages.
      path: what `kd_jax.load` reads; of a training, its latest averaged generator, the teacher that
        the training's own run distils.
      part: the network in a file; empty: the averaged generator.
      inputs: the generators' inputs in this experiment, arrays or `ShapeDtypeStruct`s `[B, ...]`.
      classes: the number of classes of their labels; 0 without labels.

    Raises:
      ValueError: it cannot be loaded, or its inputs, classes or images differ; a one-line message.
      OSError: it cannot be read.
    """
    name = f"config.{setting}={path}"
    try:
        model = kd.load(path, part or None, latest=True, generator=True)
    except CheckpointError as error:
        raise ValueError(f"{name}: {error}") from None
    shape = (config.data.size, config.data.size, config.data.channels)
    like = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in inputs)
    takes, expected = model.interface, Interface(like, shape, classes)
    if takes != expected:
        raise ValueError(
            f"{name} is a generator {takes.describe()}; this configuration has generators "
            f"{expected.describe()}"
        )
    return model.network, model.variables


def make_evaluation(config: ConfigDict, task: Task) -> Evaluation:
    """The Frechet distance of samples to the real images, as `kd-jax evaluate` measures it.

    With a classifier of the data, also the share of samples that it assigns to their class.
    """
    source, progress = task.source, Progress()
    example = jax.eval_shape(task.inputs, jax.random.key(0), runner.example_batch(config, source))
    like = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in example.generator)
    classes = source.num_classes if len(like) > 1 else 0
    count = config.evaluate.samples or len(source)

    def inputs(number: int) -> tuple[Any, ...]:
        subject = EvaluatedGenerator("", "", task.student.generator, {}, like, classes, {})
        return draw(subject, count, config.evaluate.seed + number)

    first = inputs(0)

    def predict(network: Network) -> Predict:
        subject = EvaluatedGenerator("the generator", "", network, {}, like, classes, {})
        sample = sampler(subject, 256, make_mesh(devices=jax.local_devices()))
        return lambda variables, inputs: sample(inputs, variables=variables).images

    shown = np.arange(min(COLUMNS, count))
    evaluation = Evaluation(
        inputs=Inputs(first),
        metrics=(),
        compute=lambda images: {},
        compute_validation=lambda images: {},
        baselines={},
        description=f"{count:,} samples",
        notes=(),
        shown=shown,
        draw=partial(_draw_samples, source),
        predict=predict,
        settings={"data": source.name, "seed of the latents": config.evaluate.seed},
    )
    if config.evaluate.features == "none":
        return evaluation
    extractor = open_extractor(
        config.evaluate.features,
        source,
        config.data.source.partition(":")[0],
        harness.cache_dir(),
        TOOLS[CONVENTION].resize,
        progress,
    )
    show = progress.stage(f"features of {source.name}", len(source))
    reference = read_reference(source, extractor, "train", harness.cache_dir(), progress=show)
    labels = np.asarray(first[1]) if classes else None

    def frechet(images: Predictions) -> dict[str, float]:
        return {"frechet": distance(extractor.features(to_float(images)))}

    def distance(features: np.ndarray) -> float:
        ddof = TOOLS[CONVENTION].ddof
        return measure.frechet_over_draws([features], reference.features, ddof).value

    def compute(images: Predictions) -> dict[str, float]:
        outputs = measure.extract(extractor, to_float(images))
        values = {"frechet": distance(outputs.features)}
        if labels is not None and is_classifier:
            assert outputs.logits is not None
            values["accuracy"] = float((outputs.logits.argmax(axis=1) == labels).mean())
        return values

    is_classifier = extractor.name.startswith(f"{config.data.source.partition(':')[0]}-classifier")
    columns = {column.name: column for column in measure.quality_columns(extractor)}
    return evaluation._replace(
        metrics=[columns[name] for name in ("frechet", *["accuracy"] * is_classifier)],
        compute=compute,
        compute_validation=frechet,
        description=f"{count:,} samples against the {len(source):,} real images",
        notes=[_about(extractor.name)],
        draws=[inputs(number) for number in range(1, config.evaluate.draws)],
        settings={**evaluation.settings, "extractor": extractor.name, "convention": CONVENTION},
    )


def _about(extractor: str) -> str:
    """The report's sentence on the features of its distance."""
    if extractor.startswith("inception"):
        about = "the FID's network; comparable with equal numbers of samples and real images"
    elif extractor.startswith("random"):
        about = "VGG16 with random weights; comparable only with itself, and not an FID"
    else:
        about = (
            "a small classifier trained on this data; comparable only with itself, and not an FID"
        )
    return f"Frechet distance in the features of `{extractor}` ({about}); lower is better."


def _draw_samples(source: kd_data.Source, file: Path, rows: Mapping[str, Predictions]) -> None:
    """Writes a grid of real images and samples, enlarged to about 64 pixels."""
    columns = len(next(iter(rows.values())))
    grid = {"real": real_examples(source, columns)}
    grid |= {name: to_float(images) for name, images in rows.items()}
    scale = max(1, round(64 / source.image_shape[0]))
    pictures.save_grid(file, grid, scale=scale)


def real_examples(source: kd_data.Source, count: int) -> np.ndarray:
    """Real images whose classes are those of the samples' columns."""
    labels = source.read_labels()
    classes = np.unique(labels)  # a subset of the data may lack some
    indices = []
    for column in range(count):
        members = np.flatnonzero(labels == classes[column % len(classes)])
        indices.append(members[(column // len(classes)) % len(members)])
    return np.stack([source[int(i)]["image"] for i in indices])


def nearest_gallery(
    sources: Mapping[str, kd_data.Source], run: Run, results: Mapping[str, Sequence[Result]]
) -> Sequence[Gallery]:
    """Samples beside the training images that are nearest to them, in pixels.

    Args:
      sources: the first seed's training images, by the name of the training.
      run: the run.
      results: its results; of those that have no source here, nothing is drawn.
    """
    seed, items = run.config.seeds[0], []
    for training in run.comparison.students:
        if training.name not in results or training.name not in sources:
            continue
        source = sources[training.name]
        images, samples = kd_data.load_all(source)["image"], to_float(run.shown(training, seed))
        queries, references = (x.reshape(len(x), -1) for x in (samples, images))
        distances, indices = prdc.nearest(queries, references, 1)
        name = f"nearest_{training.name.replace('/', '_')}.png"
        scale = max(1, round(64 / source.image_shape[0]))
        rows = {"sample": samples, "nearest": images[indices[:, 0]]}
        pictures.save_grid(run.workdir / name, rows, scale=scale)
        distance = np.median(distances[:, 0]) / np.sqrt(queries.shape[1])
        caption = f"{training.name}: median root mean square difference {distance:.2f}"
        items.append(Picture(caption, name))
    if not items:
        return []
    about = (
        "Samples and the training image that is nearest to each in pixels, whose values are in "
        "[-1, 1]. A generator that memorizes its images has small differences."
    )
    return [Gallery("Nearest training images", about, items)]


def with_teacher_images(plan: TrainingPlan, task: Task, share: float) -> TrainingPlan:
    """The plan with a share of the teacher's images among the real ones of each batch."""
    if not share:
        return plan
    teacher = task.teacher.generator
    return plan.wrap_step(partial(data_free, teacher=teacher, task=task.inputs, share=share))


CURVES = {
    "quality/frechet": "Frechet distance",
    "g/adversarial": "generator, adversarial loss",
    "d/adversarial": "discriminator, adversarial loss",
    "g/pixel": "generator, L1 to the teacher's image",
}
"""The metrics that reports plot over training, by their keys."""


def make_comparison(
    config: ConfigDict,
    task: Task,
    title: str,
    teacher_plan: Callable[[], TrainingPlan],
    student_plan: Callable[[str, Teacher], TrainingPlan],
    steps: tuple[int, int],
) -> runner.Comparison:
    """A comparison of one teacher and one student, from scratch and distilled, on all images.

    Args:
      config: the configuration.
      task: the data and the networks.
      title: the report's title.
      teacher_plan: the teacher's training plan.
      student_plan: `(from_scratch or distilled, teacher) -> training plan`.
      steps: the teacher's and the student's numbers of steps.
    """
    batches = partial(runner.training_batches, config, task.source)
    images = len(task.source)

    def student(arm: str) -> runner.Training:
        def plan(teacher: Teacher | None, seed: int) -> TrainingPlan:
            assert teacher is not None
            return student_plan(arm, teacher)

        return runner.Training(arm, task.student.generator, plan, batches, steps[1], images)

    return runner.Comparison(
        title=title,
        task=task.inputs,
        teacher=runner.Training(
            runner.TEACHER,
            task.teacher.generator,
            lambda _, seed: teacher_plan(),
            batches,
            steps[0],
            images,
        ),
        students=[student(arm) for arm in (runner.FROM_SCRATCH, runner.DISTILLED)],
        evaluation=partial(make_evaluation, config, task),
        curves=CURVES,
        mesh=task.mesh,
        teacher_variables=task.teacher_variables,
    )

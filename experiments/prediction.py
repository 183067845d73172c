"""Shared parts of the experiments whose predictions have targets: images, logits, waveforms.

A teacher is trained on the task; a much cheaper student is trained twice, with the same steps and
seeds: from scratch and distilled. All are evaluated on the same held-out data, against non-learned
baselines.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import harness, runner
from experiments.runner import DISTILLED, FROM_SCRATCH, TEACHER, Comparison, Evaluation, Training
from kd_jax import data as kd_data, methods
from kd_jax.core.network import Network, connect_to
from kd_jax.core.objective import MakeInputs, Terms
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.types import Batch
from kd_jax.train.training import TrainingPlan

PRESETS = ("laptop", "full", "tiny")


def base_config() -> ConfigDict:
    """The settings that these experiments share; each adds its data and its networks."""
    return ConfigDict(
        {
            "seeds": (0, 1, 2),
            "batch_size": 16,
            "dtype": "float32",  # or bfloat16: of activations; parameters are float32
            "teacher": {"steps": 1500, "rate": 1e-3},
            "student": {"steps": 1500, "rate": 2e-3},
            "ema": 0.999,
            "final_rate": 0.01,  # the cosine schedule's end, as a fraction of the learning rate
            "diagnostics": False,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": {"seed": 1, "examples": 8},
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )


def tiny(config: ConfigDict) -> ConfigDict:
    """Shrinks the settings for tests: seconds of training, too few steps to learn anything."""
    config.seeds = (0,)
    config.batch_size = 4
    config.teacher.steps = config.student.steps = 4
    config.log_every = config.evaluate_every = config.checkpoint_every = 2
    return config


def check(config: ConfigDict) -> None:
    """Checks the settings of `base_config`.

    Raises:
      ValueError: a one-line message.
    """
    runner.check_schedule(config)
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")


def check_distilled(config: ConfigDict) -> None:
    """Checks the weights of `config.distilled`, of which one must be positive without a GAN loss.

    Raises:
      ValueError: a one-line message.
    """
    weights = {f"config.distilled.{name}": weight for name, weight in config.distilled.items()}
    if not config.adversarial and not any(weights.values()):
        raise ValueError(
            f"{', '.join(weights)} are all 0 and there is no adversarial loss: the distilled "
            "student has no loss; one weight must be positive"
        )


def dtype(config: ConfigDict) -> Any:
    """The dtype of activations."""
    return jnp.dtype(config.dtype)


def split_name(spec: str, split: str) -> str:
    """The split to open: a folder has only `train`; other data sets have `split`."""
    return "train" if spec.startswith("folder:") else split


def check_held_out(train: kd_data.Source, test: kd_data.Source, flag: str) -> None:
    """Checks that no training image is evaluated on, as far as the sources can be compared.

    Args:
      train: the training images.
      test: the images of the evaluation.
      flag: the flag that selects other images, for the message.

    Raises:
      ValueError: a one-line message.
    """
    if kd_data.overlap(train, test):
        raise ValueError(
            f"{test.name} has images of {train.name}: training images cannot be evaluated on; "
            f"hold others out by {flag}"
        )


def check_frechet_count(count: int, source: kd_data.Source, flag: str) -> None:
    """Checks that there are enough images for a Frechet distance.

    Raises:
      ValueError: a one-line message.
    """
    if count < 2:
        raise ValueError(
            f"the evaluation has {count} image of {source.name}; a Frechet distance needs at least "
            f"2: {flag}"
        )


def make_batches(
    config: ConfigDict, source: kd_data.Source
) -> Callable[[int], kd_data.BatchIterator]:
    """`seed -> batches` of a set of images.

    Raises:
      ValueError: there are fewer images than one batch holds.
    """
    if len(source) < config.batch_size:
        raise ValueError(f"{source.name} has {len(source)} images, fewer than one batch")
    return partial(runner.training_batches, config, source)


def training_plan(
    config: ConfigDict,
    name: str,
    nets: Networks,
    terms: PerNetwork,
    inputs: MakeInputs,
    teacher: Teacher | None,
    *,
    d_rate: float = 2e-4,
    b1: float | None = None,
    b2: float = 0.999,
) -> TrainingPlan:
    """A training by Adam with a cosine schedule, with the teacher's or student's steps and rate.

    Args:
      config: the configuration.
      name: `teacher`, `from_scratch` or `distilled`.
      nets: the networks.
      terms: the terms of both networks.
      inputs: the task.
      teacher: the teacher's variables; read if the student is distilled.
      d_rate: the discriminator's learning rate.
      b1: Adam's; by default 0.9, or 0.5 with a discriminator, as in Isola et al. 2017.
      b2: Adam's.
    """
    sizes = config.teacher if name == TEACHER else config.student
    first = (0.5 if nets.discriminator else 0.9) if b1 is None else b1
    schedules = [
        optax.cosine_decay_schedule(rate, sizes.steps, config.final_rate)
        for rate in (sizes.rate, d_rate)
    ]
    return runner.training_plan(
        config,
        nets,
        terms,
        PerNetwork(*(optax.adam(schedule, b1=first, b2=b2) for schedule in schedules)),
        inputs,
        sizes.steps,
        teacher if name == DISTILLED else None,
        learning_rates=dict(zip("gd", schedules, strict=True)),
    )


def with_adversarial(terms: Terms, weight: float) -> PerNetwork:
    """A generator's terms and a least-squares adversarial loss of this weight, or none if 0."""
    if not weight:
        return PerNetwork(terms, {})
    loss = methods.least_squares()
    adversarial = {"adversarial": loss.generator["adversarial"]._replace(weight=weight)}
    return PerNetwork({**terms, **adversarial}, loss.discriminator)


def connect_features(
    student: Network,
    teacher: Network,
    taps: Sequence[str] | Mapping[str, str],
    inputs: MakeInputs,
    batch: Batch,
) -> Network:
    """The student with projections of its features to the teacher's number of channels."""
    example = jax.eval_shape(inputs, jax.random.key(0), batch).generator
    return connect_to(student, teacher, taps, *example)


def make_comparison(
    config: ConfigDict,
    title: str,
    batches: Callable[[int], kd_data.BatchIterator],
    task: MakeInputs,
    teacher: Network,
    student: Network,
    plan: Callable[[str, Teacher | None], TrainingPlan],
    evaluation: Callable[[], Evaluation],
    tracked: tuple[str, str],
    images: int | None = None,
) -> Comparison:
    """A comparison of a teacher and a student on one task.

    Args:
      config: the configuration.
      title: the report's title.
      batches: `seed -> batches`, an endless iterator.
      task: the task, as it is trained.
      teacher: the large network.
      student: the small network.
      plan: `(teacher, from_scratch or distilled; the teacher's variables) -> training plan`.
      evaluation: builds the evaluation.
      tracked: the name and the caption of a metric of the validation, plotted over training.
      images: the number of training images, if they have one.
    """

    def training(name: str) -> Training:
        is_teacher = name == TEACHER
        return Training(
            name=name,
            network=teacher if is_teacher else student,
            plan=lambda variables, seed: plan(name, variables),
            batches=batches,
            steps=(config.teacher if is_teacher else config.student).steps,
            images=images,
        )

    name, caption = tracked
    return Comparison(
        title=title,
        task=task,
        teacher=training(TEACHER),
        students=[training(FROM_SCRATCH), training(DISTILLED)],
        evaluation=evaluation,
        curves={f"quality/{name}": caption, "g/total": "generator loss"},
        mesh=harness.mesh(config.mesh, config.batch_size),
    )

r"""Distil a class-conditional BigGAN into a TinyGAN or a narrower BigGAN; measured.

    python -m experiments.biggan --workdir=runs/biggan                        # CPU, minutes
    python -m experiments.biggan --workdir=runs/dgl --config.method=dgl --config.student=biggan
    python -m experiments.biggan --workdir=runs/imagenet --preset=imagenet128 \
        --config.teacher=biggan-deep-128.bin --config.data.source=folder:imagenet   # GPU or TPU

The teacher is read from the file `--config.teacher=PATH` (any format that `kd_jax.pretrained.load`
reads); by default a small BigGAN is trained on handwritten digits of 32x32. The student is trained
on the images from scratch, and distilled by one of two methods:

* `tinygan` (Chang & Lu 2020): the L1 between images, which decays, and between the discriminator's
  features, with the teacher's images among the real ones;
* `dgl` (Tian et al. 2023): the adversarial losses of the student's and of the teacher's
  discriminator. It needs the latter: a teacher trained here, or a file with both networks.

Expected:
* `small`: two CPU cores; the table in docs/results.md, measured with the first command above.
* `imagenet128`, **not run here**: TinyGAN reports at ImageNet-128 1/16 of BigGAN-deep's parameters
  (on animals: Inception distance 24.2, the teacher's 15.6 at the same truncation); DGL-GAN, for a
  quarter of BigGAN's channels, a Frechet (Inception) distance of 9.92 and an Inception Score of
  93.3. The distances of this module use a classifier of the data at hand and are not comparable.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import generation, harness, runner
from experiments.generation import Task
from kd_jax import methods, pretrained
from kd_jax.core.network import tap_shapes
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.models import biggan, tinygan
from kd_jax.tasks import latents
from kd_jax.train.training import TrainingPlan

STUDENTS = {"tinygan": tinygan, "biggan": biggan}
METHODS = ("tinygan", "dgl")


def get_config(preset: str = "small") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0,),
            "teacher": "",  # a file; empty: the teacher is trained
            "teacher_part": "",  # the generator in the file; the averaged one by default
            "teacher_discriminator": "",  # the discriminator in the file, if any
            "student": "tinygan",  # or biggan
            "method": "tinygan",  # or dgl
            "latent": 64,  # a multiple of the number of blocks plus one
            "batch_size": 16,
            "data": {
                "source": "digits",  # or folder:PATH, tfds:NAME
                "size": 32,
                "channels": 1,
                "resize": False,
                "background": "",  # a colour behind transparent images; by default white
            },
            "teacher_network": {"width": 8, "steps": 1000},
            "student_network": {"width": 4, "steps": 1500},
            "discriminator_width": 6,
            "shared": 32,  # the class embedding's length
            "attention": (16,),
            "rates": {"generator": 1e-3, "discriminator": 1e-3},
            "final_rate": 0.1,  # the cosine schedule's end, as a fraction of the learning rate
            "ema": 0.999,
            "distilled": {
                "feature": 20.0,  # of TinyGAN; 1 in the paper, for other features
                "pixel": 10.0,  # of TinyGAN, initially; 0.2 in the paper
                "adversarial": 1.0,  # of TinyGAN; smaller keeps closer to the teacher's images
                "teacher": 0.1,  # of DGL-GAN
                # The fraction of each batch of "real" images that the teacher generates.
                "teacher_images": 0.5,
            },
            "diagnostics": True,
            "log_every": 50,
            "evaluate_every": 500,
            "checkpoint_every": 500,
            "evaluate": generation.evaluate_config(samples=0),
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )
    if preset == "imagenet128":
        config.batch_size, config.latent = 128, 120
        config.data.update({"source": "folder:imagenet", "size": 128, "channels": 3})
        config.data.resize = True
        config.teacher_network.update({"width": 96, "steps": 150_000})
        config.student_network.update({"width": 32, "steps": 500_000})
        config.discriminator_width = 64
        config.shared, config.attention = 128, (64,)
        config.rates.update({"generator": 5e-5, "discriminator": 2e-4})
        config.distilled.update({"feature": 1.0, "pixel": 0.2, "adversarial": 0.1})
        config.distilled.teacher_images = 0.8
        config.evaluate.samples = 10_000
        config.evaluate_every = config.checkpoint_every = 10_000
        config.mesh.data = 0  # all devices
    if preset == "tiny":  # for tests: seconds of training, too few steps to learn anything
        config.latent = config.batch_size = 8
        config.teacher_network.update({"width": 3, "steps": 2})
        config.student_network.update({"width": 2, "steps": 2})
        config.discriminator_width, config.shared = 2, 4
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.diagnostics = False
        config.evaluate.samples = 20
    return config


def make_task(config: ConfigDict) -> Task:
    """Opens the data and the teacher, and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    for name, value, known in (
        ("student", config.student, STUDENTS),
        ("method", config.method, METHODS),
    ):
        if value not in known:
            raise ValueError(f"config.{name}={value!r} is not one of {', '.join(known)}")
    if config.method == "dgl" and config.teacher and not config.teacher_discriminator:
        raise ValueError(
            "config.method=dgl needs the teacher's discriminator: name it with "
            "--config.teacher_discriminator, or choose --config.method=tinygan"
        )
    source = generation.open_source(config)
    if source.num_classes < 2:
        raise ValueError(
            f"{source.name} has one class, and BigGAN is class-conditional: at least two are "
            "needed (one sub-folder per class)"
        )
    shared: dict[str, Any] = {"classes": source.num_classes}
    options = {**shared, "channels": config.data.channels, "shared": config.shared}
    attention: dict[str, Any] = {"attention": tuple(config.attention)}
    size = config.data.size
    discriminator = biggan.discriminator(size, config.discriminator_width, **shared, **attention)
    teacher_variables = None
    if config.teacher:
        teacher, teacher_variables = _load_teacher(config, source.num_classes)
    else:
        teacher = PerNetwork(
            biggan.generator(size, config.teacher_network.width, **options, **attention),
            discriminator,
        )
    if config.student == "biggan":
        options.update(attention)
    student = STUDENTS[config.student].generator(size, config.student_network.width, **options)
    inputs = latents(config.latent, conditional=True)
    mesh = harness.mesh(config.mesh, config.batch_size)
    student_networks = PerNetwork(student, discriminator)
    example = inputs(jax.random.key(0), runner.example_batch(config, source))
    for network, shapes in (
        (teacher.generator, example.generator),
        (student, example.generator),
        (discriminator, (example.real, *example.condition)),
    ):  # raises if the latents cannot be divided among the blocks
        jax.eval_shape(network.init, jax.random.key(0), *shapes)
    return Task(source, teacher, student_networks, inputs, mesh, teacher_variables)


def _load_teacher(config: ConfigDict, classes: int) -> tuple[PerNetwork, Teacher]:
    """Loads the teacher, and its discriminator if one is named, and checks that they fit."""
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    network, variables = generation.load_teacher(
        config, "teacher", config.teacher, config.teacher_part, [z, label], classes
    )
    if not config.teacher_discriminator:
        return PerNetwork(network), Teacher(variables)
    discriminator, discriminator_variables = pretrained.load(
        config.teacher, config.teacher_discriminator
    )
    return PerNetwork(network, discriminator), Teacher(variables, discriminator_variables)


def teacher_plan(config: ConfigDict, task: Task) -> TrainingPlan:
    """The teacher's training on the images, with the hinge loss."""
    steps = config.teacher_network.steps
    return training_plan(config, task, Networks(*task.teacher), methods.hinge(), steps)


def student_plan(config: ConfigDict, task: Task, arm: str, teacher: Teacher) -> TrainingPlan:
    """The student's training on the images, from scratch or distilled."""
    steps, settings = config.student_network.steps, config.distilled
    nets = Networks(*task.student)
    if arm == runner.FROM_SCRATCH:
        return training_plan(config, task, nets, methods.hinge(), steps)
    nets = nets._replace(teacher=task.teacher.generator)
    if config.method == "dgl":
        nets = nets._replace(teacher_discriminator=task.teacher.discriminator)
        terms = methods.dgl(settings.teacher, methods.hinge())
    else:
        terms = methods.tinygan(
            discriminator_taps(config, task),
            steps,
            feature=settings.feature,
            pixel=settings.pixel,
            adversarial_weight=settings.adversarial,
            adversarial=methods.hinge(),
        )
    plan = training_plan(config, task, nets, terms, steps, teacher)
    return generation.with_teacher_images(plan, task, settings.teacher_images)


def discriminator_taps(config: ConfigDict, task: Task) -> list[str]:
    """The taps at the blocks of the student's discriminator, from the first to the last."""
    batch = runner.example_batch(config, task.source)
    taps = tap_shapes(task.student.discriminator, batch["image"], batch["label"])
    blocks = [name for name in taps if name.startswith("block_")]
    return sorted(blocks, key=lambda name: int(name.removeprefix("block_")))


def training_plan(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    terms: PerNetwork,
    steps: int,
    teacher: Teacher | None = None,
) -> TrainingPlan:
    """The alternating step, with Adam without momentum at a decaying learning rate."""
    schedules = {
        name: optax.cosine_decay_schedule(rate, steps, config.final_rate)
        for name, rate in (("g", config.rates.generator), ("d", config.rates.discriminator))
    }
    # Brock et al. 2019, appendix C.
    optimizers = PerNetwork(*(optax.adam(rate, b1=0.0, b2=0.999) for rate in schedules.values()))
    return runner.training_plan(
        config, nets, terms, optimizers, task.inputs, steps, teacher, learning_rates=schedules
    )


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data and the teacher, and builds the trainings.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    task = make_task(config)
    names = {"tinygan": "TinyGAN", "biggan": "narrower BigGAN"}
    return generation.make_comparison(
        config,
        task,
        f"Distilling a BigGAN into a {names[config.student]}",
        partial(teacher_plan, config, task),
        partial(student_plan, config, task),
        (config.teacher_network.steps, config.student_network.steps),
    )


EXPERIMENT = runner.experiment(get_config, build, ("small", "imagenet128", "tiny"))

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

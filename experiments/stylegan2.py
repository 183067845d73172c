r"""Distil a StyleGAN2 into a narrower StyleGAN2, or into a StyleGAN1; measured.

    python -m experiments.stylegan2 --workdir=runs/stylegan2                      # CPU, minutes
    python -m experiments.stylegan2 --workdir=runs/across --config.student=stylegan1
    python -m experiments.stylegan2 --workdir=runs/ffhq --preset=ffhq256 \
        --config.teacher=ffhq256.pkl --config.data.source=folder:ffhq256          # GPU or TPU

The teacher is read from the file `--config.teacher=PATH` (any format that `kd_jax.pretrained.load`
reads, with random noise and truncation 1); by default a small StyleGAN2 is trained on patches of
photographs. The student has a fraction of its channels. It is trained on the images from scratch,
and distilled, initialized with the teacher's mapping network. A StyleGAN2 student follows StyleKD
(Xu et al. 2022): the L1 between images, and the relations between images and images whose styles
are shifted along the teacher's principal directions. A StyleGAN1 student, whose styles have another
meaning, is trained with the L1 between images and the features of the teacher's blocks (GAN
Compression, Li et al. 2020).

Expected:
* `small`: two CPU cores; the table in docs/results.md, measured with the command above.
* `ffhq256`, **not run here**: the paper reports for FFHQ-256 a Frechet (Inception) distance of 4.5
  for the teacher (30.0M parameters, 45.1G MACs) and 7.25 for a student of 5.6M and 4.1G, after
  450,000 steps of 16 images. The distances of this module use a classifier of the data at hand and
  are not comparable.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments import generation, harness, runner
from experiments.generation import Task
from kd_jax import methods, pruning
from kd_jax.core.network import Network, connect_to
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.types import Array, Variables
from kd_jax.methods import sefa
from kd_jax.models import stylegan1, stylegan2
from kd_jax.tasks import latents
from kd_jax.train.training import TrainingPlan

STUDENTS = {"stylegan2": stylegan2, "stylegan1": stylegan1}


def get_config(preset: str = "small") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0,),
            "teacher": "",  # a file, or the folder of a training; empty: it is trained
            "teacher_part": "",  # the network in the file; the averaged generator by default
            "student": "stylegan2",  # or stylegan1
            "latent": 64,
            "batch_size": 16,
            "data": {
                "source": "photos",  # or folder:PATH, tfds:NAME
                "size": 32,
                "channels": 3,
                "resize": False,
                "background": "",  # a colour behind transparent images; by default white
            },
            "teacher_network": {"channel_base": 2048, "channel_max": 64, "steps": 800},
            "student_network": {"channel_base": 512, "channel_max": 16, "steps": 800},
            "discriminator": {"channel_base": 1024, "channel_max": 32},
            "mapping_depth": 4,
            # Karras et al. 2020 evaluate R1 each 16th and path lengths each 4th step. On CPU, XLA
            # runs the body of a conditional on one core: small networks evaluate R1 at each step
            # and omit path lengths.
            "r1": {"weight": 1.0, "every": 1},
            "path_length": {"weight": 0.0, "every": 4},
            "rate": 2e-3,
            "final_rate": 0.1,  # the cosine schedule's end, as a fraction of the learning rate
            "ema": 0.999,
            "distilled": {
                "pixel": 3.0,
                "relation": 30.0,  # of StyleKD
                "features": 1.0,  # of a StyleGAN1
                "taps": ("8x8", "16x16"),
                "strength": 5.0,  # the length of the styles' shifts along unit directions
                # The inherited weights: mapping (the mapping network only) or magnitude (also the
                # channels of the largest magnitude).
                "initialization": "mapping",
                # The fraction of each batch of "real" images that the teacher generates: 1 for a
                # teacher whose training images are not available.
                "teacher_images": 0.0,
            },
            "diagnostics": True,
            "log_every": 50,
            "evaluate_every": 400,
            "checkpoint_every": 400,
            "evaluate": generation.evaluate_config(samples=0),
            "mesh": {"data": 1, "model": 1},
            "run": harness.run_settings(),
        }
    )
    if preset == "ffhq256":
        config.batch_size, config.latent = 16, 512
        config.data.update({"source": "folder:ffhq256", "size": 256})
        config.teacher_network.update({"channel_base": 32768, "channel_max": 512, "steps": 450_000})
        config.student_network.update({"channel_base": 9830, "channel_max": 154, "steps": 450_000})
        config.discriminator.update({"channel_base": 32768, "channel_max": 512})
        config.mapping_depth = 8
        config.r1.update({"weight": 1.0, "every": 16})
        config.path_length.update({"weight": 2.0})
        config.distilled.taps = ("16x16", "32x32", "64x64")
        config.evaluate.samples = 10_000
        config.evaluate_every = config.checkpoint_every = 10_000
        config.mesh.data = 0  # all devices
    if preset == "tiny":  # for tests: seconds of training, too few steps to learn anything
        config.latent = config.batch_size = 8
        config.data.size = 16
        config.teacher_network.update({"channel_base": 128, "channel_max": 8, "steps": 2})
        config.student_network.update({"channel_base": 64, "channel_max": 4, "steps": 2})
        config.discriminator.update({"channel_base": 128, "channel_max": 8})
        config.mapping_depth = 2
        config.distilled.taps = ("8x8",)
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.diagnostics = False
        config.evaluate.samples = 20
    return config


def make_task(config: ConfigDict) -> Task:
    """Opens the data and the teacher, and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    if config.student not in STUDENTS:
        raise ValueError(f"config.student={config.student!r} is not one of {', '.join(STUDENTS)}")
    initialization = config.distilled.initialization
    if initialization not in ("mapping", "magnitude"):
        raise ValueError(
            f"config.distilled.initialization={initialization!r} is neither mapping nor magnitude"
        )
    source = generation.open_source(config)
    shared: dict[str, Any] = {"channels": config.data.channels}
    discriminator = partial(
        stylegan2.discriminator, config.data.size, **shared, **config.discriminator.to_dict()
    )
    style = {**shared, "latent": config.latent, "style": config.latent}
    teacher_variables = None
    if config.teacher:
        z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
        teacher, teacher_variables = generation.load_teacher(
            config, "teacher", config.teacher, config.teacher_part, [z]
        )
        if teacher.mapping is None:
            raise ValueError(f"config.teacher={config.teacher} has no mapping network")
    else:
        teacher = stylegan2.generator(
            config.data.size,
            **style,
            **_widths(config.teacher_network),
            mapping={"depth": config.mapping_depth},
        )
    depth = config.mapping_depth
    options: dict[str, Any] = {"mapping": {"depth": depth}}
    if config.student == "stylegan1":
        options = {"depth": depth}
    student = STUDENTS[config.student].generator(
        config.data.size, **style, **_widths(config.student_network), **options
    )
    inputs = latents(config.latent)
    task = Task(
        source,
        PerNetwork(teacher, discriminator()),
        PerNetwork(student, discriminator()),
        inputs,
        harness.mesh(config.mesh, config.batch_size),
        None if teacher_variables is None else Teacher(teacher_variables),
    )
    initial_variables(config, task, zero_teacher(config, task))  # raises if they do not fit
    return task


def _widths(sizes: ConfigDict) -> dict[str, Any]:
    return {"channel_base": sizes.channel_base, "channel_max": sizes.channel_max}


def initial_variables(config: ConfigDict, task: Task, teacher: Variables) -> Mapping[str, Any]:
    """The distilled student's initial variables: the teacher's mapping network or pruned weights.

    Raises:
      ValueError: the networks do not allow it; a one-line message.
    """
    module = STUDENTS[config.student]
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    like = jax.eval_shape(task.student.generator.init, jax.random.key(0), z)
    if config.distilled.initialization == "magnitude":
        if module is not stylegan2:
            raise ValueError(
                "config.distilled.initialization=magnitude needs config.student=stylegan2"
            )
        axes = stylegan2.generator_axes(teacher)
        return pruning.from_teacher(teacher, axes, pruning.magnitude(teacher, axes), like)
    variables = {}
    for collection in ("params", "averages"):
        student_mapping, teacher_mapping = (
            x.get(collection, {}).get("mapping", {}) for x in (like, teacher)
        )
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (student_mapping, teacher_mapping)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the student's mapping cannot inherit the teacher's: config.latent={config.latent}"
                f" and config.mapping_depth={config.mapping_depth} give other {collection}"
            )
        variables[collection] = {"mapping": teacher_mapping}
    return variables


def adversarial(config: ConfigDict) -> PerNetwork:
    """The adversarial terms of StyleGAN2, without path lengths if their weight is 0."""
    if not config.path_length.weight:
        return methods.nonsaturating(config.r1.weight, config.r1.every)
    return methods.stylegan2(
        config.r1.weight,
        config.path_length.weight,
        r1_every=config.r1.every,
        path_every=config.path_length.every,
    )


def teacher_plan(config: ConfigDict, task: Task) -> TrainingPlan:
    """The teacher's training on the images."""
    nets = Networks(*task.teacher)
    return training_plan(config, task, nets, adversarial(config), config.teacher_network.steps)


def student_plan(config: ConfigDict, task: Task, arm: str, teacher: Teacher) -> TrainingPlan:
    """The student's training on the images, from scratch or distilled."""
    steps, loss = config.student_network.steps, adversarial(config)
    nets = Networks(*task.student)
    if arm == runner.FROM_SCRATCH:
        return training_plan(config, task, nets, loss, steps)
    settings = config.distilled
    nets = nets._replace(generator=distilled_student(config, task), teacher=task.teacher.generator)
    if config.student == "stylegan1":
        terms = methods.gan_compression(
            settings.taps,
            reconstruction=settings.pixel,
            distill=settings.features,
            adversarial=loss,
        )
    else:
        terms = methods.stylekd(
            style_directions(teacher.generator),
            settings.taps,
            pixel=settings.pixel,
            relation=settings.relation,
            strength=settings.strength,
            adversarial=loss,
        )
    initial = {"generator": initial_variables(config, task, teacher.generator)}
    plan = training_plan(config, task, nets, terms, steps, Teacher(teacher.generator), initial)
    return generation.with_teacher_images(plan, task, settings.teacher_images)


def distilled_student(config: ConfigDict, task: Task) -> Network:
    """The student in training: a StyleGAN1 with projections to the teacher's features."""
    if config.student == "stylegan2":
        return task.student.generator
    z = jax.ShapeDtypeStruct((config.batch_size, config.latent), jnp.float32)
    return connect_to(task.student.generator, task.teacher.generator, config.distilled.taps, z)


def style_directions(teacher: Variables) -> Array:
    """SeFa directions of all layers of the teacher's synthesis network that read styles."""
    matrices = [
        leaf.T
        for path, leaf in jax.tree_util.tree_leaves_with_path(teacher["params"]["synthesis"])
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("affine/weight")
    ]
    return sefa.sefa_directions(matrices)


def training_plan(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    terms: PerNetwork,
    steps: int,
    teacher: Teacher | None = None,
    initial: Mapping[str, Variables] | None = None,
) -> TrainingPlan:
    """The alternating step, with Adam adapted to lazy regularization and a decaying rate."""
    decay = optax.cosine_decay_schedule(1.0, steps, config.final_rate)

    def optimizer(every: int) -> optax.GradientTransformation:
        adam = methods.lazy_adam(config.rate, every)
        return optax.chain(adam, optax.scale_by_schedule(decay))

    path_every = config.path_length.every if config.path_length.weight else 1
    optimizers = PerNetwork(optimizer(path_every), optimizer(config.r1.every))
    # Before the factor of lazy regularization.
    rates = dict.fromkeys("gd", lambda step: config.rate * decay(step))
    return runner.training_plan(
        config, nets, terms, optimizers, task.inputs, steps, teacher, initial, rates
    )


def build(config: ConfigDict) -> runner.Comparison:
    """Opens the data and the teacher, and builds the trainings.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    task = make_task(config)
    return generation.make_comparison(
        config,
        task,
        f"Distilling a StyleGAN2 into a {'Style' + config.student[5:].upper()}",
        partial(teacher_plan, config, task),
        partial(student_plan, config, task),
        (config.teacher_network.steps, config.student_network.steps),
    )


def zero_teacher(config: ConfigDict, task: Task) -> Variables:
    """Zeros of the shapes of the teacher's variables."""
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    shapes = (
        task.teacher_variables.generator
        if task.teacher_variables
        else jax.eval_shape(task.teacher.generator.init, jax.random.key(0), z)
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


EXPERIMENT = runner.experiment(get_config, build, ("small", "ffhq256", "tiny"))

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

r"""Distil a StyleGAN2 into a narrower StyleGAN2, or into a StyleGAN1; measured.

    python -m experiments.stylegan2 --workdir=runs/stylegan2                      # CPU, minutes
    python -m experiments.stylegan2 --workdir=runs/across --config.student=stylegan1
    python -m experiments.stylegan2 --workdir=runs/ffhq --preset=ffhq256 \
        --config.teacher=ffhq256.pkl --config.data.source=folder:ffhq256          # GPU or TPU

The teacher is the file `--config.teacher=PATH` (anything that `kd_jax.pretrained.load` reads, with
noise of its own and truncation 1), or without one a small StyleGAN2 that is trained here on patches
of photographs. The student has a fraction of its channels. Alone it learns from the images; then
the same student, with the teacher's mapping network, learns from the teacher too. A StyleGAN2
follows StyleKD (Xu et al. 2022): the image's L1, and the relations between images and images whose
styles are moved along the teacher's principal directions. A StyleGAN1, whose styles mean something
else, gets the images' L1 and the features of the teacher's blocks (GAN Compression, Li et al.
2020).

Expected:
* `small`: two CPU cores; the table in README.md, measured with the command above.
* `ffhq256`, **not run here**: the paper reports for FFHQ-256 a Frechet (Inception) distance of 4.5
  for the teacher (30.0M parameters, 45.1G MACs) and 7.25 for a student of 5.6M and 4.1G, after
  450,000 steps of 16 images. Distances of this module are those of a classifier of the data at
  hand, and not that distance.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import comparison, harness
from kd_jax import data as kd_data
from kd_jax import latent, pretrained, recipes, students
from kd_jax.models import stylegan1, stylegan2
from kd_jax.modes import data_free
from kd_jax.network import Network, connect_to
from kd_jax.objective import MakeInputs
from kd_jax.state import Networks, Pair, Teacher
from kd_jax.tasks import latents
from kd_jax.types import Array, Batch, Variables

STUDENTS = {"stylegan2": stylegan2, "stylegan1": stylegan1}


def get_config(preset: str = "small") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0,),
            "teacher": "",  # a file, or nothing: one is trained here
            "teacher_part": "",  # which network of the file; the averaged generator by default
            "student": "stylegan2",  # or stylegan1
            "latent": 64,
            "batch_size": 16,
            "data": {
                "source": "photos",  # or folder:PATH, tfds:NAME
                "size": 32,
                "channels": 3,
                "resize": False,
            },
            "teacher_network": {"channel_base": 2048, "channel_max": 64, "steps": 800},
            "student_network": {"channel_base": 512, "channel_max": 16, "steps": 800},
            "discriminator": {"channel_base": 1024, "channel_max": 32},
            "mapping_depth": 4,
            # Karras et al. 2020 evaluate R1 each 16th and path lengths each 4th step. On CPU, XLA
            # runs what is inside a conditional on one core: small networks evaluate R1 each step,
            # and do without path lengths.
            "r1": {"weight": 1.0, "every": 1},
            "path_length": {"weight": 0.0, "every": 4},
            "rate": 2e-3,
            "final_rate": 0.1,  # the cosine schedule's end, as a part of the learning rate
            "ema": 0.999,
            "distilled": {
                "pixel": 3.0,
                "relation": 30.0,  # of StyleKD
                "features": 1.0,  # of a StyleGAN1
                "taps": ("8x8", "16x16"),
                "strength": 5.0,  # how far styles are moved, along unit directions
                "start": "mapping",  # what is inherited; or magnitude: channels too
                # The part of each batch of "real" images that the teacher makes: 1 for a teacher
                # whose images are not at hand.
                "teacher_images": 0.0,
            },
            "health": True,
            "log_every": 50,
            "evaluate_every": 400,
            "checkpoint_every": 400,
            "evaluate": {"samples": 1500, "seed": 1},
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
    if preset == "tiny":  # for tests: seconds, and nothing learnt
        config.latent = config.batch_size = 8
        config.data.size = 16
        config.teacher_network.update({"channel_base": 128, "channel_max": 8, "steps": 2})
        config.student_network.update({"channel_base": 64, "channel_max": 4, "steps": 2})
        config.discriminator.update({"channel_base": 128, "channel_max": 8})
        config.mapping_depth = 2
        config.distilled.taps = ("8x8",)
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.health = False
        config.evaluate.samples = 20
    return config


class Task(NamedTuple):
    """What a configuration amounts to, once its data and its teacher's file are open.

    Attributes:
      source: the images.
      teacher: the teacher's networks; the discriminator is needed where it is trained here.
      student: the student's.
      given: the teacher's variables, from a file.
      inputs: the task.
      mesh: where to train.
    """

    source: kd_data.Source
    teacher: Pair
    student: Pair
    given: Variables | None
    inputs: MakeInputs
    mesh: Mesh


def build(config: ConfigDict) -> Task:
    """Opens the data and the teacher, and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    if config.student not in STUDENTS:
        raise ValueError(f"config.student={config.student!r} is not one of {', '.join(STUDENTS)}")
    if config.distilled.start not in ("mapping", "magnitude"):
        raise ValueError(
            f"config.distilled.start={config.distilled.start!r} is neither mapping nor magnitude"
        )
    source = comparison.open_source(config)
    shared: dict[str, Any] = {"channels": config.data.channels}
    judge = partial(
        stylegan2.discriminator, config.data.size, **shared, **config.discriminator.to_dict()
    )
    style = {**shared, "latent": config.latent, "style": config.latent}
    given = None
    if config.teacher:
        teacher, given = pretrained.load(config.teacher, config.teacher_part or None)
        _check_teacher(config, teacher, given)
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
    inputs = latents(config.latent, conditional=False)
    task = Task(
        source,
        Pair(teacher, judge()),
        Pair(student, judge()),
        given,
        inputs,
        harness.mesh(config.mesh, config.batch_size),
    )
    start(config, task, zeros(config, task))
    return task


def _widths(sizes: ConfigDict) -> dict[str, Any]:
    return {"channel_base": sizes.channel_base, "channel_max": sizes.channel_max}


def _check_teacher(config: ConfigDict, network: Network, variables: Variables) -> None:
    """Refuses a file whose network cannot teach this student."""
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    if network.mapping is None:
        raise ValueError(f"config.teacher={config.teacher}: no style network")
    comparison.check_teacher(config, network, variables, z)


def start(config: ConfigDict, task: Task, teacher: Variables) -> Mapping[str, Any]:
    """What the distilled student begins with: the teacher's mapping, perhaps its best channels.

    Raises:
      ValueError: the networks do not allow it; one line.
    """
    module = STUDENTS[config.student]
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    like = jax.eval_shape(task.student.generator.init, jax.random.key(0), z)
    if config.distilled.start == "magnitude":
        if module is not stylegan2:
            raise ValueError("config.distilled.start=magnitude needs config.student=stylegan2")
        axes = stylegan2.generator_axes(teacher)
        return students.from_teacher(teacher, axes, students.magnitude(teacher, axes), like)
    parts = {}
    for collection in ("params", "averages"):
        mine, theirs = (x.get(collection, {}).get("mapping", {}) for x in (like, teacher))
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the student's mapping cannot inherit the teacher's: config.latent={config.latent}"
                f" and config.mapping_depth={config.mapping_depth} give other {collection}"
            )
        parts[collection] = {"mapping": theirs}
    return parts


def adversarial(config: ConfigDict) -> Pair:
    """The game of StyleGAN2; without path lengths where their weight is 0."""
    if not config.path_length.weight:
        return recipes.nonsaturating(config.r1.weight, config.r1.every)
    return recipes.stylegan2(
        config.r1.weight,
        config.path_length.weight,
        r1_every=config.r1.every,
        path_every=config.path_length.every,
    )


def teacher_recipe(config: ConfigDict, task: Task) -> harness.Recipe:
    """The teacher learns from the images."""
    nets = Networks(*task.teacher)
    return recipe(config, task, nets, adversarial(config), config.teacher_network.steps)


def student_recipe(config: ConfigDict, task: Task, arm: str, teacher: Variables) -> harness.Recipe:
    """The student learns from the images, alone or from the teacher too."""
    steps, game = config.student_network.steps, adversarial(config)
    nets = Networks(*task.student)
    if arm == "alone":
        return recipe(config, task, nets, game, steps)
    settings = config.distilled
    nets = nets._replace(generator=distilled_student(config, task), teacher=task.teacher.generator)
    if config.student == "stylegan1":
        terms = recipes.gan_compression(
            settings.taps, reconstruction=settings.pixel, distill=settings.features, game=game
        )
    else:
        terms = recipes.stylekd(
            directions(teacher),
            settings.taps,
            pixel=settings.pixel,
            relation=settings.relation,
            strength=settings.strength,
            game=game,
        )
    begin = {"generator": start(config, task, teacher)}
    made = recipe(config, task, nets, terms, steps, Teacher(teacher), begin)
    if not settings.teacher_images:
        return made
    share = partial(
        data_free,
        teacher=task.teacher.generator,
        inputs=task.inputs,
        share=settings.teacher_images,
    )
    return made.wrapped(share)


def distilled_student(config: ConfigDict, task: Task) -> Network:
    """The student while it is distilled: a StyleGAN1 has projections to the teacher's features."""
    if config.student == "stylegan2":
        return task.student.generator
    z = jax.ShapeDtypeStruct((config.batch_size, config.latent), jnp.float32)
    return connect_to(task.student.generator, task.teacher.generator, config.distilled.taps, z)


def directions(teacher: Variables) -> Array:
    """The principal directions of everything in the teacher's synthesis that reads its styles."""
    found = [
        leaf.T
        for path, leaf in jax.tree_util.tree_leaves_with_path(teacher["params"]["synthesis"])
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("affine/weight")
    ]
    return latent.directions(found)


def recipe(
    config: ConfigDict,
    task: Task,
    nets: Networks,
    terms: Pair,
    steps: int,
    teacher: Teacher | None = None,
    begin: Mapping[str, Variables] | None = None,
) -> harness.Recipe:
    """The alternating step, with the Adams that belong to lazy terms and a decaying rate."""

    def optimizer(every: int) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(1.0, steps, config.final_rate)
        adam = recipes.lazy_adam(config.rate, every)
        return optax.chain(adam, optax.scale_by_schedule(decay))

    path_every = config.path_length.every if config.path_length.weight else 1
    optimizers = Pair(optimizer(path_every), optimizer(config.r1.every))
    return comparison.recipe(config, nets, terms, optimizers, task.inputs, steps, teacher, begin)


def lesson(config: ConfigDict, task: Task) -> comparison.Lesson:
    """What is trained."""
    return comparison.Lesson(
        source=task.source,
        teacher=task.teacher.generator,
        student=task.student.generator,
        given=None if task.given is None else Teacher(task.given),
        teacher_recipe=partial(teacher_recipe, config, task),
        student_recipe=lambda arm, teacher: student_recipe(config, task, arm, teacher.generator),
        inputs=task.inputs,
        mesh=task.mesh,
        conditional=False,
    )


def main(config: ConfigDict, task: Task, workdir: Path) -> None:
    """Trains everything that is not trained yet, measures it, and writes the report."""
    title = f"Distilling a StyleGAN2 into a {'Style' + config.student[5:].upper()}"
    comparison.teach(config, lesson(config, task), workdir, title)


def plan(config: ConfigDict, task: Task) -> tuple[dict[str, harness.Recipe], Batch]:
    """Every kind of training, with zeros in the place of the teacher's variables, and a batch."""
    return comparison.plan(config, lesson(config, task), Teacher(zeros(config, task)))


def zeros(config: ConfigDict, task: Task) -> Variables:
    """In the place of the teacher's variables, which are not known yet."""
    z = jax.ShapeDtypeStruct((1, config.latent), jnp.float32)
    shapes = task.given or jax.eval_shape(task.teacher.generator.init, jax.random.key(0), z)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


EXPERIMENT = harness.Experiment(get_config, ("small", "ffhq256", "tiny"), build, plan, main)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

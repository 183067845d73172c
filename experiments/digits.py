"""Distil a generator of handwritten digits: teacher, student alone, student distilled, measured.

    python -m experiments.digits --workdir=runs/digits                   # five seeds, two regimes
    python -m experiments.digits --workdir=runs/demo --preset=demo       # minutes on a laptop
    python -m experiments.digits --dry_run --config.student.width=8      # what it would cost

A class-conditional DCGAN learns the 1,797 digits of scikit-learn, enlarged to 16x16. A student with
26 times fewer parameters is then trained twice with the same steps and seeds: from the images it
has, and from those and the teacher. In the regime `scarce` it has 5% of the images, the usual case
with a published teacher; in `all` it has all of them, and distillation has little left to add.

Any change is one flag: `--config.data.source=folder:photos --config.data.size=64`,
`--config.mesh.model=2`, `--config.regimes.scarce.fraction=0.1`. The same command again goes on
where a stopped run was, to the same bits. `report.md` says what came of it.

Hardware and results: two CPU cores; the table in README.md.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments import harness, report
from kd_jax import data as kd_data
from kd_jax import losses, sharding
from kd_jax.evaluate import extractor, frechet
from kd_jax.models import dcgan, mlp
from kd_jax.network import Network
from kd_jax.objective import MakeInputs, Term, Terms, latents
from kd_jax.state import Networks, Pair
from kd_jax.step import data_free, make_train_step
from kd_jax.types import Batch, Variables

ARMS = ("alone", "distilled")
"""The two trainings of a student in each regime."""

MODELS = {"dcgan": dcgan, "mlp": mlp}


def get_config(preset: str = "full") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = ConfigDict(
        {
            "seeds": (0, 1, 2, 3, 4),
            "model": "dcgan",  # or mlp
            "latent": 64,
            "batch_size": 64,
            "dtype": "float32",  # or bfloat16: what networks compute in; parameters are float32
            "data": {
                "source": "digits",  # or folder:PATH, tfds:NAME
                "size": 16,
                "channels": 1,
                "resize": False,  # make images of other sizes fit
            },
            "teacher": {
                "width": 96,
                "discriminator_width": 64,
                "steps": 2400,
                "g_rate": 1e-3,
                "d_rate": 1e-3,
            },
            "student": {
                "width": 6,
                "discriminator_width": 64,
                "steps": 2400,
            },
            # Mescheder et al. 2018: without R1 the game does not settle. Evaluated at each step: on
            # CPU, XLA runs convolutions inside a conditional on one core, and lazy is slower.
            "r1": {"weight": 0.5, "every": 1},
            "ema": 0.999,
            "regimes": {
                "scarce": {
                    "fraction": 0.05,  # of the images, the same in each class
                    "alone": {"g_rate": 1e-3, "d_rate": 1e-3},
                    "distilled": {
                        "g_rate": 1e-3,
                        "d_rate": 1e-3,
                        # The part of each batch of "real" images that the teacher makes.
                        "teacher_images": 1.0,
                        "pixel": 1.0,  # weight of the L1 towards the teacher's image
                        "attention": 0.0,  # of attention transfer, at the features of 4x4 and 8x8
                        "soft_label": 0.0,  # of the teacher's probabilities of being real
                    },
                },
                "all": {
                    "fraction": 1.0,
                    "alone": {"g_rate": 1e-3, "d_rate": 1e-3},
                    "distilled": {
                        "g_rate": 1e-3,
                        "d_rate": 1e-3,
                        "teacher_images": 0.0,
                        "pixel": 1.0,
                        "attention": 0.0,
                        "soft_label": 0.0,
                    },
                },
            },
            "log_every": 50,
            "evaluate_every": 400,
            "checkpoint_every": 400,
            "evaluate": {"samples": 1790, "seed": 1},
            "mesh": {"data": 1, "model": 1},
        }
    )
    if preset == "demo":
        config.seeds = (0,)
        config.regimes = ConfigDict({"scarce": config.regimes.scarce.to_dict()})
        config.teacher.steps = 1200
        config.student.steps = 1000
        config.evaluate_every = config.checkpoint_every = 200
    if preset == "tiny":  # for tests: seconds, and nothing learnt
        config.seeds = (0,)
        config.latent = config.batch_size = 8
        config.teacher.update({"width": 8, "discriminator_width": 8, "steps": 4})
        config.student.update({"width": 2, "discriminator_width": 8, "steps": 4})
        config.log_every = config.evaluate_every = config.checkpoint_every = 2
        config.evaluate.samples = 20
    return config


class Task(NamedTuple):
    """What a configuration amounts to, once its data is open."""

    source: kd_data.Source
    teacher: Pair
    student: Pair
    inputs: MakeInputs


def build(config: ConfigDict) -> Task:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    if config.model not in MODELS:
        raise ValueError(f"config.model={config.model!r} is not one of {', '.join(MODELS)}")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"config.dtype={config.dtype!r} is neither float32 nor bfloat16")
    if not config.seeds or not config.regimes:
        raise ValueError("config.seeds and config.regimes need at least one entry each")
    for name, every in (("evaluate", config.evaluate_every), ("checkpoint", config.checkpoint_every)):
        if config.log_every < 1 or every < 1 or every % config.log_every:
            raise ValueError(
                f"config.{name}_every={every} is not a multiple of config.log_every="
                f"{config.log_every}"
            )
    source = kd_data.open_source(
        config.data.source,
        "train",
        config.data.size,
        config.data.channels,
        harness.cache_dir() / "tfds",
        resize=config.data.resize,
    )
    model, dtype = MODELS[config.model], jnp.dtype(config.dtype)
    pairs = []
    for sizes in (config.teacher, config.student):
        common = {"classes": source.num_classes, "dtype": dtype}
        pairs.append(
            Pair(
                model.generator(
                    config.data.size, sizes.width, channels=config.data.channels, **common
                ),
                model.discriminator(config.data.size, sizes.discriminator_width, **common),
            )
        )
    return Task(source, pairs[0], pairs[1], latents(config.latent))


def adversarial(config: ConfigDict) -> tuple[dict[str, Term], dict[str, Term]]:
    """The non-saturating GAN with R1: what every training here has in common."""
    g_terms = {"adversarial": Term(lambda f: losses.adversarial.nonsaturating_g(f.fake_scores))}
    d_terms = {
        "adversarial": Term(
            lambda f: losses.adversarial.minimax_d(f.real_scores, f.fake_scores)
        ),
        "r1": Term(
            lambda f: losses.penalties.r1(f.score, f.real), config.r1.weight, config.r1.every
        ),
    }
    return g_terms, d_terms


def distillation(weights: ConfigDict) -> Terms:
    """The generator's further terms; those of weight 0 are left out."""
    terms = {
        "pixel": Term(lambda f: losses.response.l1(f.fake, f.teacher), weights.pixel),
        "attention": Term(
            lambda f: sum(
                losses.feature.attention_transfer(f.taps[name], f.teacher_taps[name])
                for name in f.taps
            ),
            weights.attention,
        ),
        "soft_label": Term(
            lambda f: losses.discriminator.soft_label(f.fake_scores, f.score(f.teacher)[0]),
            weights.soft_label,
        ),
    }
    return {name: term for name, term in terms.items() if term.weight}


def teacher_recipe(config: ConfigDict, task: Task) -> harness.Recipe:
    """The teacher learns from all images."""
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.teacher.generator, task.teacher.discriminator)
    return recipe(config, task, nets, g_terms, d_terms, config.teacher, config.teacher.steps)


def student_recipe(
    config: ConfigDict, task: Task, regime: str, arm: str, teacher: Variables
) -> harness.Recipe:
    """The student learns from the images it has, alone or from the teacher too."""
    settings = config.regimes[regime][arm]
    g_terms, d_terms = adversarial(config)
    nets = Networks(task.student.generator, task.student.discriminator)
    steps = config.student.steps
    if arm == "alone":
        return recipe(config, task, nets, g_terms, d_terms, settings, steps)
    nets = nets._replace(teacher=task.teacher.generator)
    g_terms = {**g_terms, **distillation(settings)}
    made = recipe(config, task, nets, g_terms, d_terms, settings, steps, Pair(teacher))
    if not settings.teacher_images:
        return made
    step = data_free(made.step, task.teacher.generator, task.inputs, settings.teacher_images)
    return made._replace(step=step)

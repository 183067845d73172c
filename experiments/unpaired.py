"""Distil CycleGAN: colours lost and found again, learnt from two sets that do not correspond.

    python -m experiments.unpaired --workdir=runs/unpaired           # photographs, minutes
    python -m experiments.unpaired --workdir=runs/full --preset=full # your own two folders, a GPU
    python -m experiments.unpaired --workdir=runs/edges --config.data.form=edges
    python -m experiments.unpaired --dry_run --config.student.width=8

Two ResNet generators, one for either way, learn from photographs in colour and from others in sepia
(or their edges), by two games, what has gone there and back, and what is in its domain already (Zhu
et al. 2017). Two narrower ones with separable convolutions learn the same alone, and from the
teachers' images too. Side by side the two are one network, and the step knows nothing of it. As in
the paper, what was learnt without pairs is measured with some: of unseen photographs both forms are
known. The classical method gives an image the other set's mean and deviation of each channel
(Reinhard et al. 2001).

Hardware and results: two CPU cores; the table in README.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import harness, lessons, restoration
from experiments.lessons import Answers, Exam, Figure, Lesson
from kd_jax import data as kd_data
from kd_jax import degrade, losses, recipes, tasks
from kd_jax.evaluate import extractor, frechet, paired, pictures
from kd_jax.models import translation
from kd_jax.models.pair import side_by_side
from kd_jax.network import Network
from kd_jax.objective import Inputs, MakeInputs, Term
from kd_jax.state import Networks
from kd_jax.types import Array, Batch, Variables


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = lessons.settings()
    config.update(
        {
            "data": {
                "first": "photos",  # or folder:PATH, tfds:NAME
                "first_split": "train",
                "first_test": "photos",
                # Sepia, edges or "". With a form the second set is made of every other image of the
                # first, which then has the rest, and the exam is of first_test alone.
                "form": "sepia",
                "second": "",  # without a form: folder:PATH, tfds:NAME, photos
                "second_split": "train",
                "second_test": "",
                "test_split": "test",  # of a folder all images are taken, here and above
                "sigma": 0.7,  # of the Gaussian that smooths before edges are looked for, in pixels
                "size": 32,
                "channels": 3,
                "resize": False,  # make images of other sizes fit
            },
            # Zhu et al. have 10 and 5; so few steps must not begin by keeping what they get.
            "cycle": 1.0,  # weight of what has gone there and back
            "identity": 0.5,  # of what is in its domain already
            "residual": True,  # whether generators add to what they are given; not so in the paper
            "norm": "none",  # or instance, after which a generator does not know an image's colour
            "r1": 0.05,  # of the discriminators' gradient at real images, without which they circle
            "pool": 50,  # generated images shown again
            "distilled": {"response": 10.0},  # weight of the L1 to the teacher's images
            # Of a PatchGAN; of 0 layers it judges each pixel on its own, and nothing is normalised,
            # which would hide a colour that all pixels have.
            "discriminator": {"width": 32, "layers": 0, "rate": 5e-4},
        }
    )
    config.batch_size = 4
    config.teacher.update({"width": 14, "blocks": 3, "steps": 2000, "rate": 1e-3})
    config.student.update({"width": 4, "blocks": 2, "separable": True, "steps": 2000, "rate": 2e-3})
    config.ema = 0.998
    config.evaluate_every = config.checkpoint_every = 250
    config.evaluate.images = 0  # of each set; 0: all there are
    if preset == "full":
        config.data.update({"first": "folder:first/train", "first_test": "folder:first/test"})
        config.data.update({"second": "folder:second/train", "second_test": "folder:second/test"})
        config.data.update({"form": "", "size": 256})
        config.evaluate.images = 1000  # all, and their answers, may be more than memory holds
        config.cycle, config.identity, config.residual, config.r1 = 10.0, 5.0, False, 0.0
        config.norm = "instance"
        config.batch_size = 1
        config.discriminator.update({"width": 64, "layers": 3, "rate": 2e-4})
        config.teacher.update({"width": 64, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.student.update({"width": 20, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        lessons.tiny(config)
        config.data.size = 16
        config.discriminator.update({"width": 2, "layers": 1})
        config.teacher.update({"width": 2, "blocks": 1})
        config.student.update({"width": 1, "blocks": 1})
        config.pool = 4
        config.evaluate.images = 4
    return config


NORMS: dict[str, translation.Norm | None] = {"instance": translation.INSTANCE, "none": None}

FORMS: dict[str, Callable[[Array, float], Array]] = {
    "sepia": lambda images, _: degrade.sepia(images),
    "edges": lambda images, sigma: degrade.edges(images, sigma=sigma),
}


class Sets(NamedTuple):
    """The images of both domains, to learn from and to be examined on."""

    train: Mapping[str, kd_data.Source]
    test: Mapping[str, kd_data.Source]


def open_sets(config: ConfigDict) -> Sets:
    """Opens four sets of images.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    given = config.data

    def opened(spec: str, split: str) -> kd_data.Source:
        return lessons.opened(config, spec, lessons.split_of(spec, split))

    first, unseen = (
        opened(given.first, given.first_split),
        opened(given.first_test, given.test_split),
    )
    wholes, tests = [first], {"first": unseen, "second": unseen}
    if given.form:
        if len(first) < 2:
            raise ValueError(f"{first.name} has one image, of which no two sets can be made")
        train = {"first": kd_data.every(first, 2), "second": kd_data.every(first, 2, start=1)}
    else:
        train = {"first": first, "second": opened(given.second, given.second_split)}
        wholes, tests["second"] = [*train.values()], opened(given.second_test, given.test_split)
    for name, test in tests.items():
        for whole in wholes:
            flags = f"--config.data.{name}_test or --config.data.test_split"
            lessons.check_unseen(whole, test, flags)
        lessons.check_measured(
            min(config.evaluate.images or len(test), len(test)),
            test,
            f"--config.evaluate.images=0 takes all there are, --config.data.{name}_test others",
        )
    return Sets(train, tests)


def build(config: ConfigDict) -> Lesson:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    lessons.check(config)
    given = config.data
    if given.form not in ("", *FORMS):
        raise ValueError(f"config.data.form={given.form!r} is not one of {', '.join(FORMS)} or ''")
    if given.form and (given.second or given.second_test):
        raise ValueError(
            f"config.data.form={given.form!r} makes the second set of the first, and leaves "
            f"{given.second or given.second_test} aside: --config.data.form= (empty) takes it as "
            "it is"
        )
    if not given.form and not (given.second and given.second_test):
        raise ValueError(
            "config.data has neither a form nor both second and second_test: --config.data.form="
            f"{next(iter(FORMS))} makes the second set of the first"
        )
    if config.norm not in NORMS:
        raise ValueError(f"config.norm={config.norm!r} is not one of {', '.join(NORMS)}")
    if given.sigma <= 0:
        raise ValueError(f"config.data.sigma={given.sigma} is not positive")
    weights = {
        "cycle": config.cycle,
        "identity": config.identity,
        "r1": config.r1,
        "response": config.distilled.response,
    }
    lessons.check_weights(weights)
    if config.evaluate.images < 0 or config.pool < 0:
        raise ValueError(
            f"config.evaluate.images={config.evaluate.images} and config.pool={config.pool} must "
            "not be negative"
        )
    sets = open_sets(config)
    for source in sets.train.values():
        if len(source) < config.batch_size:
            raise ValueError(f"{source.name} has {len(source)} images, fewer than one batch")
    if given.form == "sepia" and given.channels != 3:
        raise ValueError(f"config.data.form='sepia' needs 3 channels, not {given.channels}")
    dtype = lessons.dtype(config)
    teacher, student = (
        twice(
            translation.resnet_generator(
                sizes.width,
                channels=given.channels,
                blocks=sizes.blocks,
                norm=NORMS[config.norm],
                separable=sizes.get("separable", False),
                residual=config.residual,
                dtype=dtype,
            )
        )
        for sizes in (config.teacher, config.student)
    )
    sizes = config.discriminator
    judge = twice(
        translation.patch_discriminator(sizes.width, layers=sizes.layers, dtype=dtype)
        if sizes.layers
        else translation.pixel_discriminator(sizes.width, norm=None, dtype=dtype)
    )
    inputs = task(config)
    shape = (config.batch_size, given.size, given.size, given.channels)
    example = jax.eval_shape(
        inputs, jax.random.key(0), {name: np.zeros(shape, np.float32) for name in sets.train}
    )
    restoration.check_images(teacher, student, example)
    jax.eval_shape(judge.init, jax.random.key(0), example.real)
    return Lesson(
        title="Distilling translation without pairs",
        batches=lambda seed: kd_data.together(
            sets.train,
            config.batch_size,
            seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skip_corrupt=config.run.skip_corrupt,
        ),
        inputs=inputs,
        teacher=teacher,
        student=student,
        recipe=partial(recipe, config, inputs, teacher, student, judge),
        exam=lambda: make_exam(config, sets),
        watched=("psnr_second", "PSNR of what the second set is like, dB")
        if given.form
        else ("frechet_second", "Frechet distance there"),
        mesh=harness.mesh(config.mesh, config.batch_size),
    )


def twice(network: Network) -> Network:
    """A network for each way."""
    return side_by_side(network, network)


def task(config: ConfigDict) -> MakeInputs:
    """Both ways at once, the second set's images in their form."""
    both = tasks.unpaired()

    def make(key: Array, batch: Batch) -> Inputs:
        return both(key, {**batch, "second": second_domain(config, batch["second"])})

    return make


def second_domain(config: ConfigDict, images: Array) -> Array:
    """`[B, H, W, C]`: what images of the second set are turned into."""
    if not config.data.form:
        return images
    return jnp.broadcast_to(FORMS[config.data.form](images, config.data.sigma), images.shape)


def recipe(
    config: ConfigDict,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    judge: Network,
    name: str,
    variables: Variables | None = None,
) -> harness.Recipe:
    """One of `lessons.TRAININGS`: CycleGAN and, distilled, the L1 to the teacher's images."""
    side, channels = config.data.size, config.data.channels
    terms = recipes.cyclegan(
        (side, side, channels), cycle=config.cycle, identity=config.identity, pool=config.pool
    )
    nets = Networks(teacher if name == "teacher" else student, judge)
    if config.r1:
        r1 = Term(lambda f: losses.penalties.r1(f.score, f.real), config.r1)
        terms = terms._replace(discriminator={**terms.discriminator, "r1": r1})
    if name == "distilled":
        nets = nets._replace(teacher=teacher)
        response = Term(lambda f: losses.response.l1(f.fake, f.teacher), config.distilled.response)
        terms = terms._replace(generator={**terms.generator, "response": response})
    rate = config.discriminator.rate
    return lessons.recipe(config, name, nets, terms, inputs, variables, judge_rate=rate)


def make_exam(config: ConfigDict, sets: Sets) -> Exam:
    """Unseen images of both sets; the same ones where both forms of photographs are known."""
    first, second = (
        jnp.asarray(restoration.some_of(source, config.evaluate.images or len(source))["image"])
        for source in sets.test.values()
    )
    count = min(len(first), len(second))
    first, second = first[:count], second[:count]
    second = second_domain(config, first if config.data.form else second)
    pairs = np.stack([first, second], axis=1)
    right = pairs[:, ::-1]
    known = {name: np.asarray(kd_data.arrays(s)["image"]) for name, s in sets.train.items()}
    known["second"] = np.concatenate(
        [
            np.asarray(second_domain(config, jnp.asarray(known["second"][start : start + 64])))
            for start in range(0, len(known["second"]), 64)
        ]
    )
    features = extractor.classifier_extractor(
        np.concatenate([known["first"], known["second"]]),
        np.repeat(np.arange(2, dtype=np.int32), [len(x) for x in known.values()]),
        name="two-domains",
        classes=2,
        cache=harness.cache_dir(),
        steps=300,
        batch=32,
    )
    # What comes out first is of the second domain, and the other way round.
    references = [frechet.moments(features.features(right[:, way])) for way in range(2)]
    names = ("second", "first")

    def mark(images: Answers) -> dict[str, float]:
        images = np.clip(images, -1, 1)
        figures = {}
        for way, name in enumerate(names):
            made = images[:, way]
            if config.data.form:
                psnr = np.minimum(paired.psnr(made, right[:, way]), 100.0)
                figures[f"psnr_{name}"] = float(psnr.mean())
            figures[f"frechet_{name}"] = frechet.frechet_distance(
                frechet.moments(features.features(made)), references[way]
            )
        return figures

    def watch(images: Answers) -> dict[str, float]:
        figures = mark(images)
        return {"frechet_second": figures.pop("frechet_second"), **figures}

    def draw(file: Path, found: Mapping[str, Answers]) -> None:
        chosen = restoration.spaced(count, config.evaluate.examples)
        rows = {"input": pairs, **found}
        if config.data.form:
            rows["truth"] = right
        sheet = {
            f"{name}, {what}": images[chosen, way]
            for name, images in rows.items()
            for way, what in enumerate(("there", "back"))
        }
        pictures.save_grid(file, sheet)

    figures = {
        "psnr_second": Figure("PSNR there, dB", more=True, unit=" dB"),
        "frechet_second": Figure("Frechet distance there", more=False),
        "psnr_first": Figure("PSNR back, dB", more=True, unit=" dB"),
        "frechet_first": Figure("Frechet distance back", more=False),
    }
    classical = np.stack(
        [
            colours_of(pairs[:, 0], known["first"], known["second"]),
            colours_of(pairs[:, 1], known["second"], known["first"]),
        ],
        axis=1,
    )
    return Exam(
        inputs=Inputs((pairs,)),
        figures={k: v for k, v in figures.items() if config.data.form or "psnr" not in k},
        mark=mark,
        watch=watch,
        classical={"colour transfer": classical},
        asked=f"{count:,} images of each set that no network has seen",
        notes=[
            "There: from the first set to the second; back: from the second to the first. "
            + restoration.distance_note(features.name, "images of the set asked for")
        ],
        draw=draw,
    )


def colours_of(images: Answers, domain: Answers, other: Answers) -> Answers:
    """Images with each channel's mean and deviation in their domain turned into the other's.

    Reinhard et al. 2001, eq. 10 and 11, in the channels that there are.
    """
    (mean, deviation), (wanted, spread) = (
        (x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))) for x in (domain, other)
    )
    moved = (images - mean) / np.maximum(deviation, 1e-6) * spread + wanted
    return np.clip(moved, -1, 1).astype(np.float32)


EXPERIMENT = lessons.experiment(get_config, build)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

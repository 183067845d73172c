"""Distil text to image: teacher, student alone and student distilled draw digits as captions ask.

    python -m experiments.text_to_image --workdir=runs/text          # digits, minutes
    python -m experiments.text_to_image --workdir=runs/full --preset=full  # 32x32, a GPU
    python -m experiments.text_to_image --dry_run --config.student.width=4

"bold leaning seven": what is heavy and what leans is measured in the images, by thirds. A generator
whose encoder reads the words and whose features look at them (AttnGAN, Xu et al. 2018) plays
against a discriminator that reads them too; both have to find the caption of an image among those
of the batch (XMC-GAN, Zhang et al. 2021). A narrower one learns it alone, and from the teacher's
images for the same latents and words too.

Hardware and results: two CPU cores; the table in README.md.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import harness, lessons
from experiments.lessons import Answers, Exam, Figure, Lesson
from kd_jax import data as kd_data
from kd_jax import losses, recipes, tasks
from kd_jax.data import captions
from kd_jax.evaluate import extractor, frechet, pictures
from kd_jax.losses import matching
from kd_jax.models import text
from kd_jax.network import Network
from kd_jax.objective import Forward, Inputs, MakeInputs, Term
from kd_jax.state import Networks, Pair
from kd_jax.types import Array, Variables


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = lessons.settings()
    config.update(
        {
            "latent": 32,
            "data": {
                "size": 16,
                "split": "train[:80%]",
                "test_split": "train[80%:]",
            },
            "discriminator": {"width": 16, "rate": 1e-3},
            "r1": 0.5,  # weight of the gradient penalty at real images
            "matching": 0.2,  # of finding the caption among the batch's
            "distilled": {"pixel": 5.0},  # of the L1 to the teacher's images
        }
    )
    config.batch_size = 32
    config.final_rate = 0.1
    config.evaluate_every = config.checkpoint_every = 200
    config.teacher.update({"width": 24, "embedding": 32, "steps": 600, "rate": 1e-3})
    config.student.update({"width": 6, "embedding": 32, "steps": 600, "rate": 1e-3})
    # Each caption of a held-out image so many times, with other latents.
    config.evaluate.update({"repeat": 4, "examples": 12})
    if preset == "full":
        config.data.size = 32
        config.batch_size = 256
        config.latent = 128
        config.discriminator.width = 64
        config.teacher.update({"width": 64, "embedding": 128, "steps": 100_000})
        config.student.update({"width": 16, "embedding": 128, "steps": 100_000})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 2000, 2000
    if preset == "tiny":
        lessons.tiny(config)
        config.latent = 4
        config.discriminator.width = 2
        config.teacher.update({"width": 2, "embedding": 4})
        config.student.update({"width": 1, "embedding": 4})
        config.evaluate.repeat = 1
    return config


def build(config: ConfigDict) -> Lesson:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    lessons.check(config)
    weights = {"r1": config.r1, "matching": config.matching, "pixel": config.distilled.pixel}
    lessons.check_weights(weights)
    if config.matching and config.batch_size < 2:
        raise ValueError(
            f"config.batch_size={config.batch_size} has no other caption to tell an image's from: "
            "at least 2 are needed, or config.matching=0"
        )
    if config.evaluate.repeat < 1 or config.latent < 1:
        raise ValueError(
            f"config.evaluate.repeat={config.evaluate.repeat} and config.latent={config.latent} "
            "must be positive"
        )
    if config.data.split == config.data.test_split:
        raise ValueError(f"config.data.split={config.data.split!r} is what is asked in the end too")
    train, test = (
        kd_data.open_source("digits", split, config.data.size, 1, harness.cache_dir() / "tfds")
        for split in (config.data.split, config.data.test_split)
    )
    lessons.check_unseen(train, test, "--config.data.test_split")
    lessons.check_measured(len(test), test, "--config.data.test_split must have more")
    reader = captions.captioner(kd_data.arrays(train)["image"])
    inputs = tasks.text_to_image(config.latent, reader.tokens)
    words = {"vocabulary": len(captions.WORDS), "length": captions.LENGTH}
    dtype = lessons.dtype(config)
    teacher, student = (
        text.generator(
            config.data.size,
            sizes.width,
            embedding=sizes.embedding,
            channels=1,
            dtype=dtype,
            **words,
        )
        for sizes in (config.teacher, config.student)
    )
    judge = text.discriminator(
        config.data.size,
        config.discriminator.width,
        embedding=config.teacher.embedding,
        dtype=dtype,
        **words,
    )
    return Lesson(
        title="Distilling text to image",
        batches=lessons.deal(config, train),
        inputs=inputs,
        teacher=teacher,
        student=student,
        recipe=partial(recipe, config, inputs, teacher, student, judge),
        exam=lambda: make_exam(config, reader, train, test),
        watched=("frechet", "Frechet distance"),
        mesh=harness.mesh(config.mesh, config.batch_size),
    )


def recipe(
    config: ConfigDict,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    judge: Network,
    name: str,
    variables: Variables | None = None,
) -> harness.Recipe:
    """One of `lessons.TRAININGS`: the game with words and, distilled, the teacher's images."""
    game = recipes.nonsaturating(config.r1)
    terms = {**game.generator, "matching": Term(fake_matches, config.matching)}
    judged = {**game.discriminator, "matching": Term(real_matches, config.matching)}
    nets = Networks(teacher if name == "teacher" else student, judge)
    if name == "distilled":
        nets = nets._replace(teacher=teacher)
        terms["pixel"] = Term(
            lambda f: losses.response.l1(f.fake, f.teacher), config.distilled.pixel
        )
    rate = config.discriminator.rate
    both = Pair(terms, judged)
    return lessons.recipe(
        config, name, nets, both, inputs, variables, judge_rate=rate, b1=0.0, b2=0.99
    )


def fake_matches(f: Forward) -> Array:
    """The discriminator finds each generated image's caption among those of the batch."""
    same = matching.same_rows(f.inputs.extra["tokens"])
    return matching.contrastive(f.fake_taps["image"], f.fake_taps["sentence"], same)


def real_matches(f: Forward) -> Array:
    """It finds those of real images."""
    taps, same = f.real_taps, matching.same_rows(f.inputs.extra["tokens"])
    if taps is None:
        raise ValueError("the batch has no images")
    return matching.contrastive(taps["image"], taps["sentence"], same)


def make_exam(
    config: ConfigDict,
    reader: captions.Captioner,
    train: kd_data.Source,
    test: kd_data.Source,
) -> Exam:
    """The captions of unseen images, and the classifier that reads the answers."""
    real, unseen = kd_data.arrays(train), kd_data.arrays(test)
    features = extractor.classifier_extractor(
        real["image"],
        real["label"],
        name="digits",
        classes=train.num_classes,
        cache=harness.cache_dir(),
    )
    reference = frechet.moments(features.features(unseen["image"]))
    tokens = np.asarray(reader.tokens(unseen["image"], unseen["label"]))
    asked = np.tile(tokens, (config.evaluate.repeat, 1))
    z = jax.random.normal(jax.random.key(config.evaluate.seed), (len(asked), config.latent))

    def mark(images: Answers) -> dict[str, float]:
        read = features.outputs
        if read is None:
            raise ValueError(f"{features.name} has no outputs")
        outputs = read(images)
        drawn = np.asarray(reader.tokens(images, outputs["logits"].argmax(axis=1)))
        right = drawn == asked
        found = frechet.moments(outputs["features"])
        return {
            "frechet": frechet.frechet_distance(found, reference),
            "digit": 100 * float(right[:, 2].mean()),
            "weight": 100 * float(right[:, 0].mean()),
            "slant": 100 * float(right[:, 1].mean()),
            "caption": 100 * float(right.all(axis=1).mean()),
        }

    def draw(file: Path, found: Mapping[str, Answers]) -> None:
        chosen = np.linspace(0, len(tokens) - 1, min(config.evaluate.examples, len(tokens)))
        places = chosen.astype(int)
        said = [captions.decode(tokens[place]) for place in places]
        rows = {**found, "of that caption": unseen["image"]}
        pictures.save_grid(
            file, {name: images[places] for name, images in rows.items()}, titles=said
        )

    return Exam(
        inputs=Inputs((z, asked)),
        figures={
            "frechet": Figure("Frechet distance", more=False),
            "caption": Figure("all words right, %", more=True, digits=1),
            "digit": Figure("digit, %", more=True, digits=1),
            "weight": Figure("weight, %", more=True, digits=1),
            "slant": Figure("slant, %", more=True, digits=1),
        },
        mark=mark,
        watch=mark,
        classical={},
        asked=f"{len(asked):,} images for the captions of {len(test):,} that no network has seen",
        notes=[
            f"Frechet distance: to those images, in the features of `{features.name}` (a small "
            "classifier trained on this data; comparable only with itself, and not an FID). The "
            "digit is what that classifier reads, weight and slant are measured in the image."
        ],
        draw=draw,
    )


EXPERIMENT = lessons.experiment(get_config, build)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

"""Distil text to image, digits from captions: teacher, student from scratch, distilled student.

    python -m experiments.text_to_image --workdir=runs/text          # digits, minutes
    python -m experiments.text_to_image --workdir=runs/full --preset=full  # 32x32, a GPU
    python -m experiments.text_to_image --dry_run --config.student.width=4

"bold leaning seven": the words for weight and slant are the thirds of quantities measured in the
images. A generator whose features attend to the encoded words (AttnGAN, Xu et al. 2018) is trained
against a discriminator that reads them too, with a contrastive loss between the images and captions
of the batch in both networks (XMC-GAN, Zhang et al. 2021). A narrower generator is trained from
scratch, and distilled with the teacher's images for the same latents and words.

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import harness, prediction, runner
from experiments.runner import Comparison, Evaluation, Predictions
from kd_jax import data as kd_data, losses, methods, tasks
from kd_jax.core.network import Network
from kd_jax.core.objective import Forward, Inputs, MakeInputs, Term
from kd_jax.core.setup import Networks, PerNetwork, Teacher
from kd_jax.core.types import Array
from kd_jax.data import captions
from kd_jax.losses import image_text
from kd_jax.metrics import extractor, frechet
from kd_jax.models import text
from kd_jax.report import pictures
from kd_jax.report.columns import Column
from kd_jax.train.training import TrainingPlan


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = prediction.base_config()
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
            "matching": 0.2,  # weight of the contrastive image-text loss
            "distilled": {"pixel": 5.0},  # weight of the L1 to the teacher's images
        }
    )
    config.batch_size = 32
    config.final_rate = 0.1
    config.evaluate_every = config.checkpoint_every = 200
    config.teacher.update({"width": 24, "embedding": 32, "steps": 600, "rate": 1e-3})
    config.student.update({"width": 6, "embedding": 32, "steps": 600, "rate": 1e-3})
    # Images per caption of a held-out image, with different latents.
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
        prediction.tiny(config)
        config.latent = 4
        config.discriminator.width = 2
        config.teacher.update({"width": 2, "embedding": 4})
        config.student.update({"width": 1, "embedding": 4})
        config.evaluate.repeat = 1
    return config


def build(config: ConfigDict) -> Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    prediction.check(config)
    if config.matching and config.batch_size < 2:
        raise ValueError(
            f"config.batch_size={config.batch_size} is too small for the contrastive loss: at "
            "least 2 is needed, or config.matching=0"
        )
    if config.data.split == config.data.test_split:
        raise ValueError(f"config.data.split={config.data.split!r} equals config.data.test_split")
    train, test = (
        kd_data.open_source("digits", split, config.data.size, 1)
        for split in (config.data.split, config.data.test_split)
    )
    prediction.check_held_out(train, test, "--config.data.test_split")
    prediction.check_frechet_count(len(test), test, "--config.data.test_split must have more")
    captioner = captions.captioner(kd_data.load_all(train)["image"])
    inputs = tasks.text_to_image(config.latent, captioner.tokens)
    words = {"vocabulary": len(captions.WORDS), "length": captions.LENGTH}
    dtype = prediction.dtype(config)
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
    discriminator = text.discriminator(
        config.data.size,
        config.discriminator.width,
        embedding=config.teacher.embedding,
        dtype=dtype,
        **words,
    )
    return prediction.make_comparison(
        config,
        title="Distilling text to image",
        batches=prediction.make_batches(config, train),
        task=inputs,
        teacher=teacher,
        student=student,
        plan=partial(training_plan, config, inputs, teacher, student, discriminator),
        evaluation=lambda: make_evaluation(config, captioner, train, test),
        tracked=("frechet", "Frechet distance"),
    )


def training_plan(
    config: ConfigDict,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    discriminator: Network,
    name: str,
    variables: Teacher | None = None,
) -> TrainingPlan:
    """The plan of the training of this name: teacher, from_scratch or distilled.

    The losses are those of a conditional GAN, the contrastive loss and, for the distilled student,
    the L1 to the teacher's images.
    """
    adversarial = methods.nonsaturating(config.r1)
    terms = {**adversarial.generator, "matching": Term(match_fake, config.matching)}
    d_terms = {**adversarial.discriminator, "matching": Term(match_real, config.matching)}
    nets = Networks(teacher if name == runner.TEACHER else student, discriminator)
    if name == runner.DISTILLED:
        nets = nets._replace(teacher=teacher)
        terms["pixel"] = Term(
            lambda f: losses.response.l1(f.student.output, f.teacher.output), config.distilled.pixel
        )
    rate = config.discriminator.rate
    all_terms = PerNetwork(terms, d_terms)
    return prediction.training_plan(
        config, name, nets, all_terms, inputs, variables, d_rate=rate, b1=0.0, b2=0.99
    )


def match_fake(f: Forward) -> Array:
    """The contrastive loss between generated images and the captions of the batch."""
    same = image_text.same_rows(f.inputs.extra["tokens"])
    return image_text.image_text_contrastive(
        f.discriminator.fake_taps["image"], f.discriminator.fake_taps["sentence"], same
    )


def match_real(f: Forward) -> Array:
    """The contrastive loss between real images and the captions of the batch."""
    taps, same = f.discriminator.real_taps, image_text.same_rows(f.inputs.extra["tokens"])
    if taps is None:
        raise ValueError("the batch has no images")
    return image_text.image_text_contrastive(taps["image"], taps["sentence"], same)


def make_evaluation(
    config: ConfigDict,
    captioner: captions.Captioner,
    train: kd_data.Source,
    test: kd_data.Source,
) -> Evaluation:
    """The evaluation on the captions of held-out images; trains the classifier of digits."""
    real, held_out = kd_data.load_all(train), kd_data.load_all(test)
    features = extractor.classifier_extractor(
        real["image"],
        real["label"],
        name="digits",
        classes=train.num_classes,
        cache=harness.cache_dir(),
    )
    reference = frechet.moments(features.features(held_out["image"]))
    tokens = np.asarray(captioner.tokens(held_out["image"], held_out["label"]))
    target_tokens = np.tile(tokens, (config.evaluate.repeat, 1))
    z = jax.random.normal(jax.random.key(config.evaluate.seed), (len(target_tokens), config.latent))

    def compute(images: Predictions) -> dict[str, float]:
        compute_outputs = features.outputs
        if compute_outputs is None:
            raise ValueError(f"{features.name} has no outputs")
        outputs = compute_outputs(images)
        image_tokens = np.asarray(captioner.tokens(images, outputs["logits"].argmax(axis=1)))
        correct = image_tokens == target_tokens
        moments = frechet.moments(outputs["features"])
        return {
            "frechet": frechet.frechet_distance(moments, reference),
            "digit": 100 * float(correct[:, 2].mean()),
            "weight": 100 * float(correct[:, 0].mean()),
            "slant": 100 * float(correct[:, 1].mean()),
            "caption": 100 * float(correct.all(axis=1).mean()),
        }

    shown = runner.evenly_spaced(len(tokens), config.evaluate.examples)

    def draw(file: Path, predictions: Mapping[str, Predictions]) -> None:
        titles = [captions.decode(tokens[index]) for index in shown]
        rows = {**predictions, "real image": held_out["image"][shown]}
        pictures.save_grid(file, rows, titles=titles)

    return Evaluation(
        inputs=Inputs((z, target_tokens)),
        metrics=[
            Column("frechet", "Frechet distance", digits=2),
            Column("caption", "all words correct, %", better="higher", digits=1),
            Column("digit", "digit, %", better="higher", digits=1),
            Column("weight", "weight, %", better="higher", digits=1),
            Column("slant", "slant, %", better="higher", digits=1),
        ],
        compute=compute,
        compute_validation=compute,
        baselines={},
        description=(
            f"{len(target_tokens):,} images for the captions of {len(test):,} held-out images"
        ),
        notes=[
            f"Frechet distance: to those images, in the features of `{features.name}` (a small "
            "classifier trained on this data; comparable only with itself, and not an FID). The "
            "digit is classified by that classifier, weight and slant are measured in the image."
        ],
        shown=shown,
        draw=draw,
        predict=runner.predict_in_chunks,
    )


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

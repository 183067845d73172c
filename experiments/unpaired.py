"""Distil CycleGAN: translation between photographs and sepia (or edges) without paired images.

    python -m experiments.unpaired --workdir=runs/unpaired           # photographs, minutes
    python -m experiments.unpaired --workdir=runs/full --preset=full # your own two folders, a GPU
    python -m experiments.unpaired --workdir=runs/edges --config.data.form=edges
    python -m experiments.unpaired --dry_run --config.student.width=8

Two ResNet generators, one per direction, are trained on photographs in colour and on others in
sepia (or their edges), with two adversarial losses, the cycle loss and the identity loss (Zhu et
al. 2017). Two narrower ones with separable convolutions are trained from scratch, and distilled
with the teachers' images. The two generators run in parallel as one network, so that the training
step is the usual one. As in the paper, the evaluation is on pairs: of held-out photographs both
forms are known. The baseline gives an image the other set's mean and deviation of each channel
(Reinhard et al. 2001).

Hardware and results: two CPU cores; the table in docs/results.md.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import harness, prediction, restoration, runner
from experiments.runner import Comparison, Evaluation, Predictions
from kd_jax import data as kd_data, losses, methods, tasks
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs, MakeInputs, Term
from kd_jax.core.setup import Networks, Teacher
from kd_jax.core.types import Array, Batch
from kd_jax.metrics import extractor, frechet, image_quality
from kd_jax.models import translation
from kd_jax.models.pair import parallel
from kd_jax.report import pictures
from kd_jax.report.columns import Column
from kd_jax.tasks import degradations
from kd_jax.train.training import TrainingPlan


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = prediction.base_config()
    config.update(
        {
            "data": {
                "first": "photos",  # or folder:PATH, tfds:NAME
                "first_split": "train",
                "first_test": "photos",
                # Sepia, edges or "". With a form the second set is every other image of the first
                # in that form, the first set keeps the rest, and only first_test is evaluated on.
                "form": "sepia",
                "second": "",  # without a form: folder:PATH, tfds:NAME, photos
                "second_split": "train",
                "second_test": "",
                "test_split": "test",  # ignored for folders, as the splits above
                "sigma": 0.7,  # of the Gaussian filter before edge detection, in pixels
                "size": 32,
                "channels": 3,
                "resize": False,  # resize images of other sizes
                "background": "",  # a colour behind transparent images; by default white
            },
            # 10 and 5 in Zhu et al.; with so few steps these would keep generators at the identity.
            "cycle": 1.0,  # weight of the cycle-consistency loss
            "identity": 0.5,  # weight of the identity loss
            "residual": True,  # whether generators add to their inputs; not in the paper
            "norm": "none",  # or instance, which removes an image's mean colour
            "r1": 0.05,  # weight of the discriminators' R1, without which the training oscillates
            "pool": 50,  # the size of the pool of earlier generated images
            "distilled": {"response": 10.0},  # weight of the L1 to the teacher's images
            # Of a PatchGAN; with 0 layers it scores each pixel independently, without a norm, which
            # would hide a colour that all pixels share.
            "discriminator": {"width": 32, "layers": 0, "rate": 5e-4},
        }
    )
    config.batch_size = 4
    config.teacher.update({"width": 14, "blocks": 3, "steps": 2000, "rate": 1e-3})
    config.student.update({"width": 4, "blocks": 2, "separable": True, "steps": 2000, "rate": 2e-3})
    config.ema = 0.998
    config.evaluate_every = config.checkpoint_every = 250
    config.evaluate.images = 0  # of each set; 0: all
    if preset == "full":
        config.data.update({"first": "folder:first/train", "first_test": "folder:first/test"})
        config.data.update({"second": "folder:second/train", "second_test": "folder:second/test"})
        config.data.update({"form": "", "size": 256})
        config.evaluate.images = 1000  # all images and predictions may exceed the memory
        config.cycle, config.identity, config.residual, config.r1 = 10.0, 5.0, False, 0.0
        config.norm = "instance"
        config.batch_size = 1
        config.discriminator.update({"width": 64, "layers": 3, "rate": 2e-4})
        config.teacher.update({"width": 64, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.student.update({"width": 20, "blocks": 9, "steps": 200_000, "rate": 2e-4})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 5000, 5000
    if preset == "tiny":
        prediction.tiny(config)
        config.data.size = 16
        config.discriminator.update({"width": 2, "layers": 1})
        config.teacher.update({"width": 2, "blocks": 1})
        config.student.update({"width": 1, "blocks": 1})
        config.pool = 4
        config.evaluate.images = 4
    return config


NORMS: dict[str, translation.Norm | None] = {"instance": translation.INSTANCE, "none": None}

FORMS: dict[str, Callable[[Array, float], Array]] = {
    "sepia": lambda images, _: degradations.sepia(images),
    "edges": lambda images, sigma: degradations.edges(images, sigma=sigma),
}


class Sets(NamedTuple):
    """The training images and the held-out images of both domains."""

    train: Mapping[str, kd_data.Source]
    test: Mapping[str, kd_data.Source]


def open_sets(config: ConfigDict) -> Sets:
    """Opens the training and the held-out images of both domains.

    Raises:
      ValueError, FileNotFoundError: a one-line message.
    """
    data = config.data

    def open_split(spec: str, split: str) -> kd_data.Source:
        return runner.open_images(config, spec, prediction.split_name(spec, split))

    first, held_out = (
        open_split(data.first, data.first_split),
        open_split(data.first_test, data.test_split),
    )
    trained_on, tests = [first], {"first": held_out, "second": held_out}
    if data.form:
        if len(first) < 2:
            raise ValueError(f"{first.name} has one image, which cannot be split into two sets")
        train = {"first": kd_data.strided(first, 2), "second": kd_data.strided(first, 2, start=1)}
    else:
        train = {"first": first, "second": open_split(data.second, data.second_split)}
        trained_on = [*train.values()]
        tests["second"] = open_split(data.second_test, data.test_split)
    for name, test in tests.items():
        for source in trained_on:
            flags = f"--config.data.{name}_test or --config.data.test_split"
            prediction.check_held_out(source, test, flags)
        prediction.check_frechet_count(
            min(config.evaluate.images or len(test), len(test)),
            test,
            f"--config.evaluate.images=0 takes all images, --config.data.{name}_test others",
        )
    return Sets(train, tests)


def build(config: ConfigDict) -> Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    prediction.check(config)
    data = config.data
    if data.form not in ("", *FORMS):
        raise ValueError(f"config.data.form={data.form!r} is not one of {', '.join(FORMS)} or ''")
    if data.form and (data.second or data.second_test):
        raise ValueError(
            f"config.data.form={data.form!r} makes the second set of the first, so that "
            f"{data.second or data.second_test} would be ignored: --config.data.form= (empty) "
            "uses it"
        )
    if not data.form and not (data.second and data.second_test):
        raise ValueError(
            "config.data has neither a form nor both second and second_test: --config.data.form="
            f"{next(iter(FORMS))} makes the second set of the first"
        )
    if config.norm not in NORMS:
        raise ValueError(f"config.norm={config.norm!r} is not one of {', '.join(NORMS)}")
    sets = open_sets(config)
    for source in sets.train.values():
        if len(source) < config.batch_size:
            raise ValueError(f"{source.name} has {len(source)} images, fewer than one batch")
    if data.form == "sepia" and data.channels != 3:
        raise ValueError(f"config.data.form='sepia' needs 3 channels, not {data.channels}")
    dtype = prediction.dtype(config)
    teacher, student = (
        duplicate(
            translation.resnet_generator(
                sizes.width,
                channels=data.channels,
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
    discriminator = duplicate(
        translation.patch_discriminator(sizes.width, layers=sizes.layers, dtype=dtype)
        if sizes.layers
        else translation.pixel_discriminator(sizes.width, norm=None, dtype=dtype)
    )
    inputs = make_inputs(config)
    shape = (config.batch_size, data.size, data.size, data.channels)
    example = jax.eval_shape(
        inputs, jax.random.key(0), {name: np.zeros(shape, np.float32) for name in sets.train}
    )
    restoration.check_images(teacher, student, example)
    jax.eval_shape(discriminator.init, jax.random.key(0), example.real)
    return prediction.make_comparison(
        config,
        title="Distilling translation without pairs",
        batches=lambda seed: kd_data.zipped_batches(
            sets.train,
            config.batch_size,
            seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skip_corrupt=config.run.skip_corrupt,
        ),
        task=inputs,
        teacher=teacher,
        student=student,
        plan=partial(training_plan, config, inputs, teacher, student, discriminator),
        evaluation=lambda: make_evaluation(config, sets),
        tracked=("psnr_second", "PSNR, first set to second, dB")
        if data.form
        else ("frechet_second", "Frechet distance, first set to second"),
    )


def duplicate(network: Network) -> Network:
    """Two copies of a network in parallel, one per direction."""
    return parallel(network, network)


def make_inputs(config: ConfigDict) -> MakeInputs:
    """The task in both directions, with the second set's images in their form."""
    unpaired = tasks.unpaired()

    def make(key: Array, batch: Batch) -> Inputs:
        return unpaired(key, {**batch, "second": second_domain(config, batch["second"])})

    return make


def second_domain(config: ConfigDict, images: Array) -> Array:
    """Images `[B, H, W, C]` of the second set, converted to `config.data.form`."""
    if not config.data.form:
        return images
    return jnp.broadcast_to(FORMS[config.data.form](images, config.data.sigma), images.shape)


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

    The losses are CycleGAN's and, for the distilled student, the L1 to the teacher's images.
    """
    side, channels = config.data.size, config.data.channels
    terms = methods.cyclegan(
        (side, side, channels), cycle=config.cycle, identity=config.identity, pool=config.pool
    )
    nets = Networks(teacher if name == runner.TEACHER else student, discriminator)
    if config.r1:
        r1 = Term(lambda f: losses.penalties.r1(f.discriminator, f.real), config.r1)
        terms = terms._replace(discriminator={**terms.discriminator, "r1": r1})
    if name == runner.DISTILLED:
        nets = nets._replace(teacher=teacher)
        response = Term(
            lambda f: losses.response.l1(f.student.output, f.teacher.output),
            config.distilled.response,
        )
        terms = terms._replace(generator={**terms.generator, "response": response})
    rate = config.discriminator.rate
    return prediction.training_plan(config, name, nets, terms, inputs, variables, d_rate=rate)


def make_evaluation(config: ConfigDict, sets: Sets) -> Evaluation:
    """The evaluation on held-out images of both sets, which are paired if there is a form."""
    first, second = (
        jnp.asarray(restoration.subsample(source, config.evaluate.images or len(source))["image"])
        for source in sets.test.values()
    )
    count = min(len(first), len(second))
    first, second = first[:count], second[:count]
    second = second_domain(config, first if config.data.form else second)
    pairs = np.stack([first, second], axis=1)
    targets = pairs[:, ::-1]
    training_images = {
        name: np.asarray(kd_data.load_all(s)["image"]) for name, s in sets.train.items()
    }
    training_images["second"] = np.concatenate(
        [
            np.asarray(
                second_domain(config, jnp.asarray(training_images["second"][start : start + 64]))
            )
            for start in range(0, len(training_images["second"]), 64)
        ]
    )
    features = extractor.classifier_extractor(
        np.concatenate([training_images["first"], training_images["second"]]),
        np.repeat(np.arange(2, dtype=np.int32), [len(x) for x in training_images.values()]),
        name="two-domains",
        classes=2,
        cache=harness.cache_dir(),
        steps=300,
        batch=32,
    )
    # Outputs 0 belong to the second domain, outputs 1 to the first.
    references = [frechet.moments(features.features(targets[:, index])) for index in range(2)]
    names = ("second", "first")

    def compute(images: Predictions) -> dict[str, float]:
        images = np.clip(images, -1, 1)
        values = {}
        for index, name in enumerate(names):
            outputs = images[:, index]
            if config.data.form:
                psnr = np.minimum(image_quality.psnr(outputs, targets[:, index]), 100.0)
                values[f"psnr_{name}"] = float(psnr.mean())
            values[f"frechet_{name}"] = frechet.frechet_distance(
                frechet.moments(features.features(outputs)), references[index]
            )
        return values

    def compute_validation(images: Predictions) -> dict[str, float]:
        values = compute(images)
        return {"frechet_second": values.pop("frechet_second"), **values}

    shown = runner.evenly_spaced(count, config.evaluate.examples)

    def draw(file: Path, predictions: Mapping[str, Predictions]) -> None:
        rows = {"input": pairs[shown], **predictions}
        if config.data.form:
            rows["truth"] = targets[shown]
        grid = {
            f"{name}, {direction}": images[:, index]
            for name, images in rows.items()
            for index, direction in enumerate(("forward", "backward"))
        }
        pictures.save_grid(file, grid)

    metrics = [
        Column("psnr_second", "PSNR forward, dB", better="higher", digits=2),
        Column("frechet_second", "Frechet distance forward", digits=2),
        Column("psnr_first", "PSNR backward, dB", better="higher", digits=2),
        Column("frechet_first", "Frechet distance backward", digits=2),
    ]
    baseline = np.stack(
        [
            transfer_colours(pairs[:, 0], training_images["first"], training_images["second"]),
            transfer_colours(pairs[:, 1], training_images["second"], training_images["first"]),
        ],
        axis=1,
    )
    return Evaluation(
        inputs=Inputs((pairs,)),
        metrics=[m for m in metrics if config.data.form or "psnr" not in m.name],
        compute=compute,
        compute_validation=compute_validation,
        baselines={"colour transfer": baseline},
        description=f"{count:,} held-out images of each set",
        notes=[
            "Forward: from the first set to the second; backward: from the second to the first. "
            + restoration.distance_note(features.name, "images of the target set")
        ],
        shown=shown,
        draw=draw,
        predict=runner.predict_in_chunks,
    )


def transfer_colours(images: Predictions, domain: Predictions, other: Predictions) -> Predictions:
    """Maps each channel's mean and deviation in the images' domain to those of the other domain.

    Reinhard et al. 2001, eq. 10 and 11, in the images' own channels.
    """
    (mean, deviation), (other_mean, other_deviation) = (
        (x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))) for x in (domain, other)
    )
    transferred = (images - mean) / np.maximum(deviation, 1e-6) * other_deviation + other_mean
    return np.clip(transferred, -1, 1).astype(np.float32)


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

"""What lessons on images with a right answer share: super-resolution, inpainting, translation.

The student alone learns from the right answers, distilled from those and the teacher's; what is
asked in the end is of photographs that none has seen.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import comparison, harness, lessons
from experiments.lessons import Answers, Exam, Figure, Lesson
from kd_jax import data as kd_data
from kd_jax import losses, recipes, tasks
from kd_jax.evaluate import extractor, frechet, paired, pictures
from kd_jax.models import translation
from kd_jax.models.resnet import upsample
from kd_jax.network import Network
from kd_jax.objective import Inputs, MakeInputs, Term
from kd_jax.state import Networks
from kd_jax.types import Array, Batch, Variables

_WINDOW = 11

Restore: TypeAlias = Callable[[Inputs, kd_data.Source], Any]
"""`(what the generators are given, the training's images) -> images [N, H, W, C]`."""

FIGURES = {
    "psnr": Figure("PSNR, dB", more=True, unit=" dB"),
    "ssim": Figure("SSIM", more=True, digits=4),
    "lpips": Figure("LPIPS", more=False, digits=4),
    "frechet": Figure("Frechet distance", more=False),
}


def settings() -> ConfigDict:
    """What all these experiments have; each adds its networks to `teacher` and `student`."""
    config = lessons.settings()
    config.update(
        {
            "data": {
                "source": "photos",  # or folder:PATH, tfds:NAME
                "test": "",  # where the unseen images are; by default the source's split `test`
                "size": 64,
                "channels": 3,
                "resize": False,  # make images of other sizes fit
                "patches": False,  # cut a folder's images into patches of that size, instead
                "turn": True,  # show them mirrored and turned by quarters
            },
            "distilled": {
                "truth": 1.0,  # weight of the L1 to the right answer
                "response": 1.0,  # to the teacher's
                "feature": 0.0,  # of the connected features' L2
            },
            "adversarial": 0.0,  # weight of a least-squares game with a PatchGAN; 0 for none
            "discriminator": {"width": 16, "layers": 2, "rate": 2e-4},
        }
    )
    config.evaluate.images = 0  # 0: all there are
    # Weights, published as trunk and heads (two files, with a comma) or as one; none: no LPIPS.
    config.evaluate.lpips = ""
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """For tests: seconds, and nothing learnt."""
    lessons.tiny(config)
    config.data.size = 16
    config.evaluate.images = 12
    return config


def open_images(config: ConfigDict) -> tuple[kd_data.Source, kd_data.Source]:
    """The images to learn from and those to be examined on.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    lessons.check(config)
    lessons.check_distilled(config)
    if config.data.source.startswith("folder:") and not config.data.test:
        raise ValueError(
            "a folder has no images set aside: --config.data.test=folder:PATH is needed too"
        )
    if config.data.size < _WINDOW:
        raise ValueError(
            f"config.data.size={config.data.size} is below {_WINDOW}, the side of SSIM's window"
        )
    if config.evaluate.images < 0:
        raise ValueError(f"config.evaluate.images={config.evaluate.images} is negative")
    other = config.data.test or config.data.source
    train, test = (
        lessons.opened(config, spec, lessons.split_of(spec, part))
        for spec, part in ((config.data.source, "train"), (other, "test"))
    )
    lessons.check_unseen(train, test, "--config.data.test")
    if train.num_classes > 1:
        lessons.check_measured(
            min(config.evaluate.images or len(test), len(test)),
            test,
            "--config.evaluate.images=0 takes all there are, --config.data.test others",
        )
    return train, test


def lesson(
    config: ConfigDict,
    title: str,
    task: MakeInputs,
    teacher: Network,
    student: Network,
    taps: Sequence[str] | Mapping[str, str],
    *,
    classical: Mapping[str, Restore],
    shown: Callable[[Inputs], Any],
) -> Lesson:
    """Opens the images and puts everything together.

    Args:
      config: the configuration.
      title: the report's.
      task: the task as it is asked for in the end.
      teacher: the large generator.
      student: the small one.
      taps: names of features, or `{student's: teacher's}`, that can be matched.
      classical: methods that do not learn as networks do, by name.
      shown: what the generator is given, as images `[N, H, W, C]` for a picture.

    Raises:
      ValueError, FileNotFoundError: one line.
    """
    train, test = open_images(config)
    distance = _lpips(config)
    inputs = tasks.turned(task) if config.data.turn else task
    judge = discriminator(config)
    made = Lesson(
        title=title,
        batches=lessons.deal(config, train),
        inputs=inputs,
        teacher=teacher,
        student=student,
        recipe=partial(recipe, config, train, inputs, teacher, student, judge, taps),
        exam=lambda: make_exam(config, task, train, test, distance, classical, shown),
        watched=("psnr", "PSNR, dB"),
        mesh=harness.mesh(config.mesh, config.batch_size),
    )
    batch = comparison.example_batch(config, train)
    example = jax.eval_shape(inputs, jax.random.key(0), batch)
    check_images(teacher, student, example)
    if judge is not None:
        jax.eval_shape(judge.init, jax.random.key(0), example.real, *example.condition)
    return made


def check_images(teacher: Network, student: Network, example: Inputs) -> None:
    """Refuses generators whose images are of another shape than the right ones.

    Raises:
      ValueError: one line.
    """
    for name, network in (("teacher", teacher), ("student", student)):
        made_of = jax.eval_shape(
            lambda *x, network=network: network.apply(network.init(jax.random.key(0), *x), *x)[0],
            *example.generator,
        )
        right: Any = example.real
        if made_of.shape != right.shape:
            raise ValueError(
                f"the {name} makes images {made_of.shape[1:]}, {right.shape[1:]} are right"
            )


def discriminator(config: ConfigDict) -> Network | None:
    """The PatchGAN of Isola et al. 2017, which sees what the task lets it see; or none.

    Raises:
      ValueError: a setting does not fit.
    """
    if config.adversarial < 0:
        raise ValueError(f"config.adversarial={config.adversarial} is negative")
    if not config.adversarial:
        return None
    sizes = config.discriminator
    return translation.patch_discriminator(
        sizes.width, layers=sizes.layers, dtype=lessons.dtype(config)
    )


def recipe(
    config: ConfigDict,
    train: kd_data.Source,
    inputs: MakeInputs,
    teacher: Network,
    student: Network,
    judge: Network | None,
    taps: Sequence[str] | Mapping[str, str],
    name: str,
    variables: Variables | None = None,
) -> harness.Recipe:
    """One of `lessons.TRAININGS`: the L1 to what is right and, distilled, to the teacher's."""
    batch = comparison.example_batch(config, train)
    if name == "distilled":
        nets, terms = distilled(config, teacher, student, taps, inputs, batch)
    else:
        nets = Networks(teacher if name == "teacher" else student)
        terms = {"truth": Term(lambda f: losses.response.l1(f.fake, f.real))}
    nets = nets._replace(discriminator=judge)
    rate = config.discriminator.rate
    both = lessons.in_game(terms, config.adversarial)
    return lessons.recipe(config, name, nets, both, inputs, variables, judge_rate=rate)


def distilled(
    config: ConfigDict,
    teacher: Network,
    student: Network,
    taps: Sequence[str] | Mapping[str, str],
    inputs: MakeInputs,
    batch: Batch,
) -> tuple[Networks, dict[str, Term]]:
    """The student to be distilled, connected if need be, and its terms but for the game."""
    weights = config.distilled
    terms = {
        "truth": Term(lambda f: losses.response.l1(f.fake, f.real), weights.truth),
        "response": Term(lambda f: losses.response.l1(f.fake, f.teacher), weights.response),
        "feature": Term(recipes.on_taps(losses.feature.l2, taps, connect=True), weights.feature),
    }
    terms = {name: term for name, term in terms.items() if term.weight}
    if "feature" in terms:
        student = lessons.connected(student, teacher, taps, inputs, batch)
    return Networks(student, teacher=teacher), terms


def make_exam(
    config: ConfigDict,
    task: MakeInputs,
    train: kd_data.Source,
    test: kd_data.Source,
    distance: extractor.Perceptual | None,
    classical: Mapping[str, Restore],
    shown: Callable[[Inputs], Any],
) -> Exam:
    """Draws what is asked of the unseen images, and finds the classifier."""
    batch = some_of(test, config.evaluate.images or len(test))
    inputs = jax.jit(task)(jax.random.key(config.evaluate.seed), batch)
    right = np.asarray(inputs.real)
    notes = ["PSNR and SSIM are means over images, of all channels, without a border cut off."]
    measures: dict[str, Callable[[Answers], float]] = {
        "psnr": lambda images: float(np.minimum(paired.psnr(images, right), 100.0).mean()),
        "ssim": lambda images: float(paired.ssim(images, right, window=_WINDOW).mean()),
    }
    if distance is not None:
        notes.append(f"LPIPS is `{distance.name}`.")
        measures["lpips"] = lambda images: float(
            comparison.in_parts(distance.distance, (images, right), at_most=32).mean()
        )
    if train.num_classes > 1:
        features = classifier(config, train)
        reference = frechet.moments(features.features(right))
        notes.append(distance_note(features.name, "the right answers"))
        measures["frechet"] = lambda images: frechet.frechet_distance(
            frechet.moments(features.features(images)), reference
        )

    def draw(file: Path, found: Mapping[str, Answers]) -> None:
        rows = {"input": np.asarray(shown(inputs)), **found, "truth": right}
        chosen = spaced(len(right), config.evaluate.examples)
        pictures.save_grid(file, {name: images[chosen] for name, images in rows.items()})

    def watch(images: Answers) -> dict[str, float]:
        images = np.clip(images, -1, 1)
        squares = float(((images - right) ** 2).mean())
        return {"squared_error": squares, "psnr": measures["psnr"](images)}

    return Exam(
        inputs=inputs,
        figures={name: FIGURES[name] for name in FIGURES if name in measures},
        mark=lambda x: {name: of(np.clip(x, -1, 1)) for name, of in measures.items()},
        watch=watch,
        classical={
            name: np.asarray(restore(inputs, train), np.float32)
            for name, restore in classical.items()
        },
        asked=f"{len(right):,} images that no network has seen",
        notes=notes,
        draw=draw,
    )


def spaced(count: int, wanted: int) -> Any:
    """The places of some of `count` things: of an ordered set, some of everything."""
    return np.linspace(0, count - 1, min(count, wanted)).astype(int)


def some_of(source: kd_data.Source, count: int) -> Batch:
    """At most so many of the images, from everywhere in the set, as one batch."""
    chosen = [source[int(i)] for i in spaced(len(source), count)]
    return {name: np.stack([example[name] for example in chosen]) for name in ("image", "label")}


def classifier(config: ConfigDict, source: kd_data.Source) -> extractor.Extractor:
    """What a Frechet distance is measured in."""
    real = kd_data.arrays(source)
    return extractor.classifier_extractor(
        real["image"],
        real["label"],
        name=config.data.source.partition(":")[0],
        classes=source.num_classes,
        cache=harness.cache_dir(),
        steps=300,  # of large patches; it is only to see textures
        batch=32,
    )


def distance_note(name: str, what: str) -> str:
    """What a report says of a Frechet distance."""
    return (
        f"Frechet distance: to {what}, in the features of `{name}` (a small classifier trained on "
        "this data; comparable only with itself, and not an FID)."
    )


def _lpips(config: ConfigDict) -> extractor.Perceptual | None:
    files = [part.strip() for part in config.evaluate.lpips.split(",") if part.strip()]
    if len(files) > 2:
        raise ValueError(
            f"config.evaluate.lpips={config.evaluate.lpips!r} names {len(files)} files"
        )
    return extractor.lpips(*files) if files else None


def as_large(images: Array, size: int) -> Array:
    """Images enlarged to another height, pixel by pixel, to be shown beside others of it."""
    return upsample(images, size // images.shape[1])

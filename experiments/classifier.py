"""Distil a classifier: teacher, student alone, student distilled, and a linear one.

    python -m experiments.classifier --workdir=runs/classifier       # digits, a minute
    python -m experiments.classifier --workdir=runs/full --preset=full
                                     --config.data.source=folder:A --config.data.test=folder:B
    python -m experiments.classifier --dry_run --config.student.width=4

A convolutional classifier learns handwritten digits from the labels. A narrower one learns them
alone, and with `alpha` of the labels' cross-entropy and `1 - alpha` of the divergence from the
teacher's logits at a temperature (Hinton et al. 2015). The classical method is logistic regression
of the pixels. The step is that of the generators, with no discriminator.

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
from kd_jax import recipes, tasks
from kd_jax.evaluate import pictures
from kd_jax.models import classifier
from kd_jax.network import Network
from kd_jax.state import Networks
from kd_jax.types import Variables


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = lessons.settings()
    config.batch_size = 32
    config.data = ConfigDict(
        {
            "source": "digits",  # or folder:PATH, tfds:NAME
            # Where the unseen images are; by default the source's. A folder needs another for them.
            "test": "",
            # Of a folder all are taken. Scikit-learn's digits are in the order of who wrote them.
            "split": "train[:60%]",
            "test_split": "train[60%:]",
            "size": 16,
            "channels": 1,
            "resize": False,  # make images of other sizes fit
        }
    )
    config.teacher.update({"width": 32, "steps": 600})
    config.student.update({"width": 6, "steps": 600})
    config.distilled = ConfigDict({"alpha": 0.5, "temperature": 4.0})
    config.evaluate_every = config.checkpoint_every = 200
    if preset == "full":
        config.data.update(
            {"source": "folder:train", "test": "folder:test", "size": 64, "channels": 3}
        )
        config.data.split = config.data.test_split = "train"
        config.batch_size = 256
        config.teacher.update({"width": 128, "steps": 50_000})
        config.student.update({"width": 16, "steps": 50_000})
        config.log_every, config.evaluate_every, config.checkpoint_every = 100, 2000, 2000
    if preset == "tiny":
        lessons.tiny(config)
        config.teacher.width, config.student.width = 4, 1
    return config


def build(config: ConfigDict) -> Lesson:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: when a setting does not fit; one line.
    """
    lessons.check(config)
    given = config.data
    if given.source.startswith("folder:") and not given.test:
        raise ValueError(
            "a folder has no images set aside: --config.data.test=folder:PATH is needed too"
        )
    if not given.test and given.test_split == given.split:
        raise ValueError(
            f"config.data.split={given.split!r} is what is asked in the end too: set images aside "
            "by --config.data.test or --config.data.test_split"
        )
    train, test = (
        lessons.opened(config, spec, lessons.split_of(spec, split))
        for spec, split in (
            (given.source, given.split),
            (given.test or given.source, given.test_split),
        )
    )
    if train.num_classes < 2 or test.num_classes != train.num_classes:
        raise ValueError(
            f"{train.name} has {train.num_classes} classes and {test.name} {test.num_classes}: at "
            "least two are needed, the same in both"
        )
    kd_data.check_same_classes(train, test)
    lessons.check_unseen(train, test, "--config.data.test or --config.data.test_split")
    unknown = np.setdiff1d(test.read_labels(), train.read_labels())
    if len(unknown):
        raise ValueError(
            f"{test.name} has images of classes of which {train.name} has none: "
            f"{', '.join(map(str, unknown[:10]))}{', ...' if len(unknown) > 10 else ''}"
        )
    teacher, student = (
        classifier.classifier(train.num_classes, sizes.width, dtype=lessons.dtype(config))
        for sizes in (config.teacher, config.student)
    )
    recipes.hinton(**config.distilled)  # refuses settings that do not fit
    return Lesson(
        title="Distilling a classifier",
        batches=lessons.deal(config, train),
        inputs=tasks.classification(),
        teacher=teacher,
        student=student,
        recipe=partial(recipe, config, teacher, student),
        exam=lambda: make_exam(config, train, test),
        watched=("accuracy", "accuracy, %"),
        mesh=harness.mesh(config.mesh, config.batch_size),
    )


def recipe(
    config: ConfigDict,
    teacher: Network,
    student: Network,
    name: str,
    variables: Variables | None = None,
) -> harness.Recipe:
    """One of `lessons.TRAININGS`."""
    if name == "distilled":
        nets = Networks(student, teacher=teacher)
        terms = recipes.hinton(**config.distilled)
    else:
        nets = Networks(teacher if name == "teacher" else student)
        terms = recipes.hinton(alpha=1.0)
    return lessons.recipe(config, name, nets, terms, tasks.classification(), variables)


def make_exam(config: ConfigDict, train: kd_data.Source, test: kd_data.Source) -> Exam:
    """All unseen images, and what logistic regression makes of them."""
    asked = kd_data.arrays(test)
    right = asked["label"]
    inputs = tasks.classification()(jax.random.key(0), asked)

    def mark(logits: Answers) -> dict[str, float]:
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return {
            "accuracy": 100 * float((logits.argmax(axis=1) == right).mean()),
            "cross_entropy": -float(logs[np.arange(len(right)), right].mean()),
        }

    def watch(logits: Answers) -> dict[str, float]:
        figures = mark(logits)
        return {name: figures[name] for name in ("cross_entropy", "accuracy")}

    def draw(file: Path, found: Mapping[str, Answers]) -> None:
        # Those of which the most are wrong, to see how they differ.
        wrong = sum((logits.argmax(axis=1) != right).astype(int) for logits in found.values())
        chosen = np.argsort(-np.asarray(wrong), kind="stable")[: config.evaluate.examples]
        rows = {"input": asked["image"][chosen]}
        for name, logits in found.items():
            rows[name] = said(logits[chosen].argmax(axis=1), right[chosen], config.data.size)
        rows["truth"] = said(right[chosen], right[chosen], config.data.size)
        pictures.save_grid(file, rows)

    return Exam(
        inputs=inputs,
        figures={
            "accuracy": Figure("accuracy, %", more=True, unit=" points"),
            "cross_entropy": Figure("cross-entropy", more=False, digits=3),
        },
        mark=mark,
        watch=watch,
        classical={"logistic regression": logistic(train, asked["image"])},
        asked=f"{len(right):,} images that no network has seen",
        notes=["The picture shows those that are most often taken for another class."],
        draw=draw,
    )


def logistic(train: kd_data.Source, images: Answers) -> Answers:
    """The logits `[N, classes]` of logistic regression of the pixels, with scikit-learn's prior."""
    from sklearn.linear_model import LogisticRegression

    known = kd_data.arrays(train)
    fitted = LogisticRegression(max_iter=1000).fit(
        known["image"].reshape(len(train), -1), known["label"]
    )
    found = fitted.decision_function(images.reshape(len(images), -1))
    if found.ndim == 1:  # of two classes it has one
        found = np.stack([np.zeros_like(found), found], axis=1)
    logits = np.full((len(images), train.num_classes), -1e3, np.float32)
    logits[:, fitted.classes_] = found
    return logits


def said(classes: Answers, right: Answers, side: int) -> Answers:
    """The classes' numbers as images `[N, side, side, 3]`, on green where they are right."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(8, side * 2 // 3))
    tiles = []
    for found, expected in zip(classes, right, strict=True):
        colour = (40, 130, 70) if found == expected else (180, 50, 40)
        tile = Image.new("RGB", (side, side), colour)
        ImageDraw.Draw(tile).text((side / 2, side / 2), str(found), "white", font, anchor="mm")
        tiles.append(np.asarray(tile, np.float32) / 127.5 - 1)
    return np.stack(tiles)


EXPERIMENT = lessons.experiment(get_config, build)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

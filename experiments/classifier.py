"""Distil a classifier: teacher, student from scratch and distilled, and logistic regression.

    python -m experiments.classifier --workdir=runs/classifier       # digits, a minute
    python -m experiments.classifier --workdir=runs/full --preset=full
                                     --config.data.source=folder:A --config.data.test=folder:B
    python -m experiments.classifier --dry_run --config.student.width=4

A convolutional classifier is trained on handwritten digits. A narrower one is trained from scratch,
and distilled with `alpha` times the labels' cross-entropy and `1 - alpha` times the divergence from
the teacher's logits at a temperature (Hinton et al. 2015). The baseline is logistic regression of
the pixels. The training step is that of the generators, without a discriminator.

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
from kd_jax import data as kd_data, methods, tasks
from kd_jax.core.network import Network
from kd_jax.core.setup import Networks, Teacher
from kd_jax.models import classifier
from kd_jax.report import pictures
from kd_jax.report.columns import Column
from kd_jax.train.training import TrainingPlan


def get_config(preset: str = "laptop") -> ConfigDict:
    """The configuration, every value of which is a flag `--config.path.to.value`."""
    config = prediction.base_config()
    config.batch_size = 32
    config.data = ConfigDict(
        {
            "source": "digits",  # or folder:PATH, tfds:NAME
            # The held-out images' source; by default `source`. A folder needs another one.
            "test": "",
            # Ignored for folders. Scikit-learn's digits are ordered by writer.
            "split": "train[:60%]",
            "test_split": "train[60%:]",
            "size": 16,
            "channels": 1,
            "resize": False,  # resize images of other sizes
            "background": "",  # a colour behind transparent images; by default white
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
        prediction.tiny(config)
        config.teacher.width, config.student.width = 4, 1
    return config


def build(config: ConfigDict) -> Comparison:
    """Opens the data and makes the networks.

    Raises:
      ValueError, FileNotFoundError: a setting does not fit; a one-line message.
    """
    prediction.check(config)
    data = config.data
    if data.source.startswith("folder:") and not data.test:
        raise ValueError(
            "a folder has no held-out images: --config.data.test=folder:PATH is needed too"
        )
    if not data.test and data.test_split == data.split:
        raise ValueError(
            f"config.data.split={data.split!r} equals config.data.test_split: hold images out by "
            "--config.data.test or --config.data.test_split"
        )
    train, test = (
        runner.open_images(config, spec, prediction.split_name(spec, split))
        for spec, split in (
            (data.source, data.split),
            (data.test or data.source, data.test_split),
        )
    )
    if train.num_classes < 2 or test.num_classes != train.num_classes:
        raise ValueError(
            f"{train.name} has {train.num_classes} classes and {test.name} {test.num_classes}: at "
            "least two are needed, the same in both"
        )
    kd_data.check_same_classes(train, test)
    prediction.check_held_out(train, test, "--config.data.test or --config.data.test_split")
    unknown = np.setdiff1d(test.read_labels(), train.read_labels())
    if len(unknown):
        raise ValueError(
            f"{test.name} has images of classes that {train.name} does not have: "
            f"{', '.join(map(str, unknown[:10]))}{', ...' if len(unknown) > 10 else ''}"
        )
    teacher, student = (
        classifier.classifier(train.num_classes, sizes.width, dtype=prediction.dtype(config))
        for sizes in (config.teacher, config.student)
    )
    methods.hinton(**config.distilled)  # raises if a setting does not fit
    return prediction.make_comparison(
        config,
        title="Distilling a classifier",
        batches=prediction.make_batches(config, train),
        task=tasks.classification(),
        teacher=teacher,
        student=student,
        plan=partial(training_plan, config, teacher, student),
        evaluation=lambda: make_evaluation(config, train, test),
        tracked=("accuracy", "accuracy, %"),
    )


def training_plan(
    config: ConfigDict,
    teacher: Network,
    student: Network,
    name: str,
    variables: Teacher | None = None,
) -> TrainingPlan:
    """The plan of the training of this name: teacher, from_scratch or distilled."""
    if name == runner.DISTILLED:
        nets = Networks(student, teacher=teacher)
        terms = methods.hinton(**config.distilled)
    else:
        nets = Networks(teacher if name == runner.TEACHER else student)
        terms = methods.hinton(alpha=1.0)
    return prediction.training_plan(config, name, nets, terms, tasks.classification(), variables)


def make_evaluation(config: ConfigDict, train: kd_data.Source, test: kd_data.Source) -> Evaluation:
    """The evaluation on all held-out images; fits the logistic regression."""
    examples = kd_data.load_all(test)
    labels = examples["label"]
    inputs = tasks.classification()(jax.random.key(0), examples)

    def compute(logits: Predictions) -> dict[str, float]:
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return {
            "accuracy": 100 * float((logits.argmax(axis=1) == labels).mean()),
            "cross_entropy": -float(logs[np.arange(len(labels)), labels].mean()),
        }

    def compute_validation(logits: Predictions) -> dict[str, float]:
        figures = compute(logits)
        return {name: figures[name] for name in ("cross_entropy", "accuracy")}

    baseline = logistic_regression(train, examples["image"])
    # Difficult images, which show how the networks differ: first those that the baseline
    # misclassifies.
    errors = baseline.argmax(axis=1) != labels
    shown = np.argsort(~errors, kind="stable")[: config.evaluate.examples]

    def draw(file: Path, predictions: Mapping[str, Predictions]) -> None:
        targets, size = labels[shown], config.data.size
        rows = {"input": examples["image"][shown]}
        for name, logits in predictions.items():
            rows[name] = class_tiles(logits.argmax(axis=1), targets, size)
        rows["truth"] = class_tiles(targets, targets, size)
        pictures.save_grid(file, rows)

    return Evaluation(
        inputs=inputs,
        metrics=[
            Column("accuracy", "accuracy, %", better="higher", digits=2),
            Column("cross_entropy", "cross-entropy", digits=3),
        ],
        compute=compute,
        compute_validation=compute_validation,
        baselines={"logistic regression": baseline},
        description=f"{len(labels):,} held-out images",
        notes=["The picture shows images that logistic regression misclassifies."],
        shown=shown,
        draw=draw,
        predict=runner.predict_in_chunks,
    )


def logistic_regression(train: kd_data.Source, images: Predictions) -> Predictions:
    """Logits `[N, classes]` of scikit-learn's regularized logistic regression of the pixels."""
    from sklearn.linear_model import LogisticRegression

    train_data = kd_data.load_all(train)
    fitted = LogisticRegression(max_iter=1000).fit(
        train_data["image"].reshape(len(train), -1), train_data["label"]
    )
    scores = fitted.decision_function(images.reshape(len(images), -1))
    if scores.ndim == 1:  # two classes have one score
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    logits = np.full((len(images), train.num_classes), -1e3, np.float32)
    logits[:, fitted.classes_] = scores
    return logits


def class_tiles(classes: Predictions, labels: Predictions, side: int) -> Predictions:
    """The classes' numbers as images `[N, side, side, 3]`, on green where they are correct."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(8, side * 2 // 3))
    tiles = []
    for predicted, label in zip(classes, labels, strict=True):
        colour = (40, 130, 70) if predicted == label else (180, 50, 40)
        tile = Image.new("RGB", (side, side), colour)
        ImageDraw.Draw(tile).text((side / 2, side / 2), str(predicted), "white", font, anchor="mm")
        tiles.append(np.asarray(tile, np.float32) / 127.5 - 1)
    return np.stack(tiles)


EXPERIMENT = runner.experiment(get_config, build, prediction.PRESETS)

if __name__ == "__main__":
    harness.launch(EXPERIMENT)

"""The classifier's experiment: from digits to a report, and what does not fit."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import classifier, harness, lessons
from kd_jax import data as kd_data
from kd_jax.logs import read_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny(**changes):
    config = classifier.get_config("tiny")
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.slow
def test_from_digits_to_a_report(tmp_path):
    harness.execute(classifier.EXPERIMENT, tiny(), tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert list(report["figures"]) == ["logistic regression", "teacher", "alone", "distilled"]
    assert report["asked"] == "719 images that no network has seen"
    for figures in report["figures"].values():
        assert 0 <= figures[0]["accuracy"] <= 100
        assert figures[0]["cross_entropy"] > 0
    assert report["figures"]["logistic regression"][0]["accuracy"] > 85
    assert "g/hinton" in read_jsonl(tmp_path / "run/seed0/distilled/metrics.jsonl")[0]
    for file in ("examples.png", "quality.png"):
        assert (tmp_path / "run" / file).stat().st_size > 1000


def test_figures_of_answers_that_are_known():
    lesson = classifier.build(tiny())
    exam = lesson.exam()
    labels = kd_data.open_source(
        "digits", "train[60%:]", 16, 1, harness.cache_dir() / "tfds"
    ).read_labels()
    sure = 100 * np.eye(10, dtype=np.float32)[labels]
    assert exam.mark(sure) == {"accuracy": 100.0, "cross_entropy": pytest.approx(0, abs=1e-6)}
    nothing = np.zeros_like(sure)
    assert exam.mark(nothing)["cross_entropy"] == pytest.approx(np.log(10))
    assert next(iter(exam.watch(sure))) == "cross_entropy"  # the lower the better


def test_logistic_regression_of_two_classes_and_of_one_that_training_lacks():
    digits = kd_data.open_source("digits", "train[:300]", 8, 1, harness.cache_dir() / "tfds")
    labels = digits.read_labels()
    images = kd_data.arrays(digits)["image"]

    for classes in ((0, 1), (0, 1, 5)):
        chosen = np.flatnonzero(np.isin(labels, classes))
        known = replace(
            digits, length=len(chosen), read=lambda i, chosen=chosen: digits.read(int(chosen[i]))
        )
        logits = classifier.logistic(known, images[chosen])
        assert logits.shape == (len(known), 10)
        np.testing.assert_array_equal(logits.argmax(axis=1), labels[chosen])


def folders(tmp_path, **classes):
    specs = {}
    for seed, (name, inside) in enumerate(classes.items()):
        rng = np.random.default_rng(seed)
        for kind in inside:
            (tmp_path / name / kind).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (16, 16), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / kind / f"{index}.png")
        specs[f"data.{name}"] = f"folder:{tmp_path / name}"
    return tiny(**specs)


def test_two_folders_with_the_default_splits(tmp_path):
    lesson = classifier.build(folders(tmp_path, source="ab", test="ab"))
    assert lessons.example(lesson)["image"].shape == (4, 16, 16, 1)
    assert len(lesson.exam().inputs.generator[0]) == 4


def test_folders_whose_classes_have_other_names(tmp_path):
    config = folders(tmp_path, source="ab", test="bc")
    with pytest.raises(ValueError, match="class 0 is 'a' in folder:source and 'b' in folder:test"):
        classifier.build(config)


def test_tiles_are_green_where_right():
    tiles = classifier.said(np.array([3, 4]), np.array([3, 5]), 16)
    assert tiles.shape == (2, 16, 16, 3)
    corner = tiles[:, 0, 0]
    assert corner[0].argmax() == 1
    assert corner[1].argmax() == 0


def test_alone_learns_from_the_labels_only():
    lesson = classifier.build(tiny())
    made = lesson.recipe("alone", None)
    batch = lessons.example(lesson)
    _, metrics = jax.eval_shape(made.step, made.init(jax.random.key(0), batch), None, batch)
    assert {"g/hinton", "g/total"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.test_split": "train[:60%]"}, "is what is asked in the end too"),
        ({"distilled.alpha": 1.5}, "alpha"),
        ({"data.test": "photos", "data.test_split": "test"}, "the same in both"),
        ({"batch_size": 2000}, "fewer than one batch"),
        ({"evaluate_every": 3}, "not a multiple"),
        ({"student.width": 0}, "width=0"),
        ({"distilled.temperature": 0.0}, "temperature=0.0 is not a positive number"),
        ({"data.test_split": "train[50%:]"}, "set others aside by --config.data.test or"),
        ({"data.source": "folder:/x"}, "--config.data.test=folder:PATH is needed too"),
        (
            {"data.source": "photos", "data.split": "train", "data.test_split": "test"},
            "has images of classes of which photos train has none: 6, 7, 8$",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(harness.UsageError, match=message):
        harness.execute(classifier.EXPERIMENT, tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()

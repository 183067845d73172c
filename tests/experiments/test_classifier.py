"""The classifier experiment, from digits to a report, and its error messages."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from reports import read_figures, read_report

from experiments import classifier, harness
from kd_jax import data as kd_data
from kd_jax.train.logs import read_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny(**changes):
    config = classifier.get_config("tiny")
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.slow
def test_digits_to_report(tmp_path):
    harness.execute(classifier.EXPERIMENT, tiny(), tmp_path / "run")
    figures = read_figures(tmp_path / "run")
    assert list(figures) == ["logistic regression", "teacher", "from_scratch", "distilled"]
    assert "719 held-out images" in read_report(tmp_path / "run")["tables"][0]["about"]
    for own in figures.values():
        assert 0 <= own["accuracy"]["value"] <= 100
        assert own["cross_entropy"]["value"] > 0
    assert figures["logistic regression"]["accuracy"]["value"] > 85
    assert "g/hinton" in read_jsonl(tmp_path / "run/seed0/distilled/metrics.jsonl")[0]
    for file in ("examples.png", "curves.png"):
        assert (tmp_path / "run" / file).stat().st_size > 1000


def test_metrics_of_known_predictions():
    task = classifier.build(tiny())
    evaluation = task.evaluation()
    labels = kd_data.open_source(
        "digits", "train[60%:]", 16, 1, harness.cache_dir() / "tfds"
    ).read_labels()
    confident = 100 * np.eye(10, dtype=np.float32)[labels]
    assert evaluation.compute(confident) == {
        "accuracy": 100.0,
        "cross_entropy": pytest.approx(0, abs=1e-6),
    }
    uniform = np.zeros_like(confident)
    assert evaluation.compute(uniform)["cross_entropy"] == pytest.approx(np.log(10))
    # The first validation metric must be one where lower is better.
    assert next(iter(evaluation.compute_validation(confident))) == "cross_entropy"


def test_logistic_regression_with_two_classes_and_with_missing_classes():
    digits = kd_data.open_source("digits", "train[:300]", 8, 1, harness.cache_dir() / "tfds")
    labels = digits.read_labels()
    images = kd_data.load_all(digits)["image"]

    for classes in ((0, 1), (0, 1, 5)):
        indices = np.flatnonzero(np.isin(labels, classes))
        train = replace(
            digits,
            length=len(indices),
            read=lambda i, indices=indices: digits.read(int(indices[i])),
        )
        logits = classifier.logistic_regression(train, images[indices])
        assert logits.shape == (len(train), 10)
        np.testing.assert_array_equal(logits.argmax(axis=1), labels[indices])


def folders(tmp_path, **classes):
    specs = {}
    for seed, (name, labels) in enumerate(classes.items()):
        rng = np.random.default_rng(seed)
        for label in labels:
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (16, 16), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{index}.png")
        specs[f"data.{name}"] = f"folder:{tmp_path / name}"
    return tiny(**specs)


def test_two_folders_with_the_default_splits(tmp_path):
    task = classifier.build(folders(tmp_path, source="ab", test="ab"))
    assert next(task.teacher.batches(0))["image"].shape == (4, 16, 16, 1)
    assert len(task.evaluation().inputs.generator[0]) == 4


def test_folders_with_different_class_names_are_refused(tmp_path):
    config = folders(tmp_path, source="ab", test="bc")
    with pytest.raises(ValueError, match="class 0 is 'a' in folder:source and 'b' in folder:test"):
        classifier.build(config)


def test_class_tiles_are_green_where_correct():
    tiles = classifier.class_tiles(np.array([3, 4]), np.array([3, 5]), 16)
    assert tiles.shape == (2, 16, 16, 3)
    corner = tiles[:, 0, 0]
    assert corner[0].argmax() == 1
    assert corner[1].argmax() == 0


def test_from_scratch_trains_on_the_labels_only():
    task = classifier.build(tiny())
    plan = task.students[0].plan(None, 0)
    batch = next(task.teacher.batches(0))
    _, metrics = jax.eval_shape(plan.step, plan.init(jax.random.key(0), batch), None, batch)
    assert {"g/hinton", "g/total"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.test_split": "train[:60%]"}, "equals config.data.test_split"),
        ({"distilled.alpha": 1.5}, "alpha"),
        ({"data.test": "photos", "data.test_split": "test"}, "the same in both"),
        ({"batch_size": 2000}, "fewer than one batch"),
        ({"evaluate_every": 3}, "not a multiple"),
        ({"student.width": 0}, "width=0"),
        ({"distilled.temperature": 0.0}, "temperature=0.0"),
        ({"data.test_split": "train[50%:]"}, "by --config.data.test or"),
        ({"data.source": "folder:/x"}, "--config.data.test=folder:PATH is needed too"),
        (
            {"data.source": "photos", "data.split": "train", "data.test_split": "test"},
            "photos train does not have: 6, 7, 8$",
        ),
    ],
    ids=str,
)
def test_bad_settings_give_one_line_and_write_nothing(changes, message, tmp_path):
    with pytest.raises(harness.UsageError, match=message):
        harness.execute(classifier.EXPERIMENT, tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()

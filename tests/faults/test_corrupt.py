"""Unreadable images are named, or replaced by the next one and counted; resuming stays exact."""

import re
import subprocess
import sys

import faults
import numpy as np
import pytest
import training
from PIL import Image

from kd_jax import data
from kd_jax.train.logs import read_jsonl

BAD = (7, 11, 12)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(images / f"{number:02}.png")
    for number in BAD:  # the header, which is read first, stays intact
        file = images / f"{number:02}.png"
        file.write_bytes(file.read_bytes()[:60])
    return images


def batches(folder, messages=None, **options):
    log = print if messages is None else messages.append
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    return training.batches(source=source, log=log, **options)


def test_the_error_names_the_image(tmp_path, folder):
    with pytest.raises(ValueError, match=r"images/(07|11|12)\.png cannot be decoded") as error:
        training.train(tmp_path / "run", training.training_plan(12), batches(folder))
    assert "\n" not in str(error.value)


def test_the_next_image_replaces_it_and_resume_is_exact(tmp_path, folder):
    messages = []
    unbroken = batches(folder, messages, skip_corrupt=True)
    training.train(tmp_path / "whole", training.training_plan(12), unbroken)
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    counts = [int(row["data/skipped"]) for row in rows if "g/total" in row]
    assert counts[-1] == unbroken.skipped
    assert counts == sorted(counts)
    assert unbroken.skipped == 4 * len(BAD)  # in four epochs
    assert len(messages) == len(BAD)
    assert all("the next image takes its place" in line for line in messages)
    for steps in (5, 7, 12):
        resumed = batches(folder, [], skip_corrupt=True)
        training.train(tmp_path / "parts", training.training_plan(steps), resumed)
    assert resumed.skipped == unbroken.skipped
    whole, parts = (faults.steps(tmp_path / name) for name in ("whole", "parts"))
    assert whole[-1] == parts[-1] == 12
    states = [
        faults.digest(faults.restore_item((tmp_path / name / "checkpoints/12/training").absolute()))
        for name in ("whole", "parts")
    ]
    assert states[0] == states[1]


def test_the_replacement_is_always_the_same(folder):
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    images = [data.source.to_float(source.read(i)[0]) for i in range(24) if i not in BAD]
    epoch = np.concatenate([next(b)["image"] for b in [batches(folder, [], skip_corrupt=True)] * 3])
    counts = [sum(np.array_equal(image, x) for x in epoch) for image in images]
    good = [i for i in range(24) if i not in BAD]
    # 8 also replaces 7, and 13 replaces 11 and 12.
    assert dict(zip(good, counts, strict=True)) == {i: {8: 2, 13: 3}.get(i, 1) for i in good}


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save(images / f"{number}.png")
        file = images / f"{number}.png"
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"no image of it can be read; the first: .*cannot be"):
        next(batches(images, [], skip_corrupt=True))


def test_load_all_applies_the_same_rule(folder):
    """`load_all` reads the images of classifiers and of reference statistics."""
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    with pytest.raises(data.UnreadableError, match=r"images/07\.png cannot be decoded"):
        data.load_all(source)
    with pytest.raises(data.UnreadableError, match=r"images/07\.png cannot be decoded"):
        source[7]
    lenient = data.open_source(f"folder:{folder}", "train", 8, 1, skip_corrupt=True)
    images = data.load_all(lenient)["image"]
    for bad, replacement in ((7, 8), (11, 13), (12, 13)):
        np.testing.assert_array_equal(images[bad], images[replacement])
        np.testing.assert_array_equal(lenient[bad]["image"], images[replacement])
    assert lenient.fingerprint == source.fingerprint


@pytest.fixture
def command(tmp_path):
    """The command of an experiment on a folder with one unreadable image."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(24):
            file = tmp_path / "images" / label / f"{number:02}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:60])
    return [
        *(sys.executable, "-m", "experiments.digits", "--preset=tiny"),
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source=folder:{tmp_path / 'images'}",
    ]


def test_the_program_names_the_image_in_one_line(command):
    result = subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: .*images/b/23\.png cannot be decoded: .*", result.stderr.strip().splitlines()[-1]
    )
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_program_replaces_the_image(command):
    command.append("--config.run.skip_corrupt=True")
    result = subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "23.png cannot be decoded" in result.stderr

"""An image that cannot be read: named, or replaced by the next and counted, resume still exact."""

import re
import subprocess
import sys

import faults
import numpy as np
import pytest
import training
from PIL import Image

from kd_jax import data
from kd_jax.logs import read_jsonl

BAD = (7, 11, 12)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    draw = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(draw.integers(0, 256, (8, 8), np.uint8)).save(place / f"{number:02}.png")
    for number in BAD:  # the header stays whole, which is read first
        file = place / f"{number:02}.png"
        file.write_bytes(file.read_bytes()[:60])
    return place


def batches(folder, told=None, **options):
    log = print if told is None else told.append
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    return training.batches(source=source, log=log, **options)


def test_it_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"images/(07|11|12)\.png cannot be decoded") as error:
        training.train(tmp_path / "run", training.training_plan(12), batches(folder))
    assert "\n" not in str(error.value)


def test_the_next_takes_its_place_and_resume_is_exact(tmp_path, folder):
    told = []
    unbroken = batches(folder, told, skip_corrupt=True)
    training.train(tmp_path / "whole", training.training_plan(12), unbroken)
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    counts = [int(row["data/skipped"]) for row in rows if "g/total" in row]
    assert counts[-1] == unbroken.skipped
    assert counts == sorted(counts)
    assert unbroken.skipped == 4 * len(BAD)  # in four epochs
    assert len(told) == len(BAD)
    assert all("the next image takes its place" in line for line in told)
    for steps in (5, 7, 12):
        again = batches(folder, [], skip_corrupt=True)
        training.train(tmp_path / "parts", training.training_plan(steps), again)
    assert again.skipped == unbroken.skipped
    whole, parts = (faults.steps(tmp_path / name) for name in ("whole", "parts"))
    assert whole[-1] == parts[-1] == 12
    states = [
        faults.digest(faults.restore_item((tmp_path / name / "checkpoints/12/training").absolute()))
        for name in ("whole", "parts")
    ]
    assert states[0] == states[1]


def test_the_same_image_stands_in_always(folder):
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    images = [data.source.to_float(source.read(i)[0]) for i in range(24) if i not in BAD]
    seen = np.concatenate([next(b)["image"] for b in [batches(folder, [], skip_corrupt=True)] * 3])
    counts = [sum(np.array_equal(image, x) for x in seen) for image in images]
    good = [i for i in range(24) if i not in BAD]
    # 8 stands for 7 too, and 13 for 11 and 12.
    assert dict(zip(good, counts, strict=True)) == {i: {8: 2, 13: 3}.get(i, 1) for i in good}


def test_where_no_image_can_be_read_it_ends(tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save(place / f"{number}.png")
        file = place / f"{number}.png"
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"no image of it can be read; the first: .*cannot be"):
        next(batches(place, [], skip_corrupt=True))


def test_all_of_it_at_once(folder):
    """As classifiers and references are made: by the same rule."""
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    with pytest.raises(data.UnreadableError, match=r"images/07\.png cannot be decoded"):
        data.load_all(source)
    with pytest.raises(data.UnreadableError, match=r"images/07\.png cannot be decoded"):
        source[7]
    lenient = data.open_source(f"folder:{folder}", "train", 8, 1, skip_corrupt=True)
    images = data.load_all(lenient)["image"]
    for bad, stands_in in ((7, 8), (11, 13), (12, 13)):
        np.testing.assert_array_equal(images[bad], images[stands_in])
        np.testing.assert_array_equal(lenient[bad]["image"], images[stands_in])
    assert lenient.fingerprint == source.fingerprint


@pytest.fixture
def command(tmp_path):
    """An experiment on a folder in which one image cannot be read."""
    draw = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(24):
            file = tmp_path / "images" / label / f"{number:02}.png"
            Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:60])
    return [
        *(sys.executable, "-m", "experiments.digits", "--preset=tiny"),
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source=folder:{tmp_path / 'images'}",
    ]


def test_the_program_names_it_in_one_line(command):
    ran = subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert re.fullmatch(
        r"error: .*images/b/23\.png cannot be decoded: .*", ran.stderr.strip().splitlines()[-1]
    )
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_the_program_replaces_it(command):
    command.append("--config.run.skip_corrupt=True")
    ran = subprocess.run(command, cwd=faults.ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "23.png cannot be decoded" in ran.stderr

"""An image that cannot be read: named, or replaced by the next and counted, resume still exact."""

import faults
import numpy as np
import pytest
import training
from PIL import Image

from kd_jax import data

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
    tell = print if told is None else told.append
    source = data.open_source(f"folder:{folder}", "train", 8, 1)
    return training.batches(source=source, tell=tell, **options)


def test_it_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"images/(07|11|12)\.png cannot be decoded") as error:
        training.train(tmp_path / "run", training.recipe(12), batches(folder))
    assert "\n" not in str(error.value)


def test_the_next_takes_its_place_and_resume_is_exact(tmp_path, folder):
    told = []
    unbroken = batches(folder, told, skip_corrupt=True)
    training.train(tmp_path / "whole", training.recipe(12), unbroken)
    assert unbroken.skipped == 4 * len(BAD)  # in four epochs
    assert len(told) == len(BAD)
    assert all("the next image takes its place" in line for line in told)
    for steps in (5, 7, 12):
        again = batches(folder, [], skip_corrupt=True)
        training.train(tmp_path / "parts", training.recipe(steps), again)
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

"""The patches of the photographs, compared with the photographs."""

import numpy as np
import pytest
from skimage import data
from sklearn.datasets import load_sample_image

from kd_jax.data import load_all, open_source


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


def as_bytes(images):
    return np.rint((images + 1) * 127.5).astype(np.uint8)


def test_patches_equal_the_photographs(cache):
    photos = load_all(open_source("photos", "train", 64, 3, cache))
    images = as_bytes(photos["image"])
    # 15 x 15 patches of 512x512; the second is 32 pixels further right.
    np.testing.assert_array_equal(images[1], data.astronaut()[:64, 32:96])
    np.testing.assert_array_equal(images[224], data.astronaut()[448:, 448:])
    flowers = images[photos["label"] == 3]
    np.testing.assert_array_equal(flowers[0], load_sample_image("flower.jpg")[:64, :64])
    assert len(images) == 225 + 11 * 17 + 2 * 12 * 19 + 2 * 225
    assert (images[photos["label"] == 4].std(axis=-1) == 0).all()  # bricks are grey


def test_the_splits_have_different_photographs(cache):
    train, test = (open_source("photos", split, 64, 3, cache) for split in ("train", "test"))
    assert set(train.read_labels()) == {0, 1, 2, 3, 4, 5}
    assert set(test.read_labels()) == {6, 7, 8}
    assert train.num_classes == test.num_classes == 9
    assert train.fingerprint != test.fingerprint


def test_patches_can_be_downsampled_but_not_enlarged(cache):
    small = open_source("photos", "test", 16, 3, cache)
    assert small.image_shape == (16, 16, 3)
    whole = open_source("photos", "test", 64, 3, cache)[0]["image"]
    np.testing.assert_allclose(
        small[0]["image"].mean(axis=(0, 1)), whole.mean(axis=(0, 1)), atol=0.02
    )
    with pytest.raises(ValueError, match=r"size is 257: .* 256x256"):
        open_source("photos", "train", 257, 3, cache)


def test_larger_patches_equal_the_photographs(cache):
    photos = load_all(open_source("photos", "test", 256, 3, cache))
    images = as_bytes(photos["image"])
    np.testing.assert_array_equal(images[1], data.chelsea()[:256, 64:320])
    # chelsea 300x451, china 427x640, gravel 512x512, with a stride of 64
    assert len(images) == 1 * 4 + 3 * 7 + 5 * 5

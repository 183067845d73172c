"""Inception's features of images of any size, and the file that they need."""

import hashlib

import jax
import numpy as np
import pytest
from parity.inception import weights
from pretrained.test_inception_weights import safetensors

from kd_jax import ops
from kd_jax.evaluate import extractor
from kd_jax.models import inception as models
from kd_jax.pretrained import inception

RNG = np.random.default_rng(0)
BATCH = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    tensors = {k: v for k, v in weights().items() if not k.endswith("num_batches_tracked")}
    safetensors(path, tensors)
    return path


@pytest.fixture(scope="module")
def found(path):
    return extractor.inception(path, batch=BATCH)


def colours(count, height=9, width=7, channels=3):
    return RNG.uniform(-1, 1, (count, height, width, channels)).astype(np.float32)


def counted(layer, shapes):
    def call(x, *args, **kwargs):
        shapes.append(x.shape)
        return layer(x, *args, **kwargs)

    return call


@pytest.mark.slow
def test_the_name_tells_weights_and_convention(path, found):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert found.name == f"inception-tf1-bilinear-{digest}"
    other = extractor.inception(path, "pil-bicubic", quantise=False)
    assert other.name == f"inception-pil-bicubic-unquantised-{digest}"


@pytest.mark.slow
def test_as_the_network_by_hand(found):
    images = colours(1)
    levels = np.rint((images + 1) * 127.5)
    rows, columns = ops.tf1_bilinear(9, 299), ops.tf1_bilinear(7, 299)
    seen = (np.einsum("uh,bhwc,vw->buvc", rows, levels, columns) - 128) / 128
    converted = inception.fid(weights())
    pair = np.concatenate([seen, seen]).astype(np.float32)  # of the extractor's batch
    logits, taps, _ = jax.jit(converted.network.apply)(converted.variables, pair)
    outputs = found.outputs(images)
    expected = {
        "features": taps["2048"],
        "logits": logits,
        "logits_unbiased": logits - weights()["fc.bias"][None],
    }
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value[:1], atol=1e-5)
    np.testing.assert_array_equal(found.features(images), outputs["features"])
    np.testing.assert_array_equal(found.logits(images), outputs["logits"])
    assert outputs["features"].dtype == np.float32


def test_any_number_size_and_colour(found):
    images = colours(3)
    together = found.features(images)
    assert together.shape == (3, 2048)
    for index in range(3):
        np.testing.assert_allclose(
            found.features(images[index : index + 1])[0], together[index], atol=1e-5
        )
    grey = colours(1, 1, 400, 1)
    np.testing.assert_array_equal(found.features(grey), found.features(np.repeat(grey, 3, axis=3)))


def test_one_program_serves_all(path, monkeypatch):
    shapes = []
    monkeypatch.setattr(models, "_stem", counted(models._stem, shapes))
    one = extractor.inception(path, batch=BATCH)
    shapes.clear()  # of reading the file
    one.features(colours(1))
    assert set(shapes) == {(BATCH, 299, 299, 3)}
    traced = len(shapes)
    for images in (colours(3), colours(2, 31, 5), colours(1, 2, 2, 1)):
        one.features(images)
    assert len(shapes) == traced


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.full((3, 4, 4, 3), 0.5) + np.array([0, 0, 0.6])[:, None, None, None],
            "image 2 has val",
        ),
        (np.full((1, 4, 4, 3), np.nan), "image 0 has values from nan to nan; images in"),
        (np.zeros((1, 4, 4, 3)) - 1.0001, r"\[-1, 1\] are needed"),
        (np.full((2, 4, 4, 3), 255, np.uint8), "from 255 to 255"),
        (np.zeros((2, 4, 4, 2)), r"1 or 3 channels are needed, not of shape \(2, 4, 4, 2\)"),
        (np.zeros((2, 0, 4, 3)), "channels are needed"),
        (np.zeros((4, 4, 3)), "channels are needed"),
        (np.zeros((0, 4, 4, 3)), "there are no images"),
    ],
)
def test_images_that_are_refused(found, images, message):
    with pytest.raises(ValueError, match=message):
        found.features(images)


def test_files_that_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="no Inception weights at") as caught:
        extractor.inception(tmp_path / "absent.pth")
    for name in ("pt_inception-2015-12-05-6726825d.pth", "pytorch-fid", "torch-fidelity"):
        assert name in str(caught.value)
    other = tmp_path / "other.safetensors"
    safetensors(other, {"fc.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"other\.safetensors: not an Inception-v3"):
        extractor.inception(other)
    with pytest.raises(ValueError, match="no resize convention 'bilinear'; there are"):
        extractor.inception(path, "bilinear")

"""Inception features of images of any size, and errors of the weights file."""

import hashlib

import jax
import numpy as np
import pytest
from parity.inception import weights
from pretrained.test_inception_weights import safetensors

from kd_jax import ops
from kd_jax.metrics import extractor
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
def inception_extractor(path):
    return extractor.inception(path, batch=BATCH)


def colour_images(count, height=9, width=7, channels=3):
    return RNG.uniform(-1, 1, (count, height, width, channels)).astype(np.float32)


def record_shapes(layer, shapes):
    def call(x, *args, **kwargs):
        shapes.append(x.shape)
        return layer(x, *args, **kwargs)

    return call


@pytest.mark.slow
def test_the_name_has_weights_and_convention(path, inception_extractor):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert inception_extractor.name == f"inception-tf1-bilinear-{digest}"
    other = extractor.inception(path, "pil-bicubic", quantise=False)
    assert other.name == f"inception-pil-bicubic-unquantised-{digest}"


@pytest.mark.slow
def test_matches_resize_and_network(inception_extractor):
    images = colour_images(1)
    levels = np.rint((images + 1) * 127.5)
    rows, columns = ops.tf1_bilinear(9, 299), ops.tf1_bilinear(7, 299)
    resized = (np.einsum("uh,bhwc,vw->buvc", rows, levels, columns) - 128) / 128
    converted = inception.fid(weights())
    pair = np.concatenate([resized, resized]).astype(np.float32)  # the extractor's batch size
    logits, taps, _ = jax.jit(converted.network.apply)(converted.variables, pair)
    outputs = inception_extractor.outputs(images)
    expected = {
        "features": taps["2048"],
        "logits": logits,
        "logits_unbiased": logits - weights()["fc.bias"][None],
    }
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value[:1], atol=1e-5)
    np.testing.assert_array_equal(inception_extractor.features(images), outputs["features"])
    np.testing.assert_array_equal(inception_extractor.logits(images), outputs["logits"])
    assert outputs["features"].dtype == np.float32


def test_any_number_size_and_channels(inception_extractor):
    images = colour_images(3)
    together = inception_extractor.features(images)
    assert together.shape == (3, 2048)
    for index in range(3):
        np.testing.assert_allclose(
            inception_extractor.features(images[index : index + 1])[0], together[index], atol=1e-5
        )
    grey = colour_images(1, 1, 400, 1)
    np.testing.assert_array_equal(
        inception_extractor.features(grey), inception_extractor.features(np.repeat(grey, 3, axis=3))
    )


def test_one_compilation_for_all_sizes(path, monkeypatch):
    shapes = []
    monkeypatch.setattr(models, "_stem", record_shapes(models._stem, shapes))
    compiled = extractor.inception(path, batch=BATCH)
    shapes.clear()  # from reading the file
    compiled.features(colour_images(1))
    assert set(shapes) == {(BATCH, 299, 299, 3)}
    traced = len(shapes)
    for images in (colour_images(3), colour_images(2, 31, 5), colour_images(1, 2, 2, 1)):
        compiled.features(images)
    assert len(shapes) == traced


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.full((3, 4, 4, 3), 0.5) + np.array([0, 0, 0.6])[:, None, None, None],
            "image 2 has val",
        ),
        (np.full((1, 4, 4, 3), np.nan), "image 0 has values from nan to nan"),
        (np.zeros((1, 4, 4, 3)) - 1.0001, r"\[-1, 1\] are needed"),
        (np.full((2, 4, 4, 3), 255, np.uint8), "from 255 to 255"),
        (np.zeros((2, 4, 4, 2)), r"images have shape \(2, 4, 4, 2\)"),
        (np.zeros((2, 0, 4, 3)), r"images have shape \(2, 0, 4, 3\)"),
        (np.zeros((4, 4, 3)), r"images have shape \(2, 4, 3\)"),
        (np.zeros((0, 4, 4, 3)), "there are no images"),
    ],
)
def test_invalid_images_are_rejected(inception_extractor, images, message):
    with pytest.raises(ValueError, match=message):
        inception_extractor.features(images)


def test_invalid_files_are_rejected(path, tmp_path):
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

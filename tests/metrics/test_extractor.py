"""The classifier that serves as a feature extractor."""

import jax
import numpy as np
import pytest
from parity.golden import FILES, File
from parity.perceptual import module
from pretrained.test_registry import as_safetensors
from published import write_dcgan

from kd_jax.metrics import extractor
from kd_jax.metrics.frechet import frechet_distance, moments
from kd_jax.models.classifier import classifier


@pytest.fixture
def data():
    labels = (np.arange(40) % 2).astype(np.int32)
    noise = np.random.default_rng(0).normal(0, 0.1, (40, 8, 8, 1))
    return (noise + (2 * labels - 1)[:, None, None, None]).astype(np.float32), labels


def make(data, cache):
    images, labels = data
    return extractor.classifier_extractor(
        images, labels, name="toy", classes=2, cache=cache, steps=40
    )


@pytest.mark.slow
def test_training_is_deterministic_and_names_the_weights(data, tmp_path):
    a, b = make(data, tmp_path / "a"), make(data, tmp_path / "b")
    assert a.name == b.name
    assert a.name.startswith("toy-classifier-")
    assert (a.logits(data[0]).argmax(1) == data[1]).all()
    np.testing.assert_array_equal(a.features(data[0]), b.features(data[0]))


def test_the_classifier_is_trained_once(data, tmp_path, monkeypatch):
    first = make(data, tmp_path)

    def fail(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(extractor, "_train", fail)
    again = make(data, tmp_path)
    assert again.name == first.name
    np.testing.assert_array_equal(again.features(data[0]), first.features(data[0]))
    with pytest.raises(AssertionError, match="trained again"):
        make((data[0] + 0.01, data[1]), tmp_path)


def test_any_number_of_images(data, tmp_path):
    classifier_features = make(data, tmp_path).features
    many = np.concatenate([data[0]] * 7)  # 280, more than one batch
    features = classifier_features(many)
    assert features.shape == (280, 128)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:3], classifier_features(many[:3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features[240:], features[:40], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 4, 11])
def test_outputs_do_not_depend_on_batches(n):
    network = classifier(3, width=4)
    images = np.random.default_rng(n).uniform(-1, 1, (n, 8, 6, 2)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    logits, taps, _ = jax.jit(network.apply)(variables, images)
    batched = extractor.from_network("net", network, variables, batch=4)
    assert batched.name == "net"
    for result, expected in (
        (batched.features(images), taps["features"]),
        (batched.logits(images), logits),
    ):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_names_depend_on_data_and_labels(data, tmp_path):
    images, labels = data
    extractors = [
        make(d, tmp_path)
        for d in (data, (images[::-1].copy(), labels[::-1].copy()), (images, 1 - labels))
    ]
    assert len({e.name for e in extractors}) == 3
    assert len(list((tmp_path / "classifiers").iterdir())) == 3
    assert (extractors[2].logits(images).argmax(1) == 1 - labels).all()


def test_a_damaged_cache_file_is_named_and_made_again(data, tmp_path, capsys):
    first = make(data, tmp_path)
    (path,) = (tmp_path / "classifiers").iterdir()
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, b""):
        path.write_bytes(damaged)
        assert make(data, tmp_path).name == first.name
        assert f"{path.name} is damaged" in capsys.readouterr().err
        assert path.read_bytes() == content
    make(data, tmp_path)
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_random_features_order_images_by_their_damage():
    """The Frechet distance grows with blur and with noise, and is least for other real images."""
    rng = np.random.default_rng(0)
    shapes = rng.uniform(-1, 1, (400, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = shapes.astype(np.float32)  # blocks of colour, 16x16

    def blur(images, times):
        for _ in range(times):
            for axis in (1, 2):
                images = (np.roll(images, 1, axis) + 2 * images + np.roll(images, -1, axis)) / 4
        return images

    random = extractor.random_network(batch=100)
    real = moments(random.features(images[:200]))
    others = images[200:]
    noise = [rng.normal(0, deviation, others.shape) for deviation in (0.2, 0.5)]
    changed = {
        "others": others,
        "blur": blur(others, 1),
        "more blur": blur(others, 4),
        "noise": np.clip(others + noise[0], -1, 1).astype(np.float32),
        "more noise": np.clip(others + noise[1], -1, 1).astype(np.float32),
    }
    distances = {
        name: frechet_distance(moments(random.features(x)), real) for name, x in changed.items()
    }
    assert distances["others"] < distances["blur"] < distances["more blur"]
    assert distances["others"] < distances["noise"] < distances["more noise"]


@pytest.mark.slow
def test_random_features_are_the_same_everywhere():
    first, again = extractor.random_network(), extractor.random_network(batch=3)
    assert first.name == again.name
    assert first.name.startswith("random-vgg16-80-")
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)
    features = first.features(images)
    assert features.shape == (4, 80)
    np.testing.assert_allclose(features, again.features(images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features, first.features(images.repeat(3, axis=3)), rtol=1e-5)
    with pytest.raises(ValueError, match="image 0 has values"):
        first.features(2 * images + 3)


def test_a_pass_of_large_images_has_few_of_them():
    passes = []

    def outputs(images):
        passes.append(images.shape)
        return {"features": images.mean(axis=(1, 2))}

    opened = extractor._in_batches("means", outputs, 8, pixels=4 * 32 * 16)
    for side, size in ((8, 8), (32, 4), (64, 2), (256, 1)):
        images = np.random.default_rng(side).uniform(-1, 1, (9, side, 16, 3)).astype(np.float32)
        np.testing.assert_array_equal(opened.features(images), images.mean(axis=(1, 2)))
        assert passes == [(size, side, 16, 3)] * -(-9 // size)
        passes.clear()


def test_files_of_trained_trunks_are_extractors(tmp_path):
    """The pooled last features of the original AlexNet, and how a file is recognised."""
    paths = [path for path in FILES if path.stem == "lpips_alex_a"]
    if not paths:
        pytest.skip("no golden file lpips_alex_a (set KD_JAX_GOLDEN)")
    golden = File(paths[0])
    path = tmp_path / "lpips.safetensors"
    path.write_bytes(as_safetensors(module(golden)))
    opened = extractor.from_file(path)
    assert opened.name.startswith("alexnet-")
    expected = golden["out/feat4_pooled"]
    np.testing.assert_allclose(opened.features(golden["in/in0"]), expected, rtol=2e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        extractor.from_file(write_dcgan(tmp_path / "other.safetensors"))

"""The command on the digits and on a folder: its files, its metrics and its errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CACHE
from PIL import Image
from pretrained.test_state_dicts import dcgan as dcgan_tensors, save as save_tensors
from reports import COST, read_figures, read_report

from kd_jax import data as kd_data
from kd_jax.cli import evaluate as command
from kd_jax.core.architecture import describe
from kd_jax.data.source import read_examples
from kd_jax.evaluate.generator import draw, open_generator, sampler
from kd_jax.evaluate.reference import read_reference
from kd_jax.evaluate.subject import open_images, open_subjects
from kd_jax.metrics.conventions import TOOLS
from kd_jax.metrics.extractor import Extractor, Perceptual
from kd_jax.models import dcgan, mlp
from kd_jax.train import checkpoint

Z, LABEL = jax.ShapeDtypeStruct((1, 8), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)


def save(folder, network, *inputs):
    zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
    variables = jax.jit(network.init)(jax.random.key(0), *zeros)
    checkpoint.save_generator(folder, variables, {}, describe(network, *inputs))
    return str(folder)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {
        "wide": save(folder / "wide", dcgan.generator(16, 16, channels=1, classes=10), Z, LABEL),
        "narrow": save(folder / "narrow", dcgan.generator(16, 4, channels=1, classes=10), Z, LABEL),
        "small": save(folder / "small", mlp.generator(8, 16, channels=1), Z),
    }


@pytest.fixture(autouse=True)
def use_cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", str(CACHE))


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        command.main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_comparison_of_two_networks(networks, tmp_path, capsys):
    out = tmp_path / "report"
    arguments = [f"{name}={networks[name]}" for name in ("wide", "narrow")]
    arguments += ["--data", "digits", "--out", str(out), "--samples", "120", "--batch", "32"]
    command.main(arguments)
    printed = capsys.readouterr().out
    assert f"wrote {out / 'report.html'}" in printed

    stored = read_report(out)
    table, classes = stored["tables"]
    assert [entry["name"] for entry in table["entries"]] == ["wide", "narrow"]
    wide, narrow = read_figures(out).values()
    assert set(wide) == {column["name"] for column in table["columns"]}
    assert wide["frechet"]["deviation"] > 0  # over three draws of the latents
    assert narrow["parameters"]["value"] < wide["parameters"]["value"]
    assert narrow["macs"]["value"] < wide["macs"]["value"]
    facts = stored["protocol"]
    assert (facts["samples"], facts["images"], facts["seed"]) == (120, 1797, 0)
    assert "digits-classifier-" in facts["extractor"]
    assert "kid_size=120" in facts["convention"]  # instead of the tool's 1000
    assert len(classes["entries"]) == 10
    # The distance of a classifier is not called FID.
    assert "FID" not in [column["title"] for column in table["columns"]]

    def read_lines(path):
        return [json.loads(line) for line in path.read_text().splitlines()]

    lines = read_lines(out / "metric-frechet.jsonl")
    assert [line["network"] for line in lines] == ["wide", "narrow"]
    assert lines[0]["value"] == wide["frechet"]["value"]
    assert lines[0]["protocol"]["samples"] == 120

    # Another batch size gives the same metrics, appended to the existing lines.
    command.main([*arguments[:-1], "7"])
    lines = read_lines(out / "metric-frechet.jsonl")
    assert len(lines) == 4
    assert lines[2]["value"] == pytest.approx(lines[0]["value"], rel=1e-6)


def test_invalid_arguments_are_rejected_before_writing(networks, tmp_path, capsys):
    out = tmp_path / "report"
    wide = networks["wide"]
    common = ("--out", str(out))
    digits = ("--data", "digits")
    assert "all networks must have the same image shape" in error_of(
        capsys, wide, networks["small"], *digits, *common
    )
    assert "two networks have the name a;" in error_of(
        capsys, f"a={wide}", f"a={wide}", *digits, *common
    )
    assert "--samples=0" in error_of(capsys, wide, *digits, *common, "--samples", "0")
    assert "9 samples and 1797 real images; 10 of each" in error_of(
        capsys, wide, *digits, *common, "--samples", "9"
    )
    assert "unknown data 'digit'" in error_of(capsys, wide, "--data", "digit", *common)
    assert "does not take truncation" in error_of(capsys, wide, *digits, "--truncation", "0.5")
    assert "neither a file nor a folder" in error_of(capsys, "nowhere", *digits, *common)
    error = error_of(capsys, wide, *digits, *common, "--features", str(tmp_path / "none.pth"))
    assert "none.pth" in error
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (16, 16)).save(images / "one.png")
    one_class = ("--data", f"folder:{images}", "--samples", "20")
    assert "need" in error_of(capsys, wide, *one_class, *common)
    beneath = str(images / "one.png" / "report")
    assert f"--out {beneath}: Not a directory" in error_of(capsys, wide, *digits, "--out", beneath)
    empty = tmp_path / "empty"
    empty.mkdir()
    error = error_of(capsys, str(empty), *digits, *common)
    assert all(text in error for text in (str(empty), "checkpoints", "png"))
    assert not out.exists()


def test_digits_are_converted_to_other_shapes_on_request_only(networks, tmp_path, capsys):
    large = save(tmp_path / "large", mlp.generator(32, 8, channels=3, depth=1), Z)
    arguments = (large, "--data", "digits", "--out", str(tmp_path / "report"))
    error = error_of(capsys, *arguments)
    assert all(text in error for text in ("32x32x3", "8x8x1", "--resize"))
    # Fewer samples than the metrics need: the shapes have been accepted.
    assert "32x32x3" not in error_of(capsys, *arguments, "--resize", "--samples", "1")
    arguments = (networks["wide"], *arguments[1:])
    assert "--resize" not in error_of(capsys, *arguments, "--samples", "1")


def test_options_of_weight_files(networks, tmp_path, capsys):
    weights = save_tensors(tmp_path / "g.pkl", dcgan_tensors())
    arguments = ["--data", "digits", "--out", str(tmp_path / "report"), "--option", "size=28"]
    assert "the options size=28" in error_of(capsys, str(weights), *arguments)
    assert "'size'" in error_of(capsys, networks["small"], *arguments)
    assert "NAME=VALUE" in error_of(capsys, networks["small"], *arguments[:-1], "size")


def test_transparent_images_are_composed_on_the_background(networks, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(images / "clear.png")
    out = str(tmp_path / "report")
    arguments = [str(images), "--data", f"folder:{images}", "--out", out]
    assert "--background" in error_of(capsys, *arguments)

    def opened(*options):
        args = command.parser().parse_args([*arguments, *options])
        subjects = open_subjects(args.networks, resize=args.resize, background=args.background)
        return subjects[0].sample(1, 0, lambda done: None).images, command.open_data(args, subjects)

    samples, red = opened("--background", "#ff0000")
    np.testing.assert_array_equal(samples, np.tile(np.uint8([255, 0, 0]), (1, 8, 8, 1)))
    np.testing.assert_array_equal(red[0]["image"], np.tile([1.0, -1.0, -1.0], (8, 8, 1)))
    fingerprints = {red.fingerprint, opened("--background", "blue")[1].fingerprint}
    fingerprints.add(opened("--resize")[1].fingerprint)
    assert len(fingerprints) == 3  # caches are keyed by it

    assert "'dark'" in error_of(capsys, *arguments, "--background", "dark")
    arguments[2] = "digits"  # opaque; a folder beside them may be transparent
    digits = command.parser().parse_args([*arguments, "--background", "red", "--resize"])
    subjects = open_subjects(digits.networks, background="red")
    assert command.open_data(digits, subjects).image_shape == (8, 8, 3)
    only_networks = [networks["small"], *arguments[1:], "--background", "red"]
    assert "not for digits" in error_of(capsys, *only_networks)


def test_files_that_are_left_out_and_conversions_are_reported(networks, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (20, 16)).save(images / "one.png")
    (images / "notes.txt").write_text("not an image")
    arguments = [networks["wide"], "--data", f"folder:{images}", "--out", str(tmp_path / "report")]
    with pytest.raises(SystemExit):  # one image is too few
        command.main([*arguments, "--resize"])
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert [note.rpartition(": ")[2] for note in notes] == ["notes.txt", "one.png"]
    assert "--resize" in error_of(capsys, *arguments)


def source():
    return kd_data.open_source("digits", "train", 8, 1, CACHE / "tfds")


def test_features_of_real_images_are_computed_once(tmp_path):
    calls = []

    def features(images):
        calls.append(len(images))
        return images.reshape(len(images), -1)[:, :5]

    extractor = Extractor("pixels", features, features)
    progress = []
    first = read_reference(source(), extractor, "train", tmp_path, 1000, progress.append)
    assert (calls, progress) == ([1000, 797], [0, 1000, 1797])
    again = read_reference(source(), extractor, "train", tmp_path)
    assert len(calls) == 2
    np.testing.assert_array_equal(first.features, again.features)
    other = Extractor("other pixels", features, features)
    read_reference(source(), other, "train", tmp_path)
    read_reference(source(), extractor, "test", tmp_path)
    assert len(calls) > 3  # neither used the cache of the first


def test_a_damaged_cache_file_is_named(tmp_path):
    extractor = Extractor("pixels", lambda x: x.reshape(len(x), -1), lambda x: x)
    read_reference(source(), extractor, "train", tmp_path)
    (file,) = (tmp_path / "features").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        read_reference(source(), extractor, "train", tmp_path)


def write_images(folder, images, labels=None):
    for number, image in enumerate(images):
        file = folder / (str(labels[number]) if labels is not None else "") / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    return str(folder)


def test_a_folder_of_a_networks_samples_measures_as_its_first_draw(networks, tmp_path, capsys):
    generator = open_generator(networks["wide"])
    samples = sampler(generator, 32)(draw(generator, 60, 4))
    flat = write_images(tmp_path / "flat", samples.images)
    by_class = write_images(tmp_path / "by_class", samples.images, samples.labels)
    out = tmp_path / "report"
    arguments = [f"net={networks['wide']}", f"flat={flat}", f"by_class={by_class}"]
    arguments += ["--data", "digits", "--out", str(out), "--seed", "4", "--draws", "1"]
    command.main(arguments)
    assert "flat has 60 images: 60 samples" in capsys.readouterr().err
    net, flat_figures, class_figures = read_figures(out).values()
    cost = {name for name in net if name in COST}
    assert class_figures == {name: net[name] for name in net.keys() - cost}
    assert flat_figures == {name: net[name] for name in net.keys() - cost - {"accuracy", "intra"}}
    assert "deviation" not in flat_figures["frechet"]
    stored = read_report(out)
    assert stored["protocol"]["samples"] == 60
    html = (out / "report.html").read_text()
    assert html.count('"caption": "flat') == 2  # samples and neighbours, without interpolations

    error = error_of(capsys, flat, "--data", "digits", "--out", str(out), "--samples", "61")
    assert "60 images" in error
    assert "--samples=61" in error


def test_a_folder_of_the_real_images_has_no_distance(tmp_path):
    real = kd_data.open_source("digits", "train[:300]", 8, 1, CACHE / "tfds")
    images, labels, _ = read_examples(real, range(300))
    subject = open_images(write_images(tmp_path / "real", images, labels), (8, 8, 1))
    pixels = Extractor(
        "pixels", lambda x: x.reshape(len(x), -1), lambda x: x.reshape(len(x), -1)[:, 20:30]
    )
    reference = read_reference(real, pixels, "train", None)
    protocol = command.Protocol(
        reference,
        pixels,
        TOOLS["torch-fidelity"]._replace(kid_size=300),
        Perceptual("unit", lambda images, others: np.full(len(images), 0.25)),
        samples=300,
        seed=0,
        draws=3,
        paths=20,
        batch=1,
    )
    figures = command.evaluate(subject, protocol).figures
    assert abs(figures["frechet"].value) < 1e-3
    assert abs(figures["intra"].value) < 1e-3
    assert figures["precision"].value == figures["recall"].value == 1
    assert figures["frechet"].deviation is None
    assert figures["diversity"].value == 0.25
    assert "path" not in figures
    assert not COST & figures.keys()

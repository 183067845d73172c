"""Generators of images without labels: one folder of photographs, features that need no classes."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from reports import read_figures, read_report, values
from selection import quick

from experiments import biggan, digits, generation, harness, objectives, runner, stylegan2
from kd_jax.report.pictures import to_uint8

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {"digits": digits, "stylegan2": stylegan2}


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


@pytest.fixture
def folder(tmp_path):
    """Forty images of 16x16 in one folder."""
    path = tmp_path / "photos"
    path.mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        pixels = rng.integers(0, 255, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(path / f"{index}.png")
    return path


def tiny(name, folder, **changes):
    config = {"objectives": objectives, "biggan": biggan, **EXPERIMENTS}[name].get_config("tiny")
    config.data.source = f"folder:{folder}"
    config.data.size, config.data.channels = 16, 3
    config.evaluate.update(changes)
    return config


@pytest.mark.parametrize("name", quick(EXPERIMENTS))
def test_unlabelled_images_make_unconditional_generators(name, folder):
    config = tiny(name, folder)
    task = EXPERIMENTS[name].make_task(config)
    comparison = EXPERIMENTS[name].build(config)
    plans, batch = EXPERIMENTS[name].EXPERIMENT.plan(config, comparison)
    for plan in plans.values():
        inputs = plan.setup.task(jax.random.key(0), batch)
        assert len(inputs.generator) == 1
        assert inputs.condition == ()
    evaluation = generation.make_evaluation(config, task)
    assert evaluation.settings["extractor"].startswith("random-vgg16-80-")
    assert [metric.name for metric in evaluation.metrics] == ["frechet"]
    real = to_uint8(np.stack([task.source[index]["image"] for index in range(40)]))
    noise = np.random.default_rng(1).integers(0, 256, real.shape, np.uint8)
    distances = [evaluation.compute(images)["frechet"] for images in (real, noise)]
    assert distances[0] < 1e-3 * distances[1]


@pytest.mark.slow
def test_without_features_there_are_samples_and_costs_only(folder, tmp_path):
    config = tiny("stylegan2", folder, features="none")
    harness.execute(stylegan2.EXPERIMENT, config.lock(), tmp_path / "run")
    report = read_report(tmp_path / "run")
    assert "No metric" in report["summary"][1]
    for figures in read_figures(tmp_path / "run").values():
        assert set(figures) == {"images", "parameters", "macs", "memory", "latency", "per_image"}
    assert (tmp_path / "run" / "examples.png").exists()
    assert not (tmp_path / "run/seed0/distilled/best").exists()


@pytest.mark.parametrize("name", quick(EXPERIMENTS, 0))
def test_from_unlabelled_images_to_the_report(name, folder, tmp_path):
    harness.execute(EXPERIMENTS[name].EXPERIMENT, tiny(name, folder).lock(), tmp_path / "run")
    page = (tmp_path / "run" / "report.md").read_text()
    assert "VGG16 with random weights" in page
    assert "not an FID" in page
    assert read_report(tmp_path / "run")["protocol"]["extractor"].startswith("random-vgg16-80-")
    assert not values(tmp_path / "run", "accuracy")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits", {"features": "classifier"}, r"'classifier' needs labels, .* 'random' needs"),
        ("stylegan2", {"features": "nowhere.pth"}, r"'nowhere\.pth' is neither .* of weights"),
        ("biggan", {}, "one class, and BigGAN is class-conditional"),
        ("objectives", {}, "one class; the methods are compared class-conditionally"),
        ("objectives", {"features": "none"}, "'none': the methods are compared by a distance"),
    ],
)
def test_features_that_do_not_fit_are_refused(name, changes, message, folder):
    config = tiny(name, folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        {"objectives": objectives, "biggan": biggan, **EXPERIMENTS}[name].build(config)
    assert "\n" not in str(caught.value)


def test_the_background_is_a_setting_that_older_runs_lack(folder):
    config = tiny("digits", folder)
    assert "background" not in harness.persistent_config(config)["data"]
    Image.new("RGBA", (16, 16)).save(folder / "0.png")
    with pytest.raises(ValueError, match=r"1 with transparency \(0\.png\)"):
        runner.open_images(config, config.data.source, "train")
    config.data.background = "#ff0000"
    assert harness.persistent_config(config)["data"]["background"] == "#ff0000"
    source = runner.open_images(config, config.data.source, "train")
    np.testing.assert_array_equal(source[0]["image"][3, 3], [1, -1, -1])

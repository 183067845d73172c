"""Super-resolution, inpainting and translation, from images to a report, and bad settings."""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reports import COST, read_figures, read_report, values

from experiments import harness, inpainting, superres, translation
from kd_jax import data as kd_data
from kd_jax.core.objective import Inputs
from kd_jax.core.setup import Teacher
from kd_jax.metrics import extractor
from kd_jax.report.pictures import to_uint8
from kd_jax.tasks import degradations
from kd_jax.train import checkpoint
from kd_jax.train.logs import read_jsonl

ROOT = Path(__file__).parents[2]
MODULES = {"superres": superres, "inpainting": inpainting, "translation": translation}
BASELINES = {
    "superres": ["bicubic"],
    "inpainting": ["biharmonic", "smooth filling"],
    "translation": ["enlarged colours"],
}


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def folder(path, count, side=16, seed=0):
    path.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(
            path / f"{index}.png"
        )
    return f"folder:{path}"


def tiny(name, tmp_path, **changes):
    config = MODULES[name].get_config("tiny")
    config.data.source = folder(tmp_path / "train", 8)
    config.data.test = folder(tmp_path / "test", 5, seed=1)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_users_images_to_report(name, tmp_path, capsys):
    config = tiny(name, tmp_path)
    workdir = tmp_path / "run"
    harness.execute(MODULES[name].EXPERIMENT, config, workdir)
    figures = read_figures(workdir)
    assert list(figures) == [*BASELINES[name], "teacher", "from_scratch", "distilled"]
    for own in figures.values():
        # Without a Frechet distance: a single class cannot train a classifier.
        assert set(own) - COST - {"gap", "images"} == {"psnr", "ssim"}
        assert math.isfinite(own["psnr"]["value"] + own["ssim"]["value"])
    page = (workdir / "report.md").read_text()
    assert "5 held-out images; a single seed." in page
    for picture in ("examples.png", "curves.png"):
        assert f"({picture})" in page
        with Image.open(workdir / picture) as opened:
            assert opened.width > 100
    rows = read_jsonl(workdir / "seed0/distilled/metrics.jsonl")
    possible = {f"g/{name}" for name in ("truth", "response", "feature")}
    expected = {f"g/{name}" for name, weight in config.distilled.items() if weight}
    assert possible & set(rows[0]) == expected
    assert "g/response" in expected
    assert ("d/adversarial" in rows[0]) == (name == "translation")
    loaded, _ = checkpoint.load_network(workdir / "seed0/from_scratch/best")
    assert loaded.network.module is not None
    assert "report.md" in capsys.readouterr().out
    harness.execute(MODULES[name].EXPERIMENT, config, workdir)  # all trainings are finished
    assert values(workdir, "psnr") == {name: own["psnr"]["value"] for name, own in figures.items()}


@pytest.mark.slow
def test_photographs_have_a_frechet_distance_and_features_are_connected(tmp_path):
    config = superres.get_config("tiny")
    config.distilled.feature = 1.0
    harness.execute(superres.EXPERIMENT, config.lock(), tmp_path)
    assert "`photos-classifier-" in read_report(tmp_path)["tables"][0]["about"]
    figures = read_figures(tmp_path)
    assert {"psnr", "ssim", "frechet"} <= set(figures["teacher"])
    assert "g/feature" in read_jsonl(tmp_path / "seed0/distilled/metrics.jsonl")[0]
    # The projections of the features are used in training only.
    parameters = values(tmp_path, "parameters")
    assert parameters["distilled"] == parameters["from_scratch"] < parameters["teacher"]


def test_lpips_is_computed_if_there_are_weights(tmp_path, monkeypatch):
    def lpips(*files):
        assert files == ("trunk.pth", "heads.pth")
        return extractor.Perceptual("lpips-1", lambda a, b: jnp.abs(a - b).mean(axis=(1, 2, 3)))

    monkeypatch.setattr(extractor, "lpips", lpips)
    config = tiny("superres", tmp_path, **{"evaluate.lpips": "trunk.pth, heads.pth"})
    evaluation = superres.build(config).evaluation()
    targets = np.asarray(evaluation.inputs.real)
    assert evaluation.compute(targets)["lpips"] == 0
    expected = 2 * np.abs(targets).mean()
    assert evaluation.compute(-targets)["lpips"] == pytest.approx(expected, rel=1e-5)
    assert "LPIPS is `lpips-1`." in evaluation.notes
    assert [metric.name for metric in evaluation.metrics] == ["psnr", "ssim", "lpips"]


def test_baselines_reconstruct_a_plane(tmp_path):
    """Bicubic and biharmonic interpolation recover a plane almost exactly."""
    rows, columns = np.meshgrid(np.linspace(-0.5, 0.5, 16), np.linspace(-0.3, 0.3, 16))
    plane = np.stack([rows, columns, -rows], axis=-1)
    for name, atol in (("superres", 0.03), ("inpainting", 0.01)):
        (tmp_path / name).mkdir()
        config = tiny(name, tmp_path / name)
        for old in (tmp_path / name / "test").iterdir():
            old.unlink()
        Image.fromarray(to_uint8(plane)).save(tmp_path / name / "test" / "plane.png")
        evaluation = MODULES[name].build(config).evaluation()
        inside = np.s_[:, 6:-6, 6:-6]
        baseline, targets = (
            evaluation.baselines[BASELINES[name][0]],
            np.asarray(evaluation.inputs.real),
        )
        np.testing.assert_allclose(targets[0], plane, atol=0.005)
        np.testing.assert_allclose(baseline[inside], targets[inside], atol=atol)
        assert np.abs(baseline - targets).max() > 0


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_biharmonic_with_empty_and_full_masks(part):
    image = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3))
    mask = np.full((1, 16, 16, 1), part)
    inpainted = inpainting.biharmonic(Inputs((image * (1 - part), mask)))
    np.testing.assert_array_equal(inpainted, image * (1 - part))


def test_an_image_is_nearest_to_its_own_edges(tmp_path):
    source = kd_data.open_source(folder(tmp_path / "some", 8), "train", 16, 3)
    images = np.stack([source[i]["image"] for i in (5, 2)])
    edges = np.asarray(degradations.edges(jnp.asarray(images), sigma=1.0))
    np.testing.assert_array_equal(translation.nearest_by_edges(edges, source, 1.0), images)


def test_the_discriminator_is_conditioned_on_the_generators_input(tmp_path):
    task = translation.build(tiny("translation", tmp_path))
    inputs = task.task(jax.random.key(0), next(task.teacher.batches(0)))
    assert inputs.condition[0].shape == (4, 16, 16, 4)
    np.testing.assert_array_equal(inputs.condition[0], inputs.generator[0])


def test_conditions_hold_edges_and_coarse_colours():
    """An image of one colour has no edges; without hints the condition has no colour either."""
    image = jnp.broadcast_to(jnp.array([0.5, -0.25, 0.0]), (1, 16, 16, 3))
    condition = translation.make_condition(image, 1.0, 4)
    expected = np.broadcast_to([-1, 0.5, -0.25, 0.0], condition.shape)
    np.testing.assert_allclose(condition, expected, atol=1e-6)
    assert translation.make_condition(image, 1.0, 0).shape == (1, 16, 16, 1)


def test_without_colours_the_baseline_is_nearest_edges(tmp_path):
    evaluation = translation.build(tiny("translation", tmp_path, hints=0)).evaluation()
    assert list(evaluation.baselines) == ["nearest edges"]
    assert evaluation.inputs.generator[0].shape == (5, 16, 16, 1)


@pytest.mark.slow
def test_without_the_response_term_distillation_equals_training_from_scratch(tmp_path):
    config = tiny("superres", tmp_path, **{"distilled.response": 0.0})
    task = superres.build(config)
    batch = next(task.teacher.batches(0))
    key = jax.random.key(1)
    teacher = Teacher(task.teacher.network.init(key, jnp.zeros((1, 4, 4, 3))))
    averages = []
    for training in task.students:
        plan = training.plan(teacher, 0)
        state, _ = plan.step(plan.init(jax.random.key(0), batch), plan.teacher, batch)
        averages.append(state.ema)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *averages)


def test_evaluating_on_training_images_is_refused(tmp_path):
    config = tiny("superres", tmp_path)
    with config.unlocked():
        config.data.test = f"{config.data.source}/."
    with pytest.raises(ValueError, match=r"folder:train has images of .* by --config.data.test$"):
        superres.build(config)


def test_an_adversarial_loss_is_sufficient(tmp_path):
    weights = {"distilled.truth": 0.0, "distilled.response": 0.0}
    translation.build(tiny("translation", tmp_path, **weights))


@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_of_images_with_alpha(channels, tmp_path):
    config = tiny("translation", tmp_path, **{"data.channels": channels, "data.resize": True})
    evaluation = translation.build(config).evaluation()
    evaluation.draw(tmp_path / "examples.png", {**evaluation.baselines})
    with Image.open(tmp_path / "examples.png") as opened:
        assert np.asarray(opened.convert("L"))[:40, -40:].min() < 128  # edges are not transparent


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("superres", {"scale": 3}, "config.data.size=16 is not a multiple of config.scale=3"),
        ("superres", {"teacher.model": "edsr"}, "'edsr' is not one of srresnet, rrdb"),
        ("superres", {"scale": 0}, "config.scale=0 "),
        ("superres", {"scale": -4}, "config.scale=-4 "),
        ("superres", {"distilled.response": -1.0}, "config.distilled.response=-1.0"),
        ("superres", {"distilled.feature": -1.0}, "config.distilled.feature=-1.0"),
        (
            "superres",
            {"distilled.truth": 0.0, "distilled.response": 0.0},
            "distilled.* are all 0 and there is no adversarial loss",
        ),
        (
            "superres",
            {"data.source": "photos", "data.test": "", "evaluate.images": 1},
            "1 image of photos test.*: --config.evaluate.images=0",
        ),
        ("superres", {"noise": -1.0}, "config.noise=-1.0"),
        ("superres", {"data.test": ""}, "--config.data.test=folder:PATH is needed too"),
        ("superres", {"batch_size": 9}, "has 8 images, fewer than one batch"),
        ("superres", {"data.size": 20}, r"not fit 20x20 RGB: .* \(\S+\.png is 16x16\)"),
        ("superres", {"student.width": 0}, "width=0"),
        ("inpainting", {"masks.strokes": 0, "masks.largest_box": 0.0}, "nothing would be missing"),
        ("inpainting", {"masks.smallest_box": 0.9}, "0 < smallest <= largest <= 1"),
        ("inpainting", {"teacher.downs": 5}, "multiples of 32"),
        ("inpainting", {"dtype": "float16"}, "neither float32 nor bfloat16"),
        ("translation", {"sigma": 0.0}, "config.sigma=0.0 "),
        ("translation", {"adversarial": -1.0}, "config.adversarial=-1.0 "),
        ("translation", {"discriminator.layers": 0}, "layers=0"),
        ("translation", {"data.size": 18, "hints": 0}, "18x18"),
        ("translation", {"hints": 5}, "config.hints=5 does not divide config.data.size=16"),
        ("translation", {"norm": "group"}, "'group' is not one of batch, instance"),
        ("translation", {"discriminator.layers": 6}, "whose sides are at least 192"),
        ("superres", {"data.size": 8}, "config.data.size=8 is below 11, the side of SSIM's window"),
        ("inpainting", {"evaluate.examples": 0}, "examples=0"),
        ("inpainting", {"evaluate_every": 3}, "not a multiple of config.log_every=2"),
        ("superres", {"evaluate.lpips": "a,b,c"}, "names 3 files"),
        ("superres", {"evaluate.lpips": "/nowhere.pth"}, "no LPIPS weights at /nowhere.pth"),
        ("superres", {"data.patches": True, "data.resize": True}, "either resized or cut"),
        ("inpainting", {"data.patches": True, "data.size": 32}, "smaller than a patch of 32x32"),
    ],
)
def test_bad_settings_give_one_line_and_write_nothing(name, changes, message, tmp_path):
    config = tiny(name, tmp_path, **changes)
    with pytest.raises(harness.UsageError, match=message):
        harness.execute(MODULES[name].EXPERIMENT, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The waveform, text-to-image and unpaired-translation experiments, and their shared runner."""

import json
import math
import os
import weakref
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import (
    harness,
    inpainting,
    runner,
    superres,
    text_to_image,
    translation,
    unpaired,
    waveform,
)
from experiments.runner import Evaluation, Metric
from kd_jax import data as kd_data
from kd_jax.core.objective import Inputs
from kd_jax.data import captions, tones
from kd_jax.train import checkpoint
from kd_jax.train.logs import read_jsonl

ROOT = Path(__file__).parents[2]
MODULES = {"waveform": waveform, "text_to_image": text_to_image, "unpaired": unpaired}
EXPECTED = {  # baselines, metrics, the distilled student's terms
    "waveform": (["interpolation"], {"snr", "lsd"}, {"g/truth", "g/response", "d/adversarial"}),
    "text_to_image": (
        [],
        {"frechet", "caption", "digit", "weight", "slant"},
        {"g/adversarial", "g/matching", "g/pixel", "d/matching", "d/r1"},
    ),
    "unpaired": (
        ["colour transfer"],
        {"psnr_second", "psnr_first", "frechet_second", "frechet_first"},
        {"g/adversarial", "g/cycle", "g/response", "d/adversarial"},
    ),
}


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", os.environ.get("KD_JAX_CACHE", str(ROOT / ".cache")))


def tiny(name, **changes):
    config = MODULES[name].get_config("tiny")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_data_to_report(name, tmp_path):
    baselines, names, terms = EXPECTED[name]
    workdir = tmp_path / "run"
    harness.execute(MODULES[name].EXPERIMENT, tiny(name), workdir)
    report = json.loads((workdir / "report.json").read_text())
    assert list(report["figures"]) == [*baselines, "teacher", "from_scratch", "distilled"]
    for figures in report["figures"].values():
        assert set(figures[0]) == names
        assert all(math.isfinite(value) for value in figures[0].values())
    for picture in ("examples.png", "quality.png"):
        with Image.open(workdir / picture) as opened:
            assert opened.width > 100
    assert terms <= set(read_jsonl(workdir / "seed0/distilled/metrics.jsonl")[0])
    tracked = f"quality/{MODULES[name].build(tiny(name)).tracked[0]}"
    assert any(tracked in row for row in read_jsonl(workdir / "seed0/from_scratch/metrics.jsonl"))
    from_scratch = set(read_jsonl(workdir / "seed0/from_scratch/metrics.jsonl")[0])
    assert not {"g/pixel", "g/response"} & from_scratch
    loaded, _ = checkpoint.load_network(workdir / "seed0/from_scratch/best")
    assert loaded.network.module is not None
    assert report["costs"]["student"]["parameters"] < report["costs"]["teacher"]["parameters"]
    harness.execute(MODULES[name].EXPERIMENT, tiny(name), workdir)  # all trainings are finished
    assert json.loads((workdir / "report.json").read_text())["figures"] == report["figures"]


def test_verdicts_compare_the_first_metric():
    evaluation = Evaluation(
        Inputs((np.zeros((1, 2)),)),
        {"error": Metric("error", higher_is_better=False, digits=1, unit=" m")},
        lambda x: {},
        lambda x: {},
        {"rule": np.zeros(1)},
        "one example",
        [],
        lambda file, predictions: None,
    )
    figures = {
        "rule": [{"error": 5.0}],
        "teacher": [{"error": 2.0}, {"error": 4.0}],
        "from_scratch": [{"error": 4.0}, {"error": 4.5}],
        "distilled": [{"error": 5.0}, {"error": 4.0}],
    }
    lines = list(runner._verdicts(evaluation, figures))
    # By hand: the interval of (-3, -1) is -2 -+ 12.7062 sqrt(2) / sqrt(2).
    assert lines[0] == (
        "* teacher **beats** rule: error -2.0 m (95% confidence interval -14.7 to +10.7), better "
        "in 2 of 2 seeds."
    )
    assert lines[1].startswith("* distilled **does not beat** from_scratch: error +0.2 m")
    assert lines[1].endswith("better in 1 of 2 seeds.")
    assert lines[2].startswith("* distilled **beats** rule: error -0.5 m")
    one = {name: values[:1] for name, values in figures.items()}
    lines = list(runner._verdicts(evaluation, one))
    assert lines[0] == "* teacher against rule: error -3.0 m; a single seed decides nothing."
    assert not any("**" in line for line in lines)


def test_signal_to_noise_and_log_spectral_distance():
    """A wave scaled by 9/10 has an error of 1/10: 20 dB, and 2 log10(0.9) in each bin."""
    waves = np.random.default_rng(0).normal(size=(2, 512, 1)).astype(np.float32)
    np.testing.assert_allclose(waveform.signal_to_noise(0.9 * waves, waves), 20.0, atol=1e-4)
    np.testing.assert_allclose(waveform.signal_to_noise(waves, waves), 100.0)
    distances = waveform.log_spectral_distance(0.9 * waves, waves)
    np.testing.assert_allclose(distances, -2 * np.log10(0.9), rtol=1e-4)
    np.testing.assert_array_equal(waveform.log_spectral_distance(waves, waves), 0.0)


def test_held_out_tones_are_not_in_the_training_data():
    task = waveform.build(tiny("waveform", **{"evaluate.waves": 64}))
    trained_on = np.concatenate([next(task.batches(seed))["wave"] for seed in range(4)])
    held_out = np.asarray(task.evaluation().inputs.real)
    distances = np.abs(trained_on[:, None] - held_out[None]).max(axis=(2, 3))
    assert distances.min() > 1e-3
    for seed in range(4):  # nor would they be with training batches of the same size
        drawn = tones.plucked(np.random.default_rng([seed, 0]), 64, length=256, rate=8000)
        assert np.abs(drawn["wave"] - held_out).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.slow
def test_real_images_match_their_captions():
    """Weight and slant are measured in the image itself; the digit is classified accurately."""
    task = text_to_image.build(tiny("text_to_image"))
    evaluation = task.evaluation()
    size, cache_dir = 16, harness.cache_dir() / "tfds"
    held_out = kd_data.load_all(kd_data.open_source("digits", "train[80%:]", size, 1, cache_dir))
    metrics = evaluation.compute(held_out["image"])
    assert metrics["weight"] == metrics["slant"] == 100.0
    assert 85 < metrics["digit"] <= 100
    assert metrics["frechet"] == pytest.approx(0.0, abs=1e-3)
    words = {captions.decode(tokens) for tokens in evaluation.inputs.generator[1]}
    assert len(words) > 30
    permuted = evaluation.compute(held_out["image"][::-1])
    assert permuted["caption"] < 20


def test_colour_transfer_matches_the_other_sets_mean_and_deviation():
    rng = np.random.default_rng(0)
    domain = rng.normal(0.1, 0.2, (50, 8, 8, 3)).astype(np.float32)
    other = rng.normal([-0.3, 0.0, 0.3], [0.1, 0.05, 0.2], (60, 8, 8, 3)).astype(np.float32)
    transferred = unpaired.transfer_colours(domain, domain, other)
    np.testing.assert_allclose(transferred.mean(axis=(0, 1, 2)), [-0.3, 0.0, 0.3], atol=0.01)
    np.testing.assert_allclose(transferred.std(axis=(0, 1, 2)), [0.1, 0.05, 0.2], atol=0.01)


def images(path, count, side=16, seed=0):
    path.mkdir(parents=True)
    for index, pixels in enumerate(
        np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    ):
        Image.fromarray(pixels).save(path / f"{index}.png")
    return f"folder:{path}"


def tiny_folders(tmp_path, **changes):
    folders = {
        f"data.{name}": images(tmp_path / name, count, seed=count)
        for name, count in (("first", 9), ("second", 5), ("first_test", 3), ("second_test", 4))
    }
    return tiny("unpaired", **{**folders, "data.form": "", **changes})


@pytest.mark.slow
def test_two_folders_of_different_sizes(tmp_path):
    config = tiny_folders(tmp_path)
    harness.execute(unpaired.EXPERIMENT, config, tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["evaluation"] == "3 held-out images of each set"
    assert set(report["figures"]["teacher"][0]) == {"frechet_second", "frechet_first"}
    tracked = f"quality/{unpaired.build(config).tracked[0]}"
    assert any(
        tracked in row for row in read_jsonl(tmp_path / "run/seed0/from_scratch/metrics.jsonl")
    )


def test_splits_are_ignored_for_folders(tmp_path):
    splits = {"first_split": "train[:50%]", "second_split": "train[50%:]", "test_split": "test"}
    config = tiny_folders(tmp_path, **{f"data.{k}": v for k, v in splits.items()})
    sets = unpaired.open_sets(config)
    assert [len(sets.train[name]) for name in ("first", "second")] == [9, 5]
    assert [len(sets.test[name]) for name in ("first", "second")] == [3, 4]


def test_with_a_form_one_folder_is_split_into_disjoint_sets(tmp_path):
    changes = {
        "data.first": images(tmp_path / "mine", 9, seed=9),
        "data.first_test": images(tmp_path / "others", 3, seed=3),
    }
    sets = unpaired.open_sets(tiny("unpaired", **changes))
    first, second = (
        {example["image"].tobytes() for example in sets.train[name]} for name in ("first", "second")
    )
    assert (len(first), len(second), len(first | second)) == (5, 4, 9)
    assert sets.test["first"] is sets.test["second"]


def test_evaluating_on_the_training_folder_is_refused(tmp_path):
    config = tiny_folders(tmp_path)
    with config.unlocked():
        config.data.first_test = config.data.first
    with pytest.raises(ValueError, match=r"folder:first has images of .*--config.data.first_test"):
        unpaired.build(config)


def test_a_failing_picture_does_not_lose_the_report(tmp_path, monkeypatch, capsys):
    task = waveform.build(tiny("waveform"))
    evaluation = task.evaluation()
    networks = {
        "teacher": task.teacher,
        "from_scratch": task.student,
        "distilled": task.student,
    }

    def untrained(config, workdir, *_):
        variables = networks[workdir.name].init(jax.random.key(0), *evaluation.inputs.generator)
        return SimpleNamespace(generator=variables)

    def fails(file, predictions):
        raise OSError("no picture")

    monkeypatch.setattr(runner.comparison, "train", untrained)
    task = task._replace(evaluation=lambda: evaluation._replace(draw=fails))
    with pytest.raises(OSError, match="no picture"):
        runner.main(tiny("waveform"), task, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["figures"]) == {"interpolation", *runner.TRAININGS}
    assert "(examples.png)" in (tmp_path / "report.md").read_text()
    written = [line for line in capsys.readouterr().out.splitlines() if "written:" in line]
    assert written == [f"written:  {tmp_path / name}" for name in ("report.md", "report.json")]


def test_only_the_first_seeds_predictions_stay_in_memory():
    references = []

    def predict(seed):
        # Each network so far has one array alive: the first seed's.
        alive = sum(reference() is not None for reference in references)
        assert alive == (len(references) > 0) + (len(references) > 3)
        predictions = np.full(4, seed, np.float32)
        references.append(weakref.ref(predictions))
        return predictions

    evaluation = Evaluation(
        Inputs((np.zeros((1, 2)),)),
        {"error": Metric("error", higher_is_better=False)},
        lambda x: {"error": float(x[0])},
        lambda x: {},
        {"rule": np.full(4, 7.0, np.float32)},
        "one example",
        [],
        lambda file, predictions: None,
    )
    names = ("teacher", "from_scratch")
    figures, first = runner.evaluate_all(
        evaluation, dict.fromkeys(names, predict), {name: [0, 1, 2] for name in names}
    )
    by_seed = [{"error": 0.0}, {"error": 1.0}, {"error": 2.0}]
    assert figures == {"rule": [{"error": 7.0}], "teacher": by_seed, "from_scratch": by_seed}
    assert {name: float(x[0]) for name, x in first.items()} == {
        "rule": 7.0,
        "teacher": 0.0,
        "from_scratch": 0.0,
    }


@pytest.mark.parametrize("module", [unpaired, superres, inpainting, translation])
def test_the_full_evaluation_is_limited(module):
    assert module.get_config("full").evaluate.images == 1000


def test_unpaired_inputs_are_in_both_directions():
    task = unpaired.build(tiny("unpaired"))
    batch = runner.first_batch(task)
    assert set(batch) == {"first", "second"}
    inputs = task.inputs(jax.random.key(0), batch)
    photographs, others = np.asarray(inputs.generator[0]).swapaxes(0, 1)
    np.testing.assert_array_equal(photographs, batch["first"])
    red, green, blue = np.moveaxis((others + 1) / 2, -1, 0)  # of sepia, in fixed proportions
    mask = (red < 0.99) & (red > 0.01)
    np.testing.assert_allclose((green / red)[mask], 0.889, atol=3e-3)
    np.testing.assert_allclose((blue / red)[mask], 0.694, atol=3e-3)
    np.testing.assert_array_equal(inputs.real, np.asarray(inputs.generator[0])[:, ::-1])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("waveform", {"factor": 3}, "256 samples .*factor=3"),
        ("waveform", {"data.length": 128}, "config.data.length=128 is below 256"),
        ("waveform", {"data.rate": 800}, "rate=800"),
        ("waveform", {"adversarial": -1.0}, "config.adversarial=-1.0"),
        ("waveform", {"discriminator.layers": 9}, "multiple of 512"),
        ("waveform", {"student.width": 0}, "width=0"),
        ("text_to_image", {"data.size": 20}, "size=20 is not one of"),
        ("text_to_image", {"r1": -1.0}, "the weight of r1 is -1.0"),
        ("text_to_image", {"data.test_split": "train[:80%]"}, "equals config.data.test_split"),
        ("text_to_image", {"evaluate.repeat": 0}, "config.evaluate.repeat=0"),
        ("text_to_image", {"batch_size": 1500}, "fewer than one batch"),
        ("unpaired", {"cycle": -1.0}, "the weight of cycle is -1.0"),
        ("unpaired", {"data.form": "drawn"}, "data.form='drawn' is not one of sepia, edges or ''"),
        ("unpaired", {"data.channels": 1}, "sepia' needs 3 channels, not 1"),
        ("unpaired", {"data.sigma": 0.0}, "config.data.sigma=0.0"),
        ("unpaired", {"data.size": 18}, "sides are multiples of 4"),
        ("unpaired", {"batch_size": 5000}, "fewer than one batch"),
        ("unpaired", {"discriminator.layers": 6}, "whose sides are at least"),
        ("unpaired", {"data.first": "folder:/nowhere"}, "/nowhere"),
        ("unpaired", {"dtype": "float16"}, "neither float32 nor bfloat16"),
        ("waveform", {"teacher.steps": 0}, "config.teacher.steps=0 is not positive"),
        ("waveform", {"student.steps": -1}, "config.student.steps=-1 is not positive"),
        ("waveform", {"teacher.rate": 0.0}, "config.teacher.rate=0.0 is not positive"),
        ("waveform", {"student.rate": -1e-3}, "config.student.rate=-0.001 is not positive"),
        ("waveform", {"discriminator.rate": 0.0}, "config.discriminator.rate=0.0 is not positive"),
        ("waveform", {"ema": 1.0}, r"config.ema=1.0 is not in \[0, 1\)"),
        ("waveform", {"ema": -0.1}, r"config.ema=-0.1 is not in \[0, 1\)"),
        ("waveform", {"final_rate": 1.5}, r"config.final_rate=1.5 is not in \[0, 1\]"),
        ("waveform", {"batch_size": 0}, "config.batch_size=0 is not positive"),
        ("waveform", {"seeds": (0, -1)}, r"config.seeds=\(0, -1\) has -1"),
        ("waveform", {"distilled.truth": -1.0}, "the weight of config.distilled.truth is -1.0"),
        (
            "waveform",
            {"distilled.truth": 0.0, "distilled.response": 0.0, "adversarial": 0.0},
            "distilled.* are all 0 and there is no adversarial loss",
        ),
        ("text_to_image", {"batch_size": 1}, "config.batch_size=1 .* config.matching=0"),
        ("text_to_image", {"data.test_split": "train[70%:]"}, "has images of digits train"),
        ("text_to_image", {"data.test_split": "train[1796:]"}, "has 1 image of digits"),
        ("unpaired", {"data.test_split": "train[:9]"}, "photos train.:9. has images of photos"),
        ("unpaired", {"evaluate.images": 1}, "1 image of photos .* --config.evaluate.images=0"),
        (
            "unpaired",
            {"data.second": "folder:/x"},
            r"config.data.form='sepia' .* folder:/x .*data.form= \(empty",
        ),
        ("unpaired", {"data.form": ""}, "neither a form nor both second and second_test"),
        ("unpaired", {"data.first_split": "train[:1]"}, "photos train.:1. has one image"),
        ("unpaired", {"norm": "layer"}, "config.norm='layer' is not one of instance, none"),
    ],
)
def test_bad_settings_give_one_line_and_write_nothing(name, changes, message, tmp_path):
    with pytest.raises(harness.UsageError, match=message):
        harness.execute(MODULES[name].EXPERIMENT, tiny(name, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Lessons whose answers are waveforms, images of captions, and both ways between two domains."""

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
    lessons,
    superres,
    text_to_image,
    translation,
    unpaired,
    waveform,
)
from experiments.lessons import Exam, Figure
from kd_jax import checkpoint
from kd_jax import data as kd_data
from kd_jax.data import captions, tones
from kd_jax.logs import read_jsonl
from kd_jax.objective import Inputs

ROOT = Path(__file__).parents[2]
MODULES = {"waveform": waveform, "text_to_image": text_to_image, "unpaired": unpaired}
WHAT = {  # classical methods, figures, the terms of a distilled student
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
def test_from_data_to_a_report(name, tmp_path):
    classical, figures, terms = WHAT[name]
    workdir = tmp_path / "run"
    harness.execute(MODULES[name].EXPERIMENT, tiny(name), workdir)
    report = json.loads((workdir / "report.json").read_text())
    assert list(report["figures"]) == [*classical, "teacher", "alone", "distilled"]
    for found in report["figures"].values():
        assert set(found[0]) == figures
        assert all(math.isfinite(value) for value in found[0].values())
    for picture in ("examples.png", "quality.png"):
        with Image.open(workdir / picture) as opened:
            assert opened.width > 100
    assert terms <= set(read_jsonl(workdir / "seed0/distilled/metrics.jsonl")[0])
    watched = f"quality/{MODULES[name].build(tiny(name)).watched[0]}"
    assert any(watched in row for row in read_jsonl(workdir / "seed0/alone/metrics.jsonl"))
    alone = set(read_jsonl(workdir / "seed0/alone/metrics.jsonl")[0])
    assert not {"g/pixel", "g/response"} & alone
    made, _ = checkpoint.load_network(workdir / "seed0/alone/best")
    assert made.network.module is not None
    assert report["costs"]["student"]["parameters"] < report["costs"]["teacher"]["parameters"]
    harness.execute(MODULES[name].EXPERIMENT, tiny(name), workdir)  # all is found done
    assert json.loads((workdir / "report.json").read_text())["figures"] == report["figures"]


def test_verdicts_say_who_is_better_in_the_first_figure():
    exam = Exam(
        Inputs((np.zeros((1, 2)),)),
        {"error": Figure("error", more=False, digits=1, unit=" m")},
        lambda x: {},
        lambda x: {},
        {"rule": np.zeros(1)},
        "one thing",
        [],
        lambda file, found: None,
    )
    figures = {
        "rule": [{"error": 5.0}],
        "teacher": [{"error": 2.0}, {"error": 4.0}],
        "alone": [{"error": 4.0}, {"error": 4.5}],
        "distilled": [{"error": 5.0}, {"error": 4.0}],
    }
    lines = list(lessons._verdicts(exam, figures))
    # By hand: of (-3, -1) the interval is -2 -+ 12.7062 sqrt(2) / sqrt(2).
    assert lines[0] == (
        "* teacher **beats** rule: error -2.0 m (95% confidence interval -14.7 to +10.7), better "
        "in 2 of 2 seeds."
    )
    assert lines[1].startswith("* distilled **does not beat** alone: error +0.2 m")
    assert lines[1].endswith("better in 1 of 2 seeds.")
    assert lines[2].startswith("* distilled **beats** rule: error -0.5 m")


def test_signal_to_noise_and_log_spectral_distance():
    """A wave at 9/10 has an error of 1/10: 20 dB, and 2 log10(0.9) in each bin."""
    waves = np.random.default_rng(0).normal(size=(2, 512, 1)).astype(np.float32)
    np.testing.assert_allclose(waveform.signal_to_noise(0.9 * waves, waves), 20.0, atol=1e-4)
    np.testing.assert_allclose(waveform.signal_to_noise(waves, waves), 100.0)
    found = waveform.log_spectral_distance(0.9 * waves, waves)
    np.testing.assert_allclose(found, -2 * np.log10(0.9), rtol=1e-4)
    np.testing.assert_array_equal(waveform.log_spectral_distance(waves, waves), 0.0)


def test_the_exams_tones_are_in_no_training():
    lesson = waveform.build(tiny("waveform", **{"evaluate.waves": 64}))
    heard = np.concatenate([next(lesson.batches(seed))["wave"] for seed in range(4)])
    asked = np.asarray(lesson.exam().inputs.real)
    distances = np.abs(heard[:, None] - asked[None]).max(axis=(2, 3))
    assert distances.min() > 1e-3
    for seed in range(4):  # nor does it draw from where a training does, were its batch as large
        drawn = tones.plucked(np.random.default_rng([seed, 0]), 64, length=256, rate=8000)
        assert np.abs(drawn["wave"] - asked).max(axis=(1, 2)).min() > 1e-3


def test_the_real_images_have_their_captions():
    """Held-out images are marked by what was measured in them, and the classifier reads well."""
    lesson = text_to_image.build(tiny("text_to_image"))
    exam = lesson.exam()
    size, where = 16, harness.cache_dir() / "tfds"
    unseen = kd_data.arrays(kd_data.open_source("digits", "train[80%:]", size, 1, where))
    marks = exam.mark(unseen["image"])
    assert marks["weight"] == marks["slant"] == 100.0
    assert 85 < marks["digit"] <= 100
    assert marks["frechet"] == pytest.approx(0.0, abs=1e-3)
    words = {captions.decode(tokens) for tokens in exam.inputs.generator[1]}
    assert len(words) > 30
    mixed = exam.mark(unseen["image"][::-1])
    assert mixed["caption"] < 20


def test_colour_transfer_gives_the_other_sets_mean_and_deviation():
    rng = np.random.default_rng(0)
    domain = rng.normal(0.1, 0.2, (50, 8, 8, 3)).astype(np.float32)
    other = rng.normal([-0.3, 0.0, 0.3], [0.1, 0.05, 0.2], (60, 8, 8, 3)).astype(np.float32)
    made = unpaired.colours_of(domain, domain, other)
    np.testing.assert_allclose(made.mean(axis=(0, 1, 2)), [-0.3, 0.0, 0.3], atol=0.01)
    np.testing.assert_allclose(made.std(axis=(0, 1, 2)), [0.1, 0.05, 0.2], atol=0.01)


def images(path, count, side=16, seed=0):
    path.mkdir(parents=True)
    for index, pixels in enumerate(
        np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    ):
        Image.fromarray(pixels).save(path / f"{index}.png")
    return f"folder:{path}"


def own(tmp_path, **changes):
    folders = {
        f"data.{name}": images(tmp_path / name, count, seed=count)
        for name, count in (("first", 9), ("second", 5), ("first_test", 3), ("second_test", 4))
    }
    return tiny("unpaired", **{**folders, "data.form": "", **changes})


@pytest.mark.slow
def test_two_folders_of_different_sizes(tmp_path):
    config = own(tmp_path)
    harness.execute(unpaired.EXPERIMENT, config, tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["asked"] == "3 images of each set that no network has seen"
    assert set(report["figures"]["teacher"][0]) == {"frechet_second", "frechet_first"}
    watched = f"quality/{unpaired.build(config).watched[0]}"
    assert any(watched in row for row in read_jsonl(tmp_path / "run/seed0/alone/metrics.jsonl"))


def test_a_folder_is_taken_whole_whatever_the_splits_are(tmp_path):
    splits = {"first_split": "train[:50%]", "second_split": "train[50%:]", "test_split": "test"}
    config = own(tmp_path, **{f"data.{k}": v for k, v in splits.items()})
    sets = unpaired.open_sets(config)
    assert [len(sets.train[name]) for name in ("first", "second")] == [9, 5]
    assert [len(sets.test[name]) for name in ("first", "second")] == [3, 4]


def test_with_a_form_both_sets_are_of_one_folder_and_have_no_image_in_common(tmp_path):
    mine = {
        "data.first": images(tmp_path / "mine", 9, seed=9),
        "data.first_test": images(tmp_path / "others", 3, seed=3),
    }
    sets = unpaired.open_sets(tiny("unpaired", **mine))
    first, second = (
        {example["image"].tobytes() for example in sets.train[name]} for name in ("first", "second")
    )
    assert (len(first), len(second), len(first | second)) == (5, 4, 9)
    assert sets.test["first"] is sets.test["second"]


def test_an_exam_on_the_folder_that_was_trained_on(tmp_path):
    config = own(tmp_path)
    with config.unlocked():
        config.data.first_test = config.data.first
    with pytest.raises(ValueError, match=r"folder:first has images of .*--config.data.first_test"):
        unpaired.build(config)


def test_a_picture_that_fails_loses_no_figures(tmp_path, monkeypatch, capsys):
    lesson = waveform.build(tiny("waveform"))
    exam = lesson.exam()
    networks = {"teacher": lesson.teacher, "alone": lesson.student, "distilled": lesson.student}

    def untrained(config, workdir, *_):
        variables = networks[workdir.name].init(jax.random.key(0), *exam.inputs.generator)
        return SimpleNamespace(generator=variables)

    def fails(file, found):
        raise OSError("no picture")

    monkeypatch.setattr(lessons.comparison, "train", untrained)
    lesson = lesson._replace(exam=lambda: exam._replace(draw=fails))
    with pytest.raises(OSError, match="no picture"):
        lessons.main(tiny("waveform"), lesson, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["figures"]) == {"interpolation", *lessons.TRAININGS}
    assert "(examples.png)" in (tmp_path / "report.md").read_text()
    written = [line for line in capsys.readouterr().out.splitlines() if "written:" in line]
    assert written == [f"written:  {tmp_path / name}" for name in ("report.md", "report.json")]


def test_only_the_first_seeds_answers_are_kept():
    made = []

    def ask(seed):
        # Of this network and the one before there is one each, of the first seed.
        assert sum(known() is not None for known in made) == (len(made) > 0) + (len(made) > 3)
        found = np.full(4, seed, np.float32)
        made.append(weakref.ref(found))
        return found

    exam = Exam(
        Inputs((np.zeros((1, 2)),)),
        {"error": Figure("error", more=False)},
        lambda x: {"error": float(x[0])},
        lambda x: {},
        {"rule": np.full(4, 7.0, np.float32)},
        "one thing",
        [],
        lambda file, found: None,
    )
    names = ("teacher", "alone")
    figures, first = lessons.marked(
        exam, dict.fromkeys(names, ask), {name: [0, 1, 2] for name in names}
    )
    by_seed = [{"error": 0.0}, {"error": 1.0}, {"error": 2.0}]
    assert figures == {"rule": [{"error": 7.0}], "teacher": by_seed, "alone": by_seed}
    assert {name: float(x[0]) for name, x in first.items()} == {
        "rule": 7.0,
        "teacher": 0.0,
        "alone": 0.0,
    }


@pytest.mark.parametrize("module", [unpaired, superres, inpainting, translation])
def test_a_full_exam_fits_into_memory(module):
    assert module.get_config("full").evaluate.images == 1000


def test_unpaired_inputs_are_both_ways():
    lesson = unpaired.build(tiny("unpaired"))
    batch = lessons.example(lesson)
    assert set(batch) == {"first", "second"}
    given = lesson.inputs(jax.random.key(0), batch)
    photographs, others = np.asarray(given.generator[0]).swapaxes(0, 1)
    np.testing.assert_array_equal(photographs, batch["first"])
    red, green, blue = np.moveaxis((others + 1) / 2, -1, 0)  # of sepia, in fixed proportions
    where = (red < 0.99) & (red > 0.01)
    np.testing.assert_allclose((green / red)[where], 0.889, atol=3e-3)
    np.testing.assert_allclose((blue / red)[where], 0.694, atol=3e-3)
    np.testing.assert_array_equal(given.real, np.asarray(given.generator[0])[:, ::-1])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("waveform", {"factor": 3}, "256 samples are no multiple of factor=3"),
        ("waveform", {"data.length": 128}, "config.data.length=128 is below 256"),
        ("waveform", {"data.rate": 800}, "rate=800"),
        ("waveform", {"adversarial": -1.0}, "config.adversarial=-1.0"),
        ("waveform", {"discriminator.layers": 9}, "multiple of 512"),
        ("waveform", {"student.width": 0}, "width=0"),
        ("text_to_image", {"data.size": 20}, "size=20 is not one of"),
        ("text_to_image", {"r1": -1.0}, "the weight of r1 is -1.0"),
        ("text_to_image", {"data.test_split": "train[:80%]"}, "is what is asked in the end too"),
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
        ("waveform", {"seeds": (0, -1)}, r"config.seeds=\(0, -1\) has -1: none is negative"),
        ("waveform", {"distilled.truth": -1.0}, "the weight of config.distilled.truth is -1.0"),
        (
            "waveform",
            {"distilled.truth": 0.0, "distilled.response": 0.0, "adversarial": 0.0},
            "distilled.* are all 0 and there is no game",
        ),
        ("text_to_image", {"batch_size": 1}, "config.batch_size=1 has no other caption"),
        ("text_to_image", {"data.test_split": "train[70%:]"}, "has images of digits train"),
        ("text_to_image", {"data.test_split": "train[1796:]"}, "the exam has 1 image of digits"),
        ("unpaired", {"data.test_split": "train[:9]"}, "photos train.:9. has images of photos"),
        ("unpaired", {"evaluate.images": 1}, "1 image of photos .* --config.evaluate.images=0"),
        (
            "unpaired",
            {"data.second": "folder:/x"},
            r"of the first, and leaves folder:/x aside: .*data.form= \(empty",
        ),
        ("unpaired", {"data.form": ""}, "neither a form nor both second and second_test"),
        ("unpaired", {"data.first_split": "train[:1]"}, "has one image, of which no two sets"),
        ("unpaired", {"norm": "layer"}, "config.norm='layer' is not one of instance, none"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(name, changes, message, tmp_path):
    with pytest.raises(harness.UsageError, match=message):
        harness.execute(MODULES[name].EXPERIMENT, tiny(name, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The waveform, text-to-image and unpaired-translation experiments, and their shared runner."""

import math
import os
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from reports import COST, read_figures, read_report, values

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
from experiments.runner import Comparison, Evaluation, Run, Training
from kd_jax import data as kd_data
from kd_jax.core.files import write_json
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs
from kd_jax.core.setup import Teacher
from kd_jax.data import captions, tones
from kd_jax.report.columns import Column
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
    figures = read_figures(workdir)
    assert list(figures) == [*baselines, "teacher", "from_scratch", "distilled"]
    for own in figures.values():
        assert set(own) - COST - {"gap", "images"} == names
        assert all(math.isfinite(own[name]["value"]) for name in names)
    for picture in ("examples.png", "curves.png"):
        with Image.open(workdir / picture) as opened:
            assert opened.width > 100
    assert terms <= set(read_jsonl(workdir / "seed0/distilled/metrics.jsonl")[0])
    tracked = next(iter(MODULES[name].build(tiny(name)).curves))
    assert any(tracked in row for row in read_jsonl(workdir / "seed0/from_scratch/metrics.jsonl"))
    from_scratch = set(read_jsonl(workdir / "seed0/from_scratch/metrics.jsonl")[0])
    assert not {"g/pixel", "g/response"} & from_scratch
    loaded, _ = checkpoint.load_network(workdir / "seed0/from_scratch/best")
    assert loaded.network.module is not None
    parameters = values(workdir, "parameters")
    assert parameters["distilled"] < parameters["teacher"]
    harness.execute(MODULES[name].EXPERIMENT, tiny(name), workdir)  # all trainings are finished
    for metric in names:
        again = values(workdir, metric)
        assert again == {network: own[metric]["value"] for network, own in figures.items()}


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
    trained_on = np.concatenate([next(task.teacher.batches(seed))["wave"] for seed in range(4)])
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
    about = read_report(tmp_path / "run")["tables"][0]["about"]
    assert "3 held-out images of each set" in about
    own = read_figures(tmp_path / "run")["teacher"]
    assert set(own) - COST == {"frechet_second", "frechet_first"}
    tracked = next(iter(unpaired.build(config).curves))
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


# A comparison without networks: a "training" returns its name's number, which is its prediction.

NUMBERS = {"teacher": 2.0, "from_scratch": 4.0, "distilled": 3.0}
CONFIG = {
    "seeds": (0, 1),
    "batch_size": 2,
    "mesh": {"data": 1, "model": 1},
    "run": harness.run_settings() | {"tensorboard": False},
    "evaluate": {"draws": 2},
    "log_every": 2,
    "evaluate_every": 2,
    "checkpoint_every": 2,
}


def fake_evaluation(predict=None):
    def draw(file, rows):
        Image.new("L", (120, 8 * len(rows))).save(file)

    def predict_number(network):
        return lambda variables, inputs: variables["params"]["x"] + inputs[0]

    return Evaluation(
        inputs=Inputs((np.zeros(3, np.float32),)),
        metrics=[Column("error", "error", digits=1)],
        compute=lambda predictions: {"error": float(predictions[0])},
        compute_validation=lambda predictions: {},
        baselines={"rule": np.full(3, 5.0, np.float32)},
        description="three examples",
        notes=["Lower is better."],
        shown=np.array([0, 2]),
        draw=draw,
        predict=predict or predict_number,
        draws=[(np.full(3, 1.0, np.float32),)],
    )


def fake_comparison(**evaluation):
    network = Network(
        lambda key, x: {"params": {"x": np.float32(0)}},
        lambda variables, x, **_: (x + variables["params"]["x"], {}, variables),
    )
    teacher, *students = (
        Training(name, network, lambda teacher, seed: None, lambda seed: None, 4, 10)
        for name in NUMBERS
    )
    return Comparison(
        title="Numbers",
        task=None,
        teacher=teacher,
        students=students,
        evaluation=lambda: fake_evaluation(**evaluation),
        curves={},
        mesh=None,
    )


@pytest.fixture
def trained(monkeypatch):
    """The folders of trainings that ran, in order; none runs for real."""
    folders = []

    def train(directory, *args, name, seed, **kwargs):
        folders.append(name)
        number = NUMBERS[directory.name] + (seed if directory.name == "distilled" else 0)
        return Teacher({"params": {"x": np.float32(number)}})

    monkeypatch.setattr(runner, "train", train)
    return folders


def test_each_training_runs_once_and_the_report_has_its_figures(tmp_path, trained, capsys):
    config = ConfigDict(CONFIG).lock()
    runner.main(config, fake_comparison(), tmp_path)
    order = [f"seed{seed}/{name}" for seed in (0, 1) for name in NUMBERS]
    assert trained == order
    # Means over two draws, whose inputs are 0 and 1; over seeds, the deviation of 3.5 and 4.5.
    expected = {"rule": 5.0, "teacher": 2.5, "from_scratch": 4.5, "distilled": 4.0}
    assert values(tmp_path, "error") == expected
    figures = read_figures(tmp_path)
    assert figures["distilled"]["error"]["values"] == [3.5, 4.5]
    assert figures["distilled"]["error"]["deviation"] == pytest.approx(math.sqrt(0.5))
    assert figures["distilled"]["gap"]["values"] == [0.5, 0.0]  # (4.5 - 3.5) / (4.5 - 2.5)
    assert "gap" not in figures["from_scratch"]
    assert figures["teacher"]["images"]["value"] == 10
    report = read_report(tmp_path)
    assert [line.partition(":")[0] for line in report["summary"][1:]] == [
        "teacher **beats** rule",
        "distilled with 10 images **beats** from_scratch",
        "distilled with 10 images **beats** rule",
    ]
    assert "It closes **25%** of the gap" in report["summary"][2]
    assert "mean ± standard deviation over 2 seeds" in report["tables"][0]["about"]
    assert f"written: {tmp_path / 'report.md'}" in capsys.readouterr().out
    assert np.load(tmp_path / "seed1/distilled/shown.npy").tolist() == [4.0, 4.0]

    runner.main(config, fake_comparison(predict=None), tmp_path)
    assert trained == order  # nothing ran again
    assert values(tmp_path, "error") == expected


def test_results_of_other_settings_are_not_reused(tmp_path, trained):
    runner.main(ConfigDict(CONFIG), fake_comparison(), tmp_path)
    changed = CONFIG | {"evaluate": {"draws": 3}, "seeds": (0,)}
    runner.main(ConfigDict(changed), fake_comparison(), tmp_path)
    assert trained[6:] == [f"seed0/{name}" for name in NUMBERS]
    runner.main(ConfigDict(changed | {"seeds": (0, 1)}), fake_comparison(), tmp_path)
    assert trained[9:] == [f"seed1/{name}" for name in NUMBERS]  # a seed that is added


def test_one_seed_has_the_spread_over_draws_and_no_verdict(tmp_path, trained):
    runner.main(ConfigDict(CONFIG | {"seeds": (3,)}), fake_comparison(), tmp_path)
    assert read_figures(tmp_path)["teacher"]["error"]["deviation"] == pytest.approx(math.sqrt(0.5))
    report = read_report(tmp_path)
    assert "a single seed, ± standard deviation over 2 draws" in report["tables"][0]["about"]
    assert all("decides nothing" in line for line in report["summary"][1:])
    assert not any("**beats**" in line for line in report["summary"])


def test_changed_settings_are_in_the_report(tmp_path, trained):
    folder = tmp_path / "seed0" / "distilled"
    folder.mkdir(parents=True)
    write_json(folder / "changes.json", {"changes": ["until step 2: rate is 1 there, 2 here"]})
    runner.main(ConfigDict(CONFIG | {"seeds": (0,)}), fake_comparison(), tmp_path)
    assert (
        "**Settings changed on the way:** seed0/distilled: until step 2: rate is 1 there, 2 here."
        in read_report(tmp_path)["summary"]
    )


def test_a_teacher_from_a_file_is_evaluated_and_not_trained(tmp_path, trained):
    comparison = fake_comparison()._replace(
        teacher_variables=Teacher({"params": {"x": np.float32(1.0)}})
    )
    runner.main(ConfigDict(CONFIG | {"seeds": (0,)}), comparison, tmp_path)
    assert trained == ["seed0/from_scratch", "seed0/distilled"]
    assert values(tmp_path, "error")["teacher"] == 1.5


def test_the_steps_ahead_are_those_of_unfinished_trainings(tmp_path, trained):
    comparison = fake_comparison()
    run = Run(ConfigDict(CONFIG), comparison, tmp_path)
    trainings = [comparison.teacher, *comparison.students]
    run.pending = [(training, 0) for training in trainings]
    assert [run.steps_ahead(training, 0) for training in trainings] == [8, 4, 0]
    run.result(trainings[2], 0)
    assert [run.steps_ahead(training, 0) for training in trainings] == [4, 0, 0]


def test_a_failing_picture_does_not_lose_the_results(tmp_path, trained):
    def fails(file, rows):
        raise OSError("no picture")

    comparison = fake_comparison()
    broken = comparison._replace(evaluation=lambda: fake_evaluation()._replace(draw=fails))
    with pytest.raises(OSError, match="no picture"):
        runner.main(ConfigDict(CONFIG), broken, tmp_path)
    runner.main(ConfigDict(CONFIG), comparison, tmp_path)
    assert len(trained) == 6


def test_one_set_of_predictions_is_in_memory_at_a_time(tmp_path, trained):
    references = []

    def predict(network):
        def predictions(variables, inputs):
            assert not any(reference() is not None for reference in references)
            result = np.full(3, 1.0, np.float32)
            references.append(weakref.ref(result))
            return result

        return predictions

    runner.main(ConfigDict(CONFIG), fake_comparison(predict=predict), tmp_path)
    assert len(references) == 2 * 6  # draws, and trainings


@pytest.mark.parametrize("module", [unpaired, superres, inpainting, translation])
def test_the_full_evaluation_is_limited(module):
    assert module.get_config("full").evaluate.images == 1000


def test_unpaired_inputs_are_in_both_directions():
    task = unpaired.build(tiny("unpaired"))
    batch = next(task.teacher.batches(0))
    assert set(batch) == {"first", "second"}
    inputs = task.task(jax.random.key(0), batch)
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
        ("text_to_image", {"r1": -1.0}, "config.r1=-1.0 "),
        ("text_to_image", {"data.test_split": "train[:80%]"}, "equals config.data.test_split"),
        ("text_to_image", {"evaluate.repeat": 0}, "config.evaluate.repeat=0"),
        ("text_to_image", {"batch_size": 1500}, "fewer than one batch"),
        ("unpaired", {"cycle": -1.0}, "config.cycle=-1.0 "),
        ("unpaired", {"data.form": "drawn"}, "data.form='drawn' is not one of sepia, edges or ''"),
        ("unpaired", {"data.channels": 1}, "sepia' needs 3 channels, not 1"),
        ("unpaired", {"data.sigma": 0.0}, "config.data.sigma=0.0"),
        ("unpaired", {"data.size": 18}, "sides are multiples of 4"),
        ("unpaired", {"batch_size": 5000}, "fewer than one batch"),
        ("unpaired", {"discriminator.layers": 6}, "whose sides are at least"),
        ("unpaired", {"data.first": "folder:/nowhere"}, "/nowhere"),
        ("unpaired", {"dtype": "float16"}, "neither float32 nor bfloat16"),
        ("waveform", {"teacher.steps": 0}, "config.teacher.steps=0 "),
        ("waveform", {"student.steps": -1}, "config.student.steps=-1 "),
        ("waveform", {"teacher.rate": 0.0}, "config.teacher.rate=0.0 "),
        ("waveform", {"student.rate": -1e-3}, "config.student.rate=-0.001 "),
        ("waveform", {"discriminator.rate": 0.0}, "config.discriminator.rate=0.0 "),
        ("waveform", {"ema": 1.0}, r"config.ema=1.0 "),
        ("waveform", {"ema": -0.1}, r"config.ema=-0.1 "),
        ("waveform", {"final_rate": 1.5}, r"config.final_rate=1.5 "),
        ("waveform", {"batch_size": 0}, "config.batch_size=0 "),
        ("waveform", {"seeds": (0, -1)}, r"config.seeds=-1 "),
        ("waveform", {"distilled.truth": -1.0}, "config.distilled.truth=-1.0 "),
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

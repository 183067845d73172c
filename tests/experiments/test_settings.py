"""Settings out of their ranges are refused by name, before anything is written."""

import importlib
import math

import pytest

from experiments import harness, settings

NAMES = (
    "biggan", "classifier", "digits", "inpainting", "objectives", "stylegan2", "superres",
    "text_to_image", "translation", "unpaired", "waveform",
)  # fmt: skip
MODULES = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_every_preset_has_a_range_and_is_within_it(name):
    for preset in MODULES[name].EXPERIMENT.presets:
        config = MODULES[name].get_config(preset)
        paths = [path for path, _ in settings.numbers(config)]
        assert len(paths) > 10
        assert [p for p in paths if p.rpartition(".")[2] not in settings.RANGES] == []
        settings.check_ranges(config)


def refused(name, path, value, tmp_path):
    """The message for a preset with one changed setting; nothing is written."""
    config = MODULES[name].get_config("tiny")
    with config.unlocked():
        config.update_from_flattened_dict({path: value})
    with pytest.raises(harness.UsageError) as error:
        harness.execute(MODULES[name].EXPERIMENT, config.lock(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("digits", "batch_size", 0),
        ("digits", "batch_size", -4),
        ("digits", "teacher.steps", 0),
        ("digits", "latent", 0),
        ("digits", "regimes.all.fraction", 0.0),
        ("digits", "ema", 1.5),
        ("digits", "ema", -0.1),
        ("digits", "ema", math.nan),
        ("digits", "teacher.g_rate", -1.0),
        ("digits", "teacher.g_rate", math.inf),
        ("digits", "r1.every", 0),
        ("digits", "seeds", (0, -1)),
        ("digits", "seeds", (1, 1)),
        ("digits", "regimes.scarce.distilled.teacher_images", 1.1),
        ("stylegan2", "rate", 0.0),
        ("biggan", "rates.discriminator", -2e-4),
        ("superres", "student.steps", -1),
        ("inpainting", "student.dilations", (2, 0)),
        ("unpaired", "cycle", -1.0),
        ("waveform", "data.length", 0),
        ("classifier", "distilled.temperature", 0.0),
        ("objectives", "tuning.strengths", (1.0, -1.0)),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_named(name, path, value, tmp_path):
    message = refused(name, path, value, tmp_path)
    assert message.startswith(f"config.{path}=")

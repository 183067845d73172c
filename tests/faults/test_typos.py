"""Random wrong settings are all rejected before anything is compiled."""

import importlib
import random

import pytest
from absl import flags
from ml_collections import ConfigDict
from selection import quick

from experiments import harness

EXPERIMENTS = (
    "digits", "objectives", "stylegan2", "biggan", "superres", "inpainting", "translation",
    "unpaired", "text_to_image", "classifier", "waveform",
)  # fmt: skip
CASES = 500


def leaves(config, path="config"):
    """The paths and values of all settings."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def misspell(rng, word):
    """A word with one letter removed, doubled or replaced, or swapped with the next one."""
    position = rng.randrange(len(word))
    kind = rng.randrange(4)
    if kind == 0 and len(word) > 1:
        return word[:position] + word[position + 1 :]
    if kind == 1:
        return word[:position] + word[position] + word[position:]
    if kind == 2:
        return word[:position] + rng.choice("qxz") + word[position + 1 :]
    return word[:position] + word[position : position + 2][::-1] + word[position + 2 :]


WRONG = {
    bool: ["maybe", "2", "yess", ""],
    int: ["three", "1.5", "", "1e3", "(1,)"],
    float: ["fast", "", "1,5", "0.1.2"],
    tuple: ["(1,", "one", "{1: 2}"],
}


def wrong_type(rng, value):
    return rng.choice(WRONG[type(value)]) if type(value) in WRONG else None


def case(number):
    """An experiment, a wrong flag, and the name it was misspelt from (None for a wrong value)."""
    rng = random.Random(number)
    while True:
        name = rng.choice(EXPERIMENTS)
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        config = experiment.get_config(rng.choice(list(experiment.presets)))
        path, value = rng.choice(list(leaves(config)))
        if number % 2:
            *parents, last = path.split(".")[1:]
            node = config
            for parent in parents:
                node = node[parent]
            wrong = misspell(rng, last)
            if wrong and wrong not in node:
                return experiment, f"--{'.'.join(['config', *parents, wrong])}={value}", last
        elif (wrong_value := wrong_type(rng, value)) is not None:
            return experiment, f"--{path}={wrong_value}", None


@pytest.mark.parametrize("first", quick(range(10), 3))
def test_wrong_settings_are_rejected(first):
    suggested = near = 0
    for number in range(first, CASES, 10):
        experiment, flag, correct = case(number)
        with pytest.raises(harness.UsageError) as raised:
            harness.parse(experiment, ["program", "--workdir=DIR", flag], flags.FlagValues())
        error = str(raised.value)
        assert flag.partition("=")[0].rpartition(".")[2] in error, (flag, error)
        if correct is not None:
            near += 1
            suggested += f"did you mean {correct}?" in error
    assert suggested >= 0.9 * near  # names of two or three letters may have no similar name

"""Wrong settings, made at random of the right ones, are all refused before anything is compiled."""

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
    """The paths of all settings, and their values."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def misspelt(draw, word):
    """A word with one letter lost, doubled, exchanged for another or for its neighbour."""
    place = draw.randrange(len(word))
    kind = draw.randrange(4)
    if kind == 0 and len(word) > 1:
        return word[:place] + word[place + 1 :]
    if kind == 1:
        return word[:place] + word[place] + word[place:]
    if kind == 2:
        return word[:place] + draw.choice("qxz") + word[place + 1 :]
    return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


WRONG = {
    bool: ["maybe", "2", "yess", ""],
    int: ["three", "1.5", "", "1e3", "(1,)"],
    float: ["fast", "", "1,5", "0.1.2"],
    tuple: ["(1,", "one", "{1: 2}"],
}


def wrong_type(draw, value):
    return draw.choice(WRONG[type(value)]) if type(value) in WRONG else None


def case(number):
    """An experiment and the flag with which it is asked for nonsense; what is near, if anything."""
    draw = random.Random(number)
    while True:
        name = draw.choice(EXPERIMENTS)
        experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
        config = experiment.get_config(draw.choice(list(experiment.presets)))
        path, value = draw.choice(list(leaves(config)))
        if number % 2:
            *parents, last = path.split(".")[1:]
            node = config
            for parent in parents:
                node = node[parent]
            wrong = misspelt(draw, last)
            if wrong and wrong not in node:
                return experiment, f"--{'.'.join(['config', *parents, wrong])}={value}", last
        elif (given := wrong_type(draw, value)) is not None:
            return experiment, f"--{path}={given}", None


@pytest.mark.parametrize("first", quick(range(10), 3))
def test_they_are_refused(first):
    suggested = near = 0
    for number in range(first, CASES, 10):
        experiment, flag, right = case(number)
        with pytest.raises(harness.UsageError) as refused:
            harness.parse(experiment, ["program", "--workdir=DIR", flag], flags.FlagValues())
        error = str(refused.value)
        assert flag.partition("=")[0].rpartition(".")[2] in error, (flag, error)
        if right is not None:
            near += 1
            suggested += f"did you mean {right}?" in error
    assert suggested >= 0.9 * near  # of names of two or three letters nothing may be near

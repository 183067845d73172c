"""A checkpoint of each experiment's teacher through every command.

The checkpoints have the descriptions that the experiments' trainings write, and random weights.
"""

import importlib

import commands
import jax
import numpy as np
import pytest

import kd_jax as kd
from experiments import harness
from kd_jax.core.architecture import rebuild
from kd_jax.train.checkpoint import save_generator

PARTS = {"unpaired": "first"}

# The networks of experiments/objectives.py are those of digits.
GENERATORS = (
    "digits", "stylegan2", "biggan", "superres", "inpainting", "translation", "unpaired",
)  # fmt: skip


def write_checkpoint(name, folder):
    """A training's folder with the teacher of the tiny preset, not trained."""
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    config = experiment.get_config("tiny").lock()
    plans, batch = experiment.plan(config, experiment.build(config))
    described = plans["teacher"].describe(batch)
    architecture = rebuild(described)
    inputs = [np.zeros(x.shape, x.dtype) for x in architecture.inputs]
    variables = jax.jit(architecture.network.init)(jax.random.key(0), *inputs)
    save_generator(folder / "checkpoints", variables, harness.persistent_config(config), described)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATORS)
def test_commands_take_the_teacher_of_an_experiment(name, tmp_path):
    part = PARTS.get(name)
    folder = write_checkpoint(name, tmp_path / "teacher")
    spec = f"{folder}#{part}" if part else folder
    model = kd.load(folder, part)
    figures = commands.check_commands(spec, model, tmp_path)
    assert ("target" in figures["student"]) == (name in ("superres", "inpainting"))
    if model.interface.takes_images:
        line = commands.refused("evaluate", spec, "--data=photos", "--out", tmp_path / "report")
        assert "takes images" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unpaired"])
def test_two_directions_need_a_part(name, tmp_path):
    folder = write_checkpoint(name, tmp_path / "teacher")
    for arguments in (
        ["inspect", folder],
        ["distill", folder, "--out", tmp_path / "out"],
        ["sample", folder, "--images=photos", "--out", tmp_path / "s.png"],
        ["evaluate", folder, "--data=photos", "--out", tmp_path / "out"],
    ):
        line = commands.refused(*arguments)
        assert "first or second" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [("text_to_image", "tokens"), ("classifier", "[10]"), ("waveform", "[256, 1]")],
)
def test_networks_that_cannot_be_sampled_are_described_and_refused(name, reason, tmp_path):
    folder = write_checkpoint(name, tmp_path / "teacher")
    assert reason in commands.run("inspect", folder, "--out", tmp_path / "inspected")
    assert (tmp_path / "inspected" / "checkpoint").exists()
    assert not (tmp_path / "inspected" / "samples.png").exists()
    for arguments in (
        ["distill", folder, "--out", tmp_path / "out"],
        ["sample", folder, "--out", tmp_path / "s.png"],
        ["evaluate", folder, "--data=digits", "--out", tmp_path / "out"],
    ):
        assert reason in commands.refused(*arguments)
    assert not (tmp_path / "out").exists()

"""Every published generator through every command: inspect, distill, sample, evaluate."""

import commands
import published
import pytest

import kd_jax as kd

# Golden files of training states have an averaged and a raw generator: the raw one is named.
PARTS = {"r3gan_loss_a": "#G", "stylegan2_loss_a": "#G"}


@pytest.mark.slow
@pytest.mark.parametrize("name", published.generators())
def test_commands_take_every_published_generator(name, tmp_path):
    path = published.write(name, tmp_path)
    model = kd.load(path, PARTS.get(name, "")[1:] or None)
    size = 256 if name.startswith("unet") else 32
    commands.check_commands(f"{path}{PARTS.get(name, '')}", model, tmp_path, size)

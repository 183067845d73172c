"""The command `kd-jax`: its subcommands, and what a user without the extras sees."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import kd_jax as kd
from kd_jax import cli
from kd_jax.core.architecture import describe
from kd_jax.train.checkpoint import save_generator

ROOT = Path(__file__).parents[2]


def test_the_usage_lists_the_subcommands(capsys):
    for arguments in ([], ["--help"]):
        cli.main(arguments)
        out = capsys.readouterr().out
        assert out.startswith("usage: kd-jax COMMAND")
        assert all(name in out for name in cli.COMMANDS)


def test_an_unknown_subcommand_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evalute"])
    assert capsys.readouterr().err.endswith("error: no command 'evalute'\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert f"usage: kd-jax {name}" in capsys.readouterr().out


def test_a_missing_package_is_named_in_one_line(tmp_path):
    """As in an installation without the extras: Pillow and TFDS cannot be imported."""
    network = kd.models.mlp.generator(16, 4, depth=1)
    z = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 3)))
    save_generator(tmp_path, variables, {}, describe(network, z))
    code = (
        "import sys; sys.modules['PIL'] = sys.modules['tensorflow_datasets'] = None\n"
        f"from kd_jax import cli; cli.main(['evaluate', 'a={tmp_path}', '--data', 'digits'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "kd_jax[evaluate]" in line

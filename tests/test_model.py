"""`kd_jax.load`: the same record from files, trainings and checkpoint folders."""

import pydoc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax as kd
from kd_jax.core.architecture import describe
from kd_jax.train.checkpoint import CheckpointError, save_generator

Z = jax.ShapeDtypeStruct((1, 8), jnp.float32)
NETWORK = kd.models.mlp.generator(4, 4, depth=1)


def variables(seed):
    return NETWORK.init(jax.random.key(seed), jnp.zeros((1, 8)))


def save(folder, seed, network=NETWORK):
    description = describe(network, Z)
    save_generator(folder, variables(seed), {"width": seed}, description)


def assert_loaded(model, seed):
    jax.tree.map(np.testing.assert_array_equal, dict(model.variables), dict(variables(seed)))
    images, _, _ = model.network.apply(model.variables, jnp.ones((2, 8)))
    np.testing.assert_array_equal(images, NETWORK.apply(variables(seed), jnp.ones((2, 8)))[0])


def test_the_best_of_a_training_is_loaded(tmp_path):
    run = tmp_path / "seed0" / "teacher"
    save(run / "checkpoints", 1)
    assert_loaded(kd.load(run), 1)
    save(run / "best", 2)
    model = kd.load(run)
    assert_loaded(model, 2)
    assert (model.inputs, model.classes, model.generates) == ((Z,), 0, True)
    assert model.info["configuration"] == {"width": 2}
    assert_loaded(kd.load(run, latest=True), 1)
    assert_loaded(kd.load(run / "checkpoints"), 1)
    with pytest.raises(ValueError, match=r"several trainings; .*: seed0/teacher$"):
        kd.load(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none is neither a file nor a folder"):
        kd.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        kd.load(tmp_path)


def test_help_fits_a_screen():
    text = pydoc.plain(pydoc.render_doc(kd))
    assert len(text.splitlines()) < 60
    assert all(name in text for name in ("Setup", "init_state", "make_train_step", "Teacher"))


def test_the_attributes_of_the_package_are_there_at_first_use():
    for name in ("checkpoint", "data", "evaluate", "metrics", "fit", "load"):
        assert name in dir(kd)
        assert getattr(kd, name)
    assert kd.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kd.nothing


def test_a_model_is_printed_in_a_line(tmp_path):
    save(tmp_path, 1)
    text = repr(kd.load(tmp_path))
    assert "\n" not in text
    assert len(text) < 500 + len(str(tmp_path))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables(1)))
    assert f"{count:,} numbers" in text
    assert "float32[1, 8]" in text

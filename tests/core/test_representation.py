"""Public records are printed in a short line: without addresses of functions and array contents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import kd_jax as kd
from kd_jax.core.representation import short
from kd_jax.data.origin import SourceWithOrigin

NETWORK = kd.models.mlp.generator(4, 4, depth=1)
VARIABLES = {"params": {"a": jnp.zeros((30, 40)), "b": jnp.zeros(7)}}


def loss(forward):
    return forward.student.output.mean(axis=(1, 2, 3))


def check(record, *parts, length=400):
    text = repr(record)
    assert "\n" not in text
    assert " at 0x" not in text
    assert len(text) < length, text
    for part in parts:
        assert part in text, text


def test_networks_are_their_module_or_their_factory():
    check(NETWORK, "Network(", "Generator(", "widths=(4,)", length=200)
    plain = kd.Network(init=loss, apply=functools.partial(loss, 1))
    assert repr(plain) == "Network(init=loss, apply=loss)"


def test_variables_are_their_size():
    assert short(VARIABLES) == "<2 arrays of 1,207 numbers>"
    assert repr(kd.Teacher(VARIABLES)) == "Teacher(generator=<2 arrays of 1,207 numbers>)"


def test_a_setup_names_its_losses_and_networks():
    networks = kd.Networks(NETWORK, teacher=NETWORK)
    losses = kd.PerNetwork({"pixel": (loss, 3.0)})
    setup = kd.Setup(networks, losses, kd.PerNetwork(optax.adam(1e-3)), kd.latents(4))
    check(setup, "pixel: Term(fn=loss, weight=3.0)", "teacher=Network(", length=700)
    batch = {"image": np.zeros((2, 4, 4, 1), np.float32)}
    state = jax.eval_shape(lambda key: kd.init_state(setup, key, batch), jax.random.key(0))
    check(state, "TrainState(", length=1500)


def test_long_dicts_are_their_keys():
    settings = {"one": "x" * 150, "other": "y" * 150}
    assert short(settings) == "<dict of one, other>"
    assert short({"one": 1, "other": [2, "a"]}) == "{one: 1, other: (2, 'a')}"


def test_a_source_is_its_name_size_and_classes():
    source = SourceWithOrigin(
        "folder:pets", (8, 8, 3), 2, "0", 5, loss, loss, classes=("cat", "dog")
    )
    assert repr(source) == "<folder:pets: 5 images 8x8x3, 2 classes>"

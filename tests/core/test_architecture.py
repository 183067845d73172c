"""Descriptions of networks: a JSON round trip gives the same function."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.architecture import describe, rebuild
from kd_jax.core.network import Network, connect, from_linen
from kd_jax.models import (
    biggan,
    biggan_deep,
    dcgan,
    mlp,
    pair,
    stylegan1,
    stylegan2,
    stylegan3,
    superres,
    tinygan,
)

Z = jax.ShapeDtypeStruct((2, 8), jnp.float32)
LABELS = jax.ShapeDtypeStruct((2,), jnp.int32)
STYLE = {"latent": 8, "style": 8, "channel_base": 64, "channel_max": 8}
NETWORKS = {
    "mlp": (mlp.generator(8, 16), (Z,)),
    "dcgan": (dcgan.generator(16, 8, classes=3, dtype=jnp.bfloat16), (Z, LABELS)),
    "stylegan1": (stylegan1.generator(8, **STYLE), (Z,)),
    "stylegan2": (stylegan2.generator(8, classes=3, conv_clamp=256.0, **STYLE), (Z, LABELS)),
    "stylegan3": (stylegan3.generator(16, **STYLE), (Z,)),
    "biggan": (biggan.generator(32, 4, classes=3, shared=4, hierarchical=False), (Z, LABELS)),
    "tinygan": (tinygan.generator(32, 4, classes=3, shared=4), (Z, LABELS)),
}


class Custom(nn.Module):
    """A module that is not in kd_jax."""

    act: object = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x), {}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rebuilt_network_is_the_same_function(name):
    network, inputs = NETWORKS[name]
    description = json.loads(json.dumps(describe(network, *inputs)))
    rebuilt = rebuild(description)
    assert [(x.shape[1:], x.dtype) for x in rebuilt.inputs] == [
        (x.shape[1:], x.dtype) for x in inputs
    ]
    assert rebuilt.classes == (3 if len(inputs) == 2 else 0)
    assert rebuilt.network.module == network.module
    assert (rebuilt.network.mapping is None) == (network.mapping is None)
    shapes = [
        jax.eval_shape(n.init, jax.random.key(0), *inputs) for n in (network, rebuilt.network)
    ]
    assert shapes[0] == shapes[1]


def test_a_rebuilt_network_gives_the_same_output():
    network, (z, labels) = NETWORKS["dcgan"]
    arguments = jax.random.normal(jax.random.key(0), z.shape), jnp.zeros(labels.shape, labels.dtype)
    variables = network.init(jax.random.key(1), *arguments)
    rebuilt = rebuild(describe(network, *arguments)).network
    images = [np.asarray(n.apply(variables, *arguments)[0]) for n in (network, rebuilt)]
    np.testing.assert_array_equal(*images)


def test_a_connected_network_is_described_without_connectors():
    network, inputs = NETWORKS["mlp"]
    student = connect(network, {"hidden0": (2, 16)})
    assert describe(student, *inputs) == describe(network, *inputs)


@pytest.mark.parametrize(
    ("network", "inputs", "former"),
    [
        (
            biggan.gan(32, 4, classes=3).generator,
            NETWORKS["biggan"][1],
            {"models.layers.spectral:SpectralNorm": "models.spectral:SpectralNorm"},
        ),
        (*NETWORKS["stylegan2"], {'"resample_filter": [': '"taps": ['}),
        (
            pair.parallel(superres.srresnet(2, 4, blocks=1), superres.srresnet(2, 4, blocks=1)),
            (jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32),) * 2,
            {"models.pair:Parallel": "models.pair:SideBySide"},
        ),
    ],
    ids=["module", "field", "class"],
)
def test_former_names_in_descriptions_are_known(network, inputs, former):
    text = json.dumps(describe(network, *inputs))
    for new, old in former.items():
        assert new in text
        text = text.replace(new, old)
    assert rebuild(json.loads(text)).network.module == network.module


def test_networks_without_a_description_are_rejected():
    network, inputs = NETWORKS["mlp"]
    with pytest.raises(ValueError, match="neither by from_linen"):
        describe(Network(network.init, network.apply), *inputs)
    with pytest.raises(ValueError, match=r"Custom\.act is a function"):
        describe(from_linen(Custom(act=lambda x: x)), Z)


def test_only_named_packages_are_imported():
    description = describe(from_linen(Custom()), Z)
    with pytest.raises(ValueError, match=r"Custom is not in the packages kd_jax\.models"):
        rebuild(description)
    assert rebuild(description, [__name__]).network.module == Custom()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"class": "os:system", "fields": {}}, "os:system is not in the packages"),
        ({"class": "kd_jax.models_evil:x", "fields": {}}, "not in the packages"),
        ({"class": "kd_jax.models.dcgan:nn", "fields": {}}, "is not a class of"),
        ({"class": "kd_jax.models.dcgan:Network", "fields": {}}, "is not a class of"),
        ({"class": "kd_jax.models.dcgan:generator", "fields": {}}, "is not a class of"),
        ({"class": "kd_jax.models.none:None", "fields": {}}, "not the description"),
        ({"class": "kd_jax.models.mlp:Generator", "fields": {"wide": 3}}, "not the description"),
        (
            {"class": "kd_jax.models.layers.spectral:SpectralNorm", "fields": {}},
            "of a SpectralNorm",
        ),
        ([1, 2], "but of a tuple"),
        ({"fields": {}}, "not the description"),
    ],
)
def test_other_descriptions_are_rejected(module, message):
    description = {"module": module, "style": False, "inputs": [], "classes": 0}
    with pytest.raises(ValueError, match=message) as caught:
        rebuild(description)
    assert "\n" not in str(caught.value)


def test_biggan_deep_round_trips_its_named_tuples():
    network = biggan_deep.generator(32, 4, classes=3, shared=4)
    inputs = (Z, LABELS)
    assert rebuild(describe(network, *inputs)).network.module == network.module

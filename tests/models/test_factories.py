"""`make_gan`, with a pair of small factories written here as the oracle."""

import inspect
import pickle
import pydoc
from functools import partial

import pytest
from families import FAMILIES

import kd_jax as kd
from kd_jax import models
from kd_jax.models import dcgan, mlp, resnet, stylegan2
from kd_jax.models.factories import make_gan


def generator(size: int, width: int = 4, *, channels: int = 3, norm: str = "batch") -> dict:
    return {"size": size, "width": width, "channels": channels, "norm": norm}


def discriminator(
    width: int = 4, scale: float = 2.0, *, size: int, taps: tuple = (), norm: str = "spectral"
) -> dict:
    return {"width": width, "scale": scale, "size": size, "taps": taps, "norm": norm}


REASON = "batch, then spectral"
gan = make_gan(generator, discriminator, fixed={"norm": REASON})


def test_each_factory_receives_its_arguments_and_keeps_its_other_defaults():
    first = {"size": 8, "width": 5, "channels": 3, "norm": "batch"}
    second = {"size": 8, "width": 5, "scale": 2.0, "taps": (), "norm": "spectral"}
    assert gan(8, 5) == kd.PerNetwork(first, second)
    assert gan(width=5, size=8, channels=1) == kd.PerNetwork({**first, "channels": 1}, second)
    changed = {**second, "scale": 3.0, "taps": ("a",)}
    assert gan(8, 5, 3.0, taps=("a",)) == kd.PerNetwork(first, changed)
    assert isinstance(gan(8), kd.PerNetwork)


def test_the_signature_is_that_of_the_generator_then_that_of_the_discriminator():
    def expected(
        size: int, width: int = 4, scale: float = 2.0, *, channels: int = 3, taps: tuple = ()
    ) -> kd.PerNetwork: ...

    assert inspect.signature(gan) == inspect.signature(expected)
    assert inspect.get_annotations(gan) == inspect.get_annotations(expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gan(8, depth=3), ["depth"]),
        (lambda: gan(seize=8), ["seize"]),
        (lambda: gan(8, norm="batch"), ["norm", REASON]),
        (lambda: gan(), ["'size'"]),
        (lambda: gan(8, 4, 2.0, 3), ["positional"]),
        (lambda: gan(8, size=8), ["'size'"]),
    ],
)
def test_an_unfit_argument_raises_with_those_that_fit(call, words):
    with pytest.raises(TypeError) as error:
        call()
    for word in (f"{__name__}.gan", *words, "size, width, scale, channels, taps"):
        assert word in str(error.value)


def test_different_defaults_are_refused():
    with pytest.raises(ValueError, match=r"norm: str = 'batch'.*norm: str = 'spectral'"):
        make_gan(generator, discriminator)
    with pytest.raises(ValueError, match="depth"):
        make_gan(generator, discriminator, fixed={"norm": REASON, "depth": "0"})


def test_it_is_a_documented_function_of_its_module():
    assert pickle.loads(pickle.dumps(gan)) is gan
    page = pydoc.plain(pydoc.render_doc(gan))
    for text in (f"{__name__}.generator", f"{__name__}.discriminator", REASON, "`channels`"):
        assert text in page


def test_the_width_of_a_perceptron_is_shared_though_only_the_generator_has_a_size():
    pair = mlp.gan(4, 7, depth=1)
    assert (pair.generator.module.size, pair.generator.module.widths) == (4, (7,))
    assert pair.discriminator.module.widths == (7,)


def test_families_whose_networks_differ():
    pair = stylegan2.gan(8, latent=6, channel_base=64, channel_max=8)
    assert (pair.generator.module.latent, pair.generator.module.style) == (6, 6)
    assert pair.generator.module.architecture == "skip"
    assert pair.discriminator.module.architecture == "resnet"
    pair = resnet.gan(32, 2)
    assert pair.generator.module.spectral is None
    assert pair.discriminator.module.spectral is not None
    pair = dcgan.gan(16, 2, minibatch_stddev=True, channels=1)
    assert (pair.generator.module.channels, pair.discriminator.module.minibatch_stddev) == (1, True)


def test_the_small_families_contain_every_factory():
    """An architecture that `families.FAMILIES` lacks would miss the tests that run over it."""
    factories = {
        function
        for module in (getattr(models, name) for name in models.__all__)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function.__module__ == module.__name__
        and inspect.signature(function).return_annotation is kd.Network
        and not any(
            p.annotation is kd.Network for p in inspect.signature(function).parameters.values()
        )
    }
    called_by_others = {models.biggan_deep.generator_of_blocks}
    variants = {models.inception.torchvision}
    partials = (factory for factory, _ in FAMILIES.values() if isinstance(factory, partial))
    assert factories - called_by_others - variants == {factory.func for factory in partials}

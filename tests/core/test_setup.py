"""Setups: what is accepted, and one clear line for what is not, before anything is compiled."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd_jax as kd
from kd_jax.core.setup import as_terms, ema_decay

LATENT, BATCH, SIZE = 3, 4, 8
PAIR = kd.models.mlp.gan(SIZE, 4, depth=1)
TEACHER = kd.models.mlp.gan(SIZE, 6, depth=1).generator
IMAGES = {"image": np.linspace(-1, 1, BATCH * SIZE * SIZE, dtype=np.float32)}
IMAGES = {"image": IMAGES["image"].reshape(BATCH, SIZE, SIZE, 1)}
ADAM = optax.adam(1e-3)


def adversarial(f):
    return jax.nn.softplus(-f.discriminator.fake_scores)


def real(f):
    return jax.nn.softplus(-f.discriminator.real_scores)


def pixel(f):
    return jnp.abs(f.student.output - f.teacher.output).mean(axis=(1, 2, 3))


def setup(**changes):
    parts = {
        "networks": kd.Networks(PAIR.generator, PAIR.discriminator, teacher=TEACHER),
        "losses": kd.PerNetwork({"adversarial": adversarial, "pixel": pixel}, {"real": real}),
        "optimizers": kd.PerNetwork(ADAM, ADAM),
        "task": kd.latents(LATENT),
    }
    return kd.Setup(**{**parts, **changes})


@pytest.fixture(scope="module")
def teacher():
    return kd.Teacher(TEACHER.init(jax.random.key(1), jnp.zeros((1, LATENT))))


@pytest.fixture(scope="module")
def state():
    return kd.init_state(setup(), jax.random.key(0), IMAGES)


def trace(state, teacher, batch=IMAGES, **changes):
    return jax.eval_shape(kd.make_train_step(setup(**changes)), state, teacher, batch)


def trace_losses(teacher, generator_losses, discriminator_losses=None, **changes):
    """Traces a step with these losses from a state of their own."""
    losses = kd.PerNetwork(generator_losses, discriminator_losses)
    own = setup(losses=losses, **changes)
    state = jax.eval_shape(lambda: kd.init_state(own, jax.random.key(0), IMAGES))
    return jax.eval_shape(kd.make_train_step(own), state, teacher, IMAGES)


def test_losses_are_functions_with_or_without_a_weight_or_terms(teacher):
    losses = kd.PerNetwork(
        {"a": adversarial, "b": (adversarial, 2.0), "c": kd.Term(adversarial, 3.0)}, {"real": real}
    )
    own = setup(losses=losses).losses.generator
    assert [term.weight for term in own.values()] == [1.0, 2.0, 3.0]
    assert {term.fn for term in own.values()} == {adversarial}
    own = setup(losses=losses)
    state = kd.init_state(own, jax.random.key(0), IMAGES)
    _, metrics = jax.jit(kd.make_train_step(own))(state, teacher, IMAGES)
    np.testing.assert_allclose(metrics["g/total"], 6 * metrics["g/a"], rtol=1e-6)


def test_a_setup_is_frozen_and_can_be_replaced():
    original = setup()
    with pytest.raises(dataclasses.FrozenInstanceError):
        original.ema = 0.5
    changed = dataclasses.replace(original, ema=0.5)
    assert (original.ema, changed.ema) == (0.999, 0.5)
    assert changed.losses == original.losses


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_the_average_is_reached_gradually(step, decay):
    assert float(ema_decay(0.999, jnp.int32(step))) == pytest.approx(decay, abs=1e-6)
    assert ema_decay(lambda t: 0.25, jnp.int32(step)) == 0.25


def test_after_a_hundred_steps_the_average_has_left_its_first_guess():
    """For a weight that moves by 1 a step, the average lags by a tenth of the way, not by all."""
    average, weight = 0.0, 0.0
    for step in range(1000):
        weight += 1.0
        decay = float(ema_decay(0.999, jnp.int32(step)))
        average = decay * average + (1 - decay) * weight
    assert 0.85 < average / weight < 1.0


class Plain(nn.Module):
    @nn.compact
    def __call__(self, z):
        return nn.Dense(SIZE * SIZE)(z).reshape(-1, SIZE, SIZE, 1)


class Model:
    pass


MISUSE = {
    "a raw module": ({"networks": kd.Networks(Plain())}, r"networks\.generator.*Plain.*from_linen"),
    "no networks": ({"networks": PAIR.generator}, r"networks is a Network.*kd_jax\.Networks"),
    "an optimizer": ({"optimizers": ADAM}, r"optimizers.*kd_jax\.PerNetwork"),
    "one optimizer": ({"optimizers": kd.PerNetwork(ADAM)}, r"optimizers\.discriminator.*NoneType"),
    "a list": ({"losses": kd.PerNetwork([adversarial])}, r"losses\.generator is a list.*dict"),
    "a dict of losses": ({"losses": {"pixel": pixel}}, r"losses is a dict.*kd_jax\.PerNetwork"),
    "a number": ({"losses": kd.PerNetwork({"a": 3.0})}, r"losses\.generator\['a'\] is a float"),
    "a triple": (
        {"losses": kd.PerNetwork({"a": (pixel, 1.0, 2)})},
        r"losses\.generator\['a'\] is a tuple",
    ),
    "every": ({"losses": kd.PerNetwork({"a": kd.Term(pixel, every=0)})}, r"\['a'\]: every=0"),
    "no discriminator": (
        {"networks": kd.Networks(PAIR.generator)},
        r"losses\.discriminator has real.*networks\.discriminator",
    ),
    "a task": ({"task": 64}, r"task is a int.*kd_jax\.latents"),
    "an average that grows": ({"ema": 1.5}, "ema=1.5"),
    "a negative average": ({"ema": -0.1}, "ema=-0.1"),
    "an average of nan": ({"ema": float("nan")}, "ema=nan"),
    "an infinite weight": (
        {"losses": kd.PerNetwork({"a": (pixel, float("inf"))})},
        r"\['a'\]: weight=inf",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_part_of_another_kind_is_refused(name):
    changes, message = MISUSE[name]
    with pytest.raises(ValueError, match=message) as caught:
        setup(**changes)
    assert "\n" not in str(caught.value)


def one_line(match, function, *args, **kwargs):
    with pytest.raises(ValueError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_teacher_variables_without_their_record(state, teacher):
    one_line(r"teacher_variables is a dict.*kd_jax\.Teacher", trace, state, teacher.generator)
    one_line(r"teacher_variables\.generator is None.*kd_jax\.Teacher", trace, state, None)


def test_a_teacher_of_another_width(state):
    wide = kd.models.mlp.gan(SIZE, 7, depth=1).generator
    variables = wide.init(jax.random.key(1), jnp.zeros((1, LATENT)))
    one_line(
        r"teacher_variables\.generator: params/\S+ is float32 \(7.*\(6",
        trace, state, kd.Teacher(variables),
    )  # fmt: skip


def test_a_state_of_another_library(teacher):
    one_line(r"the state is a .*Model; .*kd_jax\.TrainState.*init_state", trace_model, teacher)


def trace_model(teacher):
    return kd.make_train_step(setup())(Model(), teacher, IMAGES)


def test_a_batch_that_is_an_array(state, teacher):
    one_line(r'the batch is a .*dict.*\{"image"', trace, state, teacher, IMAGES["image"])
    one_line("the batch is a ", kd.init_state, setup(), jax.random.key(0), IMAGES["image"])


def test_labels_that_are_missing(state, teacher):
    task = kd.latents(LATENT, conditional=True)
    one_line(r"the batch has \['image'\].*'label'", trace, state, teacher, task=task)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_images_of_integers(state, teacher, dtype):
    images = {"image": np.full((BATCH, SIZE, SIZE, 1), 200, dtype)}
    message = rf"real images are {np.dtype(dtype).name}.*127\.5 - 1"
    one_line(message, trace, state, teacher, images)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda f: f.fake, r"term 'bad': Forward has no 'fake'; it has .*student.*teacher"),
        (lambda f: f.student.image, r"term 'bad': GeneratorPass has no 'image'; it has .*output"),
        (lambda f: f.discriminator.scores, r"term 'bad': DiscriminatorPass has no 'scores'"),
        (lambda f: f.extractor(f.real)[1], r"term 'bad': .*networks\.extractor is None"),
        (lambda f: f.teacher_discriminator(f.real), r"networks\.teacher_discriminator is None"),
        (lambda f: f.student.mapping, "term 'bad': .*not a style network"),
        (lambda f: f.student.taps["no"], "term 'bad': no tap 'no'; this network has 'hidden0'"),
    ],
)
def test_a_loss_that_reads_what_is_not_there(teacher, loss, message):
    one_line(message, trace_losses, teacher, {"bad": loss}, {"real": real})


def test_a_state_of_another_setup(state, teacher):
    losses = kd.PerNetwork({"other": adversarial}, {"real": real})
    one_line(
        "the state has no term 'other'; it has adversarial, pixel",
        trace, state, teacher, losses=losses,
    )  # fmt: skip


def test_scores_without_a_discriminator(teacher):
    networks = kd.Networks(PAIR.generator, teacher=TEACHER)
    one_line(
        r"term 'adversarial': .*networks\.discriminator is None",
        trace_losses, teacher, {"adversarial": adversarial}, networks=networks,
    )  # fmt: skip


def test_a_teacher_s_image_without_a_teacher(state):
    networks = kd.Networks(PAIR.generator, PAIR.discriminator)
    one_line(r"term 'pixel': .*networks\.teacher is None", trace, state, None, networks=networks)


def test_an_absent_part_is_false(teacher):
    presence = []

    def loss(f):
        presence.append((bool(f.teacher), bool(f.discriminator), bool(f.extractor)))
        return adversarial(f)

    trace_losses(teacher, {"a": loss}, {"real": real})
    assert set(presence) == {(True, True, False)}


def test_initial_variables_of_another_network():
    one_line(
        r"initial has \['teacher'\]; it may have 'generator', 'discriminator'",
        kd.init_state, setup(), jax.random.key(0), IMAGES, initial={"teacher": {}},
    )  # fmt: skip


def test_wrappers_without_their_state(state, teacher):
    step = kd.make_train_step(setup())
    one_line(
        r"kd_jax\.with_skip_count\(state\)",
        jax.eval_shape, kd.skip_nonfinite(step), state, teacher, IMAGES,
    )  # fmt: skip
    one_line(
        r"kd_jax\.with_teachers",
        jax.eval_shape, kd.online_distillation(step, {"wide": step}), state, teacher, IMAGES,
    )  # fmt: skip


def test_as_terms_names_the_loss():
    with pytest.raises(ValueError, match=re.escape("extra['x'] is a str")):
        as_terms("extra", {"x": "l1"})

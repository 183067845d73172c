"""How inputs are made from images; parts of checkpoints; networks that cannot be sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kd_jax as kd
from kd_jax.core.architecture import describe
from kd_jax.core.family import Interface
from kd_jax.distillation import choices
from kd_jax.distillation.examples import REAL_DEGRADATIONS, image_examples, image_inputs
from kd_jax.evaluate.generator import open_generator
from kd_jax.evaluate.samples import seeded_inputs
from kd_jax.model import Model
from kd_jax.models import inpainting, pair, text, translation
from kd_jax.train.checkpoint import save_generator

SIDE = 16
MASKED = tuple(jax.ShapeDtypeStruct((1, SIDE, SIDE, n), jnp.float32) for n in (3, 1))
LATENT = jax.ShapeDtypeStruct((1, 4), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 3), jnp.int32)
INPAINTING = Interface(MASKED, (SIDE, SIDE, 3), 0)


def random_variables(network, inputs):
    """Variables of the shapes of the network's, without compiling it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def write(folder, network, *inputs):
    variables = random_variables(network, inputs)
    save_generator(folder, variables, {}, describe(network, *inputs))
    return variables


def open_photos(size=SIDE):
    photos = kd.data.open_source("photos", "train", size, 3, resize=True)
    return kd.data.subset(photos, count=30, seed=0)


def test_inputs_are_described():
    assert INPAINTING.describe() == "images [16, 16, 3] and masks [16, 16, 1] -> images 16x16x3"
    assert INPAINTING.takes_images
    words = Interface((LATENT, TOKENS), (SIDE, SIDE, 1), 0)
    assert words.describe() == "latents [4] and tokens [3] -> images 16x16x1"
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    classes = Interface((LATENT, labels), (SIDE, SIDE, 1), 10)
    assert classes.describe() == "latents [4] and labels of 10 classes -> images 16x16x1"
    assert (words.takes_tokens, classes.takes_tokens) == (True, False)


def test_masks_depend_on_the_number_of_the_image_only():
    examples = image_examples(open_photos(), INPAINTING, inpainting.FAMILY)
    prepare = jax.jit(examples.prepare)
    numbers = np.array([3, 0, 7])
    batch = examples.select(numbers)
    images, masks = prepare(batch)
    assert examples.targets
    assert np.isin(masks, (0, 1)).all()
    hidden = np.asarray(masks) == 1
    assert 0.02 < hidden.mean() < 0.9
    np.testing.assert_array_equal(images, np.where(hidden, 0, batch["image"]))
    assert not np.array_equal(masks[0], masks[1])
    for row, number in enumerate(numbers):
        alone = prepare(examples.select(np.array([number] * 3)))
        np.testing.assert_array_equal(alone[1][1], masks[row])
    drawn = next(examples.batches(3, 0))
    expected = prepare(examples.select(drawn["label"]))
    jax.tree.map(np.testing.assert_array_equal, prepare(drawn), expected)


def test_inputs_without_a_family_are_smaller_images():
    small = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    make = image_inputs(Interface((small,), (SIDE, SIDE, 3), 0), None)
    assert (make.channels, make.targets) == (3, True)
    (inputs,) = make.make(np.arange(2), jnp.full((2, SIDE, SIDE, 3), 0.25))
    np.testing.assert_allclose(inputs, np.full((2, 8, 8, 3), 0.25), atol=1e-6)
    drawings = jax.ShapeDtypeStruct((1, SIDE, SIDE, 4), jnp.float32)
    make = image_inputs(Interface((drawings,), (SIDE, SIDE, 3), 0), None)
    assert (make.channels, make.targets) == (4, False)
    with pytest.raises(ValueError, match="masks"):
        image_inputs(INPAINTING, None)


def test_a_pruned_inpainting_network_leaves_known_pixels():
    network = inpainting.gated_generator(4, downs=1, dilations=(2,))
    model = Model(network, random_variables(network, MASKED), MASKED, 0, True, {})
    student = kd.prune(model, parameters=1 / 2)
    assert student.network.module.width < 4
    assert student.interface == INPAINTING
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
    masks = (rng.uniform(size=(1, SIDE, SIDE, 1)) < 0.3).astype(np.float32)
    outputs = np.asarray(jax.jit(student.network.apply)(student.variables, images, masks)[0])
    known = np.broadcast_to(masks == 0, images.shape)
    np.testing.assert_array_equal(outputs[known], images[known])
    with pytest.raises(ValueError, match="size=15"):
        choices.make_distillation(model, size=15, images=open_photos(15))


def test_real_degradations_depend_on_the_number_of_the_image_only():
    small = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    photos, interface = open_photos(), Interface((small,), (SIDE, SIDE, 3), 0)
    examples = image_examples(photos, interface, degradation="real")
    plain = image_examples(photos, interface)
    assert (plain.total, examples.total, examples.targets) == (30, 30 * REAL_DEGRADATIONS, True)
    assert examples.name != plain.name
    assert examples.fingerprint != plain.fingerprint
    prepare = jax.jit(examples.prepare)
    numbers = np.array([3, 33, 63, 7])  # three times the same image
    batch = examples.select(numbers)
    np.testing.assert_array_equal(batch["image"][:3], np.stack([photos[3]["image"]] * 3))
    (inputs,) = prepare(batch)
    assert inputs.shape == (4, 8, 8, 3)
    assert len({np.asarray(image).tobytes() for image in inputs}) == 4
    for row, number in enumerate(numbers[:2]):
        (others,) = prepare(examples.select(np.array([7, number])))
        np.testing.assert_array_equal(others[1], inputs[row])
    drawn = examples.batches(40, 0)
    labels = np.concatenate([next(drawn)["label"] for _ in range(6)])
    np.testing.assert_array_equal(np.sort(labels), np.arange(240))


def test_the_degradation_is_one_of_the_settings():
    network = kd.models.realesrgan.srvgg(2, 6, 2)
    inputs = (jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),)
    teacher = Model(network, random_variables(network, inputs), inputs, 0, True, {})
    plain, real = (
        choices.make_distillation(
            teacher, macs=0.6, size=SIDE, images=open_photos(), degradation=degradation
        )
        for degradation in ("bicubic", "real")
    )
    assert {k for k in real.settings if real.settings[k] != plain.settings[k]} == {"inputs"}
    for examples in (real.examples, real.held_out):
        assert "real degradation" in examples.name
    assert any(real.examples.name in line for line in real.choices)


def test_degradations_that_do_not_fit_are_refused_in_one_line():
    network = inpainting.gated_generator(4, downs=1, dilations=(2,))
    masked = Model(network, random_variables(network, MASKED), MASKED, 0, True, {})
    network = kd.models.dcgan.generator(SIDE, width=4)
    latents = Model(network, random_variables(network, (LATENT,)), (LATENT,), 0, True, {})
    grey, small = (jax.ShapeDtypeStruct((1, 8, 8, n), jnp.float32) for n in (1, 3))
    enlarges = Interface((small,), (SIDE, SIDE, 3), 0)
    refusals = [
        (lambda: image_inputs(enlarges, inpainting.FAMILY, "real"), "16x16x3"),
        (lambda: choices.make_distillation(masked, degradation="real"), "masks"),
        (lambda: choices.make_distillation(latents, degradation="real"), r"latents \[4\]"),
        (lambda: choices.make_distillation(latents, degradation="jpg"), "'jpg'.*bicubic, real"),
        (lambda: image_inputs(Interface((grey,), (8, 8, 3), 0), None, "real"), "8x8x3"),
        (lambda: image_inputs(Interface((grey,), (16, 16, 1), 0), None, "real"), "16x16x1"),
    ]
    for refuse, match in refusals:
        with pytest.raises(ValueError, match=match) as error:
            refuse()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_inpainting_network_is_distilled(tmp_path):
    """The PSNR to the images is that of a plain application; stored answers change nothing."""
    network = inpainting.gated_generator(4, downs=1, dilations=(2,))
    model = Model(network, random_variables(network, MASKED), MASKED, 0, True, {})
    photos = open_photos()
    options = {
        "macs": 0.5, "batch_size": 8, "samples": 16, "features": "none", "steps": 3, "size": SIDE,
        "images": photos,
    }  # fmt: skip
    result = kd.distill(model, tmp_path / "out", **options)
    again = kd.distill(model, tmp_path / "stored", answers=True, **options)
    jax.tree.map(np.testing.assert_array_equal, result.student.variables, again.student.variables)
    _, held_out = kd.data.hold_out(photos, choices.HELD_OUT)
    images = np.stack([held_out[i]["image"] for i in range(len(held_out))])
    inputs = inpainting.hide_strokes(np.arange(len(images)), images)
    outputs = result.student.network.apply(result.student.variables, *inputs)[0]
    levels = [np.rint(127.5 * (np.clip(x, -1, 1) + 1)) for x in (outputs, images)]
    errors = np.mean((levels[0] - levels[1]) ** 2, axis=(1, 2, 3))
    expected = np.minimum(10 * np.log10(255**2 / errors), 100).mean()
    assert result.figures["student"]["target"].value == pytest.approx(expected, rel=1e-3)
    with Image.open(tmp_path / "out" / "examples.png") as picture:
        assert picture.size[0] > SIDE


def test_a_part_of_two_networks_in_parallel_is_loaded(tmp_path):
    both = pair.parallel(*(translation.resnet_generator(width, blocks=1) for width in (2, 3)))
    stacked = jax.ShapeDtypeStruct((1, 2, SIDE, SIDE, 3), jnp.float32)
    variables = write(tmp_path / "both", both, stacked)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 2, SIDE, SIDE, 3)).astype(np.float32)
    outputs = jax.jit(both.apply)(variables, x)[0]
    for index, part in enumerate(("first", "second")):
        model = kd.load(tmp_path / "both", part, generator=True)
        assert model.interface.describe() == "images [16, 16, 3] -> images 16x16x3"
        assert model.info["part"] == part
        own = jax.jit(model.network.apply)(model.variables, x[:, index])[0]
        np.testing.assert_allclose(own, outputs[:, index], atol=1e-5)
    for part in (None, "third"):
        with pytest.raises(ValueError, match="first or second"):
            kd.load(tmp_path / "both", part)
    single = translation.resnet_generator(2, blocks=1)
    write(tmp_path / "one", single, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
    with pytest.raises(ValueError, match="'first'"):
        kd.load(tmp_path / "one", "first")


def test_networks_without_images_are_loaded_but_are_not_generators(tmp_path):
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 1), jnp.float32)
    write(tmp_path / "c", kd.models.classifier.classifier(10, width=2), image)
    model = kd.load(tmp_path / "c")
    assert not model.generates
    with pytest.raises(ValueError, match=r"images.*\[10\]") as error:
        kd.load(tmp_path / "c", generator=True)
    assert "\n" not in str(error.value)


def test_generators_that_take_tokens_are_refused(tmp_path):
    network = text.generator(SIDE, 2, vocabulary=16, length=3, embedding=4, channels=1)
    write(tmp_path / "t", network, LATENT, TOKENS)
    model = kd.load(tmp_path / "t", generator=True)
    refusals = [
        lambda: choices.make_distillation(model),
        lambda: seeded_inputs(model, [0]),
        lambda: open_generator(str(tmp_path / "t")),
    ]
    for refuse in refusals:
        with pytest.raises(ValueError, match="tokens") as error:
            refuse()
        assert "\n" not in str(error.value)

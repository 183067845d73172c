"""Tasks: the inputs are degraded, the targets are not, and each key draws independently."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import tasks
from kd_jax.core.objective import Inputs
from kd_jax.tasks import degradations

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 16, 24, 3)), "float32")
BATCH = {"image": IMAGES, "label": jnp.arange(6)}


def test_latents_task():
    batch = {"image": np.ones((5, 2, 2, 1), np.float32), "label": np.arange(5), "mask": None}
    inputs = tasks.latents(3, conditional=True)(jax.random.key(0), batch)
    z, labels = inputs.generator
    assert z.shape == (5, 3)
    assert labels is inputs.condition[0] is batch["label"]
    assert inputs.real is batch["image"]
    assert inputs.extra is batch
    again = tasks.latents(3, conditional=True)(jax.random.key(0), batch)
    np.testing.assert_array_equal(z, again.generator[0])
    assert not np.array_equal(
        z, tasks.latents(3, conditional=True)(jax.random.key(1), batch).generator[0]
    )

    many = tasks.latents(64, conditional=True)(jax.random.key(0), {"label": np.zeros(500, int)})
    assert many.real is None
    np.testing.assert_allclose(many.generator[0].mean(), 0.0, atol=0.03)  # 5 sigma
    np.testing.assert_allclose(many.generator[0].std(), 1.0, atol=0.02)

    unconditional = tasks.latents(3)(jax.random.key(0), {"image": batch["image"]})
    assert unconditional.condition == ()
    assert [x.shape for x in unconditional.generator] == [(5, 3)]
    assert Inputs((z,)) == Inputs((z,), (), None, {})


def test_noise_task_draws_latents_and_labels():
    task = tasks.noise(3, 500, classes=7)
    inputs = task(jax.random.key(0), {})
    z, labels = inputs.generator
    assert z.shape == (500, 3)
    np.testing.assert_allclose(z.mean(), 0.0, atol=0.13)  # 5 sigma
    np.testing.assert_allclose(z.std(), 1.0, atol=0.1)
    assert labels.shape == (500,)
    assert jnp.issubdtype(labels.dtype, jnp.integer)
    counts = np.bincount(labels, minlength=7)
    assert len(counts) == 7
    assert np.all(np.abs(counts - 500 / 7) < 5 * np.sqrt(500 / 7))
    assert inputs.condition[0] is labels is inputs.extra["label"]
    assert inputs.real is None
    # From separate keys, neither of which is the task's key itself.
    assert not np.array_equal(z, jax.random.normal(jax.random.key(0), (500, 3)))
    assert not np.array_equal(labels, jax.random.randint(jax.random.key(0), (500,), 0, 7))
    again, other = task(jax.random.key(0), {}), task(jax.random.key(1), {})
    np.testing.assert_array_equal(again.generator[1], labels)
    assert not np.array_equal(other.generator[0], z)
    assert not np.array_equal(other.generator[1], labels)

    plain = tasks.noise(3, 5)(jax.random.key(0), {})
    assert [x.shape for x in plain.generator] == [(5, 3)]
    assert (plain.condition, plain.real, plain.extra) == ((), None, {})


def test_noise_task_uses_images_and_labels_of_the_batch():
    batch = {"image": np.ones((6, 2, 2, 1), np.float32)}
    inputs = tasks.noise(3, 500, classes=7)(jax.random.key(0), batch)
    assert [len(x) for x in inputs.generator] == [6, 6]
    assert inputs.real is batch["image"]
    assert "label" not in batch  # the caller's batch is not modified
    batch["label"] = np.arange(6)
    inputs = tasks.noise(3, 500, classes=7)(jax.random.key(0), batch)
    assert inputs.condition[0] is batch["label"] is inputs.generator[1]
    assert set(inputs.extra) == {"image", "label"}


def test_super_resolution():
    inputs = tasks.super_resolution(4)(KEY, BATCH)
    (small,) = inputs.generator
    np.testing.assert_array_equal(small, degradations.downsample(IMAGES, 4))
    np.testing.assert_array_equal(inputs.real, IMAGES)
    assert inputs.condition == ()
    noisy = tasks.super_resolution(4, deviation=0.1)(KEY, BATCH).generator[0]
    assert 0.05 < float((noisy - small).std()) < 0.11
    with pytest.raises(ValueError, match=r"deviation=-0.1 must not be negative"):
        tasks.super_resolution(4, deviation=-0.1)
    with pytest.raises(ValueError, match="cannot be made 5 times smaller"):
        tasks.super_resolution(5)(KEY, BATCH)


def test_inpainting_inputs_are_masked_images():
    inputs = tasks.inpainting(degradations.free_form_mask)(KEY, BATCH)
    known, mask = inputs.generator
    assert mask.shape == (6, 16, 24, 1)
    hidden = np.broadcast_to(mask, known.shape) == 1
    np.testing.assert_array_equal(np.asarray(known)[~hidden], np.asarray(IMAGES)[~hidden])
    assert not np.asarray(known)[hidden].any()
    np.testing.assert_array_equal(inputs.real, IMAGES)
    np.testing.assert_array_equal(inputs.condition[0], mask)
    np.testing.assert_array_equal(inputs.extra["mask"], mask)
    other = tasks.inpainting(degradations.free_form_mask)(jax.random.key(1), BATCH)
    assert (other.generator[1] != mask).any()


def test_masks_are_drawn_from_several_functions():
    kinds = [lambda key, shape, part=part: jnp.full((*shape[:3], 1), part) for part in (0.0, 1.0)]
    many = {"image": jnp.zeros((200, 2, 2, 3))}
    _, mask = tasks.inpainting(kinds)(KEY, many).generator
    assert 70 < float(mask[:, 0, 0, 0].sum()) < 130
    assert (mask == mask[:, :1, :1]).all()


def test_masks_may_be_of_any_dtype():
    kinds = [
        lambda key, shape, dtype=dtype: jnp.ones((*shape[:3], 1), dtype)
        for dtype in ("bool", "int32", "float32")
    ]
    for masks in (kinds, kinds[:1]):
        known, mask = tasks.inpainting(masks)(KEY, BATCH).generator
        assert mask.dtype == known.dtype == jnp.float32
        assert (mask == 1).all()
        assert (known == 0).all()


def test_invalid_masks_raise():
    with pytest.raises(ValueError, match="at least one function"):
        tasks.inpainting([])
    task = tasks.inpainting(lambda key, shape: jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"a mask of shape \(6, 16, 24, 3\) does not fit"):
        task(KEY, BATCH)


@pytest.mark.parametrize("conditional", [True, False])
def test_paired(conditional):
    for source, batch in (
        (degradations.edges, BATCH),
        ("sketch", {**BATCH, "sketch": degradations.edges(IMAGES)}),
    ):
        inputs = tasks.paired(source, conditional=conditional)(KEY, batch)
        np.testing.assert_array_equal(inputs.generator[0], degradations.edges(IMAGES))
        np.testing.assert_array_equal(inputs.real, IMAGES)
        assert len(inputs.condition) == conditional


def test_unpaired_targets_are_in_the_other_domain():
    batch = {"first": IMAGES, "second": -IMAGES}
    inputs = tasks.unpaired()(KEY, batch)
    (sources,) = inputs.generator
    np.testing.assert_array_equal(sources[:, 0], IMAGES)
    np.testing.assert_array_equal(inputs.real, sources[:, ::-1])
    with pytest.raises(ValueError, match=r"have shapes \(6, 16, 24, 3\) and \(6, 8, 24, 3\)"):
        tasks.unpaired()(KEY, {**batch, "second": IMAGES[:, :8]})


def test_classification():
    inputs = tasks.classification()(KEY, BATCH)
    assert inputs.generator[0] is IMAGES
    assert inputs.real is None
    np.testing.assert_array_equal(inputs.extra["label"], BATCH["label"])


def test_dihedral_augmentation_precedes_the_degradation():
    images = IMAGES[:, :, :16]
    task = tasks.dihedral_augmentation(partial(_image_task))
    images_out = np.asarray(task(KEY, {"image": jnp.tile(images[:1], (64, 1, 1, 1))}).real)
    views = [np.rot90(flipped, k) for flipped in (images[0], images[0, :, ::-1]) for k in range(4)]
    counts = [sum((image == view).all() for image in images_out) for view in views]
    assert sum(counts) == 64
    assert min(counts) >= 1
    with pytest.raises(ValueError, match="16x24"):
        task(KEY, BATCH)


def _image_task(key, batch):
    return tasks.classification()(key, {**batch, "label": 0})._replace(real=batch["image"])


@pytest.mark.parametrize(
    ("task", "batch", "match"),
    [
        (tasks.super_resolution(2), {"label": 1}, "needs 'image'"),
        (tasks.paired("sketch"), BATCH, r"\['image', 'label'\]; this task needs 'sketch'"),
        (tasks.unpaired(), {"first": IMAGES}, "needs 'second'"),
        (tasks.classification(), {"image": IMAGES}, "needs 'label'"),
    ],
)
def test_batches_without_a_needed_entry_raise(task, batch, match):
    with pytest.raises(ValueError, match=match):
        task(KEY, batch)


def test_text_to_image_takes_captions_from_the_batch_or_from_a_function():
    tokens = jnp.arange(18).reshape(6, 3)
    for task, batch in (
        (tasks.text_to_image(5), {**BATCH, "tokens": tokens}),
        (tasks.text_to_image(5, lambda images, labels: labels[:, None] + tokens * 0), BATCH),
    ):
        inputs = task(KEY, batch)
        z, words = inputs.generator
        assert z.shape == (6, 5)
        assert inputs.condition[0] is words is inputs.extra["tokens"]
        assert inputs.real is batch["image"]
        assert words.shape == (6, 3)
        assert not np.array_equal(z, task(jax.random.key(1), batch).generator[0])
    np.testing.assert_array_equal(words[:, 0], BATCH["label"])
    with pytest.raises(ValueError, match="this task needs 'tokens'"):
        tasks.text_to_image(5)(KEY, BATCH)


def test_bandwidth_extension_keeps_the_target_waveform():
    waves = jnp.sin(0.05 * jnp.arange(128.0))[None, :, None]
    inputs = tasks.bandwidth_extension(4)(KEY, {"wave": waves})
    assert inputs.generator[0].shape == (1, 32, 1)
    assert inputs.real is waves
    assert inputs.condition[0].shape == waves.shape
    # A low-frequency wave is preserved by decimation and by interpolation.
    inside = slice(44, -44)
    np.testing.assert_allclose(inputs.generator[0][:, 11:-11], waves[:, ::4][:, 11:-11], atol=5e-3)
    np.testing.assert_allclose(inputs.condition[0][:, inside], waves[:, inside], atol=5e-3)
    with pytest.raises(ValueError, match="needs 'wave'"):
        tasks.bandwidth_extension(4)(KEY, BATCH)

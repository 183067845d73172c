"""Generators under evaluation: loading, and reproducible sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.architecture import describe
from kd_jax.core.mesh import make_mesh
from kd_jax.core.network import Network
from kd_jax.evaluate.generator import EvaluatedGenerator, draw, interpolate, open_generator, sampler
from kd_jax.models import dcgan, stylegan2
from kd_jax.train import checkpoint

Z, LABEL = jax.ShapeDtypeStruct((1, 8), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)


def conditional(name="net", seed=0):
    network = dcgan.generator(16, 16, channels=1, classes=3)
    variables = jax.jit(network.init)(jax.random.key(seed), jnp.ones((1, 8)), jnp.ones(1, int))
    return EvaluatedGenerator(name, "here", network, variables, (Z, LABEL), 3, {})


def save(folder, subject):
    described = describe(subject.network, *subject.inputs)
    checkpoint.save_generator(folder, subject.variables, {}, described)
    return folder


def constant(value):
    """A network whose images are `value + z[0]`, with `value` as a compiled constant."""

    def apply(variables, z, **options):
        del options
        return jnp.full((len(z), 2, 2, 1), value) + z[:, :1, None, None], {}, variables

    network = Network(lambda key, z: {"params": {}}, apply)
    return EvaluatedGenerator("constant", "here", network, {"params": {}}, (Z,), 0, {})


@pytest.mark.parametrize("inner", ["checkpoints", "checkpoint", "."])
def test_checkpoints_of_a_training_run_are_located(tmp_path, inner):
    subject = conditional()
    save(tmp_path / "seed0" / "teacher" / inner, subject)
    loaded = open_generator(str(tmp_path / "seed0" / "teacher"))
    assert loaded.name == "seed0/teacher"
    assert (loaded.classes, loaded.image_shape) == (3, (16, 16, 1))
    inputs = draw(subject, 4, 0)
    expected, images = (sampler(s, 4)(inputs).images for s in (subject, loaded))
    np.testing.assert_array_equal(images, expected)
    assert open_generator(f"mine={tmp_path / 'seed0' / 'teacher'}").name == "mine"


def test_the_latest_of_a_training_is_evaluated_and_the_best_by_its_own_path(tmp_path):
    run = tmp_path / "seed0" / "teacher"
    save(run / "checkpoints", conditional(seed=1))
    save(run / "best", conditional(seed=2))
    for path, name, seed in ((run, "seed0/teacher", 1), (run / "best", "teacher/best", 2)):
        loaded = open_generator(str(path))
        assert loaded.name == name
        expected = conditional(seed=seed).variables
        jax.tree.map(np.testing.assert_array_equal, dict(loaded.variables), dict(expected))


def test_invalid_paths_and_options_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        open_generator(str(tmp_path / "none"))
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint"):
        open_generator(str(tmp_path))
    save(tmp_path / "run" / "seed0" / "teacher" / "checkpoints", conditional())
    with pytest.raises(ValueError, match=r"several trainings; .*: seed0/teacher$"):
        open_generator(str(tmp_path / "run"))
    folder = save(tmp_path / "net", conditional())
    with pytest.raises(ValueError, match="does not take truncation"):
        open_generator(str(folder), truncation=0.5)


def test_truncation_reaches_the_network(tmp_path):
    network = stylegan2.generator(8, latent=8, style=8, channel_base=64, channel_max=8)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 8)))
    folder = save(tmp_path / "net", EvaluatedGenerator("s", "", network, variables, (Z,), 0, {}))
    inputs = draw(open_generator(str(folder)), 2, 0)
    images = [
        sampler(open_generator(str(folder), truncation=psi), 2)(inputs).images for psi in (0.0, 1.0)
    ]
    np.testing.assert_array_equal(images[0][0], images[0][1])  # both are of the average style
    assert (images[1][0] != images[1][1]).any()


def test_networks_of_equal_latent_shape_get_the_same_latents():
    (z, labels), (other,) = draw(conditional(), 7, 5), draw(constant(0.0), 7, 5)
    np.testing.assert_array_equal(z, other)
    np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1, 2, 0])
    assert (draw(conditional(), 7, 6)[0] != z).all()


def test_images_are_bit_identical_for_any_batch_and_devices():
    subject = conditional()
    inputs = draw(subject, 37, 0)
    expected = sampler(subject, 16, make_mesh(devices=jax.devices()[:1]))(inputs)
    assert expected.images.shape == (37, 16, 16, 1)
    progress = []
    for batch, mesh in ((1, None), (37, None), (64, make_mesh()), (5, make_mesh(4, 2))):
        samples = sampler(subject, batch, mesh)(inputs, progress.append)
        np.testing.assert_array_equal(samples.images, expected.images)
        np.testing.assert_array_equal(samples.labels, np.arange(37) % 3)
    assert progress[:3] == [16, 32, 37]
    reversed_images = sampler(subject, 16)([x[::-1] for x in inputs]).images
    np.testing.assert_array_equal(reversed_images[::-1], expected.images)


def test_any_number_of_images_uses_one_compilation():
    traced = []

    def apply(variables, z, **options):
        traced.append(z.shape)
        return constant(0.0).network.apply(variables, z, **options)

    subject = constant(0.0)
    sample = sampler(subject._replace(network=subject.network._replace(apply=apply)), 32)
    for count in (40, 3, 32):
        z = np.linspace(-1, 1, count, dtype=np.float32)[:, None]
        expected = np.clip(np.rint((z + 1) * 127.5), 0, 255)
        np.testing.assert_array_equal(sample((z,)).images[:, 0, 0], expected)
    assert len(traced) == 1


def test_quantisation_clipping_and_nan():
    z = jnp.asarray([[-1.0], [0.0], [0.5], [3.0]])
    samples = sampler(constant(0.0), 4)((z,))
    np.testing.assert_array_equal(samples.images[:, 0, 0, 0], [0, 128, 191, 255])
    assert samples.clipped == 0.25
    assert samples.labels is None
    with pytest.raises(ValueError, match="constant: image 2 is not finite"):
        sampler(constant(0.0), 4)((z.at[2].set(np.nan),))


def test_interpolations_end_at_the_latents():
    subject = conditional()
    z, labels = interpolate(subject, 3, rows=2, columns=5)
    ends, classes = draw(subject, 4, 3)
    np.testing.assert_allclose(z[[0, 5]], ends[:2], rtol=1e-5)
    np.testing.assert_allclose(z[[4, 9]], ends[2:], rtol=1e-5)
    np.testing.assert_array_equal(labels, np.repeat(classes[:2], 5))
    middle = np.linalg.norm(z[2]), np.linalg.norm(np.asarray(ends)[[0, 2]], axis=1).mean()
    assert middle[0] == pytest.approx(middle[1], rel=1e-5)  # on the circle, not on the chord

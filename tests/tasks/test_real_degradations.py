"""The degradations of Real-ESRGAN against Pillow, SciPy and `kd_jax.ops`' tested weights."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, special, stats
from skimage import data

from kd_jax import ops, tasks
from kd_jax.tasks import compression, real_degradations as real

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PHOTO = data.astronaut()[64:133, 128:195]  # sides that are not multiples of 8


def psnr(levels, others):
    return 10 * np.log10(255**2 / ((levels - others) ** 2).mean(dtype=np.float64))


def pillows_jpeg(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32)


def test_jpeg_is_pillow_s():
    qualities = np.array([10, 30, 50, 75, 95])
    images = jnp.asarray(np.stack([PHOTO] * len(qualities)) / 127.5 - 1, "float32")
    ours = (np.asarray(jax.jit(tasks.jpeg)(images, qualities)) + 1) * 127.5
    np.testing.assert_allclose(ours, np.rint(ours), atol=1e-4)
    for quality, image in zip(qualities, ours, strict=True):
        theirs = pillows_jpeg(PHOTO, int(quality))
        assert psnr(theirs, PHOTO) < 40
        assert psnr(image, theirs) > 46
        assert abs((image - theirs).mean()) < 0.2


def test_quantisation_tables_are_pillow_s():
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG", quality=50)
    tables = Image.open(file).quantization
    np.testing.assert_array_equal(np.ravel(compression.BRIGHTNESS), tables[0])
    np.testing.assert_array_equal(np.ravel(compression.COLOURS), tables[1])


@pytest.mark.parametrize(("shape", "count"), [((2, 8, 8, 1), 2), ((8, 8, 3), 8), ((2, 8, 8, 3), 1)])
def test_jpeg_of_other_shapes_raises(shape, count):
    with pytest.raises(ValueError, match=rf"\({count},\)"):
        tasks.jpeg(jnp.zeros(shape), jnp.full(count, 50))


@pytest.mark.parametrize(("reach", "cutoff"), [(3, np.pi / 3), (10, np.pi / 5), (10, np.pi)])
def test_sinc_kernels_have_bessel_functions(reach, cutoff):
    place = np.arange(-reach, reach + 1.0)
    radius = np.hypot(place[:, None], place)
    radius[reach, reach] = 1e-6  # the limit of the formula
    expected = np.pad(cutoff * special.j1(cutoff * radius) / radius, 10 - reach)
    kernel = real.sinc_kernel(jnp.float32(reach), jnp.float32(cutoff))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=2e-6)


@pytest.mark.parametrize(("side", "lowest"), [(7, np.pi / 3), (11, np.pi / 3), (13, np.pi / 5)])
def test_cutoffs_of_drawn_sinc_kernels_depend_on_the_side(side, lowest):
    numbers = jnp.zeros((2, 9)).at[:, 1].set((side - 6) / 16).at[1, 8].set(1)
    for row, cutoff in zip(numbers, (lowest, np.pi), strict=True):
        expected = real.sinc_kernel(jnp.float32(side // 2), jnp.float32(cutoff))
        np.testing.assert_allclose(real.draw_kernel(row, 3.0), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "power"), [(real.GAUSSIAN, 1.0), (real.GENERALISED, 3.0), (real.PLATEAU, 1.7)]
)
def test_bells_are_functions_of_the_mahalanobis_distance(shape, power):
    sigmas, angle, reach = (2.5, 0.7), 0.4, 6
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    gaussian = stats.multivariate_normal(cov=axes @ np.diag(np.square(sigmas)) @ axes.T)
    place = np.arange(-reach, reach + 1)
    density = gaussian.pdf(np.stack(np.meshgrid(place, place), axis=-1)) / gaussian.pdf([0, 0])
    q = (-2 * np.log(density)) ** power
    expected = 1 / (1 + q) if shape == real.PLATEAU else np.exp(-q / 2)
    kernel = real.bell_kernel(
        jnp.float32(reach), jnp.array(sigmas), jnp.float32(angle), jnp.array(shape), power
    )
    np.testing.assert_allclose(kernel, np.pad(expected / expected.sum(), 10 - reach), atol=2e-6)


def test_kernels_are_drawn_with_the_published_shares():
    numbers = jnp.asarray(RNG.uniform(size=(1000, 9)), "float32")
    kernels = np.asarray(jax.jit(jax.vmap(lambda u: real.draw_kernel(u, 3.0)))(numbers))
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(kernels, kernels[:, ::-1, ::-1], atol=1e-6)
    sinc = kernels.min(axis=(1, 2)) < 0
    assert 0.07 < sinc.mean() < 0.13
    sides = (kernels[sinc] != 0).any(axis=1).sum(axis=1)
    assert set(sides) == set(range(7, 22, 2))
    anisotropic = np.abs(kernels - kernels.swapaxes(1, 2)).max(axis=(1, 2)) > 1e-4
    assert 0.2 < anisotropic[~sinc].mean() < 0.4  # 0.31


def test_blur_is_scipy_s_convolution_of_the_part_that_is_filled():
    canvas, kernel = RNG.uniform(size=(24, 20, 3)), RNG.uniform(size=(21, 21)) / 441
    image = canvas[:17, :20]
    expected = ndimage.convolve(image, kernel[..., None], mode="nearest")
    result = real.blur(jnp.asarray(canvas, "float32"), jnp.array([17, 20]), jnp.asarray(kernel))
    assert result.shape == canvas.shape
    np.testing.assert_allclose(result[:17, :20], expected, atol=1e-5)


def area(inputs, outputs):
    """Means of all pixels that are touched, by counting in units of 1 / outputs of a pixel."""
    weights = np.zeros((outputs, inputs))
    for row in range(outputs):
        weights[row, [unit // outputs for unit in range(row * inputs, (row + 1) * inputs)]] = 1
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (real.AREA, area),
        (real.BILINEAR, ops.torch_bilinear),
        (real.BICUBIC, ops.torch_bicubic),
    ],
)
def test_resampling_of_traced_sizes_has_the_weights_of_static_ones(kind, expected):
    weights = jax.jit(lambda n, m: real.resampling_weights(n, m, (16, 13), jnp.array(kind)))
    for inputs, outputs in [(13, 16), (13, 4), (7, 3), (5, 11), (12, 12), (1, 2), (6, 1)]:
        matrix = np.asarray(weights(inputs, outputs))
        np.testing.assert_allclose(matrix[:outputs, :inputs], expected(inputs, outputs), atol=1e-5)
        assert not matrix[:, inputs:].any()
        np.testing.assert_array_equal(matrix[outputs:], matrix[[outputs - 1] * (16 - outputs)])


@pytest.mark.parametrize("mean", [5.0, 30.0, 250.0])
def test_poisson_deviates_have_the_quantiles_of_the_distribution(mean):
    shares = np.array([0.001, 0.05, 0.3, 0.5, 0.9, 0.999])
    ours = real.poisson_deviate(jnp.asarray(stats.norm.ppf(shares), "float32"), jnp.float32(mean))
    np.testing.assert_allclose(ours, stats.poisson.ppf(shares, mean), atol=0.8)


def test_noise_has_its_distribution_and_its_channels():
    """Of 30 levels, or 3 times that of the 256 photons of white, which is 1.5 at a quarter."""
    highest = 1 - 1e-6
    numbers = [(u, v, highest) for u in (0.1, 0.9) for v in (0.1, 0.9)]
    image = jnp.full((64, 64, 3), 0.5)
    draw = jax.jit(jax.vmap(lambda u: real.random_noise(KEY, u, image, real.FIRST) - image))
    noise = np.asarray(draw(jnp.array(numbers)))
    expected = np.repeat([30 / 255, 3 * np.sqrt(128 / 256) / 16], 2)
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), expected, rtol=0.03)
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3)), 0, atol=0.006)
    between = [np.corrcoef(x[..., 0].ravel(), x[..., 1].ravel())[0, 1] for x in noise]
    np.testing.assert_allclose(between, [1, 0, 1, 0], atol=0.06)


def test_real_degradations_are_small_images_with_draws_of_their_own():
    # Dark on the left, bright on the right.
    images = jnp.tile(jnp.linspace(-0.9, 0.9, 24)[None, None, :, None], (6, 32, 1, 3))
    task = jax.jit(tasks.super_resolution(4, degrade=tasks.real_degradation))
    inputs = task(KEY, {"image": images})
    (small,) = inputs.generator
    levels = (np.asarray(small) + 1) * 127.5
    assert levels.shape == (6, 8, 6, 3)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert 0 <= levels.min() < levels.max() <= 255
    assert len({image.tobytes() for image in levels}) == 6
    np.testing.assert_array_equal(inputs.real, images)
    assert (
        levels[:, :, 3:].mean(axis=(1, 2, 3)) > levels[:, :, :3].mean(axis=(1, 2, 3)) + 40
    ).all()
    np.testing.assert_array_equal(task(KEY, {"image": images}).generator[0], small)
    assert (task(jax.random.key(1), {"image": images}).generator[0] != small).any()


@pytest.mark.parametrize(
    ("shape", "match"),
    [((1, 8, 8, 1), r"\(1, 8, 8, 1\)"), ((8, 8, 3), r"\(8, 8, 3\)"), ((1, 8, 10, 3), "4 times")],
)
def test_images_that_do_not_fit_raise(shape, match):
    with pytest.raises(ValueError, match=match):
        tasks.real_degradation(KEY, jnp.zeros(shape), 4)

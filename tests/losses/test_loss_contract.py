"""The common contract of all losses in one table: shapes, dtypes, gradients, extremes, errors."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.core.types import Taps
from kd_jax.losses import (
    adversarial,
    discriminator,
    feature,
    image,
    image_text,
    moments,
    penalties,
    perceptual as learned,
    relation,
    response,
)

B = 3
SCORES, PATCHES = (B,), (B, 2, 2, 1)
IMAGE, EVEN, LOGITS = (B, 4, 3, 2), (B, 4, 2, 3), (B, 5)


def score(images):
    """A smooth discriminator whose gradient depends on the image."""
    weights = jnp.cos(jnp.arange(images[0].size, dtype=images.dtype)).reshape(1, *images.shape[1:])
    return jnp.sum(jnp.sin(images * weights), axis=(1, 2, 3)), Taps()


def r1(real):
    return penalties.r1(score, real)


def r2(fake):
    return penalties.r2(score, fake)


def gradient_penalty(real, fake):
    return penalties.gradient_penalty(score, real, fake, jax.random.key(0))


def hinton(student_logits, teacher_logits):
    return response.hinton(student_logits, teacher_logits, np.ones(B, np.int32))


def multi_scale(student, teacher):
    return image.multi_scale(student, teacher, scales=2)


def perceptual(student_features, teacher_features):
    return image.perceptual({"layer": student_features}, {"layer": teacher_features})


def lpips(features, others):
    heads = {"layer": np.float32([0.5, 2.0])}
    return learned.lpips({"layer": features}, {"layer": others}, heads)


def structural(student, teacher):
    return image.structural(student, teacher, window=3)


class Case(NamedTuple):
    """A loss, the shapes of its arguments, and its properties beyond the common contract."""

    fn: Callable
    shapes: dict[str, tuple[int, ...]]
    constant: tuple[str, ...] = ()  # arguments that get no gradient
    zero_when_equal: bool = False
    relational: bool = False  # a scalar of the batch, not one value per example
    draws: bool = False  # examples get different random numbers
    any_last_axis: bool = False  # the arguments' last axes may differ
    without_batch_axis: tuple[str, ...] = ()  # arguments whose first axis is not the batch

    @property
    def name(self):
        return f"{self.fn.__module__.split('.')[-1]}.{self.fn.__name__}"


def scores_case(fn, *names):
    return [Case(fn, dict.fromkeys(names, shape)) for shape in (SCORES, PATCHES)]


def teacher_case(fn, shape, names=("student", "teacher"), **kwargs):
    return Case(fn, dict.fromkeys(names, shape), names[1:], **kwargs)


def relation_case(fn, names=("student", "teacher"), **kwargs):
    return teacher_case(fn, LOGITS, names, relational=True, **kwargs)


DIRECTIONS = dict.fromkeys(("student", "shifted", "teacher", "teacher_shifted"), LOGITS)
FLOW = dict.fromkeys(("student", "student_next", "teacher", "teacher_next"), IMAGE)
PAIR = ("real_scores", "fake_scores")
SCORE_PAIR = ("student_scores", "teacher_scores")
LOGIT_PAIR = ("student_logits", "teacher_logits")
FEATURE_PAIR = ("student_features", "teacher_features")
MASKED = {"student": IMAGE, "teacher": IMAGE, "mask": (*IMAGE[:3], 1)}
MOMENTS = {"features": LOGITS, "mean": LOGITS[1:], "second": LOGITS[1:]}

CASES = [
    *scores_case(adversarial.minimax_d, *PAIR),
    *scores_case(adversarial.minimax_g, "fake_scores"),
    *scores_case(adversarial.nonsaturating_g, "fake_scores"),
    *scores_case(adversarial.hinge_d, *PAIR),
    *scores_case(adversarial.hinge_g, "fake_scores"),
    *scores_case(adversarial.wasserstein_d, *PAIR),
    *scores_case(adversarial.wasserstein_g, "fake_scores"),
    *scores_case(adversarial.least_squares_d, *PAIR),
    *scores_case(adversarial.least_squares_g, "fake_scores"),
    *scores_case(adversarial.relativistic_d, *PAIR),
    *scores_case(adversarial.relativistic_g, *PAIR),
    Case(r1, {"real": IMAGE}, ("real",)),
    Case(r2, {"fake": IMAGE}, ("fake",)),
    Case(gradient_penalty, {"real": IMAGE, "fake": IMAGE}, ("real", "fake"), draws=True),
    teacher_case(response.l1, IMAGE, zero_when_equal=True),
    teacher_case(response.l2, IMAGE, zero_when_equal=True),
    teacher_case(response.gaussian_kl, IMAGE, zero_when_equal=True),
    teacher_case(response.laplace_kl, IMAGE, zero_when_equal=True),
    teacher_case(response.softened_kl, LOGITS, LOGIT_PAIR, zero_when_equal=True),
    teacher_case(response.channel_softmax_kl, IMAGE, zero_when_equal=True),
    teacher_case(hinton, LOGITS, LOGIT_PAIR),
    teacher_case(feature.l2, IMAGE, zero_when_equal=True),
    teacher_case(feature.attention_transfer, IMAGE, zero_when_equal=True, any_last_axis=True),
    teacher_case(feature.attention_transfer_norm, IMAGE, zero_when_equal=True, any_last_axis=True),
    teacher_case(
        relation.similarity_preserving,
        LOGITS,
        zero_when_equal=True,
        relational=True,
        any_last_axis=True,
    ),
    relation_case(relation.kernel_alignment, any_last_axis=True),
    relation_case(relation.distance, any_last_axis=True, zero_when_equal=True),
    relation_case(relation.angle, any_last_axis=True, zero_when_equal=True),
    relation_case(relation.probability_transfer, any_last_axis=True, zero_when_equal=True),
    relation_case(relation.correlation, names=LOGIT_PAIR, zero_when_equal=True),
    *(
        Case(fn, DIRECTIONS, ("teacher", "teacher_shifted"), zero_when_equal=True, relational=True)
        for fn in (relation.direction_kl, relation.direction_l2)
    ),
    teacher_case(feature.l1, IMAGE, zero_when_equal=True),
    teacher_case(feature.channel_means, IMAGE, zero_when_equal=True),
    Case(feature.flow, FLOW, ("teacher", "teacher_next"), zero_when_equal=True),
    teacher_case(structural, IMAGE, zero_when_equal=True),
    teacher_case(image.style, IMAGE, zero_when_equal=True),
    teacher_case(image.wavelet, EVEN, zero_when_equal=True),
    teacher_case(multi_scale, EVEN, zero_when_equal=True),
    Case(image.total_variation, {"image": IMAGE}),
    Case(image.masked_l1, MASKED, ("teacher", "mask"), zero_when_equal=True, any_last_axis=True),
    teacher_case(perceptual, IMAGE, FEATURE_PAIR, zero_when_equal=True),
    Case(lpips, {"features": IMAGE, "others": IMAGE}, zero_when_equal=True),
    Case(
        image_text.image_text_contrastive, {"images": LOGITS, "sentences": LOGITS}, relational=True
    ),
    Case(
        moments.moment_matching,
        MOMENTS,
        ("mean", "second"),
        relational=True,
        without_batch_axis=("mean", "second"),
    ),
    teacher_case(discriminator.soft_label, SCORES, SCORE_PAIR),
    teacher_case(discriminator.soft_label, PATCHES, SCORE_PAIR),
    teacher_case(discriminator.bernoulli_kl, SCORES, SCORE_PAIR, zero_when_equal=True),
    teacher_case(discriminator.bernoulli_kl, PATCHES, SCORE_PAIR, zero_when_equal=True),
]


def table(cases):
    return pytest.mark.parametrize(
        "case", [pytest.param(c, id=f"{c.name}{next(iter(c.shapes.values()))}") for c in cases]
    )


every_loss = table(CASES)


def example(case, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in case.shapes.items()}


PROGRAMS = {}


def program(case):
    """`arguments -> (value, gradients of its sum)`, compiled once for all tests of a loss."""

    def value_and_gradients(arguments):
        value, vjp = jax.vjp(lambda a: case.fn(**a), arguments)
        return value, vjp(jnp.ones_like(value))[0]

    return PROGRAMS.setdefault(id(case), jax.jit(value_and_gradients))


def value(case, arguments):
    return program(case)(arguments)[0]


def gradients(case, arguments):
    return program(case)(arguments)[1]


def test_every_public_loss_is_in_the_table():
    modules = [adversarial, discriminator, feature, image, image_text, moments, penalties]
    modules += [learned, relation, response]
    public = {
        f"{module.__name__.split('.')[-1]}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    wrapped = {"penalties.r1", "penalties.r2", "penalties.gradient_penalty", "response.hinton"}
    wrapped |= {"image.structural", "image.multi_scale", "image.perceptual", "perceptual.lpips"}
    parts = {"feature.flow_matrix", "image.gram_matrix", "image.haar", "image.ssim"}  # not losses
    parts |= {"penalties.path_lengths", "perceptual.directions", "perceptual.distance"}
    parts |= {"perceptual.lpips_map", "image_text.same_rows"}
    parts |= {"image.gaussian_window", "moments.moments", "penalties.orthogonal"}  # no batch axis
    assert public == wrapped | parts | {c.name for c in CASES if c.fn.__module__ != __name__}


@every_loss
def test_one_float32_value_per_example(case):
    result = value(case, example(case))
    assert result.shape == (() if case.relational else (B,))
    assert result.dtype == jnp.float32


@every_loss
def test_half_precision_is_summed_in_float32(case):
    half = {name: jnp.asarray(x, jnp.bfloat16) for name, x in example(case).items()}
    result = value(case, half)
    assert result.dtype == jnp.float32
    exact = value(case, {name: x.astype(jnp.float32) for name, x in half.items()})
    np.testing.assert_allclose(result, exact, rtol=1e-6)


@every_loss
def test_float64_stays_float64(case, x64):
    assert jax.eval_shape(lambda a: case.fn(**a), example(case, np.float64)).dtype == jnp.float64


@every_loss
def test_jit_returns_the_same_value(case):
    arguments = example(case)
    np.testing.assert_allclose(value(case, arguments), case.fn(**arguments), rtol=2e-6, atol=1e-6)


@every_loss
def test_gradients_match_finite_differences(case, x64):
    arguments, h = example(case, np.float64), 1e-5
    rows = np.array(1.0) if case.relational else np.linspace(0.5, 1.5, B)
    names = sorted(case.shapes.keys() - set(case.constant))

    def loss(a):
        return jnp.sum(rows * case.fn(**a))

    def slopes(a, name):
        """The central difference along each entry of an argument."""
        steps = h * jnp.eye(a[name].size).reshape(-1, *a[name].shape)
        ends = [jax.vmap(lambda s, h=h: loss({**a, name: a[name] + s}))(h * steps) for h in (1, -1)]
        return ((ends[0] - ends[1]) / (2 * h)).reshape(a[name].shape)

    actual, numeric = jax.jit(
        lambda a: (jax.grad(loss)(a), {name: slopes(a, name) for name in names})
    )(arguments)
    for name in names:
        expected = np.asarray(numeric[name])
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(actual[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)


@every_loss
def test_constants_get_no_gradient(case):
    for name, gradient in gradients(case, example(case)).items():
        assert np.any(gradient) == (name not in case.constant), name


@table([c for c in CASES if c.zero_when_equal])
def test_zero_and_stationary_when_equal(case):
    x = next(iter(example(case).values()))
    equal = dict.fromkeys(case.shapes, x)
    # Without jit: compiled together, two equal sums may be rounded differently.
    np.testing.assert_allclose(case.fn(**equal), 0, atol=1e-7)
    for gradient in jax.grad(lambda a: case.fn(**a).sum())(equal).values():
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert np.all(value(case, example(case)) > 0)


@every_loss
def test_finite_at_zero_and_large_inputs(case):
    for signs in itertools.product((0, 1, -1), repeat=len(case.shapes)):
        arguments = {
            name: sign * np.where(np.indices(shape).sum(axis=0) % 2, 1e4, -1e4).astype(np.float32)
            for (name, shape), sign in zip(case.shapes.items(), signs, strict=True)
        }
        result, gradient = program(case)(arguments)
        assert np.all(np.isfinite(result)), signs
        for name, g in gradient.items():
            assert np.all(np.isfinite(g)), (signs, name)


@table([c for c in CASES if PATCHES in c.shapes.values()])
def test_patches_are_averaged(case):
    arguments = {name: x.reshape(B, -1) for name, x in example(case).items()}
    each = [case.fn(**{name: x[:, i] for name, x in arguments.items()}) for i in range(4)]
    np.testing.assert_allclose(case.fn(**example(case)), np.mean(each, axis=0), rtol=1e-5)


@table([c for c in CASES if not c.draws])
def test_equivariant_to_a_permutation_of_the_batch(case):
    order = np.array([2, 0, 1])
    arguments = example(case)
    permuted = value(
        case,
        {name: x if name in case.without_batch_axis else x[order] for name, x in arguments.items()},
    )
    result = value(case, arguments)
    np.testing.assert_allclose(permuted, result if case.relational else result[order], rtol=1e-5)


@table([c for c in CASES if not (c.draws or c.relational)])
def test_examples_are_independent(case):
    arguments = example(case)
    changed = {name: np.concatenate([x[:2], 2 + x[2:]]) for name, x in arguments.items()}
    np.testing.assert_allclose(value(case, changed)[:2], value(case, arguments)[:2], rtol=1e-6)


@every_loss
def test_a_missing_argument_is_named(case):
    for name in case.shapes:
        with pytest.raises(ValueError, match=rf"\b{name} is missing"):
            case.fn(**{**example(case), name: None})


@table([c for c in CASES if len(c.shapes) > 1])
def test_a_shape_error_names_both_shapes(case):
    (_, first), *_, (second, shape) = case.shapes.items()
    wrong = [(B + 1, *shape[1:]), (1, *shape[1:]), (*shape, 1)]
    if not case.any_last_axis:
        wrong.append((*shape[:-1], shape[-1] + 1))
    if case.relational:
        wrong.remove((*shape, 1))  # only the batch sizes must match
    for other in wrong:
        arguments = {**example(case), second: np.zeros(other, np.float32)}
        with pytest.raises(ValueError) as error:  # noqa: PT011 - both shapes are checked below
            case.fn(**arguments)
        assert str(first) in str(error.value)
        assert str(other) in str(error.value)
        assert second in str(error.value)

"""Methods: totals against the papers' formulas in numpy, training steps, and errors.

The outputs are those of the networks, with the student's networks in training mode and the frozen
ones not; all further computation of a method is repeated below in double precision.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import losses, methods
from kd_jax.core.network import CONNECTORS, Network, connect, connect_to, disconnect
from kd_jax.core.objective import BoundNetwork, Inputs, Term, Weight, init_terms, weighted_total
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import NetworkState, TrainState, init_state
from kd_jax.core.step import d_step, forward_pass, g_step, make_train_step
from kd_jax.core.types import Taps
from kd_jax.models import dcgan
from kd_jax.train import diagnostics

B, LATENT, STEPS = 4, 8, 10
TAPS = ("4x4", "8x8")  # of the generators
D_TAPS = ("8x8", "4x4", "features")  # of the discriminators, from first to last
LAYERS = ("8x8", "4x4")  # of the extractor
ADVERSARIAL = ("nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic")

FAST = {"xla_backend_optimization_level": 0}  # compilation dominates for tiny programs

RNG = np.random.default_rng(0)
DIRECTIONS = np.linalg.qr(RNG.normal(size=(LATENT, LATENT)))[0][:3].astype(np.float32)

METHODS = {
    "response": methods.response,
    "aguinaldo": methods.aguinaldo,
    "gan_compression": lambda **options: methods.gan_compression(TAPS, **options),
    "paired": lambda **options: methods.gan_compression(TAPS, paired=True, **options),
    "cat": lambda **options: methods.cat(TAPS, **options),
    "stylekd": lambda **options: methods.stylekd(jnp.asarray(DIRECTIONS), TAPS, LAYERS, **options),
    "tinygan": lambda **options: methods.tinygan(D_TAPS, STEPS, **options),
    "dgl": methods.dgl,
    "dcd": lambda **options: methods.dcd(TAPS, LAYERS, **options),
    "mobile_stylegan": lambda **options: methods.mobile_stylegan(LAYERS, **options),
    "soft_label": methods.soft_label,
    "discriminator_distillation": methods.discriminator_distillation,
}
"""The methods with an adversarial loss; `omgd` and `hinton` have none."""

TABLE = [(method, ADVERSARIAL[index % 5]) for index, method in enumerate(METHODS)]
TABLE += [("response", adversarial) for adversarial in ADVERSARIAL[1:]]
"""Each method with one adversarial loss, and `response` with all of them."""


def _build(method, adversarial="nonsaturating"):
    return METHODS[method](adversarial=getattr(methods, adversarial)())


# Networks.


class World(NamedTuple):
    nets: Networks
    students: PerNetwork
    teacher: Teacher
    batch: dict


def _task(key, batch):
    del key
    return Inputs((batch["z"],), (), batch.get("image"), batch)


def _random_variables(network, *inputs):
    """Variables of a scale that makes images and scores nonzero and distinct."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)

    def draw(path, leaf):
        name, x = path[-1].key, RNG.normal(size=leaf.shape)
        if name == "var":
            x = np.exp(0.3 * x)
        elif name == "scale":
            x = 1 + 0.3 * x
        else:
            x = x * {"kernel": 1.5 / math.sqrt(math.prod(leaf.shape[:-1]) or 1)}.get(name, 0.2)
        return jnp.asarray(x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _world(nets, image):
    z = RNG.normal(size=(B, LATENT)).astype(np.float32)
    nets = nets._replace(generator=connect_to(nets.generator, nets.teacher, TAPS, z))
    inputs = (z, image, z, image, image)
    variables = [_random_variables(network, x) for network, x in zip(nets, inputs, strict=True)]
    students, teacher = PerNetwork(*variables[:2]), Teacher(*variables[2:])
    return World(nets, students, teacher, {"image": image, "z": z})


@pytest.fixture(scope="module")
def world():
    ours, theirs = dcgan.gan(16, 2, channels=1), dcgan.gan(16, 4, channels=1)
    image = RNG.uniform(-1, 1, size=(B, 16, 16, 1)).astype(np.float32)
    return _world(Networks(*ours, *theirs, dcgan.discriminator(16, 3)), image)


def _matrices(width):
    """A generator and a discriminator of a few matrix products, which compile fast."""

    def draw(key, *shapes):
        return {"params": {str(i): {"kernel": jnp.zeros(x)} for i, x in enumerate(shapes)}}

    def generate(variables, z, train=False, rngs=None):
        first, second, last = (variables["params"][name]["kernel"] for name in "012")
        small = jnp.tanh(z @ first).reshape(-1, 2, 2, width)
        large = jnp.tanh(jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2) @ second)
        return jnp.tanh(large @ last), Taps({"4x4": small, "8x8": large}), variables

    def discriminate(variables, x, train=False, rngs=None):
        first, second = (variables["params"][name]["kernel"] for name in "01")
        large = jnp.tanh(x @ first)
        small = large.reshape(-1, 2, 2, 2, 2, width).mean(axis=(2, 4))
        features = small.reshape(-1, 4 * width)
        taps = Taps({"8x8": large, "4x4": small, "features": features})
        return (features @ second)[:, 0], taps, variables

    return PerNetwork(
        Network(lambda k, z: draw(k, (LATENT, 4 * width), (width, width), (width, 1)), generate),
        Network(lambda k, x: draw(k, (1, width), (4 * width, 1)), discriminate),
    )


@pytest.fixture(scope="module")
def small_world():
    image = RNG.uniform(-1, 1, size=(B, 4, 4, 1)).astype(np.float32)
    return _world(Networks(*_matrices(2), *_matrices(4), _matrices(3).discriminator), image)


@pytest.fixture(scope="module")
def outputs(world):
    """The outputs of the networks in double precision, the inputs of the formulas below."""
    nets, (generator, discriminator), teacher, batch = world

    @partial(jax.jit, compiler_options=FAST)
    def evaluate(z, real):
        image, taps, _ = nets.generator.apply(generator, z, train=True)
        target, teacher_taps, _ = nets.teacher.apply(teacher.generator, z)

        def discriminate(x):
            return nets.discriminator.apply(discriminator, x, train=True)[:2]

        def teacher_discriminate(x):
            return nets.teacher_discriminator.apply(teacher.discriminator, x)[0]

        def features(x):
            return nets.extractor.apply(teacher.extractor, x)[1]

        squares = jax.grad(lambda x: discriminate(x)[0].sum())
        return {
            "S": image,
            "T": target,
            "taps": dict(taps),
            "teacher_taps": dict(teacher_taps),
            "real": discriminate(real)[0],
            "fake": discriminate(image)[0],
            "teacher": discriminate(target)[0],
            "d_taps": (dict(discriminate(image)[1]), dict(discriminate(target)[1])),
            "teacher_real": teacher_discriminate(real),
            "teacher_fake": teacher_discriminate(image),
            "features": (dict(features(image)), dict(features(target))),
            "slopes": (squares(real), squares(image)),
        }

    return jax.tree.map(_double, evaluate(batch["z"], batch["image"]))


class Evaluated(NamedTuple):
    total: float
    terms: dict


@pytest.fixture(scope="module")
def evaluated(world):
    """`{(method, adversarial): PerNetwork of Evaluated}` at steps 0, `STEPS / 2` and `STEPS`."""
    pairs = {(method, adversarial): _build(method, adversarial) for method, adversarial in TABLE}
    pairs["omgd", None] = methods.omgd(LAYERS, TAPS)

    @partial(jax.jit, compiler_options=FAST)
    def evaluate(step):
        key = jax.random.key(3)
        f, _ = forward_pass(
            world.nets, _task, world.students, world.teacher, world.batch, key, step
        )

        def evaluate_terms(terms):
            return Evaluated(*weighted_total(terms, f, init_terms(terms))[:2])

        return {name: PerNetwork(*map(evaluate_terms, pair)) for name, pair in pairs.items()}

    return {
        step: jax.tree.map(float, evaluate(jnp.asarray(step))) for step in (0, STEPS // 2, STEPS)
    }


# The formulas.


def _double(x):
    return np.asarray(x, np.float64)


def _softplus(x):
    return np.logaddexp(0.0, x)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _l1(a, b):
    return np.mean(np.abs(a - b))


def _l2(a, b):
    return np.mean((a - b) ** 2)


def _alignment(a, b):
    kernels = [x.reshape(len(x), -1) @ x.reshape(len(x), -1).T for x in (a, b)]
    squares = [np.sum(k * k) for k in kernels]
    return np.sum(kernels[0] * kernels[1]) / np.sqrt(squares[0] * squares[1])


def _gram(x):
    return np.einsum("bhwc,bhwd->bcd", x, x) / x[0].size


def _ssim(a, b):
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.sum(window) ** 2

    def mean(x):
        padded = np.pad(x[..., 0], ((0, 0), (5, 5), (5, 5)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), axis=(1, 2))
        return np.einsum("bhwij,ij->bhw", windows, window)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))


def _variation(x):
    down, right = np.abs(np.diff(x, axis=1)), np.abs(np.diff(x, axis=2))
    return (down.sum() + right.sum()) / len(x)


def _lpips(ours, theirs, layers):
    total = 0.0
    for name in layers:
        a, b = (
            x[name] / np.sqrt(np.sum(x[name] ** 2, axis=-1, keepdims=True)) for x in (ours, theirs)
        )
        total += np.mean(np.sum((a - b) ** 2, axis=-1))
    return total


def _halved(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def _scales(s, t, count):
    values = []
    for _ in range(count):
        values.append(_l1(s, t) + _l2(s, t))
        s, t = _halved(s), _halved(t)
    return np.mean(values)


def _haar(x):
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    return np.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2


def _cross_entropy(p, logit):
    return np.mean(p * _softplus(-logit) + (1 - p) * _softplus(logit))


def _bernoulli_kl(student, teacher):
    p, q = _sigmoid(teacher), _sigmoid(student)
    return np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def _relation(ours, ours_shifted, theirs, theirs_shifted):
    def log_probabilities(a, b):
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
        cosines = a @ b.T / norms
        return cosines - np.log(np.sum(np.exp(cosines), axis=1, keepdims=True))

    log_p, log_q = log_probabilities(theirs, theirs_shifted), log_probabilities(ours, ours_shifted)
    return np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))


def _adversarial(adversarial, o):
    """The generator's and the discriminator's adversarial values."""
    real, fake = o["real"], o["fake"]
    g, d = {
        "nonsaturating": (_softplus(-fake), _softplus(-real) + _softplus(fake)),
        "hinge": (-fake, np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)),
        "least_squares": ((fake - 1) ** 2 / 2, (real - 1) ** 2 / 2 + fake**2 / 2),
        "wasserstein": (-fake, fake - real),
        "relativistic": (_softplus(real - fake), _softplus(fake - real)),
    }[adversarial]
    return np.mean(g), np.mean(d)


def _formula(method, o, step, batch):
    """`(adversarial weight, {term: (weight, value)})`, from the papers' equations."""
    s, t, pixel = o["S"], o["T"], _l1(o["S"], o["T"])
    own = {f"connected/{name}": name for name in TAPS}
    ours, theirs = o["taps"], o["teacher_taps"]
    d_taps, features = o["d_taps"], o["features"]
    connectors = sum(_l2(ours[a], theirs[b]) for a, b in own.items())
    if method == "response":
        return 1.0, {"pixel": (5.0, pixel)}
    if method == "aguinaldo":
        return 0.7, {"pixel": (0.3, _l2(s, t))}
    if method == "gan_compression":
        return 1.0, {"reconstruction": (100.0, pixel), "features": (1.0, connectors)}
    if method == "paired":
        target = _l1(s, _double(batch["image"]))
        return 1.0, {"reconstruction": (100.0, target), "features": (1.0, connectors)}
    if method == "cat":
        kernels = -sum(_alignment(ours[name], theirs[name]) for name in TAPS)
        return 1.0, {"reconstruction": (100.0, pixel), "alignment": (1.0, kernels)}
    if method == "omgd":
        grams = sum(_l1(_gram(features[0][n]), _gram(features[1][n])) for n in LAYERS)
        means = [(ours[a].mean(axis=(1, 2)), theirs[b].mean(axis=(1, 2))) for a, b in own.items()]
        return 0.0, {
            "structure": (10.0, 1 - _ssim(s, t)),
            "style": (1e4, grams),
            "content": (10.0, sum(_l1(features[0][n], features[1][n]) for n in LAYERS)),
            "smoothness": (1e-5, _variation(s)),
            "channels": (1.0, sum(_l2(a, b) for a, b in means)),
        }
    if method == "tinygan":
        layers = zip((1 / 8, 1 / 4, 1.0), D_TAPS, strict=True)
        return 0.1, {
            "features": (1.0, sum(w * _l1(d_taps[0][name], d_taps[1][name]) for w, name in layers)),
            "pixel": ({0: 0.2, STEPS // 2: 0.1, STEPS: 0.0}[step], pixel),
        }
    if method == "dgl":
        return 1.0, {"teacher": (0.1, np.mean(_softplus(-o["teacher_fake"])))}
    if method == "mobile_stylegan":
        bands = _haar(s), _haar(t)
        return 1.0, {
            "pixel": (1.0, _scales(s, t, 3)),
            "wavelet": (1.0, _l1(*bands) + _l2(*bands)),
            "perceptual": (1.0, _lpips(*features, LAYERS)),
        }
    if method == "soft_label":
        return 1.0, {"soft_label": (1.0, _cross_entropy(_sigmoid(o["teacher"]), o["fake"]))}
    assert method == "discriminator_distillation"
    return 1.0, {}


RANDOM = {"stylekd", "dcd"}  # methods with random draws, which are recorded below


def _check(actual, expected):
    """`actual`: Evaluated; `expected`: `{term: (weight, value)}`."""
    values = {k: v for k, v in actual.terms.items() if not k.endswith("/weight")}
    assert set(values) == set(expected)
    for name, (_, value) in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    total = sum(weight * value for weight, value in expected.values())
    np.testing.assert_allclose(actual.total, total, rtol=1e-4)


@pytest.mark.parametrize("step", [0, STEPS // 2, STEPS])
@pytest.mark.parametrize(("method", "adversarial"), [row for row in TABLE if row[0] not in RANDOM])
def test_the_generator_s_total_equals_the_formula(
    method, adversarial, step, world, outputs, evaluated
):
    scale, terms = _formula(method, outputs, step, world.batch)
    expected = {"adversarial": (scale, _adversarial(adversarial, outputs)[0]), **terms}
    _check(evaluated[step][method, adversarial].generator, expected)


def test_omgd_s_total_equals_the_formula(world, outputs, evaluated):
    _, terms = _formula("omgd", outputs, 0, world.batch)
    pair = evaluated[0]["omgd", None]
    _check(pair.generator, terms)
    assert pair.discriminator == Evaluated(0.0, {})
    assert set(methods.omgd(LAYERS).generator) == set(terms) - {"channels"}
    # The total is insensitive to such a small weight.
    assert methods.omgd(LAYERS).generator["smoothness"].weight == 1e-5


@pytest.mark.parametrize(
    ("method", "adversarial"), [pair for pair in TABLE if pair[1] != "wasserstein"]
)
def test_the_discriminator_s_total_equals_the_formula(method, adversarial, outputs, evaluated):
    r1, r2 = (np.sum(slope**2) / (2 * B) for slope in outputs["slopes"])
    expected = {"adversarial": (1.0, _adversarial(adversarial, outputs)[1])}
    if adversarial in ("nonsaturating", "relativistic"):
        expected["r1"] = (1.0, r1)
    if adversarial == "relativistic":
        expected["r2"] = (1.0, r2)
    if method == "discriminator_distillation":
        real = _bernoulli_kl(outputs["real"], outputs["teacher_real"])
        fake = _bernoulli_kl(outputs["fake"], outputs["teacher_fake"])
        expected["discriminator_kl"] = (1.0, (real + fake) / 2)
    _check(evaluated[0][method, adversarial].discriminator, expected)


def test_the_formulas_differ_for_these_networks(outputs):
    """With images or scores near zero, wrong formulas could agree with the correct ones."""
    o = outputs
    for name in ("S", "T", "real", "fake", "teacher", "teacher_fake", "teacher_real"):
        assert np.std(o[name]) > 0.02, name
    values = [
        _adversarial(adversarial, o)[0]
        for adversarial in ("nonsaturating", "hinge", "least_squares")
    ]
    values += [_l1(o["S"], o["T"]), _l2(o["S"], o["T"]), np.mean(_softplus(-o["teacher_fake"]))]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3


# Methods with random draws: the draws are recorded, and the values computed from them.


def _observe(world, terms, seed=3, nets=None, batch=None):
    """The values of terms, their further passes, and the taps of both generators."""
    nets, batch, calls = nets or world.nets, batch or world.batch, {}

    def evaluate(batch):
        key, step = jax.random.key(seed), jnp.asarray(0)
        f, _ = forward_pass(nets, _task, world.students, world.teacher, batch, key, step)

        def recording(name, fn):
            def record(x):
                calls.setdefault(name, []).append((x, *fn(x)))
                return fn(x)

            return BoundNetwork(record)

        f = f._replace(
            student=dataclasses.replace(f.student, network=recording("student", f.student)),
            teacher=dataclasses.replace(f.teacher, network=recording("teacher", f.teacher)),
            teacher_discriminator=recording("teacher_discriminator", f.teacher_discriminator),
        )
        _, values, _ = weighted_total(terms, f, init_terms(terms))
        return values, jax.tree.map(lambda x: x, calls), f.student.taps, f.teacher.taps

    result = jax.tree.map(_double, jax.jit(evaluate, compiler_options=FAST)(batch))
    calls.clear()
    return result


def test_stylekd_s_relation(world, outputs, evaluated):
    terms = _build("stylekd").generator
    values, calls, taps, teacher_taps = _observe(world, terms)
    (shifted, _, ours), (same, _, theirs) = calls["student"][0], calls["teacher"][0]
    np.testing.assert_array_equal(shifted, same)  # equal shifts of both
    relation = sum(_relation(taps[n], ours[n], teacher_taps[n], theirs[n]) for n in TAPS)
    assert relation > 1e-4
    np.testing.assert_allclose(values["relation"], relation, rtol=1e-3)

    actual = evaluated[0]["stylekd", "nonsaturating"].generator
    expected = {
        "adversarial": (1.0, _adversarial("nonsaturating", outputs)[0]),
        "pixel": (3.0, _l1(outputs["S"], outputs["T"])),
        "perceptual": (3.0, _lpips(*outputs["features"], LAYERS)),
        "relation": (30.0, actual.terms["relation"]),
    }
    _check(actual, expected)
    np.testing.assert_allclose(actual.terms["relation"], relation, rtol=1e-3)  # the same key


def test_stylekd_s_shifts(world):
    many = {"z": np.tile(world.batch["z"], (64, 1))}
    pair = methods.stylekd(jnp.asarray(DIRECTIONS), TAPS)
    assert set(pair.generator) == {"adversarial", "pixel", "relation"}  # no layers, no perceptual
    relation = {"relation": pair.generator["relation"]}
    shifts = []
    for seed in (0, 1):
        _, calls, _, _ = _observe(world, relation, seed, batch=many)
        shifts.append(calls["student"][0][0] - many["z"])
    assert not np.allclose(*shifts)
    along = np.concatenate(shifts) @ DIRECTIONS.T  # orthonormal: one of three is nonzero
    sizes = np.sort(np.abs(along), axis=1)
    np.testing.assert_allclose(sizes[:, :2], 0.0, atol=1e-4)
    counts = np.bincount(np.argmax(np.abs(along), axis=1), minlength=3)
    assert np.all(counts > 120)  # a third of 512 each
    assert np.std(along.sum(axis=1)) == pytest.approx(5.0, rel=0.12)
    assert abs(np.mean(along.sum(axis=1))) < 1.0


def test_dcd_compares_features_of_the_teacher_s_discriminator(world, outputs, evaluated):
    values, calls, taps, teacher_taps = _observe(world, _build("dcd").generator)
    calls = calls["teacher_discriminator"]
    assert len(calls) == 2 * len(TAPS)  # of the student and of the teacher, for each tap
    total = 0.0
    for index, name in enumerate(TAPS):
        (ours, _, our_taps), (theirs, _, their_taps) = calls[2 * index : 2 * index + 2]
        total += sum(_l1(our_taps[tap], their_taps[tap]) for tap in LAYERS)
        # The same linear map of the features' channels, at the image size.
        features = taps[f"connected/{name}"], teacher_taps[name]
        large = [
            _double(jax.image.resize(x.astype(np.float32), (B, 16, 16, x.shape[-1]), "linear"))
            for x in features
        ]
        flat = [x.reshape(-1, x.shape[-1]) for x in large]
        mix = np.linalg.lstsq(flat[1], theirs.reshape(-1), rcond=None)[0]
        np.testing.assert_allclose(flat[1] @ mix, theirs.reshape(-1), atol=1e-4)
        np.testing.assert_allclose(flat[0] @ mix, ours.reshape(-1), atol=1e-3)
        assert 0.1 < np.sum(mix**2) < 4.0  # each weight's variance is 1 / width, its mean is 0
        assert min(mix) < 0.0 < max(mix)
    np.testing.assert_allclose(values["features"], total, rtol=1e-4)

    actual = evaluated[0]["dcd", "wasserstein"].generator
    _check(
        actual,
        {
            "adversarial": (1.0, _adversarial("wasserstein", outputs)[0]),
            "pixel": (5.0, _l1(outputs["S"], outputs["T"])),
            "features": (1.0, total),
        },
    )


# Training.


def _state(world, pair):
    """The state before the first step, without a compiled `init_state` for each method."""
    generator, discriminator = world.students
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        generator=NetworkState(generator, SGD.generator.init(generator["params"])),
        discriminator=NetworkState(discriminator, SGD.discriminator.init(discriminator["params"])),
        ema=generator,
        terms=PerNetwork(init_terms(pair.generator), init_terms(pair.discriminator)),
    )


SGD = PerNetwork(optax.sgd(1e-3), optax.sgd(1e-3))


def _step(nets, pair, inputs=_task):
    return make_train_step(
        Setup(
            networks=nets,
            losses=PerNetwork(pair.generator, pair.discriminator),
            optimizers=SGD,
            task=inputs,
        )
    )


def _changes(before, after):
    """Whether each array has changed; all must be finite."""
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    return [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]


def _check_step(world, pair, state, metrics, reads):
    for prefix, terms in (("g", pair.generator), ("d", pair.discriminator)):
        assert {f"{prefix}/{name}" for name in terms} < set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    before, after = world.students.generator, state.generator.variables
    assert all(_changes(*(disconnect(variables)["params"] for variables in (before, after))))
    # Only terms that read connected features train the connectors.
    changes = _changes(*(variables["params"][CONNECTORS] for variables in (before, after)))
    assert changes == [reads] * 2 * len(TAPS)
    discriminator = world.students.discriminator["params"]
    assert any(_changes(discriminator, state.discriminator.variables["params"]))
    assert int(state.step) == 1


def test_every_method_trains(small_world):
    """A compiled step of each method, in one program to reduce compilation."""
    pairs = {method: _build(method, adversarial) for method, adversarial in TABLE[: len(METHODS)]}
    states = {method: _state(small_world, pair) for method, pair in pairs.items()}
    steps = {method: _step(small_world.nets, pair) for method, pair in pairs.items()}

    @partial(jax.jit, compiler_options=FAST)
    def all_steps(states, teacher, batch):
        return {method: step(states[method], teacher, batch) for method, step in steps.items()}

    before = jax.tree.map(np.array, small_world.teacher)
    results = all_steps(states, small_world.teacher, small_world.batch)
    assert not any(_changes(before, small_world.teacher))
    for method, (state, metrics) in results.items():
        reads = method in ("gan_compression", "paired", "dcd")
        _check_step(small_world, pairs[method], state, metrics, reads)


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ADVERSARIAL)
def test_every_method_trains_with_every_adversarial_loss(adversarial, request):
    """A compiled step of the adversarial loss and of all methods' own terms, as one method."""
    # Convolutions are slow to compile, and tested with one loss only.
    world = request.getfixturevalue("world" if adversarial == "nonsaturating" else "small_world")
    merged = PerNetwork(*map(dict, getattr(methods, adversarial)()))
    for method in METHODS:
        for terms, own in zip(merged, _build(method, adversarial), strict=True):
            new = [name for name in own if name not in terms]
            terms.update({f"{method}/{name}": own[name] for name in new})
    step = jax.jit(_step(world.nets, merged), compiler_options=FAST)
    state, metrics = step(_state(world, merged), world.teacher, world.batch)
    _check_step(world, merged, state, metrics, reads=True)


def test_omgd_trains_without_a_discriminator(small_world):
    world, pair = small_world, methods.omgd(LAYERS, TAPS)
    nets = world.nets._replace(discriminator=None)
    state = _state(world, pair)._replace(discriminator=())
    step = jax.jit(_step(nets, pair), compiler_options=FAST)
    state, metrics = step(state, world.teacher, {"z": world.batch["z"]})  # without real images
    assert all(_changes(world.students.generator["params"], state.generator.variables["params"]))
    assert set(metrics) == {f"g/{name}" for name in (*pair.generator, "total", "grad_norm")}
    assert all(np.isfinite(value) for value in metrics.values())


def test_no_gradient_reaches_the_teacher(small_world):
    world = small_world
    pairs = [_build(method) for method in METHODS] + [methods.omgd(LAYERS, TAPS)]

    def total(generator, teacher):
        students = world.students._replace(generator=generator)
        key, step = jax.random.key(3), jnp.asarray(0)
        f, _ = forward_pass(world.nets, _task, students, teacher, world.batch, key, step)
        return sum(
            weighted_total(terms, f, init_terms(terms))[0] for pair in pairs for terms in pair
        )

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), allow_int=True), compiler_options=FAST)
    ours, theirs = gradient(world.students.generator, world.teacher)
    assert optax.tree.norm(ours["params"]) > 0
    for leaf in jax.tree.leaves(theirs.generator):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


# Linear networks: the generator is `w x`, the teacher `3 x`, the discriminator `sum(v x)`.

IMAGES = RNG.uniform(0.5, 1.0, size=(3, 2, 2, 1)).astype(np.float32)
V = np.array([[0.3, -0.4], [1.2, 0.5]], np.float32).reshape(2, 2, 1)
SCALES = {"one": 1.0, "two": 10.0, "three": 100.0, "four": 1e3, "five": 1e4}


def _scaling(w):
    def init(key, x):
        return {"params": {"w": jnp.float32(w)}}

    def apply(variables, x, train=False, rngs=None):
        y = variables["params"]["w"] * x
        return y, Taps(feature=y, other=y[:, :1]), variables

    return Network(init, apply)


def _critic_apply(variables, x, train=False, rngs=None):
    scores = jnp.einsum("bhwc,hwc->b", x, variables["params"]["v"])
    return scores, Taps({name: scale * x for name, scale in SCALES.items()}), variables


CRITIC = Network(lambda key, x: {"params": {"v": jnp.asarray(V)}}, _critic_apply)
SCALARS = Networks(_scaling(0.5), CRITIC, _scaling(3.0))


def _scalar_task(key, batch):
    return Inputs((batch["x"],), (), batch.get("image"), batch)


SCALAR_BATCH = {"x": IMAGES, "image": IMAGES[::-1].copy()}


def _scalar_values(terms, step=0):
    students = PerNetwork({"params": {"w": jnp.float32(0.5)}}, {"params": {"v": jnp.asarray(V)}})
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    key, step = jax.random.key(0), jnp.asarray(step)
    f, _ = forward_pass(SCALARS, _scalar_task, students, teacher, SCALAR_BATCH, key, step)
    total, values, _ = weighted_total(terms, f, init_terms(terms))
    return float(total), {name: float(value) for name, value in values.items()}


def test_penalties_of_a_linear_critic():
    """Its gradient is V everywhere, so that the interpolation between images is irrelevant."""
    norm = math.sqrt(float(np.sum(_double(V) ** 2)))
    assert norm == pytest.approx(1.3928, rel=1e-4)
    _, values = _scalar_values(methods.wasserstein().discriminator)
    assert values["gradient_penalty"] == pytest.approx((norm - 1) ** 2, rel=1e-4)
    fake, real = 0.5 * IMAGES, SCALAR_BATCH["image"]
    difference = np.mean([np.sum(V * f) - np.sum(V * r) for f, r in zip(fake, real, strict=True)])
    assert values["adversarial"] == pytest.approx(difference, rel=1e-4)
    total, _ = _scalar_values(methods.wasserstein().discriminator)
    assert total == pytest.approx(difference + 10 * (norm - 1) ** 2, rel=1e-4)
    assert methods.wasserstein(2.5).discriminator["gradient_penalty"].weight == 2.5

    _, values = _scalar_values(methods.relativistic().discriminator)
    assert values["r1"] == values["r2"] == pytest.approx(norm**2 / 2, rel=1e-4)
    for adversarial, names in (("nonsaturating", ["r1"]), ("relativistic", ["r1", "r2"])):
        terms = getattr(methods, adversarial)(gamma=7.0, every=4).discriminator
        assert [terms[name][1:3] for name in names] == [(7.0, 4)] * len(names)


def test_the_gradient_penalty_is_between_real_and_generated_images():
    """For a critic whose gradient is the image: with black real images, a fraction of the fake."""

    def apply(variables, x, train=False, rngs=None):
        return variables["params"]["half"] * jnp.sum(x**2, axis=(1, 2, 3)), Taps(), variables

    nets = SCALARS._replace(discriminator=Network(None, apply))
    students = PerNetwork(
        {"params": {"w": jnp.float32(0.5)}}, {"params": {"half": jnp.float32(0.5)}}
    )
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    batch = {"x": IMAGES, "image": np.zeros_like(IMAGES)}
    fn = methods.wasserstein().discriminator["gradient_penalty"].fn
    norms = np.sqrt(np.sum((0.5 * _double(IMAGES)) ** 2, axis=(1, 2, 3)))
    assert max(norms) < 1.0
    fractions = []
    for seed in range(2):
        key, step = jax.random.key(seed), jnp.asarray(0)
        f, _ = forward_pass(nets, _scalar_task, students, teacher, batch, key, step)
        fractions += list((1 - np.sqrt(_double(fn(f)))) / norms)
    assert 0.0 < min(fractions) < max(fractions) < 1.0
    assert len(set(np.round(fractions, 4))) == 2 * len(
        IMAGES
    )  # each pair has its own interpolation


def test_tinygan_s_five_layers():
    pair = methods.tinygan(tuple(SCALES), steps=100)
    expected = 2.5 * float(np.mean(_double(IMAGES)))  # |0.5 x - 3 x|
    layers = 1 / 32 + 10 / 16 + 100 / 8 + 1e3 / 4 + 1e4
    for step, weight in ((0, 0.2), (25, 0.15), (50, 0.1), (100, 0.0), (1000, 0.0)):
        _, values = _scalar_values(pair.generator, step)
        assert values["features"] == pytest.approx(layers * expected, rel=1e-4)
        assert values["pixel"] == pytest.approx(expected, rel=1e-4)
        assert values["pixel/weight"] == pytest.approx(weight, abs=1e-6)
    for name in SCALES:  # a single layer has weight 1
        _, values = _scalar_values(methods.tinygan([name], 1).generator)
        assert values["features"] == pytest.approx(SCALES[name] * expected, rel=1e-4)


def test_on_taps_sums_over_pairs_of_names():
    crossed = {"feature": "feature", "other": "other"}
    terms = {"l2": Term(methods.on_taps(losses.feature.l2, crossed))}
    _, values = _scalar_values(terms)
    squares = _double(IMAGES) ** 2
    expected = 6.25 * (np.mean(squares) + np.mean(squares[:, :1]))
    assert values["l2"] == pytest.approx(expected, rel=1e-4)
    # The first name is the student's, the second the teacher's.
    pairs = []
    terms = {
        "one": Term(methods.on_taps(lambda s, t: pairs.append((s, t)) or 0.0, {"other": "feature"}))
    }
    _scalar_values(terms)
    ((student, teacher),) = pairs
    np.testing.assert_allclose(student, 0.5 * IMAGES[:, :1], rtol=1e-6)
    np.testing.assert_allclose(teacher, 3.0 * IMAGES, rtol=1e-6)


# Classifiers.

CLASSIFIER_BATCH = {
    "x": RNG.normal(size=(5, 6)).astype(np.float32),
    "label": np.array([0, 2, 1, 2, 0], np.int32),
}


def _dense(seed):
    kernel = 2.0 * np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32)

    def apply(variables, x, train=False, rngs=None):
        return x @ variables["params"]["kernel"], Taps(), variables

    return Network(lambda key, x: {"params": {"kernel": jnp.asarray(kernel)}}, apply), kernel


@pytest.mark.parametrize(
    ("settings", "alpha", "t"),
    [({}, 0.5, 4.0), ({"alpha": 0.9, "temperature": 2.0}, 0.9, 2.0), ({"alpha": 0.0}, 0.0, 4.0)],
)
def test_hinton(settings, alpha, t):
    (student, ours), (teacher, theirs) = _dense(1), _dense(2)
    x, label = _double(CLASSIFIER_BATCH["x"]), CLASSIFIER_BATCH["label"]

    def softmax(logits):
        return np.exp(logits) / np.sum(np.exp(logits), axis=1, keepdims=True)

    hard = -np.mean(np.log(softmax(x @ ours)[np.arange(5), label]))
    p, q = softmax(x @ theirs / t), softmax(x @ ours / t)
    soft = t**2 * np.mean(np.sum(p * np.log(p / q), axis=1))

    pair = methods.hinton(**settings)
    nets = Networks(student, None, teacher)
    parts = {
        "networks": nets,
        "optimizers": SGD,
        "task": _scalar_task,
        "losses": PerNetwork(pair.generator, pair.discriminator),
    }
    state = init_state(Setup(**parts), jax.random.key(0), CLASSIFIER_BATCH)
    variables = Teacher({"params": {"kernel": jnp.asarray(theirs)}})
    state, metrics = jax.jit(make_train_step(Setup(**parts)))(state, variables, CLASSIFIER_BATCH)
    assert set(metrics) == {"g/hinton", "g/total", "g/grad_norm"}
    for name in ("g/hinton", "g/total"):
        np.testing.assert_allclose(metrics[name], alpha * hard + (1 - alpha) * soft, rtol=1e-5)
    assert not np.array_equal(state.generator.variables["params"]["kernel"], ours)


def test_hinton_of_labels_alone_needs_no_teacher():
    (student, ours), x = _dense(1), _double(CLASSIFIER_BATCH["x"])
    logits = x @ ours
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -logs[np.arange(5), CLASSIFIER_BATCH["label"]].mean()
    parts = {
        "networks": Networks(student),
        "optimizers": SGD,
        "task": _scalar_task,
        "losses": PerNetwork(methods.hinton(alpha=1.0).generator, {}),
    }
    state = init_state(Setup(**parts), jax.random.key(0), CLASSIFIER_BATCH)
    _, metrics = jax.jit(make_train_step(Setup(**parts)))(state, None, CLASSIFIER_BATCH)
    np.testing.assert_allclose(metrics["g/hinton"], expected, rtol=1e-5)


# Defaults.

WEIGHTS = {
    "response": {"pixel": 5.0},
    "aguinaldo": {"adversarial": 0.7, "pixel": 0.3},
    "gan_compression": {"reconstruction": 100.0, "features": 1.0},
    "paired": {"reconstruction": 100.0, "features": 1.0},
    "cat": {"reconstruction": 100.0, "alignment": 1.0},
    "stylekd": {"pixel": 3.0, "perceptual": 3.0, "relation": 30.0},
    "tinygan": {"adversarial": 0.1, "features": 1.0, "pixel": None},
    "dgl": {"teacher": 0.1},
    "dcd": {"pixel": 5.0, "features": 1.0},
    "mobile_stylegan": {"pixel": 1.0, "wavelet": 1.0, "perceptual": 1.0},
    "soft_label": {"soft_label": 1.0},
    "discriminator_distillation": {},
    "omgd": {
        "structure": 10.0,
        "style": 1e4,
        "content": 10.0,
        "smoothness": 1e-5,
        "channels": 1.0,
    },
    "hinton": {"hinton": 1.0},
}
"""The documented weights; 1 for an adversarial term not listed. None: a schedule, tested above."""


@pytest.mark.parametrize("method", WEIGHTS)
def test_default_weights(method):
    non_adversarial = {"omgd": lambda: methods.omgd(LAYERS, TAPS), "hinton": methods.hinton}
    pair = METHODS[method]() if method in METHODS else non_adversarial[method]()
    adversarial = {} if method in non_adversarial else {"adversarial": 1.0}
    expected = {**adversarial, **WEIGHTS[method]}
    assert set(pair.generator) == set(expected)
    for name, weight in expected.items():
        if weight is not None:
            assert pair.generator[name].weight == pytest.approx(weight, rel=1e-9), name
    if method in non_adversarial:
        assert pair.discriminator == {}
        return
    own = {"discriminator_kl": 1.0} if method == "discriminator_distillation" else {}
    weights = {name: term.weight for name, term in pair.discriminator.items()}
    assert weights == {
        "adversarial": 1.0,
        "r1": 1.0,
        **own,
    }  # non-saturating by default


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: methods.response(7.0), {"pixel": 7.0}),
        (lambda: methods.aguinaldo(0.9), {"adversarial": 0.1, "pixel": 0.9}),
        (
            lambda: methods.gan_compression(TAPS, reconstruction=2.0, distill=3.0),
            {"reconstruction": 2.0, "features": 3.0},
        ),
        (
            lambda: methods.cat(TAPS, reconstruction=2.0, alignment=3.0),
            {"reconstruction": 2.0, "alignment": 3.0},
        ),
        (
            lambda: methods.omgd(
                LAYERS, TAPS, structure=2.0, style=3.0, content=4.0, smoothness=5.0, channels=6.0
            ),
            {"structure": 2.0, "style": 3.0, "content": 4.0, "smoothness": 5.0, "channels": 6.0},
        ),
        (
            lambda: methods.stylekd(
                DIRECTIONS, TAPS, LAYERS, pixel=2.0, perceptual=4.0, relation=5.0
            ),
            {"pixel": 2.0, "perceptual": 4.0, "relation": 5.0},
        ),
        (
            lambda: methods.tinygan(D_TAPS, 5, feature=2.0, adversarial_weight=0.5),
            {"features": 2.0, "adversarial": 0.5},
        ),
        (lambda: methods.dgl(0.4), {"teacher": 0.4}),
        (
            lambda: methods.dcd(TAPS, D_TAPS, pixel=2.0, distill=3.0),
            {"pixel": 2.0, "features": 3.0},
        ),
        (
            lambda: methods.mobile_stylegan(LAYERS, pixel=2.0, wavelet=3.0, perceptual=4.0),
            {"pixel": 2.0, "wavelet": 3.0, "perceptual": 4.0},
        ),
        (lambda: methods.soft_label(3.0), {"soft_label": 3.0}),
    ],
)
def test_each_weight_has_its_argument(make, weights):
    terms = make().generator
    assert {name: terms[name].weight for name in weights} == pytest.approx(weights)


def test_other_settings(world, outputs):
    """Settings other than weights: the number of scales, and the temperature."""

    def value(pair, network, name):
        terms = {name: getattr(pair, network)[name]}
        return _observe(world, terms)[0][name]

    two = value(methods.mobile_stylegan(scales=2), "generator", "pixel")
    np.testing.assert_allclose(two, _scales(outputs["S"], outputs["T"], 2), rtol=1e-4)
    assert "perceptual" not in methods.mobile_stylegan().generator

    pair = methods.discriminator_distillation(3.0, temperature=2.0)
    assert pair.discriminator["discriminator_kl"].weight == 3.0
    real = _bernoulli_kl(outputs["real"] / 2, outputs["teacher_real"] / 2)
    fake = _bernoulli_kl(outputs["fake"] / 2, outputs["teacher_fake"] / 2)
    divergence = value(pair, "discriminator", "discriminator_kl")
    np.testing.assert_allclose(divergence, 4 * (real + fake) / 2, rtol=1e-4)
    # Without real images, only the generated ones count.
    terms = {
        "discriminator_kl": methods.discriminator_distillation().discriminator["discriminator_kl"]
    }
    values = _observe(world, terms, batch={"z": world.batch["z"]})[0]
    expected = _bernoulli_kl(outputs["fake"], outputs["teacher_fake"])
    np.testing.assert_allclose(values["discriminator_kl"], expected, rtol=1e-4)


# Methods are plain dicts.


@pytest.mark.parametrize("adversarial", ADVERSARIAL)
@pytest.mark.parametrize("method", METHODS)
def test_the_adversarial_loss_is_passed_through(method, adversarial):
    loss = getattr(methods, adversarial)()
    pair = METHODS[method](adversarial=loss)
    assert {name: pair.discriminator[name] for name in loss.discriminator} == loss.discriminator
    for name, term in loss.generator.items():
        scale = WEIGHTS[method].get(name, 1.0)
        assert pair.generator[name]._replace(weight=1.0) == term._replace(weight=1.0)
        assert pair.generator[name].weight == pytest.approx(scale * term.weight)
    assert set(loss.generator) == {"adversarial"}  # the argument is not modified


@pytest.mark.parametrize(
    "make",
    [methods.aguinaldo, lambda adversarial: methods.tinygan(D_TAPS, 9, adversarial=adversarial)],
)
def test_weights_of_the_adversarial_loss_are_scaled(make, world):
    """Numbers, schedules and adaptive weights are all multiplied."""
    loss = methods.hinge()
    term = loss.generator["adversarial"]
    scale = make(adversarial=loss).generator["adversarial"].weight
    for weight, value in (
        (2.0, 2.0),
        (optax.linear_schedule(4.0, 0.0, 10), 4.0),
        (Weight(lambda forward, _, value, state: (6.0, state)), 6.0),
    ):
        adversarial = loss._replace(generator={"adversarial": term._replace(weight=weight)})
        terms = {"adversarial": make(adversarial=adversarial).generator["adversarial"]}
        total, values = _scalar_values(terms)
        assert total == pytest.approx(scale * value * values["adversarial"], rel=1e-5)


def test_methods_can_be_merged_and_edited():
    first = methods.mobile_stylegan(scales=1, adversarial=methods.hinge())
    merged = {**first.generator, **methods.tinygan(tuple(SCALES), 10).generator}
    assert set(merged) == {"adversarial", "pixel", "wavelet", "features"}
    merged["wavelet"] = merged["wavelet"]._replace(weight=0.25)
    merged["adversarial"] = first.generator["adversarial"]
    merged.pop("pixel")
    total, values = _scalar_values(merged)
    assert set(values) == {"adversarial", "wavelet", "features"}
    expected = values["adversarial"] + 0.25 * values["wavelet"] + values["features"]
    assert total == pytest.approx(expected, rel=1e-5)
    score = np.mean(np.sum(0.5 * _double(IMAGES) * V, axis=(1, 2, 3)))
    assert values["adversarial"] == pytest.approx(-score, rel=1e-5)
    assert first.generator["wavelet"].weight == 1.0


# Lower bounds.


def test_lower_bounds():
    for adversarial in ADVERSARIAL:
        pair = getattr(methods, adversarial)()
        assert pair.generator["adversarial"].lower_bound is None
        lower_bound = pair.discriminator["adversarial"].lower_bound
        assert lower_bound == (None if adversarial == "wasserstein" else 0.0)
    assert methods.cat(TAPS).generator["alignment"].lower_bound == -2.0
    assert methods.cat({"4x4": "8x8"}).generator["alignment"].lower_bound == -1.0
    assert methods.cat(["a", "b", "c"]).generator["alignment"].lower_bound == -3.0


def test_cat_is_at_its_lower_bound_for_the_teacher_s_features():
    pair = methods.cat(["feature", "other"])
    own = {"alignment": pair.generator["alignment"]}
    # The student's features are a sixth of the teacher's: kernels are scale invariant.
    total, values = _scalar_values(own)
    assert total == values["alignment"] == pytest.approx(-2.0, abs=1e-5)
    setup = Setup(SCALARS, PerNetwork(own), SGD, _scalar_task)
    state = init_state(setup, jax.random.key(0), SCALAR_BATCH)
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    probe = jax.jit(diagnostics.probe(setup), compiler_options=FAST)
    figures = probe(state, teacher, SCALAR_BATCH)[1]
    assert abs(figures["above_lower_bound/g/alignment"]) < 1e-5
    assert any(
        "g/alignment is at its lower bound" in line for line in diagnostics.warnings(figures)
    )


def test_cat_is_above_its_lower_bound_for_other_features(evaluated):
    assert evaluated[0]["cat", "relativistic"].generator.terms["alignment"] > -1.99


# Errors. Steps are traced, never compiled or run.


def _trace(world, terms, nets=None, *, network="generator", batch=None, inputs=_task):
    nets = nets or world.nets
    setup = Setup(nets, PerNetwork({}, {})._replace(**{network: terms}), SGD, inputs)
    step = {"generator": g_step, "discriminator": d_step}[network](setup)
    batch = world.batch if batch is None else batch
    state = jax.eval_shape(lambda: init_state(setup, jax.random.key(0), batch))
    return jax.eval_shape(step, state, world.teacher, batch)


def _error(*args, **kwargs):
    with pytest.raises(ValueError, match=r"^term '") as error:
        _trace(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


KNOWN = "'4x4', '8x8'"


@pytest.mark.parametrize(
    ("make", "term", "parts"),
    [
        (
            lambda: methods.cat(["9x9"]),
            "alignment",
            ("the student: no tap '9x9'", KNOWN),
        ),
        (
            lambda: methods.cat({"4x4": "9x9"}),
            "alignment",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: methods.gan_compression({"4x4": "9x9"}),
            "features",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: methods.gan_compression(["9x9"]),
            "features",
            ("the student: no tap 'connected/9x9'", KNOWN),
        ),
        (
            lambda: methods.omgd(LAYERS, ["9x9"]),
            "channels",
            ("the student: no tap 'connected/9x9'", KNOWN),
        ),
        (
            lambda: methods.stylekd(DIRECTIONS, {"9x9": "8x8"}),
            "relation",
            ("the student: no tap '9x9'", KNOWN),
        ),
        (
            lambda: methods.stylekd(DIRECTIONS, {"8x8": "9x9"}),
            "relation",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: methods.stylekd(np.ones((3, 5), np.float32), TAPS),
            "relation",
            ("directions (3, 5)", "latents (4, 8)"),
        ),
        (
            lambda: methods.tinygan(["9x9"], 5),
            "features",
            ("no tap '9x9'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: methods.dcd(TAPS, ["9x9"]),
            "features",
            ("no tap '9x9'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: methods.omgd(["8x8", "conv1"]),
            "style",
            ("the extractor: no tap 'conv1'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: methods.mobile_stylegan(["conv1"]),
            "perceptual",
            ("the extractor: no tap 'conv1'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: PerNetwork({"l2": Term(methods.on_taps(losses.feature.l2, {"4x4": "8x8"}))}),
            "l2",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 4)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: methods.gan_compression({"4x4": "8x8"}),
            "features",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 8)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: methods.dcd({"4x4": "8x8"}, LAYERS),
            "features",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 8)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: methods.mobile_stylegan(scales=9),
            "pixel",
            ("(4, 16, 16, 1) cannot be halved 8 times",),
        ),
    ],
)
def test_taps_and_shapes_that_do_not_fit_raise(make, term, parts, world):
    message = _error(world, make().generator)
    assert message.startswith(f"term '{term}': ")
    for part in parts:
        assert part in message
    assert "connect" not in message.replace("connected/", "")


@pytest.mark.parametrize(
    ("make", "term"),
    [
        (lambda: methods.gan_compression(TAPS), "features"),
        (lambda: methods.dcd(TAPS, LAYERS), "features"),
        (lambda: methods.omgd(LAYERS, TAPS), "channels"),
    ],
)
def test_an_unconnected_student_raises_with_a_hint(make, term, world):
    plain = world.nets._replace(generator=dcgan.generator(16, 2, channels=1))
    message = _error(world, make().generator, plain)
    assert message.startswith(f"term '{term}': the student: no tap 'connected/4x4'; ")
    assert KNOWN in message
    assert message.endswith("(connect the student first: connect_to)")


TEACHERLESS = [name for name in METHODS if name not in ("dgl", "discriminator_distillation")]


@pytest.mark.parametrize("method", [*TEACHERLESS, "omgd"])
def test_no_teacher(method, world):
    pair = methods.omgd(LAYERS, TAPS) if method == "omgd" else _build(method)
    for name, term in pair.generator.items():
        if name in ("adversarial", "smoothness") or (method, name) == ("paired", "reconstruction"):
            continue
        message = _error(world, {name: term}, world.nets._replace(teacher=None))
        assert message.startswith(f"term {name!r}: ")
        assert "networks.teacher is None" in message


@pytest.mark.parametrize(
    ("make", "network", "term"),
    [
        (methods.dgl, "generator", "teacher"),
        (lambda: methods.dcd(TAPS, LAYERS), "generator", "features"),
        (methods.discriminator_distillation, "discriminator", "discriminator_kl"),
    ],
)
def test_no_teacher_discriminator(make, network, term, world):
    nets = world.nets._replace(teacher_discriminator=None)
    message = _error(world, getattr(make(), network), nets, network=network)
    assert message.startswith(f"term {term!r}: ")
    assert "networks.teacher_discriminator is None" in message


@pytest.mark.parametrize(
    ("make", "term"),
    [
        (lambda: methods.omgd(LAYERS), "style"),
        (lambda: methods.stylekd(DIRECTIONS, TAPS, LAYERS), "perceptual"),
        (lambda: methods.mobile_stylegan(LAYERS), "perceptual"),
    ],
)
def test_no_extractor(make, term, world):
    nets = world.nets._replace(extractor=None)
    message = _error(world, make().generator, nets)
    assert message.startswith(f"term {term!r}: ")
    assert "networks.extractor is None" in message


@pytest.mark.parametrize("method", ["tinygan", "soft_label"])
def test_no_discriminator(method, world):
    terms = _build(method).generator
    own = {name: term for name, term in terms.items() if name != "adversarial"}
    nets = world.nets._replace(discriminator=None)
    for some in (own, terms):
        assert "networks.discriminator is None" in _error(world, some, nets)


def test_no_real_images(world):
    batch = {"z": world.batch["z"]}
    for make in (methods.gan_compression, methods.cat):
        own = {"reconstruction": make(TAPS, paired=True).generator["reconstruction"]}
        message = _error(world, own, batch=batch)
        assert message.startswith("term 'reconstruction': ")
        assert "Inputs(real=None)" in message
    penalty = {"penalty": methods.wasserstein().discriminator["gradient_penalty"]}
    message = _error(world, penalty, batch=batch, network="discriminator")
    assert message.startswith("term 'penalty': ")
    assert "Inputs(real=None)" in message


def test_hinton_without_labels():
    student, teacher = _dense(1)[0], _dense(2)[0]
    batch = {"x": CLASSIFIER_BATCH["x"]}
    variables = Teacher(jax.eval_shape(teacher.init, None, batch["x"]))
    classifiers = World(Networks(student, None, teacher), None, variables, batch)
    message = _error(classifiers, methods.hinton().generator, inputs=_scalar_task)
    assert message == "term 'hinton': labels are needed; inputs.extra has ['x']"
    without_teacher = classifiers._replace(nets=Networks(student), batch=CLASSIFIER_BATCH)
    message = _error(without_teacher, methods.hinton().generator, inputs=_scalar_task)
    assert message.startswith("term 'hinton': ")
    assert "networks.teacher is None" in message


@pytest.mark.parametrize("method", ["cat", "stylekd"])
def test_a_batch_of_one_raises_for_relations(method, world):
    one = {name: value[:1] for name, value in world.batch.items()}
    message = _error(world, _build(method).generator, batch=one)
    assert "student has shape (1, 4, 4, 4)" in message
    name = {"cat": "alignment", "stylekd": "relation"}[method]
    assert message.startswith(f"term '{name}': ")
    assert "student's tap '4x4' and teacher's '4x4'" in message


@pytest.mark.parametrize("taps", ["4x4", "", (), [], {}])
@pytest.mark.parametrize(
    "make",
    [
        methods.gan_compression,
        methods.cat,
        lambda taps: methods.stylekd(DIRECTIONS, taps),
        lambda taps: methods.tinygan(taps, 5),
        lambda taps: methods.dcd(taps, LAYERS),
        lambda taps: methods.dcd(TAPS, taps),
        methods.omgd,
        lambda taps: methods.on_taps(losses.feature.l2, taps),
    ],
)
def test_taps_are_a_sequence_of_names(make, taps):
    with pytest.raises(ValueError, match=r"^taps=.*: expected a sequence of names"):
        make(taps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: methods.omgd(LAYERS, "4x4"),
        lambda: methods.stylekd(DIRECTIONS, TAPS, "4x4"),
        lambda: methods.mobile_stylegan("4x4"),
    ],
)
def test_optional_taps_are_not_a_string(make):
    with pytest.raises(ValueError, match="taps='4x4': expected a sequence"):
        make()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("make", [methods.aguinaldo, methods.hinton])
def test_alpha_outside_its_range_raises(make, alpha):
    with pytest.raises(ValueError, match=rf"^alpha={alpha} is not in \[0, 1\]$"):
        make(alpha)
    make(0.0)
    make(1.0)


def test_invalid_directions_and_steps_raise():
    with pytest.raises(ValueError, match=r"directions \(8,\) are not \[K, latent\]"):
        methods.stylekd(np.ones(8, np.float32), TAPS)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"^steps={steps} is not a positive number$"):
            methods.tinygan(D_TAPS, steps)


@pytest.mark.parametrize("temperature", [0.0, -4.0, math.inf, math.nan])
def test_a_temperature_that_is_not_positive_raises(temperature):
    with pytest.raises(ValueError, match=f"^temperature={temperature} is not a positive number$"):
        methods.hinton(0.5, temperature)


@pytest.mark.parametrize("setting", [{"cycle": -1.0}, {"identity": -0.5}, {"pool": -1}], ids=str)
def test_negative_settings_of_cyclegan_raise(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name}={value} must be finite and not negative$"):
        methods.cyclegan((8, 8, 3), **setting)


def test_cyclegan_s_weights_may_be_schedules():
    pair = methods.cyclegan((8, 8, 3), cycle=lambda step: 10.0, identity=lambda step: 5.0)
    assert set(pair.generator) == {"adversarial", "cycle", "identity"}


def test_a_connector_of_another_width_raises(world):
    """The fixed projection of dcd needs equal channels of both features."""
    plain = dcgan.generator(16, 2, channels=1)
    nets = world.nets._replace(generator=connect(plain, {"4x4": (B, 4, 4, 7)}))
    message = _error(world, methods.dcd(["4x4"], LAYERS).generator, nets)
    assert message.startswith("term 'features': student's tap '4x4' and teacher's '4x4': ")
    assert "(4, 4, 4, 7)" in message

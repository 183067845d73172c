"""Recipes: their totals against the papers' formulas in numpy, how they train, what they refuse.

The networks' outputs are taken from the networks themselves, with the student's in training mode
and everybody else's not; all that a recipe makes of them is worked out below in double precision.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import health, losses, recipes
from kd_jax.models import dcgan
from kd_jax.network import CONNECTORS, Network, connect, connect_to, disconnect
from kd_jax.objective import Bound, Inputs, Term, Weight, init_terms, weighted_total
from kd_jax.state import Networks, Pair, Player, Teacher, TrainState, init_state
from kd_jax.step import d_step, forward_pass, g_step, make_train_step
from kd_jax.types import Taps

B, LATENT, STEPS = 4, 8, 10
TAPS = ("4x4", "8x8")  # of the generators
SEEN = ("8x8", "4x4", "features")  # of the discriminators, from the first to the last
LAYERS = ("8x8", "4x4")  # of the extractor
GAMES = ("nonsaturating", "hinge", "least_squares", "wasserstein", "relativistic")

FAST = {"xla_backend_optimization_level": 0}  # tiny programs: compiling is what takes time

RNG = np.random.default_rng(0)
DIRECTIONS = np.linalg.qr(RNG.normal(size=(LATENT, LATENT)))[0][:3].astype(np.float32)

RECIPES = {
    "response": recipes.response,
    "aguinaldo": recipes.aguinaldo,
    "gan_compression": lambda **game: recipes.gan_compression(TAPS, **game),
    "paired": lambda **game: recipes.gan_compression(TAPS, paired=True, **game),
    "cat": lambda **game: recipes.cat(TAPS, **game),
    "stylekd": lambda **game: recipes.stylekd(jnp.asarray(DIRECTIONS), TAPS, LAYERS, **game),
    "tinygan": lambda **game: recipes.tinygan(SEEN, STEPS, **game),
    "dgl": recipes.dgl,
    "dcd": lambda **game: recipes.dcd(TAPS, LAYERS, **game),
    "mobile_stylegan": lambda **game: recipes.mobile_stylegan(LAYERS, **game),
    "soft_label": recipes.soft_label,
    "discriminator_distillation": recipes.discriminator_distillation,
}
"""Those with a game; `omgd` and `hinton` have none."""

TABLE = [(recipe, GAMES[index % 5]) for index, recipe in enumerate(RECIPES)]
TABLE += [("response", game) for game in GAMES[1:]]
"""Each recipe with one game, and one with every game: a recipe takes any game as it is (below)."""


def _made(recipe, game="nonsaturating"):
    return RECIPES[recipe](game=getattr(recipes, game)())


# Networks.


class World(NamedTuple):
    nets: Networks
    players: Pair
    teacher: Teacher
    batch: dict


def _task(key, batch):
    del key
    return Inputs((batch["z"],), (), batch.get("image"), batch)


def _drawn(network, *inputs):
    """Variables so large that images and scores are far from zero and from each other."""
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
    given = (z, image, z, image, image)
    made = [_drawn(network, x) for network, x in zip(nets, given, strict=True)]
    return World(nets, Pair(*made[:2]), Teacher(*made[2:]), {"image": image, "z": z})


@pytest.fixture(scope="module")
def world():
    ours, theirs = dcgan.gan(16, 2, channels=1), dcgan.gan(16, 4, channels=1)
    image = RNG.uniform(-1, 1, size=(B, 16, 16, 1)).astype(np.float32)
    return _world(Networks(*ours, *theirs, dcgan.discriminator(16, 3)), image)


def _matrices(width):
    """A generator and a discriminator of a few products, which compile at once."""

    def draw(key, *shapes):
        return {"params": {str(i): {"kernel": jnp.zeros(x)} for i, x in enumerate(shapes)}}

    def generate(variables, z, train=False, rngs=None):
        first, second, last = (variables["params"][name]["kernel"] for name in "012")
        small = jnp.tanh(z @ first).reshape(-1, 2, 2, width)
        large = jnp.tanh(jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2) @ second)
        return jnp.tanh(large @ last), Taps({"4x4": small, "8x8": large}), variables

    def judge(variables, x, train=False, rngs=None):
        first, second = (variables["params"][name]["kernel"] for name in "01")
        large = jnp.tanh(x @ first)
        small = large.reshape(-1, 2, 2, 2, 2, width).mean(axis=(2, 4))
        features = small.reshape(-1, 4 * width)
        taps = Taps({"8x8": large, "4x4": small, "features": features})
        return (features @ second)[:, 0], taps, variables

    return Pair(
        Network(lambda k, z: draw(k, (LATENT, 4 * width), (width, width), (width, 1)), generate),
        Network(lambda k, x: draw(k, (1, width), (4 * width, 1)), judge),
    )


@pytest.fixture(scope="module")
def small_world():
    image = RNG.uniform(-1, 1, size=(B, 4, 4, 1)).astype(np.float32)
    return _world(Networks(*_matrices(2), *_matrices(4), _matrices(3).discriminator), image)


@pytest.fixture(scope="module")
def outputs(world):
    """What the networks answer, in double precision: all that the formulas below are given."""
    nets, (generator, discriminator), teacher, batch = world

    @partial(jax.jit, compiler_options=FAST)
    def answers(z, real):
        image, taps, _ = nets.generator.apply(generator, z, train=True)
        target, teacher_taps, _ = nets.teacher.apply(teacher.generator, z)

        def judged(x):
            return nets.discriminator.apply(discriminator, x, train=True)[:2]

        def judged_by_teacher(x):
            return nets.teacher_discriminator.apply(teacher.discriminator, x)[0]

        def features(x):
            return nets.extractor.apply(teacher.extractor, x)[1]

        squares = jax.grad(lambda x: judged(x)[0].sum())
        return {
            "S": image,
            "T": target,
            "taps": dict(taps),
            "teacher_taps": dict(teacher_taps),
            "real": judged(real)[0],
            "fake": judged(image)[0],
            "teacher": judged(target)[0],
            "seen": (dict(judged(image)[1]), dict(judged(target)[1])),
            "teacher_real": judged_by_teacher(real),
            "teacher_fake": judged_by_teacher(image),
            "features": (dict(features(image)), dict(features(target))),
            "slopes": (squares(real), squares(image)),
        }

    return jax.tree.map(_double, answers(batch["z"], batch["image"]))


class Evaluated(NamedTuple):
    total: float
    terms: dict


@pytest.fixture(scope="module")
def evaluated(world):
    """`{(recipe, game): Pair of Evaluated}` at steps 0, half of `STEPS` and `STEPS`."""
    pairs = {(recipe, game): _made(recipe, game) for recipe, game in TABLE}
    pairs["omgd", None] = recipes.omgd(LAYERS, TAPS)

    @partial(jax.jit, compiler_options=FAST)
    def evaluate(step):
        key = jax.random.key(3)
        f, _ = forward_pass(world.nets, world.players, world.teacher, world.batch, _task, key, step)

        def values(terms):
            return Evaluated(*weighted_total(terms, f, init_terms(terms))[:2])

        return {name: Pair(*map(values, pair)) for name, pair in pairs.items()}

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


def _relation(ours, moved, theirs, theirs_moved):
    def log_probabilities(a, b):
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
        cosines = a @ b.T / norms
        return cosines - np.log(np.sum(np.exp(cosines), axis=1, keepdims=True))

    log_p, log_q = log_probabilities(theirs, theirs_moved), log_probabilities(ours, moved)
    return np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))


def _adversarial(game, o):
    """The generator's and the discriminator's adversarial values."""
    real, fake = o["real"], o["fake"]
    g, d = {
        "nonsaturating": (_softplus(-fake), _softplus(-real) + _softplus(fake)),
        "hinge": (-fake, np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)),
        "least_squares": ((fake - 1) ** 2 / 2, (real - 1) ** 2 / 2 + fake**2 / 2),
        "wasserstein": (-fake, fake - real),
        "relativistic": (_softplus(real - fake), _softplus(fake - real)),
    }[game]
    return np.mean(g), np.mean(d)


def _formula(recipe, o, step, batch):
    """`(what the game is multiplied by, {term: (weight, value)})`, from the papers' equations."""
    s, t, pixel = o["S"], o["T"], _l1(o["S"], o["T"])
    own = {f"connected/{name}": name for name in TAPS}
    ours, theirs = o["taps"], o["teacher_taps"]
    seen, features = o["seen"], o["features"]
    connectors = sum(_l2(ours[a], theirs[b]) for a, b in own.items())
    if recipe == "response":
        return 1.0, {"pixel": (5.0, pixel)}
    if recipe == "aguinaldo":
        return 0.7, {"pixel": (0.3, _l2(s, t))}
    if recipe == "gan_compression":
        return 1.0, {"reconstruction": (100.0, pixel), "features": (1.0, connectors)}
    if recipe == "paired":
        right = _l1(s, _double(batch["image"]))
        return 1.0, {"reconstruction": (100.0, right), "features": (1.0, connectors)}
    if recipe == "cat":
        kernels = -sum(_alignment(ours[name], theirs[name]) for name in TAPS)
        return 1.0, {"reconstruction": (100.0, pixel), "alignment": (1.0, kernels)}
    if recipe == "omgd":
        grams = sum(_l1(_gram(features[0][n]), _gram(features[1][n])) for n in LAYERS)
        means = [(ours[a].mean(axis=(1, 2)), theirs[b].mean(axis=(1, 2))) for a, b in own.items()]
        return 0.0, {
            "structure": (10.0, 1 - _ssim(s, t)),
            "style": (1e4, grams),
            "content": (10.0, sum(_l1(features[0][n], features[1][n]) for n in LAYERS)),
            "smoothness": (1e-5, _variation(s)),
            "channels": (1.0, sum(_l2(a, b) for a, b in means)),
        }
    if recipe == "tinygan":
        layers = zip((1 / 8, 1 / 4, 1.0), SEEN, strict=True)
        return 0.1, {
            "features": (1.0, sum(w * _l1(seen[0][name], seen[1][name]) for w, name in layers)),
            "pixel": ({0: 0.2, STEPS // 2: 0.1, STEPS: 0.0}[step], pixel),
        }
    if recipe == "dgl":
        return 1.0, {"teacher": (0.1, np.mean(_softplus(-o["teacher_fake"])))}
    if recipe == "mobile_stylegan":
        bands = _haar(s), _haar(t)
        return 1.0, {
            "pixel": (1.0, _scales(s, t, 3)),
            "wavelet": (1.0, _l1(*bands) + _l2(*bands)),
            "perceptual": (1.0, _lpips(*features, LAYERS)),
        }
    if recipe == "soft_label":
        return 1.0, {"soft_label": (1.0, _cross_entropy(_sigmoid(o["teacher"]), o["fake"]))}
    assert recipe == "discriminator_distillation"
    return 1.0, {}


DRAWING = {"stylekd", "dcd"}  # random ones, whose draws are taken from them below


def _check(actual, expected):
    """`actual`: Evaluated; `expected`: `{term: (weight, value)}`."""
    values = {k: v for k, v in actual.terms.items() if not k.endswith("/weight")}
    assert set(values) == set(expected)
    for name, (_, value) in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    total = sum(weight * value for weight, value in expected.values())
    np.testing.assert_allclose(actual.total, total, rtol=1e-4)


@pytest.mark.parametrize("step", [0, STEPS // 2, STEPS])
@pytest.mark.parametrize(("recipe", "game"), [row for row in TABLE if row[0] not in DRAWING])
def test_generator_s_total_is_the_formula_s(recipe, game, step, world, outputs, evaluated):
    scale, terms = _formula(recipe, outputs, step, world.batch)
    expected = {"adversarial": (scale, _adversarial(game, outputs)[0]), **terms}
    _check(evaluated[step][recipe, game].generator, expected)


def test_omgd_s_total_is_the_formula_s(world, outputs, evaluated):
    _, terms = _formula("omgd", outputs, 0, world.batch)
    pair = evaluated[0]["omgd", None]
    _check(pair.generator, terms)
    assert pair.discriminator == Evaluated(0.0, {})
    assert set(recipes.omgd(LAYERS).generator) == set(terms) - {"channels"}
    # A weight so small is lost in the total: alone it is not.
    assert recipes.omgd(LAYERS).generator["smoothness"].weight == 1e-5


@pytest.mark.parametrize(("recipe", "game"), [pair for pair in TABLE if pair[1] != "wasserstein"])
def test_discriminator_s_total_is_the_formula_s(recipe, game, outputs, evaluated):
    r1, r2 = (np.sum(slope**2) / (2 * B) for slope in outputs["slopes"])
    expected = {"adversarial": (1.0, _adversarial(game, outputs)[1])}
    if game in ("nonsaturating", "relativistic"):
        expected["r1"] = (1.0, r1)
    if game == "relativistic":
        expected["r2"] = (1.0, r2)
    if recipe == "discriminator_distillation":
        real = _bernoulli_kl(outputs["real"], outputs["teacher_real"])
        fake = _bernoulli_kl(outputs["fake"], outputs["teacher_fake"])
        expected["opinions"] = (1.0, (real + fake) / 2)
    _check(evaluated[0][recipe, game].discriminator, expected)


def test_the_formulas_tell_these_networks_apart(outputs):
    """Were images or scores near zero, wrong formulas would agree with right ones."""
    o = outputs
    for name in ("S", "T", "real", "fake", "teacher", "teacher_fake", "teacher_real"):
        assert np.std(o[name]) > 0.02, name
    values = [_adversarial(game, o)[0] for game in ("nonsaturating", "hinge", "least_squares")]
    values += [_l1(o["S"], o["T"]), _l2(o["S"], o["T"]), np.mean(_softplus(-o["teacher_fake"]))]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3


# Those that draw: what they draw is recorded, and the rest is worked out from it.


def _observed(world, terms, seed=3, nets=None, batch=None):
    """A term's values, the inputs of its further passes, and the Forward's arrays."""
    nets, batch, calls = nets or world.nets, batch or world.batch, {}

    def evaluate(batch):
        key, step = jax.random.key(seed), jnp.asarray(0)
        f, _ = forward_pass(nets, world.players, world.teacher, batch, _task, key, step)

        def recording(name, fn):
            def recorded(x):
                calls.setdefault(name, []).append((x, *fn(x)))
                return fn(x)

            return Bound(recorded)

        f = f._replace(
            generate=recording("generate", f.generate),
            teach=recording("teach", f.teach),
            teacher_score=recording("teacher_score", f.teacher_score),
        )
        _, values, _ = weighted_total(terms, f, init_terms(terms))
        return values, jax.tree.map(lambda x: x, calls), f.taps, f.teacher_taps

    result = jax.tree.map(_double, jax.jit(evaluate, compiler_options=FAST)(batch))
    calls.clear()
    return result


def test_stylekd_s_relation(world, outputs, evaluated):
    terms = _made("stylekd").generator
    values, calls, taps, teacher_taps = _observed(world, terms)
    (moved, _, ours), (again, _, theirs) = calls["generate"][0], calls["teach"][0]
    np.testing.assert_array_equal(moved, again)  # both are moved alike
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


def test_stylekd_s_moves(world):
    many = {"z": np.tile(world.batch["z"], (64, 1))}
    pair = recipes.stylekd(jnp.asarray(DIRECTIONS), TAPS)
    assert set(pair.generator) == {"adversarial", "pixel", "relation"}  # no layers, no perceptual
    alone = {"relation": pair.generator["relation"]}
    steps = []
    for seed in (0, 1):
        _, calls, _, _ = _observed(world, alone, seed, batch=many)
        steps.append(calls["generate"][0][0] - many["z"])
    assert not np.allclose(*steps)
    along = np.concatenate(steps) @ DIRECTIONS.T  # orthonormal: one of three is not zero
    sizes = np.sort(np.abs(along), axis=1)
    np.testing.assert_allclose(sizes[:, :2], 0.0, atol=1e-4)
    counts = np.bincount(np.argmax(np.abs(along), axis=1), minlength=3)
    assert np.all(counts > 120)  # of 512, a third each
    assert np.std(along.sum(axis=1)) == pytest.approx(5.0, rel=0.12)
    assert abs(np.mean(along.sum(axis=1))) < 1.0


def test_dcd_looks_through_the_teacher_s_discriminator(world, outputs, evaluated):
    values, calls, taps, teacher_taps = _observed(world, _made("dcd").generator)
    calls = calls["teacher_score"]
    assert len(calls) == 2 * len(TAPS)  # of the student and of the teacher, for each tap
    total = 0.0
    for index, name in enumerate(TAPS):
        (ours, _, ours_seen), (theirs, _, theirs_seen) = calls[2 * index : 2 * index + 2]
        total += sum(_l1(ours_seen[tap], theirs_seen[tap]) for tap in LAYERS)
        # Both are one linear map of the features' channels, at the images' size.
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
    """The state before the first step, without compiling `init_state` for each recipe."""
    generator, discriminator = world.players
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        generator=Player(generator, SGD.generator.init(generator["params"])),
        discriminator=Player(discriminator, SGD.discriminator.init(discriminator["params"])),
        ema=generator,
        terms=Pair(init_terms(pair.generator), init_terms(pair.discriminator)),
    )


SGD = Pair(optax.sgd(1e-3), optax.sgd(1e-3))


def _step(nets, pair, inputs=_task):
    return make_train_step(
        nets=nets,
        optimizers=SGD,
        g_terms=pair.generator,
        d_terms=pair.discriminator,
        inputs=inputs,
    )


def _moved(before, after):
    """Whether each array of `params` has changed, and all is finite."""
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    return [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]


def _check_step(world, pair, state, metrics, reads):
    for player, terms in (("g", pair.generator), ("d", pair.discriminator)):
        assert {f"{player}/{name}" for name in terms} < set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    before, after = world.players.generator, state.generator.variables
    assert all(_moved(*(disconnect(variables)["params"] for variables in (before, after))))
    # Only what reads connected features trains the connectors.
    moved = _moved(*(variables["params"][CONNECTORS] for variables in (before, after)))
    assert moved == [reads] * 2 * len(TAPS)
    discriminator = world.players.discriminator["params"]
    assert any(_moved(discriminator, state.discriminator.variables["params"]))
    assert int(state.step) == 1


def test_every_recipe_trains(small_world):
    """One compiled step of each; all in one program, to compile less."""
    pairs = {recipe: _made(recipe, game) for recipe, game in TABLE[: len(RECIPES)]}
    states = {recipe: _state(small_world, pair) for recipe, pair in pairs.items()}
    steps = {recipe: _step(small_world.nets, pair) for recipe, pair in pairs.items()}

    @partial(jax.jit, compiler_options=FAST)
    def all_steps(states, teacher, batch):
        return {recipe: step(states[recipe], teacher, batch) for recipe, step in steps.items()}

    kept = jax.tree.map(np.array, small_world.teacher)
    results = all_steps(states, small_world.teacher, small_world.batch)
    assert not any(_moved(kept, small_world.teacher))
    for recipe, (state, metrics) in results.items():
        reads = recipe in ("gan_compression", "paired", "dcd")
        _check_step(small_world, pairs[recipe], state, metrics, reads)


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_every_recipe_trains_with_every_game(game, request):
    """One compiled step of the game and of all recipes' own terms, as one recipe."""
    # Convolutions are slow to compile: one game has them.
    world = request.getfixturevalue("world" if game == "nonsaturating" else "small_world")
    merged = Pair(*map(dict, getattr(recipes, game)()))
    for recipe in RECIPES:
        for terms, own in zip(merged, _made(recipe, game), strict=True):
            new = [name for name in own if name not in terms]
            terms.update({f"{recipe}/{name}": own[name] for name in new})
    step = jax.jit(_step(world.nets, merged), compiler_options=FAST)
    state, metrics = step(_state(world, merged), world.teacher, world.batch)
    _check_step(world, merged, state, metrics, reads=True)


def test_omgd_trains_without_a_discriminator(small_world):
    world, pair = small_world, recipes.omgd(LAYERS, TAPS)
    nets = world.nets._replace(discriminator=None)
    state = _state(world, pair)._replace(discriminator=())
    step = jax.jit(_step(nets, pair), compiler_options=FAST)
    state, metrics = step(state, world.teacher, {"z": world.batch["z"]})  # nor real images
    assert all(_moved(world.players.generator["params"], state.generator.variables["params"]))
    assert set(metrics) == {f"g/{name}" for name in (*pair.generator, "total", "grad_norm")}
    assert all(np.isfinite(value) for value in metrics.values())


def test_no_gradient_reaches_the_teacher(small_world):
    world = small_world
    pairs = [_made(recipe) for recipe in RECIPES] + [recipes.omgd(LAYERS, TAPS)]

    def total(generator, teacher):
        players = world.players._replace(generator=generator)
        key, step = jax.random.key(3), jnp.asarray(0)
        f, _ = forward_pass(world.nets, players, teacher, world.batch, _task, key, step)
        return sum(
            weighted_total(terms, f, init_terms(terms))[0] for pair in pairs for terms in pair
        )

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), allow_int=True), compiler_options=FAST)
    ours, theirs = gradient(world.players.generator, world.teacher)
    assert optax.tree.norm(ours["params"]) > 0
    for leaf in jax.tree.leaves(theirs.generator):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


# A world of scalars: the generator is `w x`, the teacher `3 x`, the discriminator `sum(v x)`.

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
    players = Pair({"params": {"w": jnp.float32(0.5)}}, {"params": {"v": jnp.asarray(V)}})
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    key, step = jax.random.key(0), jnp.asarray(step)
    f, _ = forward_pass(SCALARS, players, teacher, SCALAR_BATCH, _scalar_task, key, step)
    total, values, _ = weighted_total(terms, f, init_terms(terms))
    return float(total), {name: float(value) for name, value in values.items()}


def test_penalties_of_a_linear_critic():
    """Its gradient is V everywhere, so that no place between the images matters."""
    norm = math.sqrt(float(np.sum(_double(V) ** 2)))
    assert norm == pytest.approx(1.3928, rel=1e-4)
    _, values = _scalar_values(recipes.wasserstein().discriminator)
    assert values["gradient_penalty"] == pytest.approx((norm - 1) ** 2, rel=1e-4)
    fake, real = 0.5 * IMAGES, SCALAR_BATCH["image"]
    difference = np.mean([np.sum(V * f) - np.sum(V * r) for f, r in zip(fake, real, strict=True)])
    assert values["adversarial"] == pytest.approx(difference, rel=1e-4)
    total, _ = _scalar_values(recipes.wasserstein().discriminator)
    assert total == pytest.approx(difference + 10 * (norm - 1) ** 2, rel=1e-4)
    assert recipes.wasserstein(2.5).discriminator["gradient_penalty"].weight == 2.5

    _, values = _scalar_values(recipes.relativistic().discriminator)
    assert values["r1"] == values["r2"] == pytest.approx(norm**2 / 2, rel=1e-4)
    for game, names in (("nonsaturating", ["r1"]), ("relativistic", ["r1", "r2"])):
        terms = getattr(recipes, game)(gamma=7.0, every=4).discriminator
        assert [terms[name][1:3] for name in names] == [(7.0, 4)] * len(names)


def test_the_gradient_penalty_is_between_real_and_generated_images():
    """Of a critic whose gradient is the image: with black for real, it is a part of the fake."""

    def apply(variables, x, train=False, rngs=None):
        return variables["params"]["half"] * jnp.sum(x**2, axis=(1, 2, 3)), Taps(), variables

    nets = SCALARS._replace(discriminator=Network(None, apply))
    players = Pair({"params": {"w": jnp.float32(0.5)}}, {"params": {"half": jnp.float32(0.5)}})
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    batch = {"x": IMAGES, "image": np.zeros_like(IMAGES)}
    fn = recipes.wasserstein().discriminator["gradient_penalty"].fn
    norms = np.sqrt(np.sum((0.5 * _double(IMAGES)) ** 2, axis=(1, 2, 3)))
    assert max(norms) < 1.0
    parts = []
    for seed in range(2):
        key, step = jax.random.key(seed), jnp.asarray(0)
        f, _ = forward_pass(nets, players, teacher, batch, _scalar_task, key, step)
        parts += list((1 - np.sqrt(_double(fn(f)))) / norms)
    assert 0.0 < min(parts) < max(parts) < 1.0
    assert len(set(np.round(parts, 4))) == 2 * len(IMAGES)  # each pair has its own place


def test_tinygan_s_five_layers():
    pair = recipes.tinygan(tuple(SCALES), steps=100)
    expected = 2.5 * float(np.mean(_double(IMAGES)))  # |0.5 x - 3 x|
    layers = 1 / 32 + 10 / 16 + 100 / 8 + 1e3 / 4 + 1e4
    for step, weight in ((0, 0.2), (25, 0.15), (50, 0.1), (100, 0.0), (1000, 0.0)):
        _, values = _scalar_values(pair.generator, step)
        assert values["features"] == pytest.approx(layers * expected, rel=1e-4)
        assert values["pixel"] == pytest.approx(expected, rel=1e-4)
        assert values["pixel/weight"] == pytest.approx(weight, abs=1e-6)
    for name in SCALES:  # a single layer counts whole
        _, values = _scalar_values(recipes.tinygan([name], 1).generator)
        assert values["features"] == pytest.approx(SCALES[name] * expected, rel=1e-4)


def test_on_taps_sums_over_pairs_of_names():
    crossed = {"feature": "feature", "other": "other"}
    terms = {"l2": Term(recipes.on_taps(losses.feature.l2, crossed))}
    _, values = _scalar_values(terms)
    squares = _double(IMAGES) ** 2
    expected = 6.25 * (np.mean(squares) + np.mean(squares[:, :1]))
    assert values["l2"] == pytest.approx(expected, rel=1e-4)
    # The first name is the student's, the second the teacher's.
    seen = []
    terms = {
        "one": Term(recipes.on_taps(lambda s, t: seen.append((s, t)) or 0.0, {"other": "feature"}))
    }
    _scalar_values(terms)
    ((student, teacher),) = seen
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

    pair = recipes.hinton(**settings)
    nets = Networks(student, None, teacher)
    parts = {
        "nets": nets,
        "optimizers": SGD,
        "g_terms": pair.generator,
        "d_terms": pair.discriminator,
        "inputs": _scalar_task,
    }
    state = init_state(jax.random.key(0), CLASSIFIER_BATCH, **parts)
    variables = Teacher({"params": {"kernel": jnp.asarray(theirs)}})
    state, metrics = jax.jit(make_train_step(**parts))(state, variables, CLASSIFIER_BATCH)
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
        "nets": Networks(student),
        "optimizers": SGD,
        "g_terms": recipes.hinton(alpha=1.0).generator,
        "d_terms": {},
        "inputs": _scalar_task,
    }
    state = init_state(jax.random.key(0), CLASSIFIER_BATCH, **parts)
    _, metrics = jax.jit(make_train_step(**parts))(state, None, CLASSIFIER_BATCH)
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
"""The documented ones; where the adversarial term is not said, 1. None: a schedule, seen above."""


@pytest.mark.parametrize("recipe", WEIGHTS)
def test_default_weights(recipe):
    alone = {"omgd": lambda: recipes.omgd(LAYERS, TAPS), "hinton": recipes.hinton}
    pair = RECIPES[recipe]() if recipe in RECIPES else alone[recipe]()
    game = {} if recipe in alone else {"adversarial": 1.0}
    expected = {**game, **WEIGHTS[recipe]}
    assert set(pair.generator) == set(expected)
    for name, weight in expected.items():
        if weight is not None:
            assert pair.generator[name].weight == pytest.approx(weight, rel=1e-9), name
    if recipe in alone:
        assert pair.discriminator == {}
        return
    own = {"opinions": 1.0} if recipe == "discriminator_distillation" else {}
    weights = {name: term.weight for name, term in pair.discriminator.items()}
    assert weights == {
        "adversarial": 1.0,
        "r1": 1.0,
        **own,
    }  # non-saturating, where nothing is said


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (lambda: recipes.response(7.0), {"pixel": 7.0}),
        (lambda: recipes.aguinaldo(0.9), {"adversarial": 0.1, "pixel": 0.9}),
        (
            lambda: recipes.gan_compression(TAPS, reconstruction=2.0, distill=3.0),
            {"reconstruction": 2.0, "features": 3.0},
        ),
        (
            lambda: recipes.cat(TAPS, reconstruction=2.0, alignment=3.0),
            {"reconstruction": 2.0, "alignment": 3.0},
        ),
        (
            lambda: recipes.omgd(
                LAYERS, TAPS, structure=2.0, style=3.0, content=4.0, smoothness=5.0, channels=6.0
            ),
            {"structure": 2.0, "style": 3.0, "content": 4.0, "smoothness": 5.0, "channels": 6.0},
        ),
        (
            lambda: recipes.stylekd(
                DIRECTIONS, TAPS, LAYERS, pixel=2.0, perceptual=4.0, relation=5.0
            ),
            {"pixel": 2.0, "perceptual": 4.0, "relation": 5.0},
        ),
        (
            lambda: recipes.tinygan(SEEN, 5, feature=2.0, adversarial=0.5),
            {"features": 2.0, "adversarial": 0.5},
        ),
        (lambda: recipes.dgl(0.4), {"teacher": 0.4}),
        (lambda: recipes.dcd(TAPS, SEEN, pixel=2.0, distill=3.0), {"pixel": 2.0, "features": 3.0}),
        (
            lambda: recipes.mobile_stylegan(LAYERS, pixel=2.0, wavelet=3.0, perceptual=4.0),
            {"pixel": 2.0, "wavelet": 3.0, "perceptual": 4.0},
        ),
        (lambda: recipes.soft_label(3.0), {"soft_label": 3.0}),
    ],
)
def test_each_weight_has_its_argument(make, weights):
    terms = make().generator
    assert {name: terms[name].weight for name in weights} == pytest.approx(weights)


def test_other_settings(world, outputs):
    """Those that are no weights: the number of scales, and the temperature."""

    def value(pair, player, name):
        terms = {name: getattr(pair, player)[name]}
        return _observed(world, terms)[0][name]

    two = value(recipes.mobile_stylegan(scales=2), "generator", "pixel")
    np.testing.assert_allclose(two, _scales(outputs["S"], outputs["T"], 2), rtol=1e-4)
    assert "perceptual" not in recipes.mobile_stylegan().generator

    pair = recipes.discriminator_distillation(3.0, temperature=2.0)
    assert pair.discriminator["opinions"].weight == 3.0
    real = _bernoulli_kl(outputs["real"] / 2, outputs["teacher_real"] / 2)
    fake = _bernoulli_kl(outputs["fake"] / 2, outputs["teacher_fake"] / 2)
    opinions = value(pair, "discriminator", "opinions")
    np.testing.assert_allclose(opinions, 4 * (real + fake) / 2, rtol=1e-4)
    # Without real images, on the generated ones alone.
    terms = {"opinions": recipes.discriminator_distillation().discriminator["opinions"]}
    values = _observed(world, terms, batch={"z": world.batch["z"]})[0]
    expected = _bernoulli_kl(outputs["fake"], outputs["teacher_fake"])
    np.testing.assert_allclose(values["opinions"], expected, rtol=1e-4)


# Recipes are data.


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_game_is_taken_as_it_is(recipe, game):
    given = getattr(recipes, game)()
    pair = RECIPES[recipe](game=given)
    assert {name: pair.discriminator[name] for name in given.discriminator} == given.discriminator
    for name, term in given.generator.items():
        scale = WEIGHTS[recipe].get(name, 1.0)
        assert pair.generator[name]._replace(weight=1.0) == term._replace(weight=1.0)
        assert pair.generator[name].weight == pytest.approx(scale * term.weight)
    assert set(given.generator) == {"adversarial"}  # what the recipes got is not changed


@pytest.mark.parametrize(
    "make", [recipes.aguinaldo, lambda game: recipes.tinygan(SEEN, 9, game=game)]
)
def test_a_game_s_own_weights_are_kept_in_proportion(make, world):
    """A number, a schedule and a weight that adapts are all multiplied."""
    given = recipes.hinge()
    term = given.generator["adversarial"]
    scale = make(game=given).generator["adversarial"].weight
    for weight, value in (
        (2.0, 2.0),
        (optax.linear_schedule(4.0, 0.0, 10), 4.0),
        (Weight(lambda forward, _, value, state: (6.0, state)), 6.0),
    ):
        game = given._replace(generator={"adversarial": term._replace(weight=weight)})
        terms = {"adversarial": make(game=game).generator["adversarial"]}
        total, values = _scalar_values(terms)
        assert total == pytest.approx(scale * value * values["adversarial"], rel=1e-5)


def test_merged_and_changed_recipes_are_recipes():
    first = recipes.mobile_stylegan(scales=1, game=recipes.hinge())
    merged = {**first.generator, **recipes.tinygan(tuple(SCALES), 10).generator}
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


# Floors.


def test_floors():
    for game in GAMES:
        pair = getattr(recipes, game)()
        assert pair.generator["adversarial"].floor is None
        floor = pair.discriminator["adversarial"].floor
        assert floor == (None if game == "wasserstein" else 0.0)
    assert recipes.cat(TAPS).generator["alignment"].floor == -2.0
    assert recipes.cat({"4x4": "8x8"}).generator["alignment"].floor == -1.0
    assert recipes.cat(["a", "b", "c"]).generator["alignment"].floor == -3.0


def test_cat_is_at_its_floor_where_the_features_are_the_teacher_s():
    pair = recipes.cat(["feature", "other"])
    own = {"alignment": pair.generator["alignment"]}
    # The student's features are a sixth of the teacher's: kernels have no scale.
    total, values = _scalar_values(own)
    assert total == values["alignment"] == pytest.approx(-2.0, abs=1e-5)
    parts = {"nets": SCALARS, "g_terms": own, "d_terms": {}, "inputs": _scalar_task}
    state = init_state(jax.random.key(0), SCALAR_BATCH, optimizers=SGD, **parts)
    teacher = Teacher({"params": {"w": jnp.float32(3.0)}})
    probe = jax.jit(health.probe(**parts), compiler_options=FAST)
    figures = probe(state, teacher, SCALAR_BATCH)[1]
    assert abs(figures["above_floor/g/alignment"]) < 1e-5
    assert any("alignment is at its least value" in line for line in health.warnings(figures))


def test_cat_is_above_its_floor_elsewhere(evaluated):
    assert evaluated[0]["cat", "relativistic"].generator.terms["alignment"] > -1.99


# What is refused. Steps are traced, never compiled or run.


def _traced(world, terms, nets=None, *, player="generator", batch=None, inputs=_task):
    nets = nets or world.nets
    make = {"generator": g_step, "discriminator": d_step}[player]
    step = make(nets, getattr(SGD, player), terms, inputs)
    batch = world.batch if batch is None else batch
    empty = Pair({}, {})._replace(**{player: terms})
    state = jax.eval_shape(
        lambda: init_state(
            jax.random.key(0),
            batch,
            nets=nets,
            optimizers=SGD,
            g_terms=empty.generator,
            d_terms=empty.discriminator,
            inputs=inputs,
        )
    )
    return jax.eval_shape(step, state, world.teacher, batch)


def _refusal(*args, **kwargs):
    with pytest.raises(ValueError, match=r"^term '") as caught:
        _traced(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


KNOWN = "'4x4', '8x8'"


@pytest.mark.parametrize(
    ("make", "term", "says"),
    [
        (
            lambda: recipes.cat(["9x9"]),
            "alignment",
            ("the student: no tap '9x9'", KNOWN),
        ),
        (
            lambda: recipes.cat({"4x4": "9x9"}),
            "alignment",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: recipes.gan_compression({"4x4": "9x9"}),
            "features",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: recipes.gan_compression(["9x9"]),
            "features",
            ("the student: no tap 'connected/9x9'", KNOWN),
        ),
        (
            lambda: recipes.omgd(LAYERS, ["9x9"]),
            "channels",
            ("the student: no tap 'connected/9x9'", KNOWN),
        ),
        (
            lambda: recipes.stylekd(DIRECTIONS, {"9x9": "8x8"}),
            "relation",
            ("the student: no tap '9x9'", KNOWN),
        ),
        (
            lambda: recipes.stylekd(DIRECTIONS, {"8x8": "9x9"}),
            "relation",
            ("the teacher: no tap '9x9'", KNOWN),
        ),
        (
            lambda: recipes.stylekd(np.ones((3, 5), np.float32), TAPS),
            "relation",
            ("directions (3, 5)", "latents (4, 8)"),
        ),
        (
            lambda: recipes.tinygan(["9x9"], 5),
            "features",
            ("no tap '9x9'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: recipes.dcd(TAPS, ["9x9"]),
            "features",
            ("no tap '9x9'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: recipes.omgd(["8x8", "conv1"]),
            "style",
            ("the extractor: no tap 'conv1'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: recipes.mobile_stylegan(["conv1"]),
            "perceptual",
            ("the extractor: no tap 'conv1'", "'8x8', '4x4', 'features'"),
        ),
        (
            lambda: Pair({"l2": Term(recipes.on_taps(losses.feature.l2, {"4x4": "8x8"}))}),
            "l2",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 4)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: recipes.gan_compression({"4x4": "8x8"}),
            "features",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 8)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: recipes.dcd({"4x4": "8x8"}, LAYERS),
            "features",
            ("student's tap '4x4' and teacher's '8x8'", "(4, 4, 4, 8)", "(4, 8, 8, 4)"),
        ),
        (
            lambda: recipes.mobile_stylegan(scales=9),
            "pixel",
            ("(4, 16, 16, 1) cannot be halved 8 times",),
        ),
    ],
)
def test_what_does_not_fit_is_told(make, term, says, world):
    message = _refusal(world, make().generator)
    assert message.startswith(f"term '{term}': ")
    for part in says:
        assert part in message
    assert "connect" not in message.replace("connected/", "")


@pytest.mark.parametrize(
    ("make", "term"),
    [
        (lambda: recipes.gan_compression(TAPS), "features"),
        (lambda: recipes.dcd(TAPS, LAYERS), "features"),
        (lambda: recipes.omgd(LAYERS, TAPS), "channels"),
    ],
)
def test_a_student_that_is_not_connected_is_told_how(make, term, world):
    plain = world.nets._replace(generator=dcgan.generator(16, 2, channels=1))
    message = _refusal(world, make().generator, plain)
    assert message.startswith(f"term '{term}': the student: no tap 'connected/4x4'; ")
    assert KNOWN in message
    assert message.endswith("(connect the student first: connect_to)")


TEACHERLESS = [name for name in RECIPES if name not in ("dgl", "discriminator_distillation")]


@pytest.mark.parametrize("recipe", [*TEACHERLESS, "omgd"])
def test_no_teacher(recipe, world):
    pair = recipes.omgd(LAYERS, TAPS) if recipe == "omgd" else _made(recipe)
    for name, term in pair.generator.items():
        if name in ("adversarial", "smoothness") or (recipe, name) == ("paired", "reconstruction"):
            continue
        message = _refusal(world, {name: term}, world.nets._replace(teacher=None))
        assert message == f"term {name!r}: nets has no teacher"


@pytest.mark.parametrize(
    ("make", "player", "term"),
    [
        (recipes.dgl, "generator", "teacher"),
        (lambda: recipes.dcd(TAPS, LAYERS), "generator", "features"),
        (recipes.discriminator_distillation, "discriminator", "opinions"),
    ],
)
def test_no_teacher_s_discriminator(make, player, term, world):
    nets = world.nets._replace(teacher_discriminator=None)
    message = _refusal(world, getattr(make(), player), nets, player=player)
    assert message == f"term {term!r}: nets has no teacher_discriminator"


@pytest.mark.parametrize(
    ("make", "term"),
    [
        (lambda: recipes.omgd(LAYERS), "style"),
        (lambda: recipes.stylekd(DIRECTIONS, TAPS, LAYERS), "perceptual"),
        (lambda: recipes.mobile_stylegan(LAYERS), "perceptual"),
    ],
)
def test_no_extractor(make, term, world):
    nets = world.nets._replace(extractor=None)
    message = _refusal(world, make().generator, nets)
    assert message == f"term {term!r}: nets has no extractor"


@pytest.mark.parametrize("recipe", ["tinygan", "soft_label"])
def test_no_discriminator(recipe, world):
    terms = _made(recipe).generator
    own = {name: term for name, term in terms.items() if name != "adversarial"}
    nets = world.nets._replace(discriminator=None)
    assert _refusal(world, own, nets).endswith(": nets has no discriminator")
    assert "term 'adversarial': fake_scores is missing" in _refusal(world, terms, nets)


def test_no_real_images(world):
    only = {"z": world.batch["z"]}
    for make in (recipes.gan_compression, recipes.cat):
        own = {"reconstruction": make(TAPS, paired=True).generator["reconstruction"]}
        assert _refusal(world, own, batch=only) == (
            "term 'reconstruction': the task gives no real images"
        )
    penalty = {"penalty": recipes.wasserstein().discriminator["gradient_penalty"]}
    assert _refusal(world, penalty, batch=only, player="discriminator") == (
        "term 'penalty': the task gives no real images"
    )


def test_hinton_without_labels():
    student, teacher = _dense(1)[0], _dense(2)[0]
    batch = {"x": CLASSIFIER_BATCH["x"]}
    variables = Teacher(jax.eval_shape(teacher.init, None, batch["x"]))
    classifiers = World(Networks(student, None, teacher), None, variables, batch)
    message = _refusal(classifiers, recipes.hinton().generator, inputs=_scalar_task)
    assert message == "term 'hinton': labels are needed; inputs.extra has ['x']"
    alone = classifiers._replace(nets=Networks(student), batch=CLASSIFIER_BATCH)
    message = _refusal(alone, recipes.hinton().generator, inputs=_scalar_task)
    assert message == "term 'hinton': nets has no teacher"


@pytest.mark.parametrize("recipe", ["cat", "stylekd"])
def test_a_batch_of_one_has_no_relations(recipe, world):
    one = {name: value[:1] for name, value in world.batch.items()}
    message = _refusal(world, _made(recipe).generator, batch=one)
    assert "a batch of one has no relations" in message
    name = {"cat": "alignment", "stylekd": "relation"}[recipe]
    assert message.startswith(f"term '{name}': ")
    assert "student's tap '4x4' and teacher's '4x4'" in message


@pytest.mark.parametrize("taps", ["4x4", "", (), [], {}])
@pytest.mark.parametrize(
    "make",
    [
        recipes.gan_compression,
        recipes.cat,
        lambda taps: recipes.stylekd(DIRECTIONS, taps),
        lambda taps: recipes.tinygan(taps, 5),
        lambda taps: recipes.dcd(taps, LAYERS),
        lambda taps: recipes.dcd(TAPS, taps),
        recipes.omgd,
        lambda taps: recipes.on_taps(losses.feature.l2, taps),
    ],
)
def test_taps_are_a_sequence_of_names(make, taps):
    with pytest.raises(ValueError, match=r"^taps=.*: a sequence of names is needed, or {student's"):
        make(taps)


@pytest.mark.parametrize(
    "make",
    [
        lambda: recipes.omgd(LAYERS, "4x4"),
        lambda: recipes.stylekd(DIRECTIONS, TAPS, "4x4"),
        lambda: recipes.mobile_stylegan("4x4"),
    ],
)
def test_optional_taps_are_no_string(make):
    with pytest.raises(ValueError, match="taps='4x4': a sequence of names is needed"):
        make()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize("make", [recipes.aguinaldo, recipes.hinton])
def test_alpha_is_a_part(make, alpha):
    with pytest.raises(ValueError, match=rf"^alpha={alpha} is not in \[0, 1\]$"):
        make(alpha)
    make(0.0)
    make(1.0)


def test_other_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match=r"directions \(8,\) are not \[K, latent\]"):
        recipes.stylekd(np.ones(8, np.float32), TAPS)
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"^steps={steps} is not a positive number$"):
            recipes.tinygan(SEEN, steps)


@pytest.mark.parametrize("temperature", [0.0, -4.0, math.inf, math.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match=f"^temperature={temperature} is not a positive number$"):
        recipes.hinton(0.5, temperature)


@pytest.mark.parametrize("setting", [{"cycle": -1.0}, {"identity": -0.5}, {"pool": -1}], ids=str)
def test_cyclegan_s_numbers_are_not_negative(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"^{name}={value} must be finite and not negative$"):
        recipes.cyclegan((8, 8, 3), **setting)


def test_cyclegan_s_weights_may_be_schedules():
    made = recipes.cyclegan((8, 8, 3), cycle=lambda step: 10.0, identity=lambda step: 5.0)
    assert set(made.generator) == {"adversarial", "cycle", "identity"}


def test_connected_at_another_width_is_no_fit(world):
    """The one projection of dcd is one only where both features have the same channels."""
    plain = dcgan.generator(16, 2, channels=1)
    nets = world.nets._replace(generator=connect(plain, {"4x4": (B, 4, 4, 7)}))
    message = _refusal(world, recipes.dcd(["4x4"], LAYERS).generator, nets)
    assert message.startswith("term 'features': student's tap '4x4' and teacher's '4x4': ")
    assert "(4, 4, 4, 7)" in message

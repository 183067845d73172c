"""Health figures: by hand on a linear GAN; each warning in a case that deserves it, and no other.

The linear GAN's generator is `z * w` and its discriminator `x * v`, with scalars w and v, and the
latents are always the same, so that its gradients are written out below in double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import health, losses
from kd_jax.models import mlp
from kd_jax.network import Network
from kd_jax.objective import Inputs, Term
from kd_jax.sharding import compile_step, initialize, make_mesh, place, place_batch
from kd_jax.state import Networks, Pair, Teacher, init_state
from kd_jax.step import make_train_step
from kd_jax.tasks import latents
from kd_jax.types import Taps
from kd_jax.weights import balanced, uncertainty

Z = np.array([0.5, -1.5, 2.0, 1.0], np.float32)
REAL = np.array([1.0, 2.0, -0.5, 3.0], np.float32)
BATCH = {"image": REAL}
W, V, TEACHER_W = 0.7, -1.3, 3.0
B = len(Z)


def _linear(name, value):
    def init(key, *inputs):
        return {"params": {name: jnp.float32(value)}}

    def apply(variables, x, *condition, train=False, rngs=None):
        y = x * variables["params"][name]
        return y, Taps(output=y), variables

    return Network(init, apply)


def _task(key, batch):
    return Inputs((jnp.asarray(Z),), (), batch.get("image"), batch)


ADVERSARIAL = Term(lambda f: losses.adversarial.nonsaturating_g(f.fake_scores), 2.0)
MINIMAX = Term(
    lambda f: losses.adversarial.minimax_d(f.real_scores, f.fake_scores), weight=5.0, floor=0.0
)
PIXEL = Term(lambda f: losses.response.l2(f.fake, f.teacher), 0.5)
TEACHER = Teacher({"params": {"w": jnp.float32(TEACHER_W)}})


def _parts(**changes):
    return {
        "nets": Networks(_linear("w", W), _linear("v", V), _linear("w", 0.0)),
        "optimizers": Pair(optax.sgd(0.1), optax.sgd(0.1)),
        "g_terms": {"adversarial": ADVERSARIAL, "pixel": PIXEL},
        "d_terms": {"adversarial": MINIMAX},
        "inputs": _task,
        **changes,
    }


def _probed(parts, teacher=TEACHER, batch=BATCH, state=None):
    state = init_state(jax.random.key(0), batch, **parts) if state is None else state
    after, figures = jax.jit(health.probe(**parts))(state, teacher, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert old is new or np.array_equal(_bits(old), _bits(new))
    assert all(figure.shape == () for figure in figures.values())
    return figures


def _bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.log1p(np.exp(x))


def _expected():
    z = Z.astype(np.float64)
    pull = -V * _sigmoid(-V * W * z) / B
    apart = 2 * (W - TEACHER_W) * z / B
    return {
        "image_gradient/adversarial": 2.0 * np.linalg.norm(pull),
        "gradient/adversarial": 2.0 * abs(np.sum(pull * z)),
        "image_gradient/pixel": 0.5 * np.linalg.norm(apart),
        "gradient/pixel": 0.5 * abs(np.sum(apart * z)),
        "above_floor/d/adversarial": np.mean(_softplus(-V * REAL) + _softplus(V * W * z)),
        "student/low": W * z.min(),
        "student/high": W * z.max(),
        "teacher/low": TEACHER_W * z.min(),
        "teacher/high": TEACHER_W * z.max(),
    }


def _figures_are(figures, expected):
    assert set(figures) == {*expected, "teacher/fingerprint"}
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_figures_by_hand():
    _figures_are(_probed(_parts()), _expected())


def test_lazy_terms_are_probed_at_any_step_with_their_own_weight():
    parts = _parts(
        g_terms={
            "adversarial": ADVERSARIAL._replace(every=3),
            "pixel": PIXEL._replace(every=2, weight=lambda step: 0.5 * step),
        },
        d_terms={"adversarial": MINIMAX._replace(every=7)},
    )
    state = init_state(jax.random.key(0), BATCH, **parts)._replace(step=jnp.int32(1))
    _figures_are(_probed(parts, state=state), {**_expected(), "pixel/weight": 0.5})


def test_terms_and_weights_that_remember_are_probed_as_they_are():
    def remembering(forward, memory):
        return memory * forward.fake, memory + 1.0

    def memory():
        return jnp.asarray(3.0)

    parts = _parts(
        g_terms={
            "plain": Term(remembering, init=memory, floor=-6.0),
            "weighted": Term(remembering, uncertainty(rate=0.5, start=2.0), 2, memory),
            "balanced": Term(lambda f: 2.0 * f.fake, balanced(lambda f: 5.0 * f.fake)),
        }
    )
    figures = _probed(parts)
    pull = 3.0 / np.sqrt(B)
    for name, value in {
        "image_gradient/plain": pull,
        "image_gradient/weighted": 2.0 * pull,
        "image_gradient/balanced": 5.0 / np.sqrt(B),
        "gradient/plain": 3.0 * abs(Z.mean()),
        # In units of the floor, where that is more than 1.
        "above_floor/g/plain": (3.0 * W * Z.mean() + 6.0) / 6.0,
    }.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-5, err_msg=name)
    state, _ = make_train_step(**parts)(
        init_state(jax.random.key(0), BATCH, **parts), TEACHER, BATCH
    )
    np.testing.assert_allclose(
        _probed(parts, state=state)["image_gradient/plain"], 4.0 / np.sqrt(B), rtol=1e-5
    )


def test_a_floor_is_measured_without_the_weight_and_for_both_players():
    g_terms = {"pixel": PIXEL._replace(floor=0.5, weight=1e3), "adversarial": ADVERSARIAL}
    figures = _probed(_parts(g_terms=g_terms))
    distance = np.mean(((W - TEACHER_W) * Z.astype(np.float64)) ** 2)
    np.testing.assert_allclose(figures["above_floor/g/pixel"], distance - 0.5, rtol=1e-5)
    assert "above_floor/g/adversarial" not in figures
    assert "above_floor/d/adversarial" in figures


def test_features_have_no_pull_at_the_image():
    g_terms = {"features": Term(lambda f: f.taps["output"] ** 2)}
    figures = _probed(_parts(g_terms=g_terms))
    assert float(figures["image_gradient/features"]) == 0.0
    expected = abs(np.mean(2 * W * Z.astype(np.float64) ** 2))
    np.testing.assert_allclose(figures["gradient/features"], expected, rtol=1e-5)


def test_a_probe_needs_no_discriminator_and_no_teacher():
    parts = _parts(nets=Networks(_linear("w", W), teacher=_linear("w", 0.0)), d_terms={})
    parts["g_terms"] = {"pixel": PIXEL}
    expected = {k: v for k, v in _expected().items() if "adversarial" not in k}
    _figures_are(_probed(parts), expected)
    parts = _parts(nets=Networks(_linear("w", W), _linear("v", V)))
    parts["g_terms"] = {"adversarial": ADVERSARIAL}
    figures = _probed(parts, teacher=None)
    assert not [name for name in figures if name.startswith("teacher/")]
    assert health.warnings(figures, first=figures) == []


# Warnings. The cases are real networks', or the linear GAN's.


def _mlp_case(**changes):
    student, teacher = mlp.gan(4, 16, depth=1), mlp.generator(4, 32, depth=1)
    parts = {
        "nets": Networks(*student, teacher),
        "optimizers": Pair(optax.adam(2e-3), optax.adam(2e-3)),
        "g_terms": {"adversarial": ADVERSARIAL._replace(weight=1.0), "pixel": PIXEL},
        "d_terms": {"adversarial": MINIMAX._replace(weight=1.0)},
        "inputs": latents(3, conditional=False),
        **changes,
    }
    return parts, Teacher(teacher.init(jax.random.key(5), jnp.zeros((8, 3))))


MLP_BATCH = {"image": np.random.default_rng(0).uniform(-1, 1, size=(8, 4, 4, 1)).astype(np.float32)}


@pytest.fixture(scope="module")
def healthy():
    """A tiny GAN before and after some steps: figures, and what a case may begin with."""
    parts, teacher = _mlp_case()
    state = init_state(jax.random.key(0), MLP_BATCH, **parts)
    step, probe = jax.jit(make_train_step(**parts)), jax.jit(health.probe(**parts))
    _, first = probe(state, teacher, MLP_BATCH)
    for _ in range(5):
        state, _ = step(state, teacher, MLP_BATCH)
    _, figures = probe(state, teacher, MLP_BATCH)
    return parts, state, teacher, probe, first, figures


def test_a_healthy_gan_gets_no_warning(healthy):
    *_, first, figures = healthy
    assert health.warnings(first) == health.warnings(figures, first=first) == []
    # Figures that were fetched, and figures of a run that began without a teacher.
    assert health.warnings(jax.device_get(figures), first=jax.device_get(first)) == []
    assert health.warnings(figures, first={}) == []


def test_a_probe_draws_latents_of_its_own(healthy):
    _, state, teacher, probe, _, figures = healthy
    again = probe(state, teacher, MLP_BATCH)[1]
    assert float(again["student/low"]) == float(figures["student/low"])
    later = probe(state._replace(step=state.step + 1), teacher, MLP_BATCH)[1]
    assert float(later["student/low"]) != float(figures["student/low"])


def test_a_discriminator_that_is_sure_is_told(healthy):
    """Trained until it is, on real images that the generator cannot draw."""
    parts, _, teacher, probe, first, _ = healthy
    parts = {**parts, "optimizers": Pair(optax.sgd(0.0), optax.adam(0.05))}
    batch = {"image": np.full((8, 4, 4, 1), 5.0, np.float32)}
    state, step = init_state(jax.random.key(0), batch, **parts), make_train_step(**parts)
    sure = "d/adversarial is at its least value: the discriminator is sure of everything, and"
    assert not [line for line in health.warnings(first) if "sure" in line]
    state = jax.jit(
        lambda state: jax.lax.fori_loop(0, 150, lambda _, s: step(s, teacher, batch)[0], state)
    )(state)
    _, figures = probe(state, teacher, batch)
    lines = health.warnings(figures)
    assert [line for line in lines if line.startswith(sure)] == lines[:1]


def test_a_saturated_term_is_told():
    """Kernel alignment, whose least value is -1, of a student that is its teacher."""
    network = mlp.generator(4, 16, depth=1)
    alignment = Term(
        lambda f: losses.relation.kernel_alignment(f.taps["hidden0"], f.teacher_taps["hidden0"]),
        floor=-1.0,
    )
    parts, _ = _mlp_case(g_terms={"adversarial": ADVERSARIAL, "alignment": alignment})
    parts["nets"] = Networks(network, parts["nets"].discriminator, network)
    state = init_state(jax.random.key(0), MLP_BATCH, **parts)
    # In evaluation mode the student's features are the teacher's, so the term has got there.
    figures = _probed(parts, Teacher(state.generator.variables), MLP_BATCH, state)
    (line,) = health.warnings(figures)
    expected = "g/alignment is at its least value: it is saturated, and has nothing left to teach"
    assert line == expected
    other = network.init(jax.random.key(9), jnp.zeros((8, 3)))
    assert health.warnings(_probed(parts, Teacher(other), MLP_BATCH, state)) == []


def test_near_is_how_close_to_the_floor():
    for above, near, count in [(2e-3, 1e-3, 0), (5e-4, 1e-3, 1), (-1e-7, 1e-3, 1), (0.2, 0.3, 1)]:
        assert len(health.warnings({"above_floor/d/adversarial": above}, near=near)) == count


def test_a_term_that_outweighs_the_game_is_told(healthy):
    heavy = {"adversarial": ADVERSARIAL._replace(weight=1.0), "pixel": PIXEL._replace(weight=1e6)}
    parts, teacher = _mlp_case(g_terms=heavy)
    figures = _probed(parts, teacher, MLP_BATCH)
    ratio = float(figures["image_gradient/pixel"]) / float(figures["image_gradient/adversarial"])
    assert ratio > 1e3
    assert health.warnings(figures) == [
        f"g/pixel pulls at the image {ratio:.2g} times as hard as g/adversarial: "
        "its weight leaves the game no say"
    ]
    assert health.warnings(figures, ratio=1.01 * ratio) == []
    assert len(health.warnings(figures, ratio=0.99 * ratio)) == 1
    # What it is compared with may be called otherwise, or not be there.
    named = {name.replace("adversarial", "adv"): value for name, value in figures.items()}
    assert health.warnings(named) == []
    assert len(health.warnings(named, against="adv")) == 1


def test_a_term_without_gradient_is_told():
    teacher = Teacher({"params": {"w": jnp.float32(1.0)}})
    for idle in (Term(lambda f: 3.0), Term(lambda f: f.teacher), PIXEL._replace(weight=0)):
        parts = _parts(g_terms={"adversarial": ADVERSARIAL, "pixel": PIXEL, "idle": idle})
        lines = health.warnings(_probed(parts, teacher))
        assert lines == ["g/idle has no gradient: it changes nothing"]
    # A schedule that has come to 0 was meant to.
    faded = PIXEL._replace(weight=lambda step: 0.0 * step)
    figures = _probed(_parts(g_terms={"adversarial": ADVERSARIAL, "faded": faded}), teacher)
    assert figures["gradient/faded"] == figures["faded/weight"] == 0.0
    assert health.warnings(figures) == []


def test_images_in_another_unit_are_told(healthy):
    parts, state, teacher, *_ = healthy
    network = parts["nets"].teacher

    def in_bytes(variables, *inputs, **options):
        images, taps, after = network.apply(variables, *inputs, **options)
        return 127.5 * (images + 1.0), taps, after

    parts = {**parts, "nets": parts["nets"]._replace(teacher=Network(network.init, in_bytes))}
    figures = _probed(parts, teacher, MLP_BATCH, state)
    units = [line for line in health.warnings(figures) if line.endswith("are both in one unit?")]
    low, high = float(figures["teacher/low"]), float(figures["teacher/high"])
    assert low >= 0.0
    assert 127.5 < high <= 255.0
    assert units == [
        f"the student's images are in [{figures['student/low']:.3g}, "
        f"{figures['student/high']:.3g}] and the teacher's in [{low:.3g}, {high:.3g}]: "
        "are both in one unit?"
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        ((-1.0, 1.0), (-0.9, 1.0), 0),
        ((-0.7, 0.7), (-1.0, 1.0), 0),
        ((-0.5, 0.5), (-1.0, 1.0), 1),
        ((-1.0, 1.0), (0.0, 1.0), 1),  # as other libraries have them
        ((-1.0, 0.4), (-0.8, 1.0), 0),
        ((-1.0, 1.0), (-0.2, 0.2), 1),
        ((-1.0, 1.0), (2.0, 4.0), 1),
        ((2.0, 4.0), (-1.0, 1.0), 1),
    ],
)
def test_ranges_that_are_apart_or_of_other_widths(ours, theirs, count):
    names = ("student/low", "student/high", "teacher/low", "teacher/high")
    assert len(health.warnings(dict(zip(names, (*ours, *theirs), strict=True)))) == count


def test_a_changed_teacher_is_told(healthy):
    _, state, teacher, probe, first, _ = healthy
    leaves, tree = jax.tree.flatten(teacher)
    leaves[0] = _flipped(leaves[0], 3, 0)
    changed = jax.tree.unflatten(tree, leaves)
    _, figures = probe(state, changed, MLP_BATCH)
    lines = health.warnings(figures, first=first)
    assert lines == ["the teacher's variables are not those that the training began with"]
    assert health.warnings(figures) == health.warnings(figures, first=figures) == []
    # Neighbouring numbers are as different as any.
    name = "teacher/fingerprint"
    assert health.warnings({name: 2**24 - 1}, first={name: 2**24 - 2}) == lines
    assert health.warnings({name: 0}, first={name: 1}) == lines


# The fingerprint.


def _flipped(leaf, index, bit):
    words = np.array(leaf)
    flat = words.reshape(-1).view(f"uint{8 * words.dtype.itemsize}")
    flat[index] ^= flat.dtype.type(1 << bit)
    return jnp.asarray(words)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_every_bit_counts(dtype):
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)) * 50, dtype)
    fingerprint = jax.jit(lambda x: health.fingerprint({"a": x, "b": jnp.ones(2)}))
    found = {int(fingerprint(leaf))}
    for index in (0, 5, 11):
        for bit in range(8 * leaf.dtype.itemsize):
            found.add(int(fingerprint(_flipped(leaf, index, bit))))
    assert len(found) == 1 + 3 * 8 * leaf.dtype.itemsize
    assert max(found) < 2**24
    assert max(found) > 2**20  # the bits are used


def test_every_bit_of_a_double_counts(x64):
    for leaf in (np.array([1.5, -2.25]), np.array([7, -9])):
        found = {int(health.fingerprint(jnp.asarray(leaf)))}
        for bit in (0, 20, 33, 52, 63):
            found.add(int(health.fingerprint(_flipped(leaf, 1, bit))))
        assert len(found) == 6


def test_places_count():
    """Round numbers, whose low bits are all zero, at every distance."""
    flat = np.zeros(600, np.float32)
    found = set()
    for index in range(600):
        flat[index] = 1.0
        found.add(int(health.fingerprint(flat)))
        flat[index] = 0.0
    assert len(found) == 600
    a, b = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    trees = [{"a": a, "b": b}, {"a": b, "b": a}, {"a": a[::-1], "b": b}, {"a": b[::-1], "b": a}]
    trees += [{"a": jnp.array([1.0, 3.0]), "b": jnp.array([2.0, 4.0])}, {"a": a}, {"b": b}]
    trees += [{"a": jnp.array([True, False])}, {"a": jnp.array([False, True])}]
    assert len({int(health.fingerprint(tree)) for tree in trees}) == len(trees)


def test_fingerprint_is_the_same_however_it_is_computed():
    mesh = make_mesh(2, 4)
    leaf = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    tree = {"kernel": leaf, "scale": np.ones(8, np.float32).astype(jnp.bfloat16)}
    once = int(health.fingerprint(tree))
    assert int(jax.jit(health.fingerprint)(tree)) == once
    for spec in (PartitionSpec("model"), PartitionSpec("data", "model"), PartitionSpec()):
        split = {**tree, "kernel": jax.device_put(leaf, NamedSharding(mesh, spec))}
        assert int(jax.jit(health.fingerprint)(split)) == once
    assert float(np.float32(once)) == once
    assert int(health.fingerprint(Teacher(tree))) == once
    assert int(health.fingerprint(Teacher())) == 0


def test_a_compiled_probe_is_the_same_on_many_devices(healthy):
    parts, _, teacher, *_ = healthy
    parts = {
        **parts,
        "g_terms": {
            **parts["g_terms"],
            "lazy": Term(PIXEL.fn, balanced(ADVERSARIAL.fn), every=3),
            "memory": Term(lambda f, s: (f.fake.mean() * s, s + 1), init=lambda: jnp.asarray(2.0)),
        },
    }
    results = []
    for mesh in (None, make_mesh(8)):
        state = initialize(lambda: init_state(jax.random.key(0), MLP_BATCH, **parts), mesh)
        probe = compile_step(health.probe(**parts), mesh, donate=False)
        after, figures = probe(state, place(teacher, mesh), place_batch(MLP_BATCH, mesh))
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(_bits(old), _bits(new))
        results.append(jax.device_get(figures))
    one, many = results
    assert one["teacher/fingerprint"] == many["teacher/fingerprint"]
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert health.warnings(many, first=one) == []


def windows(trend, name, values):
    return [trend.look({name: value}) for value in values]


def test_a_gradient_that_explodes_is_told():
    told = windows(health.Trend(), "g/grad_norm", [1.0, 2.0, 1.5, 3.0, 200.0, 1.0])
    assert [len(lines) for lines in told] == [0, 0, 0, 0, 1, 0]
    assert told[4] == ["g/grad_norm is 200, 114 times what it was: the training diverges"]
    assert windows(health.Trend(), "g/loss", [1.0, 1.0, 1.0, 1.0, 1e9]) == [[]] * 5


def test_a_discriminator_that_has_won_is_told():
    trend = health.Trend({"d/adversarial": 0.0, "g/adversarial": 0.0})
    told = windows(trend, "d/adversarial", [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 0.5, 1e-4])
    assert [len(lines) for lines in told] == [0, 0, 0, 1, 1, 0, 0]
    assert "sure of everything" in told[3][0]
    assert windows(trend, "g/adversarial", [0.0] * 5) == [[]] * 5  # the generator's, which may be


def test_what_is_not_finite_is_named():
    tree = {"a": np.ones(3), "b": {"c": np.array([1.0, np.inf]), "d": np.arange(3)}}
    assert health.first_fault(tree) == "b/c is not finite"
    assert health.first_fault({"a": np.ones(3), "key": jax.random.key(0)}) is None
    assert health.first_fault({}) is None
    flags = {"4/the gradient of g/x": 0.0, "3/g/x": 0.0, "1/the teacher's output": 1.0}
    assert health.culprit(flags) == "g/x is not finite"
    assert health.culprit(dict.fromkeys(flags, 1.0)) is None

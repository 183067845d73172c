"""Training diagnostics: figures by hand on a linear GAN, and each warning only where it applies.

The linear GAN's generator is `z * w` and its discriminator `x * v`, with scalars w and v, and the
latents are constant, so that its gradients are written out below in double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax import losses
from kd_jax.core.mesh import compile_step, initialize, make_mesh, place, place_batch
from kd_jax.core.network import Network
from kd_jax.core.objective import Inputs, Term
from kd_jax.core.setup import Networks, PerNetwork, Setup, Teacher
from kd_jax.core.state import init_state
from kd_jax.core.step import make_train_step
from kd_jax.core.types import Taps
from kd_jax.methods.weights import gradient_balanced, uncertainty
from kd_jax.models import mlp
from kd_jax.tasks import latents
from kd_jax.train import diagnostics

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


ADVERSARIAL = Term(lambda f: losses.adversarial.nonsaturating_g(f.discriminator.fake_scores), 2.0)
MINIMAX = Term(
    lambda f: losses.adversarial.minimax_d(
        f.discriminator.real_scores, f.discriminator.fake_scores
    ),
    weight=5.0,
    lower_bound=0.0,
)
PIXEL = Term(lambda f: losses.response.l2(f.student.output, f.teacher.output), 0.5)
TEACHER = Teacher({"params": {"w": jnp.float32(TEACHER_W)}})


G_TERMS, D_TERMS = {"adversarial": ADVERSARIAL, "pixel": PIXEL}, {"adversarial": MINIMAX}


def _parts(g_terms=G_TERMS, d_terms=D_TERMS, **changes):
    return {
        "networks": Networks(_linear("w", W), _linear("v", V), _linear("w", 0.0)),
        "losses": PerNetwork(g_terms, d_terms),
        "optimizers": PerNetwork(optax.sgd(0.1), optax.sgd(0.1)),
        "task": _task,
        **changes,
    }


def _probe(parts, teacher=TEACHER, batch=BATCH, state=None):
    state = init_state(Setup(**parts), jax.random.key(0), batch) if state is None else state
    after, figures = jax.jit(diagnostics.probe(Setup(**parts)))(state, teacher, batch)
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
    adversarial = -V * _sigmoid(-V * W * z) / B
    pixel = 2 * (W - TEACHER_W) * z / B
    return {
        "image_gradient/adversarial": 2.0 * np.linalg.norm(adversarial),
        "gradient/adversarial": 2.0 * abs(np.sum(adversarial * z)),
        "image_gradient/pixel": 0.5 * np.linalg.norm(pixel),
        "gradient/pixel": 0.5 * abs(np.sum(pixel * z)),
        "above_lower_bound/d/adversarial": np.mean(_softplus(-V * REAL) + _softplus(V * W * z)),
        "student/low": W * z.min(),
        "student/high": W * z.max(),
        "real/low": REAL.min(),
        "real/high": REAL.max(),
        "teacher/low": TEACHER_W * z.min(),
        "teacher/high": TEACHER_W * z.max(),
    }


def _check_figures(figures, expected):
    assert set(figures) == {*expected, "teacher/fingerprint"}
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=2e-5, atol=1e-6, err_msg=name)


def test_figures_by_hand():
    _check_figures(_probe(_parts()), _expected())


def test_lazy_terms_are_probed_at_any_step_with_their_plain_weight():
    parts = _parts(
        g_terms={
            "adversarial": ADVERSARIAL._replace(every=3),
            "pixel": PIXEL._replace(every=2, weight=lambda step: 0.5 * step),
        },
        d_terms={"adversarial": MINIMAX._replace(every=7)},
    )
    state = init_state(Setup(**parts), jax.random.key(0), BATCH)._replace(step=jnp.int32(1))
    _check_figures(_probe(parts, state=state), {**_expected(), "pixel/weight": 0.5})


def test_stateful_terms_and_weights_are_probed_in_their_current_state():
    def stateful(forward, state):
        return state * forward.student.output, state + 1.0

    def init():
        return jnp.asarray(3.0)

    parts = _parts(
        g_terms={
            "plain": Term(stateful, init=init, lower_bound=-6.0),
            "weighted": Term(stateful, uncertainty(rate=0.5, start=2.0), 2, init),
            "gradient_balanced": Term(
                lambda f: 2.0 * f.student.output,
                gradient_balanced(lambda f: 5.0 * f.student.output),
            ),
        }
    )
    figures = _probe(parts)
    norm = 3.0 / np.sqrt(B)
    for name, value in {
        "image_gradient/plain": norm,
        "image_gradient/weighted": 2.0 * norm,
        "image_gradient/gradient_balanced": 5.0 / np.sqrt(B),
        "gradient/plain": 3.0 * abs(Z.mean()),
        # Relative to the magnitude of the lower bound, if that is more than 1.
        "above_lower_bound/g/plain": (3.0 * W * Z.mean() + 6.0) / 6.0,
    }.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-5, err_msg=name)
    state, _ = make_train_step(Setup(**parts))(
        init_state(Setup(**parts), jax.random.key(0), BATCH), TEACHER, BATCH
    )
    np.testing.assert_allclose(
        _probe(parts, state=state)["image_gradient/plain"], 4.0 / np.sqrt(B), rtol=1e-5
    )


def test_the_distance_from_a_lower_bound_is_unweighted_for_both_networks():
    g_terms = {"pixel": PIXEL._replace(lower_bound=0.5, weight=1e3), "adversarial": ADVERSARIAL}
    figures = _probe(_parts(g_terms=g_terms))
    distance = np.mean(((W - TEACHER_W) * Z.astype(np.float64)) ** 2)
    np.testing.assert_allclose(figures["above_lower_bound/g/pixel"], distance - 0.5, rtol=1e-5)
    assert "above_lower_bound/g/adversarial" not in figures
    assert "above_lower_bound/d/adversarial" in figures


def test_terms_of_features_have_no_gradient_at_the_image():
    g_terms = {"features": Term(lambda f: f.student.taps["output"] ** 2)}
    figures = _probe(_parts(g_terms=g_terms))
    assert float(figures["image_gradient/features"]) == 0.0
    expected = abs(np.mean(2 * W * Z.astype(np.float64) ** 2))
    np.testing.assert_allclose(figures["gradient/features"], expected, rtol=1e-5)


def test_a_probe_without_a_discriminator_or_a_teacher():
    networks = Networks(_linear("w", W), teacher=_linear("w", 0.0))
    parts = _parts({"pixel": PIXEL}, {}, networks=networks)
    expected = {k: v for k, v in _expected().items() if "adversarial" not in k}
    _check_figures(_probe(parts), expected)
    networks = Networks(_linear("w", W), _linear("v", V))
    parts = _parts({"adversarial": ADVERSARIAL}, networks=networks)
    figures = _probe(parts, teacher=None)
    assert not [name for name in figures if name.startswith("teacher/")]
    assert diagnostics.warnings(figures, first=figures) == []


# Warnings, for real networks or the linear GAN.


def _mlp_case(g_terms=None, d_terms=None, **changes):
    student, teacher = mlp.gan(4, 16, depth=1), mlp.generator(4, 32, depth=1)
    parts = {
        "networks": Networks(*student, teacher),
        "losses": PerNetwork(
            g_terms or {"adversarial": ADVERSARIAL._replace(weight=1.0), "pixel": PIXEL},
            d_terms or {"adversarial": MINIMAX._replace(weight=1.0)},
        ),
        "optimizers": PerNetwork(optax.adam(2e-3), optax.adam(2e-3)),
        "task": latents(3),
        **changes,
    }
    return parts, Teacher(teacher.init(jax.random.key(5), jnp.zeros((8, 3))))


MLP_BATCH = {"image": np.random.default_rng(0).uniform(-1, 1, size=(8, 4, 4, 1)).astype(np.float32)}


@pytest.fixture(scope="module")
def healthy():
    """A tiny GAN after some steps, and its figures before and after."""
    parts, teacher = _mlp_case()
    state = init_state(Setup(**parts), jax.random.key(0), MLP_BATCH)
    step, probe = (
        jax.jit(make_train_step(Setup(**parts))),
        jax.jit(diagnostics.probe(Setup(**parts))),
    )
    _, first = probe(state, teacher, MLP_BATCH)
    for _ in range(5):
        state, _ = step(state, teacher, MLP_BATCH)
    _, figures = probe(state, teacher, MLP_BATCH)
    return parts, state, teacher, probe, first, figures


def test_a_healthy_gan_gets_no_warning(healthy):
    *_, first, figures = healthy
    assert diagnostics.warnings(first) == diagnostics.warnings(figures, first=first) == []
    # Figures on the host, and first figures of a run without a teacher.
    assert diagnostics.warnings(jax.device_get(figures), first=jax.device_get(first)) == []
    assert diagnostics.warnings(figures, first={}) == []


def test_a_probe_draws_its_own_latents(healthy):
    _, state, teacher, probe, _, figures = healthy
    repeated = probe(state, teacher, MLP_BATCH)[1]
    assert float(repeated["student/low"]) == float(figures["student/low"])
    later = probe(state._replace(step=state.step + 1), teacher, MLP_BATCH)[1]
    assert float(later["student/low"]) != float(figures["student/low"])


def test_a_saturated_discriminator_warns(healthy):
    """Trained until it is saturated, on real images that the generator cannot produce."""
    parts, _, teacher, probe, first, _ = healthy
    parts = {**parts, "optimizers": PerNetwork(optax.sgd(0.0), optax.adam(0.05))}
    batch = {"image": np.full((8, 4, 4, 1), 5.0, np.float32)}
    state, step = (
        init_state(Setup(**parts), jax.random.key(0), batch),
        make_train_step(Setup(**parts)),
    )
    expected = "d/adversarial is at its lower bound: the discriminator is saturated"
    assert not [line for line in diagnostics.warnings(first) if "saturated" in line]
    state = jax.jit(
        lambda state: jax.lax.fori_loop(0, 150, lambda _, s: step(s, teacher, batch)[0], state)
    )(state)
    _, figures = probe(state, teacher, batch)
    lines = diagnostics.warnings(figures)
    assert [line for line in lines if line.startswith(expected)] == lines[:1]


def test_a_saturated_term_warns():
    """Kernel alignment, with a lower bound of -1, of a student that equals its teacher."""
    network = mlp.generator(4, 16, depth=1)
    alignment = Term(
        lambda f: losses.relation.kernel_alignment(
            f.student.taps["hidden0"], f.teacher.taps["hidden0"]
        ),
        lower_bound=-1.0,
    )
    parts, _ = _mlp_case(g_terms={"adversarial": ADVERSARIAL, "alignment": alignment})
    parts["networks"] = Networks(network, parts["networks"].discriminator, network)
    state = init_state(Setup(**parts), jax.random.key(0), MLP_BATCH)
    # In evaluation mode the student's features are the teacher's, so the term is at its bound.
    figures = _probe(parts, Teacher(state.generator.variables), MLP_BATCH, state)
    (line,) = diagnostics.warnings(figures)
    assert line.startswith("g/alignment is at its lower bound: the term is saturated")
    other = network.init(jax.random.key(9), jnp.zeros((8, 3)))
    assert diagnostics.warnings(_probe(parts, Teacher(other), MLP_BATCH, state)) == []


def test_near_is_the_tolerance_of_the_lower_bound():
    for above, near, count in [(2e-3, 1e-3, 0), (5e-4, 1e-3, 1), (-1e-7, 1e-3, 1), (0.2, 0.3, 1)]:
        assert (
            len(diagnostics.warnings({"above_lower_bound/d/adversarial": above}, near=near))
            == count
        )


def test_a_term_that_outweighs_the_adversarial_loss_warns(healthy):
    heavy = {"adversarial": ADVERSARIAL._replace(weight=1.0), "pixel": PIXEL._replace(weight=1e6)}
    parts, teacher = _mlp_case(g_terms=heavy)
    figures = _probe(parts, teacher, MLP_BATCH)
    ratio = float(figures["image_gradient/pixel"]) / float(figures["image_gradient/adversarial"])
    assert ratio > 1e3
    assert diagnostics.warnings(figures) == [
        "g/pixel outweighs g/adversarial: its gradient norm at the image is "
        f"{ratio:.2g} times as large"
    ]
    assert diagnostics.warnings(figures, ratio=1.01 * ratio) == []
    assert len(diagnostics.warnings(figures, ratio=0.99 * ratio)) == 1
    # The reference term may have another name, or be missing.
    renamed = {name.replace("adversarial", "adv"): value for name, value in figures.items()}
    assert diagnostics.warnings(renamed) == []
    assert len(diagnostics.warnings(renamed, against="adv")) == 1


def test_a_term_without_gradient_warns():
    teacher = Teacher({"params": {"w": jnp.float32(1.0)}})
    for idle in (Term(lambda f: 3.0), Term(lambda f: f.teacher.output), PIXEL._replace(weight=0)):
        parts = _parts(g_terms={"adversarial": ADVERSARIAL, "pixel": PIXEL, "idle": idle})
        lines = diagnostics.warnings(_probe(parts, teacher))
        assert lines == ["g/idle has no gradient: it does not train the generator"]
    # A schedule that has reached 0 is intended.
    faded = PIXEL._replace(weight=lambda step: 0.0 * step)
    figures = _probe(_parts(g_terms={"adversarial": ADVERSARIAL, "faded": faded}), teacher)
    assert figures["gradient/faded"] == figures["faded/weight"] == 0.0
    assert diagnostics.warnings(figures) == []


def test_images_in_other_units_warn(healthy):
    parts, state, teacher, *_ = healthy
    network = parts["networks"].teacher

    def in_bytes(variables, *inputs, **options):
        images, taps, after = network.apply(variables, *inputs, **options)
        return 127.5 * (images + 1.0), taps, after

    networks = parts["networks"]._replace(teacher=Network(network.init, in_bytes))
    parts = {**parts, "networks": networks}
    figures = _probe(parts, teacher, MLP_BATCH, state)
    units = [
        line for line in diagnostics.warnings(figures) if line.endswith("their units may differ")
    ]
    low, high = float(figures["teacher/low"]), float(figures["teacher/high"])
    assert low >= 0.0
    assert 127.5 < high <= 255.0
    assert units == [
        f"the student's images are in [{figures['student/low']:.3g}, "
        f"{figures['student/high']:.3g}] and the teacher's in [{low:.3g}, {high:.3g}]: "
        "their units may differ"
    ]


@pytest.mark.parametrize(
    ("low", "high", "conversion"),
    [
        (0, 255, "images / 127.5 - 1"),
        (0.1, 0.9, "images * 2 - 1"),
        (-1, 1, None),
        (-0.2, 0.5, None),
    ],
)
def test_real_images_in_other_units_warn(low, high, conversion):
    lines = diagnostics.warnings({"real/low": low, "real/high": high})
    assert len(lines) == (conversion is not None)
    assert all(conversion in line and line.startswith("the real images are in") for line in lines)


@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    [
        ((-1.0, 1.0), (-0.9, 1.0), 0),
        ((-0.7, 0.7), (-1.0, 1.0), 0),
        ((-0.5, 0.5), (-1.0, 1.0), 1),
        ((-1.0, 1.0), (0.0, 1.0), 1),  # as in other libraries
        ((-1.0, 0.4), (-0.8, 1.0), 0),
        ((-1.0, 1.0), (-0.2, 0.2), 1),
        ((-1.0, 1.0), (2.0, 4.0), 1),
        ((2.0, 4.0), (-1.0, 1.0), 1),
    ],
)
def test_ranges_that_differ_in_position_or_width_warn(ours, theirs, count):
    names = ("student/low", "student/high", "teacher/low", "teacher/high")
    assert len(diagnostics.warnings(dict(zip(names, (*ours, *theirs), strict=True)))) == count


def test_a_changed_teacher_warns(healthy):
    _, state, teacher, probe, first, _ = healthy
    leaves, tree = jax.tree.flatten(teacher)
    leaves[0] = _flip_bit(leaves[0], 3, 0)
    changed = jax.tree.unflatten(tree, leaves)
    _, figures = probe(state, changed, MLP_BATCH)
    lines = diagnostics.warnings(figures, first=first)
    assert lines == ["the teacher's variables have changed since the start of the training"]
    assert diagnostics.warnings(figures) == diagnostics.warnings(figures, first=figures) == []
    # Adjacent fingerprints differ, too.
    name = "teacher/fingerprint"
    assert diagnostics.warnings({name: 2**24 - 1}, first={name: 2**24 - 2}) == lines
    assert diagnostics.warnings({name: 0}, first={name: 1}) == lines


# The fingerprint.


def _flip_bit(leaf, index, bit):
    words = np.array(leaf)
    flat = words.reshape(-1).view(f"uint{8 * words.dtype.itemsize}")
    flat[index] ^= flat.dtype.type(1 << bit)
    return jnp.asarray(words)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_every_bit_counts(dtype):
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)) * 50, dtype)
    fingerprint = jax.jit(lambda x: diagnostics.fingerprint({"a": x, "b": jnp.ones(2)}))
    values = {int(fingerprint(leaf))}
    for index in (0, 5, 11):
        for bit in range(8 * leaf.dtype.itemsize):
            values.add(int(fingerprint(_flip_bit(leaf, index, bit))))
    assert len(values) == 1 + 3 * 8 * leaf.dtype.itemsize
    assert max(values) < 2**24
    assert max(values) > 2**20  # the high bits are used


def test_every_bit_of_a_double_counts(x64):
    for leaf in (np.array([1.5, -2.25]), np.array([7, -9])):
        values = {int(diagnostics.fingerprint(jnp.asarray(leaf)))}
        for bit in (0, 20, 33, 52, 63):
            values.add(int(diagnostics.fingerprint(_flip_bit(leaf, 1, bit))))
        assert len(values) == 6


def test_every_position_counts():
    """Round numbers, whose low bits are all zero, at every position."""
    flat = np.zeros(600, np.float32)
    values = set()
    for index in range(600):
        flat[index] = 1.0
        values.add(int(diagnostics.fingerprint(flat)))
        flat[index] = 0.0
    assert len(values) == 600
    a, b = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    trees = [{"a": a, "b": b}, {"a": b, "b": a}, {"a": a[::-1], "b": b}, {"a": b[::-1], "b": a}]
    trees += [{"a": jnp.array([1.0, 3.0]), "b": jnp.array([2.0, 4.0])}, {"a": a}, {"b": b}]
    trees += [{"a": jnp.array([True, False])}, {"a": jnp.array([False, True])}]
    assert len({int(diagnostics.fingerprint(tree)) for tree in trees}) == len(trees)


def test_the_fingerprint_is_independent_of_compilation_and_sharding():
    mesh = make_mesh(2, 4)
    leaf = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    tree = {"kernel": leaf, "scale": np.ones(8, np.float32).astype(jnp.bfloat16)}
    expected = int(diagnostics.fingerprint(tree))
    assert int(jax.jit(diagnostics.fingerprint)(tree)) == expected
    for spec in (PartitionSpec("model"), PartitionSpec("data", "model"), PartitionSpec()):
        sharded = {**tree, "kernel": jax.device_put(leaf, NamedSharding(mesh, spec))}
        assert int(jax.jit(diagnostics.fingerprint)(sharded)) == expected
    assert float(np.float32(expected)) == expected
    assert int(diagnostics.fingerprint(Teacher(tree))) == expected
    assert int(diagnostics.fingerprint(Teacher())) == 0


def test_a_compiled_probe_is_the_same_on_many_devices(healthy):
    parts, _, teacher, *_ = healthy
    parts = {
        **parts,
        "losses": PerNetwork(
            {
                **parts["losses"].generator,
                "lazy": Term(PIXEL.fn, gradient_balanced(ADVERSARIAL.fn), every=3),
                "stateful": Term(
                    lambda f, s: (f.student.output.mean() * s, s + 1), init=lambda: jnp.asarray(2.0)
                ),
            },
            parts["losses"].discriminator,
        ),
    }
    results = []
    for mesh in (None, make_mesh(8)):
        state = initialize(lambda: init_state(Setup(**parts), jax.random.key(0), MLP_BATCH), mesh)
        probe = compile_step(diagnostics.probe(Setup(**parts)), mesh, donate=False)
        after, figures = probe(state, place(teacher, mesh), place_batch(MLP_BATCH, mesh))
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(_bits(old), _bits(new))
        results.append(jax.device_get(figures))
    one, many = results
    assert one["teacher/fingerprint"] == many["teacher/fingerprint"]
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert diagnostics.warnings(many, first=one) == []


def look_at_windows(trend, name, values):
    return [trend.update({name: value}) for value in values]


def test_an_exploding_gradient_warns():
    warnings = look_at_windows(diagnostics.Trend(), "g/grad_norm", [1.0, 2.0, 1.5, 3.0, 200.0, 1.0])
    assert [len(lines) for lines in warnings] == [0, 0, 0, 0, 1, 0]
    assert warnings[4] == ["g/grad_norm is 200, 114 times its median: the training diverges"]
    assert look_at_windows(diagnostics.Trend(), "g/loss", [1.0, 1.0, 1.0, 1.0, 1e9]) == [[]] * 5


def test_a_discriminator_at_its_lower_bound_warns():
    trend = diagnostics.Trend({"d/adversarial": 0.0, "g/adversarial": 0.0})
    warnings = look_at_windows(trend, "d/adversarial", [0.5, 1e-4, 1e-4, 1e-4, 1e-4, 0.5, 1e-4])
    assert [len(lines) for lines in warnings] == [0, 0, 0, 1, 1, 0, 0]
    assert "d/adversarial has been at its lower bound for 3 windows" in warnings[3][0]
    assert (
        look_at_windows(trend, "g/adversarial", [0.0] * 5) == [[]] * 5
    )  # the generator may reach its bound


def test_values_that_are_not_finite_are_located():
    tree = {"a": np.ones(3), "b": {"c": np.array([1.0, np.inf]), "d": np.arange(3)}}
    assert diagnostics.first_nonfinite(tree) == "b/c is not finite"
    assert diagnostics.first_nonfinite({"a": np.ones(3), "key": jax.random.key(0)}) is None
    assert diagnostics.first_nonfinite({}) is None
    flags = {"4/the gradient of g/x": 0.0, "3/g/x": 0.0, "1/the teacher's output": 1.0}
    assert diagnostics.locate_nonfinite(flags) == "g/x is not finite"
    assert diagnostics.locate_nonfinite(dict.fromkeys(flags, 1.0)) is None

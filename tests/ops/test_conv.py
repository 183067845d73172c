from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from selection import quick

from benchmarks.scaling import collectives
from kd_jax import make_mesh
from kd_jax.ops import conv, conv_transpose, convolution, cpu
from kd_jax.ops.cpu import winograd3

pytestmark = pytest.mark.usefixtures("cpu_algorithms")

LAYOUT = ("NHWC", "HWIO", "NHWC")


def lax_conv(x, kernel, stride, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )


def lax_conv_transpose(x, kernel, stride):
    return jax.lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)


PAIRS = {"conv": (conv, lax_conv), "conv_transpose": (conv_transpose, lax_conv_transpose)}
CASES = [
    (name, sides, kernel, stride)
    for name in PAIRS
    for sides in ((4, 6), (5, 3))
    for kernel in ((1, 2), (3, 4), (4, 4), (5, 3))
    for stride in (1, 2, 3)
]


def draw(sides, kernel, *, batch=2, channels=(2, 3), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *sides, channels[0]))
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((*kernel, *channels)))


def nonlinear_sum(op, stride):
    """A scalar function of (x, kernel) whose derivatives all depend on both."""
    return lambda x, kernel: jnp.sin(op(x, kernel, stride)).sum()


def squared_gradients(op, stride, argnums):
    """A function of a gradient, as R1 (argnums 0)."""

    def penalty(x, kernel):
        grads = jax.grad(nonlinear_sum(op, stride), argnums)(x, kernel)
        return sum((grad**2).sum() for grad in jax.tree.leaves(grads))

    return penalty


def assert_close(actual, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("name", "sides", "kernel", "stride"), quick(CASES, lambda case: case[3] == 2), ids=str
)
def test_value_and_first_derivatives_equal_those_of_lax(x64, name, sides, kernel, stride):
    x, weights = draw(sides, kernel)
    ours, reference = PAIRS[name]
    actual = ours(x, weights, stride)
    assert_close(actual, reference(x, weights, stride))
    if name == "conv_transpose":
        assert actual.shape == (2, stride * sides[0], stride * sides[1], 3)
    gradients = [
        jax.jit(jax.grad(nonlinear_sum(op, stride), (0, 1)))(x, weights) for op in PAIRS[name]
    ]
    assert_close(*gradients)


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)], ids=str)
@pytest.mark.parametrize("stride", quick([2, 1, 3]))
@pytest.mark.parametrize(("sides", "kernel"), [((4, 5), (4, 4)), ((5, 4), (3, 5))])
@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_equal_those_of_lax(x64, name, sides, kernel, stride, argnums):
    x, weights = draw(sides, kernel)
    gradients = [
        jax.jit(jax.grad(squared_gradients(op, stride, argnums), (0, 1)))(x, weights)
        for op in PAIRS[name]
    ]
    assert_close(*gradients)


@pytest.mark.parametrize("padding", ["VALID", ((2, 0), (1, 3)), ((-1, 1), (0, 0))], ids=str)
def test_paddings_of_conv_equal_those_of_lax(x64, padding):
    x, weights = draw((7, 6), (3, 4))
    ours, reference = (partial(op, padding=padding) for op in (conv, lax_conv))
    assert_close(ours(x, weights, 2), reference(x, weights, 2))
    gradients = [jax.grad(nonlinear_sum(op, 2), (0, 1))(x, weights) for op in (ours, reference)]
    assert_close(*gradients)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_of_three_orders_equal_finite_differences(x64, name, stride):
    x, weights = draw((3, 4), (4, 3), batch=1)
    op = PAIRS[name][0]
    functions = [
        nonlinear_sum(op, stride),
        *(squared_gradients(op, stride, argnum) for argnum in (0, 1)),
    ]
    functions.append(lambda x, k: sum((g**2).sum() for g in jax.grad(functions[1], (0, 1))(x, k)))
    dx, dk = draw((3, 4), (4, 3), batch=1, seed=1)
    step = 1e-5
    for function in functions:
        function = jax.jit(function)
        gx, gk = jax.jit(jax.grad(function, (0, 1)))(x, weights)
        slope = float((gx * dx).sum() + (gk * dk).sum())
        ahead, behind = (function(x + h * dx, weights + h * dk) for h in (step, -step))
        assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-6)


def test_hand_computed_conv():
    # Padding is (0, 1) on both axes: outputs are the sums over 2x2 windows, clipped at the end.
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    kernel = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    actual = conv(x, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(actual, [[5421, 6532, 603], [8754, 9865, 906], [87, 98, 9]])
    np.testing.assert_array_equal(conv(x, kernel, 2)[0, :, :, 0], [[5421, 603], [87, 9]])


def test_hand_computed_conv_transpose():
    # With zeros inserted the row is 0 0 1 0 2 0 0; the kernel slides over it without being flipped.
    x = jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    kernel = jnp.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 4, 1, 1)
    actual = conv_transpose(x, kernel)
    assert actual.shape == (1, 2, 4, 1)
    np.testing.assert_array_equal(actual[0, :, :, 0], [[100, 2010, 201, 20], [0, 0, 0, 0]])


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 2)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_vmap_equals_a_loop(x64, name, axes):
    x, weights = draw((4, 5), (4, 3))
    rng = np.random.default_rng(3)
    stacked = []
    for leaf, axis in zip((x, weights), axes, strict=True):
        if axis is not None:
            shape = (*leaf.shape[:axis], 3, *leaf.shape[axis:])
            leaf = jnp.asarray(rng.standard_normal(shape))
        stacked.append(leaf)
    op = PAIRS[name][0]
    for function in (
        partial(op, stride=2),
        jax.grad(nonlinear_sum(op, 2), (0, 1)),
        jax.grad(squared_gradients(op, 2, 0), (0, 1)),
    ):
        actual = jax.jit(jax.vmap(function, axes))(*stacked)
        for index in range(3):
            example = [
                leaf if axis is None else jnp.take(leaf, index, axis)
                for leaf, axis in zip(stacked, axes, strict=True)
            ]
            assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], actual), function(*example))


@pytest.mark.parametrize("name", PAIRS)
def test_remat_and_jit_do_not_change_gradients(x64, name):
    x, weights = draw((4, 5), (4, 4))
    penalty = squared_gradients(PAIRS[name][0], 2, 0)
    rematerialised = squared_gradients(jax.checkpoint(PAIRS[name][0], static_argnums=2), 2, 0)
    expected = jax.grad(penalty, (0, 1))(x, weights)
    assert_close(jax.jit(jax.grad(penalty, (0, 1)))(x, weights), expected)
    assert_close(jax.jit(jax.grad(rematerialised, (0, 1)))(x, weights), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_bfloat16_is_preserved(name):
    x, weights = (leaf.astype(jnp.bfloat16) for leaf in draw((4, 6), (4, 4)))
    wide = x.astype(jnp.float32), weights.astype(jnp.float32)
    op = PAIRS[name][0]
    assert op(x, weights, 2).dtype == jnp.bfloat16
    for function in (nonlinear_sum(op, 2), squared_gradients(op, 2, 0)):
        actual = jax.grad(function, (0, 1))(x, weights)
        for half, single in zip(actual, jax.grad(function, (0, 1))(*wide), strict=True):
            assert half.dtype == jnp.bfloat16
            error = jnp.linalg.norm(half.astype(jnp.float32) - single)
            assert error < 0.05 * jnp.linalg.norm(single)


PLAIN = {
    "kd_conv": convolution._lax_conv,
    "kd_conv_input_grad": convolution._lax_input_grad,
    "kd_conv_kernel_grad": convolution._lax_kernel_grad,
}


def convolutions(jaxpr):
    """All of a jaxpr; in the place of each primitive, that of its plain map."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in PLAIN:
            plain = partial(PLAIN[eqn.primitive.name], eqn.params["geometry"])
            inner = jax.make_jaxpr(plain)(*(var.aval.update() for var in eqn.invars))
            yield from convolutions(inner.jaxpr)
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn
        for param in eqn.params.values():
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from convolutions(inner)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_of_every_order_are_fast_on_cpu(name, order):
    """With a dilated image the window is the kernel; with a dilated window the result is."""
    x, weights = draw((16, 16), (4, 4))
    function = nonlinear_sum(PAIRS[name][0], 2)
    for _ in range(order - 1):
        function = squared_gradients(lambda x, k, stride, f=function: f(x, k), 2, (0, 1))
    jaxpr = jax.make_jaxpr(jax.grad(function, (0, 1)))(x, weights)
    dilations = set()
    for eqn in convolutions(jaxpr.jaxpr):
        _, rhs_spec, out_spec = eqn.params["dimension_numbers"]
        window, result = (
            tuple(var.aval.shape[axis] for axis in spec[2:])
            for var, spec in ((eqn.invars[1], rhs_spec), (eqn.outvars[0], out_spec))
        )
        dilation = eqn.params["lhs_dilation"], eqn.params["rhs_dilation"]
        dilations.add(dilation)
        assert dilation[1] == (1, 1) or result == (4, 4)
        assert dilation[0] == (1, 1) or window == (4, 4)
    assert dilations == {((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2))}


@pytest.mark.parametrize("op", [conv, conv_transpose])
@pytest.mark.parametrize(
    ("x", "kernel", "stride", "error", "match"),
    [
        ((2, 4, 4, 3), (3, 3, 2, 5), 1, ValueError, r"3 channels, the kernel .* takes 2"),
        ((4, 4, 3), (3, 3, 3, 5), 1, ValueError, r"not shapes \(4, 4, 3\)"),
        ((2, 4, 4, 3), (3, 3, 3), 1, ValueError, r"and \(3, 3, 3\)"),
        ((2, 4, 4, 3), (3, 3, 3, 5), 0, ValueError, "stride=0 is not a positive"),
    ],
)
def test_invalid_arguments_raise(op, x, kernel, stride, error, match):
    with pytest.raises(error, match=match):
        op(jnp.zeros(x), jnp.zeros(kernel), stride=stride)


@pytest.mark.parametrize("op", [conv, conv_transpose])
def test_mixed_dtypes_raise(op):
    with pytest.raises(TypeError, match="images are bfloat16, the kernel is float32"):
        op(jnp.zeros((1, 4, 4, 2), jnp.bfloat16), jnp.zeros((3, 3, 2, 1)))


# (channels, sides of the input), with Winograd's form, and the closest without it.
WINOGRAD = [
    pytest.param("conv", (16, 3), (8, 4), True, id="conv"),
    pytest.param("conv", (17, 2), (4, 12), True, id="conv-odd-channels"),
    pytest.param("conv", (15, 3), (8, 4), False, id="conv-few-channels"),
    pytest.param("conv", (16, 3), (6, 8), False, id="conv-other-side"),
    pytest.param("conv_transpose", (3, 16), (2, 4), True, id="transpose"),
    pytest.param("conv_transpose", (2, 16), (3, 4), False, id="transpose-other-side"),
]


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("name", "channels", "sides", "fewer"), WINOGRAD)
def test_fewer_multiplications_give_the_same_values(x64, name, channels, sides, fewer, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_WORK_4X4", 0)
    x, weights = draw(sides, (4, 4), channels=channels)
    ours, reference = PAIRS[name]
    assert_close(ours(x, weights, 2), reference(x, weights, 2))
    for make in (nonlinear_sum, partial(squared_gradients, argnums=(0, 1))):
        assert_close(
            *[jax.jit(jax.grad(make(op, 2), (0, 1)))(x, weights) for op in (ours, reference)]
        )
    assert (
        flops(partial(ours, stride=2), x, weights)
        != flops(partial(reference, stride=2), x, weights)
    ) == fewer


def test_multiplications_of_wide_layers_are_nine_of_sixteen(monkeypatch):
    monkeypatch.setattr(cpu, "MIN_WORK_4X4", 0)
    # Wide, so that the additions before and after the products are negligible.
    x, weights = jnp.ones((2, 32, 32, 128)), jnp.ones((4, 4, 128, 128))
    products = 2 * 2 * 16 * 16 * 16 * 128 * 128
    count = flops(partial(conv, stride=2), x, weights)
    assert 9 / 16 * products < count < 0.65 * products


def test_other_paddings_of_wide_layers_equal_those_of_lax(x64):
    x, weights = draw((8, 8), (4, 4), channels=(16, 2))
    for padding in ("VALID", ((2, 0), (0, 2))):
        ours, reference = (partial(op, padding=padding) for op in (conv, lax_conv))
        assert_close(ours(x, weights, 2), reference(x, weights, 2))


def test_half_precision_equals_lax():
    x, weights = (a.astype(jnp.bfloat16) for a in draw((8, 8), (4, 4), channels=(16, 4)))
    same = conv(x, weights, 2) == lax_conv(x, weights, 2)
    assert same.all()


def test_single_precision_is_as_good_as_lax(x64):
    x, weights = draw((16, 16), (4, 4), channels=(64, 8))
    exact = lax_conv(x, weights, 2)
    errors = [
        float(jnp.abs(op(x.astype(jnp.float32), weights.astype(jnp.float32), 2) - exact).max())
        for op in (conv, lax_conv)
    ]
    assert errors[0] < 3 * errors[1]


def test_other_platforms_use_the_compilers_convolution(monkeypatch):
    monkeypatch.setattr(cpu, "MIN_WORK_4X4", 0)
    x, weights = jnp.ones((2, 8, 8, 16)), jnp.ones((4, 4, 16, 4))
    traced = jax.jit(partial(conv, stride=2)).trace(x, weights)
    for platform, count in (("cuda", 1), ("tpu", 1), ("cpu", 0)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == count
    # The choice of the platform is not part of the compiled program.
    assert "conditional" not in traced.lower().compile().as_text()


def draw_large(batch, side, channels, kernel=3, seed=0):
    """Inputs just large enough not to be convolved by XLA."""
    return draw(
        (side, side), (kernel, kernel), batch=batch, channels=(channels, channels), seed=seed
    )


LARGE = {
    "two outputs at once": (4, 16, 512, 1, ((1, 1), (1, 1))),
    "four outputs at once": (8, 32, 192, 1, ((1, 1), (1, 1))),
    "stride 2": (8, 33, 192, 2, ((0, 0), (0, 0))),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_large_layers_equal_those_of_lax(x64, case):
    batch, side, channels, stride, padding = LARGE[case]
    x, weights = draw_large(batch, side, channels)
    y = lax_conv(x, weights, stride, padding)
    assert_close(conv(x, weights, stride, padding), y)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape))
    gradients = [
        jax.vjp(lambda x, w, op=op: op(x, w, stride, padding), x, weights)[1](cotangent)
        for op in (conv, lax_conv)
    ]
    assert_close(*gradients)


ONE = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("sides", "stride", "padding"),
    quick(
        [
            ((17, 15), 1, ONE),
            ((35, 33), 1, ONE),
            ((15, 18), 2, ONE),
            ((17, 18), 1, NONE),
            ((34, 35), 1, "VALID"),
            ((16, 15), 2, NONE),
            ((16, 17), 2, "SAME"),
        ],
        3,
    ),
    ids=str,
)
def test_images_are_padded_for_fewer_products(x64, sides, stride, padding, monkeypatch):
    """In all maps, for any sides."""
    monkeypatch.setattr(cpu, "MIN_WORK", 0)
    monkeypatch.setattr(winograd3, "LARGE", 2000)  # four outputs at once for the larger sides
    x, weights = draw(sides, (3, 3), channels=(32, 33))
    assert count_of_convolutions(partial(conv, stride=stride, padding=padding), x, weights) == 0
    y = lax_conv(x, weights, stride, padding)
    assert_close(conv(x, weights, stride, padding), y)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape))
    transposes = [
        jax.vjp(partial(op, stride=stride, padding=padding), x, weights)[1]
        for op in (conv, lax_conv)
    ]
    assert_close(*[transpose(cotangent) for transpose in transposes])
    assert count_of_convolutions(transposes[0], cotangent) == 0


def count_of_convolutions(function, *args):
    return jax.jit(function).lower(*args).as_text().count("stablehlo.convolution")


@pytest.mark.parametrize(
    ("sides", "stride", "padding"),
    [((4, 4), 1, NONE), ((6, 5), 2, ((-1, 1), (0, 0))), ((16, 16), 1, ((2, 0), (1, 1)))],
    ids=str,
)
def test_xla_convolves_if_padding_costs_more_or_is_not_supported(
    x64, sides, stride, padding, monkeypatch
):
    monkeypatch.setattr(cpu, "MIN_WORK", 0)
    x, weights = draw(sides, (3, 3), channels=(32, 32))
    assert count_of_convolutions(partial(conv, stride=stride, padding=padding), x, weights) == 1
    assert_close(conv(x, weights, stride, padding), lax_conv(x, weights, stride, padding))


@pytest.mark.parametrize("padding", [NONE, "SAME", ((2, 0), (1, 3))], ids=str)
@pytest.mark.parametrize("sides", [(9, 12), (6, 7)])
def test_strided_first_layers_are_a_matrix_product(x64, sides, padding, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_WORK", 0)
    x, weights = draw(sides, (3, 3), channels=(3, 32))
    assert count_of_convolutions(partial(conv, stride=2, padding=padding), x, weights) == 0
    assert_close(conv(x, weights, 2, padding), lax_conv(x, weights, 2, padding))


@pytest.mark.parametrize(("sides", "stride"), [((6, 8), 1), ((64, 128), 1), ((5, 13), 2)])
def test_fewer_products_of_images_that_are_not_square(x64, sides, stride):
    """All three maps separately, with different numbers of channels and features."""
    window, channels = (3, 3), (2, 3)
    x, weights = draw(sides, window, channels=channels)
    padding = "SAME" if stride == 1 else "VALID"
    names = ("conv", "input_grad", "kernel_grad")
    conv_map, input_grad, kernel_grad = (
        getattr(winograd3, name if stride == 1 else f"strided_{name}") for name in names
    )
    y, transpose = jax.vjp(lambda x, w: lax_conv(x, w, stride, padding), x, weights)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape))
    assert_close(conv_map(x, weights), y)
    assert_close((input_grad(cotangent, weights), kernel_grad(x, cotangent)), transpose(cotangent))


@pytest.mark.parametrize(
    ("sides", "op", "part"),
    [
        ((4, 16), winograd3.conv, 16 / 36),
        ((8, 32), winograd3.conv, 36 / 144),
        ((8, 33), winograd3.strided_conv, 25 / 36),
    ],
)
def test_large_layers_take_fewer_products(sides, op, part):
    x, weights = (a.astype(jnp.float32) for a in draw_large(*sides, 256))
    direct = 2 * 9 * 256 * jax.eval_shape(op, x, weights).size
    count = flops(op, x, weights)
    assert part * direct < count < (part + 0.06) * direct


@pytest.mark.parametrize(("sides", "digits"), [((4, 16), 2), ((8, 32), 50)])
def test_single_precision_of_large_layers(x64, sides, digits):
    """As documented in the module: with four outputs at once it is more than a digit worse."""
    x, weights = draw_large(*sides, 64)
    exact = lax_conv(x, weights, 1)
    errors = [
        float(jnp.abs(op(x.astype(jnp.float32), weights.astype(jnp.float32)) - exact).max())
        for op in (winograd3.conv, partial(lax_conv, stride=1))
    ]
    assert errors[0] < digits * errors[1]
    assert errors[0] < 3e-5 * float(jnp.abs(exact).max())


SHARDED = {
    "XLA's": ((3, 3), (8, 8), (8, 8), 1, ONE),
    "1x1": ((1, 1), (8, 8), (8, 8), 1, NONE),
    "winograd4": ((4, 4), (8, 8), (16, 16), 2, ONE),
    "winograd3, two outputs": ((3, 3), (8, 8), (32, 32), 1, ONE),
    "winograd3, four outputs": ((3, 3), (16, 16), (32, 32), 1, ONE),
    "winograd3, stride 2": ((3, 3), (9, 9), (32, 32), 2, NONE),
    "winograd7": ((1, 7), (8, 8), (16, 16), 1, ((0, 0), (3, 3))),
    "matrix product": ((3, 3), (9, 9), (3, 32), 2, NONE),
}


@pytest.mark.parametrize("case", SHARDED)
def test_several_devices_exchange_only_kernel_gradients(case, monkeypatch):
    """Each computes its part of the batch, without the images of the others."""
    monkeypatch.setattr(cpu, "MIN_WORK_4X4", 0)
    monkeypatch.setattr(cpu, "MIN_WORK", 0)
    monkeypatch.setattr(winograd3, "LARGE", 1000)
    window, sides, channels, stride, padding = SHARDED[case]
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((8, *sides, channels[0]), np.float32, sharding=split)
    weights = jax.ShapeDtypeStruct((*window, *channels), np.float32, sharding=whole)
    forward = partial(conv, stride=stride, padding=padding)
    y = jax.eval_shape(forward, x, weights).update(sharding=split)

    def back(x, weights, y):
        return jax.vjp(forward, x, weights)[1](y)

    results = {
        "forward": (forward, (x, weights), split),
        "back": (back, (x, weights, y), (split, whole)),
    }
    exchanges = {
        name: collectives(jax.jit(f, out_shardings=out).lower(*args).compile().as_text())
        for name, (f, args, out) in results.items()
    }
    assert exchanges["forward"] == {}
    assert set(exchanges["back"]) == {"all-reduce"}

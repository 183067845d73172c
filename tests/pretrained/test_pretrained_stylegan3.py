"""The converter of StyleGAN3's generators: inferred configurations, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import stylegan3 as models
from kd_jax.pretrained import stylegan3

LATENT, STYLE = 6, 5


def _state(widths=(7, 4, 3), *, size=32, classes=0, depth=2, channels=2, **design):
    """A random state dict with NVIDIA's names and shapes."""
    rng = np.random.default_rng(0)
    design = models.Design(size, **{"num_layers": len(widths), "num_critical": 1} | design)
    shapes = {}
    inputs = LATENT
    if classes:
        shapes |= {"mapping.embed.weight": (STYLE, classes), "mapping.embed.bias": (STYLE,)}
        inputs += STYLE
    for index in range(depth):
        shapes |= {
            f"mapping.fc{index}.weight": (STYLE, inputs),
            f"mapping.fc{index}.bias": (STYLE,),
        }
        inputs = STYLE
    first = widths[0]
    shapes |= {
        "mapping.w_avg": (STYLE,),
        "synthesis.input.weight": (first, first),
        "synthesis.input.transform": (3, 3),
        "synthesis.input.freqs": (first, 2),
        "synthesis.input.phases": (first,),
        "synthesis.input.affine.weight": (4, STYLE),
        "synthesis.input.affine.bias": (4,),
    }
    filters, before = {}, first
    for index, width in enumerate((*widths, channels)):
        name = f"synthesis.L{index}_{design.bands()[index].size}_{width}"
        side = 1 if index == len(widths) else design.conv_kernel
        shapes |= {
            f"{name}.weight": (width, before, side, side),
            f"{name}.bias": (width,),
            f"{name}.magnitude_ema": (),
            f"{name}.affine.weight": (before, STYLE),
            f"{name}.affine.bias": (before,),
        }
        resampling = design.resampling(index)
        for part in ("up_filter", "down_filter"):
            if (taps := getattr(resampling, part)) is not None:
                filters[f"{name}.{part}"] = taps
        before = width
    tensors = {
        name: rng.normal(size=shape).astype(np.float32) ** (2 if name.endswith("_ema") else 1)
        for name, shape in shapes.items()
    }
    return tensors | filters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"classes": 3, "depth": 3},
        {"conv_kernel": 1, "use_radial_filters": True},
        {"widths": (5, 5, 4, 4, 3), "num_critical": 3, "size": 64, "margin_size": 2},
        {"num_critical": 2, "filter_size": 4, "margin_size": 3, "size": 20},
        {"widths": (3,), "num_critical": 0, "size": 16},
        {"widths": (4, 3), "size": 16},
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_the_configuration_is_inferred_from_the_tensors(options):
    config = stylegan3.generator(_state(**options)).config
    widths = options.get("widths", (7, 4, 3))
    expected = {
        "size": 32,
        "channels": 2,
        "classes": 0,
        "latent": LATENT,
        "style": STYLE,
        "widths": widths,
        "num_layers": len(widths),
        "num_critical": 1,
        "mapping": {"depth": options.pop("depth", 2)},
        "conv_kernel": 3,
        "use_radial_filters": False,
        "margin_size": 10,
        "filter_size": 6,
        "lrelu_upsampling": 2,
    } | options
    assert {name: config[name] for name in expected} == expected


def test_consistent_settings_only_add_what_tensors_do_not_determine():
    settings = {
        "z_dim": LATENT,
        "w_dim": STYLE,
        "c_dim": 3,
        "img_resolution": 32,
        "img_channels": 2,
        "num_layers": 3,
        "num_critical": 1,
        "channel_base": 64,
        "channel_max": 8,
        "margin_size": 10,
        "mapping_kwargs": {"num_layers": 2, "w_avg_beta": 0.9},
        "num_fp16_res": 4,
        "magnitude_ema_beta": 0.99,
        "conv_clamp": None,
    }
    state = _state(models.Design(32, num_layers=3, num_critical=1).widths(64, 8), classes=3)
    inferred = stylegan3.generator(state)
    converted = stylegan3.generator(state, settings, output_scale=0.5)
    mapping = {"depth": 2, "average_decay": 0.9}
    assert converted.config == {
        **inferred.config,
        "magnitude_ema_beta": 0.99,
        "conv_clamp": None,
        "output_scale": 0.5,
        "mapping": mapping,
    }
    jax.tree.map(np.testing.assert_array_equal, converted.variables, inferred.variables)


def test_another_filter_design_needs_a_setting():
    state = _state(first_cutoff=3.0)
    with pytest.raises(ValueError, match=r"up_filter is not the filter of a design with num_layer"):
        stylegan3.generator(state)
    assert stylegan3.generator(state, {"first_cutoff": 3.0}).config["first_cutoff"] == 3.0
    assert stylegan3.generator(state, first_cutoff=3.0).config["first_cutoff"] == 3.0
    upsampled = _state(lrelu_upsampling=4)
    assert stylegan3.generator(upsampled, lrelu_upsampling=4).config["filter_size"] == 6


def test_the_layout_of_converted_tensors():
    state = _state(classes=3)
    network, variables, _, inputs, *_ = stylegan3.generator(state)
    assert [x.shape for x in inputs] == [(1, LATENT), (1,)]
    like = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, like)
    params = variables["params"]
    name = "synthesis.L1_52_4"
    assert f"{name}.weight" in state
    kernel = state[f"{name}.weight"]  # [out, in, h, w]
    ours = np.asarray(params["synthesis"]["L1"]["weight"])
    assert ours[0, 2, 5, 3] == kernel[3, 5, 0, 2]
    fc = np.asarray(params["mapping"]["fc0"]["weight"])
    assert fc[7, 2] == state["mapping.fc0.weight"][2, 7]
    mixture = np.asarray(params["synthesis"]["input"]["weight"])
    assert mixture[6, 2] == state["synthesis.input.weight"][2, 6]
    constants = variables["constants"]["synthesis"]
    np.testing.assert_array_equal(
        constants["input"]["transform"], state["synthesis.input.transform"]
    )
    magnitude = variables["averages"]["synthesis"]["L1"]["magnitude_ema"]
    assert magnitude == state[f"{name}.magnitude_ema"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def _without(name):
    return lambda state: state.pop(name)


def _reshaped(name, *shape):
    return lambda state: state.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("mapping.fc1.bias"), "mapping.fc1.bias is missing"),
        (_without("mapping.w_avg"), "mapping.w_avg is missing"),
        (_without("synthesis.input.phases"), "synthesis.input.phases is missing"),
        (_without("synthesis.L1_52_4.magnitude_ema"), "L1_52_4.magnitude_ema is missing"),
        (_without("synthesis.L1_52_4.down_filter"), "L1_52_4.down_filter is missing from those of"),
        (_without("synthesis.L1_52_4.weight"), r"it has layers \[0, 2, 3\], not 0, 1 and so on"),
        (_reshaped("noise.strength", 1), "unknown tensors noise.strength"),
        (_reshaped("synthesis.L3_32_2.up_filter", 6), "L3_32_2.up_filter is not among those"),
        (_reshaped("mapping.fc0.weight", 5), r"mapping.fc0.weight has shape \(5,\), not 2 axes"),
        (_reshaped("mapping.w_avg"), r"mapping.w_avg has shape \(\) instead of \(5,\)"),
        (
            lambda state: state.update({"synthesis.L1_52_4.up_filter": np.full(24, np.nan)}),
            "L1_52_4.up_filter has 24 of 24 values that are not finite",
        ),
        (
            _reshaped("mapping.fc1.weight", 5, 4),
            r"mapping.fc1.weight has shape \(5, 4\) instead of \(5, 5\)",
        ),
        (
            _reshaped("synthesis.L1_52_4.weight", 4, 6, 3, 3),
            r"L1_52_4.weight has shape \(4, 6, 3, 3\) instead of \(4, 7, 3, 3\)",
        ),
        (
            _reshaped("synthesis.L3_32_2.weight", 2, 3, 3, 3),
            r"L3_32_2.weight has shape \(2, 3, 3, 3\) instead of \(2, 3, 1, 1\)",
        ),
        (
            _reshaped("synthesis.input.freqs", 6, 2),
            r"synthesis.input.freqs has shape \(6, 2\) instead of \(7, 2\)",
        ),
        (
            _reshaped("synthesis.L1_52_4.up_filter", 10),
            r"L1_52_4.up_filter has shape \(10,\), not the \(24,\) of a design with",
        ),
        (
            _reshaped("synthesis.L2_32_3.down_filter", 12),
            r"L2_32_3.down_filter is not the filter of a design with num_layers=3, num_critical=1",
        ),
    ],
)
def test_bad_tensors_are_refused_by_name(change, message):
    state = _state()
    change(state)
    with pytest.raises(ValueError, match=message) as raised:
        stylegan3.generator(state)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_kernel": 1}, "conv_kernel is 1 in the settings and 3 in the tensors"),
        ({"img_resolution": 64}, "size is 64 in the settings and 32 in the tensors"),
        ({"z_dim": 7}, "latent is 7 in the settings and 6 in the tensors"),
        ({"use_radial_filters": True}, "use_radial_filters is True in the settings and False"),
        ({"channel_max": 6}, r"widths is \(6, 6, 6\) in the settings and \(7, 4, 3\) in the"),
        ({"mapping_kwargs": {"num_layers": 8}}, "mapping's depth is 8 in the settings and 2"),
        ({"num_critical": 2}, "L1_52_4.* of a design with"),
        ({"margin_size": 8}, "synthesis.L0_36_7 has size 36, not the 32 of a design with"),
        ({"first_cutoff": 2.5}, "is not the filter of a design with .*first_cutoff=2.5"),
        ({"noise": 1}, "unknown setting 'noise'"),
        ({"mapping_kwargs": {"layers": 8}}, r"unknown setting mapping_kwargs\['layers'\]"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        stylegan3.generator(_state(), settings)


def test_state_dicts_are_recognised_by_their_names():
    assert stylegan3.is_generator(_state())
    assert not stylegan3.is_generator(["synthesis.b4.const", "mapping.w_avg"])

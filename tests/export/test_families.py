"""Every family as ONNX, and the original layouts of published files."""

import numpy as np
import onnx
import onnxruntime
import published
import pytest

import kd_jax as kd
from benchmarks.formats import IMAGES, LATENTS, OTHERS
from kd_jax.export import export, make_program, onnx as onnx_format, parity
from kd_jax.models.families import FAMILIES, family_of
from kd_jax.pretrained.io.containers import read


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LATENTS, *IMAGES])
def test_each_family_is_onnx_with_any_batch_and_size(name, tmp_path):
    model = {**LATENTS, **IMAGES}[name]()
    assert family_of(model.network).name == name.split(" ")[0].rstrip(",")
    size = {"size": "any"} if name in IMAGES else {}
    file = export(model, tmp_path / "out", **size)["onnx"]
    assert 0 < file.parity.difference < 2e-5 * file.parity.peak
    inputs = onnx.load(file.path).graph.input
    named = [d.dim_param for d in inputs[0].type.tensor_type.shape.dim if d.dim_param]
    assert len(named) == (3 if name in IMAGES else 1)


def test_each_family_is_among_them():
    names = {name.split(" ")[0].rstrip(",") for name in (*LATENTS, *IMAGES)} | {"inpainting"}
    assert names == {family.name for family in FAMILIES}


OTHER_SHAPES = {
    "waveform": (["waves"], ["batch", 64, 2]),
    "classifier": (["images"], ["batch", 5]),
    "text": (["latents", "tokens"], None),
    "inpainting": (["images", "masks"], ["batch", 16, 16, 3]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_and_outputs_are_onnx(name, tmp_path):
    (inputs, output), model = OTHER_SHAPES[name], OTHERS[name]()
    file = export(model, tmp_path / "out")["onnx"]
    assert 0 < file.parity.difference < 2e-5 * file.parity.peak
    graph = onnx.load(file.path).graph
    assert [value.name for value in graph.input] == inputs
    axes = [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert axes == output or output is None
    drawn = dict(zip(inputs, make_program(model).draw(0, 3), strict=True))
    session = onnxruntime.InferenceSession(file.path)
    reference = model.network.apply(model.variables, *drawn.values())[0]
    np.testing.assert_allclose(session.run(None, drawn)[0], reference, rtol=1e-4, atol=1e-5)
    if name == "text":
        assert set(np.unique(drawn["tokens"])) <= set(range(7))
    if name == "inpainting":
        assert set(np.unique(drawn["masks"])) == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last"), [("dcgan", 1), ("srresnet", 1), ("stylegan2", 3)])
def test_int8_is_near_and_says_what_stays_in_float(name, last, tmp_path):
    model = {**LATENTS, **IMAGES}[name]()
    exact = export(model, tmp_path / "exact")["onnx"]
    small = export(model, tmp_path / "small", dtype="int8")["onnx"]
    assert 25 < small.parity.psnr < exact.parity.psnr
    graph = onnx.load(small.path).graph
    in_float = [node for node in graph.node if node.name in small.in_float]
    assert len(in_float) == len(small.in_float) == last
    producers = {output: node.op_type for node in graph.node for output in node.output}
    for node in in_float:
        assert producers.get(node.input[1]) != "DequantizeLinear"
    scales = [
        node.input[1]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and not node.name.startswith("output")
    ]
    sizes = {x.name: np.prod(x.dims) for x in graph.initializer}
    assert max(sizes.get(scale, 1) for scale in scales) > 1  # per channel
    weights = export(model, tmp_path / "weights", dtype="int8-weights")["onnx"]
    assert weights.parity.psnr >= small.parity.psnr
    operations = {node.op_type for node in onnx.load(weights.path).graph.node}
    assert "QuantizeLinear" not in operations
    # Of a DCGAN nothing is computed in integers.
    assert ("QuantizeLinear" in {node.op_type for node in graph.node}) == (name != "dcgan")
    with pytest.raises(ValueError, match=r"other.*node"):
        export(model, tmp_path / "none", dtype="int8", keep=["other"])


@pytest.mark.slow
def test_products_with_other_constants_than_matrices_stay_in_float(tmp_path):
    """Those of StyleGAN3's input; onnxruntime does not run them in integers."""
    file = export(LATENTS["stylegan3"](), tmp_path / "out", dtype="int8")["onnx"]
    assert file.parity.psnr > 40


ORIGINALS = ("dcgan_g", "rrdb", "srvgg", "resnet_affine", "resnet_g", "cyclegan")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in published.generators() if any(part in n for part in ORIGINALS)]
)
def test_a_published_generator_returns_to_its_layout(name, tmp_path):
    source = published.write(name, tmp_path)
    theirs = read(source)
    model = kd.load(source, "G" if "loss" in name else None)
    file = export(model, tmp_path / "out", ["original"])["original"]
    ours = read(file.path)
    assert file.parity.difference < 1e-6
    for tensor, values in ours.items():
        np.testing.assert_array_equal(values, theirs[tensor], tensor)
    assert {x for x in theirs if not x.endswith("num_batches_tracked")} == ours.keys()


def test_there_are_published_generators_of_each_layout():
    names = published.generators()
    assert all(any(part in name for name in names) for part in ("dcgan_g", "rrdb", "srvgg"))


@pytest.mark.slow
def test_a_network_without_an_original_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Generator.*DCGAN"):
        export(LATENTS["stylegan2"](), tmp_path / "out", ["original"])
    with pytest.raises(ValueError, match=r"CycleGAN.*separable"):
        export(IMAGES["translation_resnet, a student"](), tmp_path / "out", ["original"])


@pytest.mark.slow
def test_a_side_that_is_no_multiple_fails_in_the_runtime(tmp_path):
    program = make_program(IMAGES["unet"](), size="any")
    path = tmp_path / "unet.onnx"
    path.write_bytes(onnx_format.build(program))
    parity.check(program, onnx_format.load(path), "unet")
    with pytest.raises(ValueError, match=r"(?i)reshape"):
        onnx_format.load(path)(np.zeros((1, 36, 32, 3), np.float32))

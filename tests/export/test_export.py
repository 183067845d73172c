"""Exported files: what they compute, what is refused, and what is left behind."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import published
import pytest
from PIL import Image

import kd_jax as kd
from benchmarks.formats import latents, model_of
from kd_jax.cli import export as command_line, main
from kd_jax.core.checks import UsageError
from kd_jax.core.cost import parameter_count
from kd_jax.core.files import file_lock, read_json
from kd_jax.export import (
    INDEX,
    ParityError,
    card,
    export,
    make_program,
    onnx as onnx_format,
    parity,
    quality,
    quantise,
)
from kd_jax.metrics.extractor import Extractor
from kd_jax.models import dcgan, stylegan2, translation, waveform
from kd_jax.ops import convolution, primitive
from kd_jax.pretrained.io.safetensors import read_metadata


@pytest.fixture(scope="module")
def model() -> kd.Model:
    return model_of(dcgan.generator(16, 4, channels=1), latents(1, 6))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "out"
    files = export(model, path, ("onnx", "safetensors", "stablehlo", "original"))
    assert {file.name for file in path.iterdir()} == {
        INDEX, *(file.path.name for file in files.values())
    }  # fmt: skip
    return path


def expected(model, inputs, **options):
    return np.asarray(model.network.apply(model.variables, *inputs, **options)[0])


def peak_share(actual, reference):
    return np.abs(actual - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_computes_what_jax_does_for_each_batch(model, folder, count):
    session = onnxruntime.InferenceSession(folder / "generator.onnx")
    z = np.random.default_rng(count).standard_normal((count, 6)).astype(np.float32)
    (images,) = session.run(None, {"latents": z})
    assert peak_share(images, expected(model, (z,))) < 1e-5


def test_onnx_has_its_weights_and_names_and_an_opset_of_browsers(model, folder):
    contents = onnx.load(folder / "generator.onnx", load_external_data=False)
    onnx.checker.check_model(contents)
    assert [(x.domain, x.version) for x in contents.opset_import] == [("", onnx_format.OPSET)]
    assert not any(x.external_data for x in contents.graph.initializer)
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*contents.graph.input, *contents.graph.output)
    }
    assert axes == {"latents": ["batch", 6], "output": ["batch", 16, 16, 1]}


def test_safetensors_are_loaded_with_their_architecture(model, folder):
    again = kd.load(folder / "generator.safetensors", generator=True)
    assert again.network.module == model.network.module
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    assert again.interface == model.interface


def test_stablehlo_is_read_by_jax(model, folder):
    exported = jax.export.deserialize(bytearray((folder / "generator.stablehlo").read_bytes()))
    z = np.ones((2, 6), np.float32)
    assert peak_share(exported.call(z), expected(model, (z,))) < 1e-6
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_a_published_state_dict_returns_to_its_names(tmp_path):
    tensors = published.dcgan_state_dict()
    source = tmp_path / "theirs.safetensors"
    published.write_dcgan(source)
    file = export(kd.load(source), tmp_path / "out", ["original"])["original"]
    assert not read_metadata(file.path)
    from kd_jax.pretrained.io.containers import read

    again = read(file.path)
    assert again.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(again[name], values)


def test_float16_halves_the_file(model, folder, tmp_path):
    wide = model_of(dcgan.generator(16, 32, channels=1), latents(1, 6))
    sizes = {}
    for dtype in ("float32", "float16"):
        files = export(wide, tmp_path / dtype, ["onnx", "safetensors"], dtype=dtype)
        sizes[dtype] = [file.path.stat().st_size for file in files.values()]
        assert all(
            file.parity.psnr > (40 if dtype == "float16" else 100) for file in files.values()
        )
    assert all(a < 0.6 * b for a, b in zip(sizes["float16"], sizes["float32"], strict=True))
    again = kd.load(tmp_path / "float16" / "generator.safetensors")
    assert {x.dtype for x in jax.tree.leaves(again.variables)} == {jnp.dtype("float32")}


# ------------------------------------------------------------------ fewer bits and real inputs


def test_weights_in_int8_are_rounded_by_channels_of_the_output(model, folder):
    contents = (folder / "generator.onnx").read_bytes()
    program = make_program(model)
    small = quantise.to_int8(contents, program, calibration=program.draw(0, 2))
    graph = onnx.load_from_string(small.contents).graph
    # A DCGAN has transposed convolutions and a layer of latents, which are not in integers.
    assert {node.op_type for node in graph.node}.isdisjoint({"QuantizeLinear"})
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    before = [np.asarray(x) for x in jax.tree.leaves(model.variables)]
    steps = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    readers = {value: node for node in graph.node for value in node.input}
    assert steps
    for step in steps:
        values, scale = (arrays[name] for name in step.input)
        axis = step.attribute[0].i
        # [in, out, height, width] of a transposed convolution, [in, out] of a product.
        assert axis == 1
        assert readers[step.output[0]].op_type in ("ConvTranspose", "Gemm", "MatMul")
        others = tuple(n for n in range(values.ndim) if n != axis)
        np.testing.assert_array_equal(np.abs(values).max(axis=others), 127)
        shape = [-1 if n == axis else 1 for n in range(values.ndim)]
        rounded = np.sort((values * scale.reshape(shape)).ravel())
        distances = [
            np.abs(np.sort(x.ravel()) - rounded).max() for x in before if x.size == values.size
        ]
        assert min(distances) <= scale.max() * 0.501


def test_the_loss_of_quality_is_that_of_known_errors(model):
    program = make_program(model)

    def run(*inputs):
        return np.asarray(program.apply(*inputs)) + np.float32(0.1)

    inside = np.asarray(program.apply(*program.draw(2000, quality.COUNT)))
    assert np.abs(inside).max() < 0.9
    means = Extractor("means", lambda x: x.mean(axis=(1, 2, 3))[:, None] * [1.0, 2.0], None)
    result = quality.measure(program, run, quality.drawn_inputs(program), means)
    assert result.psnr == pytest.approx(10 * math.log10(2**2 / 0.1**2), abs=1e-3)
    # The same covariances, and means that differ by (0.1, 0.2).
    assert result.frechet == pytest.approx(0.01 + 0.04, rel=1e-3)
    assert (result.examples, result.features) == (quality.COUNT, "means")


def test_examples_are_calibrated_on_in_one_half_and_compared_in_the_other(model):
    program = make_program(model)
    rows = np.arange(42, dtype=np.float64).reshape(7, 6)
    inputs = quality.split_inputs(program, [rows], "rows")
    np.testing.assert_array_equal(inputs.calibration[0], rows[:3])
    np.testing.assert_array_equal(inputs.measured[0], rows[3:6])
    assert inputs.measured[0].dtype == np.float32

    def run(z):
        return np.asarray(program.apply(z)) + 0.5 * (z.max() > 20)

    parity.check(program, run, "it")
    with pytest.raises(ParityError):
        parity.check(program, run, "it", examples=inputs.measured)


@pytest.mark.parametrize(
    ("examples", "message"),
    [([np.zeros((4, 5))], "latents.*5"), ([np.zeros((1, 6))], "1.*2"), ([], "latents")],
)
def test_examples_that_do_not_fit_are_named(examples, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "out", examples=examples)
    assert not (tmp_path / "out").exists()


def test_the_index_lists_the_files_with_their_parity(model, tmp_path):
    first = export(model, tmp_path / "out", ["safetensors"], dtype="float16")
    export(model, tmp_path / "out", ["original"], dtype="float16")
    files = read_json(tmp_path / "out" / INDEX, checked=True)["files"]
    assert files.keys() == {"safetensors", "original"}
    file = first["safetensors"]
    assert files["safetensors"]["bytes"] == file.path.stat().st_size
    assert files["safetensors"]["quality"]["psnr"] == file.quality.psnr > 40


def test_files_of_a_killed_export_are_removed(model, tmp_path):
    export(model, tmp_path, ["safetensors"])
    names = {file.name for file in tmp_path.iterdir()}
    leftovers = [".generator.123.onnx", ".generator.original.7.safetensors"]
    for name in (*leftovers, ".other.onnx"):
        (tmp_path / name).write_bytes(b"half of a file")
    export(model, tmp_path, ["safetensors"])
    assert {file.name for file in tmp_path.iterdir()} == {*names, ".other.onnx"}


def test_a_folder_that_another_process_exports_to_is_refused(model, tmp_path):
    export(model, tmp_path, ["safetensors"])
    with file_lock(tmp_path), pytest.raises(UsageError, match="another process"):
        export(model, tmp_path, ["safetensors"])


def test_arguments_that_an_exported_file_does_not_have_are_refused(folder):
    path = folder / "generator.safetensors"
    with pytest.raises(ValueError, match=r"generator\.safetensors.*part='g'"):
        kd.load(path, "g")
    with pytest.raises(ValueError, match=r"options=.*width"):
        kd.load(path, options={"width": 3})


def test_the_commands_examples_are_the_pictures_of_a_folder(tmp_path, capsys):
    pictures = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    network = model_of(translation.resnet_generator(4, blocks=1), images)
    command = ["network", "--out", "out", "--images"]
    args = command_line.parser().parse_args([*command, f"folder:{tmp_path}"])
    (inputs,), name = command_line.read_examples(network, args, (8, 4))
    np.testing.assert_allclose(inputs, pictures[:, :, :4] / 127.5 - 1, atol=1e-6)
    assert str(tmp_path.name) in name
    args = command_line.parser().parse_args([*command, "none"])
    assert command_line.read_examples(network, args, None)[0] is None
    assert "artificial" in capsys.readouterr().out


def test_a_network_of_waves_is_no_generator_of_images_when_it_is_loaded(tmp_path):
    waves = jax.ShapeDtypeStruct((1, 8, 1), jnp.float32)
    network = model_of(waveform.generator(2, 4, 1), waves, generates=False)
    path = export(network, tmp_path / "out", ["safetensors"])["safetensors"].path
    assert not kd.load(path).generates
    with pytest.raises(ValueError, match=r"generator\.safetensors.*images"):
        kd.load(path, generator=True)


# ------------------------------------------------------------------ broken exports


def in_training_mode(model, monkeypatch):
    """Batch normalisation by the batch, as in training."""

    def apply(variables, *inputs, train=False, rngs=None):
        images, taps, _ = model.network.apply(variables, *inputs, train=True)
        return images, taps, variables

    return model._replace(network=model.network._replace(apply=apply))


def with_wrong_padding(model, monkeypatch):
    """A transposed convolution that is shifted by a pixel."""

    def shifted(geometry, *arrays):
        return jnp.roll(convolution._portable_input_grad(geometry, *arrays), 1, axis=1)

    wrong = convolution._input_grad._replace(portable=shifted)
    monkeypatch.setattr(convolution, "_input_grad", wrong)
    return model


def with_a_tampered_weight(model, monkeypatch):
    """A weight has another value in the file."""
    build = onnx_format.build

    def tampered(program):
        contents = onnx.load_from_string(build(program))
        largest = max(contents.graph.initializer, key=lambda x: math.prod(x.dims))
        values = onnx.numpy_helper.to_array(largest).copy()
        values.flat[values.size // 2] += 0.1
        largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
        return contents.SerializeToString()

    monkeypatch.setattr(onnx_format, "build", tampered)
    return model


@pytest.mark.parametrize("broken", [in_training_mode, with_wrong_padding, with_a_tampered_weight])
def test_a_file_that_computes_something_else_is_not_kept(broken, model, monkeypatch, tmp_path):
    with pytest.raises(ParityError, match=r"generator\.onnx \(onnx\).* \d.*float32"):
        export(broken(model, monkeypatch), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_formats_of_the_same_export_remain(model, monkeypatch, tmp_path):
    export(model, tmp_path, ["safetensors"])
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ParityError):
        export(with_a_tampered_weight(model, monkeypatch), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == before


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["gif"]}, "gif.*onnx, tflite, stablehlo"),
        ({"formats": ["tflite"], "dtype": "int8"}, "int8.*tflite.*float32"),
        ({"formats": []}, "onnx"),
        ({"formats": ["stablehlo"], "dtype": "int8"}, "int8.*stablehlo.*float32"),
        ({"keep": ["a"]}, "keep"),
        ({"batch": 0}, "batch=0"),
        ({"size": "any"}, "size=any.*latents"),
        ({"truncation": 0.5}, "truncation=0.5"),
        ({"truncation": "half"}, "half"),
        ({"labels": "one-hot"}, "one-hot.*latents"),
        ({"labels": "words"}, "words"),
        ({"part": "mapping"}, "mapping"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(arguments, message, model, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        export(model, tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_network_that_makes_no_images_is_refused(tmp_path):
    images = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    network = dcgan.discriminator(16, 4)
    for generates in (False, True):
        with pytest.raises(ValueError, match="generator"):
            export(model_of(network, images, generates=generates), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_computes_in_another_dtype_is_refused(model, tmp_path):
    network = dcgan.generator(16, 4, channels=1, dtype=jnp.bfloat16)
    half = model._replace(network=network)
    with pytest.raises(ValueError, match="bfloat16"):
        export(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_export_is_refused(model, folder, tmp_path):
    with pytest.raises(UsageError, match=r"out.*another folder"):
        export(model, folder, batch=2)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="other files"):
        export(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_package_is_named_with_both_commands(model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UsageError, match=r"kd_jax\[export\].*--no-deps jax2onnx"):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stablehlo_names_the_package_that_jax_misses(model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UsageError, match=r"flatbuffers.*kd_jax\[export\]"):
        export(model, tmp_path / "out", ["stablehlo"])
    assert not (tmp_path / "out").exists()


def test_sizes_that_a_network_refuses_are_named():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    network = translation.unet_generator(4, downs=3)
    model = model_of(network, images)
    with pytest.raises(ValueError, match="36"):
        make_program(model, size=36)
    program = make_program(model, size="any")
    assert program.inputs[0].shape == ("batch", "8*height", "8*width", 3)
    assert program.output.shape == ("batch", "8*height", "8*width", 3)

    def fixed(variables, images, **options):
        if images.shape != (1, 32, 32, 3):
            raise ValueError("32x32 only")
        return images, {}, variables

    only = model._replace(network=kd.Network(network.init, fixed))
    with pytest.raises(ValueError, match=r"any.*32x32"):
        make_program(only, size="any")


@pytest.mark.parametrize("damage", ["{", '{"architecture": {}}', "[]"])
def test_a_damaged_description_is_named(damage, model, folder, tmp_path):
    contents = (folder / "generator.safetensors").read_bytes()
    size = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + size])
    header["__metadata__"]["kd_jax"] = damage
    text = json.dumps(header).encode()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + contents[8 + size :])
    with pytest.raises(ValueError, match=r"damaged\.safetensors.*description"):
        kd.load(path)


# ------------------------------------------------------------------ programs and the command


@pytest.mark.slow
def test_labels_truncation_and_parts_are_inputs():
    network = stylegan2.generator(
        8, latent=4, style=4, channel_base=32, channel_max=4, classes=3, mapping={"depth": 1}
    )
    model = model_of(network, latents(1, 4), jax.ShapeDtypeStruct((1,), jnp.int32), classes=3)
    whole = make_program(model, truncation="input", labels="one-hot")
    assert [slot.name for slot in whole.inputs] == ["latents", "labels", "truncation"]
    z, one_hot, psi = whole.draw(0, 5)
    assert (one_hot.sum(axis=1) == 1).all()
    labels = one_hot.argmax(axis=1).astype(np.int32)
    images = expected(model, (z, labels), truncation=psi)
    np.testing.assert_array_equal(whole.apply(z, one_hot, psi), images)
    styles = make_program(model, part="mapping", truncation=float(psi)).apply(z, labels)
    synthesis = make_program(model, part="synthesis")
    assert synthesis.inputs[0].shape == ("batch", *styles.shape[1:])
    np.testing.assert_allclose(synthesis.apply(styles), images, rtol=1e-5, atol=1e-5)


REPORT = """# Distillation

The student needs **3.0 times fewer multiply-accumulates**.

## Networks

| network | L1 |
| --- | ---: |
| student | 0.2465 |

## Examples

![](examples.png)
"""


def test_the_card_states_the_files_and_runs(model, folder, monkeypatch):
    info = {"configuration": {"teacher": "e5f26faa"}}
    program = make_program(model)
    path = card.write(
        folder, INDEX, model._replace(info=info), program, license="CC-BY 4.0", report=REPORT
    )
    text = path.read_text()
    index = read_json(folder / INDEX, checked=True)
    stated = ["CC-BY 4.0", "e5f26faa", index["variables"], "**3.0 times", "| student | 0.2465 |"]
    stated += ["`[batch, 6]`", "`[batch, 16, 16, 1]`", "standard normal", "-1 to 1", "six months"]
    stated += ["onnxruntime-web", "onnxruntime-android", "Float32Array(6)", "longArrayOf(1, 6)"]
    stated += [f"{parameter_count(model.variables):,} parameters"]
    for file in index["files"].values():
        size = (folder / file["file"]).stat().st_size
        stated.append(
            f"`{file['file']}` | {size / 1e6:.2f} MB | {file['parity']['difference']:.1e}"
        )
    assert [x for x in stated if x not in text] == []
    assert "examples.png" not in text
    timed = [line for line in text.splitlines() if line.endswith(" ms |")]
    assert [line.split(" | ")[:2] for line in timed] == [
        [f"| {name}", str(n)] for n in (1, 16) for name in ("JAX", "onnxruntime", "StableHLO")
    ]
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code, names)
    z = np.random.default_rng(0).standard_normal((1, 6)).astype(np.float32)
    assert peak_share(names["output"], expected(model, (z,))) < 1e-5
    assert (names["pixels"].dtype, names["pixels"].shape) == (np.uint8, (1, 16, 16, 1))
    path.unlink()


def test_a_card_without_licence_and_teacher_says_so(model, tmp_path):
    export(model, tmp_path, ["safetensors"], batch=2)
    program = make_program(model, batch=2)
    text = card.write(tmp_path, INDEX, model, program).read_text()
    assert "not stated" in text
    assert not any(word in text for word in ("teacher", "Distillation", "```", "six months"))
    assert next(line for line in text.splitlines() if line.endswith(" ms |")).startswith(
        "| JAX | 2 "
    )


def test_draws_depend_on_the_seed_only(model):
    program = make_program(model)
    (a,), (b,), (c,) = (program.draw(seed, 2) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()


def test_the_command_writes_files_and_says_how_they_differ(tmp_path, capsys):
    source = published.write_dcgan(tmp_path / "g.safetensors")
    main(["export", str(source), "--out", str(tmp_path / "out"), "--to", "onnx,original"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert ["generator.onnx" in lines[0], "generator.original" in lines[1]] == [True, True]
    assert all("from JAX" in line for line in lines)
    assert "README.md" in last


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to", "gif"],
        ["--batch", "some"],
        ["--size", "1x2x3"],
        ["--truncation", "x"],
        ["--images", "photos"],
    ],
)
def test_the_command_refuses_in_one_line(arguments, tmp_path, capsys):
    source = published.write_dcgan(tmp_path / "g.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(source), "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert arguments[1] in error
    assert not (tmp_path / "out").exists()


def test_primitives_are_absent_within_portable():
    def jaxpr():
        x = jnp.ones((1, 4, 4, 2))
        kernel = jnp.ones((3, 3, 2, 2))
        return str(jax.make_jaxpr(lambda x: kd.ops.conv_transpose(x, kernel))(x))

    assert "kd_conv" in jaxpr()
    with primitive.portable():
        assert "kd_" not in jaxpr()
    assert "kd_conv" in jaxpr()

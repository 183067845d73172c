"""TFLite files, where TensorFlow and LiteRT are installed, and the refusal where they are not."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export.test_export import expected, peak_share

from benchmarks.formats import images, latents, model_of
from kd_jax.core.checks import UsageError
from kd_jax.export import export
from kd_jax.models import dcgan, realesrgan, translation

LABELS = jax.ShapeDtypeStruct((1,), jnp.int32)


MODELS = {
    "dcgan": lambda: model_of(dcgan.generator(16, 4), latents(1, 8)),
    "dcgan with classes": lambda: model_of(
        dcgan.generator(16, 4, classes=5), latents(1, 8), LABELS, classes=5
    ),
    "srvgg": lambda: model_of(realesrgan.srvgg(4, 8, 2), images(16)),
    "translation_resnet": lambda: model_of(translation.resnet_generator(8, blocks=2), images(32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", MODELS)
def test_tflite_computes_what_jax_does(name, batch, tmp_path):
    pytest.importorskip("tensorflow", reason="the extra tflite is not installed")
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    model = MODELS[name]()
    file = export(model, tmp_path / "out", ["tflite"], batch=batch)["tflite"]
    assert 0 < file.parity.difference < 2e-5 * file.parity.peak
    interpreter = litert.Interpreter(model_path=str(file.path))
    random, inputs = np.random.default_rng(0), {}
    for detail in interpreter.get_input_details():
        shape = (2, *detail["shape"][1:])
        whole = np.issubdtype(detail["dtype"], np.integer)
        x = random.integers(5, size=shape) if whole else random.uniform(-1, 1, shape)
        inputs[detail["name"]] = x.astype(detail["dtype"])
        interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    names = ["images"] if "images" in inputs else ["latents", *(["labels"] * ("labels" in inputs))]
    reference = expected(model, [inputs[x] for x in names])
    assert peak_share(output, reference) < 2e-5


@pytest.mark.parametrize("absent", ["tensorflow", "ai_edge_litert.interpreter"])
def test_a_missing_package_is_named_with_the_extra(absent, monkeypatch, tmp_path):
    from kd_jax.export import tflite

    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UsageError, match=rf"{absent}.*kd_jax\[tflite\]"):
        tflite.require(absent)
    if absent == "tensorflow":
        with pytest.raises(UsageError, match="tflite"):
            export(MODELS["dcgan"](), tmp_path / "out", ["tflite"])
        assert not (tmp_path / "out").exists()


def test_a_file_of_images_of_any_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"TFLite.*any"):
        export(MODELS["srvgg"](), tmp_path / "out", ["tflite"], size="any")
    assert not (tmp_path / "out").exists()

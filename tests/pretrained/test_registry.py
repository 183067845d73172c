"""Loading networks from files: the choice of the part, refusals, and the command line."""

import re
import shlex
import subprocess
import sys
from collections import OrderedDict
from inspect import signature
from pathlib import Path

import jax
import numpy as np
import pytest
from parity.golden import FILES, File
from PIL import Image
from pretrained.io.test_containers import safetensors, torch_zip
from pretrained.test_perceptual_weights import heads, trunk, whole

import kd_jax as kd
from kd_jax import ops, pretrained
from kd_jax.cli import inspect as command
from kd_jax.evaluate.generator import open_generator
from kd_jax.pretrained import registry
from kd_jax.train.checkpoint import load_generator, load_network

ROOT = Path(__file__).parents[2]


def originals(stem: str) -> File:
    """A file of an original network's weights, inputs and outputs."""
    paths = [path for path in FILES if path.stem == stem]
    if not paths:
        pytest.skip(f"no golden file {stem} (set KD_JAX_GOLDEN)")
    return File(paths[0])


def weights(file: File) -> dict[str, np.ndarray]:
    return {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}


def as_safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, body = {}, b""
    for name, value in tensors.items():
        data = np.ascontiguousarray(value, np.float32).tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        body += data
    return safetensors(header, body)


def as_checkpoint(**parts) -> bytes:
    """A file of `torch.save` with these state dicts."""
    ordered = {k: OrderedDict(v) if isinstance(v, dict) else v for k, v in parts.items()}
    return torch_zip(ordered)


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return to_file


def test_safetensors_of_a_state_dict(write):
    file = originals("stylegan2_g_a")
    path = write("g.safetensors", as_safetensors(weights(file)))
    assert list(pretrained.parts(path)) == ["generator"]
    network, variables = pretrained.load(path)
    np.testing.assert_allclose(
        network.mapping(variables, file["in/z"]), file["out/w"], rtol=1e-4, atol=1e-5
    )


def test_parts_and_average_of_a_training_checkpoint(write):
    g, d = originals("stylegan2_rosinality_g_a"), originals("stylegan2_rosinality_d_a")
    average = g["in/truncation_latent"]
    other = {k: v + 0.5 for k, v in weights(g).items()} | {
        k: v for k, v in weights(g).items() if "kernel" in k
    }
    content = as_checkpoint(g=other, d=weights(d), g_ema=weights(g), latent_avg=average[0])
    path = write("550000.pt", content)
    parts = pretrained.parts(path)
    assert {name: part.generates for name, part in parts.items()} == {
        "g": True, "d": False, "g_ema": True,
    }  # fmt: skip
    network, variables = pretrained.load(path)  # the average of the two
    styles = network.mapping(variables, g["in/z"], truncation=0.7)
    image, _ = network.synthesis(variables, styles)
    np.testing.assert_allclose(image, g["out/img_trunc07"], rtol=1e-3, atol=1e-3)
    discriminator, d_variables = pretrained.load(path, "d")
    scores = discriminator.apply(d_variables, d["in/img"])[0]
    np.testing.assert_allclose(scores[:, None], d["out/logits"], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no part 'G_ema'; it has g, d, g_ema"):
        pretrained.load(path, "G_ema")


def test_the_prefix_of_parallel_training_is_removed(write):
    file = originals("stylegan2_d_a")
    tensors = {f"module.{name}": value for name, value in weights(file).items()}
    network, variables = pretrained.load(write("d.safetensors", as_safetensors(tensors)))
    scores = network.apply(variables, file["in/img"])[0]
    np.testing.assert_allclose(scores[:, None], file["out/logits"], rtol=1e-4, atol=1e-4)


def test_overrides_reach_the_network(write):
    file = originals("stylegan2_g_a")
    path = write("g.safetensors", as_safetensors(weights(file)))
    network, variables = pretrained.load(path, conv_clamp=0.01)
    _, taps, _ = network.apply(variables, file["in/z"])
    assert np.abs(taps["8x8"]).max() == np.float32(0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("synthesis.b8.conv1.bias"), "synthesis.b8.conv1.bias is missing"),
        (lambda t: t.update({"mapping.extra": np.ones(3)}), "unknown tensors mapping.extra"),
        (
            lambda t: t.update({"synthesis.b8.conv1.weight": np.ones((32, 32, 5, 5))}),
            "synthesis.b8.conv1.weight has shape (32, 32, 5, 5) instead of (32, 32, 3, 3)",
        ),
        (lambda t: t.update({"mapping.fc1.weight": np.ones((16, 5))}), "mapping/fc1/weight"),
        (lambda t: t.pop("synthesis.b16.conv1.weight"), "synthesis.b16.conv1.weight is missing"),
        (
            lambda t: t.update({"synthesis.b8.conv0.resample_filter": np.eye(4)}),
            "its layers have different resampling filters",
        ),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(write, change, message):
    tensors = weights(originals("stylegan2_g_a"))
    change(tensors)
    path = write("g.safetensors", as_safetensors(tensors))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        pretrained.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_files_without_a_single_known_network(write):
    path = write("x.safetensors", as_safetensors({"a": np.ones(2), "b": np.ones(3)}))
    with pytest.raises(ValueError, match="no known network; it is a dict of 2 entries: a, b"):
        pretrained.load(path)
    two = as_checkpoint(**{name: weights(originals("stylegan2_rosinality_g_a")) for name in "ab"})
    with pytest.raises(ValueError, match="part to load: a, b"):
        pretrained.load(write("two.pt", two))


INCEPTION = dict.fromkeys(
    ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"), np.ones(1)
)
"""The tensors by which the network is recognised."""


@pytest.mark.parametrize(
    ("tensors", "kind", "purpose"),
    [
        (INCEPTION, "Inception-v3 (FID)", "--features FILE"),
        ({**INCEPTION, "AuxLogits.fc.bias": np.ones(1)}, "Inception-v3 (torchvision)", "features"),
        (whole("alex", trunk("alex"), heads("alex")), "LPIPS", "--lpips FILE"),
        (trunk("squeeze"), "VGG16, AlexNet or SqueezeNet (torchvision)", "--lpips FILE WEIGHTS"),
    ],
)
def test_feature_networks_are_not_discriminators(write, tensors, kind, purpose):
    path = write("x.safetensors", as_safetensors(tensors))
    (part,) = pretrained.parts(path).items()
    assert part[0] == "features"
    assert (part[1].kind, part[1].generates) == (kind, False)
    assert purpose in part[1].purpose
    message = f"{path}: a generator is needed, not {kind}, which is for {part[1].purpose}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        open_generator(f"mine={path}")


def test_the_command_prints_the_purpose_of_features(write, tmp_path, capsys):
    tensors = trunk("alex")
    path = write("alexnet.safetensors", as_safetensors(tensors))
    command.main([str(path), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.match(r"\* features: VGG16, AlexNet or .*, for features of images", printed)
    assert f"parameters: {sum(x.size for x in tensors.values()):,}" in printed
    assert not (tmp_path / "out" / "samples.png").exists()
    loaded, variables = load_network(tmp_path / "out" / "checkpoint")
    image = np.zeros((1, 64, 64, 3), np.float32)
    assert loaded.network.apply(variables, image)[0].shape == (1, 3, 3, 6)
    with pytest.raises(ValueError, match="takes images, not latents"):
        open_generator(str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="2"):
        command.main([str(path), "--out", str(path / "out")])
    assert f"--out={path / 'out'}: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sg2_tiny", "sg3_tiny", "sg2_tf_legacy_tiny"])
def test_the_command_describes_and_writes_a_network(golden, tmp_path, capsys, name):
    file = golden / "pkl" / f"{name}.pkl"
    if not file.exists():
        pytest.skip(f"no {file}")
    out = tmp_path / "out"
    command.main([str(file), "--out", str(out)])
    printed = capsys.readouterr().out
    _, variables = pretrained.load(file)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert f"parameters: {count:,}" in printed
    assert re.search(r"^\* (G_ema|Gs): ", printed, re.MULTILINE)
    assert "size: 16" in printed
    with Image.open(out / "samples.png") as samples:
        assert samples.size[0] > 8 * 16
    stored, about = load_generator(out / "checkpoint")
    jax.tree.map(np.testing.assert_array_equal, stored, jax.device_get(variables))
    assert about["file"] == file.name
    assert about["config"]["size"] == 16


OPTIONS = {
    "dcgan_d_a": ["size=64"],
    "dcgan_g_a": ["classes=0"],
    "biggan_brock_g_a": ["norm_epsilon=1e-05", "iterations=1", "spectral_epsilon=1e-12"],
    "biggan_brock_d_a": ["iterations=1", "spectral_epsilon=1e-12"],
    "biggan_deep_brock_g_a": [
        "norm_epsilon=1e-05", "iterations=1", "spectral_epsilon=1e-12", "depth=2"
    ],
    "stylegan1_rosinality_d_a": ["size=1024", "lod=0.0"],
    "stylegan2_g_a": [
        "activation=lrelu", "conv_clamp=null", '\'mapping={"lr_multiplier": 0.01}\''
    ],
    "stylegan2_d_a": ["activation=lrelu", "conv_clamp=null", "stddev_group=4"],
    "resnet_affine_a": ["padding=reflect", "dropout=0.0"],
    "resnet_affine_track_a": ["padding=reflect", "dropout=0.5", "tracked=true"],
    "unetd_a": ["skip=true"],
    "srvgg_x2_relu_a": ["scale=2", "activation=relu"],
    "r3gan_d_a": [],
}  # fmt: skip
"""The options of the commands for files that are only tensors, with the programs' defaults."""


@pytest.mark.parametrize(
    "stem", ["dcgan_d_a", *(pytest.param(s, marks=pytest.mark.slow) for s in list(OPTIONS)[1:])]
)
def test_the_command_names_the_options_that_a_file_does_not_determine(write, capsys, stem):
    path = write("net.safetensors", as_safetensors(weights(originals(stem))))
    command.main([str(path)])
    output = capsys.readouterr().out
    options = [line.split("--option ")[1] for line in output.splitlines() if "--option " in line]
    assert options == OPTIONS[stem]
    # As typed, they are accepted and change nothing.
    typed = [word for option in options for word in ("--option", *shlex.split(option))]
    command.main([str(path), *typed])
    repeated = capsys.readouterr().out
    assert repeated.splitlines()[-len(options) :] == output.splitlines()[-len(options) :]


def test_options_of_files_reach_the_generators_of_an_evaluation(write):
    path = str(write("g.safetensors", as_safetensors(weights(originals("stylegan2_g_a")))))
    clamped = open_generator(path, file_options={"conv_clamp": 0.5})
    assert "conv_clamp=0.5" in repr(clamped.network)
    assert "conv_clamp=0.5" not in repr(open_generator(path).network)


@pytest.mark.slow
@pytest.mark.parametrize("kind", registry.KINDS, ids=lambda kind: kind.name)
def test_every_keyword_of_a_converter_is_among_the_options(kind):
    """Except `average` and `heads`, which are tensors, and `tracked`, of running statistics."""
    networks = []
    for path in FILES:
        with np.load(path) as arrays:
            own = {n.removeprefix("sd/"): arrays[n] for n in arrays.files if n.startswith("sd/")}
        if own and kind.fits(own):
            try:
                networks.append(kind.convert(own))
            except ValueError:  # another kind with the same names
                continue
    if not networks:
        pytest.skip("no golden file")
    parameters = signature(kind.convert).parameters.values()
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {
        "average",
        "heads",
        "tracked",
    }
    assert keywords <= set().union(*(one.options for one in networks))
    assert all(
        keywords or not one.options or any(p.kind is p.VAR_KEYWORD for p in parameters)
        for one in networks
    )


def test_the_command_refuses_files_in_one_line(tmp_path):
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for arguments, message in (
        ([bad, "--out", tmp_path / "out"], "os.system"),
        ([tmp_path / "none.pkl"], "none.pkl"),
        ([bad, "--out", tmp_path / "full"], "is not a new or empty folder"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "kd_jax", "inspect", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (ROOT / "canary").exists()


def numpy_styles(tensors, z):
    """The mapping of rosinality's StyleGAN2 in NumPy, with weights stored over 0.01."""
    x = z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-8)
    for index in range(1, len([n for n in tensors if re.fullmatch(r"style\.\d+\.weight", n)]) + 1):
        weight, bias = tensors[f"style.{index}.weight"], tensors[f"style.{index}.bias"]
        x = x @ (weight * (0.01 / np.sqrt(weight.shape[1]))).T + bias * 0.01
        x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    return x


def test_a_missing_average_of_styles_is_estimated(write):
    tensors = weights(originals("stylegan2_rosinality_g_a"))
    model = kd.load(write("g.safetensors", as_safetensors(tensors)))
    z = np.random.default_rng(5).normal(size=(100_000, model.inputs[0].shape[1]))
    styles = numpy_styles(tensors, z)
    average = np.asarray(model.variables["averages"]["mapping"]["w_avg"])
    error = styles.std(axis=0) * np.sqrt(1 / 4096 + 1 / len(z))  # of the difference of two means
    assert (np.abs(average - styles.mean(axis=0)) < 5 * error).all()
    assert np.abs(average).max() > 5 * error.max()  # 0 would not pass
    truncated = model.network.mapping(model.variables, z[:4], truncation=0.5)[:, 0]
    np.testing.assert_allclose(truncated, (average + styles[:4]) / 2, rtol=1e-3, atol=1e-4)
    assert any("average" in note for note in model.info["notes"])


def test_missing_noise_is_drawn_and_partly_missing_noise_refused(write):
    tensors = weights(originals("stylegan2_rosinality_g_a"))
    without = {k: v for k, v in tensors.items() if not k.startswith("noises.")}
    file = write("g.safetensors", as_safetensors(without))
    first, again = kd.load(file), kd.load(file)
    assert any("noise" in note for note in first.info["notes"])
    noise = np.concatenate([np.ravel(x) for x in jax.tree.leaves(first.variables["noise"])])
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 0.1
    jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
    tensors.pop("noises.noise_1")
    with pytest.raises(ValueError, match=r"noises\.noise_1 is missing"):
        kd.load(write("part.safetensors", as_safetensors(tensors)))


def test_filters_of_layers_that_do_not_resample_are_not_used(write):
    file = originals("stylegan2_g_a")
    tensors = weights(file)
    for name in tensors:
        if "conv1.resample_filter" in name:
            tensors[name] = np.eye(4, dtype=np.float32)
    network, variables = pretrained.load(write("g.safetensors", as_safetensors(tensors)))
    image = network.synthesis(variables, file["out/w"], noise="const")[0]
    original = pretrained.load(write("o.safetensors", as_safetensors(weights(file))))
    expected = original.network.synthesis(original.variables, file["out/w"], noise="const")[0]
    np.testing.assert_array_equal(image, expected)


def test_images_are_enlarged_with_the_filter_of_their_own_layers(write):
    file = originals("stylegan2_rosinality_g_a")
    tensors, outputs = weights(file), []
    box = np.pad(np.ones((2, 2), np.float32), 1)
    for image_filter in (None, box):
        if image_filter is not None:
            for name in tensors:
                if name.endswith("upsample.kernel"):
                    tensors[name] = image_filter
        network, variables = pretrained.load(write("g.safetensors", as_safetensors(tensors)))
        styles = network.mapping(variables, file["in/z"][:2])
        _, taps = network.synthesis(variables, styles, noise="const")
        taps_used = (1, 3, 3, 1) if image_filter is None else image_filter
        enlarged = ops.upsample2d(taps["image/4x4"], ops.resampling_filter(taps_used))
        outputs.append(taps["image/8x8"] - enlarged)  # of the layer alone, whatever the filter
    np.testing.assert_allclose(*outputs, atol=1e-5)

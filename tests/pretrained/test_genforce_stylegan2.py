"""StyleGAN2 under genforce's names: agreement with the original networks, and refusals.

Weights, images and scores are those of NVIDIA's program. Here they are converted to the layout of
genforce's converters: kernels of upsampling layers are flipped, the biases of styles are reduced by
one, and filters include their gain.
"""

import re
from itertools import pairwise

import jax
import numpy as np
import pytest
from parity.golden import FILES, FOLDER, File
from pretrained.test_registry import as_checkpoint

from kd_jax import pretrained
from kd_jax.pretrained import stylegan1, stylegan2

LATENT, STYLE, HIDDEN, DEPTH, CLASSES = 4, 5, 6, 2, 3
WIDTHS = (7, 6, 4)  # at 4x4, 8x8, 16x16
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32)[None, None] / 64


def files(family: str):
    """Parametrizes over the files of NVIDIA's networks; skips with the reason if there are none."""
    paths = [path for path in FILES if re.fullmatch(rf"{family}_[a-z]\d*", path.stem)]
    return pytest.mark.parametrize(
        "path", paths or [pytest.param(None, marks=pytest.mark.skip(f"no {family} at {FOLDER}"))]
    )


def read_nvidia(path, unknown: dict[str, str]) -> tuple[File, dict[str, np.ndarray]]:
    """A file and its weights; skips files with a tensor that genforce's networks do not have."""
    file = File(path)
    weights = {k.removeprefix("sd/"): file.arrays[k] for k in file if k.startswith("sd/")}
    for name, value in weights.items():
        if name.endswith("resample_filter") and value.shape != (4, 4):
            pytest.skip("genforce's filters have 4x4 taps")
        for pattern, reason in unknown.items():
            if re.search(pattern, name):
                pytest.skip(reason)
    return file, weights


def correlation_filter(taps, gain):
    """A convolution filter as a correlation filter."""
    return gain * taps[None, None, ::-1, ::-1]


def generator_as_genforce(weights):
    tensors = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"mapping\.(fc|embed)(\d*)\.(weight|bias)", name):
            layer = f"dense{match[2]}" if match[1] == "fc" else "LabelEmbed"
            tensors[f"mapping.{layer}.{match[3]}"] = value
        elif name == "mapping.w_avg":
            tensors["truncation.w_avg"] = value
        elif name == "synthesis.b4.const":
            tensors["synthesis.early_layer.const"] = value[None]
        elif name == "synthesis.b4.resample_filter" and "synthesis.b4.torgb.weight" in weights:
            tensors["synthesis.upsample.kernel"] = correlation_filter(value, 4)
        elif match := re.fullmatch(r"synthesis\.b(\d+)\.(conv\d|torgb)\.(.+)", name):
            number, part = int(match[1]).bit_length() - 3, match[2]
            index = 2 * number - (part == "conv0")
            layer = f"synthesis.output{number}" if part == "torgb" else f"synthesis.layer{index}"
            if match[3] == "resample_filter":
                if part == "conv0":
                    tensors[f"{layer}.filter.kernel"] = correlation_filter(value, 4)
            elif match[3] == "weight":
                kernel = value[:, :, ::-1, ::-1] if part == "conv0" else value
                tensors[f"{layer}.weight"] = kernel
            elif match[3] == "noise_const":
                tensors[f"{layer}.noise"] = value[None, None]
            elif match[3] == "affine.bias":
                tensors[f"{layer}.style.bias"] = value - 1
            else:
                tensors[f"{layer}.{match[3].replace('affine', 'style')}"] = value
    return tensors


def discriminator_as_genforce(weights):
    size = max(int(match[1]) for name in weights if (match := re.match(r"b(\d+)\.", name)))
    tensors = {}
    for name, value in weights.items():
        match = re.fullmatch(r"b(\d+)\.(?:(\w+)\.)?(\w+)", name)
        number = (size // int(match[1])).bit_length() - 1
        names = {"fromrgb": "input{}", "skip": "skip_layer{}"}
        layers = {"conv0": 0, "conv1": 1, "conv": 0, "fc": 1, "out": 2}
        layer = names.get(match[2], f"layer{2 * number + layers.get(match[2], 0)}").format(number)
        if match[3] != "resample_filter":
            tensors[f"{layer}.{match[3]}"] = value
        elif match[2] in ("conv1", "skip"):
            tensors[f"{layer}.filter.kernel"] = correlation_filter(value, 1)
        elif match[2] is None and "b4.fromrgb.weight" in weights:
            tensors["downsample.kernel"] = correlation_filter(value, 1)
    return tensors


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
@files("stylegan2_g")
def test_generators_match_nvidias(path):
    file, weights = read_nvidia(path, {r"\.skip\.": "genforce has no residual generator"})
    if "synthesis.b4.conv1.noise_const" not in weights:
        pytest.skip("genforce's generators have noise")
    overrides = stylegan2.generator_settings(file.config["kwargs"])
    network, variables, *_ = stylegan2.genforce_generator(
        generator_as_genforce(weights), **overrides
    )
    inputs = (file["in/z"], *([file["in/c"]] if file["in/c"].size else []))
    assert_close(network.mapping(variables, *inputs), file["out/w"])
    usual = {}
    for name in file:
        if match := re.fullmatch(r"out/w_psi([\d.]+)(?:_cut(\d+))?", name):
            options = {"truncation": float(match[1])}
            cutoff = int(match[2]) if match[2] else None
            usual = options if cutoff is None else usual
            styles = network.mapping(variables, *inputs, truncation_cutoff=cutoff, **options)
            assert_close(styles, file[name])
    styles = network.mapping(variables, *inputs, **usual)
    for noise in ("const", "none"):
        assert_close(network.synthesis(variables, styles, noise=noise)[0], file[f"out/img_{noise}"])


@pytest.mark.slow
@files("stylegan2_d")
def test_discriminators_match_nvidias(path):
    file, weights = read_nvidia(path, {r"^mapping\.": "genforce's discriminators have no mapping"})
    overrides = stylegan2.discriminator_settings(file.config["kwargs"])
    read = stylegan2.genforce_discriminator
    network, variables, *_ = read(discriminator_as_genforce(weights), **overrides)
    assert_close(network.apply(variables, file["in/img"])[0][:, None], file["out/logits"])


def numbers(shapes, seed=0):
    """A random state dict of these shapes; arrays in place of shapes are kept."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32) if isinstance(shape, tuple) else shape
        for name, shape in shapes.items()
    }


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def generator(skip=True, labels=False):
    shapes = {
        "truncation.w_avg": (STYLE,),
        **layer("mapping.dense0", HIDDEN, LATENT * (2 if labels else 1)),
        **layer("mapping.dense1", STYLE, HIDDEN),
        "synthesis.early_layer.const": (1, WIDTHS[0], 4, 4),
    }
    if labels:
        shapes |= layer("mapping.LabelEmbed", LATENT, CLASSES)
    if skip:
        shapes["synthesis.upsample.kernel"] = 4 * FILTER
    before = WIDTHS[0]
    for i in range(5):
        width, side, name = WIDTHS[(i + 1) // 2], 4 << (i + 1) // 2, f"synthesis.layer{i}"
        shapes |= layer(name, width, before, 3, 3) | layer(f"{name}.style", before, STYLE)
        shapes |= {f"{name}.noise": (1, 1, side, side), f"{name}.noise_strength": ()}
        if i % 2:
            shapes[f"{name}.filter.kernel"] = 4 * FILTER
        before = width
    for i, width in enumerate(WIDTHS):
        if skip or i == 2:
            name = f"synthesis.output{i}"
            shapes |= layer(name, 3, width, 1, 1) | layer(f"{name}.style", width, STYLE)
    return numbers(shapes)


def discriminator(architecture="resnet", labels=False):
    shapes, widths = {}, WIDTHS[::-1]
    for i, (width, after) in enumerate(pairwise(widths)):
        shapes |= layer(f"layer{2 * i}", width, width, 3, 3)
        shapes |= layer(f"layer{2 * i + 1}", after, width, 3, 3)
        shapes[f"layer{2 * i + 1}.filter.kernel"] = FILTER
        if architecture == "resnet":
            shapes[f"skip_layer{i}.weight"] = (after, width, 1, 1)
            shapes[f"skip_layer{i}.filter.kernel"] = FILTER
    for i, width in enumerate(widths):
        if i == 0 or architecture == "skip":
            shapes |= layer(f"input{i}", width, 3, 1, 1)
    if architecture == "skip":
        shapes["downsample.kernel"] = FILTER
    if labels:
        shapes |= layer("LabelEmbed", 8, CLASSES)
    shapes |= layer("layer4", 7, 7 + 1, 3, 3) | layer("layer5", 7, 7 * 16)
    return numbers(shapes | layer("layer6", 8 if labels else 1, 7))


READERS = {
    "generator": (generator(), stylegan2.genforce_generator),
    "orig generator": (generator(skip=False), stylegan2.genforce_generator),
    "generator of labels": (generator(labels=True), stylegan2.genforce_generator),
    "discriminator": (discriminator(), stylegan2.genforce_discriminator),
    "skip discriminator": (discriminator("skip"), stylegan2.genforce_discriminator),
    "orig discriminator": (discriminator("orig"), stylegan2.genforce_discriminator),
    "discriminator of labels": (discriminator(labels=True), stylegan2.genforce_discriminator),
}
every_reader = pytest.mark.parametrize("which", READERS)


@every_reader
def test_the_configuration_is_inferred_from_shapes(which):
    tensors, read = READERS[which]
    config = read(tensors).config
    expected = {"size": 16, "channels": 3, "widths": {4: 7, 8: 6, 16: 4}}
    expected["classes"] = CLASSES if "labels" in which else 0
    if "generator" in which:
        expected |= {"latent": LATENT, "style": STYLE}
        expected["architecture"] = "orig" if "orig" in which else "skip"
        assert (config["mapping"]["depth"], config["mapping"]["hidden"]) == (DEPTH, HIDDEN)
    else:
        expected["stddev_channels"] = 1
        kinds = [kind for kind in ("skip", "orig") if kind in which]
        expected["architecture"] = kinds[0] if kinds else "resnet"
    assert {name: config[name] for name in expected} == expected
    np.testing.assert_allclose(config["resample_filter"], FILTER[0, 0])


@every_reader
def test_missing_tensors_are_refused(which):
    tensors, read = READERS[which]
    for name in tensors:
        rest = {other: value for other, value in tensors.items() if other != name}
        with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(name)} is missing$"):
            read(rest)


@every_reader
def test_tensors_of_another_shape_are_refused(which):
    tensors, read = READERS[which]
    for name, value in tensors.items():
        with pytest.raises(ValueError, match=rf"^[^\n]*{re.escape(name)} has shape \(1,[^\n]*$"):
            read({**tensors, name: value[None]})


@every_reader
@pytest.mark.parametrize("more", ["more.weight", "layer99999999999.bias", "synthesis.layer9.bias"])
def test_unknown_tensors_are_refused(which, more):
    tensors, read = READERS[which]
    message = rf"^not a StyleGAN2 [^\n]*unknown tensors {re.escape(more)}$"
    with pytest.raises(ValueError, match=message):
        read({**tensors, more: np.zeros(3, np.float32)})


def test_unsupported_networks_are_refused():
    read, tensors = stylegan2.genforce_generator, generator()
    with pytest.raises(ValueError, match=r"mapping\.label_weight is of labels without"):
        read({**tensors, "mapping.label_weight": np.zeros((3, 4), np.float32)})
    for change, message in (
        ({"synthesis.layer3.filter.kernel": FILTER}, "layer3.filter.kernel sums to 1 instead of 4"),
        (
            {"synthesis.layer3.filter.kernel": np.full((1, 1, 4, 4), 0.25, np.float32)},
            "its layers have different resampling filters",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read(tensors | change)
    few = {"layer4.weight": np.zeros((7, 5, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"layer4\.weight has 5 inputs"):
        stylegan2.genforce_discriminator(discriminator() | few)


def test_filters_are_correlated():
    taps = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4) / 120
    tensors = generator()
    tensors |= {name: 4 * taps for name in tensors if name.endswith(".kernel")}
    config = stylegan2.genforce_generator(tensors).config
    np.testing.assert_allclose(config["resample_filter"], taps[0, 0, ::-1, ::-1])
    tensors = discriminator()
    tensors |= {name: taps for name in tensors if name.endswith(".kernel")}
    config = stylegan2.genforce_discriminator(tensors).config
    np.testing.assert_allclose(config["resample_filter"], taps[0, 0, ::-1, ::-1])


def test_overrides_reach_the_network():
    options = {"conv_clamp": 0.5, "style_mixing": 0.9}
    config = stylegan2.genforce_generator(
        generator(), mapping={"lr_multiplier": 1.0}, **options
    ).config
    assert {name: config[name] for name in options} == options
    assert config["mapping"] == {"depth": DEPTH, "hidden": HIDDEN, "lr_multiplier": 1.0}
    read = stylegan2.genforce_discriminator
    assert read(discriminator(), stddev_group=2).config["stddev_group"] == 2
    with pytest.raises(TypeError, match="loudness"):
        read(discriminator(), loudness=3)


def test_parts_of_a_file(tmp_path):
    path, average = tmp_path / "stylegan2.pth", generator()
    other = {**average, "truncation.w_avg": average["truncation.w_avg"] + 1}
    content = {"generator": other, "discriminator": discriminator(), "generator_smooth": average}
    path.write_bytes(as_checkpoint(**content))
    kinds = {name: part.kind for name, part in pretrained.parts(path).items()}
    assert kinds == {
        "generator": "StyleGAN2 generator (genforce)",
        "discriminator": "StyleGAN2 discriminator (genforce)",
        "generator_smooth": "StyleGAN2 generator (genforce)",
    }
    _, variables = pretrained.load(path)
    loaded = variables["averages"]["mapping"]["w_avg"]
    np.testing.assert_array_equal(loaded, average["truncation.w_avg"])
    _, variables = pretrained.load(path, "discriminator")
    assert jax.tree.leaves(variables)


def test_similar_networks_are_distinguished():
    """genforce's StyleGAN and progressive GAN have similar tensor names."""
    for tensors in (generator(), generator(skip=False), generator(labels=True)):
        assert stylegan2.is_genforce_generator(tensors)
        assert not stylegan1.is_genforce_generator(tensors)
        assert not stylegan2.is_genforce_discriminator(tensors)
    for tensors in (discriminator(), discriminator("skip"), discriminator("orig")):
        assert stylegan2.is_genforce_discriminator(tensors)
        assert not stylegan1.is_genforce_discriminator(tensors)
        assert not stylegan2.is_genforce_generator(tensors)
    for names in (
        ("synthesis.layer0.const", "synthesis.layer0.apply_noise.weight", "synthesis.lod"),
        ("input0.weight", "input1.weight", "layer0.weight", "layer1.blur.kernel", "lod"),
        ("input0.weight", "input1.weight", "layer0.weight", "layer1.weight", "lod"),
        ("layer0.weight", "layer1.weight", "output0.weight", "lod"),
    ):
        assert not stylegan2.is_genforce_generator(names)
        assert not stylegan2.is_genforce_discriminator(names)

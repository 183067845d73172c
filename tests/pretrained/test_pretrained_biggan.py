"""BigGAN files: all options, against a second implementation on the PyTorch tensors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from selection import quick

from kd_jax.models.layers.spectral import SpectralNorm
from kd_jax.pretrained import biggan, dcgan

B, CLASSES = 3, 5
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seed():
    """Each case draws the same numbers, whatever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


EPS = 1e-6


def _normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


class Writer:
    """A random state dict in the layout of Brock's program."""

    def __init__(self, vectors=1):
        self.vectors, self.tensors = vectors, {}

    def layer(self, name, *shape, bias=True):
        self.tensors[f"{name}.weight"] = _normal(*shape) / np.sqrt(np.prod(shape[1:]), dtype="f")
        if bias:
            self.tensors[f"{name}.bias"] = _normal(shape[0])
        for i in range(self.vectors):
            self.tensors[f"{name}.u{i}"] = _normal(1, shape[0])
            self.tensors[f"{name}.sv{i}"] = _normal(1)

    def embedding(self, name, *shape):
        self.tensors[f"{name}.weight"] = _normal(*shape)

    def attention(self, name, width):
        for part, shape in {
            "theta": (width // 8, width),
            "phi": (width // 8, width),
            "g": (width // 2, width),
            "o": (width, width // 2),
        }.items():
            self.layer(f"{name}.{part}", *shape, 1, 1, bias=False)
        self.tensors[f"{name}.gamma"] = np.float32(0.7)

    def statistics(self, name, width, own):
        name = f"{name}.bn" if own else name
        self.tensors[f"{name}.stored_mean"] = _normal(width)
        self.tensors[f"{name}.stored_var"] = RNG.uniform(0.5, 1.5, width).astype(np.float32)
        if own:
            self.tensors[f"{name}.accumulation_counter"] = np.zeros(1, np.float32)


def _generator(widths, *, shared=6, chunk=0, latent=7, own=False, attention=(), **options):
    w = Writer(**options)
    if shared:
        w.embedding("shared", CLASSES, shared)
    w.layer("linear", 16 * widths[0], chunk or latent)
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        name = f"blocks.{i}.0"
        w.layer(f"{name}.conv1", b, a, 3, 3)
        w.layer(f"{name}.conv2", b, b, 3, 3)
        w.layer(f"{name}.conv_sc", b, a, 1, 1)
        for bn, width in (("bn1", a), ("bn2", b)):
            for part in ("gain", "bias"):
                if shared:
                    w.layer(f"{name}.{bn}.{part}", width, shared + chunk, bias=False)
                else:
                    w.embedding(f"{name}.{bn}.{part}", CLASSES, width)
            w.statistics(f"{name}.{bn}", width, own)
        if i in attention:
            w.attention(f"blocks.{i}.1", b)
    w.tensors["output_layer.0.gain"] = _normal(widths[-1])
    w.tensors["output_layer.0.bias"] = _normal(widths[-1])
    w.statistics("output_layer.0", widths[-1], own)
    w.layer("output_layer.2", 3, widths[-1], 3, 3)
    return w.tensors


def _discriminator(widths, halvings, *, wide=True, attention=(), channels=3, **options):
    w = Writer(**options)
    before = channels
    for i, width in enumerate(widths):
        hidden = width if wide else before
        w.layer(f"blocks.{i}.0.conv1", hidden, before, 3, 3)
        w.layer(f"blocks.{i}.0.conv2", width, hidden, 3, 3)
        if i < halvings or width != before:
            w.layer(f"blocks.{i}.0.conv_sc", width, before, 1, 1)
        if i in attention:
            w.attention(f"blocks.{i}.1", width)
        before = width
    w.layer("linear", 1, before)
    w.layer("embed", CLASSES, before, bias=False)
    return w.tensors


# --- the second implementation: channels first, layer by layer as in the README of the formats ---


class Layers:
    def __init__(self, tensors):
        self.t = tensors

    def weight(self, name):
        """Divided by v M u, after one power iteration from u0."""
        weight = self.t[f"{name}.weight"].astype(np.float64)
        if f"{name}.u0" not in self.t:
            return weight
        matrix, u = weight.reshape(len(weight), -1), self.t[f"{name}.u0"][0]
        v = u @ matrix / max(np.linalg.norm(u @ matrix), EPS)
        u = matrix @ v / max(np.linalg.norm(matrix @ v), EPS)
        return weight / (v @ matrix.T @ u)

    def linear(self, name, x):
        return x @ self.weight(name).T + self.t.get(f"{name}.bias", 0)

    def conv(self, name, x):
        weight = self.weight(name)
        pad = weight.shape[-1] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
        x = np.einsum("bihwyx,oiyx->bohw", windows, weight, optimize=True)
        return x + np.reshape(self.t.get(f"{name}.bias", np.zeros(len(weight))), (1, -1, 1, 1))

    def norm(self, name, x):
        inner = f"{name}.bn" if f"{name}.bn.stored_mean" in self.t else name
        mean, var = (self.t[f"{inner}.stored_{s}"].reshape(1, -1, 1, 1) for s in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5)

    def conditional(self, name, x, y):
        by_label = y.ndim == 1
        gain, bias = (
            self.t[f"{name}.{p}.weight"][y] if by_label else self.linear(f"{name}.{p}", y)
            for p in ("gain", "bias")
        )
        return self.norm(name, x) * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    def attention(self, name, x):
        if f"{name}.gamma" not in self.t:
            return x
        b, c, h, w = x.shape
        theta = self.conv(f"{name}.theta", x).reshape(b, -1, h * w)
        phi, g = (
            self.conv(f"{name}.{p}", x).reshape(b, -1, h // 2, 2, w // 2, 2).max(axis=(3, 5))
            for p in ("phi", "g")
        )
        beta = np.exp(np.einsum("bcq,bck->bqk", theta, phi.reshape(b, -1, h * w // 4)))
        beta /= beta.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bck,bqk->bcq", g.reshape(b, -1, h * w // 4), beta)
        return x + 0.7 * self.conv(f"{name}.o", mixed.reshape(b, c // 2, h, w))


def _up(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def _relu(x):
    return np.maximum(x, 0)


def _pool(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))


def _generate(tensors, blocks, z, labels):
    net = Layers(tensors)
    y = labels if "shared.weight" not in tensors else tensors["shared.weight"][labels]
    chunk = tensors["linear.weight"].shape[1]
    parts = [z[:, i : i + chunk] for i in range(0, z.shape[1], chunk)]
    x = net.linear("linear", parts[0]).reshape(len(z), -1, 4, 4)
    for i in range(blocks):
        name = f"blocks.{i}.0"
        condition = y if len(parts) == 1 else np.concatenate([y, parts[i + 1]], axis=1)
        h = _up(_relu(net.conditional(f"{name}.bn1", x, condition)))
        h = net.conv(f"{name}.conv1", h)
        h = net.conv(f"{name}.conv2", _relu(net.conditional(f"{name}.bn2", h, condition)))
        x = net.attention(f"blocks.{i}.1", h + net.conv(f"{name}.conv_sc", _up(x)))
    gain, bias = (tensors[f"output_layer.0.{p}"].reshape(1, -1, 1, 1) for p in ("gain", "bias"))
    x = _relu(net.norm("output_layer.0", x) * gain + bias)
    return np.tanh(net.conv("output_layer.2", x))


def _score(tensors, blocks, halvings, x, labels):
    net = Layers(tensors)
    for i in range(blocks):
        name, first, halve = f"blocks.{i}.0", i == 0, i < halvings
        h = net.conv(f"{name}.conv1", x if first else _relu(x))
        h = net.conv(f"{name}.conv2", _relu(h))
        h = _pool(h) if halve else h
        if first and halve:
            x = _pool(x)
        if f"{name}.conv_sc.weight" in tensors:
            x = net.conv(f"{name}.conv_sc", x)
        if halve and not first:
            x = _pool(x)
        x = net.attention(f"blocks.{i}.1", h + x)
    x = _relu(x).sum(axis=(2, 3))
    return (net.linear("linear", x) + (net.weight("embed")[labels] * x).sum(1, keepdims=True))[:, 0]


# --- the readers ----------------------------------------------------------------------------------

LABELS = np.array([4, 0, 4])

GENERATORS = {
    "hierarchical": ((8, 9, 8, 7), {"chunk": 2}, 8),
    "not hierarchical": ((8, 9, 8, 7), {"attention": (1,)}, 7),
    "no shared embedding": ((8, 7, 6, 5), {"shared": 0}, 7),
    "its own batch norm": ((8, 7, 6, 5), {"own": True, "chunk": 2}, 8),
    "two singular values": ((8, 7, 6, 5), {"vectors": 2}, 7),
    "no spectral norm": ((8, 7, 6, 5), {"vectors": 0}, 7),
    "64 pixels": ((16, 16, 8, 8, 2), {"chunk": 2, "attention": (0, 2)}, 10),
}


@pytest.mark.parametrize("case", quick(GENERATORS, 2))
def test_generators(case):
    widths, options, latent = GENERATORS[case]
    tensors = _generator(widths, **options)
    assert biggan.is_brock_generator(tensors)
    assert not biggan.is_brock_discriminator(tensors)
    converted = biggan.brock_generator(tensors, spectral_epsilon=EPS, iterations=3)
    vectors = options.get("vectors", 1)
    assert converted.config == {
        "size": 4 * 2 ** (len(widths) - 1),
        "width": list(widths),
        "channels": 3,
        "classes": CLASSES,
        "shared": options.get("shared", 6),
        "hierarchical": "chunk" in options,
        "attention": [2 ** (3 + i) for i in options.get("attention", ())],
        "spectral": SpectralNorm(3, vectors, EPS) if vectors else None,
        "epsilon": 1e-5,
        "unbiased": not options.get("own", False),
    }
    z = _normal(B, latent)
    images, _, _ = converted.network.apply(converted.variables, z, LABELS)
    expected = _generate(tensors, len(widths) - 1, z, LABELS).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(images, expected, atol=2e-5)
    assert expected.std() > 0.1


DISCRIMINATORS = {
    "wide": ((8, 9, 9, 9), {"attention": (0, 1, 2, 3)}, 32, [16, 8]),
    "narrow": ((8, 9, 9, 9), {"wide": False, "channels": 1}, 32, []),
    "two singular values": ((4, 4, 4, 4), {"vectors": 2}, 32, []),
    "64 pixels": ((2, 4, 8, 16, 16), {"attention": (2,)}, 64, [8]),
    "64 pixels, narrow": ((2, 4, 8, 8, 16), {"wide": False}, 64, []),
}


@pytest.mark.parametrize("case", quick(DISCRIMINATORS, 2))
def test_discriminators(case):
    widths, options, size, sides = DISCRIMINATORS[case]
    halvings = 2 if size == 32 else 4
    tensors = _discriminator(widths, halvings, **options)
    assert biggan.is_brock_discriminator(tensors)
    assert not biggan.is_brock_generator(tensors)
    converted = biggan.brock_discriminator(tensors, spectral_epsilon=EPS)
    assert converted.config == {
        "size": size,
        "width": list(widths),
        "classes": CLASSES,
        "attention": sides,
        "spectral": SpectralNorm(1, options.get("vectors", 1), EPS),
        "wide": options.get("wide", True),
    }
    images = RNG.uniform(-1, 1, (B, size, size, options.get("channels", 3))).astype(np.float32)
    scores, _, _ = converted.network.apply(converted.variables, images, LABELS)
    expected = _score(tensors, len(widths), halvings, images.transpose(0, 3, 1, 2), LABELS)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_files_of_several_devices():
    tensors = _generator((4, 4, 4, 4))
    parallel = {f"module.{name}": value for name, value in tensors.items()}
    assert biggan.is_brock_generator(parallel)
    one, two = biggan.brock_generator(tensors), biggan.brock_generator(parallel)
    jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


def test_tensors_that_do_not_fit_are_named():
    tensors = _generator((8, 7, 6, 5), attention=())
    read = biggan.brock_generator
    for name in ("blocks.1.0.bn2.stored_var", "linear.bias", "output_layer.0.gain"):
        with pytest.raises(ValueError, match=f"BigGAN generator: .*{name}|dense/bias is missing"):
            read(_without(tensors, name))
    with pytest.raises(ValueError, match=r"unknown tensors blocks\.0\.0\.conv9\.weight"):
        read({**tensors, "blocks.0.0.conv9.weight": _normal(1)})
    with pytest.raises(ValueError, match=r"block_1/conv2/kernel has shape \(3, 3, 7, 6\)"):
        read({**tensors, "blocks.1.0.conv2.weight": _normal(6, 7, 3, 3)})
    with pytest.raises(ValueError, match=r"linear\.weight has 100 rows; 128 are needed for 4x4"):
        read({**tensors, "linear.weight": _normal(100, 7)})
    for empty in (read, biggan.brock_discriminator, biggan.huggingface_generator):
        with pytest.raises(ValueError, match=r"not a .*BigGAN .*\.weight\w* is missing"):
            empty({})
    tensors = _discriminator((8, 8, 8, 8), 2)
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \(8, 3\), not 4 axes"):
        biggan.brock_discriminator({**tensors, "blocks.0.0.conv1.weight": _normal(8, 3)})


# --- Hugging Face's -------------------------------------------------------------------------------


def _huggingface(layers, channels=4, latent=3, shared=2, statistics=3, position=1):
    """A state dict of blocks `(in, out)` with attention before the block at `position`."""
    t = {"embeddings.weight": _normal(shared, CLASSES)}

    def layer(name, *shape, bias=True):
        t[f"{name}.weight_orig"] = _normal(*shape)
        t[f"{name}.weight_u"] = _normal(shape[0])
        t[f"{name}.weight_v"] = _normal(np.prod(shape[1:]))
        if bias:
            t[f"{name}.bias"] = _normal(shape[0])

    def stored(name, width):
        t[f"{name}.running_means"] = _normal(statistics, width)
        t[f"{name}.running_vars"] = RNG.uniform(0.5, 1.5, (statistics, width)).astype(np.float32)

    layer("generator.gen_z", 16 * layers[0][0], latent + shared)
    index = 0
    for number, (a, b) in enumerate(layers):
        if number == position:
            name = f"generator.layers.{index}.snconv1x1"
            for part, shape in (
                ("theta", (a // 8, a)),
                ("phi", (a // 8, a)),
                ("g", (a // 2, a)),
                ("o_conv", (a, a // 2)),
            ):
                layer(f"{name}_{part}", *shape, 1, 1, bias=False)
            t[f"generator.layers.{index}.gamma"] = _normal(1)
            index += 1
        name = f"generator.layers.{index}"
        shapes = ((a // 4, a, 1), (a // 4, a // 4, 3), (a // 4, a // 4, 3), (b, a // 4, 1))
        for step, (after, before, side) in enumerate(shapes):
            layer(f"{name}.conv_{step}", after, before, side, side)
            stored(f"{name}.bn_{step}", before)
            for part in ("scale", "offset"):
                layer(f"{name}.bn_{step}.{part}", before, latent + shared, bias=False)
        index += 1
    stored("generator.bn", channels)
    t["generator.bn.weight"], t["generator.bn.bias"] = _normal(channels), _normal(channels)
    layer("generator.conv_to_rgb", channels, channels, 3, 3)
    return t


def test_huggingface_defaults_are_those_of_the_published_files():
    layers = ((16, 16), (16, 8), (8, 8), (8, 4))
    tensors = _huggingface(layers, position=2)
    assert biggan.is_huggingface(tensors)
    assert not biggan.is_brock_generator(tensors)
    assert not biggan.is_brock_discriminator(tensors)
    converted = biggan.huggingface_generator(tensors)
    assert converted.config == {
        "channels": 3,
        "widths": [16, 16, 8, 8, 4],
        "doublings": [False, True, False, True],
        "classes": CLASSES,
        "shared": 2,
        "attention": [1],
        "spectral": None,
        "epsilon": 1e-4,
        "statistics": 3,
    }
    params = converted.variables["params"]
    # Latents come first in the file, classes in kd_jax; weights are divided by u M v.
    name = "generator.layers.3.bn_1.scale"
    weight, u, v = (tensors[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
    expected = weight[:, [3, 4, 0, 1, 2]].T / (u @ weight @ v)
    np.testing.assert_allclose(params["block_2"]["norm2"]["gain"]["kernel"], expected, rtol=1e-5)
    # Channels beyond the image are left out, but contribute to the singular value.
    name = "generator.conv_to_rgb"
    weight, u, v = (tensors[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
    expected = weight[:3].transpose(2, 3, 1, 0) / (u @ weight.reshape(4, -1) @ v)
    np.testing.assert_allclose(params["image"]["kernel"], expected, rtol=1e-5)


def test_huggingface_files_that_do_not_fit():
    layers = ((16, 16), (16, 8), (8, 4))
    tensors = _huggingface(layers)
    with pytest.raises(ValueError, match="2 blocks have 3 widths from input to output, not 4"):
        biggan.huggingface_generator(tensors, doublings=[True, False])
    with pytest.raises(ValueError, match=r"conv_to_rgb\.weight_u and weight_v, \(3,\) and \(36,\)"):
        biggan.huggingface_generator({**tensors, "generator.conv_to_rgb.weight_u": _normal(3)})
    with pytest.raises(ValueError, match=r"generator\.bn\.bias is missing"):
        biggan.huggingface_generator(_without(tensors, "generator.bn.bias"))


# --- DCGAN ----------------------------------------------------------------------------------------


def _dcgan(first_norm, widths):
    """Weights `main.N` between widths, with norms after all but the outermost layers."""
    tensors = {}
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        number = 3 * i if first_norm == 1 else max(3 * i - 1, 0)
        shape = (a, b) if first_norm == 1 else (b, a)
        tensors[f"main.{number}.weight"] = _normal(*shape, 4, 4)
        if i < len(widths) - 2 and not (first_norm == 3 and i == 0):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"main.{number + 1}.{name}"] = np.abs(_normal(b))
            tensors[f"main.{number + 1}.num_batches_tracked"] = np.int64(7)
    return tensors


def test_dcgan_of_another_size():
    """32 pixels and one channel: one layer fewer than in the program."""
    g = _dcgan(1, (5, 8, 6, 4, 1))
    converted = dcgan.generator(g)
    assert dcgan.is_generator(g)
    assert not dcgan.is_discriminator(g)
    assert converted.config == {"size": 32, "width": [8, 6, 4], "channels": 1}
    assert converted.network.apply(converted.variables, _normal(2, 5))[0].shape == (2, 32, 32, 1)

    d = _dcgan(3, (1, 4, 6, 8, 1))
    assert dcgan.is_discriminator(d)
    assert not dcgan.is_generator(d)
    converted = dcgan.discriminator(d)
    assert converted.config == {"size": 32, "width": [8, 6, 4]}
    assert converted.network.apply(converted.variables, _normal(2, 32, 32, 1))[0].shape == (2,)


def test_dcgan_files_that_do_not_fit_are_named():
    g, d = _dcgan(1, (5, 8, 6, 4, 1)), _dcgan(3, (1, 4, 6, 8, 1))
    for read, tensors, name in (
        (dcgan.generator, g, r"main\.4\.running_var"),
        (dcgan.generator, g, r"main\.9\.weight"),
        (dcgan.discriminator, d, r"main\.3\.bias"),
        (dcgan.discriminator, d, r"main\.8\.weight"),
    ):
        with pytest.raises(ValueError, match=f"not a DCGAN .*: {name} is missing"):
            read(_without(tensors, name.replace("\\", "")))
        with pytest.raises(ValueError, match=r"unknown tensors main\.99\.bias"):
            read({**tensors, "main.99.bias": _normal(1)})
    with pytest.raises(ValueError, match=r"main\.6\.weight has shape \(7, 4, 4, 4\) instead of"):
        dcgan.generator({**g, "main.6.weight": _normal(7, 4, 4, 4)})
    with pytest.raises(ValueError, match=r"running_mean is missing"):
        dcgan.generator({})
    with pytest.raises(ValueError, match=r"running_mean is missing"):
        dcgan.discriminator({})


def test_inputs_of_a_conversion():
    converted = biggan.brock_generator(_generator((4, 4, 4, 4), chunk=2))
    assert [x.shape for x in converted.inputs] == [(1, 8), (1,)]
    assert converted.inputs[1].dtype == jnp.int32

"""The Inception networks, and TensorFlow 1's resize."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import ops
from kd_jax.metrics import resize
from kd_jax.models import inception as models
from kd_jax.pretrained import inception
from parity import recipe
from parity.golden import Family, File, Outputs

POOLED = {  # pytorch-fid's blocks
    "out/block0_pooled": "64",
    "out/block1_pooled": "192",
    "out/block2_pooled": "768",
    "out/pool3_2048": "2048",
}
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def shapes(classes: int = 1008) -> dict[str, tuple[int, ...]]:
    """The published tensors' names and shapes, from the network's own parameters."""
    network = models.fid(classes)
    image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    tensors: dict[str, tuple[int, ...]] = {"fc.weight": (classes, 2048), "fc.bias": (classes,)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(key.key for key in path[:-1])
        if name != "fc" and path[-1].key == "kernel":
            h, w, inputs, outputs = leaf.shape
            tensors[f"{name}.conv.weight"] = (outputs, inputs, h, w)
            tensors |= {f"{name}.bn.{part}": (outputs,) for part in STATISTICS[:-1]}
            tensors[f"{name}.bn.num_batches_tracked"] = ()
    return tensors


@cache
def weights(classes: int = 1008) -> dict[str, np.ndarray]:
    return recipe.tensors(shapes(classes))


def images(file: File) -> jax.Array:
    return jnp.asarray(file["in/img_uint8"] / np.float32(127.5) - 1, jnp.float32)


@jax.jit
def fid_network(variables, prepared):
    logits, taps, _ = models.fid().apply(variables, prepared)
    return logits, taps


def run(file: File, convention: str):
    """The network's inputs, logits and taps."""
    if keys := file.config.get("keys"):
        assert {name: tuple(shape) for name, shape in keys.items()} == shapes()
    prepared = resize.prepared(images(file), resize.convention(convention), models.SIDE)
    return prepared, *fid_network(inception.fid(weights()).variables, prepared)


def torch_fidelity(file: File) -> Outputs:
    prepared, logits, taps = run(file, "tf1-bilinear")
    outputs = {f"out/feat_{name}": taps[name] for name in ("64", "192", "768", "2048")}
    outputs |= {"out/feat_logits": logits, "out/feat_logits_unbiased": taps["logits_unbiased"]}
    outputs["out/resized_299_img0_ch0_every8"] = prepared[0, ::8, ::8, 0] * 128 + 128
    maps = {name: np.asarray(x, np.float64) for name, x in taps.items() if x.ndim == 4}
    return outputs | {f"out/pooled_{name}": x.mean(axis=(1, 2)) for name, x in maps.items()}


def pytorch_fid(file: File) -> Outputs:
    _, _, taps = run(file, "torch-bilinear")
    return {name: taps[tap] for name, tap in POOLED.items()}


def torchvision(file: File) -> Outputs:
    converted = inception.torchvision(weights())
    prepared = resize.prepared(images(file), resize.convention("torch-bilinear"), models.SIDE)
    logits = jax.jit(lambda v, x: converted.network.apply(v, x)[0])(converted.variables, prepared)
    return {"out/logits": logits}


def tf1_resize(file: File) -> Outputs:
    x, outputs = jnp.asarray(file["in/x"]), {}
    for name in (name for name in file if name.startswith("out/")):
        size, _, align = name.removeprefix("out/").partition("_")
        height, width = (int(side) for side in size.split("x"))

        def matrix(inputs, count, align=align):
            return ops.tf1_bilinear(inputs, count, align_corners=bool(align))

        outputs[name] = ops.resize(x, (height, width), matrix)
    return outputs


def of_bytes(name: str) -> float:
    """Absolute tolerance: 1e-5, and 1e-4 of 255 for resized images."""
    return 1e-4 * 255 if "resized" in name else 1e-5


FAMILIES = {
    "inception_fid_torchfidelity": Family(torch_fidelity, lambda name: 0.0, absolute=of_bytes),
    "inception_fid_pytorchfid": Family(pytorch_fid, lambda name: 0.0, absolute=of_bytes, slow=True),
    "inception_torchvision": Family(torchvision, lambda name: 0.0, absolute=of_bytes),
    "tf1_resize": Family(tf1_resize, lambda name: 0.0, absolute=lambda name: 1e-4 * 255),
}

"""LPIPS: distances by version and layer, features, and the gradient with respect to an image."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.perceptual import lpips, lpips_map
from kd_jax.models.perceptual import alexnet, squeezenet, vgg16
from kd_jax.pretrained import perceptual
from kd_jax.pretrained.convert import Converted
from parity import recipe
from parity.golden import Family, File, Outputs


def module(file: File) -> dict[str, np.ndarray]:
    """The whole module's state dict."""
    keys = file.config["keys"]
    tensors = recipe.tensors({k: v for k, v in keys.items() if not k.startswith("scaling_layer.")})
    for name in [name for name in tensors if name.startswith("lins.")]:
        tensors[name] = tensors[name.replace("lins.", "lin")]
    for name in ("shift", "scale"):
        constants = np.asarray(file.config[name], np.float32).reshape(1, 3, 1, 1)
        tensors[f"scaling_layer.{name}"] = constants
    return tensors


def halves(tensors: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The same tensors, split into torchvision's file and the file of channel weights."""
    trunk = {
        f"features.{name.split('.', 2)[2]}": value
        for name, value in tensors.items()
        if name.startswith("net.")
    }
    return trunk, {k: v for k, v in tensors.items() if k.startswith("lin") and "lins" not in k}


def distances(file: File) -> Outputs:
    tensors = module(file)
    whole, split = perceptual.lpips(tensors), perceptual.lpips(*halves(tensors))
    for a, b in zip(*(jax.tree.leaves(c.variables) for c in (whole, split)), strict=True):
        np.testing.assert_array_equal(a, b)
    unscaled = perceptual.lpips(tensors, scaled=False)
    variables, heads = whole.variables, whole.variables["heads"]
    first, second = jnp.asarray(file["in/in0"]), jnp.asarray(file["in/in1"])

    @jax.jit
    def taps(variables, images):
        return whole.network.apply(variables, images)[1]

    def between(variables, images, others, compare=lpips):
        return compare(taps(variables, images), taps(variables, others), heads)

    a, b = taps(variables, first), taps(variables, second)
    count = len(first)
    column = (count, 1, 1, 1)
    outputs = {
        "out/dist": lpips(a, b, heads).reshape(column),
        "out/dist_baseline_nolin": lpips(a, b).reshape(column),
        "out/dist_spatial": lpips_map(a, b, heads, size=first.shape[1:3])[..., None],
    }
    # Images in [0, 1], which the original rescales to [-1, 1].
    images, others = (2 * ((x + 1) / 2) - 1 for x in (first, second))
    outputs["out/dist_norm01"] = between(variables, images, others).reshape(column)
    plain = jax.jit(lambda v, x: unscaled.network.apply(v, x)[1])
    old = lpips(plain(variables, first), plain(variables, second), heads)
    outputs["out/dist_v00"] = old.reshape(column)
    for index, (tap, weights) in enumerate(heads.items()):
        outputs[f"out/layer{index}"] = lpips(a, b, {tap: weights}).reshape(column)
        outputs[f"out/feat{index}_pooled"] = np.asarray(a[tap], np.float64).mean(axis=(1, 2))
    outputs["out/grad_in0_every4"] = gradient(file, whole)[:, ::4, ::4]
    return outputs


def gradient(file: File, converted: Converted) -> jax.Array:
    """The gradient by the first image, in float64, since it is discontinuous at a ReLU's zero."""
    name = str(file.config["net"])
    with jax.enable_x64(True):
        make = {"vgg": vgg16, "alex": alexnet, "squeeze": squeezenet}[name]
        network = make(**converted.config, dtype=jnp.float64)

        @jax.jit
        @jax.grad
        def of(first, second, variables):
            taps = [network.apply(variables, images)[1] for images in (first, second)]
            return lpips(*taps, variables["heads"]).sum()

        return of(*(file[f"in/in{i}"].astype(np.float64) for i in (0, 1)), converted.variables)


def absolute(name: str) -> float | None:
    return None if "grad" in name else 1e-6


FAMILIES = {"lpips": Family(distances, lambda name: 1e-4, absolute=absolute, slow=True)}

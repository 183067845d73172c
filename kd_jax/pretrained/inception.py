"""Inception-v3's published weights: of the Frechet inception distance, and torchvision's.

The former are those of TensorFlow's network of 2015, in PyTorch's layout, as pytorch-fid and
torch-fidelity publish them under the names in `PUBLISHED`. Torchvision's tensors have the same
names; none of them tells the two networks apart.

The batch normalisation is folded into the convolution before it, in float64.
"""

import os
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import inception
from kd_jax.network import Network
from kd_jax.pretrained.containers import read
from kd_jax.pretrained.convert import Converted, StateDict, Tensors, checked
from kd_jax.types import Array

PUBLISHED = {
    "pytorch-fid": "pt_inception-2015-12-05-6726825d.pth",
    "torch-fidelity": "weights-inception-2015-12-05-6726825d.pth",
}
"""The file's name in each tool's releases; the digits are the beginning of its SHA-256."""

EPSILON = 1e-3  # of every batch normalisation
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_AUXILIARY = ("conv0", "conv1")  # the layers of the second classifier, used in training alone


def is_inception(names: Iterable[str]) -> bool:
    """Whether the tensors are those of an Inception-v3, of whichever source."""
    wanted = {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"}
    return wanted <= set(names)


def load(path: str | os.PathLike[str]) -> Converted:
    """The network of the Frechet inception distance from a file of its tensors.

    Raises:
      ValueError: the file cannot be read, or is not that network's; see `fid`.
    """
    tensors = read(path)
    try:
        if not isinstance(tensors, Mapping):
            raise ValueError(f"not an Inception-v3, but a {type(tensors).__name__}")
        return fid({str(k): v for k, v in tensors.items() if isinstance(v, np.ndarray)})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fid(tensors: StateDict) -> Converted:
    """The network of the Frechet inception distance, `kd_jax.models.inception.fid`.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    return _converted(Tensors(tensors, "an Inception-v3"), inception.fid)


def torchvision(tensors: StateDict) -> Converted:
    """Torchvision's network, `kd_jax.models.inception.torchvision`.

    Its images are in [-1, 1] too. What only training uses (`AuxLogits`) is left out.

    Args:
      tensors: of its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a shape that does not fit; it is named.
    """
    t = Tensors(tensors, "an Inception-v3")
    for layer in _AUXILIARY:
        t.drop(f"AuxLogits.{layer}.conv.weight", f"AuxLogits.{layer}.bn.num_batches_tracked")
        t.drop(*(f"AuxLogits.{layer}.bn.{name}" for name in _STATISTICS))
    t.drop("AuxLogits.fc.weight", "AuxLogits.fc.bias")
    return _converted(t, inception.torchvision)


def _converted(t: Tensors, make: Callable[..., Network]) -> Converted:
    config = {"classes": t.shape("fc.bias")[0]}
    network = make(**config)
    image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    params: dict[str, dict] = {"fc": {"kernel": t.dense("fc.weight"), "bias": t.vector("fc.bias")}}
    for name, layer in shapes.items():
        if name == "fc":
            continue
        if "kernel" in layer:
            params[name] = _folded(t, name, layer["kernel"].shape)
        else:
            params[name] = {
                part: _folded(t, f"{name}.{part}", inner["kernel"].shape)
                for part, inner in layer.items()
            }
    t.done()
    return checked(t.what, Converted(network, {"params": params}, config), image)


def _folded(t: Tensors, source: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """A convolution's kernel and bias, with the normalisation after it."""
    kernel = np.asarray(t.kernel(f"{source}.conv.weight", shape), np.float64)
    t.drop(f"{source}.bn.num_batches_tracked")
    scale, bias, mean, var = (
        t.take(f"{source}.bn.{name}", shape[3:]).astype(np.float64) for name in _STATISTICS
    )
    factor = scale / np.sqrt(var + EPSILON)
    return {
        "kernel": jnp.asarray((kernel * factor).astype(np.float32)),
        "bias": jnp.asarray((bias - mean * factor).astype(np.float32)),
    }

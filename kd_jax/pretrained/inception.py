"""Inception-v3 from the weights of the Frechet inception distance and from torchvision's.

The former are those of TensorFlow's network of 2015 in PyTorch's layout, published by pytorch-fid
and torch-fidelity under the names in `PUBLISHED`. Torchvision's tensors have the same names, which
do not distinguish the two networks.

The batch normalisation is folded into the convolution before it, in float64.
"""

import os
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.network import Network
from kd_jax.core.types import Array
from kd_jax.models import inception
from kd_jax.pretrained.convert import Converted, StateDict, StateDictReader, check_variables
from kd_jax.pretrained.io.containers import read

PUBLISHED = {
    "pytorch-fid": "pt_inception-2015-12-05-6726825d.pth",
    "torch-fidelity": "weights-inception-2015-12-05-6726825d.pth",
}
"""The file's name in each tool's releases; the digits are the start of its SHA-256."""

EPSILON = 1e-3  # of all batch normalisations
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_AUXILIARY = ("conv0", "conv1")  # the layers of the auxiliary classifier, used in training only


def is_inception(names: Iterable[str]) -> bool:
    """Whether the tensors are those of an Inception-v3 of either source."""
    required = {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"}
    return required <= set(names)


def load(path: str | os.PathLike[str]) -> Converted:
    """Loads the network of the Frechet inception distance from a file.

    Raises:
      ValueError: the file cannot be read, or is not of that network; see `fid`.
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
      tensors: its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    return _convert(StateDictReader(tensors, "an Inception-v3"), inception.fid)


def torchvision(tensors: StateDict) -> Converted:
    """Torchvision's network, `kd_jax.models.inception.torchvision`.

    Its images are in [-1, 1], too. The layers used only in training (`AuxLogits`) are left out.

    Args:
      tensors: its state dict.

    Raises:
      ValueError: a tensor is missing, unknown or of a wrong shape; it is named.
    """
    reader = StateDictReader(tensors, "an Inception-v3")
    for layer in _AUXILIARY:
        reader.drop(f"AuxLogits.{layer}.conv.weight", f"AuxLogits.{layer}.bn.num_batches_tracked")
        reader.drop(*(f"AuxLogits.{layer}.bn.{name}" for name in _STATISTICS))
    reader.drop("AuxLogits.fc.weight", "AuxLogits.fc.bias")
    return _convert(reader, inception.torchvision)


def _convert(reader: StateDictReader, make: Callable[..., Network]) -> Converted:
    config = {"classes": reader.shape("fc.bias")[0]}
    network = make(**config)
    image = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    params: dict[str, dict] = {
        "fc": {"kernel": reader.dense("fc.weight"), "bias": reader.vector("fc.bias")}
    }
    for name, layer in shapes.items():
        if name == "fc":
            continue
        if "kernel" in layer:
            params[name] = _fold_norm(reader, name, layer["kernel"].shape)
        else:
            params[name] = {
                part: _fold_norm(reader, f"{name}.{part}", inner["kernel"].shape)
                for part, inner in layer.items()
            }
    reader.check_all_read()
    return check_variables(reader.what, Converted(network, {"params": params}, config), image)


def _fold_norm(reader: StateDictReader, source: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """A convolution's kernel and bias, with the normalisation after it folded in."""
    kernel = np.asarray(reader.kernel(f"{source}.conv.weight", shape), np.float64)
    reader.drop(f"{source}.bn.num_batches_tracked")
    scale, bias, mean, var = (
        reader.take(f"{source}.bn.{name}", shape[3:]).astype(np.float64) for name in _STATISTICS
    )
    factor = scale / np.sqrt(var + EPSILON)
    return {
        "kernel": jnp.asarray((kernel * factor).astype(np.float32)),
        "bias": jnp.asarray((bias - mean * factor).astype(np.float32)),
    }

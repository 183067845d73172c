"""The PyTorch side of `inception_time`: the network of `kd_jax.models.inception.fid` in PyTorch.

Only standard operations are used, with the batch normalisation folded into the convolutions as in
kd_jax. Images are `[B, C, H, W]` here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional


class Inception:
    """Features `[B, 2048]` of images `[B, 3, 299, 299]`.

    Args:
      params: the `params` of `fid`'s variables.
      memory_format: PyTorch's memory format of kernels and images.
      device: PyTorch's device.
    """

    def __init__(self, params: Mapping[str, Any], memory_format: Any, device: str) -> None:
        self.memory_format = memory_format
        self.device = torch.device(device)

        def tensors(tree: Mapping[str, Any]) -> dict[str, Any]:
            if "kernel" not in tree:
                return {name: tensors(inner) for name, inner in tree.items()}
            kernel, bias = (torch.from_numpy(np.array(tree[name])) for name in ("kernel", "bias"))
            if kernel.ndim == 4:
                kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=memory_format)
            return {"kernel": kernel.to(self.device), "bias": bias.to(self.device)}

        self.params = tensors(params)

    def to_inputs(self, images: np.ndarray) -> torch.Tensor:
        """Converts images `[B, H, W, 3]` to the network's inputs."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.memory_format).to(self.device)

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last block's output, averaged over positions."""
        x = _layer(self.params["Conv2d_1a_3x3"], images, stride=2, padding=0)
        x = _layer(self.params["Conv2d_2a_3x3"], x, padding=0)
        x = functional.max_pool2d(_layer(self.params["Conv2d_2b_3x3"], x), 3, 2)
        x = _layer(self.params["Conv2d_3b_1x1"], x)
        x = functional.max_pool2d(_layer(self.params["Conv2d_4a_3x3"], x, padding=0), 3, 2)
        for name, block in _BLOCKS.items():
            x = torch.cat(block(self.params[name], x), dim=1)
        return x.mean(dim=(2, 3))


def _layer(
    params: Mapping[str, torch.Tensor], x: torch.Tensor, stride: int = 1, padding: int | None = None
) -> torch.Tensor:
    kernel = params["kernel"]
    pads = tuple(n // 2 for n in kernel.shape[2:]) if padding is None else padding
    return functional.conv2d(x, kernel, params["bias"], stride, pads).relu_()


def _chain(params: Mapping[str, Any], x: torch.Tensor, *names: str) -> torch.Tensor:
    for name in names:
        x = _layer(params[name], x)
    return x


def _mean(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _block_a(params: Mapping[str, Any], x: torch.Tensor) -> list[torch.Tensor]:
    return [
        _chain(params, x, "branch1x1"),
        _chain(params, x, "branch5x5_1", "branch5x5_2"),
        _chain(params, x, *(f"branch3x3dbl_{i}" for i in (1, 2, 3))),
        _chain(params, _mean(x), "branch_pool"),
    ]


def _block_b(params: Mapping[str, Any], x: torch.Tensor) -> list[torch.Tensor]:
    double = _chain(params, x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        _layer(params["branch3x3"], x, 2, 0),
        _layer(params["branch3x3dbl_3"], double, 2, 0),
        functional.max_pool2d(x, 3, 2),
    ]


def _block_c(params: Mapping[str, Any], x: torch.Tensor) -> list[torch.Tensor]:
    return [
        _chain(params, x, "branch1x1"),
        _chain(params, x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
        _chain(params, x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
        _chain(params, _mean(x), "branch_pool"),
    ]


def _block_d(params: Mapping[str, Any], x: torch.Tensor) -> list[torch.Tensor]:
    sevens = _chain(params, x, *(f"branch7x7x3_{i}" for i in (1, 2, 3)))
    return [
        _layer(params["branch3x3_2"], _chain(params, x, "branch3x3_1"), 2, 0),
        _layer(params["branch7x7x3_4"], sevens, 2, 0),
        functional.max_pool2d(x, 3, 2),
    ]


def _block_e(
    params: Mapping[str, Any], x: torch.Tensor, pool: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    single = _chain(params, x, "branch3x3_1")
    double = _chain(params, x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        _chain(params, x, "branch1x1"),
        *(_chain(params, single, f"branch3x3_2{side}") for side in "ab"),
        *(_chain(params, double, f"branch3x3dbl_3{side}") for side in "ab"),
        _chain(params, pool(x), "branch_pool"),
    ]


_BLOCKS: dict[str, Callable[[Mapping[str, Any], torch.Tensor], list[torch.Tensor]]] = {
    **{f"Mixed_5{letter}": _block_a for letter in "bcd"},
    "Mixed_6a": _block_b,
    **{f"Mixed_6{letter}": _block_c for letter in "bcde"},
    "Mixed_7a": _block_d,
    "Mixed_7b": lambda params, x: _block_e(params, x, _mean),
    "Mixed_7c": lambda params, x: _block_e(params, x, lambda y: functional.max_pool2d(y, 3, 1, 1)),
}

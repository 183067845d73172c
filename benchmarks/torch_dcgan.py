"""The PyTorch side of `step_time`: kd_jax's unconditional DCGAN and its step, written in PyTorch.

Layer for layer `kd_jax.models.dcgan` with `classes=0, depth=0`, and update for update
`kd_jax.make_train_step` with the non-saturating loss. Images are `[B, C, H, W]` here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SMALLEST = 4


class Generator(nn.Module):
    """`latents [B, Z] -> images [B, 3, size, size]` in [-1, 1]; `widths` from 4x4 upwards."""

    def __init__(self, latent: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.dense = nn.Linear(latent, SMALLEST**2 * widths[0], bias=False)
        outs = (*widths[1:], 3)
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=b == 3)
            for a, b in zip(widths, outs, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Generates images; in train mode with batch statistics."""
        # Unflattened in the order H, W, C, as in kd_jax, so that weights can be copied.
        x = self.dense(latents).unflatten(1, (SMALLEST, SMALLEST, -1)).permute(0, 3, 1, 2)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(functional.relu(norm(x), inplace=True))
        return torch.tanh(x)


class Discriminator(nn.Module):
    """`images [B, 3, size, size] -> scores [B]`; `widths` from 4x4 upwards."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        outs = tuple(reversed(widths))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1)
            for a, b in zip((3, *outs[:-1]), outs, strict=True)
        )
        self.dense = nn.Linear(SMALLEST**2 * widths[0], widths[0])
        self.score = nn.Linear(widths[0], 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores images."""
        x = images
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), 0.2, inplace=True)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return self.score(functional.leaky_relu(self.dense(x), 0.2, inplace=True))[:, 0]


class Step(NamedTuple):
    """A training step's scalars, as `kd_jax` names them."""

    d_total: torch.Tensor
    g_total: torch.Tensor
    d_grad_norm: torch.Tensor
    g_grad_norm: torch.Tensor


class Trainer:
    """Both networks, their Adam optimizers, the generator's EMA, and the alternating step.

    Args:
      latent: the latent's length.
      widths: channels at 4x4, 8x8, ..., size/2.
      learning_rate: of both optimizers.
      betas: of both optimizers.
      decay: of the EMA.
      memory_format: `torch.channels_last` or `torch.contiguous_format`, whichever is faster.
    """

    def __init__(
        self,
        *,
        latent: int,
        widths: Sequence[int],
        learning_rate: float,
        betas: tuple[float, float],
        decay: float,
        memory_format: torch.memory_format,
    ) -> None:
        self.latent, self.decay, self.memory_format = latent, decay, memory_format
        self.generator = Generator(latent, widths).to(memory_format=memory_format)
        self.discriminator = Discriminator(widths).to(memory_format=memory_format)
        # The fused Adam is the fastest of PyTorch's three implementations on CPU.
        self.g_optimizer, self.d_optimizer = (
            torch.optim.Adam(net.parameters(), learning_rate, betas, fused=True)
            for net in (self.generator, self.discriminator)
        )
        self.ema = [value.detach().clone() for value in self._averaged_tensors()]

    def load(self, generator: Mapping[str, Any], discriminator: Mapping[str, Any]) -> None:
        """Copies the weights from the `params` of kd_jax's networks."""
        layers = self.generator
        _copy(layers.dense.weight, np.transpose(generator["Dense_0"]["kernel"]))
        for index, (norm, conv) in enumerate(zip(layers.norms, layers.convs, strict=True)):
            _copy(norm.weight, generator[f"BatchNorm_{index}"]["scale"])
            _copy(norm.bias, generator[f"BatchNorm_{index}"]["bias"])
            kernel = generator[f"Conv_{index}"]["kernel"]
            # PyTorch's transposed convolution has its kernel rotated by 180 degrees: IOHW.
            _copy(conv.weight, np.transpose(kernel[::-1, ::-1], (2, 3, 0, 1)))
            if conv.bias is not None:
                _copy(conv.bias, generator[f"Conv_{index}"]["bias"])
        nets = self.discriminator
        for index, conv in enumerate(nets.convs):
            _copy(conv.weight, np.transpose(discriminator[f"Conv_{index}"]["kernel"], (3, 2, 0, 1)))
            _copy(conv.bias, discriminator[f"Conv_{index}"]["bias"])
        for layer, name in ((nets.dense, "Dense_0"), (nets.score, "score")):
            _copy(layer.weight, np.transpose(discriminator[name]["kernel"]))
            _copy(layer.bias, discriminator[name]["bias"])
        for average, value in zip(self.ema, self._averaged_tensors(), strict=True):
            average.copy_(value.detach())

    def step(self, images: torch.Tensor, latents: torch.Tensor | None = None) -> Step:
        """The discriminator's update, then the generator's, on different generated images.

        Args:
          images: `[B, 3, size, size]`.
          latents: `[B, latent]` for both updates, in the check; by default each draws its own.
        """
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self.generator(self._latents(images, latents))
        d_total = (
            functional.softplus(-self.discriminator(images)).mean()
            + functional.softplus(self.discriminator(fake)).mean()
        )
        d_grad_norm = _apply_update(d_total, self.discriminator, self.d_optimizer)

        self.discriminator.requires_grad_(False)  # avoids its kernel gradients in this update
        fake = self.generator(self._latents(images, latents))
        g_total = functional.softplus(-self.discriminator(fake)).mean()
        g_grad_norm = _apply_update(g_total, self.generator, self.g_optimizer)
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, list(self._averaged_tensors()), 1.0 - self.decay)
        return Step(d_total.detach(), g_total.detach(), d_grad_norm, g_grad_norm)

    def _latents(self, images: torch.Tensor, latents: torch.Tensor | None) -> torch.Tensor:
        return torch.randn(len(images), self.latent) if latents is None else latents

    def _averaged_tensors(self) -> list[torch.Tensor]:
        """The averaged tensors: parameters and batch statistics, as in kd_jax."""
        values = [*self.generator.parameters(), *self.generator.buffers()]
        return [value for value in values if value.is_floating_point()]


def count(net: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in net.parameters())


def _apply_update(
    total: torch.Tensor, net: nn.Module, optimizer: torch.optim.Optimizer
) -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    norms = torch._foreach_norm([p.grad for p in net.parameters()])
    optimizer.step()
    return torch.linalg.vector_norm(torch.stack(norms))


def _copy(parameter: torch.Tensor, value: Any) -> None:
    if tuple(parameter.shape) != np.shape(value):
        raise ValueError(f"weight {np.shape(value)} does not fit {tuple(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(value)))

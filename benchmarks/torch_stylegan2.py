"""The PyTorch side of `stylegan2_time`: kd_jax's StyleGAN2 and its step, written in PyTorch.

Layer for layer the skip generator and the residual discriminator of `kd_jax.models.stylegan2.gan`
without labels, and update for update `kd_jax.make_train_step` with the non-saturating loss, with or
without R1. Only standard operations are used. Images are `[B, C, H, W]` here.

The gain of a leaky ReLU is multiplied into the preceding weights, noise and biases, which is
equivalent and saves a pass over the image.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SMALLEST = 4
MAPPING_DEPTH, MAPPING_RATE, AVERAGE_DECAY = 8, 0.01, 0.998
SLOPE, GAIN = 0.2, math.sqrt(2)  # of the leaky ReLU
RESIDUAL = math.sqrt(0.5)
STDDEV_GROUP = 4

ModulatedConv: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool], torch.Tensor
]
"""`(x [B, I, H, W], weight, styles [B, I], norms [B, O] or None, up)`: a modulated convolution.

The weight is `[O, I, k, k]`, or `[I, O, k, k]` for a transposed convolution; the outputs are
multiplied by `norms`.
"""


def scale_images(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    norms: torch.Tensor | None,
    up: bool,
) -> torch.Tensor:
    """A modulated convolution that scales the images, before and after the convolution."""
    x = x * styles[:, :, None, None]
    x = _convolve(x, weight, up)
    return x if norms is None else x * norms[:, :, None, None]


def group_kernels(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    norms: torch.Tensor | None,
    up: bool,
) -> torch.Tensor:
    """A modulated convolution that scales the kernels: a grouped one, with a group per example."""
    batch = len(x)
    inputs = styles[:, :, None, None, None] if up else styles[:, None, :, None, None]
    kernels = weight[None] * inputs
    if norms is not None:
        kernels = kernels * (norms[:, None, :, None, None] if up else norms[:, :, None, None, None])
    x = _convolve(x.reshape(1, -1, *x.shape[2:]), kernels.flatten(0, 1), up, batch)
    return x.reshape(batch, -1, *x.shape[2:])


def _convolve(x: torch.Tensor, weight: torch.Tensor, up: bool, groups: int = 1) -> torch.Tensor:
    if up:
        return functional.conv_transpose2d(x, weight, stride=2, groups=groups)
    return functional.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)


class Filter(nn.Module):
    """The filter (1, 3, 3, 1) along both axes; fastest as a depthwise convolution."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", gain * weights[:, None] * weights[None], persistent=False)

    def forward(self, x: torch.Tensor, padding: int, stride: int = 1) -> torch.Tensor:
        """Pads images with zeros and filters them, with this stride."""
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        return functional.conv2d(x, kernel, padding=padding, stride=stride, groups=channels)

    def upsample(self, x: torch.Tensor) -> torch.Tensor:
        """Upsamples images by 2."""
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        return functional.conv_transpose2d(x, kernel, padding=1, stride=2, groups=channels)


class Dense(nn.Module):
    """An equalized layer; `rate` multiplies weights and biases."""

    def __init__(
        self, ins: int, outs: int, *, rate: float = 1.0, bias: float = 0.0, act: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outs, ins) / rate)
        self.bias = nn.Parameter(torch.full((outs,), bias / rate))
        self.act = act
        self.beta = rate * (GAIN if act else 1.0)
        self.alpha = self.beta / math.sqrt(ins)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, ins]` to `[B, outs]`."""
        x = torch.addmm(self.bias, x, self.weight.t(), beta=self.beta, alpha=self.alpha)
        return functional.leaky_relu(x, SLOPE, inplace=True) if self.act else x


class StyleMapping(nn.Module):
    """Latents to styles, and the styles' running mean."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        for index in range(MAPPING_DEPTH):
            self.add_module(f"fc{index}", Dense(latent, latent, rate=MAPPING_RATE, act=True))
        self.register_buffer("w_avg", torch.zeros(latent))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`[B, latent]` to `[B, latent]`."""
        x = latents * (latents.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for index in range(MAPPING_DEPTH):
            x = self.get_submodule(f"fc{index}")(x)
        return x


class SynthesisLayer(nn.Module):
    """A modulated convolution, noise, bias and activation."""

    def __init__(
        self, ins: int, outs: int, style: int, side: int, up: bool, modulated_conv: ModulatedConv
    ) -> None:
        super().__init__()
        self.up, self.modulated_conv = up, modulated_conv
        self.affine = Dense(style, ins, bias=1.0)
        self.weight = nn.Parameter(torch.randn((ins, outs, 3, 3) if up else (outs, ins, 3, 3)))
        self.bias = nn.Parameter(torch.zeros(outs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(side, side))
        if up:
            self.filter = Filter(gain=4.0)

    def forward(self, x: torch.Tensor, w: torch.Tensor, random: bool) -> torch.Tensor:
        """`[B, ins, H, W]` to `[B, outs, side, side]`."""
        styles = self.affine(w)
        squares = self.weight.square().sum((2, 3))
        norms = (styles.square() @ (squares if self.up else squares.t()) + 1e-8).rsqrt() * GAIN
        x = self.modulated_conv(x, self.weight, styles, norms, self.up)
        if self.up:
            x = self.filter(x, padding=1)
        noise = self.noise_const
        if random:
            noise = torch.randn(len(x), 1, *x.shape[2:], device=x.device)
        x = x + noise * (self.noise_strength * GAIN)  # a new tensor: x may be a view
        x = x.add_((self.bias * GAIN)[:, None, None])
        return functional.leaky_relu(x, SLOPE, inplace=True)


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to an image, without demodulation."""

    def __init__(self, ins: int, style: int, modulated_conv: ModulatedConv) -> None:
        super().__init__()
        self.modulated_conv = modulated_conv
        self.affine = Dense(style, ins, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, ins, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """`[B, ins, H, W]` to `[B, 3, H, W]`."""
        styles = self.affine(w) / math.sqrt(x.shape[1])
        return self.modulated_conv(x, self.weight, styles, None, False) + self.bias[:, None, None]


class SynthesisBlock(nn.Module):
    """The layers at one resolution; at the smallest, a constant replaces the first layer."""

    def __init__(
        self, ins: int, outs: int, style: int, side: int, modulated_conv: ModulatedConv
    ) -> None:
        super().__init__()
        self.first = side == SMALLEST
        if self.first:
            self.const = nn.Parameter(torch.randn(outs, side, side))
        else:
            self.conv0 = SynthesisLayer(ins, outs, style, side, True, modulated_conv)
            self.filter = Filter(gain=4.0)
        self.conv1 = SynthesisLayer(outs, outs, style, side, False, modulated_conv)
        self.torgb = ToRGB(outs, style, modulated_conv)

    def forward(
        self, x: torch.Tensor | None, image: torch.Tensor | None, w: torch.Tensor, random: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The features and the image at this resolution."""
        if x is None or image is None:
            x = self.conv1(self.const.repeat(len(w), 1, 1, 1), w, random)
            return x, self.torgb(x, w)
        x = self.conv1(self.conv0(x, w, random), w, random)
        return x, self.filter.upsample(image) + self.torgb(x, w)


class Generator(nn.Module):
    """`latents [B, latent] -> images [B, 3, size, size]`; `widths` from 4x4 upwards."""

    def __init__(self, latent: int, widths: tuple[int, ...], modulated_conv: ModulatedConv) -> None:
        super().__init__()
        self.mapping = StyleMapping(latent)
        self.synthesis = nn.ModuleDict()
        before = 0
        for index, width in enumerate(widths):
            side = SMALLEST << index
            self.synthesis[f"b{side}"] = SynthesisBlock(before, width, latent, side, modulated_conv)
            before = width

    def forward(
        self, latents: torch.Tensor, random: bool = False, average: bool = False
    ) -> torch.Tensor:
        """Generates images.

        Args:
          latents: `[B, latent]`.
          random: whether the noise is random instead of constant.
          average: whether to update the styles' running mean.
        """
        w = self.mapping(latents)
        if average:
            self.mapping.w_avg.lerp_(w.detach().mean(0), 1.0 - AVERAGE_DECAY)
        x = image = None
        for block in self.synthesis.values():
            x, image = block(x, image, w, random)
        return image


class Convolution(nn.Module):
    """An equalized convolution, with a bias and a leaky ReLU or with neither.

    `gain` is multiplied into the output.
    """

    def __init__(
        self, ins: int, outs: int, kernel: int, *, act: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.act = act
        self.weight = nn.Parameter(torch.randn(outs, ins, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outs)) if act else None
        self.gain = gain * (GAIN if act else 1.0)
        self.scale = self.gain / math.sqrt(ins * kernel**2)

    def forward(self, x: torch.Tensor, padding: int = 0, stride: int = 1) -> torch.Tensor:
        """As `conv2d`."""
        bias = None if self.bias is None else self.bias * self.gain
        weight = self.weight * self.scale
        x = functional.conv2d(x, weight, bias, padding=padding, stride=stride)
        return functional.leaky_relu(x, SLOPE, inplace=True) if self.act else x


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second of which halves the resolution, and a shortcut."""

    def __init__(self, ins: int, outs: int, first: bool) -> None:
        super().__init__()
        if first:
            self.fromrgb = Convolution(3, ins, 1)
        self.conv0 = Convolution(ins, ins, 3)
        self.conv1 = Convolution(ins, outs, 3, gain=RESIDUAL)
        self.skip = Convolution(ins, outs, 1, act=False, gain=RESIDUAL)
        self.filter = Filter()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, or an image, to features of half the resolution."""
        if self.first:
            x = self.fromrgb(x)
        y = self.skip(self.filter(x, padding=1, stride=2))
        x = self.filter(self.conv0(x, padding=1), padding=2)
        return y.add_(self.conv1(x, stride=2))


class Epilogue(nn.Module):
    """The layers from 4x4 to the score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Convolution(width + 1, width, 3)
        self.fc = Dense(SMALLEST**2 * width, width, act=True)
        self.out = Dense(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, width, 4, 4]` to `[B]`."""
        batch, _, *sides = x.shape
        group = min(STDDEV_GROUP, batch)
        variance = x.reshape(group, batch // group, *x.shape[1:]).var(0, correction=0)
        deviation = (variance + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
        deviation = deviation[:, None, None, None].expand(-1, -1, *sides)
        x = self.conv(torch.cat([x, deviation], 1), padding=1)
        # Features are flattened in the order H, W, C, as in kd_jax, so that weights can be copied.
        return self.out(self.fc(x.permute(0, 2, 3, 1).flatten(1)))[:, 0]


class Discriminator(nn.Module):
    """`images [B, 3, size, size] -> scores [B]`; `widths` from 4x4 upwards."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        for index in reversed(range(1, len(widths))):
            first = index == len(widths) - 1
            block = DiscriminatorBlock(widths[index], widths[index - 1], first)
            self.add_module(f"b{SMALLEST << index}", block)
        self.b4 = Epilogue(widths[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores images."""
        for block in self.children():
            x = block(x)
        return x


class Step(NamedTuple):
    """A training step's scalars, as `kd_jax` names them."""

    d_total: torch.Tensor
    g_total: torch.Tensor
    d_grad_norm: torch.Tensor
    g_grad_norm: torch.Tensor


class Trainer:
    """Both networks, their Adam optimizers, the generator's EMA, and the alternating step.

    Args:
      latent: the length of latents and styles.
      widths: channels at 4x4, 8x8, ..., size.
      learning_rate: of both optimizers.
      betas: of both optimizers.
      decay: of the EMA.
      modulated_conv: `scale_images` or `group_kernels`, whichever is faster.
      memory_format: `torch.channels_last` or `torch.contiguous_format`, whichever is faster; a
        generator with `group_kernels` always uses the latter.
      device: the device of networks and data.
      compiled: whether to use `torch.compile`, except in R1's pass: it does not support second
        derivatives.
    """

    def __init__(
        self,
        *,
        latent: int,
        widths: tuple[int, ...],
        learning_rate: float,
        betas: tuple[float, float],
        decay: float,
        modulated_conv: ModulatedConv,
        memory_format: torch.memory_format,
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        self.latent, self.decay = latent, decay
        self.device, self.memory_format = torch.device(device), memory_format
        self.generator = Generator(latent, widths, modulated_conv)
        self.discriminator = Discriminator(widths)
        self.discriminator.to(device=self.device, memory_format=memory_format)
        # Grouped convolutions need channels first: with channels last, torch 2.13.0 computes wrong
        # gradients of their 1x1 kernels on CPU.
        channels_first = modulated_conv is group_kernels
        self.generator.to(
            device=self.device,
            memory_format=torch.contiguous_format if channels_first else memory_format,
        )
        if compiled:  # one program each, with and without gradients of images or parameters
            torch._dynamo.config.cache_size_limit = 64
        self.generate: Any = torch.compile(self.generator) if compiled else self.generator
        self.score: Any = torch.compile(self.discriminator) if compiled else self.discriminator
        # The fused Adam is the fastest of PyTorch's three implementations.
        self.g_optimizer, self.d_optimizer = (
            torch.optim.Adam(net.parameters(), learning_rate, betas, fused=True)
            for net in (self.generator, self.discriminator)
        )
        # Parameters, constant noise and the styles' running mean, as in kd_jax.
        self.averaged = list(self.generator.state_dict().values())
        self.ema = [value.clone() for value in self.averaged]

    def load(self, generator: Mapping[str, Any], discriminator: Mapping[str, Any]) -> None:
        """Resets the training to the variables of kd_jax's networks.

        Args:
          generator: arrays by path, `params/mapping/fc0/weight`, ...
          discriminator: arrays by path.

        Raises:
          ValueError: the names or shapes differ from those of the networks here.
        """
        _load(self.generator, generator)
        _load(self.discriminator, discriminator)
        for average, value in zip(self.ema, self.averaged, strict=True):
            average.copy_(value)
        for optimizer in (self.g_optimizer, self.d_optimizer):
            optimizer.state.clear()

    def step(
        self,
        images: torch.Tensor,
        latents: torch.Tensor | None = None,
        *,
        gamma: float = 0.0,
    ) -> Step:
        """The discriminator's update, then the generator's, on different generated images.

        Args:
          images: `[B, 3, size, size]`.
          latents: `[B, latent]` for both updates, which then use constant noise, for comparison.
            By default each update draws its own latents and noise.
          gamma: R1's weight (Mescheder et al. 2018, eq. 9); 0 for none.
        """
        random = latents is None
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self.generate(self._latents(images, latents), random)
        if gamma:
            real = images.detach().requires_grad_(True)
            real_scores = self.discriminator(real)
            (slope,) = torch.autograd.grad(real_scores.sum(), real, create_graph=True)
            penalty = gamma * slope.square().sum((1, 2, 3)).mean() / 2
        else:
            real_scores, penalty = self.score(images), 0.0
        d_total = (
            functional.softplus(-real_scores).mean()
            + functional.softplus(self.score(fake)).mean()
            + penalty
        )
        d_grad_norm = _apply_update(d_total, self.discriminator, self.d_optimizer)

        self.discriminator.requires_grad_(False)  # avoids its kernel gradients in this update
        fake = self.generate(self._latents(images, latents), random, average=True)
        g_total = functional.softplus(-self.score(fake)).mean()
        g_grad_norm = _apply_update(g_total, self.generator, self.g_optimizer)
        torch._foreach_lerp_(self.ema, self.averaged, 1.0 - self.decay)
        return Step(d_total.detach(), g_total.detach(), d_grad_norm, g_grad_norm)

    @torch.inference_mode()
    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """The generator's images with constant noise."""
        return self.generate(latents)

    def to_inputs(self, values: np.ndarray) -> torch.Tensor:
        """Converts images `[B, H, W, 3]` or latents to the networks' inputs."""
        tensor = torch.from_numpy(values).to(self.device)
        if tensor.ndim < 4:
            return tensor
        return tensor.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)

    def _latents(self, images: torch.Tensor, latents: torch.Tensor | None) -> torch.Tensor:
        if latents is not None:
            return latents
        return torch.randn(len(images), self.latent, device=self.device)


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


def _load(net: nn.Module, variables: Mapping[str, Any]) -> None:
    arrays = {path.partition("/")[2].replace("/", "."): value for path, value in variables.items()}
    tensors = net.state_dict()
    if arrays.keys() != tensors.keys():
        raise ValueError(f"{sorted(arrays.keys() ^ tensors.keys())} are variables of one side only")
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        up = getattr(net.get_submodule(prefix), "up", False)
        value = _to_torch_layout(last, np.asarray(arrays[name]), up)
        if value.shape != tuple(tensor.shape):
            raise ValueError(f"{name} {value.shape} does not fit {tuple(tensor.shape)}")
        tensor.copy_(torch.from_numpy(value.copy()))


def _to_torch_layout(name: str, value: np.ndarray, up: bool) -> np.ndarray:
    """A variable of kd_jax in PyTorch's order of axes."""
    if name == "const":
        return np.transpose(value, (2, 0, 1))
    if name != "weight" or value.ndim < 4:
        return value.T if name == "weight" else value
    # PyTorch's transposed convolution has its kernel rotated by 180 degrees: IOHW.
    return (
        np.transpose(value[::-1, ::-1], (2, 3, 0, 1)) if up else np.transpose(value, (3, 2, 0, 1))
    )

"""Convolutions that resample, and convolutions with a different kernel for each example."""

import jax
import jax.numpy as jnp

from kd_jax.core.checks import at_least_float32
from kd_jax.core.types import Array
from kd_jax.ops.convolution import conv, conv_transpose
from kd_jax.ops.primitive import is_portable
from kd_jax.ops.resample import Filter, Pads, filter_shape, pads_of, upfirdn2d


def conv_resample(
    x: Array,
    kernel: Array,
    taps: Filter = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Pads = 0,
    groups: int = 1,
) -> Array:
    """Upsamples with a filter, correlates with a kernel, and downsamples with the filter.

    The three operations commute. An upsampling convolution therefore works on the small image (a
    transposed convolution, then the filter), and a downsampling one computes only the outputs that
    remain; a 1x1 kernel works on the small image in both cases. Karras et al. 2020 (StyleGAN2),
    section 2.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin / groups, Cout]`, used for a correlation, as in `conv`. StyleGAN2's
        upsampling layers need it flipped, `kernel[::-1, ::-1]`.
      taps: the filter, used for a convolution; its gain is `up` in each axis.
      up: the factor of upsampling.
      down: the factor of downsampling.
      padding: zeros in pixels of the upsampled image, in addition to those that keep the filtered
        image's size: `kh // 2` for `[B, H up / down, W up / down, Cout]`.
      groups: number of channel groups.

    Returns:
      `[B, H', W', Cout]`, of x's dtype.

    Raises:
      ValueError: the shapes do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2] * groups:
        raise ValueError(
            f"conv_resample: images {x.shape}, a kernel {kernel.shape} and {groups} groups do not "
            "fit; expected [B, H, W, Cin] and [kh, kw, Cin / groups, Cout]"
        )
    if groups > 1:
        if kernel.shape[3] % groups:
            raise ValueError(f"{groups} groups do not divide the {kernel.shape[3]} outputs")
        split = x.reshape(*x.shape[:3], groups, kernel.shape[2])
        kernels = kernel.reshape(*kernel.shape[:3], groups, kernel.shape[3] // groups)

        def convolve_group(x: Array, kernel: Array) -> Array:
            return conv_resample(x, kernel, taps, up=up, down=down, padding=padding)

        y = jax.vmap(convolve_group, in_axes=(3, 3), out_axes=3)(split, kernels)
        return y.reshape(*y.shape[:3], kernel.shape[3])

    pads = []
    for size, (before, after) in zip(filter_shape(taps), pads_of(padding), strict=True):
        if up > 1:
            before, after = before + (size + up - 1) // 2, after + (size - up) // 2
        if down > 1:
            before, after = before + (size - down + 1) // 2, after + (size - down) // 2
        pads.append((before, after))
    sides = kernel.shape[:2]
    if up == down == 1:
        return conv(x, kernel, padding=pads)
    if sides == (1, 1) and down > 1 and up == 1:
        return conv(upfirdn2d(x, taps, down=down, padding=(pads[0], pads[1])), kernel)
    if down > 1 and up == 1:
        x = upfirdn2d(x, taps, padding=(pads[0], pads[1]))
        return conv(x, kernel, stride=down, padding="VALID")
    if down == 1:
        if sides == (1, 1):
            x = conv(x, kernel)
            return upfirdn2d(x, taps, up=up, padding=(pads[0], pads[1]), gain=up**2)
        x = conv_transpose(x, kernel, stride=up, padding="VALID")
        # It already has kernel - 1 zeros on either side, without those after the last pixel.
        extra = [max(k, up) - k for k in sides]
        inner = [
            (before - (k - 1), after - (k - 1) + up - 1 - more)
            for (before, after), k, more in zip(pads, sides, extra, strict=True)
        ]
        return upfirdn2d(x, taps, padding=(inner[0], inner[1]), gain=up**2)
    x = upfirdn2d(x, taps, up=up, padding=(pads[0], pads[1]), gain=up**2)
    return upfirdn2d(conv(x, kernel, padding="VALID"), taps, down=down)


def modulated_conv(
    x: Array,
    kernel: Array,
    styles: Array,
    taps: Filter = None,
    *,
    demodulate: bool = True,
    normalize: bool = False,
    input_gain: Array | float = 1.0,
    up: int = 1,
    down: int = 1,
    padding: Pads = 0,
    fused: bool = False,
) -> Array:
    """A convolution with the kernel's input channels scaled for each example.

    Karras et al. 2020 (StyleGAN2), eqs. 1 and 3: demodulation divides each output channel by the
    norm of its scaled kernel. Scaling the images instead of the kernels is equivalent and needs a
    single convolution for the batch; it is faster on every platform if there is memory for it.

    Args:
      x: `[B, H, W, Cin]`.
      kernel: `[kh, kw, Cin, Cout]`.
      styles: `[B, Cin]`.
      taps: the filter, if it resamples (`conv_resample`).
      demodulate: whether to divide by the norm.
      normalize: whether to scale each kernel, and all styles together, to a mean square of 1 first
        (Karras et al. 2021, StyleGAN3), which changes only the range of intermediate values.
        Ignored without `demodulate`.
      input_gain: factor of x that the norm does not include. A scalar or `[Cin]`.
      up: as in `conv_resample`.
      down: as in `conv_resample`.
      padding: as in `conv_resample`.
      fused: whether to scale the kernels, with one convolution per example.

    Returns:
      `[B, H', W', Cout]`, of x's dtype.

    Raises:
      ValueError: the shapes do not fit.
    """
    if x.ndim != 4 or kernel.ndim != 4 or styles.shape != (x.shape[0], kernel.shape[2]):
        raise ValueError(
            f"modulated_conv: images {x.shape}, a kernel {kernel.shape} and styles {styles.shape} "
            "do not fit; expected [B, H, W, Cin], [kh, kw, Cin, Cout] and [B, Cin]"
        )
    kernel, styles = at_least_float32(kernel), at_least_float32(styles)
    if normalize and demodulate:
        mean_square = (kernel**2).mean(axis=(0, 1, 2), keepdims=True)
        kernel = kernel * jax.lax.rsqrt(mean_square)
        styles = styles * jax.lax.rsqrt((styles**2).mean())
    norms = None
    if demodulate:
        squares = (kernel**2).sum(axis=(0, 1))
        norms = jax.lax.rsqrt(jnp.matmul(styles**2, squares, precision="highest") + 1e-8)
    gain = jnp.broadcast_to(at_least_float32(input_gain), styles.shape[1:])
    styles = styles * gain[None]

    # A convolution per example has the batch as its number of groups, which other formats fix.
    if fused and not is_portable():
        kernels = kernel[None] * styles[:, None, None, :, None]
        if norms is not None:
            kernels = kernels * norms[:, None, None, None]

        def convolve_example(x: Array, kernel: Array) -> Array:
            y = conv_resample(x[None], kernel, taps, up=up, down=down, padding=padding)
            return y[0]

        return jax.vmap(convolve_example)(x, kernels.astype(x.dtype))
    x = x * styles.astype(x.dtype)[:, None, None]
    x = conv_resample(x, kernel.astype(x.dtype), taps, up=up, down=down, padding=padding)
    return x if norms is None else x * norms.astype(x.dtype)[:, None, None]

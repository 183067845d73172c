"""Decimation and interpolation of waveforms by a windowed sinc.

The filter is that of `scipy.signal.resample_poly`: 20 times the factor plus one tap long, with a
Kaiser window of beta 5. A waveform is 0 beyond its ends.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.types import Array

_HALF = 10  # half of the filter's length, in samples at the low rate
_BETA = 5.0


def decimate(waves: Array, factor: int) -> Array:
    """Low-pass filters waveforms and keeps every `factor`-th sample.

    Args:
      waves: `[B, L, C]`.
      factor: divides L.

    Returns:
      `[B, L / factor, C]`.

    Raises:
      ValueError: the waveforms are not 3-D, or the factor does not divide their length.
    """
    _check(waves, factor)
    if waves.shape[1] % factor:
        raise ValueError(f"waves of {waves.shape[1]} samples are not a multiple of factor={factor}")
    half = _HALF * factor
    return _filter(waves, _window(factor), stride=factor, padding=(half, half))


def interpolate(waves: Array, factor: int) -> Array:
    """Band-limited interpolation to `factor` times the rate.

    The result has no content above half the low rate: the baseline of bandwidth extension.

    Args:
      waves: `[B, l, C]`.
      factor: at least 1.

    Returns:
      `[B, factor l, C]`.

    Raises:
      ValueError: the waveforms are not 3-D, or the factor is less than 1.
    """
    _check(waves, factor)
    half = _HALF * factor
    padding = (half, half + factor - 1)
    return _filter(waves, factor * _window(factor), dilation=factor, padding=padding)


def _check(waves: Array, factor: int) -> None:
    if waves.ndim != 3 or factor < 1:
        raise ValueError(f"waves [B, L, C] are needed, not {waves.shape}, and factor={factor} >= 1")


def _window(factor: int) -> np.ndarray:
    """The low-pass filter `[taps]`, with sum 1."""
    positions = np.arange(-_HALF * factor, _HALF * factor + 1)
    taps = np.sinc(positions / factor) * np.kaiser(len(positions), _BETA)
    return taps / taps.sum()


def _filter(
    waves: Array, taps: np.ndarray, *, padding: tuple[int, int], stride: int = 1, dilation: int = 1
) -> Array:
    batch, length, channels = waves.shape
    columns = waves.swapaxes(1, 2).reshape(batch * channels, length, 1)
    outputs = jax.lax.conv_general_dilated(
        columns,
        jnp.asarray(taps, waves.dtype)[:, None, None],
        (stride,),
        (padding,),
        lhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return outputs.reshape(batch, channels, -1).swapaxes(1, 2)

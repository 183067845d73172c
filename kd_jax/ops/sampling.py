"""Waveforms at lower and higher rates, by a windowed sinc.

The filter is that of `scipy.signal.resample_poly`: 20 times the factor long and one tap more, in a
Kaiser window of beta 5. Beyond its ends a waveform is 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Array

_HALF = 10  # of the filter's length, in samples at the low rate
_BETA = 5.0


def decimated(waves: Array, factor: int) -> Array:
    """Every `factor`-th sample, after what the lower rate cannot hold was filtered out.

    Args:
      waves: `[B, L, C]`.
      factor: divides L.

    Returns:
      `[B, L / factor, C]`.

    Raises:
      ValueError: they are no waveforms, or the factor does not divide their length.
    """
    _check(waves, factor)
    if waves.shape[1] % factor:
        raise ValueError(f"waves of {waves.shape[1]} samples are no multiple of factor={factor}")
    half = _HALF * factor
    return _filtered(waves, _window(factor), stride=factor, padding=(half, half))


def interpolated(waves: Array, factor: int) -> Array:
    """`factor` samples for each, of a signal that holds nothing above the low rate's half.

    What bandwidth extension has to beat.

    Args:
      waves: `[B, l, C]`.
      factor: at least 1.

    Returns:
      `[B, factor l, C]`.

    Raises:
      ValueError: they are no waveforms, or the factor is less than 1.
    """
    _check(waves, factor)
    half = _HALF * factor
    padding = (half, half + factor - 1)
    return _filtered(waves, factor * _window(factor), dilation=factor, padding=padding)


def _check(waves: Array, factor: int) -> None:
    if waves.ndim != 3 or factor < 1:
        raise ValueError(f"waves [B, L, C] are needed, not {waves.shape}, and factor={factor} >= 1")


def _window(factor: int) -> np.ndarray:
    """`[taps]`, of sum 1."""
    places = np.arange(-_HALF * factor, _HALF * factor + 1)
    taps = np.sinc(places / factor) * np.kaiser(len(places), _BETA)
    return taps / taps.sum()


def _filtered(
    waves: Array, taps: np.ndarray, *, padding: tuple[int, int], stride: int = 1, dilation: int = 1
) -> Array:
    batch, length, channels = waves.shape
    columns = waves.swapaxes(1, 2).reshape(batch * channels, length, 1)
    made = jax.lax.conv_general_dilated(
        columns,
        jnp.asarray(taps, waves.dtype)[:, None, None],
        (stride,),
        (padding,),
        lhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return made.reshape(batch, channels, -1).swapaxes(1, 2)

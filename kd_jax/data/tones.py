"""Synthesised tones of a plucked string: an unlimited supply of waveforms, without recordings.

draw = partial(plucked, length=1024)
batches = generated_batches(draw, batch_size=32, seed=0, name="plucked 1024")
"""

import numpy as np

PITCHES = (110.0, 440.0)
"""The range of the fundamentals in Hz, A2 to A4."""

_HARMONICS = 32


def plucked(
    random: np.random.Generator, count: int, *, length: int = 1024, rate: int = 8000
) -> dict[str, np.ndarray]:
    """Ideal strings, plucked at a random point; a tone starts at a random time after the pluck.

    A string plucked at the fraction p of its length has harmonics of amplitudes
    sin(pi k p) / k^2, all in phase (Fletcher & Rossing 1998, section 2.7). Harmonics decay
    exponentially, at a rate proportional to k; those above half the sampling rate are omitted.

    Args:
      random: the random generator.
      count: the number of tones.
      length: the number of samples of each tone.
      rate: the sampling rate in Hz.

    Returns:
      `wave` `[count, length, 1]` float32 in [-1, 1], and `pitch` `[count]` float32 in Hz, uniform
      on a logarithmic scale over `PITCHES`.

    Raises:
      ValueError: the rate is too low for the highest fundamental, or the length is not positive.
    """
    if rate <= 2 * PITCHES[1] or length < 1:
        raise ValueError(
            f"rate={rate} must be above {2 * PITCHES[1]:g} and length={length} at least 1"
        )
    low, high = np.log(PITCHES)
    pitch = np.exp(random.uniform(low, high, (count, 1, 1)))
    place = random.uniform(0.05, 0.5, (count, 1, 1))
    decay = random.uniform(1.0, 4.0, (count, 1, 1))
    start = random.uniform(0.0, 0.1, (count, 1, 1))
    number = np.arange(1, _HARMONICS + 1)[None, :, None]
    time = start + np.arange(length)[None, None, :] / rate
    amplitude = np.sin(np.pi * number * place) / number**2 * (number * pitch < rate / 2)
    waves = amplitude * np.exp(-decay * number * time) * np.sin(2 * np.pi * number * pitch * time)
    wave = waves.sum(axis=1)
    loudness = random.uniform(0.3, 1.0, (count, 1)) / np.abs(wave).max(axis=1, keepdims=True)
    return {
        "wave": (wave * loudness)[..., None].astype(np.float32),
        "pitch": pitch[:, 0, 0].astype(np.float32),
    }

"""Synthesised tones: pitch, harmonics, and generated batches that never repeat."""

import itertools
from functools import partial

import numpy as np
import pytest

from kd_jax.data import generated_batches, tones

RATE = 8000


def plucked(count=40, length=8192, seed=0, **options):
    return tones.plucked(np.random.default_rng(seed), count, length=length, rate=RATE, **options)


def test_shapes_and_ranges():
    batch = plucked()
    assert batch["wave"].shape == (40, 8192, 1)
    assert batch["wave"].dtype == batch["pitch"].dtype == np.float32
    loudest = np.abs(batch["wave"]).max(axis=(1, 2))
    assert (loudest <= 1).all()
    assert (loudest >= 0.299).all()
    assert (batch["pitch"] >= 110).all()
    assert (batch["pitch"] <= 440).all()
    assert batch["pitch"].std() > 50


def test_energy_is_at_multiples_of_the_pitch():
    batch = plucked()
    spectra = np.abs(np.fft.rfft(batch["wave"][:, :, 0] * np.hanning(8192), axis=1)) ** 2
    frequencies = np.fft.rfftfreq(8192, 1 / RATE)
    for spectrum, pitch in zip(spectra, batch["pitch"], strict=True):
        distance = np.abs(frequencies - pitch * np.rint(frequencies / pitch))
        assert spectrum[(distance < 6) & (frequencies > 50)].sum() > 0.999 * spectrum.sum()
        # Low harmonics are the loudest: amplitudes decrease with the square of their number.
        first = spectrum[np.abs(frequencies - pitch) < 6].sum()
        tenth = spectrum[np.abs(frequencies - 10 * pitch) < 6].sum()
        assert tenth < 0.01 * first


def test_tones_are_a_function_of_the_seed():
    first, again, other = (plucked(3, 64, seed)["wave"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_low_rate_or_no_samples_is_an_error():
    for options in ({"rate": 880}, {"length": 0}):
        with pytest.raises(ValueError, match="rate="):
            tones.plucked(np.random.default_rng(0), 2, **options)


def take(count, **options):
    iterator = generated_batches(partial(tones.plucked, length=16), 4, 3, name="tones", **options)
    return [batch["wave"] for batch in itertools.islice(iterator, count)]


def test_batches_never_repeat_and_a_position_is_restored():
    whole = take(6)
    flat = np.concatenate(whole).reshape(24, 16)
    assert len(np.unique(flat, axis=0)) == 24
    iterator = generated_batches(partial(tones.plucked, length=16), 4, 3, name="tones")
    for _ in range(2):
        next(iterator)
    position = iterator.get_state()
    fresh = generated_batches(partial(tones.plucked, length=16), 4, 3, name="tones")
    fresh.set_state(position)
    for expected in whole[2:]:
        np.testing.assert_array_equal(next(fresh)["wave"], expected)


def test_processes_share_a_generated_batch():
    parts = [take(2, process_index=index, process_count=2) for index in range(2)]
    for batch, first, second in zip(take(2), *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), batch)


def test_positions_of_other_data_are_errors():
    iterator = generated_batches(partial(tones.plucked, length=16), 4, 3, name="tones")
    for name, seed in (("others", 3), ("tones", 4)):
        other = generated_batches(partial(tones.plucked, length=16), 4, seed, name=name)
        with pytest.raises(ValueError, match="does not fit tones"):
            iterator.set_state(other.get_state())
    with pytest.raises(ValueError, match=r"position in the data: \{\}"):
        iterator.set_state({})


def test_a_wrong_number_of_examples_is_an_error():
    with pytest.raises(ValueError, match=r"odd: x has shape \(3,\), not 4 examples"):
        next(generated_batches(lambda random, count: {"x": np.zeros(3)}, 4, 0, name="odd"))
    for options, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"process_count": 3}, "does not divide"),
    ):
        with pytest.raises(ValueError, match=message):
            generated_batches(plucked, **{"batch_size": 4, "seed": 0, "name": "x", **options})

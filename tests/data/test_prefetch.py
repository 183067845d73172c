"""Batches that are copied ahead: the same ones, at exact positions."""

import gc
import itertools
import json
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from kd_jax import make_mesh, place_batch
from kd_jax.data import Source, batches, generated_batches, prefetch_to_device, zipped_batches

pytest.importorskip("grain")


def make_source(count: int) -> Source:
    """A source whose image i is constant i, of class i mod 7."""
    return Source(
        "constant",
        (2, 3, 1),
        7,
        "f",
        count,
        lambda i: (np.full((2, 3, 1), i, np.uint8), i % 7),
        lambda: np.arange(count, dtype=np.int32) % 7,
    )


class Counter:
    """Batches of one number, and how many were read."""

    def __init__(self, failing=()):
        self.number, self.reads, self.failing = 0, 0, set(failing)

    def __iter__(self):
        return self

    def __next__(self):
        self.reads += 1
        if self.number in self.failing:
            raise ValueError(f"batch {self.number} cannot be read")
        self.number += 1
        return {"x": np.array([self.number - 1])}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        if state["number"] < 0:
            raise ValueError("number is negative")
        self.number = state["number"]


def numbers(iterator, count):
    return [int(batch["x"][0]) for batch in itertools.islice(iterator, count)]


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_batches_are_those_of_the_iterator_on_the_device():
    plain = batches(make_source(50), 8, 0)
    ahead = prefetch_to_device(batches(make_source(50), 8, 0))
    for expected, batch in zip(itertools.islice(plain, 20), ahead, strict=False):
        assert isinstance(batch["image"], jax.Array)
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])
    assert ahead.get_state()["position"] == {"next_index": 20}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_as_many_batches_are_read_ahead(size):
    counter = Counter()
    ahead = prefetch_to_device(counter, size)
    assert counter.reads == 0
    assert numbers(ahead, 1) == [0]
    wait_for(lambda: counter.reads == 1 + size)
    time.sleep(0.1)
    assert counter.reads == 1 + size
    assert ahead.get_state() == {"number": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: batches(make_source(30), 8, 3),
        lambda: zipped_batches({"a": make_source(30), "b": make_source(9)}, 8, 3),
        lambda: generated_batches(
            lambda rng, n: {"image": rng.random((n, 2), np.float32)}, 8, 3, name="random"
        ),
    ],
    ids=["one", "zipped", "generated"],
)
def test_a_saved_position_is_that_of_the_last_batch_returned(make):
    ahead = prefetch_to_device(make(), 3)
    for _ in range(4):
        next(ahead)
    state = json.loads(json.dumps(ahead.get_state()))
    expected = [jax.device_get(next(ahead)) for _ in range(5)]
    # In the plain iterator, in another one that is ahead, and in the same.
    plain, another = make(), prefetch_to_device(make(), 2)
    next(another)
    for iterator in (plain, another, ahead):
        iterator.set_state(state)
        for batch in expected:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(iterator)), batch)


def test_an_error_is_raised_at_its_batch_and_preserves_the_position():
    counter = Counter(failing=[3])
    ahead = prefetch_to_device(counter, 2)
    assert numbers(ahead, 3) == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="batch 3 cannot be read"):
            next(ahead)
        assert ahead.get_state() == {"number": 3}
    counter.failing.clear()
    assert numbers(ahead, 3) == [3, 4, 5]


def test_an_error_of_the_copy_loses_no_batch():
    """The batches behind the failing one are read again, not returned in its place."""
    counter, places = Counter(), []

    def place(batch):
        places.append(int(batch["x"][0]))
        if places == [0, 1]:
            raise RuntimeError("out of memory")
        return batch

    ahead = prefetch_to_device(counter, 3, place)
    assert numbers(ahead, 1) == [0]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(ahead)
    assert numbers(ahead, 3) == [1, 2, 3]


def test_an_invalid_position_preserves_the_position():
    counter = Counter()
    ahead = prefetch_to_device(counter, 2)
    assert numbers(ahead, 2) == [0, 1]
    with pytest.raises(ValueError, match="number is negative"):
        ahead.set_state({"number": -1})
    assert ahead.get_state() == {"number": 2}
    assert numbers(ahead, 2) == [2, 3]


def test_skipped_images_are_counted_up_to_the_last_batch_returned():
    def read(i):
        if i == 5:
            raise ValueError("image 5 cannot be decoded")
        return np.full((2, 3, 1), i, np.uint8), 0

    source = replace(make_source(10), read=read)

    def make():
        return batches(source, 5, 0, skip_corrupt=True, log=lambda line: None)

    plain, ahead = make(), prefetch_to_device(make(), 4)
    for _ in range(8):
        next(plain)
        next(ahead)
        assert ahead.skipped == plain.skipped
        assert ahead.get_state() == plain.get_state()
    assert ahead.skipped == 4


def test_batches_are_split_over_a_mesh():
    mesh = make_mesh()
    ahead = prefetch_to_device(
        batches(make_source(50), 4 * mesh.size, 0), place=lambda batch: place_batch(batch, mesh)
    )
    images = next(ahead)["image"]
    assert len(images.sharding.device_set) == mesh.size
    assert images.addressable_shards[0].data.shape == (4, 2, 3, 1)


def test_the_thread_ends_with_the_iterator():
    ahead = prefetch_to_device(Counter())
    next(ahead)
    threads = [t for t in threading.enumerate() if t.name.startswith("prefetch_to_device")]
    assert threads
    del ahead
    gc.collect()
    wait_for(lambda: not any(thread.is_alive() for thread in threads))


def test_at_least_one_batch_is_read_ahead():
    with pytest.raises(ValueError, match="size is 0"):
        prefetch_to_device(Counter(), 0)

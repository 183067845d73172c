"""Batches: the order of images, epochs, positions, and the parts of processes."""

import itertools
import json
import time
from collections import Counter
from dataclasses import replace
from threading import Barrier, current_thread

import numpy as np
import pytest

from kd_jax.data import EmptyBatches, Source, batches, pipeline, zipped_batches

pytest.importorskip("grain")


def make_source(count: int, in_memory: bool = True) -> Source:
    """A source whose image i is constant i, of class i mod 7."""
    return Source(
        "made",
        (2, 3, 1),
        7,
        "f",
        count,
        lambda i: (np.full((2, 3, 1), i, np.uint8), i % 7),
        lambda: np.arange(count, dtype=np.int32) % 7,
        in_memory,
    )


def numbers(batch) -> list[int]:
    """The indices of the images of a batch."""
    indices = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
    np.testing.assert_array_equal(batch["label"], indices % 7)
    return indices.tolist()


def take(iterator, count: int) -> list[list[int]]:
    return [numbers(batch) for batch in itertools.islice(iterator, count)]


def flatten(lists) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def test_a_batch_has_numpy_arrays():
    batch = next(batches(make_source(90), 64, 0))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (64, 2, 3, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (64,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize(("count", "batch_size"), [(90, 64), (10, 64), (64, 64), (1, 3), (200, 7)])
def test_each_epoch_has_each_image_once(count, batch_size):
    flat = flatten(take(batches(make_source(count), batch_size, 3), -(-5 * count // batch_size)))
    epochs = [flat[e * count : (e + 1) * count] for e in range(5)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count >= 10:
        assert len(set(map(tuple, epochs))) == 5


def test_the_order_is_shuffled():
    first = take(batches(make_source(200), 200, 0), 1)[0]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(first))
    assert neighbours < 20
    assert abs(np.corrcoef(first, range(200))[0, 1]) < 0.3


def test_the_order_is_a_function_of_the_seed():
    assert take(batches(make_source(90), 32, 5), 20) == take(batches(make_source(90), 32, 5), 20)
    assert take(batches(make_source(90), 32, 5), 1) != take(batches(make_source(90), 32, 6), 1)


def test_neighbouring_seeds_share_no_epoch():
    orders = [
        tuple(epoch) for seed in range(4) for epoch in take(batches(make_source(20), 20, seed), 10)
    ]
    assert len(set(orders)) == 40


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("position", [0, 1, 13])
def test_a_restored_position_yields_the_same_batches(position, workers):
    source = make_source(90)
    iterator = batches(source, 32, 0, workers=workers)
    take(iterator, position)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 5)
    another = batches(source, 32, 0)
    take(another, 3)
    another.set_state(state)
    assert take(another, 5) == expected
    iterator.set_state(state)
    assert take(iterator, 5) == expected
    assert take(batches(source, 32, 0, start=position), 5) == expected


def test_reading_ahead_in_threads_changes_nothing():
    expected = take(batches(make_source(90), 8, 1, workers=0), 40)
    for workers in (1, 2, 5, None):
        assert take(batches(make_source(90, False), 8, 1, workers=workers), 40) == expected


def recording(source, threads):
    """The function `read` of a source that records the threads that call it."""
    return lambda i: (threads.append(current_thread()), source.read(i))[1]


def test_without_workers_nothing_is_read_ahead():
    threads = []
    source = make_source(50, in_memory=False)
    next(batches(replace(source, read=recording(source, threads)), 10, 0, workers=0))
    assert threads == [current_thread()] * 10


def test_the_default_workers_read_large_batches_in_threads(monkeypatch):
    """Cached images of large batches, too: the first epoch decodes them."""
    monkeypatch.setattr(pipeline, "SMALL_BATCH", 10 * 6)
    for size, in_memory, threaded in ((9, True, False), (10, True, True), (1, False, True)):
        source = make_source(50, in_memory)
        next(batches(replace(source, read=recording(source, threads := [])), size, 0))
        assert (current_thread() not in threads) == threaded


def test_workers_read_at_the_same_time():
    both, passed = Barrier(2), []

    def read(i):
        if not passed:
            both.wait(10)  # raises unless a second thread arrives
            passed.append(i)
        return np.zeros((2, 3, 1), np.uint8), 0

    iterator = batches(replace(make_source(50, False), read=read), 1, 0, workers=2)
    assert next(iterator)["image"].shape == (1, 2, 3, 1)


def test_batches_do_not_share_memory():
    iterator = batches(make_source(50), 10, 0)
    first, second = next(iterator), next(iterator)
    assert not np.shares_memory(first["image"], second["image"])


def test_only_a_few_batches_are_read_ahead():
    reads = []
    source = make_source(250, in_memory=False)
    counting = replace(source, read=lambda i: (reads.append(i), source.read(i))[1])
    iterator = batches(counting, 10, 0)
    next(iterator)
    deadline = time.monotonic() + 10
    while len(reads) <= 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert 10 < len(reads) < 200  # Grain's default would have read 5,000.


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            (replace(make_source(90), name="more", fingerprint="g"), 32, 0),
            "a position in made does not fit more: fingerprint is 'f', expected 'g'",
        ),
        ((make_source(90), 16, 0), "batch_size is 32, expected 16"),
        ((make_source(90), 32, 1), "seed is 0, expected 1"),
    ],
)
def test_a_position_in_other_data_is_an_error(other, message):
    state = batches(make_source(90), 32, 0).get_state()
    with pytest.raises(ValueError, match=message) as error:
        batches(*other).set_state(state)
    assert "\n" not in str(error.value)


def test_the_name_of_the_data_does_not_matter():
    iterator = batches(replace(make_source(90), name="renamed"), 32, 0)
    iterator.set_state(batches(make_source(90), 32, 0, start=3).get_state())
    assert iterator.get_state()["position"] == {"next_index": 3}


def test_a_different_shuffle_is_an_error():
    iterator = batches(make_source(90), 32, 0)
    state = iterator.get_state()
    state["pipeline"]["order"] = "0"
    with pytest.raises(ValueError, match="order is"):
        iterator.set_state(state)


def broken(**changes):
    return batches(make_source(90), 32, 0).get_state() | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "position in the data: {}"),
        ({"next_index": 3}, "position in the data: .*next_index"),
        (broken(position=None), "position in the data: .*None"),
        (broken(position={}), "next_index is None"),
        (broken(position={"next_index": -1}), "next_index is -1"),
        (broken(pipeline={"source": "made"}), "fingerprint is None, expected 'f'"),
    ],
)
def test_a_malformed_position_is_an_error(state, message):
    iterator = batches(make_source(90), 32, 0)
    with pytest.raises(ValueError, match=message):
        iterator.set_state(state)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_parts_of_all_processes_form_the_global_batch(processes, in_memory):
    source = make_source(50, in_memory)
    whole = take(batches(source, 16, 0), 12)
    parts = [
        take(batches(source, 16, 0, process_index=i, process_count=processes), 12)
        for i in range(processes)
    ]
    assert [flatten(part) for part in zip(*parts, strict=True)] == whole


def test_a_process_reads_only_its_part():
    reads: Counter[int] = Counter()
    source = make_source(64)
    counting = replace(source, read=lambda i: (reads.update([i]), source.read(i))[1])
    take(batches(counting, 64, 0, process_index=1, process_count=4), 1)
    assert sum(reads.values()) == 16


def test_a_position_is_valid_for_any_number_of_processes():
    iterator = batches(make_source(50), 16, 0, process_index=1, process_count=2)
    take(iterator, 5)
    other = batches(make_source(50), 16, 0)
    take(other, 5)
    assert iterator.get_state() == other.get_state()
    other.set_state(iterator.get_state())
    assert take(other, 1)[0][8:] == take(iterator, 1)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -1}, "start is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2 of 2"),
        ({"process_index": 0, "process_count": 3}, "batch_size 32 does not divide over 3"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(**({"source": make_source(9), "batch_size": 32, "seed": 0} | arguments))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_damaged_image_is_an_error_that_preserves_the_position(workers):
    damaged = [True]

    def read(i):
        if i == 17 and damaged:
            raise ValueError("b.png cannot be decoded: image file is truncated")
        return make_source(40).read(i)

    iterator = batches(replace(make_source(40), read=read), 10, 0, workers=workers)
    expected = take(batches(make_source(40), 10, 0), 4)
    before = next(k for k, batch in enumerate(expected) if 17 in batch)
    assert take(iterator, before) == expected[:before]
    with pytest.raises(ValueError, match=r"^b\.png cannot be decoded: image file is truncated$"):
        next(iterator)
    assert iterator.get_state()["position"] == {"next_index": before}
    damaged.clear()
    assert take(iterator, 4 - before) == expected[before:]


def test_empty_batches():
    empty = EmptyBatches()
    assert [next(empty) for _ in range(3)] == [{}, {}, {}]
    position = json.loads(json.dumps(empty.get_state()))
    empty.set_state(position)
    with pytest.raises(ValueError, match=r"empty batches: .*'source': 'made'"):
        empty.set_state(batches(make_source(4), 2, 0).get_state())
    with pytest.raises(ValueError, match="None does not fit made: fingerprint"):
        batches(make_source(4), 2, 0).set_state({**position, "position": {"next_index": 0}})


def numbers_per_set(batch) -> list[list[int]]:
    return [numbers({"image": x, "label": _labels(x)}) for x in batch.values()]


def _labels(images):
    return (np.rint((images[:, 0, 0, 0] + 1) * 127.5).astype(int) % 7).astype(np.int32)


def test_zipped_sets_have_independent_orders_and_epochs():
    sets = {"first": make_source(12), "second": make_source(5)}
    zipped = [numbers_per_set(batch) for batch in itertools.islice(zipped_batches(sets, 4, 0), 15)]
    for index, count in enumerate((12, 5)):
        flat = flatten(batch[index] for batch in zipped)
        for start in range(0, 60, count):
            assert sorted(flat[start : start + count]) == list(range(count))
    # Sets of equal size have different orders for every seed.
    equal = {"first": make_source(12), "second": make_source(12)}
    equal_indices = Counter()
    for seed in range(20):
        first, second = numbers_per_set(next(zipped_batches(equal, 12, seed)))
        equal_indices.update(a == b for a, b in zip(first, second, strict=True))
    assert equal_indices[True] < 40  # 20 are expected by chance
    orders = [numbers_per_set(next(zipped_batches(equal, 12, seed))) for seed in range(3)]
    assert len({tuple(order) for pair in orders for order in pair}) == 6


def test_a_restored_position_of_zipped_sets_yields_the_same_batches():
    sets = {"first": make_source(12), "second": make_source(5)}
    iterator = zipped_batches(sets, 4, 1)
    for _ in range(7):
        next(iterator)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = [numbers_per_set(next(iterator)) for _ in range(5)]
    again = zipped_batches(sets, 4, 1)
    again.set_state(position)
    assert [numbers_per_set(next(again)) for _ in range(5)] == expected


def test_a_position_of_other_sets_is_an_error_that_preserves_the_position():
    sets = {"first": make_source(12), "second": make_source(5)}
    iterator = zipped_batches(sets, 4, 1)
    next(iterator)
    here = iterator.get_state()
    other = zipped_batches(
        {"first": make_source(12), "second": replace(make_source(5), fingerprint="g")}, 4, 1
    )
    for _ in range(3):
        next(other)
    with pytest.raises(ValueError, match="fingerprint is 'g', expected 'f'"):
        iterator.set_state(other.get_state())
    with pytest.raises(ValueError, match="position in first does not fit first, second"):
        iterator.set_state({"first": here["first"]})
    assert iterator.get_state() == here


def test_a_damaged_image_preserves_the_position_of_zipped_sets():
    broken = []

    def read(i):
        if broken:
            raise ValueError("image 3 is damaged")
        return np.full((2, 3, 1), i, np.uint8), i % 7

    iterator = zipped_batches(
        {"first": make_source(12), "second": replace(make_source(5), read=read)}, 4, 1
    )
    here = iterator.get_state()
    expected = numbers_per_set(next(iterator))
    iterator.set_state(here)
    broken.append(True)
    with pytest.raises(ValueError, match="image 3 is damaged"):
        next(iterator)
    assert iterator.get_state() == here
    broken.clear()
    assert numbers_per_set(next(iterator)) == expected


@pytest.mark.parametrize(
    ("sets", "seed", "match"),
    [
        ({}, 0, "got: none"),
        (
            {"a": make_source(3), "b": replace(make_source(3), image_shape=(4, 3, 1))},
            0,
            r"a \(2, 3, 1\), b \(4, 3, 1\)",
        ),
        ({"a": make_source(3)}, -1, "seed is -1"),
    ],
    ids=["none", "shapes", "seed"],
)
def test_incompatible_sets_are_errors(sets, seed, match):
    with pytest.raises(ValueError, match=match):
        zipped_batches(sets, 2, seed)

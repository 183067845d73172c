"""The order of what is read: epochs, positions, processes."""

import itertools
import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kd_jax.data import EmptyBatches, Source, batches, zipped_batches

pytest.importorskip("grain")


def made(count: int, in_memory: bool = True) -> Source:
    """A source whose image i is all i, and of class i mod 7."""
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
    """Which images a batch is of."""
    found = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
    np.testing.assert_array_equal(batch["label"], found % 7)
    return found.tolist()


def take(iterator, count: int) -> list[list[int]]:
    return [numbers(batch) for batch in itertools.islice(iterator, count)]


def flatten(lists) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def test_a_batch_is_arrays():
    batch = next(batches(made(90), 64, 0))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (64, 2, 3, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (64,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize(("count", "batch_size"), [(90, 64), (10, 64), (64, 64), (1, 3), (200, 7)])
def test_each_epoch_has_each_image_once(count, batch_size):
    flat = flatten(take(batches(made(count), batch_size, 3), -(-5 * count // batch_size)))
    epochs = [flat[e * count : (e + 1) * count] for e in range(5)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count >= 10:
        assert len(set(map(tuple, epochs))) == 5


def test_the_order_is_shuffled():
    first = take(batches(made(200), 200, 0), 1)[0]
    neighbours = sum(abs(a - b) == 1 for a, b in itertools.pairwise(first))
    assert neighbours < 20
    assert abs(np.corrcoef(first, range(200))[0, 1]) < 0.3


def test_the_order_is_a_function_of_the_seed():
    assert take(batches(made(90), 32, 5), 20) == take(batches(made(90), 32, 5), 20)
    assert take(batches(made(90), 32, 5), 1) != take(batches(made(90), 32, 6), 1)


def test_neighbouring_seeds_share_no_epoch():
    orders = [tuple(epoch) for seed in range(4) for epoch in take(batches(made(20), 20, seed), 10)]
    assert len(set(orders)) == 40


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("position", [0, 1, 13])
def test_a_restored_position_gives_the_same_batches(position, in_memory):
    source = made(90, in_memory)
    iterator = batches(source, 32, 0)
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
    assert take(batches(made(90, True), 8, 1), 40) == take(batches(made(90, False), 8, 1), 40)


def test_a_few_batches_are_read_ahead():
    reads = []
    source = made(250, in_memory=False)
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
            (replace(made(90), name="more", fingerprint="g"), 32, 0),
            "a position in made does not fit more: fingerprint is 'f' there, 'g' here",
        ),
        ((made(90), 16, 0), "batch_size is 32 there, 16 here"),
        ((made(90), 32, 1), "seed is 0 there, 1 here"),
    ],
)
def test_a_position_in_other_data_is_refused(other, message):
    state = batches(made(90), 32, 0).get_state()
    with pytest.raises(ValueError, match=message) as error:
        batches(*other).set_state(state)
    assert "\n" not in str(error.value)


def test_the_name_of_the_data_does_not_matter():
    iterator = batches(replace(made(90), name="renamed"), 32, 0)
    iterator.set_state(batches(made(90), 32, 0, start=3).get_state())
    assert iterator.get_state()["position"] == {"next_index": 3}


def test_another_way_of_shuffling_is_refused():
    iterator = batches(made(90), 32, 0)
    state = iterator.get_state()
    state["pipeline"]["order"] = "0"
    with pytest.raises(ValueError, match="order is"):
        iterator.set_state(state)


def broken(**changes):
    return batches(made(90), 32, 0).get_state() | changes


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no position in the data"),
        ({"next_index": 3}, "no position in the data"),
        (broken(position=None), "no position in the data"),
        (broken(position={}), "next_index is None"),
        (broken(position={"next_index": -1}), "next_index is -1"),
        (broken(pipeline={"source": "made"}), "fingerprint is None there, 'f' here"),
    ],
)
def test_what_is_no_position_is_refused(state, message):
    iterator = batches(made(90), 32, 0)
    with pytest.raises(ValueError, match=message):
        iterator.set_state(state)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_processes_parts_make_up_the_global_batch(processes, in_memory):
    source = made(50, in_memory)
    whole = take(batches(source, 16, 0), 12)
    parts = [
        take(batches(source, 16, 0, process_index=i, process_count=processes), 12)
        for i in range(processes)
    ]
    assert [flatten(part) for part in zip(*parts, strict=True)] == whole


def test_a_process_reads_only_its_part():
    reads: Counter[int] = Counter()
    source = made(64)
    counting = replace(source, read=lambda i: (reads.update([i]), source.read(i))[1])
    take(batches(counting, 64, 0, process_index=1, process_count=4), 1)
    assert sum(reads.values()) == 16


def test_a_position_is_good_for_any_number_of_processes():
    iterator = batches(made(50), 16, 0, process_index=1, process_count=2)
    take(iterator, 5)
    other = batches(made(50), 16, 0)
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
        ({"process_index": 2, "process_count": 2}, "process_index is 2 of 2"),
        ({"process_index": 0, "process_count": 3}, "batch_size 32 does not divide over 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(**({"source": made(9), "batch_size": 32, "seed": 0} | arguments))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_image_is_named_and_the_position_stays(in_memory):
    damaged = [True]

    def read(i):
        if i == 17 and damaged:
            raise ValueError("b.png cannot be decoded: image file is truncated")
        return made(40).read(i)

    iterator = batches(replace(made(40, in_memory), read=read), 10, 0)
    expected = take(batches(made(40), 10, 0), 4)
    before = next(k for k, batch in enumerate(expected) if 17 in batch)
    assert take(iterator, before) == expected[:before]
    with pytest.raises(ValueError, match=r"^b\.png cannot be decoded: image file is truncated$"):
        next(iterator)
    assert iterator.get_state()["position"] == {"next_index": before}
    damaged.clear()
    assert take(iterator, 4 - before) == expected[before:]


def test_no_data_without_end():
    none = EmptyBatches()
    assert [next(none) for _ in range(3)] == [{}, {}, {}]
    position = json.loads(json.dumps(none.get_state()))
    none.set_state(position)
    with pytest.raises(ValueError, match="a position in data does not fit a run without"):
        none.set_state(batches(made(4), 2, 0).get_state())
    with pytest.raises(ValueError, match="a position in None does not fit made: fingerprint"):
        batches(made(4), 2, 0).set_state({**position, "position": {"next_index": 0}})


def both(batch) -> list[list[int]]:
    return [numbers({"image": x, "label": _labels(x)}) for x in batch.values()]


def _labels(images):
    return (np.rint((images[:, 0, 0, 0] + 1) * 127.5).astype(int) % 7).astype(np.int32)


def test_sets_together_are_shuffled_apart_and_begin_anew_on_their_own():
    sets = {"first": made(12), "second": made(5)}
    dealt = [both(batch) for batch in itertools.islice(zipped_batches(sets, 4, 0), 15)]
    for index, count in enumerate((12, 5)):
        flat = flatten(batch[index] for batch in dealt)
        for start in range(0, 60, count):
            assert sorted(flat[start : start + count]) == list(range(count))
    # Sets of equal size are not in the same order, whatever the seed.
    equal = {"first": made(12), "second": made(12)}
    meetings = Counter()
    for seed in range(20):
        first, second = both(next(zipped_batches(equal, 12, seed)))
        meetings.update(a == b for a, b in zip(first, second, strict=True))
    assert meetings[True] < 40  # 20 are chance
    orders = [both(next(zipped_batches(equal, 12, seed))) for seed in range(3)]
    assert len({tuple(order) for pair in orders for order in pair}) == 6


def test_the_position_of_sets_together():
    sets = {"first": made(12), "second": made(5)}
    iterator = zipped_batches(sets, 4, 1)
    for _ in range(7):
        next(iterator)
    position = json.loads(json.dumps(iterator.get_state()))
    expected = [both(next(iterator)) for _ in range(5)]
    again = zipped_batches(sets, 4, 1)
    again.set_state(position)
    assert [both(next(again)) for _ in range(5)] == expected


def test_positions_of_other_sets_are_refused_and_nothing_moves():
    sets = {"first": made(12), "second": made(5)}
    iterator = zipped_batches(sets, 4, 1)
    next(iterator)
    here = iterator.get_state()
    other = zipped_batches({"first": made(12), "second": replace(made(5), fingerprint="g")}, 4, 1)
    for _ in range(3):
        next(other)
    with pytest.raises(ValueError, match="fingerprint is 'g' there, 'f' here"):
        iterator.set_state(other.get_state())
    with pytest.raises(ValueError, match="a position in first does not fit first, second"):
        iterator.set_state({"first": here["first"]})
    assert iterator.get_state() == here


def test_a_damaged_image_leaves_sets_together_where_they_were():
    broken = []

    def read(i):
        if broken:
            raise ValueError("image 3 is damaged")
        return np.full((2, 3, 1), i, np.uint8), i % 7

    iterator = zipped_batches({"first": made(12), "second": replace(made(5), read=read)}, 4, 1)
    here = iterator.get_state()
    expected = both(next(iterator))
    iterator.set_state(here)
    broken.append(True)
    with pytest.raises(ValueError, match="image 3 is damaged"):
        next(iterator)
    assert iterator.get_state() == here
    broken.clear()
    assert both(next(iterator)) == expected


@pytest.mark.parametrize(
    ("sets", "seed", "match"),
    [
        ({}, 0, "there are: none"),
        (
            {"a": made(3), "b": replace(made(3), image_shape=(4, 3, 1))},
            0,
            r"a \(2, 3, 1\), b \(4, 3, 1\)",
        ),
        ({"a": made(3)}, -1, "seed is -1"),
    ],
    ids=["none", "shapes", "seed"],
)
def test_sets_that_do_not_go_together(sets, seed, match):
    with pytest.raises(ValueError, match=match):
        zipped_batches(sets, 2, seed)

"""Shuffled batches without end, whose position can be saved and restored exactly."""

import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kd_jax.data.source import Source, digest, to_batch


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class BatchIterator(Iterator[dict[str, np.ndarray]], Protocol):
    """Batches without end, whose position can be saved: what a training needs of its data."""

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch given: JSON values."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; a ValueError where it is none of this data."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches with a position; made by `batches`.

    Attributes:
      skipped: how often another image stood for one that could not be read, since the beginning;
        of this process's part.
    """

    def __init__(
        self, iterator: Any, pipeline: Mapping[str, Any], log: Callable[[str], None] = _to_stderr
    ):
        self._iterator = iterator
        self._pipeline = dict(pipeline)
        self._log = log
        self._told: set[str] = set()
        self.skipped = 0

    def __next__(self) -> dict[str, np.ndarray]:
        before = self._iterator.get_state()
        found = next(self._iterator)
        if isinstance(found, Exception):
            self._iterator.set_state(before)
            raise found
        examples, problems = zip(*found, strict=True)
        self.skipped += sum(map(bool, problems))
        for problem in itertools.chain(*problems):
            if problem not in self._told:
                self._told.add(problem)
                self._log(f"{problem}; the next image takes its place")
        return to_batch(list(examples))

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch given, and what it is a position in: JSON values.

        Good for any number of processes, and equal in all of them but for `skipped`, which is there
        where it is not 0.
        """
        lost = {"skipped": self.skipped} if self.skipped else {}
        return {
            "position": self._iterator.get_state(),
            "pipeline": dict(self._pipeline),
            **lost,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position: the next batch is the one that came next when it was saved.

        Args:
          state: from `get_state`, here or in another process.

        Raises:
          ValueError: it is of another pipeline (the first difference is named), or no position.
        """
        self._iterator.set_state({"next_index": _position(state, self._pipeline)})
        self.skipped = int(state.get("skipped", 0))


class EmptyBatches(Iterator[dict[str, np.ndarray]]):
    """Empty batches without end: the data of a run that needs none."""

    def __next__(self) -> dict[str, np.ndarray]:
        return {}

    def get_state(self) -> dict[str, Any]:
        """The position, in the form of `Batches.get_state`."""
        return {"position": {}, "pipeline": {"source": None}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Checks that a position is one in no data.

        Raises:
          ValueError: it is a position in some data.
        """
        if state != self.get_state():
            raise ValueError(f"a position in data does not fit a run without: {str(state)[:80]}")


class GeneratedBatches(Iterator[dict[str, np.ndarray]]):
    """Batches that a function draws; made by `drawn`."""

    def __init__(
        self,
        draw: Callable[[np.random.Generator, int], Mapping[str, npt.ArrayLike]],
        pipeline: Mapping[str, Any],
        part: slice,
    ):
        self._draw = draw
        self._pipeline = dict(pipeline)
        self._part = part
        self._number = 0

    def __next__(self) -> dict[str, np.ndarray]:
        size, seed = self._pipeline["batch_size"], self._pipeline["seed"]
        drawn = self._draw(np.random.default_rng([seed, self._number]), size)
        batch = {name: np.asarray(values) for name, values in drawn.items()}
        for name, values in batch.items():
            if values.ndim < 1 or len(values) != size:
                raise ValueError(
                    f"{self._pipeline['source']}: {name} has shape {values.shape}, not {size} "
                    "examples"
                )
        self._number += 1
        return {name: values[self._part] for name, values in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """The position, in the form of `Batches.get_state`; equal in all processes."""
        return {"position": {"next_index": self._number}, "pipeline": dict(self._pipeline)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position.

        Raises:
          ValueError: it is of another pipeline (the first difference is named), or no position.
        """
        self._number = _position(state, self._pipeline)


class ZippedBatches(Iterator[dict[str, np.ndarray]]):
    """Batches of several sets of images at once, with one position; made by `together`."""

    def __init__(self, parts: Mapping[str, Batches]):
        self._parts = dict(parts)

    def __next__(self) -> dict[str, np.ndarray]:
        before = self.get_state()
        try:
            return {name: next(part)["image"] for name, part in self._parts.items()}
        except Exception:
            self.set_state(before)  # of those that have gone on already
            raise

    @property
    def skipped(self) -> int:
        """As `Batches.skipped`, of all sets."""
        return sum(part.skipped for part in self._parts.values())

    def get_state(self) -> dict[str, Any]:
        """The position, as `Batches.get_state` has it, of each set."""
        return {name: part.get_state() for name, part in self._parts.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position.

        Raises:
          ValueError: it is of other sets (the first difference is named), or no position.
        """
        if sorted(state) != sorted(self._parts):
            raise ValueError(
                f"a position in {', '.join(map(str, state)) or 'nothing'} does not fit "
                f"{', '.join(self._parts)}"
            )
        before = self.get_state()
        try:
            for name, part in self._parts.items():
                part.set_state(state[name])
        except ValueError:
            for name, part in self._parts.items():
                part.set_state(before[name])
            raise


def generated_batches(
    draw: Callable[[np.random.Generator, int], Mapping[str, npt.ArrayLike]],
    batch_size: int,
    seed: int,
    *,
    name: str,
    process_index: int = 0,
    process_count: int = 1,
) -> GeneratedBatches:
    """Batches without end of what is synthesised: no two are the same.

    Batch number k is a function of `draw`, `batch_size`, `seed` and k alone.

    Args:
      draw: `(random generator, count) -> {name: [count, ...]}`.
      batch_size: of the global batch.
      seed: of everything drawn, not negative.
      name: of what is drawn, with all that determines it: positions of another name do not fit.
      process_index: which part of each global batch to give: part i of `process_count`, in order.
      process_count: how many processes share each batch; it must divide `batch_size`.

    Raises:
      ValueError: an argument is out of range; by the iterator, when `draw` gives another number of
        examples.
    """
    per_process = _per_process(batch_size, seed, process_index, process_count)
    first = process_index * per_process
    pipeline = {
        "source": name,
        "fingerprint": digest(name),
        "batch_size": int(batch_size),
        "seed": int(seed),
    }
    return GeneratedBatches(draw, pipeline, slice(first, first + per_process))


def zipped_batches(
    sources: Mapping[str, Source], batch_size: int, seed: int, **options: Any
) -> ZippedBatches:
    """Batches without end of several sets of images at once, as unpaired translation needs them.

    Each is shuffled on its own and begins anew when it is through: the sets may have different
    numbers of images, and which meet is chance.

    Args:
      sources: by the names of the batches' entries.
      batch_size: of each, in the global batch.
      seed: of the orders, not negative.
      **options: of `batches`.

    Returns:
      An iterator of `{name: [batch_size / process_count, H, W, C] float32 in [-1, 1]}`.

    Raises:
      ValueError: there is no set, the images' shapes differ, or as `batches`.
    """
    shapes = {name: source.image_shape for name, source in sources.items()}
    if len(set(shapes.values())) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
        raise ValueError(f"sets of images of one shape are needed, there are: {listed}")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must not be negative")
    # Of one seed, sets of equal size would be in the same order, and always the same images meet.
    seeds = {name: seed * len(sources) + index for index, name in enumerate(sources)}
    return ZippedBatches(
        {
            name: batches(source, batch_size, seeds[name], **options)
            for name, source in sources.items()
        }
    )


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    skip_corrupt: bool = False,
    log: Callable[[str], None] = _to_stderr,
) -> Batches:
    """Batches without end: shuffled epochs, one after another.

    Every epoch has each image once, in an order of its own. A batch may span two epochs, or many
    where the source is smaller than it. Batch number k is a function of the source, `batch_size`,
    `seed` and k alone.

    Args:
      source: from `open_source` or `subset`.
      batch_size: of the global batch.
      seed: of the order, not negative.
      start: how many batches to leave out.
      process_index: which part of each global batch to give: part i of `process_count`, in order.
      process_count: how many processes share each batch; it must divide `batch_size`.
      skip_corrupt: whether the next image that can be read stands for one that cannot: always the
        same, so that batches stay functions of their number. Otherwise, and unless the source says
        so, the iterator raises the UnreadableError that names it, and stays where it is.
      log: is given a line about each image that cannot be read, once.

    Returns:
      An iterator of `{"image": [batch_size / process_count, H, W, C] float32 in [-1, 1], "label":
      [batch_size / process_count] int32}`, NumPy arrays.

    Raises:
      ValueError: an argument is out of range.
    """
    import grain

    per_process = _per_process(batch_size, seed, process_index, process_count)
    if skip_corrupt:
        source = dataclasses.replace(source, skip_corrupt=True)
    if start < 0:
        raise ValueError(f"start is {start}: it is a number of batches")

    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> npt.NDArray[np.int64]:
        # Not Grain's shuffle, made for large sets: 26 us an image for 1,797 of them, 0.5 ms for 90,
        # 4 ms for 10 (version 0.2.18), and epoch e of seed s is there epoch 0 of seed s + e.
        return np.argsort(np.random.default_rng([seed, epoch]).random(len(source)))

    def indices(start: int, stop: int) -> list[int]:
        places = (divmod(place, len(source)) for place in range(start, stop))
        return [int(order(epoch)[i]) for epoch, i in places]

    def read(number: int) -> list[tuple[Any, list[str]]] | Exception:
        first = number * batch_size + process_index * per_process
        try:
            return [source.example(i) for i in indices(first, first + per_process)]
        except Exception as error:  # Grain would add lines of its own, and lose the position.
            return error

    # Grain's default is 500 elements read ahead, and here an element is a batch.
    threads = 0 if source.in_memory else min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    iterator = iter(grain.MapDataset.range(sys.maxsize).map(read).to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    pipeline = {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "batch_size": int(batch_size),
        "seed": int(seed),
        "order": digest(indices(0, 256)),  # Another NumPy may shuffle otherwise.
    }
    return Batches(iterator, pipeline, log)


def _per_process(batch_size: int, seed: int, process_index: int, process_count: int) -> int:
    """The examples of each batch that are this process's, once the arguments are known to fit."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index} of {process_count} processes")
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide over {process_count} processes")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must not be negative")
    return batch_size // process_count


def _position(state: Mapping[str, Any], pipeline: Mapping[str, Any]) -> int:
    """The number of the next batch, if this is a position in that pipeline."""
    there = state.get("pipeline")
    position = state.get("position")
    if not isinstance(there, Mapping) or not isinstance(position, Mapping):
        raise ValueError(f"no position in the data: {str(dict(state))[:80]}")
    names = f"a position in {there.get('source')} does not fit {pipeline['source']}"
    for key, here in pipeline.items():
        if key != "source" and there.get(key) != here:
            raise ValueError(f"{names}: {key} is {there.get(key)!r} there, {here!r} here")
    index = position.get("next_index")
    if not isinstance(index, int) or index < 0:
        raise ValueError(f"no position in the data: next_index is {index!r}")
    return index

"""Shuffled batches without end, whose position can be saved and restored exactly."""

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kd_jax.data.source import Source, to_batch


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches with a position; made by `batches`."""

    def __init__(self, iterator: Any, pipeline: Mapping[str, Any]):
        self._iterator = iterator
        self._pipeline = dict(pipeline)

    def __next__(self) -> dict[str, np.ndarray]:
        return to_batch(next(self._iterator))

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch given, and what it is a position in: JSON values.

        Equal in all processes, and good for any number of them.
        """
        return {"position": self._iterator.get_state(), "pipeline": dict(self._pipeline)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position: the next batch is the one that came next when it was saved.

        Args:
          state: from `get_state`, here or in another process.

        Raises:
          ValueError: it is of another pipeline (the first difference is named), or no position.
        """
        there = state.get("pipeline")
        position = state.get("position")
        if not isinstance(there, Mapping) or not isinstance(position, Mapping):
            raise ValueError(f"no position in the data: {str(dict(state))[:80]}")
        for key, here in self._pipeline.items():
            if key not in there:
                raise ValueError(f"the saved position in the data has no {key}; here it is {here!r}")
            if there[key] != here:
                raise ValueError(
                    f"the saved position is of other data: {key} is {there[key]!r} there, "
                    f"{here!r} here"
                )
        index = position.get("next_index")
        if not isinstance(index, int) or index < 0:
            raise ValueError(f"no position in the data: next_index is {index!r}")
        self._iterator.set_state({"next_index": index})


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches without end: shuffled epochs, one after another.

    Every epoch has each image once, in an order of its own. A batch may span two epochs, or many
    where the source is smaller than it. Batch number k is a function of the source, `batch_size`,
    `seed` and k alone.

    Args:
      source: from `open_source` or `subset`.
      batch_size: of the global batch.
      seed: of the order, in [0, 2**32). Epoch e of seed s has the order of epoch 0 of s + e (so
        Grain has it): choose the seeds of independent runs far apart.
      start: how many batches to leave out.
      process_index: which part of each global batch to give: part i of `process_count`, in order.
      process_count: how many processes share each batch; it must divide `batch_size`.

    Returns:
      An iterator of `{"image": [batch_size / process_count, H, W, C] float32 in [-1, 1], "label":
      [batch_size / process_count] int32}`, NumPy arrays.

    Raises:
      ValueError: an argument is out of range.
    """
    import grain.python as grain

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index} of {process_count} processes")
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide over {process_count} processes")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: it must be in [0, 2**32)")
    if start < 0:
        raise ValueError(f"start is {start}: it is a number of batches")

    per_process = batch_size // process_count
    mine = slice(process_index * per_process, (process_index + 1) * per_process)

    def read(indices: np.ndarray) -> list[Any]:
        return [source.read(i) for i in indices[mine].tolist()]

    order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
    # Grain's default is 500 elements read ahead, and here an element is a batch.
    threads = 0 if source.in_memory else min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = order.batch(batch_size).map(read).to_iter_dataset(options)
    first = np.array([order[i] for i in range(256)], np.uint32)
    pipeline = {
        "source": source.name,
        "fingerprint": source.fingerprint,
        "batch_size": batch_size,
        "seed": seed,
        "order": zlib.crc32(first.tobytes()),  # Another Grain may shuffle otherwise.
    }
    iterator = iter(dataset)
    iterator.set_state({"next_index": start})
    return Batches(iterator, pipeline)

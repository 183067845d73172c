"""Copies batches to the device while the step computes on those before."""

import collections
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from kd_jax.core.types import Batch
from kd_jax.data.pipeline import BatchIterator


class _Ahead(NamedTuple):
    """A batch on the device, and the position and `skipped` of the iterator after it."""

    batch: Batch
    state: dict[str, Any]
    skipped: int


class PrefetchedBatches(Iterator[Batch]):
    """Batches on the device, ahead of their use; created by `prefetch_to_device`.

    The position is that after the last batch returned, however many are read ahead.
    """

    def __init__(self, iterator: BatchIterator, size: int, place: Callable[[Batch], Batch]):
        self._iterator, self._size, self._place = iterator, size, place
        # A single thread, so that batches keep their order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch_to_device")
        self._ahead: collections.deque[Future[_Ahead]] = collections.deque()
        self._state = iterator.get_state()
        self._skipped = _skipped(iterator)

    def __next__(self) -> Batch:
        self._fill()
        try:
            result = self._ahead[0].result()
        except Exception:
            self._rewind()
            raise
        self._ahead.popleft()
        self._state, self._skipped = result.state, result.skipped
        self._fill()
        return result.batch

    @property
    def skipped(self) -> int:
        """`Batches.skipped`, up to the last batch returned."""
        return self._skipped

    def get_state(self) -> dict[str, Any]:
        """The iterator's position after the last batch returned."""
        return self._state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a position; batches that were read ahead are discarded.

        Raises:
          ValueError: as the iterator's `set_state`; the position does not change.
        """
        self._rewind()
        self._iterator.set_state(state)
        self._state, self._skipped = self._iterator.get_state(), _skipped(self._iterator)

    def _fill(self) -> None:
        # The task must not hold this object, whose end stops the thread.
        iterator, place = self._iterator, self._place

        def read() -> _Ahead:
            batch = next(iterator)
            return _Ahead(place(batch), iterator.get_state(), _skipped(iterator))

        while len(self._ahead) < self._size:
            self._ahead.append(self._thread.submit(read))

    def _rewind(self) -> None:
        """Returns the iterator to the last batch returned, and waits for its thread."""
        for future in self._ahead:
            future.cancel()
        while self._ahead:
            future = self._ahead.popleft()
            if not future.cancelled():
                future.exception()
        self._iterator.set_state(self._state)


def prefetch_to_device(
    iterator: BatchIterator,
    size: int = 2,
    place: Callable[[Any], Batch] = jax.device_put,
) -> PrefetchedBatches:
    """Reads and copies the next batches to the device in a thread, while the step computes.

    Batches, their order and positions are those of the iterator, which must not be used directly
    afterwards. An error is raised where its batch would be returned, at the same position. The
    thread starts with the first batch.

    Args:
      iterator: from `batches`, `zipped_batches` or `generated_batches`; its arrays must be new ones
        for each batch, as theirs are.
      size: the number of batches on the device ahead of the one in use, at least 1.
      place: copies a batch to the devices: `lambda batch: kd_jax.place_batch(batch, mesh)` with a
        mesh; by default, to the default device.

    Raises:
      ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}: at least one batch is read ahead")
    return PrefetchedBatches(iterator, size, place)


def _skipped(iterator: Any) -> int:
    return getattr(iterator, "skipped", 0)

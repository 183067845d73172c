"""Ending a training early and well: by a signal, or when its time is up.

with ShutdownSignal(minutes=55) as stop:
    with stop.deferred():
        state = fit(..., hooks=[Hook(1000, save, at_stop=True)], stop=stop)
    stop.raise_if_requested()            # exits with EXIT_CODE, if it was stopped
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from kd_jax.distributed import AnyProcess

EXIT_CODE = 75
"""Of a program that was stopped and can be gone on with: EX_TEMPFAIL of sysexits.h."""


class ShutdownRequested(SystemExit):
    """The run was asked to end; as an exit of the program, its code is `EXIT_CODE`."""

    def __init__(self, reason: str):
        super().__init__(EXIT_CODE)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ShutdownSignal:
    """Whether a run is asked to end: SIGTERM, SIGINT, or minutes gone by.

    While it is held (`deferred`), a signal is noted and `stop()` turns true; otherwise it raises
    `ShutdownRequested` at once. A second signal raises `ShutdownRequested` wherever it comes. Signals are heard between
    `with` and its end, in the main thread.

    Args:
      minutes: as in `limit`.

    Attributes:
      reason: why it is to end, or None.
      agreed: whether all processes know, and end at the same step.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, minutes: float = 0.0):
        self.limit(minutes)
        self._holds = 0
        self._received = False
        self._before: dict[int, Any] = {}
        self._any: AnyProcess | None = None
        self.reason: str | None = None
        self.agreed = False

    def limit(self, minutes: float) -> None:
        """Ends after so many minutes from now; 0 for never.

        Raises:
          ValueError: it is negative, or no number.
        """
        if not minutes >= 0:
            raise ValueError(f"minutes={minutes} is not a time from now")
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._minutes = minutes

    def __enter__(self) -> "ShutdownSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Where a signal must not end the program at once, since `stop()` is asked."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def __call__(self) -> bool:
        """Whether to end; of several processes all get the same answer, one call late."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = f"{self._minutes:g} minutes are over"
        self._any = self._any or AnyProcess()
        if self._any(self.reason is not None):
            self.reason = self.reason or "another process was stopped"
            self.agreed = True
            return True
        return False

    def raise_if_requested(self) -> None:
        """Raises `ShutdownRequested` if the run is to end."""
        if self.reason is not None:
            raise ShutdownRequested(self.reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = self.reason or signal.Signals(number).name
        if self._received or not self._holds:
            raise ShutdownRequested(self.reason)
        self._received = True

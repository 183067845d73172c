"""Graceful shutdown of a training run: on a signal, or after a time limit.

with ShutdownSignal(minutes=55) as stop:
    with stop.deferred():
        state = fit(..., hooks=[Hook(1000, save, at_stop=True)], stop=stop)
    stop.raise_if_requested()            # exits with EXIT_CODE if a shutdown was requested
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from kd_jax.train.distributed import AnyProcess

EXIT_CODE = 75
"""Exit status of a stopped run that can be resumed: EX_TEMPFAIL of sysexits.h."""

_GRACE = 1.0
"""Seconds in which Python may handle a signal before the process ends without it."""


class ShutdownRequested(SystemExit):
    """A shutdown was requested; if not caught, the program exits with `EXIT_CODE`."""

    def __init__(self, reason: str):
        super().__init__(EXIT_CODE)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ShutdownSignal:
    """Handles requests to shut down: SIGTERM, SIGINT, SIGHUP, or a time limit.

    Within `deferred`, the first signal only makes `stop()` true, and a line on stderr says so;
    otherwise a signal raises `ShutdownRequested` at once. A second signal always raises it. Signals
    are handled within the `with` block, in the main thread. While that thread compiles, Python
    handles no signals: where nothing is deferred, the process then exits with `EXIT_CODE` after a
    second. A signal that is ignored, as SIGHUP is by `nohup`, remains ignored.

    Args:
      minutes: as in `limit`.

    Attributes:
      reason: the reason of the shutdown, or None.
      agreed: whether all processes have received the request, and stop at the same step.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
    )  # Windows has no SIGHUP

    def __init__(self, minutes: float = 0.0):
        self.limit(minutes)
        self._deferrals = 0
        self._received = False
        self._handlers: dict[int, Any] = {}
        self._handled = threading.Event()
        self._wakeup: tuple[int, int] | None = None
        self._any: AnyProcess | None = None
        self.reason: str | None = None
        self.agreed = False

    def limit(self, minutes: float) -> None:
        """Sets the time limit, in minutes from now; 0 for none.

        Raises:
          ValueError: `minutes` is negative or NaN.
        """
        if not minutes >= 0:
            raise ValueError(f"minutes={minutes} is not a time from now")
        self._deadline = time.monotonic() + 60 * minutes if minutes else None
        self._minutes = minutes

    def __enter__(self) -> "ShutdownSignal":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._handle)
                for number in self.SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            self._wakeup = writer, previous
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
            self._unraisable = sys.unraisablehook
            sys.unraisablehook = self._raise_again
        return self

    def __exit__(self, *_: object) -> None:
        if self._wakeup is not None:
            writer, previous = self._wakeup
            self._wakeup = None
            signal.set_wakeup_fd(previous)
            sys.unraisablehook = self._unraisable
            os.close(writer)  # ends the thread, which closes the other end
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which the first signal does not raise: the code polls `stop()`."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1

    def __call__(self) -> bool:
        """Whether to stop; the same value in all processes, one call late if there are several."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = f"{self._minutes:g} minutes are over"
        self._any = self._any or AnyProcess()
        if self._any(self.reason is not None):
            self.reason = self.reason or "another process was stopped"
            self.agreed = True
            return True
        return False

    def raise_if_requested(self) -> None:
        """Raises `ShutdownRequested` if a shutdown was requested."""
        if self.reason is not None:
            raise ShutdownRequested(self.reason)

    def _raise_again(self, lost: Any) -> None:
        """Repeats a signal whose exception Python ignored, in a finalizer or a gc callback."""
        if isinstance(lost.exc_value, ShutdownRequested):
            self._handled.clear()
            number = signal.Signals[lost.exc_value.reason]
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        else:
            self._unraisable(lost)

    def _watch(self, reader: int) -> None:
        """Answers signals that the main thread cannot handle yet; runs in a thread of its own."""
        received = 0
        while number := os.read(reader, 1):
            if number[0] not in self._handlers:
                continue
            received += 1
            name = signal.Signals(number[0]).name
            if self._deferrals and received == 1:
                _print(f"{name}: finishing the step and saving; once more to stop at once")
            elif not self._handled.wait(_GRACE):
                _print(f"stopped ({name}): the same command resumes")
                exit_at_once(EXIT_CODE)
        os.close(reader)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = self.reason or signal.Signals(number).name
        if self._received or not self._deferrals:
            self._handled.set()
            raise ShutdownRequested(self.reason)
        self._received = True


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without the interpreter's shutdown; everything must be saved and closed."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

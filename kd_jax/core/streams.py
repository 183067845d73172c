"""Standard streams that may close before the program ends: `program | head -1`, a lost terminal."""

import contextlib
import os
import sys
from typing import Any


def survive_closed_streams() -> None:
    """Lets the program continue when its standard output or error closes.

    Everything written afterwards is discarded; the other stream gets a line that says so.
    """
    if sys.stdout is not None and sys.stderr is not None:
        output, error = SurvivingStream(sys.stdout), SurvivingStream(sys.stderr)
        output.other, error.other = error, output
        sys.stdout, sys.stderr = output, error


class SurvivingStream:
    """A text stream that is redirected to the null device when it cannot be written.

    Args:
      stream: the stream, which has a file descriptor.

    Attributes:
      other: the stream that reports it, or None.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.other: SurvivingStream | None = None

    def write(self, text: str) -> int:
        """Writes text; returns its length."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._discard(error)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            name = getattr(self._stream, "name", "a stream")
            other.write(f"{name} cannot be written ({error.strerror}): the program continues\n")
            other.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

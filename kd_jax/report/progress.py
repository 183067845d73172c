"""The progress of the stages of an evaluation, on stderr."""

import sys
import time
from collections.abc import Callable


class Progress:
    """A bar for each stage on terminals; elsewhere a line when it starts, and every ten seconds."""

    def __init__(self) -> None:
        self._bar = sys.stderr.isatty()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A callback that shows the progress of a stage, given the number of finished items."""
        last = 0.0

        def show(done: int) -> None:
            nonlocal last
            if self._bar:
                full = 30 * done // total
                line = f"\r{name[:40]:40} [{'#' * full}{'.' * (30 - full)}] {done}/{total}"
                print(line, end="\n" if done >= total else "", file=sys.stderr, flush=True)
            elif time.monotonic() - last > 10 and done < total:
                last = time.monotonic()
                print(f"{name}: {done}/{total}", file=sys.stderr, flush=True)

        return show

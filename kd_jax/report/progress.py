"""The progress of the stages of an evaluation, on stderr."""

import math
import sys
import time
from collections.abc import Callable


class Progress:
    """A bar for each stage on terminals; elsewhere a line when it starts, and every ten seconds.

    Both have an estimate of the time left.
    """

    def __init__(self) -> None:
        self._bar = sys.stderr.isatty()

    def stage(self, name: str, total: int) -> Callable[[int], None]:
        """A callback that shows the progress of a stage, called with the number of finished items.

        Called with 0 before the first item, it shows the start, and its estimates are more exact.
        """
        first: tuple[float, int] | None = None
        last = -math.inf

        def show(done: int) -> None:
            nonlocal first, last
            now = time.monotonic()
            first = first or (now, done)
            rate = (done - first[1]) / max(now - first[0], 1e-9)
            left = f", {_duration((total - done) / rate)} left" if rate and done < total else ""
            if self._bar:
                full = 16 * done // total
                line = f"{name[:32]:32} [{'#' * full}{'.' * (16 - full)}] {done}/{total}{left}"
                end = "\n" if done >= total else ""
                print(f"\r{line:79}", end=end, file=sys.stderr, flush=True)
            elif now - last > 10 and done < total:
                last = now
                print(f"{name}: {done}/{total}{left}", file=sys.stderr, flush=True)

        return show


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

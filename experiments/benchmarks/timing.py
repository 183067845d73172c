"""Interleaved timing of several candidates, so that noise of the machine affects all equally."""

import time
from collections.abc import Callable
from typing import Any


def time_interleaved(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each step, by candidate.

    Args:
      candidates: the calls to time, by name.
      rounds: the number of timed rounds, after one warm-up round.
      steps: consecutive steps of each candidate in a round.
      clock: the clock, in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, step in candidates.items():
            for _ in range(steps):
                start = clock()
                step()
                if number:  # the first round is a warm-up
                    times[name].append(1e3 * (clock() - start))
    return times

"""Times of several contestants that take turns, so that a noisy machine is noisy for all."""

import time
from collections.abc import Callable
from typing import Any


def take_turns(
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of each step: `steps` of one, `steps` of the next, `rounds` times over."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, once in contestants.items():
            for _ in range(steps):
                start = clock()
                once()
                if number:  # the first round warms up
                    times[name].append(1e3 * (clock() - start))
    return times

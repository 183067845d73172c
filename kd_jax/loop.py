"""The training loop: it receives callables and knows nothing of losses, models or files."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from kd_jax.types import Array, Batch

Scalars: TypeAlias = Mapping[str, float]


class NonFiniteError(RuntimeError):
    """A loss, a gradient norm or another metric became NaN or infinite."""


class Hook(NamedTuple):
    """What happens beside the training: evaluation, checkpoints.

    Attributes:
      every: called after each `every`-th step, and after the last.
      fn: `fn(step, state)`; all metrics up to `step` were finite, and all windows that ended by
        then have been logged. To resume with whole windows, save at multiples of `log_every`.
    """

    every: int
    fn: Callable[[int, Any], None]


class Progress(NamedTuple):
    """How far a loop is.

    Attributes:
      step: steps done.
      steps: steps to do in all.
      examples_per_second: over the last window; steps, where batches are empty.
      seconds_left: at the pace since the start of this loop.
    """

    step: int
    steps: int
    examples_per_second: float
    seconds_left: float


def fit(
    step: Callable[[Any, Batch], tuple[Any, Mapping[str, Array]]],
    state: Any,
    batches: Iterator[Batch],
    *,
    steps: int,
    log: Callable[[int, Scalars], None],
    log_every: int = 50,
    hooks: Sequence[Hook] = (),
    progress: Callable[[Progress], None] = lambda _: None,
    steps_per_call: int = 1,
) -> Any:
    """Takes steps until `state.step` is `steps`; returns the final state.

    The device is never waited for right after a dispatch: a window's metrics are fetched once the
    first step of the next window is on its way. Where a hook is due they are fetched before it.

    Args:
      step: `(state, batch) -> (state, metrics)`, compiled; the state is donated to it.
      state: with a field `step`.
      batches: the global batches, the first one for step `state.step`.
      steps: where to stop.
      log: `log(step, means)`, the metrics' means over the `log_every` steps that end at `step`.
      log_every: the window's length; windows end at its multiples.
      hooks: called in order where they are due.
      progress: called after each window.
      steps_per_call: how many steps a call of `step` takes (`kd_jax.modes.scanned`); `steps`,
        `state.step`, `log_every` and every hook's `every` must be multiples of it. The call's
        metrics are the means over its steps.

    Raises:
      ValueError: when something is no multiple of `steps_per_call`.
      NonFiniteError: when a metric is not finite; it names the step (a call's last one) and the
        metric. Every step is checked, before any hook sees its state.
    """
    first = done = int(state.step)
    for name, every in (
        ("state.step", first),
        ("steps", steps),
        ("log_every", log_every),
        *(("a hook's every", hook.every) for hook in hooks),
    ):
        if steps_per_call < 1 or every % steps_per_call:
            raise ValueError(f"{name}={every} is no multiple of steps_per_call={steps_per_call}")
    started = window_started = time.perf_counter()
    window: list[Mapping[str, Array]] = []
    full: list[Mapping[str, Array]] = []
    full_end = 0

    def flush() -> None:
        nonlocal full, window_started
        if not full:
            return
        fetched, full = jax.device_get(full), []
        _check_finite(fetched, full_end, steps_per_call)
        log(full_end, {k: float(np.mean([m[k] for m in fetched])) for k in fetched[0]})
        now = time.perf_counter()
        pace = (now - started) / max(full_end - first, 1)
        rate = len(fetched) * examples / (now - window_started)
        window_started = now
        progress(Progress(full_end, steps, rate, pace * (steps - full_end)))

    while done < steps:
        batch = next(batches)
        examples = jax.tree.leaves(batch)[0].shape[0] if batch else steps_per_call
        state, metrics = step(state, batch)
        done += steps_per_call
        flush()
        window.append(metrics)
        if done % log_every == 0 or done == steps:
            full, full_end, window = window, done, []
        due = [hook for hook in hooks if done % hook.every == 0 or done == steps]
        if due or done == steps:
            flush()
            _check_finite(jax.device_get(window), done, steps_per_call)
            for hook in due:
                hook.fn(done, state)
            if due:
                window_started = time.perf_counter()
    return state


def _check_finite(metrics: Sequence[Mapping[str, Any]], last_step: int, stride: int) -> None:
    for number, row in enumerate(metrics, start=1 - len(metrics)):
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            # What is made of the terms (their total, its gradient) comes after the terms.
            name = min(bad, key=lambda name: name.endswith(("/total", "/grad_norm")))
            raise NonFiniteError(
                f"step {last_step + stride * number}: {name} is {float(row[name])}"
            )

"""The training loop: it receives callables and knows nothing of losses, models or files."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.types import Array, Batch

Scalars: TypeAlias = Mapping[str, float]
Metrics: TypeAlias = dict[str, float]
"""The metrics of one call of a step."""


class NonFiniteError(RuntimeError):
    """A loss, a gradient norm or another metric became NaN or infinite."""


class Hook(NamedTuple):
    """What happens beside the training: evaluation, checkpoints.

    Attributes:
      every: called after each `every`-th step, and after the last.
      fn: `fn(step, state)`; all metrics up to `step` were finite or left no trace, and all windows
        that ended by then have been logged.
      at_stop: whether it is called when the loop is stopped between two of its steps, too.
    """

    every: int
    fn: Callable[[int, Any], None]
    at_stop: bool = False


class NonFinitePolicy(NamedTuple):
    """What to do about the steps of `kd_jax.skip_nonfinite` that left no trace.

    Attributes:
      patience: the guarded step's.
      on_skip: `on_skip(step, count, why)`, of each after which the training goes on.
      diagnose: `(state, batch) -> cause`, of each; None where it can say no more than the metrics.
        The state is that before the step, if the training ends by it. Else its `step` is, and all
        the rest that after the next step, which is on its way already.
    """

    patience: int = 0
    on_skip: Callable[[int, int, str], None] = lambda *_: None
    diagnose: Callable[[Any, Batch], str | None] = lambda *_: None


STRICT = NonFinitePolicy()
"""To end at the first of them."""


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
    window: list[Metrics] | None = None,
    stop: Callable[[], bool] = lambda: False,
    guard: NonFinitePolicy = STRICT,
) -> Any:
    """Takes steps until `state.step` is `steps`, or `stop()`; returns the final state.

    The device is never waited for right after a dispatch: a window's metrics are fetched once the
    first step of the next window is on its way. Where a hook is due they are fetched before it. Of
    a guarded step (`kd_jax.skip_nonfinite`) one number is fetched of every step, likewise one step late.

    Args:
      step: `(state, batch) -> (state, metrics)`, compiled; the state is donated to it.
      state: with a field `step`.
      batches: the global batches, the first one for step `state.step`.
      steps: where to stop.
      log: `log(step, means)`, the metrics' means over the `log_every` steps that end at `step`.
        Of guarded steps those that left no trace are not in the means, and `skipped`, their number
        since the training began, is there once there are any.
      log_every: the window's length; windows end at its multiples.
      hooks: called in order where they are due.
      progress: called after each window.
      steps_per_call: how many steps a call of `step` takes (`kd_jax.wrappers.scanned`); `steps`,
        `state.step`, `log_every` and every hook's `every` must be multiples of it. The call's
        metrics are the means over its steps.
      window: the metrics of the steps since the last window's end. It is kept up to date wherever
        a hook is called; whoever saves it beside the state and gives it back goes on with whole
        windows.
      stop: asked after each call of `step`; once it is true the hooks with `at_stop` are called.
      guard: for guarded steps.

    Raises:
      ValueError: when something is no multiple of `steps_per_call`.
      NonFiniteError: when a metric is not finite (of guarded steps, more than `patience` times); it
        names the step (a call's last one) and the metric. Every step is checked, before any hook
        sees its state.
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
    rows: list[Metrics] = [] if window is None else window
    pending: list[Mapping[str, Array]] = []  # of this window, not fetched
    full: list[Mapping[str, Array]] = []
    full_end = 0
    unseen: tuple[int, Batch, Mapping[str, Array]] | None = None  # the latest guarded step
    count = int(getattr(state, "skipped", ()) or 0)
    started = window_started = time.perf_counter()

    def check_pending() -> None:
        nonlocal unseen, count
        if unseen is None:
            return
        (number, batch, metrics), unseen = unseen, None
        before, count = count, int(metrics["skipped"])
        if count == before:
            return
        cause = guard.diagnose(
            state._replace(step=jnp.full_like(state.step, number - steps_per_call)), batch
        )
        why = str(_first_fault(_row(jax.device_get(dict(metrics)))))
        why += f" ({cause})" if cause else ""
        if count > guard.patience:
            raise NonFiniteError(f"step {number}: {why}")
        guard.on_skip(number, count, why)

    def fetch(metrics: Sequence[Mapping[str, Array]], last_step: int) -> None:
        for number, found in enumerate(jax.device_get(list(metrics)), start=1 - len(metrics)):
            row = _row(found)
            fault = _first_fault(row)
            if fault and "skipped" not in row:
                raise NonFiniteError(f"step {last_step + steps_per_call * number}: {fault}")
            rows.append(row)

    def flush() -> None:
        nonlocal full, window_started
        if not full:
            return
        of_now = len(full)
        fetch(full, full_end)
        full = []
        log(full_end, _means(rows))
        rows.clear()
        now = time.perf_counter()
        pace = (now - started) / max(full_end - first, 1)
        rate = of_now * examples / (now - window_started)
        window_started = now
        progress(Progress(full_end, steps, rate, pace * (steps - full_end)))

    stopped = done >= steps
    while not stopped:
        batch = next(batches)
        examples = jax.tree.leaves(batch)[0].shape[0] if batch else steps_per_call
        state, metrics = step(state, batch)
        done += steps_per_call
        check_pending()
        if "skipped" in metrics:
            unseen = done, batch, metrics
        flush()
        pending.append(metrics)
        if done % log_every == 0 or done == steps:
            full, full_end, pending = pending, done, []
        early = done < steps and stop()
        stopped = early or done == steps
        due = [
            hook
            for hook in hooks
            if done % hook.every == 0 or done == steps or (early and hook.at_stop)
        ]
        if due or stopped:
            check_pending()
            flush()
            fetch(pending, done)
            pending = []
            for hook in due:
                hook.fn(done, state)
            if due:
                window_started = time.perf_counter()
    return state


def _row(metrics: Mapping[str, Any]) -> Metrics:
    return {name: float(value) for name, value in metrics.items()}


def _means(rows: Sequence[Metrics]) -> dict[str, float]:
    """Of the rows without a fault; and the last count of the others, if there are any."""
    whole = [row for row in rows if _first_fault(row) is None]
    names = [name for name in rows[-1] if name != "skipped"]
    means = {name: float(np.mean([row[name] for row in whole])) for name in names if whole}
    lost = rows[-1].get("skipped", 0.0)
    return {**means, "skipped": lost} if lost else means


def _first_fault(row: Metrics) -> str | None:
    """What is not finite: a term before what is made of the terms, their total and its gradient."""
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if not bad:
        return None
    name = min(bad, key=lambda name: name.endswith(("/total", "/grad_norm")))
    return f"{name} is {row[name]}"

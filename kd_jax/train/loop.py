"""The training loop: it calls functions, and is independent of losses, models and files."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.core.types import Array, Batch
from kd_jax.core.wrappers import skip_count

Scalars: TypeAlias = Mapping[str, float]
Metrics: TypeAlias = dict[str, float]
"""The metrics of one call of a step."""


class NonFiniteError(RuntimeError):
    """A loss, a gradient norm or another metric became NaN or infinite."""


class Hook(NamedTuple):
    """A periodic callback, such as an evaluation or a checkpoint.

    Attributes:
      every: called after each `every`-th step, and after the last.
      fn: `fn(step, state)`; all metrics up to `step` were finite or their steps were skipped, and
        all windows that ended by then are logged.
      at_stop: whether it is also called when the loop stops at another step.
      also: one more step after which it is called.
    """

    every: int
    fn: Callable[[int, Any], None]
    at_stop: bool = False
    also: int | None = None

    def due(self, done: int, steps: int, early: bool) -> bool:
        """Whether to call it after step `done` of `steps`, or where the loop stops early."""
        regular = done % self.every == 0 or done in (steps, self.also)
        return regular or (early and self.at_stop)


class NonFinitePolicy(NamedTuple):
    """How to handle the steps that `kd_jax.skip_nonfinite` skipped.

    Attributes:
      patience: that of `skip_nonfinite`.
      on_skip: `on_skip(step, count, why)`, called for each skipped step that is tolerated.
      diagnose: `(state, batch) -> cause`, called for each skipped step; None if it finds nothing
        beyond the metrics. If the training ends at this step, the state is that before the step.
        Otherwise only its `step` is, and the rest is the state after the next step, which is
        already dispatched.
    """

    patience: int = 0
    on_skip: Callable[[int, int, str], None] = lambda *_: None
    diagnose: Callable[[Any, Batch], str | None] = lambda *_: None


STRICT = NonFinitePolicy()
"""Raise at the first skipped step."""


class Progress(NamedTuple):
    """The progress of a loop.

    Attributes:
      step: completed steps.
      steps: total number of steps.
      examples_per_second: over the last window; steps per second if batches are empty.
      seconds_per_step: the mean since the first step of this loop, whose time, mostly
        compilation, is left out; evaluations and checkpoints are included.
    """

    step: int
    steps: int
    examples_per_second: float
    seconds_per_step: float

    @property
    def seconds_left(self) -> float:
        """The estimated time to the last step."""
        return self.seconds_per_step * (self.steps - self.step)


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
    nonfinite: NonFinitePolicy = STRICT,
) -> Any:
    """Takes steps until `state.step` is `steps`, or `stop()`; returns the final state.

    The loop does not block on the step just dispatched: a window's metrics are fetched once the
    first step of the next window is dispatched, or before a hook if one is due. For a step with
    `kd_jax.skip_nonfinite`, its `skipped` count is fetched after every step, also one step late.

    Args:
      step: `(state, batch) -> (state, metrics)`, compiled; the state is donated to it.
      state: with a field `step`.
      batches: the global batches, the first one for step `state.step`.
      steps: the value of `state.step` at which to stop.
      log: `log(step, means)`, the metrics' means over the `log_every` steps that end at `step`.
        Steps skipped by `kd_jax.skip_nonfinite` are excluded from the means; if there are any,
        `skipped` is their number since the start of the training.
      log_every: the window's length; windows end at its multiples.
      hooks: called in order at the steps where they are due.
      progress: called after each window.
      steps_per_call: the number of steps in a call of `step` (`kd_jax.multi_step`); `steps`,
        `state.step`, `log_every` and every hook's `every` must be multiples of it. The call's
        metrics are the means over its steps.
      window: the metrics of the steps since the last window's end, up to date whenever a hook is
        called. Save it with the state and pass it on resume, so that the windows are complete.
      stop: called after each call of `step`; once it is true the hooks with `at_stop` are called.
      nonfinite: the policy for steps with `kd_jax.skip_nonfinite`.

    Raises:
      ValueError: one of these numbers is not a multiple of `steps_per_call`.
      NonFiniteError: a metric is not finite (with `kd_jax.skip_nonfinite`, more than `patience`
        times); the message names the step (a call's last one) and the metric. Every step is
        checked before its state is passed to a hook.
    """
    first = done = int(state.step)
    for name, every in (
        ("state.step", first),
        ("steps", steps),
        ("log_every", log_every),
        *(("a hook's every", hook.every) for hook in hooks),
    ):
        if steps_per_call < 1 or every % steps_per_call:
            raise ValueError(f"{name}={every} is not a multiple of steps_per_call={steps_per_call}")
    rows: list[Metrics] = [] if window is None else window
    pending: list[Mapping[str, Array]] = []  # metrics of this window that are not fetched yet
    full: list[Mapping[str, Array]] = []
    full_end = 0
    unchecked: tuple[int, Batch, Mapping[str, Array]] | None = None  # the latest guarded step
    count = skip_count(state) if hasattr(state, "wrappers") else 0
    started = window_started = time.perf_counter()
    compiled, uncounted = done, 0  # the first call, mostly compilation, counts for no rate

    def check_pending() -> None:
        nonlocal unchecked, count
        if unchecked is None:
            return
        (number, batch, metrics), unchecked = unchecked, None
        before, count = count, int(metrics["skipped"])
        if count == before:
            return
        cause = nonfinite.diagnose(
            state._replace(step=jnp.full_like(state.step, number - steps_per_call)), batch
        )
        why = str(_first_nonfinite(_row(jax.device_get(dict(metrics)))))
        why += f" ({cause})" if cause else ""
        if count > nonfinite.patience:
            raise NonFiniteError(f"step {number}: {why}")
        nonfinite.on_skip(number, count, why)

    def fetch(metrics: Sequence[Mapping[str, Array]], last_step: int) -> None:
        for number, values in enumerate(jax.device_get(list(metrics)), start=1 - len(metrics)):
            row = _row(values)
            fault = _first_nonfinite(row)
            if fault and "skipped" not in row:
                raise NonFiniteError(f"step {last_step + steps_per_call * number}: {fault}")
            rows.append(row)

    def flush() -> None:
        nonlocal full, window_started
        if not full:
            return
        nonlocal uncounted
        calls, uncounted = len(full) - uncounted, 0
        fetch(full, full_end)
        full = []
        log(full_end, _means(rows))
        rows.clear()
        now = time.perf_counter()
        seconds_per_step = (now - started) / max(full_end - compiled, 1)
        rate = max(calls, 1) * examples / (now - window_started)
        window_started = now
        progress(Progress(full_end, steps, rate, seconds_per_step))

    stopped = done >= steps
    while not stopped:
        batch = next(batches)
        examples = jax.tree.leaves(batch)[0].shape[0] if batch else steps_per_call
        state, metrics = step(state, batch)
        if done == first:
            jax.block_until_ready(metrics)
            started = window_started = time.perf_counter()
            compiled, uncounted = done + steps_per_call, 1
        done += steps_per_call
        check_pending()
        if "skipped" in metrics:
            unchecked = done, batch, metrics
        flush()
        pending.append(metrics)
        if done % log_every == 0 or done == steps:
            full, full_end, pending = pending, done, []
        early = done < steps and stop()
        stopped = early or done == steps
        due = [hook for hook in hooks if hook.due(done, steps, early)]
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
    """The means of the finite rows, and the last `skipped` count if it is not zero."""
    finite = [row for row in rows if _first_nonfinite(row) is None]
    names = [name for name in rows[-1] if name != "skipped"]
    means = {name: float(np.mean([row[name] for row in finite])) for name in names if finite}
    skipped = rows[-1].get("skipped", 0.0)
    return {**means, "skipped": skipped} if skipped else means


def _first_nonfinite(row: Metrics) -> str | None:
    """The first non-finite metric, or None; single terms before their total and its gradient."""
    nonfinite = [name for name, value in row.items() if not math.isfinite(value)]
    if not nonfinite:
        return None
    name = min(nonfinite, key=lambda name: name.endswith(("/total", "/grad_norm")))
    return f"{name} is {row[name]}"

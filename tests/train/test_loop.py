"""The training loop, with a step whose metrics are known."""

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.train import loop
from kd_jax.train.loop import Hook, NonFiniteError, NonFinitePolicy, fit


class State(NamedTuple):
    step: object


BATCHES = {"image": np.zeros((8, 1))}


def counting_step(bad=None, value=math.nan, name="d/r1"):
    """A step whose metric `g/x` is the step number."""

    def step(state, batch):
        number = state.step + 1
        metrics = {"d/r1": jnp.ones(()), "g/x": jnp.asarray(float(number)), "d/total": jnp.ones(())}
        if number == bad:
            metrics |= {name: jnp.asarray(value), "d/total": jnp.asarray(value)}
        return State(number), metrics

    return step


def repeat_batch():
    while True:
        yield BATCHES


def run(steps, start=0, step=None, hooks=(), log_every=3, **kwargs):
    logged = []
    state = fit(
        step or counting_step(),
        State(start),
        repeat_batch(),
        steps=steps,
        log=lambda number, means: logged.append((number, means["g/x"])),
        log_every=log_every,
        hooks=hooks,
        **kwargs,
    )
    return state, logged


def test_windows_are_means_and_the_last_may_be_shorter():
    state, logged = run(8)
    assert state.step == 8
    assert logged == [(3, 2.0), (6, 5.0), (8, 7.5)]


def test_windows_are_the_same_after_a_resume():
    assert run(8, start=3)[1] == run(8)[1][1:]


def test_no_steps_if_the_state_is_at_the_last_step():
    state, logged = run(5, start=5)
    assert state.step == 5
    assert logged == []


def test_hooks_are_called_in_order_after_their_window_is_logged():
    calls, logged = [], []
    hooks = [
        Hook(3, lambda n, s: calls.append(("a", n, s.step, len(logged)))),
        Hook(6, lambda n, s: calls.append(("b", n, s.step, len(logged)))),
    ]
    fit(
        counting_step(),
        State(0),
        repeat_batch(),
        steps=7,
        log=lambda n, m: logged.append(n),
        log_every=3,
        hooks=hooks,
    )
    assert calls == [
        ("a", 3, 3, 1), ("a", 6, 6, 2), ("b", 6, 6, 2), ("a", 7, 7, 3), ("b", 7, 7, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [1, 2, 3, 4])
def test_a_nonfinite_metric_raises_before_any_hook_is_called(value, bad):
    calls = []
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: d/r1 is {value}$"):
        run(6, step=counting_step(bad, value), hooks=[Hook(2, lambda n, s: calls.append(n))])
    assert all(n < bad for n in calls)


def test_the_error_names_the_term_before_its_total():
    with pytest.raises(NonFiniteError, match="g/x"):
        run(3, step=counting_step(2, name="g/x"))


def test_a_window_is_fetched_only_after_the_next_dispatch(monkeypatch):
    events = []
    step, get = counting_step(), jax.device_get

    def dispatch(state, batch):
        state, metrics = step(state, batch)
        events.append(f"step {state.step}")
        return state, metrics

    def fetch(tree):
        events.append("fetch")
        return get(tree)

    monkeypatch.setattr(loop.jax, "device_get", fetch)
    run(7, step=dispatch)
    first = events.index("fetch")
    assert events[first - 1] == "step 4"
    assert events[: first - 1] == ["step 1", "step 2", "step 3"]


def test_progress(monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(now)))
    reports = []
    run(6, progress=reports.append)
    assert [p.step for p in reports] == [3, 6]
    # The clock advances 10 s at the start, after the first step, which is left out, and per window:
    # 2 steps of 8 examples in 10 s, and 3 more steps to go.
    assert reports[0].examples_per_second == pytest.approx(1.6)
    assert reports[0].seconds_left == pytest.approx(15.0)
    assert reports[1].seconds_left == 0.0


def test_a_resume_inside_a_window_averages_its_remaining_steps():
    assert run(8, start=4)[1] == [(6, 5.5), (8, 7.5)]


def test_each_metric_is_averaged():
    rows = iter([{"a": 1.0, "b": -4.0}, {"a": 2.0, "b": 0.5}, {"a": 9.0, "b": 0.25}])
    logged = {}
    fit(
        lambda state, _: (State(state.step + 1), jax.tree.map(jnp.float32, next(rows))),
        State(0),
        repeat_batch(),
        steps=3,
        log=logged.__setitem__,
        log_every=2,
    )
    assert logged == {2: {"a": 1.5, "b": -1.75}, 3: {"a": 9.0, "b": 0.25}}
    assert all(type(mean) is float for means in logged.values() for mean in means.values())


def test_the_last_step_calls_each_hook_once():
    calls = []
    hooks = [Hook(n, lambda step, s, n=n: calls.append((step, n))) for n in (4, 2, 100)]
    run(4, hooks=hooks)
    assert calls == [(2, 2), (4, 4), (4, 2), (4, 100)]


def test_no_batch_is_read_after_the_last_step():
    indices = []
    batches = (indices.append(n) or BATCHES for n in range(100))
    fit(counting_step(), State(2), batches, steps=5, log=lambda *_: None)
    assert indices == [0, 1, 2]


def test_a_hook_inside_a_window_does_not_split_it():
    calls = []
    _, logged = run(6, hooks=[Hook(2, lambda n, s: calls.append((n, s.step)))])
    assert calls == [(2, 2), (4, 4), (6, 6)]
    assert logged == [(3, 2.0), (6, 5.0)]


def test_metrics_are_fetched_one_step_late(monkeypatch):
    """No metric is fetched before the step after its own, except for a hook or at the end."""
    dispatched, early, get = [], [], jax.device_get
    step = counting_step()

    def dispatch(state, batch):
        state, metrics = step(state, batch)
        dispatched.append(state.step)
        return state, metrics

    def fetch(tree):
        rows = get(tree)
        early.extend(int(row["g/x"]) for row in rows if row["g/x"] >= dispatched[-1])
        return rows

    monkeypatch.setattr(loop.jax, "device_get", fetch)
    _, logged = run(11, step=dispatch)
    assert [n for n, _ in logged] == [3, 6, 9, 11]
    assert set(early) == {11}
    early.clear(), dispatched.clear()
    run(11, step=dispatch, hooks=[Hook(5, lambda *_: None)])
    assert set(early) == {5, 10, 11}


@pytest.mark.parametrize(("bad", "start", "log_every"), [(6, 4, 50), (8, 0, 3), (4, 3, 1)])
def test_nonfinite_after_a_resume_and_in_a_short_window(bad, start, log_every):
    logged = []
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: g/x is -inf$"):
        fit(
            counting_step(bad, -math.inf, "g/x"),
            State(start),
            repeat_batch(),
            steps=8,
            log=lambda n, _: logged.append(n),
            log_every=log_every,
        )
    assert all(n < bad for n in logged)


def test_the_rate_excludes_the_time_of_hooks(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = counting_step()

    def slow(state, batch):
        clock[0] += 2.0
        return step(state, batch)

    def wait(*_):
        clock[0] += 100.0

    reports = []
    run(12, start=3, step=slow, hooks=[Hook(3, wait)], progress=reports.append)
    assert [p.step for p in reports] == [6, 9, 12]
    assert all(p.steps == 12 for p in reports)
    # 8 examples every 2 s. Without the first step: after 2 steps in 4 s, 6 remain; after 5 steps
    # and a hook, 3.
    assert [p.examples_per_second for p in reports] == [4.0, 4.0, 4.0]
    assert [p.seconds_left for p in reports] == [12.0, 110.0 / 5 * 3, 0.0]


def test_compilation_is_left_out_of_the_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = counting_step()

    def compiles_first(state, batch):
        clock[0] += 500.0 if int(state.step) == 0 else 2.0
        return step(state, batch)

    reports = []
    run(6, step=compiles_first, hooks=[Hook(3, lambda *_: None)], progress=reports.append)
    assert [p.examples_per_second for p in reports] == [4.0, 4.0]
    assert reports[0].seconds_left == 6.0


def test_a_hook_is_also_called_at_one_more_step():
    calls = []
    run(9, hooks=[Hook(6, lambda step, state: calls.append(step), also=3)])
    assert calls == [3, 6, 9]


def multi_step(count, step=None):
    """Like `kd_jax.multi_step`: `count` steps in one call, whose metrics are the steps' means."""
    single = step or counting_step()

    def call(state, batch):
        rows = []
        for _ in range(count):
            state, metrics = single(state, batch)
            rows.append(metrics)
        return state, {name: jnp.stack([row[name] for row in rows]).mean() for name in rows[0]}

    return call


def test_several_steps_per_call_log_the_same_means():
    calls = []
    hooks = [Hook(4, lambda n, s: calls.append((n, s.step)))]
    state, logged = run(10, step=multi_step(2), log_every=6, steps_per_call=2, hooks=hooks)
    assert state.step == 10
    assert logged == run(10, log_every=6)[1] == [(6, 3.5), (10, 8.5)]
    assert calls == [(4, 4), (8, 8), (10, 10)]
    assert run(10, start=4, step=multi_step(2), log_every=6, steps_per_call=2)[1] == [
        (6, 5.5),
        (10, 8.5),
    ]


def test_one_batch_is_read_per_call():
    indices = []
    batches = (indices.append(n) or BATCHES for n in range(100))
    fit(
        multi_step(3),
        State(3),
        batches,
        steps=9,
        log=lambda *_: None,
        log_every=3,
        steps_per_call=3,
    )
    assert indices == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 9}, "steps=9 .*steps_per_call=4"),
        ({"log_every": 6}, "log_every=6 .*steps_per_call=4"),
        ({"hooks": [Hook(4, print), Hook(2, print)]}, "a hook's every=2 .*steps_per_call=4"),
        ({"start": 2}, r"state\.step=2 .*steps_per_call=4"),
        ({"steps_per_call": 0}, "steps_per_call=0"),
        ({"steps_per_call": -1}, "steps_per_call=-1"),
    ],
)
def test_numbers_must_be_multiples_of_steps_per_call(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**{"steps": 8, "log_every": 4, "steps_per_call": 4, **changes})


@pytest.mark.parametrize(("bad", "named"), [(1, 2), (4, 4), (5, 6), (6, 6)])
def test_a_nonfinite_call_is_named_by_its_last_step(bad, named):
    calls = []
    with pytest.raises(NonFiniteError, match=rf"^step {named}: d/r1 is nan$"):
        run(
            8,
            step=multi_step(2, counting_step(bad)),
            log_every=4,
            steps_per_call=2,
            hooks=[Hook(4, lambda n, s: calls.append(n))],
        )
    assert all(n < bad for n in calls)


@pytest.mark.parametrize(("batch", "rate"), [({"image": np.zeros((16, 1))}, 8.0), ({}, 1.0)])
def test_the_rate_counts_examples_or_steps_if_batches_are_empty(monkeypatch, batch, rate):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = multi_step(2)

    def slow(state, batch):
        clock[0] += 2.0
        return step(state, batch)

    reports = []
    fit(
        slow,
        State(0),
        iter(lambda: batch, None),
        steps=8,
        log=lambda *_: None,
        log_every=8,
        progress=reports.append,
        steps_per_call=2,
    )
    assert [p.step for p in reports] == [8]
    assert reports[0].examples_per_second == rate
    assert reports[0].seconds_left == 0.0


def test_a_stop_calls_the_hooks_with_at_stop():
    calls = []
    hooks = [
        Hook(4, lambda n, s: calls.append(("save", n)), at_stop=True),
        Hook(3, lambda n, s: calls.append(("evaluate", n))),
    ]
    flags = iter([False, False, False, False, True])
    state, logged = run(9, hooks=hooks, stop=lambda: next(flags))
    assert state.step == 5
    assert logged == [(3, 2.0)]
    assert calls == [("evaluate", 3), ("save", 4), ("save", 5)]


def test_stop_is_not_called_after_the_last_step():
    stop_calls = []
    state, logged = run(2, stop=lambda: bool(stop_calls.append(1)))
    assert state.step == 2
    assert logged == [(2, 1.5)]
    assert len(stop_calls) == 1


@pytest.mark.parametrize("resume_step", [1, 2, 3, 4, 7])
def test_a_restored_window_is_complete(resume_step):
    """A hook saves the window as JSON, and the loop resumes with it."""
    saved = []
    window = []
    hooks = [Hook(1, lambda n, s: saved.append((n, json.dumps(window))))]
    uninterrupted = run(8, hooks=hooks, window=window)[1]
    restored = json.loads(dict(saved)[resume_step])
    assert len(restored) == resume_step % 3
    resumed = run(8, start=resume_step, window=restored)[1]
    assert resumed == [row for row in uninterrupted if row[0] > resume_step]


class SkippingState(NamedTuple):
    step: object
    wrappers: dict

    @property
    def skipped(self):
        return self.wrappers["skipped"]


def skipping_state(step, skipped=0):
    return SkippingState(jnp.int32(step), {"skipped": jnp.int32(skipped)})


def skipping_step(bad, patience):
    """Like `kd_jax.skip_nonfinite`: the metric of some steps is NaN; they are only counted."""

    def step(state, batch):
        number = int(state.step) + 1
        fault = number in bad and int(state.skipped) <= patience
        count = int(state.skipped) + fault
        metrics = {"g/x": jnp.asarray(math.nan if fault else float(number)), "skipped": count}
        proceeds = count <= patience
        return skipping_state(number if proceeds else number - 1, count), metrics

    return step


def test_skipped_steps_are_reported_and_excluded_from_the_means():
    reports, rows = [], []
    state = fit(
        skipping_step((2, 4), 2),
        skipping_state(0),
        repeat_batch(),
        steps=8,
        log=lambda number, means: rows.append((number, dict(means))),
        log_every=3,
        nonfinite=NonFinitePolicy(2, lambda *report: reports.append(report)),
    )
    assert (int(state.step), int(state.skipped)) == (8, 2)
    assert reports == [(2, 1, "g/x is nan"), (4, 2, "g/x is nan")]
    assert rows == [
        (3, {"g/x": 2.0, "skipped": 1.0}),
        (6, {"g/x": 5.5, "skipped": 2.0}),
        (8, {"g/x": 7.5, "skipped": 2.0}),
    ]


def test_steps_skipped_before_a_resume_are_not_reported_again():
    reports = []
    fit(
        skipping_step((6,), 2),
        skipping_state(4, 1),
        repeat_batch(),
        steps=8,
        log=lambda number, means: None,
        nonfinite=NonFinitePolicy(2, lambda *report: reports.append(report)),
    )
    assert reports == [(6, 2, "g/x is nan")]


@pytest.mark.parametrize("steps", [4, 5, 9])
def test_exceeding_the_patience_raises_before_any_hook(steps):
    calls, diagnosed = [], []

    def diagnose(state, batch):
        diagnosed.append((int(state.step), batch is BATCHES))
        return "a cause"

    with pytest.raises(NonFiniteError, match=r"^step 4: g/x is nan \(a cause\)$"):
        fit(
            skipping_step((2, 4), 1),
            skipping_state(0),
            repeat_batch(),
            steps=steps,
            log=lambda *_: None,
            log_every=3,
            hooks=[Hook(1, lambda n, s: calls.append(n))],
            nonfinite=NonFinitePolicy(1, diagnose=diagnose),
        )
    assert calls == [1, 2, 3]
    assert diagnosed == [(1, True), (3, True)]

"""The loop, with a step whose numbers are known."""

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import loop
from kd_jax.loop import Hook, NonFiniteError, NonFinitePolicy, fit


class State(NamedTuple):
    step: object


BATCHES = {"image": np.zeros((8, 1))}


def counting(bad=None, value=math.nan, name="d/r1"):
    """A step whose metric `g/x` is the number of the step."""

    def step(state, batch):
        number = state.step + 1
        metrics = {"d/r1": jnp.ones(()), "g/x": jnp.asarray(float(number)), "d/total": jnp.ones(())}
        if number == bad:
            metrics |= {name: jnp.asarray(value), "d/total": jnp.asarray(value)}
        return State(number), metrics

    return step


def forever():
    while True:
        yield BATCHES


def run(steps, start=0, step=None, hooks=(), log_every=3, **kwargs):
    logged = []
    state = fit(
        step or counting(),
        State(start),
        forever(),
        steps=steps,
        log=lambda number, means: logged.append((number, means["g/x"])),
        log_every=log_every,
        hooks=hooks,
        **kwargs,
    )
    return state, logged


def test_windows_are_means_and_the_last_may_be_short():
    state, logged = run(8)
    assert state.step == 8
    assert logged == [(3, 2.0), (6, 5.0), (8, 7.5)]


def test_windows_are_the_same_after_a_resume():
    assert run(8, start=3)[1] == run(8)[1][1:]


def test_nothing_is_left_to_do():
    state, logged = run(5, start=5)
    assert state.step == 5
    assert logged == []


def test_hooks_are_called_in_order_after_what_they_follow_is_logged():
    calls, logged = [], []
    hooks = [
        Hook(3, lambda n, s: calls.append(("a", n, s.step, len(logged)))),
        Hook(6, lambda n, s: calls.append(("b", n, s.step, len(logged)))),
    ]
    fit(
        counting(),
        State(0),
        forever(),
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
def test_a_metric_that_is_not_finite_stops_before_any_hook_sees_it(value, bad):
    seen = []
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: d/r1 is {value}$"):
        run(6, step=counting(bad, value), hooks=[Hook(2, lambda n, s: seen.append(n))])
    assert all(n < bad for n in seen)


def test_the_term_is_named_before_what_is_made_of_it():
    with pytest.raises(NonFiniteError, match="g/x"):
        run(3, step=counting(2, name="g/x"))


def test_a_window_is_fetched_only_after_the_next_dispatch(monkeypatch):
    events = []
    step, get = counting(), jax.device_get

    def dispatched(state, batch):
        state, metrics = step(state, batch)
        events.append(f"step {state.step}")
        return state, metrics

    def fetched(tree):
        events.append("fetch")
        return get(tree)

    monkeypatch.setattr(loop.jax, "device_get", fetched)
    run(7, step=dispatched)
    first = events.index("fetch")
    assert events[first - 1] == "step 4"
    assert events[: first - 1] == ["step 1", "step 2", "step 3"]


def test_progress(monkeypatch):
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(now)))
    shown = []
    run(6, progress=shown.append)
    assert [p.step for p in shown] == [3, 6]
    # The clock ticks once at the start and once a window, by ten: 3 steps of 8 examples in 10 s.
    assert shown[0].examples_per_second == pytest.approx(2.4)
    assert shown[0].seconds_left == pytest.approx(10.0)
    assert shown[1].seconds_left == 0.0


def test_a_resume_inside_a_window_averages_what_is_left_of_it():
    assert run(8, start=4)[1] == [(6, 5.5), (8, 7.5)]


def test_every_metric_has_its_mean():
    rows = iter([{"a": 1.0, "b": -4.0}, {"a": 2.0, "b": 0.5}, {"a": 9.0, "b": 0.25}])
    logged = {}
    fit(
        lambda state, _: (State(state.step + 1), jax.tree.map(jnp.float32, next(rows))),
        State(0),
        forever(),
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


def test_no_batch_is_taken_beyond_the_last_step():
    taken = []
    batches = (taken.append(n) or BATCHES for n in range(100))
    fit(counting(), State(2), batches, steps=5, log=lambda *_: None)
    assert taken == [0, 1, 2]


def test_a_hook_inside_a_window_does_not_cut_it():
    seen = []
    _, logged = run(6, hooks=[Hook(2, lambda n, s: seen.append((n, s.step)))])
    assert seen == [(2, 2), (4, 4), (6, 6)]
    assert logged == [(3, 2.0), (6, 5.0)]


def test_what_is_fetched_when(monkeypatch):
    """No metric is fetched before the step after its own, except for a hook or at the end."""
    dispatched, early, get = [], [], jax.device_get
    step = counting()

    def watched(state, batch):
        state, metrics = step(state, batch)
        dispatched.append(state.step)
        return state, metrics

    def fetched(tree):
        rows = get(tree)
        early.extend(int(row["g/x"]) for row in rows if row["g/x"] >= dispatched[-1])
        return rows

    monkeypatch.setattr(loop.jax, "device_get", fetched)
    _, logged = run(11, step=watched)
    assert [n for n, _ in logged] == [3, 6, 9, 11]
    assert set(early) == {11}
    early.clear(), dispatched.clear()
    run(11, step=watched, hooks=[Hook(5, lambda *_: None)])
    assert set(early) == {5, 10, 11}


@pytest.mark.parametrize(("bad", "start", "log_every"), [(6, 4, 50), (8, 0, 3), (4, 3, 1)])
def test_not_finite_after_a_resume_and_in_a_short_window(bad, start, log_every):
    logged = []
    with pytest.raises(NonFiniteError, match=rf"^step {bad}: g/x is -inf$"):
        fit(
            counting(bad, -math.inf, "g/x"),
            State(start),
            forever(),
            steps=8,
            log=lambda n, _: logged.append(n),
            log_every=log_every,
        )
    assert all(n < bad for n in logged)


def test_progress_leaves_the_hooks_out_of_the_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = counting()

    def slow(state, batch):
        clock[0] += 2.0
        return step(state, batch)

    def wait(*_):
        clock[0] += 100.0

    shown = []
    run(12, start=3, step=slow, hooks=[Hook(3, wait)], progress=shown.append)
    assert [p.step for p in shown] == [6, 9, 12]
    assert all(p.steps == 12 for p in shown)
    # 8 examples every 2 s; after 3 steps in 6 s, 6 are left; after 6 steps and a hook, 3.
    assert [p.examples_per_second for p in shown] == [4.0, 4.0, 4.0]
    assert [p.seconds_left for p in shown] == [12.0, 112.0 / 6 * 3, 0.0]


def in_calls_of(count, step=None):
    """As `kd_jax.wrappers.scanned`: so many steps in one call, whose metrics are their means."""
    single = step or counting()

    def call(state, batch):
        rows = []
        for _ in range(count):
            state, metrics = single(state, batch)
            rows.append(metrics)
        return state, {name: jnp.stack([row[name] for row in rows]).mean() for name in rows[0]}

    return call


def test_several_steps_in_one_call_log_the_same_means():
    calls = []
    hooks = [Hook(4, lambda n, s: calls.append((n, s.step)))]
    state, logged = run(10, step=in_calls_of(2), log_every=6, steps_per_call=2, hooks=hooks)
    assert state.step == 10
    assert logged == run(10, log_every=6)[1] == [(6, 3.5), (10, 8.5)]
    assert calls == [(4, 4), (8, 8), (10, 10)]
    assert run(10, start=4, step=in_calls_of(2), log_every=6, steps_per_call=2)[1] == [
        (6, 5.5),
        (10, 8.5),
    ]


def test_a_batch_for_each_call_is_taken():
    taken = []
    batches = (taken.append(n) or BATCHES for n in range(100))
    fit(
        in_calls_of(3),
        State(3),
        batches,
        steps=9,
        log=lambda *_: None,
        log_every=3,
        steps_per_call=3,
    )
    assert taken == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 9}, "steps=9 is no multiple of steps_per_call=4"),
        ({"log_every": 6}, "log_every=6 is no multiple of steps_per_call=4"),
        ({"hooks": [Hook(4, print), Hook(2, print)]}, "a hook's every=2 is no multiple"),
        ({"start": 2}, r"state\.step=2 is no multiple of steps_per_call=4"),
        ({"steps_per_call": 0}, "steps_per_call=0"),
        ({"steps_per_call": -1}, "steps_per_call=-1"),
    ],
)
def test_what_is_no_multiple_of_the_calls_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**{"steps": 8, "log_every": 4, "steps_per_call": 4, **changes})


@pytest.mark.parametrize(("bad", "named"), [(1, 2), (4, 4), (5, 6), (6, 6)])
def test_a_call_that_is_not_finite_is_named_by_its_last_step(bad, named):
    seen = []
    with pytest.raises(NonFiniteError, match=rf"^step {named}: d/r1 is nan$"):
        run(
            8,
            step=in_calls_of(2, counting(bad)),
            log_every=4,
            steps_per_call=2,
            hooks=[Hook(4, lambda n, s: seen.append(n))],
        )
    assert all(n < bad for n in seen)


@pytest.mark.parametrize(("batch", "rate"), [({"image": np.zeros((16, 1))}, 8.0), ({}, 1.0)])
def test_the_rate_counts_a_call_s_examples_or_else_its_steps(monkeypatch, batch, rate):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step = in_calls_of(2)

    def slow(state, batch):
        clock[0] += 2.0
        return step(state, batch)

    shown = []
    fit(
        slow,
        State(0),
        iter(lambda: batch, None),
        steps=8,
        log=lambda *_: None,
        log_every=8,
        progress=shown.append,
        steps_per_call=2,
    )
    assert [p.step for p in shown] == [8]
    assert shown[0].examples_per_second == rate
    assert shown[0].seconds_left == 0.0


def test_a_stop_calls_the_hooks_that_want_it():
    calls = []
    hooks = [
        Hook(4, lambda n, s: calls.append(("save", n)), at_stop=True),
        Hook(3, lambda n, s: calls.append(("look", n))),
    ]
    answers = iter([False, False, False, False, True])
    state, logged = run(9, hooks=hooks, stop=lambda: next(answers))
    assert state.step == 5
    assert logged == [(3, 2.0)]
    assert calls == [("look", 3), ("save", 4), ("save", 5)]


def test_after_the_last_step_nobody_asks_whether_to_stop():
    asked = []
    state, logged = run(2, stop=lambda: bool(asked.append(1)))
    assert state.step == 2
    assert logged == [(2, 1.5)]
    assert len(asked) == 1


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 7])
def test_a_window_that_is_given_back_is_whole(cut):
    """Saved by a hook in the midst of it, as JSON, and gone on with."""
    saved = []
    window = []
    hooks = [Hook(1, lambda n, s: saved.append((n, json.dumps(window))))]
    whole = run(8, hooks=hooks, window=window)[1]
    given = json.loads(dict(saved)[cut])
    assert len(given) == cut % 3
    assert run(8, start=cut, window=given)[1] == [row for row in whole if row[0] > cut]


class Skipping(NamedTuple):
    step: object
    skipped: object


def skipping(bad, patience):
    """As `kd_jax.skip_nonfinite`: some steps' metric is NaN, and leaves no trace but in the count."""

    def step(state, batch):
        number = int(state.step) + 1
        fault = number in bad and int(state.skipped) <= patience
        count = int(state.skipped) + fault
        metrics = {"g/x": jnp.asarray(math.nan if fault else float(number)), "skipped": count}
        on = count <= patience
        return Skipping(jnp.int32(number if on else number - 1), jnp.int32(count)), metrics

    return step


def test_steps_that_left_no_trace_are_told_and_not_in_the_means():
    told, rows = [], []
    state = fit(
        skipping((2, 4), 2),
        Skipping(jnp.int32(0), jnp.int32(0)),
        forever(),
        steps=8,
        log=lambda number, means: rows.append((number, dict(means))),
        log_every=3,
        guard=NonFinitePolicy(2, lambda *given: told.append(given)),
    )
    assert (int(state.step), int(state.skipped)) == (8, 2)
    assert told == [(2, 1, "g/x is nan"), (4, 2, "g/x is nan")]
    assert rows == [
        (3, {"g/x": 2.0, "skipped": 1.0}),
        (6, {"g/x": 5.5, "skipped": 2.0}),
        (8, {"g/x": 7.5, "skipped": 2.0}),
    ]


@pytest.mark.parametrize("steps", [4, 5, 9])
def test_more_than_the_patience_ends_it_before_any_hook(steps):
    seen, asked = [], []

    def explain(state, batch):
        asked.append((int(state.step), batch is BATCHES))
        return "a cause"

    with pytest.raises(NonFiniteError, match=r"^step 4: g/x is nan \(a cause\)$"):
        fit(
            skipping((2, 4), 1),
            Skipping(jnp.int32(0), jnp.int32(0)),
            forever(),
            steps=steps,
            log=lambda *_: None,
            log_every=3,
            hooks=[Hook(1, lambda n, s: seen.append(n))],
            guard=NonFinitePolicy(1, diagnose=explain),
        )
    assert seen == [1, 2, 3]
    assert asked == [(1, True), (3, True)]

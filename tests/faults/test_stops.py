"""A training that receives a signal saves within one step and resumes bit-exactly."""

import contextlib
import os
import signal
import sys
import time

import faults
import jax
import pytest
import training
from selection import quick

from experiments import harness
from kd_jax.train.shutdown import EXIT_CODE, ShutdownRequested, ShutdownSignal


class Interrupted:
    """Batches that send a signal to this process together with the batch of one step."""

    def __init__(self, batches, number, which):
        # Plus 1: the first batch only gives the shapes, before the training.
        self._batches, self._left, self._which = batches, number + 1, which

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), self._which)
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    training.train(folder, training.training_plan(23), training.batches(), keep_every=1)
    return faults.everything(folder)


@pytest.mark.parametrize(
    "which",
    [signal.SIGTERM, signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGHUP", "SIGINT"],
)
@pytest.mark.parametrize("number", quick([6, 1, 5, 7, 22]))
def test_a_signal_saves_the_current_step(tmp_path, monkeypatch, unbroken, which, number):
    monkeypatch.setattr(harness, "STOP", ShutdownSignal())
    batches = Interrupted(training.batches(), number, which)
    with harness.STOP, pytest.raises(ShutdownRequested) as stopped:
        training.train(tmp_path, training.training_plan(23), batches, keep_every=1)
    assert stopped.value.code == EXIT_CODE == 75
    # Before the end of the first step there is nothing to save.
    saved = {number} if number > 1 else set()
    assert faults.steps(tmp_path)[-1:] == list(saved)
    monkeypatch.setattr(harness, "STOP", ShutdownSignal())
    training.train(tmp_path, training.training_plan(23), training.batches(), keep_every=1)
    after = faults.everything(tmp_path)
    assert after.pop("steps") == sorted({*unbroken["steps"], *saved})
    assert after == {k: v for k, v in unbroken.items() if k != "steps"}


def test_batches_read_ahead_give_the_same_bits_and_resume(tmp_path, monkeypatch, unbroken):
    for number in (7, None):
        monkeypatch.setattr(harness, "STOP", ShutdownSignal())
        batches = training.batches()
        with harness.STOP, contextlib.suppress(ShutdownRequested):
            if number:
                batches = Interrupted(batches, number, signal.SIGTERM)
            training.train(tmp_path, training.training_plan(23), batches, keep_every=1, prefetch=3)
        if number:
            stopped = faults.steps(tmp_path)[-1]
            assert number - 4 < stopped <= number  # three batches are read ahead
    after, expected = faults.everything(tmp_path), dict(unbroken)
    assert set(after.pop("steps")) == {*expected.pop("steps"), stopped}
    assert after == expected


def test_a_second_signal_exits_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "STOP", ShutdownSignal())

    def signal_twice():
        os.kill(os.getpid(), signal.SIGTERM)
        assert harness.STOP()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the signal did not end the program")

    with harness.STOP, harness.STOP.deferred(), pytest.raises(ShutdownRequested, match="SIGTERM"):
        signal_twice()


def test_a_signal_exits_at_once_when_there_is_nothing_to_save():
    def signal_once():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("the signal did not end the program")

    with ShutdownSignal(), pytest.raises(ShutdownRequested, match="SIGINT"):
        signal_once()


def test_a_signal_in_a_finalizer_is_not_lost():
    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # the exception is raised here, and Python ignores it

    def run():
        thing = Finalized()
        del thing
        for _ in range(100):
            time.sleep(0.05)
        pytest.fail("the signal did not end the program")

    with ShutdownSignal(), pytest.raises(ShutdownRequested, match="SIGINT"):
        run()


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in ShutdownSignal.SIGNALS]
    hook = sys.unraisablehook
    with ShutdownSignal():
        assert [signal.getsignal(number) for number in ShutdownSignal.SIGNALS] != before
    assert [signal.getsignal(number) for number in ShutdownSignal.SIGNALS] == before
    assert sys.unraisablehook is hook


def test_the_time_limit_in_minutes(tmp_path, monkeypatch, unbroken):
    now = [0.0]
    monkeypatch.setattr("kd_jax.train.shutdown.time.monotonic", lambda: now[0])
    monkeypatch.setattr(harness, "STOP", ShutdownSignal(minutes=2))
    assert not harness.STOP()
    now[0] = 119.0
    assert not harness.STOP()
    now[0] = 121.0
    assert harness.STOP()
    assert harness.STOP.reason == "2 minutes are over"
    with pytest.raises(ShutdownRequested):
        training.train(tmp_path, training.training_plan(23), training.batches())
    assert faults.steps(tmp_path) == [1]
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="not a time from now"):
            ShutdownSignal(minutes=bad)


def test_the_program_exits_with_the_documented_code(tmp_path):
    with faults.start(tmp_path / "run", "--steps=1000000") as process:
        for line in process.stdout:
            if "images/s" in line:
                process.send_signal(signal.SIGTERM)
                break
        out, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE, error
    step = faults.steps(tmp_path / "run")[-1]
    assert f"stopped at step {step} of 1000000; step {step} is saved" in out


def test_a_signal_in_the_last_step_does_not_interrupt_a_finished_training(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "STOP", ShutdownSignal())
    batches = Interrupted(training.batches(), 3, signal.SIGTERM)
    with harness.STOP:
        training.train(tmp_path, training.training_plan(3), batches)
    assert faults.steps(tmp_path) == [3]
    assert jax.process_count() == 1


def test_a_training_past_its_settings_is_refused(tmp_path):
    training.train(tmp_path, training.training_plan(8), training.batches())
    with pytest.raises(harness.UsageError, match=r"is at step 8, past the 4 steps"):
        training.train(tmp_path, training.training_plan(4), training.batches())
    assert faults.steps(tmp_path) == [5, 8]


def test_an_ignored_hangup_remains_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with ShutdownSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

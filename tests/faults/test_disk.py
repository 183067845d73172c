"""A full disk is reported at its step; the failed step is not listed and older steps remain."""

import re

import faults
import pytest

# The disk is full from batch 12 to batch 23, which fails the checkpoints of steps 15 and 20 and the
# best checkpoints of steps 12 and 18.
FULL = ("--full", 12, 23)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    code, _, error = faults.run(folder, "--steps=30")
    assert code == 0, error
    return faults.everything(folder)


def test_a_failed_save_stops_the_training(tmp_path, unbroken):
    code, out, error = faults.run(tmp_path / "run", "--steps=30", *FULL)
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert "step 12 not kept in" in line or "step 15 not saved to" in line
    assert faults.steps(tmp_path / "run") == [5, 10]
    assert "step 15 is saved" not in out
    code, out, error = faults.run(tmp_path / "run", "--steps=30")
    assert code == 0, error
    assert "at step 10 of 30" in out
    assert faults.everything(tmp_path / "run") == unbroken


@pytest.mark.slow
def test_a_failed_save_is_logged_and_training_continues(tmp_path, unbroken):
    arguments = ("--steps=30", *FULL, "--save_errors=continue")
    code, out, error = faults.run(tmp_path / "run", *arguments)
    assert code == 0, error
    warnings = [line for line in out.splitlines() if "warning" in line]
    for step in (15, 20):
        assert sum(f"step {step} not saved to" in line for line in warnings) == 1
    assert all("the training continues" in line for line in warnings)
    assert faults.everything(tmp_path / "run") == unbroken


@pytest.mark.slow
def test_the_last_step_must_be_saved(tmp_path):
    arguments = ("--steps=20", *FULL, "--save_errors=continue")
    code, _, error = faults.run(tmp_path / "run", *arguments)
    assert code == 2
    assert "step 20 not saved to" in error
    assert faults.steps(tmp_path / "run") == [5, 10]


# Later, when the metrics file itself exceeds the size limit.
METRICS = ("--steps=80", "--full", 52, 70)


@pytest.mark.slow
def test_metrics_that_cannot_be_written(tmp_path):
    code, _, error = faults.run(tmp_path / "unbroken", "--steps=80")
    assert code == 0, error
    assert (tmp_path / "unbroken" / "metrics.jsonl").stat().st_size > 3000
    code, _, error = faults.run(tmp_path / "run", *METRICS)
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert re.search(r"step 55 not saved: .*metrics\.jsonl cannot be written: File too large", line)
    assert faults.steps(tmp_path / "run") == [45, 50]
    code, _, error = faults.run(tmp_path / "run", "--steps=80")
    assert code == 0, error
    code, out, error = faults.run(tmp_path / "other", *METRICS, "--save_errors=continue")
    assert code == 0, error
    assert "metrics.jsonl cannot be written: File too large; the training continues" in out
    unbroken = faults.everything(tmp_path / "unbroken")
    assert faults.everything(tmp_path / "run") == unbroken
    assert faults.everything(tmp_path / "other") == unbroken

"""A training that is killed at any moment and restarted gives bitwise the same results."""

import random
import signal
import time

import faults
import pytest
from selection import quick

KILLS = 3  # per training


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    started = time.monotonic()
    code, _, error = faults.run(folder)
    assert code == 0, error
    return faults.everything(folder), time.monotonic() - started


@pytest.mark.parametrize("seed", quick(range(10)))
def test_killed_three_times(tmp_path, unbroken, seed):
    expected, seconds = unbroken
    rng, kills = random.Random(seed), 0
    while kills < KILLS:
        with faults.start(tmp_path / "run") as process:
            if kills:  # during a save, shortly after it, or between saves
                latest = len(faults.steps(tmp_path / "run")) and faults.steps(tmp_path / "run")[-1]
                while (
                    process.poll() is None and latest == (faults.steps(tmp_path / "run") or [0])[-1]
                ):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.15 * seconds / KILLS))
            else:  # at any time, but before the end: a busy machine makes `seconds` unreliable
                deadline = time.monotonic() + rng.uniform(0.3, 0.8) * seconds
                last = rng.choice((5, 20, 40))
                while (
                    process.poll() is None
                    and time.monotonic() < deadline
                    and (faults.steps(tmp_path / "run") or [0])[-1] < last
                ):
                    time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == 0:
                break  # it finished before the signal
            assert process.returncode == -signal.SIGKILL
            kills += 1
    assert kills
    code, _, error = faults.run(tmp_path / "run")
    assert code == 0, error
    assert faults.everything(tmp_path / "run") == expected

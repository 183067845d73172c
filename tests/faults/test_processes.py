"""Two processes as one run: a dead one ends the other, and started again they go on exactly."""

import shutil
import signal
import socket
import time

import faults
import pytest

HEARTBEAT = 10  # seconds, where one is to die; elsewhere a busy machine must not look like a death


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(folders, *arguments, heartbeat=100):
    """One process for each folder, which usually is one."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        faults.start(
            folder,
            f"--coordinator={coordinator}",
            f"--processes={len(folders)}",
            f"--process={number}",
            *arguments,
            KD_JAX_HEARTBEAT=str(heartbeat),
        )
        for number, folder in enumerate(folders)
    ]


def finish(processes, timeout=300):
    """Their exit codes and what they said, once all have ended."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    codes, said = finish(start([folder] * 2, "--steps=40"))
    assert codes == [0, 0], said
    first, second = said
    assert "step 40/40" in first[0]
    assert "step" not in second[0]  # one of them speaks
    return faults.everything(folder)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0], ids=["a worker", "the coordinator"])
def test_one_is_killed(tmp_path, unbroken, killed):
    processes = start([tmp_path / "run"] * 2, "--steps=40", heartbeat=HEARTBEAT)
    while len(faults.steps(tmp_path / "run")) < 2 and processes[0].poll() is None:
        time.sleep(0.01)
    processes[killed].send_signal(signal.SIGKILL)
    died = time.monotonic()
    codes, said = finish(processes)
    assert codes[killed] == -signal.SIGKILL, said
    assert codes[1 - killed] != 0, said
    assert time.monotonic() - died < 5 * HEARTBEAT
    codes, said = finish(start([tmp_path / "run"] * 2, "--steps=40"))
    assert codes == [0, 0], said
    assert "at step" in said[0][0]
    assert faults.everything(tmp_path / "run") == unbroken


@pytest.mark.slow
def test_one_is_asked_to_end(tmp_path, unbroken):
    processes = start([tmp_path / "run"] * 2, "--steps=40")
    while not faults.steps(tmp_path / "run") and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = finish(processes)
    assert codes == [75, 75], said
    assert "stopped at step" in said[0][0]
    codes, said = finish(start([tmp_path / "run"] * 2, "--steps=40"))
    assert codes == [0, 0], said
    after = faults.everything(tmp_path / "run")
    assert {k: v for k, v in after.items() if k != "steps"} == {
        k: v for k, v in unbroken.items() if k != "steps"
    }


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_nan_in_the_batch_of_one(tmp_path, process):
    """All know of it, none waits for another one's diagnosis, and patience is for all."""
    arguments = ("--steps=10", "--nan", process, 7)
    codes, said = finish(start([tmp_path / "run"] * 2, *arguments))
    assert codes == [2, 2], said
    for number, (_, error) in enumerate(said):
        own = "image is not finite" if number == process else f"that of process {process} is not"
        assert "step 7: " in error
        assert f"(the batch: {own}" in error
    codes, said = finish(start([tmp_path / "other"] * 2, *arguments, "--patience=1"))
    assert codes == [0, 0], said
    assert "step 7: warning: " in said[0][0]
    assert faults.steps(tmp_path / "other")[-1] == 10


@pytest.mark.slow
def test_what_one_cannot_read_ends_all(tmp_path):
    """Who fails alone does not wait for those that wait for it."""
    processes = start(
        [tmp_path / "run"] * 2, "--steps=1000", "--unreadable", 1, 7, heartbeat=HEARTBEAT
    )
    codes, said = finish(processes)
    assert codes[1] == 2, said
    assert said[1][1].splitlines()[-1] == "error: image 5 cannot be decoded"
    assert codes[0] != 0, said


def test_what_the_first_refuses_all_refuse(tmp_path):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "cat.png").write_text("an image")
    codes, said = finish(start([tmp_path / "run"] * 2, "--steps=10"))
    assert codes == [2, 2], said
    for _, error in said:
        assert "checkpoints/7 is no checkpoint of a training" in error.splitlines()[-1]


@pytest.mark.slow
def test_one_is_on_an_older_step(tmp_path):
    codes, said = finish(start([tmp_path / "run"] * 2, "--steps=10"))
    assert codes == [0, 0], said
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "10")
    codes, said = finish(start([tmp_path / "run", tmp_path / "other"], "--steps=20"))
    assert all(code != 0 for code in codes)
    for _, error in said:
        assert "the latest step is 10 in process 0, 5 in process 1" in error
    assert faults.steps(tmp_path / "run") == [5, 10]


@pytest.mark.slow
def test_sharded_over_processes(tmp_path):
    """Parameters of which each process has a half, saved and gone on with."""
    codes, said = finish(start([tmp_path / "run"] * 2, "--steps=20", "--model=2"))
    assert codes == [0, 0], said
    for steps in (10, 20):
        codes, said = finish(start([tmp_path / "parts"] * 2, f"--steps={steps}", "--model=2"))
        assert codes == [0, 0], said
    whole, parts = (faults.everything(tmp_path / name) for name in ("run", "parts"))
    same = ("generator", "training", "next batches", "best")
    assert {k: whole[k] for k in same} == {k: parts[k] for k in same}

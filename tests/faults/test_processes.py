"""A run of two processes: if one dies, the other exits, and a restart resumes bit-exactly."""

import shutil
import signal
import socket
import time

import faults
import pytest

HEARTBEAT = 10  # seconds, where a process is killed; elsewhere longer, as a busy machine may lag


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folders, *arguments, heartbeat=100):
    """Starts a process per folder; the folders are usually the same one."""
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
    """Waits for all processes: their exit codes and their `(stdout, stderr)`."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    codes, outputs = finish(start([folder] * 2, "--steps=40"))
    assert codes == [0, 0], outputs
    first, second = outputs
    assert "step 40/40" in first[0]
    assert "step" not in second[0]  # only the primary process logs
    return faults.everything(folder)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 0], ids=["a worker", "the coordinator"])
def test_one_process_is_killed(tmp_path, unbroken, killed):
    processes = start([tmp_path / "run"] * 2, "--steps=40", heartbeat=HEARTBEAT)
    while len(faults.steps(tmp_path / "run")) < 2 and processes[0].poll() is None:
        time.sleep(0.01)
    processes[killed].send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    codes, outputs = finish(processes)
    assert codes[killed] == -signal.SIGKILL, outputs
    assert codes[1 - killed] != 0, outputs
    assert time.monotonic() - killed_at < 5 * HEARTBEAT
    codes, outputs = finish(start([tmp_path / "run"] * 2, "--steps=40"))
    assert codes == [0, 0], outputs
    assert "at step" in outputs[0][0]
    assert faults.everything(tmp_path / "run") == unbroken


@pytest.mark.slow
def test_a_signal_to_one_process_shuts_down_both(tmp_path, unbroken):
    processes = start([tmp_path / "run"] * 2, "--steps=40")
    while not faults.steps(tmp_path / "run") and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [75, 75], outputs
    assert "stopped at step" in outputs[0][0]
    codes, outputs = finish(start([tmp_path / "run"] * 2, "--steps=40"))
    assert codes == [0, 0], outputs
    after = faults.everything(tmp_path / "run")
    assert {k: v for k, v in after.items() if k != "steps"} == {
        k: v for k, v in unbroken.items() if k != "steps"
    }


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_nan_in_the_batch_of_one_process(tmp_path, process):
    """All processes detect it, none waits for another's diagnosis, and patience applies to all."""
    arguments = ("--steps=10", "--nan", process, 7)
    codes, outputs = finish(start([tmp_path / "run"] * 2, *arguments))
    assert codes == [2, 2], outputs
    for number, (_, error) in enumerate(outputs):
        own = "image is not finite" if number == process else f"that of process {process} is not"
        assert "step 7: " in error
        assert f"(the batch: {own}" in error
    codes, outputs = finish(start([tmp_path / "other"] * 2, *arguments, "--patience=1"))
    assert codes == [0, 0], outputs
    assert "step 7: warning: " in outputs[0][0]
    assert faults.steps(tmp_path / "other")[-1] == 10


@pytest.mark.slow
def test_an_unreadable_image_in_one_process_ends_all(tmp_path):
    """A process that fails on its own does not wait for processes that wait for it."""
    processes = start(
        [tmp_path / "run"] * 2, "--steps=1000", "--unreadable", 1, 7, heartbeat=HEARTBEAT
    )
    codes, outputs = finish(processes)
    assert codes[1] == 2, outputs
    assert outputs[1][1].splitlines()[-1] == "error: image 5 cannot be decoded"
    assert codes[0] != 0, outputs


def test_an_error_of_the_primary_process_is_raised_in_all(tmp_path):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "7" / "cat.png").write_text("an image")
    codes, outputs = finish(start([tmp_path / "run"] * 2, "--steps=10"))
    assert codes == [2, 2], outputs
    for _, error in outputs:
        assert "checkpoints/7 is not a training checkpoint" in error.splitlines()[-1]


@pytest.mark.slow
def test_processes_with_different_latest_steps_are_refused(tmp_path):
    codes, outputs = finish(start([tmp_path / "run"] * 2, "--steps=10"))
    assert codes == [0, 0], outputs
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "10")
    codes, outputs = finish(start([tmp_path / "run", tmp_path / "other"], "--steps=20"))
    assert all(code != 0 for code in codes)
    for _, error in outputs:
        assert "10 in process 0, 5 in process 1" in error
    assert faults.steps(tmp_path / "run") == [5, 10]


@pytest.mark.slow
def test_sharded_over_processes(tmp_path):
    """Parameters are split between two processes, saved and resumed."""
    codes, outputs = finish(start([tmp_path / "run"] * 2, "--steps=20", "--model=2"))
    assert codes == [0, 0], outputs
    for steps in (10, 20):
        codes, outputs = finish(start([tmp_path / "parts"] * 2, f"--steps={steps}", "--model=2"))
        assert codes == [0, 0], outputs
    whole, parts = (faults.everything(tmp_path / name) for name in ("run", "parts"))
    keys = ("generator", "training", "next batches", "best")
    assert {k: whole[k] for k in keys} == {k: parts[k] for k in keys}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--patience=1"], {}, "options.patience is 0 there, 1 here"),
        ([], {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}, "jax.jax_default_matmul_precision"),
        (["--steps=11"], {}, "steps is 10 there, 11 here"),
    ],
    ids=["options", "precision", "steps"],
)
def test_processes_with_different_settings_are_refused(tmp_path, arguments, environment, named):
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        faults.start(
            tmp_path / "run",
            "--steps=10",
            f"--coordinator={coordinator}",
            "--processes=2",
            f"--process={number}",
            *arguments[: number * len(arguments)],
            **(environment if number else {}),
        )
        for number in (0, 1)
    ]
    codes, outputs = finish(processes)
    assert codes == [2, 2], outputs
    for _, error in outputs:
        line = error.strip().splitlines()[-1]
        assert "process 1 has another setting" in line
        assert named in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_without_its_peers_gives_up(tmp_path):
    started = time.monotonic()
    process = faults.start(
        tmp_path / "run",
        "--steps=10",
        f"--coordinator=127.0.0.1:{free_port()}",
        "--processes=2",
        "--process=0",
        KD_JAX_HEARTBEAT="3",
    )
    (code,), _ = finish([process])
    assert code != 0
    assert time.monotonic() - started < 60

"""Processes that start at the same moment, or after one that was killed, with an empty cache."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd_jax.core.files import file_lock

ROOT = Path(__file__).parents[2]

DIGITS = """
from kd_jax import data
from kd_jax.core.files import cache_dir
print(len(data.open_source("digits", "train", 8, 1)))
"""

CLASSIFIER = """
import numpy as np
from kd_jax.core.files import cache_dir
from kd_jax.metrics.extractor import classifier_extractor
images = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 1)).astype("f4")
extractor = classifier_extractor(
    images, np.arange(64) % 2, name="x", classes=2, cache=cache_dir(), steps=300,
    progress=lambda done: done == 300 and print("trains"),
)
print(extractor.name)
"""

FEATURES = """
import time
from kd_jax import data
from kd_jax.core.files import cache_dir
from kd_jax.evaluate.reference import read_reference
from kd_jax.metrics.extractor import Extractor
def features(images):
    print("computes")
    time.sleep(2)
    return images.reshape(len(images), -1)
source = data.open_source("digits", "train[:200]", 8, 1)
extractor = Extractor("x", features, features)
print(read_reference(source, extractor, "train", cache_dir()).features.sum())
"""


def start(cache, code, *arguments):
    command = [sys.executable, "-c", code] if code else [sys.executable, *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KD_JAX_CACHE": str(cache)},
    )


def finish(*processes):
    """Their exit codes, outputs and lines of errors."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return codes, [out for out, _ in outputs], [error.splitlines() for _, error in outputs]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "work"), [(DIGITS, None), (CLASSIFIER, "trains"), (FEATURES, "computes")]
)
def test_one_does_the_work_and_the_others_wait(tmp_path, code, work):
    codes, outputs, errors = finish(*(start(tmp_path, code) for _ in range(3)))
    assert codes == [0, 0, 0], errors
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    if work:
        assert sum(output.count(work) for output in outputs) == 1
    for line in [line for lines in errors for line in lines]:
        assert re.fullmatch(rf"waiting for another process \({tmp_path}/\S+\.lock\)", line)
    assert not [name for name in files(tmp_path) if ".lock" in name or "/." in name]


@pytest.mark.slow
def test_a_process_that_waits_says_so(tmp_path):
    with file_lock(tmp_path / "tfds", ".digits.lock"):
        process = start(tmp_path, DIGITS)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for another process (")
    codes, outputs, _ = finish(process)
    assert codes == [0]
    assert outputs == ["1797\n"]


@pytest.mark.slow
def test_the_leftovers_of_a_killed_preparation_are_removed(tmp_path):
    process = start(tmp_path, DIGITS)
    while not list(tmp_path.glob("tfds/.digits-*/*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert list(tmp_path.glob("tfds/.digits-*"))
    codes, _, errors = finish(start(tmp_path, DIGITS))
    assert codes == [0], errors
    assert [path.name for path in (tmp_path / "tfds").iterdir()] == ["digits"]


@pytest.mark.slow
@pytest.mark.parametrize("other", [(), ("--config.batch_size=31",)], ids=["same", "other"])
def test_of_two_trainings_in_one_folder_one_is_refused(tmp_path, other):
    run = tmp_path / "run"
    command = ["-m", "experiments.digits", "--preset=tiny", f"--workdir={run}"]
    processes = [start(tmp_path, "", *command), start(tmp_path, "", *command, *other)]
    codes, _, errors = finish(*processes)
    assert sorted(codes) == [0, 2], errors
    (message,) = [line for line in errors[codes.index(2)] if not line.startswith("waiting ")]
    expected = [rf"another process is training in {run}"]
    if other:
        expected = [rf"{run} holds a run of another configuration: batch_size is \d+ there.*"]
    assert any(re.fullmatch(f"error: {text}", message) for text in expected)
    assert not [name for name in files(run) if name.endswith((".run", ".config", ".partial"))]

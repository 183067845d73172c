"""Mutated image files are read or refused by name, in bounded time and memory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("warnings", ["error", "ignore"])
def test_mutated_images_are_read_or_refused_by_name(warnings):
    program = [sys.executable, "-W", warnings, ROOT / "tests/data/fuzzing.py", "500"]
    result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    read, refused, unnamed, peak = map(int, result.stdout.split())
    assert read > 200
    assert refused > 500
    assert unnamed == 0
    assert peak < 1024

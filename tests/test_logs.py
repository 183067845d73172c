"""Metrics files survive a kill at any byte."""

import json
import math

import pytest

from kd_jax.logs import JsonlWriter, read_jsonl


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    writer.write_scalars(1, {"a": 0.1 + 0.2, "b": 1e-300})
    writer.write_scalars(2, {"a": 1 / 3})
    writer.close()
    assert read_jsonl(path) == [
        {"step": 1, "a": 0.30000000000000004, "b": 1e-300},
        {"step": 2, "a": 0.3333333333333333},
    ]


def test_what_comes_after_the_step_is_dropped_at_every_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = "".join(json.dumps({"step": n, "a": n / 7}) + "\n" for n in (2, 4, 6))
    whole = len("".join(lines.splitlines(keepends=True)[:2]))
    for cut in range(whole, len(lines) + 1):
        path.write_text(lines[:cut])
        writer = JsonlWriter(path, step=4)
        writer.write_scalars(6, {"a": 6 / 7})
        writer.close()
        assert path.read_text() == lines


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2"):
        read_jsonl(path)


def test_nan_is_refused(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        writer.write_scalars(1, {"a": math.nan})
    writer.close()


def test_no_file_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []

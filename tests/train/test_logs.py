"""Metrics files remain readable after a kill at any byte."""

import json
import math
import re
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.train.logs import JsonlWriter, read_jsonl


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


def test_lines_after_the_step_are_removed_wherever_the_file_ends(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = "".join(json.dumps({"step": n, "a": n / 7}) + "\n" for n in (2, 4, 6))
    start = len("".join(lines.splitlines(keepends=True)[:2]))
    for cut in range(start, len(lines) + 1):
        path.write_text(lines[:cut])
        writer = JsonlWriter(path, step=4)
        writer.write_scalars(6, {"a": 6 / 7})
        writer.close()
        assert path.read_text() == lines


def test_an_invalid_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2"):
        read_jsonl(path)


def test_nan_is_rejected(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        writer.write_scalars(1, {"a": math.nan})
    writer.close()


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_finite_floats_round_trip_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    doubles = bits.view(np.float64)
    doubles = doubles[np.isfinite(doubles)]
    singles = np.float32([0.1, 1 / 3, 1e-45, 3.4028235e38])
    values = [*doubles, *singles, 5e-324, -0.0, 2.0**53, jnp.float32(0.1)]
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write_scalars(1, {str(i): v for i, v in enumerate(values)})
    writer.close()
    (row,) = read_jsonl(tmp_path / "m.jsonl")
    restored = np.array([row[str(i)] for i in range(len(values))])
    assert restored.tobytes() == np.array([float(v) for v in values]).tobytes()


def test_rows_are_written_by_flush_and_appended_after_reopening(tmp_path):
    path = tmp_path / "m.jsonl"
    first = JsonlWriter(path)
    first.write_scalars(1, {"a": 1})
    first.flush()
    assert read_jsonl(path) == [{"step": 1, "a": 1.0}]
    first.write_scalars(2, {"a": 2})
    first.close()
    second = JsonlWriter(path, step=2)
    second.write_scalars(3, {"b": 3})
    second.close()
    assert read_jsonl(path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 3, "b": 3.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
    JsonlWriter(path).close()  # a restart from step 0
    assert read_jsonl(path) == []


def test_an_invalid_file_is_not_modified(tmp_path):
    path = tmp_path / "m.jsonl"
    broken = '{"step": 1}\nnot JSON\n{"step": 3}\n'
    path.write_text(broken)
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2 .*JSON.*: 'not JSON'"):
        JsonlWriter(path, step=3)
    assert path.read_text() == broken


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_part_of_a_rejected_row_is_written(tmp_path, value):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write_scalars(1, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        writer.write_scalars(2, {"a": 1, "b": value})
    writer.close()
    assert read_jsonl(tmp_path / "m.jsonl") == [{"step": 1, "a": 1.0}]


def test_a_full_disk_neither_truncates_nor_loses_lines(tmp_path):
    writer = JsonlWriter(tmp_path / "m.jsonl")
    writer.write_scalars(1, {"a": 1.0})
    writer.flush()
    before = (tmp_path / "m.jsonl").read_text()
    for step in (2, 3, 4):
        writer.write_scalars(step, {"a": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(before) + 3, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                writer.flush()
            assert (tmp_path / "m.jsonl").read_text() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    assert [row["step"] for row in read_jsonl(tmp_path / "m.jsonl")] == [1, 2, 3, 4]


def test_changed_lines_are_refused_and_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    writer = JsonlWriter(path)
    checksums = []
    for step in (1, 2, 3):
        writer.write_scalars(step, {"a": step / 7, "wall_time": 0.1 * step})
        checksums.append(writer.checksum())
    writer.close()
    checksum = checksums[1]
    content = path.read_text()
    JsonlWriter(path, 2, checksum=checksum).close()  # lines after the step do not matter
    assert len(read_jsonl(path)) == 2
    path.write_text(content.replace('"wall_time": 0.1', '"wall_time": 9.0'))
    JsonlWriter(path, 2, checksum=checksum).close()  # times do not, either
    for changed in (content.replace("0.14", "0.15"), content.replace('"a"', '"b"', 1), ""):
        path.write_text(changed)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            JsonlWriter(path, 2, checksum=checksum)
        assert path.read_text() == changed
    JsonlWriter(path, 2).close()


@pytest.mark.parametrize("line", ["3", "[]", '{"stop": 1}', '{"step": "x"}', "[" * 100_000])
def test_lines_that_are_no_rows_are_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text(f'{line}\n{{"step": 1}}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_jsonl(path)
    path.write_bytes(b'{"step": 1, "\xff": 1}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl is damaged"):
        read_jsonl(path)

"""The progress on stderr: its first line, its intervals, and the estimate of the time left."""

import pytest

from kd_jax.report import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_start_at_once_and_have_the_time_left(clock, capsys):
    show = progress.Progress().stage("stage", 100)
    for seconds, done in ((0, 0), (5, 10), (11, 20), (33, 50), (60, 100)):
        clock[0] = 100.0 + seconds
        show(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "stage: 0/100"
    assert lines[1:] == ["stage: 20/100, 44 s left", "stage: 50/100, 33 s left"]


def test_long_times_are_minutes_and_hours(clock, capsys):
    for total, expected in ((100, "16 min left"), (1000, "2.8 h left")):
        show = progress.Progress().stage("stage", total)
        show(0)
        clock[0] += 20
        show(2)
        assert capsys.readouterr().err.splitlines()[-1].endswith(expected)


def test_a_cached_stage_prints_no_line(clock, capsys):
    progress.Progress().stage("stage", 10)(10)
    assert capsys.readouterr().err == ""


def test_a_bar_fits_a_terminal_and_ends_its_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    show = progress.Progress().stage("training a classifier of something long", 100000)
    for done in (0, 500, 100000):
        show(done)
        clock[0] += 10
    first, second, last = capsys.readouterr().err.split("\r")[1:]
    assert "2000 s left" not in second
    assert second.rstrip().endswith("500/100000, 33 min left")
    assert max(map(len, (first, second, last.rstrip("\n")))) < 80
    assert last.endswith("\n")

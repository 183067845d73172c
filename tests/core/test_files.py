"""The cache's folder, and errors that name what was done with which path."""

import fcntl
from pathlib import Path

import pytest

from kd_jax import data
from kd_jax.core.checks import UsageError
from kd_jax.core.files import cache_dir, file_lock, naming, write_atomically


def test_the_cache_is_of_the_environment_or_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KD_JAX_CACHE", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "kd_jax"
    default = tmp_path / ".cache" / "kd_jax"
    for value, expected in (("~/c", tmp_path / "c"), ("/c", Path("/c")), ("", default)):
        monkeypatch.setenv("KD_JAX_CACHE", value)
        assert cache_dir() == expected


def test_data_sets_are_in_the_cache_by_default(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("KD_JAX_CACHE", str(tmp_path / "cache"))
    data.open_source("digits", "train", 8, 1)
    leftover = tmp_path / "cache" / "tfds" / ".digits-killed"
    leftover.mkdir()
    data.open_source("digits", "train", 8, 1)
    assert [path.name for path in leftover.parent.iterdir()] == ["digits"]
    data.open_source("digits", "train", 8, 1, tmp_path / "own")
    assert (tmp_path / "own" / "digits").is_dir()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KD_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=rf"digits .*{tmp_path}/file/cache/tfds: Not a directory"):
        data.open_source("digits", "train", 8, 1)


def test_errors_name_the_action_and_the_path(tmp_path):
    def check(action, match, read):
        with pytest.raises(UsageError, match=match), naming(action):
            read()

    absent = tmp_path / "absent"
    check("read --in x", rf"^cannot read --in x: No such file .*{absent}\)$", absent.read_text)
    check(f"read {absent}", rf"^cannot read {absent}: No such file .*ory$", absent.read_text)


def test_errors_with_a_message_of_their_own_are_left_as_they_are():
    with pytest.raises(FileNotFoundError, match=r"^no images$"), naming("read x"):
        raise FileNotFoundError("no images")


def test_only_what_killed_writers_left_is_removed(tmp_path):
    own = tmp_path / "a[1].json"
    living, killed, others = (
        tmp_path / name
        for name in ("a[1].json.1.partial", "a[1].json.2.partial", "a1.json.3.partial")
    )
    for path in (living, killed, others):
        path.write_text("{")
    with living.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_atomically(own, "new")
    assert own.read_text() == "new"
    assert sorted(tmp_path.iterdir()) == sorted([own, living, others])


def test_a_lock_is_for_one_and_leaves_no_file(tmp_path):
    with file_lock(tmp_path, "x") as locked:
        assert locked
        with pytest.raises(BlockingIOError), file_lock(tmp_path, "x"):
            pass
    with file_lock(tmp_path, "x"):  # of the next one
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_may_be_accepted(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    (tmp_path / "a.1.partial").write_text("perhaps of a living one")
    write_atomically(tmp_path / "a", "x")
    with file_lock(tmp_path, needed=False) as locked:
        assert not locked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.1.partial"]

"""The cache's folder, and errors that name what was done with which path."""

from pathlib import Path

import pytest

from kd_jax import data
from kd_jax.core.checks import UsageError
from kd_jax.core.files import cache_dir, naming


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
    assert [path.name for path in (tmp_path / "cache" / "tfds").glob("[a-z]*")] == ["digits"]
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

"""Files that several processes may use, atomic writes and locks; and files that may be damaged."""

import contextlib
import glob
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kd_jax.core.checks import UsageError, differences, shorten


def cache_dir() -> Path:
    """The cache of data sets, features, classifiers and programs: `$KD_JAX_CACHE`, else
    `~/.cache/kd_jax`.
    """
    return Path(os.environ.get("KD_JAX_CACHE") or "~/.cache/kd_jax").expanduser()


@contextlib.contextmanager
def naming(action: str) -> Iterator[None]:
    """Turns the system's errors into `UsageError`s that name the action: `cannot write x: ...`.

    OSErrors with a message of their own are raised as they are.

    Args:
      action: the action that fails and its path, such as `write --out x`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        path = (
            f" ({error.filename})" if error.filename and str(error.filename) not in action else ""
        )
        raise UsageError(f"cannot {action}: {error.strerror}{path}") from error


def write_atomically(path: Path, contents: bytes | str) -> None:
    """Writes a file that exists either complete or not at all, also if the process is killed.

    Writers hold the lock of their temporary file, `NAME.PID.partial`: those whose lock is free were
    left by killed processes, and are removed.

    Args:
      path: the file; its folder is created if absent, and an existing file is replaced.
      contents: its new contents; text is encoded as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError), _open_locked(leftover, wait=False) as (_, problem):
            if not problem:
                leftover.unlink()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with _open_locked(partial, wait=True) as (file, _):
        file.truncate(0)
        file.write(contents.encode() if isinstance(contents, str) else contents)
        file.flush()
        os.replace(partial, path)


MAX_JSON = 64 << 20
"""Maximum bytes of a JSON file."""


def check_regular(path: Path) -> None:
    """Checks that a path is a regular file: reading a pipe or a device would not end.

    Raises:
      ValueError: it is not; the message names it.
      OSError: there is no such file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, the entry `sha256`, for `read_json(checked=True)`."""
    stored = json.loads(json.dumps(dict(value)))
    write_atomically(path, json.dumps({**stored, "sha256": _checksum(stored)}, indent=1) + "\n")


def read_json(path: Path, *, checked: bool = False) -> dict[str, Any]:
    """The JSON object in a file that anyone may have written.

    Args:
      path: the file.
      checked: whether it was written by `write_json`; the checksum is verified and removed.

    Raises:
      ValueError: it is not a regular file, too large, damaged, or not an object; one line that
        names it.
      OSError: it cannot be read.
    """
    check_regular(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"{path} has {size:,} bytes; the limit is {MAX_JSON:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(value).__name__}, not an object")
    if checked and value.pop("sha256", None) != _checksum(value):
        raise ValueError(f"{path} is damaged: its content does not have the sha256 in it")
    return value


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def file_lock(
    folder: Path, name: str = ".lock", *, wait: bool = False, needed: bool = True
) -> Iterator[bool]:
    """Locks a folder, creating it if absent; the lock is released when the process ends.

    Args:
      folder: the folder to lock.
      name: the name of the lock file, which is removed at the end.
      wait: whether to wait while another process holds the lock, which a line on stderr says.
      needed: whether a file system without locks is an error.

    Yields:
      Whether it is locked, which without `needed` may be False.

    Raises:
      BlockingIOError: another process holds the lock.
      UsageError: the file system does not support locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with contextlib.ExitStack() as stack:
        try:
            _, problem = stack.enter_context(_open_locked(path, wait=False))
        except BlockingIOError:
            if not wait:
                raise
            print(f"waiting for another process ({path})", file=sys.stderr, flush=True)
            _, problem = stack.enter_context(_open_locked(path, wait=True))
        stack.callback(path.unlink, missing_ok=True)  # before it is unlocked
        if problem and needed:
            raise UsageError(
                f"{path} cannot be locked ({problem}): choose a folder on a file system with "
                "locks, so that two processes cannot write to it at once"
            )
        yield not problem


@contextlib.contextmanager
def _open_locked(path: Path, wait: bool) -> Iterator[tuple[BinaryIO, str]]:
    """Opens a file, creating it if absent, and locks it.

    Yields:
      The file, and why it is not locked: an error of a file system without locks, or "".

    Raises:
      BlockingIOError: another process holds the lock, unless `wait`.
    """
    import fcntl  # absent on Windows

    while True:
        with path.open("ab") as file:
            problem = ""
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise
            except OSError as error:
                problem = error.strerror or type(error).__name__
            # The previous owner may have removed or renamed the file in the meantime.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file, problem
                return


def claim_folder(folder: Path, name: str, settings: Mapping[str, Any], what: str) -> bool:
    """Claims a folder for these settings, or checks that it already belongs to them.

    Args:
      folder: a new or an empty folder, or one with the file `name`.
      name: the file that the settings are kept in.
      settings: JSON values.
      what: the folder's content in words, for messages.

    Returns:
      Whether the folder belonged to them before.

    Raises:
      UsageError: the folder holds other files, or `what` with other settings; the message names the
        first differences.
    """
    path, here = folder / name, json.loads(json.dumps(dict(settings)))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if path.exists():
        try:
            stored = read_json(path, checked=True)
        except ValueError as error:
            raise UsageError(f"{error}; choose another folder, or delete this one") from None
        if changes := list(differences(stored, here)):
            raise UsageError(
                f"{folder} holds {what} with other settings: {shorten(changes)}; choose another "
                "folder, or delete this one"
            )
        return True
    if folder.exists() and any(not file.name.startswith(f"{name}.") for file in folder.iterdir()):
        raise UsageError(f"{folder} holds other files; choose a new or an empty folder")
    with naming(f"write to {folder}"):
        write_json(path, here)
    return False

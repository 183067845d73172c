"""Files that several processes may use: atomic writes and locks."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from kd_jax.core.checks import UsageError


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

    Args:
      path: the file; its folder is created if absent, and an existing file is replaced.
      contents: its new contents; text is encoded as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    os.replace(partial, path)


@contextlib.contextmanager
def file_lock(folder: Path, name: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Locks a folder, creating it if absent; the lock is released when the process ends.

    Args:
      folder: the folder to lock.
      name: the name of the lock file.
      wait: whether to wait while another process holds the lock.

    Raises:
      BlockingIOError: another process holds the lock.
      UsageError: the file system does not support locks.
    """
    import fcntl  # absent on Windows

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            raise UsageError(
                f"{folder / name} cannot be locked ({error.strerror}): choose a folder on a file "
                "system with locks, so that two processes cannot write to it at once"
            ) from None
        yield

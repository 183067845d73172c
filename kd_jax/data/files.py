"""The files of a data set: in a folder, or in a zip archive that is read in place."""

import os
import stat
import threading
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from kd_jax.data.source import UnreadableError

MAX_BYTES = 2**29
"""The largest file that is read as a whole: more than `MAX_PIXELS` of any image need."""

MAX_ENTRIES = 10_000_000
"""The largest number of entries of an archive."""

MAX_DEPTH = 32
"""The largest number of folders around an entry of an archive."""

_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ"}
"""Names of methods of compression that are not read (APPNOTE.TXT, section 4.4.5)."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class Entry(NamedTuple):
    """An entry of a folder.

    Attributes:
      name: relative to the root of the set, with slashes.
      is_folder: whether it is a folder, or a link to one.
    """

    name: str
    is_folder: bool


class Files(Protocol):
    """The files of a set; names are relative to its root, and the root's own name is ''."""

    path: Path

    def entries(self, folder: str) -> list[Entry]:
        """The entries of a folder, in the order of their names."""

    def read(self, name: str) -> bytes:
        """The content of a file; may be called from several threads.

        Raises:
          UnreadableError: `PATH cannot be opened: REASON`, in one line.
        """


class Folder:
    """The files of a folder of the file system, with the interface of `Files`."""

    def __init__(self, path: Path):
        self.path = path

    def entries(self, folder: str) -> list[Entry]:
        """As `Files.entries`."""
        with os.scandir(self.path / folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
        return [Entry(_join(folder, name), is_folder) for name, is_folder in listed]

    def read(self, name: str) -> bytes:
        """As `Files.read`."""
        return read_file(self.path / name)


class Archive:
    """The files of a zip archive, with the interface of `Files`; nothing is extracted.

    Names are keys only, and never paths of the file system. A single folder that contains all other
    entries is the root.

    Args:
      path: the archive.

    Raises:
      ValueError: it is not an archive, or an invalid one; one line for all of its problems.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            file = open_regular(path)
            weakref.finalize(self, file.close).atexit = False
            self._archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises many types for damaged archives.
            raise ValueError(f"{path} is not a readable zip archive: {reason(error)}") from None
        infos = [info for info in self._archive.infolist() if not info.is_dir()]
        self._infos: dict[str, zipfile.ZipInfo] = {}
        repeated, deep = [], []
        for info in infos[: MAX_ENTRIES + 1]:
            parts = [part for part in info.filename.replace("\\", "/").split("/") if part]
            name = "/".join(parts)
            if len(parts) > MAX_DEPTH:
                deep.append(name[:80])
            elif name in self._infos:
                repeated.append(name)
            else:
                self._infos[name] = info
        problems = []
        if len(infos) > MAX_ENTRIES:
            problems.append(f"{len(infos):,} entries, and at most {MAX_ENTRIES:,} are read")
        if sum(info.compress_size for info in infos) > path.stat().st_size:
            problems.append("entries that overlap: they claim more bytes than the archive has")
        if repeated:
            problems.append(f"{counted(len(repeated), 'name')} twice ({examples(repeated)})")
        if deep:
            problems.append(
                f"{counted(len(deep), 'entry', 'entries')} in more than {MAX_DEPTH} folders "
                f"({examples(deep)})"
            )
        if problems:
            raise ValueError(f"{path} has {'; '.join(problems)}")
        self._folders: dict[str, dict[str, bool]] = {"": {}}
        for name in self._infos:
            self._add(name, is_folder=False)
        self._root = ""
        while len(visible := [e for e in self._listed(self._root) if not is_hidden(e.name)]) == 1:
            if not visible[0].is_folder:
                break
            self._root = visible[0].name

    def entries(self, folder: str) -> list[Entry]:
        """As `Files.entries`."""
        start = len(self._root) + 1 if self._root else 0
        listed = self._listed(_join(self._root, folder) if folder else self._root)
        return [entry._replace(name=entry.name[start:]) for entry in listed]

    def read(self, name: str) -> bytes:
        """As `Files.read`."""
        info = self._infos[_join(self._root, name)]
        try:
            check_member(info)
            check_bytes(info.file_size)
            # The archive counts its open members, not atomically.
            with self._lock:
                member = self._archive.open(info)
            try:
                return member.read()
            finally:
                with self._lock:
                    member.close()
        except Exception as error:  # zipfile raises many types for damaged archives.
            label = printable(f"{self.path}/{name}")
            raise UnreadableError(f"{label} cannot be opened: {reason(error)}") from None

    def _listed(self, folder: str) -> list[Entry]:
        own = self._folders[folder]
        return [Entry(_join(folder, name), is_folder) for name, is_folder in sorted(own.items())]

    def _add(self, name: str, is_folder: bool) -> None:
        parent, _, own = name.rpartition("/")
        if parent not in self._folders:
            self._folders[parent] = {}
            self._add(parent, is_folder=True)
        self._folders[parent][own] = is_folder


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading, without waiting for another process as for a pipe.

    Raises:
      UnreadableError: it is a pipe, a device, a socket or a folder.
      OSError: it cannot be opened.
    """
    _check_regular(os.stat(path).st_mode)  # Before: opening a device may have an effect.
    wait = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait))  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)  # The path may have been replaced.
    except UnreadableError:
        file.close()
        raise
    return file


def read_file(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_BYTES`.

    Raises:
      UnreadableError: `PATH cannot be opened: REASON`, in one line.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            check_bytes(size)
            return file.read(size)
    except (OSError, ValueError, MemoryError) as error:
        label = printable(str(path))
        raise UnreadableError(f"{label} cannot be opened: {reason(error)}") from None


def check_bytes(size: int) -> None:
    """Raises an UnreadableError for a file that is too large to be read as a whole."""
    if size > MAX_BYTES:
        raise UnreadableError(f"it has {size:,} bytes, and at most {MAX_BYTES:,} are read")


def check_member(info: zipfile.ZipInfo) -> None:
    """Raises an UnreadableError for an entry of an archive that is encrypted, or not deflated."""
    if info.flag_bits & 1:
        raise UnreadableError("it is encrypted")
    # The header of LZMA may claim gigabytes of memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise UnreadableError(f"it is compressed by {method}, not stored or deflated")


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden, or a folder that macOS's archives and Synology's disks add."""
    own = name.rpartition("/")[2]
    return own.startswith(".") or own in ("__MACOSX", "@eaDir")


def counted(count: int, singular: str, plural: str = "") -> str:
    """A number and its noun: `1 file`, `2 files`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def examples(names: Sequence[str]) -> str:
    """At most three of the names."""
    return printable(", ".join([*names[:3], "..."] if len(names) > 3 else names))


def printable(text: str) -> str:
    """The text, with escapes for line breaks, control characters and undecodable bytes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """The reason of an error in one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(first_line(text) or type(error).__name__)[:200]


def first_line(text: str) -> str:
    """The first line of a text, or an empty one."""
    return next(iter(text.strip().splitlines()), "")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnreadableError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')}")

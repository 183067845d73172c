"""Zip archives read in place: entries are slices of the file, and nothing is written anywhere.

Only the features that writers of weight files use are supported: stored and deflated entries, with
or without zip64. The directory at the end of the file must agree with the local headers before the
entries: names, sizes, and byte ranges that do not overlap. An entry is never inflated beyond the
size that the directory gives. Checksums are not compared, since PyTorch can omit them.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from kd_jax.pretrained.io.unpickle import UnsafeFileError, printable

MAX_ENTRIES = 1 << 16
"""Maximum number of entries in an archive; each tensor of a checkpoint is one."""
MAX_RATIO = 8
"""Maximum inflated bytes of all entries per byte of the archive, plus 16 MiB."""

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_STORED, _DEFLATED = 0, 8
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_FIELDS = 128  # bytes of the extra fields that are searched for an entry's zip64 field


class Entry(NamedTuple):
    """A file in an archive.

    Attributes:
      packed: its bytes as they are in the archive.
      size: the number of bytes after inflation.
      deflated: whether the bytes are deflated.
    """

    packed: memoryview
    size: int
    deflated: bool


def entries(data: memoryview) -> Mapping[str, Entry]:
    """An archive's entries by name.

    Args:
      data: the archive.

    Raises:
      UnsafeFileError: a name is a path out of the archive or occurs twice; an entry is encrypted,
        is a link or overlaps another; or the total inflated size is too large.
      ValueError: the archive is damaged, truncated, or uses an unsupported compression method.
    """
    count, start, end = _directory(data)
    if count > MAX_ENTRIES:
        raise UnsafeFileError(f"has {count} zip entries; the limit is {MAX_ENTRIES}")
    by_name: dict[str, Entry] = {}
    places = []
    at, total = start, 0
    for _ in range(count):
        name, entry, place, at = _entry(data, at, end)
        if name in by_name:
            raise UnsafeFileError(f"has two zip entries named {printable(name)}")
        by_name[name] = entry
        places.append(place)
        total += entry.size
    if at != end:
        raise ValueError("is damaged: its zip directory has another length than stated")
    if total > MAX_RATIO * len(data) + (16 << 20):
        raise UnsafeFileError(
            f"is a zip archive of {len(data)} bytes that claims to contain {total}"
        )
    places = [(0, 0), *sorted(places), (start, end)]
    if any(stop > begin for (_, stop), (begin, _) in pairwise(places)):
        raise UnsafeFileError("has zip entries that overlap")
    return by_name


def content(entry: Entry) -> memoryview:
    """An entry's bytes, inflated if necessary.

    Raises:
      ValueError: they cannot be inflated, or their size is not the one that the archive states.
    """
    if not entry.deflated:
        return entry.packed
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(entry.packed, entry.size + 1)
    except zlib.error:
        raise ValueError("is damaged: a zip entry cannot be inflated") from None
    if len(inflated) != entry.size or not inflater.eof:
        raise ValueError("is damaged: a zip entry has another size than stated")
    return memoryview(inflated)


def _directory(data: memoryview) -> tuple[int, int, int]:
    """The number of entries in the directory, and the offsets of its start and end."""
    tail = bytes(data[-(_END.size + _MAX16) :])
    offset = tail.rfind(b"PK\x05\x06")
    end = len(data) - len(tail) + offset
    if offset < 0 or len(tail) - offset < _END.size:
        raise ValueError("is truncated: the directory of a zip archive is missing")
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise ValueError("is damaged: bytes follow the end of a zip archive")
    locator = end - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, disk, end64, _ = _LOCATOR.unpack_from(data, locator)
        if end64 + _END64.size > locator or data[end64 : end64 + 4] != b"PK\x06\x06":
            raise ValueError(
                "is damaged: the end record of a zip64 archive is not at its stated offset"
            )
        _, _, _, _, disk, first, here, count, size, start = _END64.unpack_from(data, end64)
        end = end64
    if disk or first or here != count:
        raise ValueError("is one part of a zip archive that is split into several")
    if start + size != end:
        raise ValueError("is damaged: its zip directory is not at its stated offset")
    return count, start, end


def _entry(data: memoryview, at: int, end: int) -> tuple[str, Entry, tuple[int, int], int]:
    """The directory entry at `at`: name, contents, byte range, and the next one's offset."""
    if at + _DIRECTORY.size > end or data[at : at + 4] != b"PK\x01\x02":
        raise ValueError("is damaged: its zip directory has fewer entries than stated")
    record = _DIRECTORY.unpack_from(data, at)
    _, _, _, flags, method, _, _, _, packed, size, named, extra, comment, _, _, mode, start = record
    at += _DIRECTORY.size
    following = at + named + extra + comment
    if following > end:
        raise ValueError("is damaged: its zip directory ends in the middle of an entry")
    raw = data[at : at + named]
    name = _name(bytes(raw), flags)
    fields = data[at + named : at + named + min(extra, _LONGEST_FIELDS)]
    size, packed, start = _long_fields(fields, size, packed, start)
    if flags & _ENCRYPTED:
        raise UnsafeFileError(f"has the encrypted zip entry {printable(name)}")
    if (mode >> 16) & 0xF000 not in (0, 0x8000, 0x4000):
        raise UnsafeFileError(f"has the zip entry {printable(name)}, which is not a regular file")
    if method not in (_STORED, _DEFLATED):
        raise ValueError(
            f"has the zip entry {printable(name)} of unsupported compression method {method}"
        )
    if method == _STORED and size != packed:
        raise UnsafeFileError(
            f"has the stored zip entry {printable(name)} of {packed} bytes, not of {size}"
        )
    begin = _contents(data, start, raw, method)
    if begin is None:
        raise UnsafeFileError(f"has contradictory headers of the zip entry {printable(name)}")
    if begin + packed > len(data):
        raise ValueError(f"is truncated: the zip entry {printable(name)} is incomplete")
    entry = Entry(data[begin : begin + packed], size, method == _DEFLATED)
    return name, entry, (start, begin + packed), following


def _contents(data: memoryview, start: int, name: memoryview, method: int) -> int | None:
    """The offset of an entry's contents, or None if the local header at `start` does not match."""
    if start + _LOCAL.size > len(data):
        return None
    signature, _, flags, same, _, _, _, _, _, named, extra = _LOCAL.unpack_from(data, start)
    at = start + _LOCAL.size
    if signature != b"PK\x03\x04" or flags & _ENCRYPTED or same != method:
        return None
    return at + named + extra if data[at : at + named] == name else None


def _name(raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise ValueError("has a zip entry whose name is not valid text") from None
    parts = name.removesuffix("/").split("/")
    if re.search(r"[\\:\x00-\x1f]", name) or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(f"has the zip entry {printable(name)}, a path out of the archive")
    return name


def _long_fields(extra: memoryview, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """An entry's sizes and offset; those that do not fit in 32 bits come from its zip64 field."""
    fields = [size, packed, start]
    missing = [index for index, value in enumerate(fields) if value == _MAX32]
    while missing and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and length >= 8 * len(missing) and len(extra) >= 4 + length:
            for place, index in enumerate(missing):
                (fields[index],) = struct.unpack_from("<Q", extra, 4 + 8 * place)
            break
        extra = extra[4 + length :]
    return fields[0], fields[1], fields[2]

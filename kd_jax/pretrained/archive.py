"""Zip archives read in place: entries are slices of the file, and nothing is written anywhere.

Only what writers of weight files make is read: entries that are stored, or deflated; with or
without zip64. The directory at the file's end is believed only where it agrees with what stands
before the entries: names, places that do not overlap, sizes. An entry is inflated to the size that
the directory gives, and not a byte further. Checksums are not compared: PyTorch can be told to
leave them out.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from kd_jax.pretrained.unpickle import UnsafeFileError, shown

MAX_ENTRIES = 1 << 16
"""Entries of one archive; each tensor of a checkpoint is one."""
MAX_RATIO = 8
"""Bytes of all entries together, inflated, for each byte of the archive; and 16 MiB."""

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_STORED, _DEFLATED = 0, 8
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_LONGEST_FIELDS = 128  # bytes that are searched for an entry's zip64 field


class Entry(NamedTuple):
    """A file in an archive.

    Attributes:
      packed: its bytes as they are in the archive.
      size: how many they are, inflated.
      deflated: whether they have to be.
    """

    packed: memoryview
    size: int
    deflated: bool


def entries(data: memoryview) -> Mapping[str, Entry]:
    """An archive's entries by name.

    Args:
      data: the archive.

    Raises:
      UnsafeFileError: a name leads out of the archive or is there twice, an entry is encrypted, a
        link, or overlaps another, or all together would be huge.
      ValueError: the archive is damaged, ends too early, or is packed as no weight file is.
    """
    count, start, end = _directory(data)
    if count > MAX_ENTRIES:
        raise UnsafeFileError(f"has {count} zip entries; {MAX_ENTRIES} are read")
    found: dict[str, Entry] = {}
    places = []
    at, total = start, 0
    for _ in range(count):
        name, entry, place, at = _entry(data, at, end)
        if name in found:
            raise UnsafeFileError(f"has the zip entry {shown(name)} twice")
        found[name] = entry
        places.append(place)
        total += entry.size
    if at != end:
        raise ValueError("is damaged: its zip directory has another length than it says")
    if total > MAX_RATIO * len(data) + (16 << 20):
        raise UnsafeFileError(f"is a zip of {len(data)} bytes that claims to hold {total}")
    places = [(0, 0), *sorted(places), (start, end)]
    if any(stop > begin for (_, stop), (begin, _) in pairwise(places)):
        raise UnsafeFileError("has zip entries that overlap")
    return found


def content(entry: Entry) -> memoryview:
    """An entry's bytes.

    Raises:
      ValueError: they cannot be inflated, or to another size than the archive says.
    """
    if not entry.deflated:
        return entry.packed
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(entry.packed, entry.size + 1)
    except zlib.error:
        raise ValueError("is damaged: a zip entry cannot be inflated") from None
    if len(found) != entry.size or not inflater.eof:
        raise ValueError("is damaged: a zip entry has another size than it says")
    return memoryview(found)


def _directory(data: memoryview) -> tuple[int, int, int]:
    """How many entries the directory has, where it begins and where it ends."""
    tail = bytes(data[-(_END.size + _MAX16) :])
    found = tail.rfind(b"PK\x05\x06")
    end = len(data) - len(tail) + found
    if found < 0 or len(tail) - found < _END.size:
        raise ValueError("ends too early: the directory of a zip archive is missing")
    _, disk, first, here, count, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise ValueError("is damaged: bytes follow the end of a zip archive")
    locator = end - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, disk, end64, _ = _LOCATOR.unpack_from(data, locator)
        if end64 + _END64.size > locator or data[end64 : end64 + 4] != b"PK\x06\x06":
            raise ValueError("is damaged: the end of a zip64 archive is not where it says")
        _, _, _, _, disk, first, here, count, size, start = _END64.unpack_from(data, end64)
        end = end64
    if disk or first or here != count:
        raise ValueError("is a part of a zip archive")
    if start + size != end:
        raise ValueError("is damaged: its zip directory is not where it says")
    return count, start, end


def _entry(data: memoryview, at: int, end: int) -> tuple[str, Entry, tuple[int, int], int]:
    """Name, contents and place of the directory's entry at `at`, and where the next begins."""
    if at + _DIRECTORY.size > end or data[at : at + 4] != b"PK\x01\x02":
        raise ValueError("is damaged: its zip directory has fewer entries than it says")
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
        raise UnsafeFileError(f"has the zip entry {shown(name)} encrypted")
    if (mode >> 16) & 0xF000 not in (0, 0x8000, 0x4000):
        raise UnsafeFileError(f"has the zip entry {shown(name)}, which is no file")
    if method not in (_STORED, _DEFLATED):
        raise ValueError(f"has the zip entry {shown(name)} packed by method {method}")
    if method == _STORED and size != packed:
        raise UnsafeFileError(f"has the zip entry {shown(name)} of {packed} bytes, not of {size}")
    begin = _contents(data, start, raw, method)
    if begin is None:
        raise UnsafeFileError(f"describes the zip entry {shown(name)} in two ways")
    if begin + packed > len(data):
        raise ValueError(f"ends too early: the zip entry {shown(name)} is not all there")
    entry = Entry(data[begin : begin + packed], size, method == _DEFLATED)
    return name, entry, (start, begin + packed), following


def _contents(data: memoryview, start: int, name: memoryview, method: int) -> int | None:
    """Where the contents of the entry at `start` begin, if it is the one that is meant."""
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
        raise ValueError("has a zip entry whose name is not text") from None
    parts = name.removesuffix("/").split("/")
    if re.search(r"[\\:\x00-\x1f]", name) or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFileError(f"has the zip entry {shown(name)}, a path out of the archive")
    return name


def _long_fields(extra: memoryview, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """An entry's sizes and place, those that do not fit 32 bits taken from its zip64 field."""
    fields = [size, packed, start]
    wanted = [index for index, value in enumerate(fields) if value == _MAX32]
    while wanted and len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1 and length >= 8 * len(wanted) and len(extra) >= 4 + length:
            for place, index in enumerate(wanted):
                (fields[index],) = struct.unpack_from("<Q", extra, 4 + 8 * place)
            break
        extra = extra[4 + length :]
    return fields[0], fields[1], fields[2]

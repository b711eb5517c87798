"""The skeleton of an archive, read without trust: where the list of files is, and where each file ends.

Python's zipfile reads archives that are prefixed, padded or commented, and believes the list of files alone. These few
structures (PKWARE APPNOTE 6.3, sections 4.3.7 and 4.3.14 to 4.3.16) are read here, to see that nothing else is there.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_FULL = 0xFFFFFFFF
_MANY = 0xFFFF
_NARROW, _WIDE = 20, 45  # versions of the format: with folders and deflate, with 64 bit sizes
_FIRST_DAY = (0, 0x21)  # 1980-01-01 00:00 in the words of MS-DOS
_EXTRA64 = struct.Struct("<2H2Q")


@dataclass(frozen=True)
class Directory:
    """The list of files: how many, where it starts, its size, and the size of the archive."""

    entries: int
    start: int
    size: int
    end: int


def directory_of(file: BinaryIO) -> Directory:
    """Find the list of files at the very end of the archive.

    Raises:
        zipfile.BadZipFile: there is none, or something stands behind it.
        OSError: the file cannot be read.
    """
    end = file.seek(0, os.SEEK_END)
    tail = _at(file, end - _END.size, _END, b"PK\5\6")
    disk, first, here, entries, size, start, comment = tail[1:]
    if disk or first or here != entries or comment:
        raise zipfile.BadZipFile("its end names other volumes or a comment")
    before = end - _END.size
    # Writers add 64 bit numbers from 2 GiB on, when the short ones still hold the values.
    if _FULL in (size, start) or entries == _MANY or _has_locator(file, before - _LOCATOR.size):
        before -= _LOCATOR.size
        _, other, record, volumes = _at(file, before, _LOCATOR, b"PK\6\7")
        before -= _END64.size
        if (other, volumes, record) != (0, 1, before):
            raise zipfile.BadZipFile("its 64 bit end is not where it says")
        long = _at(file, before, _END64, b"PK\6\6")
        if (
            long[1] != _END64.size - 12
            or (long[2], long[3]) != (_WIDE, _WIDE)
            or long[4]
            or long[5]
            or long[6] != long[7]
        ):
            raise zipfile.BadZipFile("its 64 bit end names other volumes or holds more than it may")
        wide = long[7:]
        for short, value, limit in ((entries, wide[0], _MANY), (size, wide[1], _FULL), (start, wide[2], _FULL)):
            if short not in (limit, value):
                raise zipfile.BadZipFile("its two ends do not agree")
        entries, size, start = wide
    if start + size != before:
        raise zipfile.BadZipFile("its list of files is not where it says")
    return Directory(entries, start, size, end)


def _has_locator(file: BinaryIO, place: int) -> bool:
    if place < 0:
        return False
    file.seek(place)
    return file.read(4) == b"PK\6\7"


def check_list(file: BinaryIO, directory: Directory, listed: list[zipfile.ZipInfo]) -> None:
    """Walk the list of files by the lengths that it states: zipfile reads on where one is too long.

    Raises:
        zipfile.BadZipFile: a length is not that of what was read, or the list ends elsewhere.
    """
    at = directory.start
    for entry in listed:
        head = _at(file, at, _CENTRAL, b"PK\1\2")
        name, extra, comment = head[10:13]
        if (name, extra, comment) != (len(_spelled(entry)), len(entry.extra), len(entry.comment)):
            raise zipfile.BadZipFile(f"the list says another length of {entry.filename!r}")
        at += _CENTRAL.size + name + extra + comment
    if at != directory.start + directory.size:
        raise zipfile.BadZipFile("the list of files does not end where it says")


def _spelled(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def local_end(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the data of an entry ends, when the header before it says the same as the list of files.

    Raises:
        zipfile.BadZipFile: it says something else.
    """
    head = _at(file, entry.header_offset, _LOCAL, b"PK\3\4")
    _, version, flags, method, time, date, crc, packed, size, name_length, extra_length = head
    name = file.read(name_length)
    extra = file.read(extra_length)
    if _FULL in (packed, size):
        if packed != size or len(extra) != _EXTRA64.size:
            raise zipfile.BadZipFile(f"the header of {entry.filename!r} is not as in the list")
        kind, length, size, packed = _EXTRA64.unpack(extra)
        if (kind, length) != (1, _EXTRA64.size - 4):
            raise zipfile.BadZipFile(f"the header of {entry.filename!r} holds more than sizes")
    elif extra:
        raise zipfile.BadZipFile(f"the header of {entry.filename!r} holds more than it may")
    told = (version, flags, method, (time, date), crc, packed, size, name)
    sizes = (entry.CRC, entry.compress_size, entry.file_size)
    listed = (entry.flag_bits, entry.compress_type, _FIRST_DAY, *sizes, _spelled(entry))
    # The list has 64 bit numbers also where a file begins far away.
    needed = _WIDE if extra or entry.extra else _NARROW
    if entry.extract_version != needed or told != (_WIDE if extra else _NARROW, *listed):
        raise zipfile.BadZipFile(f"the header of {entry.filename!r} is not as in the list")
    return entry.header_offset + _LOCAL.size + name_length + extra_length + entry.compress_size


def _at(file: BinaryIO, place: int, form: struct.Struct, mark: bytes) -> tuple[int, ...]:
    if place < 0:
        raise zipfile.BadZipFile("it is too short")
    file.seek(place)
    data = file.read(form.size)
    if len(data) != form.size or data[:4] != mark:
        raise zipfile.BadZipFile("it is cut off, or not a zip archive")
    read: tuple[int, ...] = form.unpack(data)
    return read

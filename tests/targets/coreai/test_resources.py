"""MLIR bytecode files that are written here, byte by byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish_passes.errors import PlanishError
from planish_targets.coreai.resources import resources

LARGE = bytes(range(256)) * 300


def number(value: int) -> bytes:
    """As the format writes it: how many bytes follow stands in the trailing zeros of the first."""
    more = next((n for n in range(8) if value < 1 << (7 * (n + 1))), 8)
    if more == 8:
        return b"\0" + value.to_bytes(8, "little")
    return ((value << 1 | 1) << more).to_bytes(more + 1, "little")


def section(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + number(len(data)) + data


def file(entries: dict[str, bytes], owner: str = "coreai") -> bytes:
    names = [owner, *entries]
    strings = number(len(names)) + b"".join(number(len(n) + 1) for n in reversed(names))
    strings += b"".join(n.encode() + b"\0" for n in names)
    head = b"ML\xefR" + number(6) + b"made here\0"
    head += section(0, strings)
    blobs, table = b"", number(0) + number(0) + number(len(entries))
    body = [number(1) + number(len(data)) + data for data in entries.values()]  # aligned to 1 byte: no padding
    for index, blob in enumerate(body, start=1):
        table += number(index) + number(len(blob)) + b"\0"
        blobs += blob
    return head + section(6, table) + section(5, blobs)


def test_constants_are_found_by_key(tmp_path: Path) -> None:
    path = tmp_path / "main.mlirb"
    path.write_bytes(file({"a": b"123", "large": LARGE, "none": b""}))
    found = resources(path)
    assert list(found.places) == ["a", "large", "none"]
    assert [found.read(key) for key in found.places] == [b"123", LARGE, b""]
    with pytest.raises(PlanishError, match="has no constant 'b'"):
        found.read("b")


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**35, 2**56 - 1, 2**60])
def test_numbers_of_all_lengths(value: int, tmp_path: Path) -> None:
    path = tmp_path / "main.mlirb"
    path.write_bytes(b"ML\xefR" + number(value) + b"made here\0" + section(0, number(0)))
    assert resources(path).places == {}


def test_every_cut_inside_a_section_is_an_error(tmp_path: Path) -> None:
    path, whole = tmp_path / "main.mlirb", file({"a": b"123", "b": b"4567"})
    last = len(whole) - whole.rindex(b"\x05")  # the section of the constants themselves
    for length in range(len(whole) - last + 1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(PlanishError, match="is not whole MLIR bytecode"):
            resources(path)
    path.write_bytes(whole[:-last])
    assert resources(path).places == {}


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "main.mlirb"
    for data in (b"", b"PK\3\4" * 9, b"ML\xefR"):
        path.write_bytes(data)
        with pytest.raises(PlanishError, match="is not whole MLIR bytecode"):
            resources(path)

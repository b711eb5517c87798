"""Packed bundles: equal bytes, back again unchanged; archives that are unsafe or ambiguous are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planish.bundle import open_bundle
from planish.bundle import unpack as reader
from planish.bundle.pack import pack_bundle
from planish.bundle.unpack import is_packed, unpack_and_check, unpack_bundle, unpacked
from planish_passes.errors import PlanishError


@pytest.fixture
def packed(bundle: Path) -> Path:
    return pack_bundle(bundle).path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("deflate", [False, True])
def test_there_and_back(bundle: Path, tmp_path: Path, deflate: bool) -> None:
    done = pack_bundle(bundle, tmp_path / "x.zip", deflate=deflate)
    assert done.deflated is deflate
    assert is_packed(done.path)
    at = unpack_and_check(done.path, tmp_path / "again.planish")
    assert contents(at) == contents(bundle)
    with zipfile.ZipFile(done.path) as archive:  # other programs read it, too
        assert archive.testzip() is None
        assert archive.namelist()[0] == "manifest.json"
    with unpacked(done.path) as folder:
        assert open_bundle(folder).check_hashes() == []
    assert not folder.exists()


def test_equal_bundles_make_equal_archives(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other.planish"))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    (other / "report.json").chmod(0o600)
    one, two = pack_bundle(bundle, tmp_path / "1.zip").path, pack_bundle(other, tmp_path / "2.zip").path
    assert one.read_bytes() == two.read_bytes()


def test_signature_is_packed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.sig").write_text("{}")
    at = unpack_bundle(pack_bundle(bundle).path, tmp_path / "x.planish")
    assert (at / "model.sig").read_text() == "{}"


def test_pack_refuses(bundle: Path, packed: Path) -> None:
    with pytest.raises(PlanishError, match="already something of that name"):
        pack_bundle(bundle)
    assert pack_bundle(bundle, replace=True).path == packed
    (bundle / "report.json").write_text("{}")
    with pytest.raises(PlanishError, match=r"not packed: changed: report\.json"):
        pack_bundle(bundle, replace=True)
    assert sorted(p.name for p in bundle.parent.iterdir()) == [bundle.name, packed.name]


def test_64_bit_sizes(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What archives above 4 GiB have, with a limit that small ones reach."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    large = pack_bundle(bundle, tmp_path / "large.zip").path
    monkeypatch.undo()
    assert b"PK\6\6" in large.read_bytes()
    assert contents(unpack_and_check(large, tmp_path / "x.planish")) == contents(bundle)
    data = large.read_bytes()
    locator = data.index(b"PK\6\7")
    record = data.index(b"PK\6\6")
    for place, form, lie in (
        (locator + 8, "<Q", record + 1),  # the record is elsewhere
        (record + 24, "<Q", 2**40),  # so many files on this volume
        (record + 32, "<Q", 2**40),  # so many files
        (record + 40, "<Q", 2**62),  # so large a list
        (record + 48, "<Q", 2**63),  # so far away
        (record + 4, "<Q", 2**60),  # so large a record
        (data.index(b"PK\3\4") + 30 + len("manifest.json") + 4, "<Q", 2**50),  # so large a file
    ):
        spoiled = bytearray(data)
        struct.pack_into(form, spoiled, place, lie)
        large.write_bytes(spoiled)
        with pytest.raises(PlanishError, match="archive is damaged"):
            unpack_bundle(large, tmp_path / "y.planish")
        assert not (tmp_path / "y.planish").exists()


def test_a_ratio_that_no_reader_would_open_is_not_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planish.bundle import pack

    monkeypatch.setattr(pack, "RATIO", 1)
    monkeypatch.setattr(pack, "SMALL", 0)
    assert pack_bundle(bundle, tmp_path / "x.zip", deflate=True).deflated is False


Entry = tuple[zipfile.ZipInfo, bytes]


def rebuild(archive: Path, change: Callable[[list[Entry]], Any]) -> None:
    """Write the archive again with other entries, as any program could."""
    with zipfile.ZipFile(archive) as old:
        entries = [(info, old.read(info)) for info in old.infolist()]
    fresh = []
    for info, data in entries:
        entry = zipfile.ZipInfo(info.filename, info.date_time)
        entry.external_attr, entry.create_system, entry.compress_type = info.external_attr, 3, info.compress_type
        fresh.append((entry, data))
    change(fresh)
    with zipfile.ZipFile(archive, "w") as new:
        for entry, data in fresh:
            new.writestr(entry, data)


def named(name: str, mode: int = stat.S_IFREG | 0o644) -> Entry:
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.create_system = mode << 16, 3
    return entry, b"x"


def replaced(name: str, data: bytes) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        at = next(i for i, (e, _) in enumerate(entries) if e.filename == name)
        entries[at] = (entries[at][0], data)

    return change


UNSAFE: list[tuple[Callable[[list[Entry]], Any], str]] = [
    (lambda e: None, ""),
    (lambda e: e.append(named("/etc/passwd")), "'/etc/passwd' has a name that no file"),
    (lambda e: e.append(named("../x")), "'../x' has a name that no file"),
    (lambda e: e.append(named("tokenizer/../../x")), "has a name that no file"),
    (lambda e: e.append(named("a\\b")), r"'a\\\\b' has a name that no file"),
    (lambda e: e.append(named("C:x")), "'C:x' has a name that no file"),
    (lambda e: e.append(named("a//b")), "has a name that no file"),
    (lambda e: e.append(named("./a")), "has a name that no file"),
    (lambda e: e.append(named("a/. /b")), "has a name that no file"),
    (lambda e: e.append(named("")), "has a name that no file"),
    (lambda e: e.append(named("folder/")), "has a name that no file"),
    (lambda e: e.append(named("link", stat.S_IFLNK | 0o777)), "'link' is a symbolic link"),
    (lambda e: e.append(named("pipe", stat.S_IFIFO | 0o644)), "'pipe' is not a regular file"),
    (lambda e: e.append(named("dir", stat.S_IFDIR | 0o755)), "'dir' is not a regular file"),
    (lambda e: e.append(named("report.json")), "would take the place of the file report.json"),
    (lambda e: e.append(named("REPORT.json")), "would take the place of the file report.json"),
    (lambda e: e.append(named("report.json. ")), "would take the place of the file report.json"),
    (lambda e: e.append(named("report.json/x")), "would take the place of the file report.json"),
    (lambda e: e.append(named("Tokenizer/new")), "would take the place of the folder tokenizer"),
    (lambda e: e.append(named("tokenizer")), "would take the place of the folder tokenizer"),
    (lambda e: e.extend([named("\u00e9"), named("e\u0301")]), "would take the place of the file \u00e9"),
    (lambda e: e.append(named("extra.bin")), "extra.bin is not in the manifest"),
    (lambda e: e.append(named("evidence/x")), "evidence/x is not in the manifest"),
    (lambda e: e.pop(), "is missing"),
    (lambda e: e.pop(0), "does not begin with manifest.json"),
    (lambda e: e.reverse(), "does not begin with manifest.json"),
    (lambda e: e.clear(), "does not begin with manifest.json"),
    (replaced("report.json", b"{}"), "report.json has 2 bytes; the manifest says"),
    (replaced("manifest.json", b"{}"), "not the manifest of a planish bundle"),
    (lambda e: setattr(e[1][0], "comment", b"hello"), "has a comment or fields"),
    (
        lambda e: setattr(e[1][0], "extra", struct.pack("<2HB4s", 0x7075, 5, 1, b"evil")),
        "has a comment or fields",
    ),
    (lambda e: setattr(e[1][0], "create_system", 0), "is not a regular file"),
    (lambda e: setattr(e[1][0], "compress_type", zipfile.ZIP_BZIP2), "compressed in a way that bundles do not use"),
]


@pytest.mark.parametrize(("change", "message"), UNSAFE)
def test_unsafe_archives(packed: Path, tmp_path: Path, change: Callable[[list[Entry]], Any], message: str) -> None:
    rebuild(packed, change)
    at = tmp_path / "out" / "x.planish"
    if not message:
        assert open_bundle(unpack_bundle(packed, at)).check_hashes() == []
        return
    with pytest.raises(PlanishError, match=message):
        unpack_bundle(packed, at)
    assert not at.exists()
    assert not (tmp_path / "x").exists()


def fields(data: bytearray, kind: bytes) -> Iterator[int]:
    at = data.find(kind)
    while at >= 0:
        yield at
        at = data.find(kind, at + 1)


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
LIES: list[tuple[bytes, int, str, int, str]] = [
    (CENTRAL, 8, "<H", 1, "is encrypted"),
    (CENTRAL, 8, "<H", 1 << 6, "is encrypted"),
    (CENTRAL, 8, "<H", 1 << 13, "is encrypted"),
    (CENTRAL, 8, "<H", 1 << 3, "has flags"),
    (CENTRAL, 20, "<L", 1 << 30, "claims to be larger than the archive"),
    (CENTRAL, 24, "<L", 1 << 31, "bytes, which .* cannot hold"),
    (CENTRAL, 16, "<L", 7, "is not as in the list"),
    (CENTRAL, 42, "<L", 3, "does not begin where the file before it ends"),
    (LOCAL, 6, "<H", 1, "is not as in the list"),
    (LOCAL, 8, "<H", 8, "is not as in the list"),
    (LOCAL, 14, "<L", 7, "is not as in the list"),
    (LOCAL, 18, "<L", 7, "is not as in the list"),
    (LOCAL, 22, "<L", 7, "is not as in the list"),
    (LOCAL, 26, "<H", 5, "is not as in the list"),
    (LOCAL, 28, "<H", 5, "holds more than it may"),
    (b"PK\5\6", 10, "<H", 3, "other volumes"),
    (b"PK\5\6", 12, "<L", 3, "is not where it says"),
    (b"PK\5\6", 16, "<L", 3, "is not where it says"),
    (b"PK\5\6", 20, "<H", 1, "other volumes or a comment"),
]


@pytest.mark.parametrize(("kind", "offset", "form", "lie", "message"), LIES)
def test_headers_that_lie(
    packed: Path, tmp_path: Path, kind: bytes, offset: int, form: str, lie: int, message: str
) -> None:
    data = bytearray(packed.read_bytes())
    struct.pack_into(form, data, next(fields(data, kind)) + offset, lie)
    packed.write_bytes(data)
    with pytest.raises(PlanishError, match=message):
        unpack_bundle(packed, tmp_path / "x.planish")
    assert not (tmp_path / "x.planish").exists()


def place_of(kind: bytes, name: bytes, data: bytes) -> int:
    length = {LOCAL: 26, CENTRAL: 42}[kind]
    found = re.search(re.escape(kind) + b".{%d}" % length + re.escape(name), data, re.DOTALL)
    assert found is not None
    return found.start() + 4 + length


def test_name_that_ends_early(packed: Path, tmp_path: Path) -> None:
    """Some programs cut a name at a zero byte."""
    data = bytearray(packed.read_bytes())
    for kind in (LOCAL, CENTRAL):
        data[place_of(kind, b"report.json", data) + 6] = 0
    packed.write_bytes(data)
    with pytest.raises(PlanishError, match="has a name that no file"):
        unpack_bundle(packed, tmp_path / "x.planish")


def test_another_name_in_the_local_header(packed: Path, tmp_path: Path) -> None:
    """What a program sees that reads from the front differs from what one sees that reads from the back."""
    data = bytearray(packed.read_bytes())
    at = place_of(LOCAL, b"report.json", data)
    data[at : at + 11] = b"../../x.txt"
    packed.write_bytes(data)
    with pytest.raises(PlanishError, match=r"header of 'report\.json' is not as in the list"):
        unpack_bundle(packed, tmp_path / "x.planish")


def test_no_bit_of_a_header_is_free(packed: Path, tmp_path: Path) -> None:
    """Of an archive of stored files, every single bit matters; here the headers, one byte after the other."""
    data = packed.read_bytes()
    headers = [range(at, at + 30) for at in list(fields(bytearray(data), LOCAL))[:2]]
    for at in (byte for span in [*headers, range(data.index(CENTRAL), len(data))] for byte in span):
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << at % 8
        packed.write_bytes(spoiled)
        with pytest.raises(PlanishError):
            unpack_bundle(packed, tmp_path / "x.planish")


@pytest.mark.parametrize("where", ["front", "between", "end"])
def test_bytes_that_belong_to_nothing(packed: Path, tmp_path: Path, where: str) -> None:
    data = packed.read_bytes()
    cut = {"front": 0, "between": data.index(CENTRAL), "end": len(data)}[where]
    packed.write_bytes(data[:cut] + b"MZ" * 20 + data[cut:])
    with pytest.raises(PlanishError, match=r"damaged|does not begin where|not where it says"):
        unpack_bundle(packed, tmp_path / "x.planish")


def test_truncated(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    for length in [*range(0, len(data), len(data) // 25), len(data) - 1]:
        packed.write_bytes(data[:length])
        with pytest.raises(PlanishError):
            unpack_bundle(packed, tmp_path / "x.planish")
        assert not (tmp_path / "x.planish").exists()


def test_limits(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, message in (
        ("ENTRIES", 3, "3 are allowed"),
        ("TOTAL", 1000, "1000 are allowed"),
        ("SMALL", 0, "would unpack to"),
        ("LARGEST_MANIFEST", 100, "manifest claims"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(reader, name, value)
            patch.setattr(reader, "RATIO", 0.5 if name == "SMALL" else reader.RATIO)
            with pytest.raises(PlanishError, match=message):
                unpack_bundle(packed, tmp_path / "x.planish")
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_SPARE", 1 << 62)
        with pytest.raises(PlanishError, match="not enough space"):
            unpack_bundle(packed, tmp_path / "x.planish")


def test_bomb(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest manifest of 64 MiB of zeros in 64 kB: refused before a byte is written."""
    from planish.bundle.codec import dump_manifest
    from planish.bundle.files import fingerprint

    path = "targets/onnxruntime/model.onnx.data"
    (bundle / path).write_bytes(bytes(64 << 20))
    manifest = open_bundle(bundle).manifest
    files = {**manifest.files, path: fingerprint(bundle / path)}
    (bundle / "manifest.json").write_bytes(dump_manifest(manifest.model_copy(update={"files": files})))
    from planish.bundle import pack

    monkeypatch.setattr(reader, "SMALL", 1 << 20)
    bomb = pack_bundle(bundle, tmp_path / "bomb.zip", deflate=True).path
    assert pack.SMALL != reader.SMALL  # the packer would have known better
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(PlanishError, match="would unpack to"):
        unpack_bundle(bomb, tmp_path / "x.planish")


def test_unpack_checks_hashes(packed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        size = archive.getinfo("report.json").file_size
    rebuild(packed, replaced("report.json", b" " * size))
    with pytest.raises(PlanishError, match=r"not whole: changed: report\.json"):
        unpack_and_check(packed, tmp_path / "x.planish")
    assert not (tmp_path / "x.planish").exists()


def test_default_names(packed: Path) -> None:
    shutil.rmtree(packed.with_suffix(""))
    assert unpack_and_check(packed) == packed.with_suffix("")
    with pytest.raises(PlanishError, match="already something"):
        unpack_and_check(packed)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(json.dumps({"a": 1}))
    assert not is_packed(tmp_path / "text")
    assert not is_packed(tmp_path / "none")
    for name, message in {"text": "too short", "none": "No such file", ".": "directory"}.items():
        with pytest.raises(PlanishError, match=message):
            unpack_bundle(tmp_path / name, tmp_path / "out" / "x")

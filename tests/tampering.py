"""Everything that could be done to a signed bundle on its way: mutations, each with a name.

The whole list is what `python ci/tamper.py` tries; `make test` tries every n-th.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle.codec import UNSEALED, json_bytes

SIGNATURE = "model.sig"
Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Mutation:
    """One way to tamper.

    Args:
        kind: for counting.
        name: what exactly.
        apply: does it to a bundle's folder.
        others: False when model-signing's own command is not meant to notice: it ignores git's files by default,
            folders without files, and evidence, which carries its own signatures.
    """

    kind: str
    name: str
    apply: Change
    others: bool = True


def mutations(bundle: Path, other: Path, seed: int = 0, flips: int = 24) -> Iterator[Mutation]:
    """All mutations of a signed bundle.

    Args:
        bundle: the bundle, which is not touched.
        other: another bundle, signed with the same key.
        seed: of the random places.
        flips: random places per file.
    """
    chance = random.Random(seed)
    files = sorted(p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file())
    for name in files:
        yield from _bytes(bundle, name, chance, flips)
        yield from _names(name, files, chance)
        if name not in ("manifest.json", SIGNATURE) and not name.startswith("evidence/"):
            yield Mutation("sealed again", name, _sealed(name))
    yield from _added(bundle)
    yield from _manifest_fields(bundle)
    yield from _signatures(bundle, other)
    yield from _mixed(bundle, other)


def _bytes(bundle: Path, name: str, chance: random.Random, flips: int) -> Iterator[Mutation]:
    size, ours = (bundle / name).stat().st_size, not name.startswith("evidence/")
    places = {0, size // 2, size - 1, *(chance.randrange(size) for _ in range(flips))} if size else set()
    for place in sorted(places):
        bit = chance.randrange(8)
        yield Mutation("byte changed", f"{name} byte {place} bit {bit}", _edit(name, _flip(place, bit)), ours)
    for kind, change in (
        ("cut by one byte", lambda data: data[:-1]),
        ("cut in half", lambda data: data[: len(data) // 2]),
        ("emptied", lambda data: b""),
        ("a byte more", lambda data: data + b"\n"),
        ("a byte in front", lambda data: b" " + data),
        ("a zero byte more", lambda data: data + b"\0"),
    ):
        if size:
            yield Mutation(kind, name, _edit(name, change), ours)


def _names(name: str, files: list[str], chance: random.Random) -> Iterator[Mutation]:
    ours = not name.startswith("evidence/")
    yield Mutation("removed", name, lambda b: (b / name).unlink(), ours)
    yield Mutation("renamed", f"{name}.bak", lambda b: (b / name).rename(b / f"{name}.bak"), ours)
    swapped = name.rpartition("/")[0] + ("/" if "/" in name else "") + name.rpartition("/")[2].swapcase()
    if swapped != name:
        yield Mutation("renamed", swapped, lambda b: (b / name).rename(b / swapped), ours)
    yield Mutation("link to itself, elsewhere", name, lambda b: _link(b, name, copy=True), ours)
    yield Mutation("link to /etc/hostname", name, lambda b: _link(b, name, copy=False), ours)
    yield Mutation("a folder instead", name, lambda b: ((b / name).unlink(), (b / name).mkdir()), ours)
    yield Mutation("a pipe instead", name, lambda b: ((b / name).unlink(), os.mkfifo(b / name)), ours)
    partner = chance.choice([f for f in files if f != name])
    both = ours and not partner.startswith("evidence/")
    yield Mutation("swapped", f"{name} with {partner}", lambda b: _swap(b, name, partner), both)


def _added(bundle: Path) -> Iterator[Mutation]:
    places = [
        "extra.bin",
        "targets/extra.bin",
        ".hidden",
        ".DS_Store",
        "manifest.json.orig",
        "MANIFEST.JSON",
        "tokenizer/added_tokens.json",
        "signature.sig",
        "model.sig.json",
        "__pycache__/x.pyc",
        "\u202egnp.exe",
        "a\nb",
        "evidence/x",
        "evidence/model.sig",
        "evidence/onnxruntime/0123456789abcdef/x",
        "evidence/onnxruntime/0123456789abcdef/device.json",
        ".git/config",
        ".gitattributes",
        ".github/workflows/x.yml",
        ".gitignore",
    ]
    for place in places:
        seen = not place.startswith((".git", "evidence"))
        yield Mutation("added", repr(place), lambda b, p=place: _put(b / p, b"x"), seen)
    for folder in sorted({p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_dir()}):
        seen = not folder.startswith("evidence")
        yield Mutation("added", f"{folder}/more", lambda b, f=folder: _put(b / f / "more", b"x"), seen)
        yield Mutation("added link", f"{folder}/link", lambda b, f=folder: (b / f / "link").symlink_to("/etc"), seen)
        yield Mutation("added folder", f"{folder}/empty", lambda b, f=folder: (b / f / "empty").mkdir(), False)
    yield Mutation("added link", "link", lambda b: (b / "link").symlink_to("/etc/hostname"))
    yield Mutation("added link", "dangling", lambda b: (b / "dangling").symlink_to("nowhere"))
    yield Mutation("added folder", "empty", lambda b: (b / "empty").mkdir(), False)


def _manifest_fields(bundle: Path) -> Iterator[Mutation]:
    """Every value of the manifest changed, with a seal that fits: a signature notices what a seal cannot."""
    data = json.loads((bundle / "manifest.json").read_bytes())
    for path, value in _leaves(data):
        if path == ("sha256",):
            continue
        where = ".".join(map(str, path))
        for label, new in _others(value):
            yield Mutation("manifest value", f"{where} = {label}", lambda b, p=path, n=new: _set(b, p, n))
    for path in [p for p, v in _nodes(data) if p and isinstance(v, (dict, list))]:
        yield Mutation("manifest part removed", ".".join(map(str, path)), lambda b, p=path: _drop(b, p))
    for path in [p for p, v in _nodes(data) if isinstance(v, dict)]:
        yield Mutation("manifest key added", ".".join(map(str, path)), lambda b, p=path: _set(b, (*p, "new"), 1))


def _signatures(bundle: Path, other: Path) -> Iterator[Mutation]:
    data = json.loads((bundle / SIGNATURE).read_bytes())
    for path, value in _leaves(data):
        for label, new in _others(value):
            name = f"{'.'.join(map(str, path))} = {label}"
            yield Mutation("signature value", name, lambda b, p=path, n=new: _sig(b, lambda d: _at(d, p, n)))
    statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
    for path, value in _leaves(statement):
        for label, new in _others(value):
            name = f"payload.{'.'.join(map(str, path))} = {label}"
            yield Mutation("signed statement", name, lambda b, p=path, n=new: _payload(b, lambda d: _at(d, p, n)))
    yield Mutation("signature", "of another bundle", lambda b: shutil.copy(other / SIGNATURE, b / SIGNATURE))
    yield Mutation("signature", "empty object", _edit(SIGNATURE, lambda data: b"{}"))
    yield Mutation("signature", "spaced out", _edit(SIGNATURE, lambda data: data.replace(b":", b": ", 1)), False)
    yield Mutation("signature", "no signatures", lambda b: _sig(b, lambda d: d["dsseEnvelope"].update(signatures=[])))
    more = {"ignore_paths": ["targets", SIGNATURE, "evidence"]}
    yield Mutation(
        "signature", "ignores", lambda b: _payload(b, lambda d: d["predicate"]["serialization"].update(more))
    )


def _mixed(bundle: Path, other: Path) -> Iterator[Mutation]:
    """Parts of another bundle that the same key has signed."""
    for part in ("manifest.json", "targets", "golden", "tokenizer", "report.json"):
        if _contents(other / part) != _contents(bundle / part):
            yield Mutation("part of another bundle", part, lambda b, p=part: _take(b, other, p))
    yield Mutation(
        "part of another bundle",
        "manifest and signature",
        lambda b: [shutil.copy(other / n, b / n) for n in ("manifest.json", SIGNATURE)],
    )


def _flip(place: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def _edit(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda bundle: (bundle / name).write_bytes(change((bundle / name).read_bytes()))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _link(bundle: Path, name: str, *, copy: bool) -> None:
    target = Path("/etc/hostname")
    if copy:
        target = bundle.parent / "elsewhere"
        shutil.copy(bundle / name, target)
    (bundle / name).unlink()
    (bundle / name).symlink_to(target)


def _swap(bundle: Path, one: str, two: str) -> None:
    first, second = (bundle / one).read_bytes(), (bundle / two).read_bytes()
    if first == second:
        first += b"x"
    (bundle / one).write_bytes(second)
    (bundle / two).write_bytes(first)


def _contents(at: Path) -> dict[str, bytes]:
    """Files at or below a path; equal parts are no tampering."""
    files = at.rglob("*") if at.is_dir() else [at]
    return {p.relative_to(at).as_posix(): p.read_bytes() for p in files if p.is_file()}


def _take(bundle: Path, other: Path, part: str) -> None:
    if (bundle / part).is_dir():
        shutil.rmtree(bundle / part)
        shutil.copytree(other / part, bundle / part)
    else:
        shutil.copy(other / part, bundle / part)


def seal(bundle: Path, change: Callable[[Any], Any]) -> None:
    """Change the manifest and make its own hash fit again."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_bytes())
    data = change(data) or data
    text = json_bytes({**data, "sha256": UNSEALED})
    path.write_bytes(text.replace(UNSEALED.encode(), hashlib.sha256(text).hexdigest().encode(), 1))


def _sealed(name: str) -> Change:
    """Change a file, and every hash that speaks of it."""

    def apply(bundle: Path) -> None:
        data = (bundle / name).read_bytes()
        data = bytes([data[0] ^ 1]) + data[1:] if data else b"x"
        (bundle / name).write_bytes(data)

        def hashes(manifest: Any) -> None:
            from planish.bundle.manifest import FileEntry, digest_of

            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files = {p: FileEntry(**e) for p, e in manifest["files"].items()}
            for target in manifest["targets"].values():
                if target["artifact"] is not None:
                    made = target["artifact"]
                    made["sha256"] = digest_of(files, f"{made['folder']}/{made['entry']}")

        seal(bundle, hashes)

    return apply


def _sig(bundle: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads((bundle / SIGNATURE).read_bytes())
    change(data)
    (bundle / SIGNATURE).write_text(json.dumps(data, separators=(",", ":")))


def _payload(bundle: Path, change: Callable[[Any], Any]) -> None:
    def apply(data: Any) -> None:
        statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
        change(statement)
        data["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    _sig(bundle, apply)


def _set(bundle: Path, path: tuple[Any, ...], value: Any) -> None:
    seal(bundle, lambda data: _at(data, path, value))


def _drop(bundle: Path, path: tuple[Any, ...]) -> None:
    def apply(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    seal(bundle, apply)


def _at(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def _nodes(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, data
    if isinstance(data, (dict, list)):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _nodes(value, (*path, key))


def _leaves(data: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    return ((path, value) for path, value in _nodes(data) if not isinstance(value, (dict, list)))


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values: one that may well be valid, one that is not."""
    if isinstance(value, bool):
        yield "the other", not value
    elif isinstance(value, (int, float)):
        yield "one more", value + 1
        yield "a word", "many"
    elif isinstance(value, str):
        yield "a letter more", value + "x"
        yield "a number", 7
    else:
        yield "a word", "something"

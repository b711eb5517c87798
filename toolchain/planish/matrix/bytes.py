"""Are the artifacts of two compiles of the same inputs equal, and where not: which bytes, and why?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from planish.bundle.files import walk

_FOLDER = "targets"
_PIECE = 1 << 20  # bytes
UNKNOWN = "not known: please report it with the model's config.json"
Reasons = Mapping[str, Mapping[str, str]]  # target -> pattern of file names -> why their bytes vary


@dataclass(frozen=True)
class Difference:
    """A file of an artifact that two compiles wrote differently.

    Args:
        file: path inside the bundle.
        count: bytes that differ, those beyond the end of the shorter file included.
        first: offset of the first of them.
        size: bytes of the longer file.
        why: the target's reason.
    """

    file: str
    count: int
    first: int
    size: int
    why: str


def differences_of(one: Path, two: Path, reasons: Reasons) -> tuple[Difference, ...]:
    """Compare the artifacts of two bundles, file by file.

    Raises:
        OSError: a file cannot be read.
    """
    files = [dict(walk(bundle / _FOLDER)) if (bundle / _FOLDER).is_dir() else {} for bundle in (one, two)]
    found = []
    for name in sorted({*files[0], *files[1]}):
        count, first, size = _compare(files[0].get(name), files[1].get(name))
        if count:
            found.append(Difference(f"{_FOLDER}/{name}", count, first, size, _why(name, reasons)))
    return tuple(found)


def _compare(one: Path | None, two: Path | None) -> tuple[int, int, int]:
    """Differing bytes, offset of the first, and size of the longer file."""
    if one is None or two is None:
        size = (one or two or Path()).stat().st_size
        return max(size, 1), 0, size
    count, first, at = 0, -1, 0
    with one.open("rb") as left, two.open("rb") as right:
        while True:
            a, b = left.read(_PIECE), right.read(_PIECE)
            if not a and not b:
                return count, max(first, 0), at
            if a != b:
                places = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
                beyond = abs(len(a) - len(b))
                first = at + (places[0] if places else min(len(a), len(b))) if first < 0 else first
                count += len(places) + beyond
            at += max(len(a), len(b))


def _why(name: str, reasons: Reasons) -> str:
    folder, _, inside = name.partition("/")
    for target, patterns in reasons.items():
        if target.replace(":", "-") == folder:
            for pattern, why in patterns.items():
                if fnmatch(inside, pattern):
                    return why
    return UNKNOWN

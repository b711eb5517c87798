"""Where the bytes are: weights by module and format, files by target."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from planish.report.subject import Report, Subject

_MOST = 320  # rectangles of a treemap that an eye, and a page, can take
REST = "smaller ones"


@dataclass(frozen=True)
class Leaf:
    """A weight, or what was too small to stand alone.

    Args:
        group: the block that it belongs to ("encoder.layer.3").
        name: of the weight, inside the group.
        bytes, before: after and before quantisation.
        format: in words.
        kind: "float", "8", "4" (bits), "table" or "mixed": what colours it.
    """

    group: str
    name: str
    bytes: int
    before: int
    format: str
    kind: str


def block(path: str) -> str:
    """The block of a module path: up to its first number (`encoder.layer.3`), else its parent (`embeddings`)."""
    parts = path.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        return ".".join(parts[: number + 1])
    return ".".join(parts[:-1]) or path


def leaves(report: Report) -> tuple[Leaf, ...]:
    """Every weight with bytes, in the order of the program; the smallest of a very long list are added up per block."""
    all_leaves = [_leaf(w.name, w.before, w.after, w.format) for w in report.weights if w.after > 0]
    if len(all_leaves) <= _MOST:
        return tuple(all_leaves)
    least = sorted((leaf.bytes for leaf in all_leaves), reverse=True)[_MOST - 1]
    rest: dict[str, list[Leaf]] = {}
    for leaf in all_leaves:
        if leaf.bytes < least:
            rest.setdefault(leaf.group, []).append(leaf)
    kept = [leaf for leaf in all_leaves if leaf.bytes >= least]
    return (*kept, *(_together(group, found) for group, found in rest.items()))


def formats(report: Report) -> tuple[Leaf, ...]:
    """One row per format, largest first."""
    found: dict[str, list[Leaf]] = {}
    for weight in report.weights:
        found.setdefault(weight.format, []).append(_leaf(weight.name, weight.before, weight.after, weight.format))
    rows = [
        Leaf("", f"{len(same)} weights", sum(x.bytes for x in same), sum(x.before for x in same), name, same[0].kind)
        for name, same in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def groups(report: Report) -> tuple[Leaf, ...]:
    """One row per block, in the order of the program."""
    found: dict[str, list[Leaf]] = {}
    for weight in report.weights:
        leaf = _leaf(weight.name, weight.before, weight.after, weight.format)
        found.setdefault(leaf.group, []).append(leaf)
    return tuple(
        Leaf(group, group, sum(x.bytes for x in same), sum(x.before for x in same), _names(same), _kind_of(same))
        for group, same in found.items()
    )


def files(subject: Subject, target: str) -> tuple[tuple[str, int], ...]:
    """Files of an artifact, largest first: (path inside its folder, bytes)."""
    made = subject.manifest.targets[target].artifact
    if made is None:
        return ()
    prefix = f"{made.folder}/"
    found = [(p.removeprefix(prefix), f.bytes) for p, f in subject.manifest.files.items() if p.startswith(prefix)]
    return tuple(sorted(found, key=lambda file: (-file[1], file[0])))


def _leaf(name: str, before: int, after: int, format: str) -> Leaf:
    module, _, weight = name.rpartition(".")
    group = block(module or weight)
    return Leaf(group, name.removeprefix(f"{group}."), after, before, format, kind(format))


def kind(format: str) -> str:
    """What colours a format."""
    if found := re.match(r"u?int(\d+)\b", format):
        return found[1] if found[1] in ("4", "8") else "mixed"
    if format.startswith(("float", "bfloat")):
        return "float"
    return "table" if "values" in format else "mixed"


def _together(group: str, found: list[Leaf]) -> Leaf:
    name = f"{len(found)} {REST}"
    return Leaf(group, name, sum(x.bytes for x in found), sum(x.before for x in found), _names(found), _kind_of(found))


def _names(found: list[Leaf]) -> str:
    return ", ".join(name for name, _ in Counter(x.format for x in found).most_common(3))


def _kind_of(found: list[Leaf]) -> str:
    kinds = {x.kind for x in found}
    return kinds.pop() if len(kinds) == 1 else "mixed"

"""What may come into a bundle after its manifest: a signature, what devices sent back; all else is an extra file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from planish.bundle.manifest import EVIDENCE, SIGNATURE
from planish_targets import registry

OUTPUTS, DEVICE, RESULT = "outputs.safetensors", "device.json", "result.json"
PARTS = (DEVICE, SIGNATURE, OUTPUTS, RESULT)
MEASUREMENTS, BENCH = "measurements", "bench.json"  # see planish.bench; no target has this name
_MEASURED = re.compile(rf"{EVIDENCE}/{MEASUREMENTS}/[0-9a-f]{{16}}/({re.escape(BENCH)}|{re.escape(SIGNATURE)})")
_PLACE = re.compile(rf"{EVIDENCE}/(?P<target>.+)/(?P<name>[0-9a-f]{{16}})/(?P<part>[^/]+)")


@dataclass(frozen=True)
class Recorded:
    """One result of a device, with all its files.

    Args:
        target: the target that was run.
        name: of its folder.
        folder: where it is.
    """

    target: str
    name: str
    folder: Path


@dataclass(frozen=True)
class Additions:
    """Files that no manifest lists.

    Args:
        files: those that have their place.
        evidence: complete results.
        problems: one line for each file that a result lacks.
    """

    files: frozenset[str]
    evidence: tuple[Recorded, ...]
    problems: tuple[str, ...]


def additions(found: Mapping[str, Path], targets: Collection[str]) -> Additions:
    """Sort out what came later.

    Args:
        found: path inside the bundle -> file.
        targets: names that evidence may be of.
    """
    known, names = {SIGNATURE} & set(found), {registry.folder(target): target for target in targets}
    known |= {path for path in found if _MEASURED.fullmatch(path)}
    results: dict[tuple[str, str], set[str]] = {}
    for path in found:
        at = _PLACE.fullmatch(path)
        if at is not None and at["target"] in names and at["part"] in PARTS:
            known.add(path)
            results.setdefault((at["target"], at["name"]), set()).add(at["part"])
    evidence, problems = [], []
    for (folder, name), parts in sorted(results.items()):
        place = f"{EVIDENCE}/{folder}/{name}"
        missing = [f"missing: {place}/{part}" for part in PARTS if part not in parts]
        problems += missing
        if not missing:
            evidence.append(Recorded(names[folder], name, found[f"{place}/{RESULT}"].parent))
    return Additions(frozenset(known), tuple(evidence), tuple(problems))

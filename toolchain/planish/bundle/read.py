"""Open a bundle. Nothing in it is trusted: not the manifest, not the names, not the files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from planish.bundle.additions import BENCH, MEASUREMENTS, Recorded, additions
from planish.bundle.codec import parse_manifest
from planish.bundle.files import empty_folders, fingerprint, walk
from planish.bundle.manifest import EVIDENCE, MANIFEST, SIGNATURE, FileEntry, Manifest, TargetEntry
from planish.bundle.swap import recover
from planish_passes.errors import PlanishError
from planish_targets.contract import Artifact

Cases = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk.

    Args:
        root: its folder.
        manifest: what it says of itself; valid, and unchanged since it was written.
    """

    root: Path
    manifest: Manifest

    def artifact(self, target: str) -> Artifact:
        """The artifact of a target, for its runner.

        Raises:
            PlanishError: the bundle has none; tells why.
        """
        entry = self._target(target)
        if entry.artifact is None:
            reasons = [v.reason for v in entry.verdicts if v.result != "passed"]
            why = f": {reasons[0]}" if reasons else ""
            raise PlanishError(f"There is no artifact for {target}{why}.", str(self.root), "see report.json")
        made = entry.artifact
        plain = target.partition("/")[0]
        return Artifact(plain, self.root / made.folder, made.entry, dict(made.options), entry.notes)

    def named(self, targets: Sequence[str]) -> tuple[str, ...]:
        """Every program of these targets ("onnxruntime/encode", ...); of all when none is named."""
        found = dict.fromkeys(
            name
            for asked in targets
            for name in ([asked] if asked in self.manifest.targets else self._programs(asked) or [asked])
        )
        return tuple(found if targets else self.manifest.targets)

    def _programs(self, target: str) -> list[str]:
        return [name for name in self.manifest.targets if name.startswith(f"{target}/")]

    def golden(self, target: str) -> tuple[Cases, Cases]:
        """Stored inputs and the yardstick's outputs: (case -> name -> tensor) twice; empty when none are stored.

        Raises:
            PlanishError: no such target, or the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        entry = self._target(target)
        given: Cases = {}
        expected: Cases = {}
        if entry.golden is None:
            return given, expected
        path = self.root / entry.golden
        try:
            for key, tensor in load_file(path).items():
                case, side, name = key.split("/", 2)
                {"in": given, "out": expected}[side].setdefault(case, {})[name] = tensor
        except (OSError, SafetensorError, ValueError, KeyError) as problem:
            hint = "the bundle is damaged: copy or compile it again"
            raise PlanishError(f"The golden tensors are not readable: {problem}.", str(path), hint) from problem
        return given, expected

    def check_hashes(self) -> list[str]:
        """Compare every file with the manifest; one line per missing, extra or changed file, [] when all is well.

        Raises:
            PlanishError: a symbolic link or special file, or the folder is gone.
        """
        found = dict(_readable(self.root))
        problems = [] if found.pop(MANIFEST, None) else [f"missing: {MANIFEST}"]
        later = additions(found, self.manifest.targets)
        problems += [f"missing: {path}" for path in self.manifest.files if path not in found]
        problems += later.problems
        problems += [f"extra: {path}" for path in found if path not in self.manifest.files and path not in later.files]
        problems += [
            f"extra: {path} (a folder without files)" for path in empty_folders(self.root) if not self._has(path)
        ]
        for path, listed in self.manifest.files.items():
            if path in found and (difference := _difference(found[path], listed)):
                problems.append(f"{difference[0]}: {path} ({difference[1]})")
        return problems

    def _has(self, folder: str) -> bool:
        return any(path.startswith(f"{folder}/") for path in self.manifest.files)

    @property
    def signature(self) -> Path | None:
        """The file that signs the bundle; None when nobody did."""
        path = self.root / SIGNATURE
        return path if path.is_file() else None

    def evidence(self) -> tuple[Recorded, ...]:
        """What devices sent back, as it lies there: nothing of it is checked."""
        return additions(dict(_readable(self.root)), self.manifest.targets).evidence

    def measurements(self) -> tuple[Path, ...]:
        """Folders of measurements, as they lie there: nothing of them is checked (`planish.bench.store` does)."""
        place = f"{EVIDENCE}/{MEASUREMENTS}/"
        inside = (path for name, path in _readable(self.root) if name.startswith(place) and path.name == BENCH)
        return tuple(path.parent for path in inside)

    def _target(self, name: str) -> TargetEntry:
        known = self.manifest.targets
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PlanishError(f"The bundle has no target {name!r}.", str(self.root), f"{hint}it has: {', '.join(known)}")


def _difference(path: Path, listed: FileEntry) -> tuple[str, str] | None:
    try:
        size = path.stat().st_size
        if size != listed.bytes:
            return "changed", f"{size} bytes instead of {listed.bytes}"
        if fingerprint(path).sha256 != listed.sha256:
            return "changed", "same size, other content"
    except OSError as problem:
        return "unreadable", str(problem.strerror or problem)
    return None


def _readable(root: Path) -> list[tuple[str, Path]]:
    try:
        return list(walk(root))
    except OSError as problem:
        where = str(problem.filename or root)
        raise PlanishError(f"It cannot be read: {problem.strerror or problem}.", where, "check its rights") from problem


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check its manifest and its folder; contents are checked by `Bundle.check_hashes`.

    Raises:
        PlanishError: no bundle, an unreadable or changed manifest, a version that is not known, a symbolic link inside.
    """
    hint = "give a folder NAME.planish that `planish compile` wrote"
    # Through a link to the bundle itself, but never through one inside it.
    root = path.resolve()
    try:
        recover(root)
    except OSError as problem:
        what = "A stopped process left the bundle under another name, and it cannot be moved back."
        raise PlanishError(what, str(problem.filename or path), f"rename it to {root.name}") from problem
    if not root.is_dir():
        what = "A bundle is a folder, this is a file." if root.is_file() else "There is no such bundle."
        if root.is_file() and root.suffix == ".zip":
            hint = f"planish unpack {path}"
        raise PlanishError(what, str(path), hint)
    names = dict(_readable(root))
    if MANIFEST not in names:
        raise PlanishError(f"There is no {MANIFEST}: this is not a planish bundle.", str(path), hint)
    try:
        data = names[MANIFEST].read_bytes()
    except OSError as problem:
        what = f"The manifest cannot be read: {problem.strerror or problem}."
        raise PlanishError(what, str(names[MANIFEST]), "check its rights") from problem
    return Bundle(root, parse_manifest(data, str(root / MANIFEST)))

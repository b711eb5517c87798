"""Measurements in a bundle: evidence/measurements/<name>/bench.json, and model.sig where somebody signed it.

They come after the manifest, and the bundle's own signature does not cover them: each stands for itself. What is not
signed is kept, and called unsigned wherever it is shown.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from planish.bench.lint import lint_bench
from planish.bench.schema import LARGEST, Bench, parse
from planish.bundle import Bundle
from planish.bundle.additions import BENCH, MEASUREMENTS
from planish.bundle.codec import json_bytes
from planish.bundle.files import fingerprint, settle, walk
from planish.bundle.manifest import EVIDENCE, SIGNATURE
from planish.trust.check import Trusted, trusts, verify_claim
from planish.trust.envelope import LARGEST as LARGEST_SIGNATURE
from planish.trust.envelope import Claim, read_claim
from planish.trust.keys import demand_library
from planish.trust.sign import Signing, sign_folder
from planish_passes.errors import PlanishError

UNSIGNED = "unsigned"
_AGAIN = "ask for it again; docs/bench.md"


@dataclass(frozen=True)
class Stored:
    """A file of measurements and who stands behind it.

    Args:
        bench: the measurements.
        signed: "unsigned", "signed by ..., not checked" or "signed by ..." (checked).
        checked: somebody who is trusted signed it.
        name: of its folder in a bundle.
    """

    bench: Bench
    signed: str
    checked: bool
    name: str


def write(made: Bench, at: Path, signing: Signing | None) -> Path:
    """Write measurements: a file, or with a signature a folder of two.

    Raises:
        PlanishError: there is something of that name already, or a key that cannot sign.
    """
    at = at.absolute()
    if os.path.lexists(at):
        raise PlanishError("There is already something of that name.", str(at), "choose another place with -o")
    at.parent.mkdir(parents=True, exist_ok=True)
    data = json_bytes(made.model_dump(mode="json"))
    if signing is None:
        at.write_bytes(data)
        return at
    demand_library()
    folder = at.parent / f".{at.name}.new-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        (folder / BENCH).write_bytes(data)
        expected = {BENCH: fingerprint(folder / BENCH).sha256}
        sign_folder(folder, signing, folder / SIGNATURE, expected, (SIGNATURE,))
        settle(folder)
        os.rename(folder, at)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return at


def take(bundle: Bundle, place: Path, trusted: Trusted | None) -> Stored:
    """Check measurements and put them into the bundle that they are of.

    Args:
        bundle: where they go.
        place: a file, or a folder with bench.json and perhaps model.sig.
        trusted: whose signature must be under them; None = anybody's or nobody's, and then they are called that.

    Raises:
        PlanishError: unreadable, unbelievable, of another bundle, altered, of nobody who is trusted, or there already.
    """
    data, signature = read(place)
    stored = _judged(data, signature, trusted, str(place), demand=trusted is not None)
    _of(stored.bench, bundle, str(place))
    if problems := lint_bench(stored.bench):
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        what = f"The measurements contradict themselves: {problems[0].where}: {problems[0].what.rstrip('.')}{more}."
        raise PlanishError(what, str(place), "planish bench --lint lists everything")
    at = bundle.root / EVIDENCE / MEASUREMENTS / stored.name
    if os.path.lexists(at):
        raise PlanishError("The bundle has these measurements already.", str(at), "nothing is to be done")
    folder = bundle.root.parent / f".{bundle.root.name}.new-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        (folder / BENCH).write_bytes(data)
        if signature is not None:
            (folder / SIGNATURE).write_bytes(signature)
        settle(folder)
        at.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, at)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return stored


def stored(bundle: Bundle, trusted: Trusted | None = None) -> tuple[tuple[Stored, ...], tuple[str, ...]]:
    """Measurements in a bundle, checked again: those that can be shown, and a sentence for each that cannot."""
    found: list[Stored] = []
    refused: list[str] = []
    for folder in bundle.measurements():
        where = f"{EVIDENCE}/{MEASUREMENTS}/{folder.name}"
        try:
            data, signature = read(folder)
            one = _judged(data, signature, trusted, where, demand=False)
            if one.name != folder.name:
                raise PlanishError("It lies where other measurements belong.", where, _AGAIN)
            _of(one.bench, bundle, where)
            if problems := lint_bench(one.bench):
                raise PlanishError(f"It contradicts itself: {problems[0].where}: {problems[0].what}", where, _AGAIN)
        except PlanishError as problem:
            refused.append(f"{where}: {problem.what}")
        else:
            found.append(one)
    return tuple(sorted(found, key=lambda s: s.bench.created)), tuple(refused)


def read(place: Path) -> tuple[bytes, bytes | None]:
    """Measurements and their signature, as bytes, from a file or a folder.

    Raises:
        PlanishError: neither, or too large.
    """
    where = str(place)
    try:
        if place.is_file():
            return _limited(place, LARGEST), None
        files = dict(walk(place))
        if BENCH not in files:
            raise PlanishError("There are no measurements.", where, f"give a file, or a folder with {BENCH}")
        if extra := sorted(set(files) - {BENCH, SIGNATURE}):
            raise PlanishError(
                f"{extra[0]} does not belong to measurements.", where, f"only {BENCH} and {SIGNATURE} do"
            )
        signature = _limited(files[SIGNATURE], LARGEST_SIGNATURE) if SIGNATURE in files else None
        return _limited(files[BENCH], LARGEST), signature
    except OSError as problem:
        what = f"The measurements cannot be read: {problem.strerror or problem}."
        raise PlanishError(what, str(problem.filename or where), "give a file, or a folder") from problem


def _limited(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise PlanishError(f"{path.name} is larger than {limit >> 20} MiB.", str(path), _AGAIN)
    return data


def _judged(data: bytes, signature: bytes | None, trusted: Trusted | None, where: str, demand: bool) -> Stored:
    made = parse(data, where)
    name = hashlib.sha256(data + (signature or b"")).hexdigest()[:16]
    if signature is None:
        if demand:
            hint = "leave the key out to take it as unsigned"
            raise PlanishError("The measurements are not signed.", where, hint)
        return Stored(made, UNSIGNED, False, name)
    claim = read_claim(signature, f"{where}/{SIGNATURE}")
    if claim.files != {BENCH: hashlib.sha256(data).hexdigest()}:
        raise PlanishError("The measurements were altered after they were signed.", where, _AGAIN)
    if trusted is None or not (demand or trusts(trusted, claim)):
        by = f"{claim.kind} {claim.hint[:16]}".strip()
        return Stored(made, f"signed by {by}, not checked", False, name)
    return Stored(made, f"signed by {_signer(data, claim, trusted, where)}", True, name)


def _signer(data: bytes, claim: Claim, trusted: Trusted, where: str) -> str:
    demand_library()
    with tempfile.TemporaryDirectory(prefix="planish-bench-") as scratch:
        Path(scratch, BENCH).write_bytes(data)
        return str(verify_claim(claim, Path(scratch), trusted, where))


def _of(made: Bench, bundle: Bundle, where: str) -> None:
    own = [s for s in made.subjects if s.seal == bundle.manifest.sha256]
    if not own:
        hint = f"this is {bundle.manifest.sha256[:16]}; subjects: {', '.join(s.seal[:16] for s in made.subjects)}"
        raise PlanishError("The measurements are of another bundle.", where, hint)
    for subject in own:
        entry = bundle.manifest.targets.get(subject.target)
        if entry is None or entry.artifact is None or entry.artifact.sha256 != subject.artifact:
            what = f"The bundle has no such artifact for {subject.target!r}."
            raise PlanishError(what, where, "measure the artifact of this bundle")

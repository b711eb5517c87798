"""manifest.json as bytes: deterministic, and sealed with a hash of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from planish.bundle.manifest import FORMAT, VERSION, Manifest
from planish_passes.errors import PlanishError

UNSEALED = "0" * 64
LARGEST = 64 << 20
_DAMAGED = "the bundle is damaged: copy it again from where it was made, or compile it again"


def json_bytes(data: object) -> bytes:
    """UTF-8 JSON with one space of indentation and a final newline.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have.
    """
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json, sealed; whatever `manifest.sha256` was."""
    data = json_bytes({**manifest.model_dump(mode="json"), "sha256": UNSEALED})
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read manifest.json; strict, and the seal must fit.

    Raises:
        PlanishError: not JSON, not a bundle, a version of the future, an unknown key, or changed since it was written.
    """
    raw = _raw(data, where)
    if raw.get("format") != FORMAT:
        raise PlanishError("This is not the manifest of a planish bundle.", where, "give the folder NAME.planish")
    version = raw.get("version")
    if type(version) is not int or version != VERSION:
        hint = f"this planish reads version {VERSION}: `pip install -U planish`, or compile the model again"
        raise PlanishError(f"The bundle has format version {version!r}.", where, hint)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise PlanishError(f"The manifest is not valid: {key}: {first['msg']}.", where, _DAMAGED) from problem
    unsealed = data.replace(manifest.sha256.encode(), UNSEALED.encode(), 1)
    if hashlib.sha256(unsealed).hexdigest() != manifest.sha256:
        raise PlanishError("The manifest was changed after it was written.", where, _DAMAGED)
    return manifest


def _raw(data: bytes, where: str) -> Mapping[str, Any]:
    if len(data) > LARGEST:
        raise PlanishError(f"The manifest is larger than {LARGEST >> 20} MiB.", where, _DAMAGED)
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise PlanishError(f"The manifest is not readable JSON: {problem}.", where, _DAMAGED) from problem
    if not isinstance(raw, dict):
        raise PlanishError("The manifest is not a JSON object.", where, _DAMAGED)
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice")
    return made

"""An installation and jobs of `planish build` that need no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.matrix.facts import VARIABLES, Facts
from planish.matrix.file import Job
from planish.matrix.store import Entry, fingerprints
from planish.request_checks import Names

NAMES = Names(
    ("coreml", "directml", "executorch", "executorch:vulkan", "onnxruntime"),
    ("coreml", "onnxruntime"),
    ("float", "int8", "int4"),
)
FACTS = Facts(
    sources="0" * 64,
    names=NAMES,
    packages={"": {"torch": "2.13.0"}, **{name: {f"sdk-of-{name}": "1.0"} for name in NAMES.targets}},
    variables={"": VARIABLES, **dict.fromkeys(NAMES.targets, ()), "coreml": ("COREML_ROOT",)},
)


def with_request(job: Job, **changes: Any) -> Job:
    """The job with another request."""
    return replace(job, request=job.request.model_copy(update=changes))


FILES = {"manifest.json": b'{"format": "planish-bundle"}', "targets/a/model.onnx": b"model" * 50, "same": b"same"}


def bundle(at: Path, marker: bytes = b"", files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + (b"" if name == "same" else marker))
    return at


def entry(at: Path, name: str = "one") -> Entry:
    return Entry({"name": name}, fingerprints(at), {"ok": True})


def contents(at: Path) -> dict[str, bytes]:
    return {p.relative_to(at).as_posix(): p.read_bytes() for p in sorted(at.rglob("*")) if p.is_file()}

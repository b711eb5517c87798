"""An installation and jobs of `planish build` that need no torch."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planish.matrix.cache import Cache
from planish.matrix.compile import Compiled
from planish.matrix.facts import VARIABLES, Facts
from planish.matrix.file import Job, Matrix
from planish.matrix.hashes import Hashes
from planish.matrix.plan import Step, plan
from planish.matrix.run import Build, Outcome
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


TEXT = """
output = "dist"
targets = ["onnxruntime"]
recipes = ["float", "int8"]
[recipe.int8.gates]
cosine = 0.9
[[model]]
model = "minilm"
[[model]]
name = "other"
model = "minilm"
"""


@dataclass
class FakeCompiles:
    """Writes bundles as a compile does; `ends` says how those of some jobs end."""

    ends: Mapping[str, Compiled | BaseException] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    before: Callable[[Job], None] = lambda job: None
    stamp: Callable[[], str] = lambda: ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def compile(self, job: Job, say: Callable[[str], None]) -> Compiled:
        say("capture")
        self.made.append(job.name)
        self.before(job)
        end = self.ends.get(job.name)
        if isinstance(end, BaseException):
            raise end
        if end is not None:
            return end
        shutil.rmtree(job.output, ignore_errors=True)
        source = {"source": {"files": _files(Path(job.request.model))}}
        manifest = {"manifest.json": json.dumps({"format": "planish-bundle", **source}).encode()}
        asked = (job.request.model_dump_json(exclude={"output"}) + self.stamp()).encode()
        bundle(job.output, files={**manifest, "targets/onnxruntime/model.onnx": asked})
        summary = {"ok": True, "failed": [], "targets": [], "bundle": str(job.output)}
        return Compiled(summary, None, 1.0)

    def stop(self) -> None:
        self.stopped.set()


def _files(folder: Path) -> list[dict[str, str]]:
    hashes = Hashes(folder / "none")
    return [{"name": p.name, "sha256": hashes.of(p)} for p in folder.glob("*.json")]


class Bench:
    """A build of TEXT with a fake compiler."""

    def __init__(self, tmp_path: Path, load: Callable[[str], Matrix]) -> None:
        self.root, self.load, self.text, self.facts = tmp_path, load, TEXT, FACTS
        self.notes: list[str] = []
        self.compiles = FakeCompiles()
        self.said: list[tuple[str, str]] = []

    def plan(self, force: bool = False, cache: str = "cache") -> tuple[Step, ...]:
        self.hashes, self.cache = Hashes(self.root / "hashes.json"), Cache(str(self.root / cache), self.notes.append)
        jobs = self.load(self.text).jobs
        return tuple(plan(job, self.facts, self.hashes, self.cache, force=force) for job in jobs)

    def build(self, jobs: int = 1, twice: bool = False, **options: Any) -> tuple[Outcome, ...]:
        steps = self.plan(**options)
        self.compiles.made.clear()
        return Build(self.facts, self.hashes, self.cache, self.compiles, self, jobs, twice).run(steps)

    def say(self, job: str, line: str) -> None:
        self.said.append((job, line))

    def statuses(self, **options: Any) -> list[str]:
        return [outcome.status for outcome in self.build(**options)]

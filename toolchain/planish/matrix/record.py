"""What was built last beside a bundle: how `planish build` knows that nothing changed, or what did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planish.bundle.files import digest_of_file, write_whole
from planish.matrix.file import Job
from planish.matrix.key import key_of

FOLDER = ".planish-build"


@dataclass(frozen=True)
class Record:
    """The last bundle of a job.

    Args:
        inputs: what it was made from.
        files: path inside the bundle -> (sha256, bytes, modification time in ns).
        summary: what the compile said.
    """

    inputs: Mapping[str, Any]
    files: Mapping[str, tuple[str, int, int]]
    summary: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Of its inputs."""
        return key_of(self.inputs)


def place(job: Job) -> Path:
    """The folder of records beside a bundle."""
    return job.output.parent / FOLDER


def read_record(job: Job) -> Record | None:
    """The last record of a job; None when there is none, or none that can be read."""
    try:
        data = json.loads((place(job) / f"{job.name}.json").read_bytes())
        files = {name: (str(a), int(b), int(c)) for name, (a, b, c) in data["files"].items()}
        return Record(data["inputs"], files, data["summary"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # it only saves work: build, or look in the cache
        return None


def write_record(job: Job, inputs: Mapping[str, Any], hashes: Mapping[str, str], summary: Mapping[str, Any]) -> None:
    """Remember the bundle that now stands.

    Args:
        hashes: path inside the bundle -> sha256.

    Raises:
        OSError: it cannot be written, or a file of the bundle is gone.
    """
    files = {}
    for inside, digest in hashes.items():
        found = (job.output / inside).stat()
        files[inside] = (digest, found.st_size, found.st_mtime_ns)
    place(job).mkdir(parents=True, exist_ok=True)
    write_whole(place(job) / f"{job.name}.json", json.dumps(asdict(Record(inputs, files, summary))).encode())


def changed_file(job: Job, record: Record) -> str | None:
    """The first file of the bundle that is not as it was written; None when all are.

    Contents are read only where size or time differ. What was added later (a signature, evidence) does not count.
    """
    for inside, (digest, size, moment) in record.files.items():
        path = job.output / inside
        try:
            found = path.stat()
        except OSError:
            return inside
        if found.st_size != size:
            return inside
        if found.st_mtime_ns != moment and digest_of_file(path) != digest:
            return inside
    return None

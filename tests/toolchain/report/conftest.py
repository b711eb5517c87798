"""Subjects of reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import measurements
import pytest
from reports import HASH, Json, manifest_data, report_data, write

from planish.bench.schema import Bench
from planish.bench.store import UNSIGNED, Stored
from planish.bundle.codec import UNSEALED
from planish.bundle.manifest import Manifest
from planish.report import Subject, read_report

Make = Callable[..., Subject]


@pytest.fixture
def make() -> Make:
    """`make(manifest=..., report=..., label=..., bench=...)`: functions that change the data in place."""

    def build(
        manifest: Callable[[Json], object] = bool,
        report: Callable[[Json], object] = bool,
        label: str = "",
        bench: Callable[[Json], object] | None = None,
    ) -> Subject:
        told, full = manifest_data(), report_data()
        manifest(told)
        report(full)
        for entry in told["targets"].values():  # hashes of what is not there
            if entry["artifact"]:
                path = f"{entry['artifact']['folder']}/{entry['artifact']['entry']}"
                told["files"].setdefault(path, {"bytes": 21, "sha256": HASH})
        measured = measurements.bench(UNSEALED)
        if bench is not None:
            bench(measured)
        one = Stored(Bench.model_validate_json(json.dumps(measured)), UNSIGNED, False, "0" * 16)
        return Subject(
            Manifest.model_validate_json(json.dumps(told)),
            read_report(full, "report.json"),
            label,
            (one,) if bench is not None else (),
        )

    return build


@pytest.fixture
def subject(make: Make) -> Subject:
    return make()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A bundle on the disk, as far as a report reads it."""
    return write(tmp_path / "tiny-int8.planish")

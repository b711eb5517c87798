"""A bundle's report is read strictly where it matters: damage is told, an older or newer one is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish.report import open_subject, read_report
from planish_passes.errors import PlanishError


def test_a_bundle(written: Path) -> None:
    subject = open_subject(written, "A")
    assert (subject.label, subject.manifest.name) == ("A", "tiny-int8")
    assert subject.recipe == "int8, per channel, symmetric"
    assert subject.report.of("onnxruntime").speed is not None
    assert ("gate cosine", "0.99") in subject.asked()
    assert "gate capture" not in dict(subject.asked())


def test_a_changed_report_is_refused(written: Path) -> None:
    path = written / "report.json"
    path.write_bytes(path.read_bytes().replace(b"0.002", b"0.001"))
    with pytest.raises(PlanishError, match=r"report\.json is not the one that was written"):
        open_subject(written)


def test_a_report_that_is_none_names_the_key() -> None:
    with pytest.raises(PlanishError, match=r"weights\.0\.after: "):
        read_report({"weights": [{"name": "a", "before": 1, "after": -1, "format": "x"}]}, "report.json")
    with pytest.raises(PlanishError, match="not valid"):
        read_report(b"[1", "report.json")


def test_an_older_report_lacks_and_a_newer_one_adds() -> None:
    report = read_report(json.dumps({"targets": {"a": {"new": 1}}, "later": {}}).encode(), "report.json")
    assert report.of("a").drift == ()
    assert report.of("unknown").speed is None

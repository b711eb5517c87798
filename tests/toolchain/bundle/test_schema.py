"""The published JSON Schema is the one of the code, and real manifests satisfy it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from planish.bundle.schema import schema_text

PUBLISHED = Path(__file__).parents[3] / "docs" / "bundle-manifest.schema.json"


def test_published_schema_is_current() -> None:
    assert PUBLISHED.read_text() == schema_text(), f"python -m planish.bundle.schema > docs/{PUBLISHED.name}"


def test_real_manifest_is_valid(bundle: Path) -> None:
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((bundle / "manifest.json").read_text()), schema)


@pytest.mark.parametrize("path", ["/etc/passwd", "a//b", "a\\b"])
def test_schema_refuses_bad_paths(bundle: Path, path: str) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"][path] = data["files"]["report.json"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(PUBLISHED.read_text()))


def test_schema_refuses_unknown_keys(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "surprise": 1}, json.loads(PUBLISHED.read_text()))

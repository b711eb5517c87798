"""The published schema is that of the code."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from measurements import bench

from planish.bench.schema import MEASURES, UNITS, Measure, parse, schema_text
from planish_passes.errors import PlanishError

PUBLISHED = Path(__file__).parents[3] / "docs/bench.schema.json"


def test_the_published_schema_is_up_to_date() -> None:
    assert PUBLISHED.read_text() == schema_text()  # else: python -m planish.bench.schema > docs/bench.schema.json


def test_a_file_fits_the_published_schema() -> None:
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator(schema).validate(bench())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**bench(), "rows": "none"})


def test_every_measure_is_explained() -> None:
    names = set(Measure.__args__)  # type: ignore[attr-defined]
    assert set(MEASURES) == names
    assert set(UNITS) < names


def test_reading_is_strict() -> None:
    assert parse(json.dumps(bench()).encode(), "x.json").subjects[0].id == "A"
    for data in (b"[]", b"{", json.dumps({**bench(), "version": 2}).encode()):
        with pytest.raises(PlanishError, match="These are no measurements"):
            parse(data, "x.json")

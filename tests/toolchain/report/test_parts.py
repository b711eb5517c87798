"""Sizes, drifts, placements and changes: the rows behind plots and tables."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from planish.bundle.verdicts import MetricEntry
from planish.report import Subject, accuracy, cards, changes, drifts, placements, sizes, speeds, words
from planish_targets.contract import Evidence

Make = Callable[..., Subject]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("encoder.layer.3.attention.self.query", "encoder.layer.3"),
        ("model.layers.12.mlp.down_proj", "model.layers.12"),
        ("embeddings.word_embeddings", "embeddings"),
        ("lm_head", "lm_head"),
        ("", ""),
    ],
)
def test_blocks(path: str, block: str) -> None:
    assert sizes.block(path) == block


def test_weights_add_up(subject: Subject) -> None:
    total = sum(w.after for w in subject.report.weights)
    for rows in (sizes.leaves(subject.report), sizes.groups(subject.report), sizes.formats(subject.report)):
        assert sum(row.bytes for row in rows) == total
    assert [(row.format, row.bytes) for row in sizes.formats(subject.report)] == [
        ("int8 per channel", 7000),
        ("float32", 400),
    ]
    assert {leaf.kind for leaf in sizes.leaves(subject.report)} == {"8", "float"}


def test_a_long_list_is_added_up_per_block(make: Make) -> None:
    def many(data: dict[str, Any]) -> None:
        data["weights"] = [
            {"name": f"l.{n // 50}.w{n}", "before": n, "after": n + 1, "format": "int8"} for n in range(1000)
        ]

    report = make(report=many).report
    leaves = sizes.leaves(report)
    assert len(leaves) < 360
    assert sum(leaf.bytes for leaf in leaves) == sum(range(1, 1001))
    assert any(sizes.REST in leaf.name for leaf in leaves)


@pytest.mark.parametrize(
    ("format", "kind"),
    [("int4 per 64", "4"), ("int8 per channel", "8"), ("float16", "float"), ("bfloat16", "float"), ("int64", "mixed"),
     ("16 values per 16 channels", "table")],
)  # fmt: skip
def test_kinds(format: str, kind: str) -> None:
    assert sizes.kind(format) == kind


def test_equal_columns_are_one_line_and_what_is_missing_is_told(subject: Subject) -> None:
    quantisation, lowering = drifts.courses([subject])
    assert [line.label for line in quantisation.lines] == ["onnxruntime, coreml"]
    assert quantisation.missing == (("executorch", ""),)
    assert [line.label for line in lowering.lines] == ["onnxruntime"]
    assert lowering.missing == (("coreml", "this runner shows no inner values"), ("executorch", ""))
    assert quantisation.worst() == ("onnxruntime, coreml", "encoder.layer.2.norm", pytest.approx(7e-3))
    assert quantisation.blocks() == ((0, "embeddings"), (1, "0"), (3, "1"), (5, "2"))


def test_bundles_have_colours_and_their_targets_dashes(make: Make) -> None:
    def other(data: dict[str, Any]) -> None:
        for layer in data["targets"]["coreml"]["drift"][0]["layers"]:
            layer["typical"] *= 2

    course = drifts.courses([make(label="A"), make(report=other, label="B")])[0]
    assert [(line.label, line.colour, line.dash) for line in course.lines] == [
        ("A onnxruntime, coreml, B onnxruntime", 0, 0),
        ("B coreml", 1, 0),
    ]


def test_modules_that_only_one_column_has_stand_beside_their_neighbours(make: Make) -> None:
    def fewer(data: dict[str, Any]) -> None:
        layers = data["targets"]["coreml"]["drift"][0]["layers"]
        layers[2]["module"] = "encoder.layer.0.extra"
        del layers[5:]

    course = drifts.courses([make(report=fewer)])[0]
    at = course.modules.index("encoder.layer.0.extra")
    assert course.modules[at - 1] == "encoder.layer.0.dense"
    assert len(course.modules) == 8


def test_placements(subject: Subject) -> None:
    placement = subject.report.of("onnxruntime").placement
    assert placement is not None
    counted = placements.shares(placement)
    assert (counted.accelerated, counted.fallback, counted.unknown, counted.total) == (1, 5, 0, 6)
    assert counted.units == (("Cpu", 5), ("Gpu", 1))
    (row,) = placements.away(placement)
    assert (row.op, row.count, row.reason, row.modules) == ("Gather", 5, "no table", ("e.1", "e.2", "e.3"))


@pytest.mark.parametrize(
    ("value", "limit", "at_most", "used"),
    [
        (0.5, 1.0, True, 0.5),
        (2.0, 1.0, True, 2.0),
        (0.99, 0.9, False, pytest.approx(0.1)),
        (0.8, 0.9, False, pytest.approx(2.0)),
        (1.0, 1.0, False, None),
        ("NaN", 1.0, True, None),
        ("Infinity", 1.0, True, None),
        (0.0, 0.0, True, None),
    ],
)
def test_how_much_of_an_allowance_is_used(value: Any, limit: float, at_most: bool, used: Any) -> None:
    metric = MetricEntry(name="m", value=value, limit=limit, at_most=at_most, case="")
    assert accuracy.used(metric) == used


def test_speeds(subject: Subject) -> None:
    speed = subject.report.of("onnxruntime").speed
    assert speed is not None
    short, samples = speeds.rows(speed)
    assert (short.case, short.median, short.low, short.high, short.count) == ("short", 0.004, 0.002, 0.01, 3)
    assert short.rate == pytest.approx(3000)
    assert (samples.case, samples.count) == ("sample0 to sample1", 2)
    assert speeds.headline(subject, "onnxruntime") == ("latency", samples)
    assert speeds.headline(subject, "coreml") is None


def test_only_what_differs_is_told(make: Make) -> None:
    def newer(data: dict[str, Any]) -> None:
        data["tools"]["packages"]["torch"] = "2.14.0"
        data["request"]["threads"] = 2

    rows = changes.differences([make(label="A"), make(newer, label="B")])
    assert {row.head: [cell.text for cell in row.cells] for row in rows} == {
        "torch": ["2.13.0", "2.14.0"],
        "asked: threads": ["1", "2"],
    }


def test_points_of_about_the_same_place_are_one(make: Make) -> None:
    def larger(data: dict[str, Any]) -> None:
        data["targets"]["coreml"]["artifact"]["bytes"] = 50

    metric, found = changes.points([make(label="A"), make(larger, label="B")])
    assert metric == "1 − cosine similarity"
    assert [(p.label, p.bytes, p.number) for p in found] == [
        ("A onnxruntime, coreml", 21, 0),
        ("B onnxruntime", 21, 1),
        ("B coreml", 50, 1),
    ]


@pytest.mark.parametrize("grade", Evidence)
def test_every_grade_has_words_and_is_counted(grade: Evidence) -> None:
    assert words.GRADES[grade]
    shown = SimpleNamespace(grade=grade, state="passed")
    assert cards.evidence((shown,)).startswith("Of the artifacts, 1 ")  # type: ignore[arg-type]

"""Which bytes of two compiles differ, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matrices import FACTS, Bench, bundle

from planish.matrix.bytes import UNKNOWN, Difference, differences_of
from planish.matrix.file import Job, Matrix

REASONS = {"onnxruntime": {"*.ort": "random"}, "executorch:vulkan": {"*": "a variant"}}


def test_where_and_why(tmp_path: Path) -> None:
    big = bytes(3_000_000)
    one = {
        "manifest.json": b"x",
        "targets/onnxruntime/model.ort": big,
        "targets/onnxruntime/model.onnx": b"abcd",
        "targets/executorch-vulkan/model.pte": b"ab",
        "targets/coreml/same": b"same",
        "targets/coreml/gone": b"gone",
    }
    changed = bytearray(big)
    changed[2_500_000] = changed[2_999_999] = 1
    two = {**one, "manifest.json": b"y", "targets/onnxruntime/model.ort": bytes(changed)}
    two |= {"targets/onnxruntime/model.onnx": b"abcdef", "targets/executorch-vulkan/model.pte": b"xb"}
    del two["targets/coreml/gone"]
    found = differences_of(bundle(tmp_path / "1", files=one), bundle(tmp_path / "2", files=two), REASONS)
    assert found == (
        Difference("targets/coreml/gone", 4, 0, 4, UNKNOWN),
        Difference("targets/executorch-vulkan/model.pte", 1, 0, 2, "a variant"),
        Difference("targets/onnxruntime/model.onnx", 2, 4, 6, UNKNOWN),
        Difference("targets/onnxruntime/model.ort", 2, 2_500_000, 3_000_000, "random"),
    )
    assert differences_of(tmp_path / "1", tmp_path / "1", REASONS) == ()


def test_a_build_that_compiles_twice(tmp_path: Path, model: Path, matrix: Callable[[str], Matrix]) -> None:
    bench = Bench(tmp_path, matrix)
    bench.facts = replace(FACTS, varies={"onnxruntime": {"model.onnx": "a stamp"}})
    first = bench.build(twice=True)
    assert [outcome.bytes for outcome in first] == [()] * 4
    assert bench.compiles.made == [name for o in first for name in [o.step.job.name] * 2]
    count = 0

    def stamped(job: Job) -> None:
        nonlocal count
        count += 1

    bench.compiles.before, bench.compiles.stamp = stamped, lambda: f"{count:04}"
    second = bench.build(force=True, twice=True)
    assert {(d.file, d.why) for o in second for d in o.bytes or ()} == {("targets/onnxruntime/model.onnx", "a stamp")}
    left = [p.name for p in (tmp_path / "dist" / ".planish-build").iterdir() if p.is_dir()]
    assert left == []
    assert all(outcome.bytes is None for outcome in bench.build())

"""The plotting process may crash, hang, be missing or talk nonsense: then there are no plots, and the page says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish.report import charts, draw
from planish.report.drifts import Course, Line
from planish.report.sizes import Leaf

SPEC = charts.treemap(
    [Leaf("layer.0", "a.weight", 10, 40, "int8", "8"), Leaf("head", "b", 5, 5, "float32", "float")], 300
)


def test_plots() -> None:
    course = Course(
        "quantisation", "", ("a.0.x", "a.1.y"), (Line("onnxruntime", {"a.0.x": 0.0, "a.1.y": 0.1}, 0, 0),), (), ""
    )
    specs = {"tree": SPEC, "course": charts.course(course, charts.WIDE)}
    made, why = draw.draw(specs)
    assert why == ""
    assert set(made) == {"tree", "course"}
    assert "<title>layer.0 · a.weight: 10 B, int8</title>" in made["tree"]
    assert 'fill="var(--kind-8)"' in made["tree"]
    assert "<title>a.1.y: 0.1 (onnxruntime)</title>" in made["course"]
    assert ">10⁻¹</text>" in made["course"]
    assert ">0</text>" in made["course"]  # what is exact has a line of its own


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed: exit code -11"),
        ("raise ImportError(\"No module named 'vl_convert'\")", "failed: ImportError: No module named 'vl_convert'"),
        ("import time; time.sleep(60)", "did not answer within"),
        ("print('hello')", "something else than plots"),
        ("print('[]')", "something else than plots"),
        ('print(\'["<svg onload=\\\\"x()\\\\"/>"]\')', "something else than plots: the attribute onload"),
    ],
)
def test_faults(script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(script)
    monkeypatch.setattr(draw, "SCRIPT", child)
    made, why = draw.draw({"tree": SPEC}, timeout=2.0 if "sleep" in script else 60.0)
    assert made == {}
    assert says in why

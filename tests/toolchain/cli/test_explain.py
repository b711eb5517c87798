"""planish explain: what a failed compile said, told again in full."""

from __future__ import annotations

import errno
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from planish.verdict import Divergence, Failed, Metric
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

FAILED = Failed(
    "lowering",
    Evidence.EXECUTED,
    "the artifact computes something else than the program",
    (Metric("relative", 0.5, 1e-5, case="padded"), Metric("max_abs", 1.0)),
    "Fake CPU",
    Divergence("linear_7", "planish.linear_q", "encoder.layer.3.attention.self.query", 0.31),
)


def records(cache: Path) -> list[Path]:
    return list((cache / "planish" / "failures").glob("*/record.json"))


def test_an_error_is_followed_by_where_to_read_on(run: Any, build: Any, told: Any, private_cache: Path) -> None:
    build.error = PlanishError("no form for it", "aten.foo", "report it")
    failed = run("compile", "m", "-t", "coreml")
    assert failed.exit_code == 1
    assert "more: planish explain m-float.planish" in failed.stderr
    shown = run("explain", "m-float.planish", "--no-reduce")
    assert shown.exit_code == 0
    assert "for coreml, recipe float could not be done, in stage capture." in shown.stdout
    assert "no form for it" in shown.stdout
    assert "start > capture" in shown.stdout


def test_json(run: Any, build: Any, private_cache: Path) -> None:
    build.error = PlanishError("no form for it", "aten.foo", "report it")
    failed = json.loads(run("compile", "m", "-t", "coreml", "--json").stdout)
    assert failed["error"]["more"] == ["planish explain m-float.planish"]
    data = json.loads(run("explain", "--json", "--no-reduce").stdout)
    assert (data["ended"], data["findings"][0]["what"]) == ("failed", "no form for it")
    assert data["reduced"] == {"reason": "it was not asked for"}
    readme = Path(data["report"], "README.md").read_text()
    assert "no form for it" in readme
    assert str(Path.cwd()) not in readme
    assert "Traceback" in data["findings"][0]["traceback"]


def test_a_failed_gate_names_check_case_and_layer(run: Any, build: Any) -> None:
    build.verdict = FAILED
    failed = run("compile", "m", "-t", "coreml")
    assert (failed.exit_code, "more: planish explain m-float.planish" in failed.stderr) == (3, True)
    shown = run("explain", "--no-reduce").stdout
    assert "lowering: the artifact computes something else" in shown
    assert "relative 0.5 > limit 1e-05 (case padded)" in shown
    assert "max_abs" not in shown  # it has no limit
    assert "linear_7 (planish.linear_q), relative error 0.31" in shown
    assert "encoder.layer.3.attention.self.query" in shown


def test_success_leaves_nothing(run: Any, build: Any, private_cache: Path, told: Any) -> None:
    build.error = PlanishError("no form for it", "aten.foo", "report it")
    run("compile", "m", "-t", "coreml")
    assert len(records(private_cache)) == 1
    build.error = None
    assert run("compile", "m", "-t", "coreml").exit_code == 0
    assert records(private_cache) == []
    assert told(run("explain", "--no-reduce"))[0] == "No compile failed here."


def test_interrupt_is_told_with_its_stage(run: Any, build: Any) -> None:
    build.error = KeyboardInterrupt()
    failed = run("compile", "m", "-t", "coreml")
    assert failed.exit_code == 130
    assert "interrupted in stage capture: m-float.planish is as it was" in failed.stderr
    assert "was interrupted, in stage capture" in run("explain", "--no-reduce").stdout


@pytest.mark.parametrize(
    ("error", "what", "told_as"),
    [
        (MemoryError(), "Memory ran out.", "ran out of memory"),
        (OSError(errno.ENOSPC, "x", "/full"), "There is no space left on the disk.", "ran out of space"),
    ],
)
def test_what_ran_out(run: Any, build: Any, told: Any, error: Exception, what: str, told_as: str) -> None:
    build.error = error
    failed = run("compile", "m", "-t", "coreml")
    assert (failed.exit_code, told(failed)[0]) == (1, what)
    assert told_as in run("explain", "--no-reduce").stdout


def test_a_defect_says_where_to_read_on_below_its_traceback(run: Any, build: Any) -> None:
    build.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect") as caught:
        run("compile", "m", "-t", "coreml")
    assert caught.value.__notes__[-1] == "planish explain m-float.planish"
    assert "RuntimeError: a defect" in run("explain", "--no-reduce").stdout


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_record(
    run: Any, build: Any, told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run("compile", "m", "-t", "coreml").exit_code == 0
    build.error = PlanishError("no form for it", "aten.foo", "report it")
    failed = run("compile", "m", "-t", "coreml", "-o", "other")
    assert told(failed)[0] == "no form for it"
    assert "explain" not in failed.stderr


def test_a_bundle_that_was_written_all_the_same(run: Any, encoder: Path, told: Any) -> None:
    what, where, _ = told(run("explain", encoder))
    assert (what, where) == ("Nothing failed: every gate of this bundle passed.", str(encoder))


def test_the_smallest_config_is_searched_once_and_shown(
    run: Any, build: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[Any] = []

    def attempt(config: Any, task: str, request: Any, seconds: float) -> tuple[tuple[str, ...], ...]:
        tries.append(config)
        return (("gate", "coreml", "lowering"),) if config["hidden_size"] >= 4 else ()

    monkeypatch.setattr("planish.failures.attempt.attempt", attempt)
    build.verdict = FAILED
    run("compile", "m", "-t", "coreml")
    shown = run("explain", "--report", "bug.zip")
    assert shown.exit_code == 0
    assert '{"hidden_size": 4}' in shown.stdout
    assert "hidden_size 8 -> 4: the same failure" in shown.stderr
    assert "hidden_size 4 -> 2: not this failure" in shown.stderr
    with zipfile.ZipFile(tmp_path / "bug.zip") as archive:
        assert json.loads(archive.read("bug/config.json")) == {"hidden_size": 4}
    before = len(tries)
    assert json.loads(run("explain", "--json").stdout)["reduced"]["config"] == {"hidden_size": 4}
    assert len(tries) == before


def test_a_report_replaces_nothing_but_a_report(run: Any, build: Any, told: Any, tmp_path: Path) -> None:
    build.error = PlanishError("no form for it", "aten.foo", "report it")
    run("compile", "m", "-t", "coreml")
    assert run("explain", "--no-reduce", "--report", "mine").exit_code == 0
    assert run("explain", "--no-reduce", "--report", "mine").exit_code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    failed = run("explain", "--no-reduce", "--report", "other")
    assert (failed.exit_code, "no report" in told(failed)[0]) == (1, True)
    assert (tmp_path / "other" / "thesis.txt").exists()

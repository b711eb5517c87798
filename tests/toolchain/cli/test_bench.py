"""planish bench: a real language model measured, written, checked, imported and shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measurements import bench
from typer.testing import Result

from planish.bench.lint import lint
from planish_targets import registry

Run = Callable[..., Result]
Told = Callable[[Result], tuple[str, str, str]]
QUICK = ("--rounds", 3, "--calls", 2, "--warmups", 1, "--prompt", 8, "--new", 4, "-q")


@pytest.fixture(autouse=True)
def targets() -> dict[str, Any]:
    """The real ones, not the fakes of conftest.py."""
    return dict(registry.targets())


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))


def test_measured_written_checked_imported_and_shown(run: Run, tiny: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "tiny.planish"))
    done = run("bench", bundle, *QUICK, "-o", "host.json", "--sustained", 0.01, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    data = (tmp_path / "host.json").read_bytes()
    assert json.loads(data) == told
    assert [p for p in lint(data) if "windows show no drift" not in p.what] == []
    rows = {r["measure"]: r for r in told["rows"]}
    wanted = {"load_warm", "first_token", "first_token_cold", "prefill", "decode", "token", "peak_memory"}
    assert wanted <= set(rows)
    assert (rows["prefill"]["n"], rows["prefill"]["rate"]["count"], rows["decode"]["rate"]["count"]) == (6, 8, 3)
    assert (rows["token"]["n"], rows["load_warm"]["n"]) == (18, 3)
    assert rows["prefill"]["conditions"]["prompt_tokens"] == 8
    assert told["subjects"][0]["versions"]["onnxruntime"]
    assert told["sustained"][0]["measure"] == "token"
    assert told["environment"]["energy"] == "not measured"

    if not lint(data):
        assert "nothing contradicts itself" in run("bench", "--lint", "host.json").stdout
    told["sustained"] = []
    (tmp_path / "host.json").write_text(json.dumps(told))
    taken = run("bench", bundle, "--import", "host.json")
    assert taken.exit_code == 0, taken.stderr
    assert "unsigned" in taken.stdout
    assert run("report", bundle, "-o", "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "Measured later" in page
    assert ">unsigned</span>" in page


def test_two_bundles_in_turn(run: Run, tiny: Any, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny.bundle, tmp_path / "other.planish"))
    done = run("bench", tiny.bundle, other, *QUICK, "--no-cold")
    assert done.exit_code == 0, done.stderr
    assert "B needs " in done.stdout
    assert "3 pairs" in done.stdout
    assert "energy: not measured" in done.stdout


def test_lint_fails_with_its_own_code(run: Run, told: Told, tmp_path: Path) -> None:
    data = bench()
    (tmp_path / "good.json").write_text(json.dumps(data))
    data["rows"][2]["rate"]["value"] = 500.0
    (tmp_path / "bad.json").write_text(json.dumps(data))
    assert run("bench", "--lint", "good.json").exit_code == 0
    done = run("bench", "--lint", "good.json", "--lint", "bad.json")
    assert done.exit_code == 3
    assert "bad.json: rows.2: rate and time contradict each other" in done.stdout
    assert told(done)[0] == "1 problem."
    as_json = json.loads(run("bench", "--lint", "bad.json", "--json").stdout)
    assert as_json["ok"] is False
    assert as_json["problems"]["bad.json"][0]["where"] == "rows.2"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "No bundle is given"),
        (("a", "b", "--import", "x"), "go into one bundle"),
        (("a", "--lint", "x"), "--lint and BUNDLE do not belong together"),
        (("a", "--import", "x", "-o", "y"), "--import and -o do not belong together"),
        (("a", "--key", "x"), "--key says whose measurements to --import"),
        (("a", "--sign", "x"), "A signature needs a place"),
        (("a", "--threads", "1,many"), "'many' is no number of threads"),
    ],
)
def test_command_lines_that_make_no_sense(run: Run, told: Told, args: tuple[str, ...], says: str) -> None:
    done = run("bench", *args)
    assert done.exit_code == 2
    assert says in told(done)[0]


def test_a_bundle_without_golden_inputs(run: Run, told: Told, encoder: Path) -> None:
    done = run("bench", encoder, "-q")
    assert done.exit_code == 1
    assert "stores no golden inputs: compile it with checks" in told(done)[0]


def test_a_changed_artifact_is_not_measured_under_its_old_name(run: Run, told: Told, tiny: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / "tiny.planish"))
    (bundle / "targets/onnxruntime/model.onnx").write_bytes(b"another model")
    done = run("bench", bundle, *QUICK)
    assert done.exit_code == 1
    assert told(done)[0].startswith("The bundle is not whole: changed: targets/onnxruntime/model.onnx")

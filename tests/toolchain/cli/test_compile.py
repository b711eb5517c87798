"""planish compile: flags, report, exit codes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer

from planish.cli.app import app
from planish.request import Request
from planish.verdict import Divergence, Failed, Metric, NotRun
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

FAILED = Failed(
    "lowering",
    Evidence.EXECUTED,
    "the artifact computes something else than the program",
    (Metric("relative", 0.5, 1e-5, case="padded"), Metric("max_abs", float("nan"))),
    "Fake CPU",
    Divergence("linear_7", "planish.linear_q", "encoder.layer.3.attention.self.query", 0.31),
)


def test_table_and_bundle(run: Any, build: Any, tmp_path: Path) -> None:
    result = run("compile", "some/my-model", "-r", "int8", "-t", "onnxruntime,directml")
    assert result.exit_code == 0
    assert build.written == [Path("my-model-int8.planish")]
    table = next(line for line in result.stdout.splitlines() if line.startswith("onnxruntime"))
    assert " ".join(table.split()) == "onnxruntime 23.1 MB emulated 0.99999 3.1e-02 2.0e-06 4.2 ms passed"
    assert str(tmp_path / "my-model-int8.planish") in result.stdout.replace("\n", "")
    assert "traced twice" in result.stdout
    assert "1 of 2 operations leave the accelerator; Add: no kernel" in result.stdout
    assert max(map(len, result.stdout.splitlines()[:6])) <= 80


def test_progress_and_library_chatter_stay_on_stderr(run: Any, build: Any) -> None:
    result = run("compile", "m", "-t", "coreml")
    assert "capture" in result.stderr
    assert " MB" in result.stderr
    assert "note: worth knowing" in result.stderr
    assert "a library talks" in result.stderr
    assert "a library talks" not in result.stdout


def test_quiet(run: Any, build: Any) -> None:
    assert "capture" not in run("compile", "m", "-t", "coreml", "--quiet").stderr


def test_json_is_pure(run: Any, build: Any) -> None:
    data = json.loads(run("compile", "m", "-t", "coreml", "--json").stdout)
    assert data["ok"] is True
    assert data["bundle"].endswith("m-float.planish")
    assert data["targets"][0]["evidence"] == "emulated"
    assert data["targets"][0]["bytes"] == 23_100_000
    assert data["targets"][0]["placement"]["away"][0]["reason"] == "no kernel"
    assert data["peak_memory_bytes"] > 1_000_000


def test_every_product_target_when_none_is_named(run: Any, build: Any) -> None:
    run("compile", "m")
    assert build.requests[0].targets == ("coreml", "directml", "executorch", "onnxruntime")


def test_every_key_of_the_request_is_a_flag() -> None:
    command = typer.main.get_command(app).commands["compile"]  # type: ignore[attr-defined]
    given = {"targets": "targets", "gates": "gate"}
    names = {p.name for p in command.params}
    assert {given.get(key, key) for key in Request.model_fields} <= names


def test_flags_reach_the_request(run: Any, build: Any) -> None:
    flags = "-o out --task fill-mask --revision main --sequence-length 64 --dynamic --trust-remote-code --keep-failed"
    run("compile", "m", "-t", "coreml", *flags.split(), "--threads", 2, "--timeout", 9.5, "--gate", "cosine=0.9",
        "--gate", "placement=0.5", "--runner", "coreml=ssh mac planish-run --x=1", "-r", "int8",
        "--group", 32, "--symmetric", "--rounding", "search", "--logits", "all", "--no-verify", "--bits", 4.5,
        "--split-weights", "--max-size", "90MB", "--context", 512, "--activations", "none")  # fmt: skip
    request = build.requests[0]
    assert request.model_dump(exclude={"gates", "output"}, exclude_unset=True) == {
        "model": "m",
        "targets": ("coreml",),
        "recipe": "int8",
        "group": 32,
        "symmetric": True,
        "rounding": "search",
        "activations": "none",
        "bits": 4.5,
        "max_size": 90_000_000,
        "context": 512,
        "logits": "all",
        "split_weights": True,
        "verify": False,
        "task": "fill-mask",
        "revision": "main",
        "sequence_length": 64,
        "dynamic": True,
        "trust_remote_code": True,
        "keep_failed": True,
        "threads": 2,
        "timeout": 9.5,
        "runner": {"coreml": "ssh mac planish-run --x=1"},
    }
    assert (request.output, request.gates.cosine, request.gates.placement) == (Path("out"), 0.9, 0.5)


def test_flags_win_over_the_file(run: Any, build: Any, tmp_path: Path) -> None:
    Path("planish.toml").write_text('model = "m"\nrecipe = "int8"\nkeep_failed = true\n[gates]\ncosine = 0.5\n')
    run("compile", "-c", "planish.toml", "-r", "float", "--no-keep-failed", "--gate", "lowering=3")
    request = build.requests[0]
    assert (request.recipe, request.keep_failed) == ("float", False)
    assert (request.gates.cosine, request.gates.lowering) == (0.5, 3.0)


def test_failed_gate(run: Any, build: Any, told: Any) -> None:
    build.verdict = FAILED
    result = run("compile", "m", "-t", "coreml")
    assert result.exit_code == 3
    assert build.written == []
    assert told(result)[1] == "coreml lowering"
    assert "relative 0.5 > limit 1e-05 (case padded)" in result.stdout
    assert "first diverges in encoder.layer.3.attention.self.query: planish.linear_q" in result.stdout
    assert "FAILED" in result.stdout


def test_failed_gate_in_json(run: Any, build: Any) -> None:
    build.verdict = FAILED
    result = run("compile", "m", "-t", "coreml", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["ok"], data["bundle"]) == (3, False, None)
    assert data["failed"][0]["diverged"]["module"] == "encoder.layer.3.attention.self.query"
    assert data["failed"][0]["metrics"][1]["value"] == "NaN"


def test_keep_failed_writes_and_still_fails(run: Any, build: Any) -> None:
    build.verdict = FAILED
    assert run("compile", "m", "-t", "coreml", "--keep-failed").exit_code == 3
    assert build.written == [Path("m-float.planish")]


def test_not_run_is_said_with_its_reason(run: Any, build: Any) -> None:
    build.verdict = NotRun("lowering", "no interpreter")
    result = run("compile", "m", "-t", "coreml")
    assert result.exit_code == 0
    assert "coreml, lowering: no interpreter" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.startswith("coreml"))
    assert "not-run" in row
    assert row.rstrip().endswith("not run")


@pytest.mark.parametrize("as_json", [False, True])
def test_planish_error(run: Any, build: Any, told: Any, as_json: bool) -> None:
    build.error = PlanishError("bad [model]", "config.json", "pip install 'planish[coreml]'")
    result = run("compile", "m", *(["--json"] if as_json else []))
    assert result.exit_code == 1
    assert told(result) == ("bad [model]", "config.json", "pip install 'planish[coreml]'")
    if as_json:
        assert json.loads(result.stdout)["error"]["hint"] == "pip install 'planish[coreml]'"
    else:
        assert result.stdout == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_disk_errors(run: Any, build: Any, told: Any, number: int) -> None:
    build.error = OSError(number, "x", "/mnt/full/model.onnx")
    result = run("compile", "m")
    assert (result.exit_code, told(result)[1]) == (1, "/mnt/full/model.onnx")


def test_no_space_told_by_a_library(run: Any, build: Any, told: Any) -> None:
    build.error = RuntimeError("I/O error: No space left on device (os error 28)")
    assert "no space left" in told(run("compile", "m"))[0]


def test_defects_keep_their_traceback(run: Any, build: Any) -> None:
    build.error = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        run("compile", "m")
    build.error = OSError(errno.EIO, "broken disk")
    with pytest.raises(OSError, match="broken disk"):
        run("compile", "m")


def test_interrupt(run: Any, build: Any) -> None:
    build.error = KeyboardInterrupt()
    result = run("compile", "m")
    assert result.exit_code == 130
    assert "error" not in result.output
    assert not build.workdirs[0].exists()


def test_nothing_is_left_behind(run: Any, build: Any, tmp_path: Path) -> None:
    run("compile", "m", "-o", "deep/down/x.planish")
    assert build.workdirs[0].parent == tmp_path / "deep" / "down"
    assert os.listdir(tmp_path / "deep" / "down") == ["x.planish"]


def test_output_in_the_way_is_refused_first(run: Any, build: Any, told: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    result = run("compile", "m", "-o", "taken")
    assert result.exit_code == 1
    assert told(result)[1].endswith("taken")
    assert build.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_folder_without_rights(run: Any, build: Any, told: Any, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run("compile", "m", "-o", "locked/x").exit_code == 1


def test_output_below_a_file(run: Any, build: Any, told: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("compile", "m", "-o", "file/x.planish")
    assert result.exit_code == 1
    assert told(result)[1].endswith("file")


@pytest.mark.parametrize(
    ("args", "where", "hint"),
    [
        (["m", "-t", "onnxruntim"], "--target", "did you mean 'onnxruntime'?"),
        (["m", "-r", "int9"], "--recipe", "did you mean 'int8'?"),
        (["m", "--gate", "cosin=0.9"], "--gate cosin", "did you mean 'cosine'?"),
        (["m", "--runner", "coreMl=ssh"], "--runner coreMl", "did you mean 'coreml'?"),
        (["m", "--timeout", "nan"], "--timeout", "seconds"),
        (["", "-t", "coreml"], "MODEL", "model"),
        (["-c", "nowhere.toml"], "nowhere.toml", "planish.toml"),
    ],
)
def test_wrong_values(run: Any, build: Any, told: Any, args: list[str], where: str, hint: str) -> None:
    result = run("compile", *args)
    assert result.exit_code == 1
    assert told(result)[1] == where
    assert hint in told(result)[2]
    assert build.requests == []


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["m", "--gate", "cosine"],
        ["m", "--gate", "cosine=abc"],
        ["m", "--gate", "cosine=1", "--gate", "cosine=0"],
        ["m", "--runner", "=x"],
        ["m", "--threads", "four"],
        ["m", "--threads", "0"],
        ["m", "--nope"],
        ["m", "n"],
    ],
)
def test_usage_errors(run: Any, build: Any, told: Any, args: list[str]) -> None:
    result = run("compile", *args, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["what"] == told(result)[0]


def test_bare_compile_points_at_the_request_file(run: Any, told: Any) -> None:
    Path("planish.toml").touch()
    assert told(run("compile"))[2] == "planish compile -c planish.toml"


def test_several_problems_at_once_in_json(run: Any, build: Any) -> None:
    Path("p.toml").write_text('model = "m"\nreceipt = "int8"\nthreads = 0\n')
    data = json.loads(run("compile", "-c", "p.toml", "--json").stdout)
    assert [p["where"] for p in data["error"]["problems"]] == ["p.toml:2", "p.toml:3"]

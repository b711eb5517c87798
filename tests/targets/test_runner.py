"""Faults of runners: each becomes a sentence."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Runner

CASES = {"a": {"x": torch.ones(2)}, "b": {"x": torch.zeros(2)}}

ECHO = """
import json, sys
from safetensors.torch import load_file, save_file
given, returned = sys.argv[1:]
call = json.load(open(given + "/call.json"))
flat = load_file(given + "/inputs.safetensors")
save_file({c + "/y": flat[c + "/x"] + 1 for c in call["cases"]}, returned + "/outputs.safetensors")
facts = {"device": "echo", "seconds": {c: [0.5] for c in call["cases"]}, "evidence": "structural"}
json.dump(facts, open(returned + "/device.json", "w"))
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    (tmp_path / "model").write_text("x")
    return Artifact("echo", tmp_path, "model")


def python(code: str) -> Runner:
    return Runner((sys.executable, "-c", code), Evidence.EXECUTED, "python")


def test_any_command_that_speaks_the_protocol_will_do(artifact: Artifact) -> None:
    ran = runner.run(python(ECHO), artifact, CASES)
    assert isinstance(ran, runner.Ran)
    assert ran.outputs["a"]["y"].tolist() == [2.0, 2.0]
    assert ran.evidence is Evidence.STRUCTURAL, "the device's own grade counts"
    assert ran.seconds("b") == [0.5]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", "crashed with SIGSEGV"),
        ("import sys; sys.exit('no such device')", "exited with 1: no such device"),
        ("pass", "no readable result"),
        ("import time; time.sleep(60)", "no result within 0.5 s"),
    ],
)
def test_faults_become_sentences(artifact: Artifact, code: str, reason: str) -> None:
    timeout = 0.5 if "sleep" in code else 30.0
    broke = runner.run(python(code), artifact, CASES, timeout=timeout)
    assert isinstance(broke, runner.Broke)
    assert reason in broke.reason


def test_a_command_that_does_not_exist(artifact: Artifact) -> None:
    broke = runner.run(Runner(("planish-no-such",), Evidence.EXECUTED, ""), artifact, CASES)
    assert isinstance(broke, runner.Broke)
    assert "cannot be started" in broke.reason


def test_a_case_that_is_left_out_is_noticed(artifact: Artifact) -> None:
    broke = runner.run(python(ECHO.replace('call["cases"]', '["a"]')), artifact, CASES)
    assert isinstance(broke, runner.Broke)
    assert "nothing for b" in broke.reason


def test_the_call_tells_what_to_run(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "call.json"
    code = f"import shutil, sys; shutil.copy(sys.argv[1] + '/call.json', {str(copy)!r})\n" + ECHO
    runner.run(python(code), artifact, CASES, threads=2, taps=["linear"])
    call = json.loads(copy.read_text())
    assert call["protocol"] == runner.PROTOCOL
    assert (call["target"], call["entry"], call["threads"], call["taps"]) == ("echo", "model", 2, ["linear"])


SERVED = """
import os, sys, time
from planish_targets.serve import serve
from planish_passes.errors import PlanishError

def load(call):
    opened = []
    def model(feed):
        opened.append(1)
        x = float(feed["x"].sum())
        if x == -1: os.kill(os.getpid(), 11)
        if x == -2: raise PlanishError("no", "here", "never")
        if x == -3: time.sleep(60)
        return {"y": feed["x"] + len(opened), "logits": feed["x"].reshape(1, 1, -1)}
    return model

serve("served", (), load)
"""


def calls(*values: float) -> list[runner.Call]:
    return [runner.Call({"a": {"x": torch.full((1,), v)}}) for v in values]


def served() -> Runner:
    return Runner((sys.executable, "-c", SERVED), Evidence.EXECUTED, "served", several=True)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each process was given."""
    started: list[int] = []
    execute = runner.execute

    def counting(command: list[str], timeout: float, threads: int, *returned: Path) -> runner.Broke | None:
        started.append(len(returned))
        return execute(command, timeout, threads, *returned)

    monkeypatch.setattr(runner, "execute", counting)
    return started


def test_several_calls_are_answered_by_one_process(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    started = counted(monkeypatch)
    found = runner.run_all(served(), artifact, calls(1, 2))
    assert [f.outputs["a"]["y"].item() for f in found if isinstance(f, runner.Ran)] == [2.0, 4.0]
    assert started == [2]


def test_caches_inside_are_empty_again_for_each_call(artifact: Artifact) -> None:
    kept = replace(artifact, options={"context": 8})
    found = runner.run_all(served(), kept, calls(1, 2))
    assert [f.outputs["a"]["y"].item() for f in found if isinstance(f, runner.Ran)] == [2.0, 3.0]


def test_a_crash_ends_one_call_and_the_others_go_on(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    started = counted(monkeypatch)
    asked = [*calls(1, -1), replace(calls(2)[0], behind=True), *calls(3, -2, 4)]
    found = runner.run_all(served(), artifact, asked, timeout=60)
    reasons = [f.reason if isinstance(f, runner.Broke) else "" for f in found]
    crash = "the runtime crashed with SIGSEGV"
    assert reasons == ["", crash, crash, "", "no (here)", ""]
    assert started == [6, 3]


def test_a_call_that_hangs_is_stopped_and_the_others_go_on(artifact: Artifact) -> None:
    found = runner.run_all(served(), artifact, calls(1, -3, 2), timeout=8)
    assert [type(f) for f in found] == [runner.Ran, runner.Broke, runner.Ran]
    assert isinstance(found[1], runner.Broke)
    assert found[1].reason == "no result within 8 s; the process was stopped"


def test_a_runner_that_shows_no_inner_values_does_not_compute_for_them(artifact: Artifact) -> None:
    asked = [runner.Call({"a": {"x": torch.full((1,), -1.0)}}, taps=["linear"]), *calls(1)]
    shown, _ = runner.run_all(served(), artifact, asked)
    assert isinstance(shown, runner.Ran)
    assert shown.outputs == {}


def test_a_command_of_the_users_gets_one_call_at_a_time(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    started = counted(monkeypatch)
    found = runner.run_all(python(ECHO), artifact, [runner.Call(CASES), runner.Call(CASES)])
    assert all(isinstance(f, runner.Ran) for f in found)
    assert started == [1, 1]

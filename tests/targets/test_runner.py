"""Faults of runners: each becomes a sentence."""

import json
import sys
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

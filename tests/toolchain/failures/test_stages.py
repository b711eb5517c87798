"""Killed, interrupted, out of disk or memory in every stage: no half bundle, no lost old one, nothing left for good."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planish.failures.record import read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and forks as on Linux")


@dataclass
class Machine:
    """A folder with an old bundle in it, and what compiles there in the processes of `stages.py`."""

    server: subprocess.Popen[str]
    root: Path
    model: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def old(self) -> Path:
        return self.here / "m.planish"

    def compile(self, what: Any, stage: str, **call: Any) -> tuple[int, str]:
        """Exit code (or minus the signal) and output of `planish compile`, to which `what` happens in a stage."""
        args = [
            "compile",
            str(self.model),
            "-t",
            call.pop("target", "reference"),
            "-o",
            "m.planish",
            *call.pop("more", ()),
        ]
        env = {"XDG_CACHE_HOME": str(self.root / "cache")}
        asked = {"args": args, "cwd": str(self.here), "env": env, "what": what, "stage": stage, **call}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        told = json.loads(self.server.stdout.readline())
        assert "Traceback" not in told["told"], told["told"]
        return os.waitstatus_to_exitcode(told["status"]), told["told"]

    def state(self) -> dict[str, str]:
        """Hash of every file of the bundle."""
        return {str(p.relative_to(self.old)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files(self.old)}

    def beside(self) -> list[str]:
        """What stands beside the bundle."""
        return sorted(p.name for p in self.here.iterdir() if p != self.old)

    def ended(self) -> str:
        """What the only record says."""
        (folder,) = (self.root / "cache" / "planish" / "failures").iterdir()
        return read(folder).ended


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("stages.py")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script)], text=True, env=env, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as tf
    from support import random_model

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    at = tmp_path_factory.mktemp("model") / "tiny"
    random_model(tf.BertConfig(vocab_size=100, **sizes)).save_pretrained(at)
    return at


@pytest.fixture
def machine(server: subprocess.Popen[str], model: Path, bundle_once: Path, tmp_path: Path) -> Machine:
    (tmp_path / "here").mkdir()
    shutil.copytree(bundle_once, tmp_path / "here" / "m.planish")
    return Machine(server, tmp_path, model)


@pytest.fixture(scope="module")
def bundle_once(server: subprocess.Popen[str], model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("once")
    (root / "here").mkdir()
    made = Machine(server, root, model)
    code, told = made.compile(0, "none", more=["--no-verify"])
    assert code == 0, told
    assert made.beside() == []
    return made.old


@pytest.mark.parametrize("stage", ["source", "capture", "lower", "bundle"])
def test_interrupted(machine: Machine, stage: str) -> None:
    before = machine.state()
    code, told = machine.compile(signal.SIGINT, stage, more=["--no-verify"])
    assert code == 130
    assert f"interrupted in stage {stage}" in told
    assert (machine.state(), machine.beside(), machine.ended()) == (before, [], "interrupted")


def test_interrupted_while_a_runner_works(machine: Machine) -> None:
    before = machine.state()
    code, told = machine.compile(signal.SIGINT, "verify", delay=0.7)
    assert code == 130
    assert "interrupted in stage verify reference: m.planish is as it was" in told
    assert (machine.state(), machine.beside()) == (before, [])


@pytest.mark.parametrize("stage", ["capture", "bundle"])
def test_killed(machine: Machine, stage: str) -> None:
    before = machine.state()
    code, _ = machine.compile(signal.SIGKILL, stage, more=["--no-verify"])
    assert (code, machine.state(), machine.ended()) == (-signal.SIGKILL, before, "running")
    assert [name.startswith(".planish-work-") for name in machine.beside()] == [True]
    code, _ = machine.compile(signal.SIGINT, "source")  # whatever comes next cleans up
    assert (code, machine.state(), machine.beside()) == (130, before, [])


@pytest.mark.parametrize(("stage", "target"), [("lower", "onnxruntime"), ("bundle", "reference")])
def test_full_disk(machine: Machine, stage: str, target: str) -> None:
    """A limit of 1000 bytes for every file, from that stage on: records of failures cannot be written either."""
    before = machine.state()
    code, told = machine.compile("disk", stage, limit=1000, target=target, more=["--no-verify"])
    assert code == 1
    assert "error: " in told
    assert any(word in told for word in ("File too large", "no space left")), told
    assert (machine.state(), machine.beside()) == (before, [])
    assert not list((machine.root / "cache" / "planish" / "failures").glob("*/record.json"))
    assert "explain" not in told


def test_out_of_memory(machine: Machine) -> None:
    before = machine.state()
    code, told = machine.compile("memory", "lower", limit=64 << 20, more=["--no-verify"])
    assert code == 1
    assert "error: Memory ran out." in told, told
    assert "where: stage lower reference" in told
    assert "more: planish explain m.planish" in told
    assert (machine.state(), machine.beside(), machine.ended()) == (before, [], "out of memory")

"""A compile as a process: its words, its crash, its end when the build ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from planish.matrix import compile as module
from planish.matrix.compile import Compiled, Processes, compile_request
from planish.request import Request

REQUEST = Request(model="/m", targets=("onnxruntime",), output=Path("/out.planish"))
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes | None = None) -> Compiled:
    """A child that runs `code` instead of the command line."""
    monkeypatch.setattr(module, "_CHILD", (sys.executable, "-c", code))
    said: list[str] = []
    done = compile_request(REQUEST, "job", folder / "work", processes or Processes(), said.append)
    assert (folder / "work" / "job.log").read_text().splitlines() == said
    return done


def test_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, os; print('stage', os.environ['PYTHONHASHSEED'], file=sys.stderr); print('{\"ok\": true}')"
    done = run(code, tmp_path, monkeypatch)
    assert (done.passed, done.summary, done.error) == (True, {"ok": True}, None)
    assert (tmp_path / "work" / "job.log").read_text() == "stage 0\n"
    from planish.request_file import load_request

    assert load_request(tmp_path / "work" / "job.toml", {}) == REQUEST


def test_a_failed_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("print('{\"ok\": false}'); raise SystemExit(3)", tmp_path, monkeypatch)
    assert (done.passed, done.summary) == (False, {"ok": False})


def test_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"error": {"what": "a", "where": "b", "hint": "c"}}'
    error = run(f"print('{told}'); raise SystemExit(1)", tmp_path, monkeypatch).error
    assert error is not None
    assert (error.what, error.where, error.hint) == ("a", "b", "c")


@posix
@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "by SIGKILL (the system does so when memory"),
        ("raise ValueError('a defect')", "with code 1"),
        ("print('not json')", "with code 0"),
        ("raise SystemExit(9)", "with code 9"),
    ],
)
def test_a_crash_is_told_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, what: str) -> None:
    error = run(code, tmp_path, monkeypatch).error
    assert error is not None
    assert what in error.what
    assert "job.log" in error.hint
    assert ("a defect" in error.hint) == ("a defect" in code)


@posix
@pytest.mark.parametrize("deaf", [False, True])
def test_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    """What runs is told to end; what would begin does not; what does not listen is killed."""
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    processes, ends, log = Processes(), list[Compiled](), tmp_path / "work" / "job.log"
    code = "import signal, sys, time\n" + "signal.signal(15, signal.SIG_IGN)\n" * deaf
    code += "print('here', file=sys.stderr, flush=True); time.sleep(60)"
    thread = threading.Thread(target=lambda: ends.append(run(code, tmp_path, monkeypatch, processes)))
    thread.start()
    while not (log.exists() and "here" in log.read_text()):
        time.sleep(0.02)
    processes.stop()
    thread.join(10)
    assert ends[0].error is not None
    assert ("SIGKILL" if deaf else "was stopped") in ends[0].error.what
    monkeypatch.setattr(module, "_CHILD", ("/no/such/program",))
    late = compile_request(REQUEST, "job", tmp_path, processes, print)
    assert late.error is not None
    assert "was stopped" in late.error.what


HANGS = """
import sys, threading, time
from planish.matrix import child
threading.Thread(target=child._watch, daemon=True).start()
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""
BUILDS = """
import sys
from pathlib import Path
from planish.matrix import compile
from planish.request import Request
compile._CHILD = (sys.executable, "-c", sys.argv[1])
popen = compile.subprocess.Popen
def start(*arguments, **options):
    process = popen(*arguments, **options)
    print(process.pid, flush=True)
    return process
compile.subprocess.Popen = start
request = Request(model="/m", targets=("onnxruntime",))
say = lambda line: print(line, flush=True)
compile.compile_request(request, "job", Path(sys.argv[2]), compile.Processes(), say)
"""


@posix
def test_a_compile_ends_when_its_build_is_killed(tmp_path: Path) -> None:
    """kill -9 leaves the build no moment to tell its compiles."""
    command = [sys.executable, "-c", BUILDS, HANGS, str(tmp_path)]
    build = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert build.stdout is not None
    pid = int(build.stdout.readline())
    assert build.stdout.readline() == "up\n"
    build.send_signal(signal.SIGKILL)
    build.wait()
    build.stdout.close()
    end = time.monotonic() + 10
    while _lives(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"

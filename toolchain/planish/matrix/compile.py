"""Compile one bundle in a process of its own, so that a crash of native code is the verdict of one job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tomlkit

from planish.bundle.files import write_whole
from planish.request import Request
from planish_passes.errors import PlanishError

_CHILD = (sys.executable, "-m", "planish.matrix.child")
_TAIL = 15  # lines of the log that an error repeats
_PATIENCE = 20.0  # seconds that a process has to clean up after it was told to end
Say = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """How a compile ended.

    Args:
        summary: what `planish compile --json` says; None when it ended otherwise.
        error: why there is no summary.
        seconds: wall time.
    """

    summary: Mapping[str, Any] | None
    error: PlanishError | None
    seconds: float

    @property
    def passed(self) -> bool:
        """There is a bundle, and no gate failed."""
        return self.summary is not None and bool(self.summary["ok"])


class Processes:
    """The compiles that run now; `stop` ends all of them and any that would begin later."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str] | None:
        """A process; None after `stop`."""
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(command, **options)
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """It needs no stopping any more."""
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """Let every process clean up and end; the slow ones are killed."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        end = time.monotonic() + _PATIENCE
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def compile_request(request: Request, name: str, folder: Path, processes: Processes, say: Say) -> Compiled:
    """Run `planish compile` for a request.

    Args:
        request: with absolute paths.
        name: of the job, for its files.
        folder: where the request and the log are kept.
        processes: where it can be stopped from.
        say: told each line of progress.

    Raises:
        OSError: the request cannot be written, or no process can be started.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    asked, log = folder / f"{name}.toml", folder / f"{name}.log"
    write_whole(asked, tomlkit.dumps(json.loads(request.model_dump_json(exclude_none=True))).encode())
    command = [*_CHILD, "compile", "-c", str(asked), "--json"]
    # Names and orders that follow from hashes of texts would differ from run to run.
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A group of its own: Ctrl-C reaches the build alone, which then ends its compiles one by one.
    process = processes.start(command, env=env, text=True, errors="replace", start_new_session=True, **pipes)
    if process is None:
        return Compiled(None, _stopped(name), 0.0)
    assert process.stdout is not None
    assert process.stderr is not None
    heard = threading.Thread(target=_listen, args=(process.stderr, log, say), daemon=True)
    heard.start()
    said = process.stdout.read()
    code = process.wait()
    heard.join()
    processes.ended(process)
    process.stdout.close()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return _verdict(name, code, said, log, time.monotonic() - began)


def _listen(pipe: IO[str], log: Path, say: Say) -> None:
    with pipe, log.open("w", encoding="utf-8", errors="replace") as file:
        for line in pipe:
            file.write(line)
            file.flush()
            say(line.rstrip())


def _verdict(name: str, code: int, said: str, log: Path, seconds: float) -> Compiled:
    if code in (0, 1, 3):
        with contextlib.suppress(ValueError):
            told = json.loads(said)
            if "error" not in told:
                return Compiled(told, None, seconds)
            error = told["error"]
            return Compiled(None, PlanishError(error["what"], error["where"], error["hint"]), seconds)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return Compiled(None, _stopped(name), seconds)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    if code == -signal.SIGKILL:
        how += " (the system does so when memory runs out)"
    tail = "".join(f"\n  {line}" for line in _last(log))
    hint = f"the log is {log}; planish compile -c {log.with_suffix('.toml')} runs this job alone{tail}"
    return Compiled(None, PlanishError(f"The compile ended {how}.", name, hint), seconds)


def _last(log: Path) -> list[str]:
    try:
        return log.read_text("utf-8", errors="replace").splitlines()[-_TAIL:]
    except OSError:  # it died before it could say anything
        return []


def _stopped(name: str) -> PlanishError:
    return PlanishError("The compile was stopped.", name, "run planish build again: what was finished is kept")

"""The runner protocol, both sides: a folder in, a folder out, a process in between.

In:  `artifact/` (the artifact's folder), `inputs.safetensors` (every tensor of every case, named `<case>/<input>`),
     `call.json` {"protocol": 1, "target", "entry", "options", "cases": [...], "repeat", "threads", "taps": [...],
     "carry"?: {output: input}, "returns"?: [...]}.
Out: `outputs.safetensors` (`<case>/<output>`), `device.json` {"protocol": 1, "device", "versions": {...},
     "evidence"?, "seconds": {case: [..]}, "start_rss_bytes"?, "peak_rss_bytes"?, "load_seconds"?};
     or `error.json` {"what", "where", "hint"} and a non-zero exit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from planish_targets.contract import Artifact, Evidence, Runner

PROTOCOL = 1
Cases = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Ran:
    """A run that returned outputs.

    Args:
        outputs: case -> output name -> tensor.
        device: the runner's device.json.
        evidence: grade of the run.
    """

    outputs: Cases
    device: Mapping[str, object]
    evidence: Evidence

    def seconds(self, case: str) -> list[float]:
        """Wall seconds of each repetition of one case."""
        timed = self.device.get("seconds", {})
        return [float(s) for s in timed.get(case, [])] if isinstance(timed, dict) else []


@dataclass(frozen=True)
class Broke:
    """A run that did not return outputs: what happened, in one sentence, and the end of its error output."""

    reason: str
    log: str = ""


def run(
    runner: Runner,
    artifact: Artifact,
    cases: Cases,
    *,
    repeat: int = 1,
    threads: int = 1,
    timeout: float = 600.0,
    taps: Sequence[str] = (),
    carry: Mapping[str, str] | None = None,
    returns: Sequence[str] = (),
) -> Ran | Broke:
    """Run every case of inputs through the runner's process.

    Args:
        runner: the command.
        artifact: what to run.
        cases: case name -> input name -> tensor.
        repeat: timed repetitions of each case.
        threads: threads inside the runtime.
        timeout: seconds until the process is killed.
        taps: names of inner values that the caller would like to see too; a runner returns those that it can.
        carry: output -> input: what a case does not give, it takes from the outputs of the case before it.
        returns: outputs that the caller wants back; empty = all.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="planish-run-") as scratch:
        given, returned = Path(scratch, "in"), Path(scratch, "out")
        given.mkdir()
        returned.mkdir()
        _place(artifact.folder, given / "artifact")
        flat = {
            f"{case}/{name}": t.contiguous().clone() for case, tensors in cases.items() for name, t in tensors.items()
        }
        save_file(flat, str(given / "inputs.safetensors"))
        call = {
            "protocol": PROTOCOL,
            "target": artifact.target,
            "entry": artifact.entry,
            "options": dict(artifact.options),
            "cases": list(cases),
            "repeat": repeat,
            "threads": threads,
            "taps": list(taps),
            "carry": dict(carry or {}),
            "returns": list(returns),
        }
        (given / "call.json").write_text(json.dumps(call, indent=1))
        broke = execute([*runner.command, str(given), str(returned)], timeout, threads, returned)
        if broke is not None:
            return broke
        try:
            device = dict(json.loads((returned / "device.json").read_text()))
            evidence = Evidence(device.get("evidence", runner.evidence))
            flat = load_file(str(returned / "outputs.safetensors"))
        except (OSError, ValueError, TypeError, SafetensorError) as problem:
            return Broke(f"the runner wrote no readable result: {problem}")
    outputs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        case, _, name = key.partition("/")
        outputs.setdefault(case, {})[name] = tensor
    missing = [case for case in cases if case not in outputs]
    if missing:
        return Broke(f"the runner returned nothing for {', '.join(missing)}")
    return Ran(outputs, device, evidence)


def _place(folder: Path, at: Path) -> None:
    # A link is enough for a local process; a runner that ships the folder elsewhere follows it (tar -h, rsync -L).
    try:
        at.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(folder, at)


def execute(command: list[str], timeout: float, threads: int, returned: Path) -> Broke | None:
    """Run a command to its end; None when it went well.

    Args:
        command: argument vector.
        timeout: seconds until it and what it started are stopped.
        threads: threads inside the runtime.
        returned: folder of its results, where it may leave `error.json`; its output goes into a log beside.
    """
    log = returned.parent / "log.txt"
    try:
        with log.open("wb") as sink:
            # A session of its own: what the runner starts (ssh, adb) is stopped with it.
            process = subprocess.Popen(
                command,
                env=environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            finally:
                stop(process)
    except subprocess.TimeoutExpired:
        return Broke(f"no result within {timeout:g} s; the process was stopped", _tail(log))
    except OSError as problem:
        return Broke(f"the runner cannot be started: {problem}")
    if code == 0:
        return None
    return _explain(code, returned / "error.json", _tail(log))


def environment(threads: int) -> dict[str, str]:
    """Variables of a runner's process: its threads, and a trace of Python's frames when native code crashes."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONFAULTHANDLER": "1"}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started in a session of its own, and what it started."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return log.read_bytes()[-4000:].decode(errors="replace")


def _explain(code: int, report: Path, log: str) -> Broke:
    if report.is_file():
        try:
            told = dict(json.loads(report.read_text()))
            return Broke(f"{told.get('what')} ({told.get('where')})", log)
        except (ValueError, TypeError):
            return Broke("the runner failed and left an unreadable report", log)
    return Broke(reason_of(code, log), log)


def reason_of(code: int, log: str) -> str:
    """What an exit code says: the name of the signal, or the code with the last line of the log."""
    if code < 0:
        names = {int(s): s.name for s in signal.Signals}
        return f"the runtime crashed with {names.get(-code, f'signal {-code}')}"
    last = log.strip().splitlines()[-1] if log.strip() else "no message"
    return f"the runner exited with {code}: {last}"

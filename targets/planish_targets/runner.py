"""The runner protocol, both sides: a folder in, a folder out, a process in between.

A command whose inside is `planish_targets.serve` takes several pairs of folders, one call each, and opens the artifact
anew for each call that could see what another one left behind. A crash ends one call: those behind it are asked again.

In:  `artifact/` (the artifact's folder), `inputs.safetensors` (every tensor of every case, named `<case>/<input>`),
     `call.json` {"protocol": 1, "target", "entry", "options", "cases": [...], "repeat", "threads", "taps": [...],
     "carry"?: {output: input}, "returns"?: [...], "writes"?: {"tokens", "count", "longest"}}.
Out: `outputs.safetensors` (`<case>/<output>`), `device.json` {"protocol": 1, "device", "versions": {...},
     "evidence"?, "seconds": {case: [..]}, "start_rss_bytes"?, "peak_rss_bytes"?, "load_seconds"?, "taps"?: false};
     or `error.json` {"what", "where", "hint"} and a non-zero exit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from planish_targets.contract import Artifact, Evidence, Runner

PROTOCOL = 1
_ENDS = ("device.json", "error.json")  # of which a call leaves one, last
_LOOK = 0.2  # seconds
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

    def written(self) -> list[int]:
        """Tokens of `Call.writes`."""
        return [int(token) for token in self.outputs["written"]["tokens"]]

    def seconds(self, case: str) -> list[float]:
        """Wall seconds of each repetition of one case."""
        timed = self.device.get("seconds", {})
        return [float(s) for s in timed.get(case, [])] if isinstance(timed, dict) else []


@dataclass(frozen=True)
class Broke:
    """A run that did not return outputs: what happened, in one sentence, and the end of its error output."""

    reason: str
    log: str = ""


@dataclass(frozen=True)
class Writes:
    """A greedy continuation by an artifact with caches inside.

    Args:
        tokens: of the text so far.
        count: tokens to write.
        longest: tokens that the caches hold.
    """

    tokens: tuple[int, ...]
    count: int
    longest: int


@dataclass(frozen=True)
class Call:
    """What is asked of an artifact that was just opened.

    Args:
        cases: case name -> input name -> tensor.
        repeat: timed repetitions of each case.
        taps: names of inner values that the caller would like to see too; a runner returns those that it can, and one
            that says that it can none returns nothing at all.
        carry: output -> input: what a case does not give, it takes from the outputs of the case before it.
        returns: outputs that the caller wants back; empty = all.
        writes: instead of cases: a text to continue. Only planish's own runners can; see `written`.
        behind: of no use when the call before it breaks; it breaks with it then.
    """

    cases: Cases
    repeat: int = 1
    taps: Sequence[str] = ()
    carry: Mapping[str, str] = field(default_factory=dict)
    returns: Sequence[str] = ()
    writes: Writes | None = None
    behind: bool = False


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
    """Run every case of inputs through the runner's process; see `Call` and `run_all`."""
    call = Call(cases, repeat, taps, carry or {}, returns)
    return run_all(runner, artifact, [call], threads=threads, timeout=timeout)[0]


def run_all(
    runner: Runner, artifact: Artifact, calls: Sequence[Call], *, threads: int = 1, timeout: float = 600.0
) -> list[Ran | Broke]:
    """Answers to several calls, by one process where the runner takes them together.

    Args:
        runner: the command.
        artifact: what to run.
        calls: each finds the artifact as if it were the only one.
        threads: threads inside the runtime.
        timeout: seconds of one call until the process is killed.
    """
    answers: list[Ran | Broke] = []
    while len(answers) < len(calls):
        if answers and calls[len(answers)].behind and isinstance(answers[-1], Broke):
            answers.append(answers[-1])
            continue
        left = calls[len(answers) :]
        answers += _process(runner, artifact, left if runner.several else left[:1], threads, timeout)
    return answers


def _process(
    runner: Runner, artifact: Artifact, calls: Sequence[Call], threads: int, timeout: float
) -> list[Ran | Broke]:
    """Answers of one process, up to the first call that it did not survive."""
    with tempfile.TemporaryDirectory(prefix="planish-run-") as scratch:
        pairs = [(Path(scratch, f"in{n}"), Path(scratch, f"out{n}")) for n in range(len(calls))]
        for call, (given, returned) in zip(calls, pairs, strict=True):
            given.mkdir()
            returned.mkdir()
            _put(artifact, call, given, threads)
        arguments = [str(folder) for pair in pairs for folder in pair]
        broke = execute([*runner.command, *arguments], timeout, threads, *(returned for _, returned in pairs))
        answers: list[Ran | Broke] = []
        for call, (_, returned) in zip(calls, pairs, strict=True):
            if broke is not None and not (returned / "device.json").exists():
                told = (returned / "error.json").is_file() and len(calls) > 1
                answers.append(_explain(1, returned / "error.json", broke.log) if told else broke)
                if not told:
                    break
            else:
                answers.append(_answer(runner, call, returned))
    return answers


def _put(artifact: Artifact, call: Call, given: Path, threads: int) -> None:
    from safetensors.torch import save_file

    _place(artifact.folder, given / "artifact")
    flat = {
        f"{case}/{name}": t.contiguous().clone() for case, tensors in call.cases.items() for name, t in tensors.items()
    }
    save_file(flat, str(given / "inputs.safetensors"))
    told: dict[str, object] = {
        "protocol": PROTOCOL,
        "target": artifact.target,
        "entry": artifact.entry,
        "options": dict(artifact.options),
        "cases": list(call.cases),
        "repeat": call.repeat,
        "threads": threads,
        "taps": list(call.taps),
        "carry": dict(call.carry),
        "returns": list(call.returns),
    }
    if call.writes is not None:
        told["writes"] = asdict(call.writes)
    (given / "call.json").write_text(json.dumps(told, indent=1))


def _answer(runner: Runner, call: Call, returned: Path) -> Ran | Broke:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

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
    missing = [case for case in (("written",) if call.writes else call.cases) if case not in outputs]
    if missing and not (call.taps and device.get("taps") is False):
        return Broke(f"the runner returned nothing for {', '.join(missing)}")
    return Ran(outputs, device, evidence)


def _place(folder: Path, at: Path) -> None:
    # A link is enough for a local process; a runner that ships the folder elsewhere follows it (tar -h, rsync -L).
    try:
        at.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(folder, at)


def execute(command: list[str], timeout: float, threads: int, *returned: Path) -> Broke | None:
    """Run a command to its end; None when it went well.

    Args:
        command: argument vector.
        timeout: seconds until it and what it started are stopped; counted anew from each `device.json` on.
        threads: threads inside the runtime.
        returned: folders of its results, where it may leave `error.json`; its output goes into a log beside.
    """
    log = returned[0].parent / "log.txt"
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
                code = _ended(process, timeout, returned)
            finally:
                stop(process)
    except subprocess.TimeoutExpired:
        return Broke(f"no result within {timeout:g} s; the process was stopped", _tail(log))
    except OSError as problem:
        return Broke(f"the runner cannot be started: {problem}")
    if code == 0:
        return None
    return _explain(code, returned[0] / "error.json", _tail(log)) if len(returned) == 1 else _coded(code, _tail(log))


def _ended(process: subprocess.Popen[bytes], timeout: float, returned: Sequence[Path]) -> int:
    """Its exit code."""
    if len(returned) == 1:
        return process.wait(timeout)
    done, until = 0, time.monotonic() + timeout
    while True:
        try:
            return process.wait(min(_LOOK, timeout))
        except subprocess.TimeoutExpired:
            now = sum(any((folder / name).exists() for name in _ENDS) for folder in returned)
            if now > done:
                done, until = now, time.monotonic() + timeout
            if time.monotonic() > until:
                raise


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
    return _coded(code, log)


def _coded(code: int, log: str) -> Broke:
    return Broke(reason_of(code, log), log)


def reason_of(code: int, log: str) -> str:
    """What an exit code says: the name of the signal, or the code with the last line of the log."""
    if code < 0:
        names = {int(s): s.name for s in signal.Signals}
        return f"the runtime crashed with {names.get(-code, f'signal {-code}')}"
    last = log.strip().splitlines()[-1] if log.strip() else "no message"
    return f"the runner exited with {code}: {last}"

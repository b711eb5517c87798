"""The inside of a runner process (`python -m planish_targets.X.run`): read the call, run each case, write results."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from planish_passes.errors import PlanishError


@dataclass(frozen=True)
class Call:
    """What the process was asked for (call.json), with the artifact's path resolved.

    Args:
        path: the file or package to open.
        options: `Artifact.options`.
        threads: threads inside the runtime.
        taps: inner values that the caller would like to see; a model may return those that it can, by name.
    """

    path: Path
    options: Mapping[str, object]
    threads: int
    taps: tuple[str, ...] = ()


Model = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
_KEEPS = ("context", "shared_buffers")  # options of artifacts that hold caches from call to call
DECODE = "--decode"  # the flag that makes a runner a decoding process; see planish_targets.decode


def serve(
    device: str,
    packages: tuple[str, ...],
    load: Callable[[Call], Model],
    prepare: Callable[[], None] = lambda: None,
    shows: bool = False,
) -> None:
    """Answer calls of the runner protocol, a pair of folders each; with `--decode`, write text until the input ends.

    Args:
        device: what computes, for people.
        packages: distributions whose versions belong to the evidence.
        load: opens the artifact and returns a function from named inputs to named outputs.
        prepare: loads the runtime's libraries, so that memory and time of `load` are those of the artifact.
        shows: models that `load` opens can return inner values (`Call.taps`).

    Exits the process with 1 when a call met a PlanishError; the calls behind it are answered all the same.
    """
    if DECODE in sys.argv[1:]:
        from planish_targets.decode import decode

        decode(device, load)
        return
    folders = [Path(argument) for argument in sys.argv[1:]]
    opened, failed = _Opened(load, shows), False
    for given, returned in zip(folders[::2], folders[1::2], strict=True):
        try:
            call = json.loads((given / "call.json").read_text())
            prepare()
            told = opened.answer(call, given, returned)
        except PlanishError as problem:
            report = {"what": problem.what, "where": problem.where, "hint": problem.hint}
            (returned / "error.json").write_text(json.dumps(report))
            failed = True
            continue
        facts = {
            "protocol": 1,
            "device": f"{device} on {_system()} {platform.machine()}",
            "versions": {p: _version(p) for p in packages},
            **told,
            **peak(),
        }
        (returned / "device.json").write_text(json.dumps(facts, indent=1))
    if failed:
        sys.exit(1)


class _Opened:
    """The artifact, opened once for all calls that cannot see each other's traces."""

    def __init__(self, load: Callable[[Call], Model], shows: bool) -> None:
        self._load, self._shows = load, shows
        self._model: Model | None = None
        self._for: tuple[object, ...] = ()

    def answer(self, told: Mapping[str, Any], given: Path, returned: Path) -> dict[str, object]:
        """Write outputs.safetensors; what device.json says of the call."""
        from safetensors.torch import save_file

        call = _call(told, given)
        if call.taps and not self._shows:
            save_file({}, str(returned / "outputs.safetensors"))
            return {"seconds": {}, "taps": False}
        before, started = peak("start"), time.perf_counter()
        model = self._open(call)
        loaded = time.perf_counter() - started
        seconds: dict[str, list[float]] = {}
        outputs = _written(model, told) if "writes" in told else _computed(model, told, given, seconds)
        save_file(outputs, str(returned / "outputs.safetensors"))
        return {"seconds": seconds, "load_seconds": loaded, **before}

    def _open(self, call: Call) -> Model:
        wanted = (call.path.resolve(), call.threads, call.taps, call.options)
        # Caches live as long as the loaded artifact: one that was used is not as good as new.
        used = self._model is not None and any(option in call.options for option in _KEEPS)
        if self._model is None or wanted != self._for or used:
            self._model = None  # before another one is in memory
            self._model, self._for = self._load(call), wanted
        return self._model


def _call(told: Mapping[str, Any], given: Path) -> Call:
    return Call(given / "artifact" / told["entry"], told["options"], int(told["threads"]), tuple(told.get("taps", ())))


def _computed(model: Model, call: Mapping[str, Any], given: Path, seconds: dict[str, list[float]]) -> dict[str, Tensor]:
    """Outputs by `<case>/<name>`; wall seconds of each repetition go into `seconds`."""
    from safetensors.torch import load_file

    outputs: dict[str, Tensor] = {}
    carry, wanted = call.get("carry") or {}, set(call.get("returns") or ())
    given_by_case: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(str(given / "inputs.safetensors")).items():
        name, _, port = key.partition("/")
        given_by_case.setdefault(name, {})[port] = tensor
    result: Mapping[str, Tensor] = {}
    for case in call["cases"]:
        carried = {inner: result[outer] for outer, inner in carry.items() if outer in result}
        feed = {**carried, **given_by_case.get(case, {})}
        for _ in range(int(call["repeat"])):
            begin = time.perf_counter()
            result = model(feed)
            seconds.setdefault(case, []).append(time.perf_counter() - begin)
        kept = {n: t for n, t in result.items() if not wanted or n in wanted}
        outputs.update({f"{case}/{name}": tensor.contiguous().clone() for name, tensor in kept.items()})
    return outputs


def _written(model: Model, call: Mapping[str, Any]) -> dict[str, Tensor]:
    from planish_targets.decode import greedy

    asked = call["writes"]
    whole = call["options"].get("prompt_in_one_call") is True
    return {"written/tokens": greedy(model, asked["tokens"], asked["count"], asked["longest"], whole)}


def peak(when: str = "peak") -> dict[str, int]:
    """{"peak_rss_bytes": ...}: the largest resident size of this process so far, under a name that says when it was
    looked at; {} where the system does not tell (Windows).

    Linux' getrusage counts what the parent held when it started this process, VmHWM does not (proc_pid_status(5)).
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return {f"{when}_rss_bytes": int(lines["VmHWM"].split()[0]) * 1024}
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {f"{when}_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _system() -> str:
    return f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else platform.system()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

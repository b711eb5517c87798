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
DECODE = "--decode"  # the flag that makes a runner a decoding process; see planish_targets.decode


def serve(
    device: str,
    packages: tuple[str, ...],
    load: Callable[[Call], Model],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Answer one call of the runner protocol and exit the process; with `--decode`, write text until the input ends.

    Args:
        device: what computes, for people.
        packages: distributions whose versions belong to the evidence.
        load: opens the artifact and returns a function from named inputs to named outputs.
        prepare: loads the runtime's libraries, so that memory and time of `load` are those of the artifact.
    """
    if DECODE in sys.argv[1:]:
        from planish_targets.decode import decode

        decode(device, load)
        return
    from safetensors.torch import load_file, save_file

    given, returned = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        call = json.loads((given / "call.json").read_text())
        prepare()
        before = peak("start")
        started = time.perf_counter()
        model = load(
            Call(given / "artifact" / call["entry"], call["options"], int(call["threads"]), tuple(call.get("taps", ())))
        )
        loaded = time.perf_counter() - started
        flat = load_file(str(given / "inputs.safetensors"))
        outputs: dict[str, Tensor] = {}
        seconds: dict[str, list[float]] = {}
        carry, wanted = call.get("carry") or {}, set(call.get("returns") or ())
        given_by_case: dict[str, dict[str, Tensor]] = {}
        for key, tensor in flat.items():
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
    except PlanishError as problem:
        report = {"what": problem.what, "where": problem.where, "hint": problem.hint}
        (returned / "error.json").write_text(json.dumps(report))
        sys.exit(1)
    save_file(outputs, str(returned / "outputs.safetensors"))
    facts = {
        "protocol": 1,
        "device": f"{device} on {_system()} {platform.machine()}",
        "versions": {p: _version(p) for p in packages},
        "seconds": seconds,
        "load_seconds": loaded,
        **before,
        **peak(),
    }
    (returned / "device.json").write_text(json.dumps(facts, indent=1))


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

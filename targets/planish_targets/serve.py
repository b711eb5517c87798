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


def serve(device: str, packages: tuple[str, ...], load: Callable[[Call], Model]) -> None:
    """Answer one call of the runner protocol and exit the process.

    Args:
        device: what computes, for people.
        packages: distributions whose versions belong to the evidence.
        load: opens the artifact and returns a function from named inputs to named outputs.
    """
    from safetensors.torch import load_file, save_file

    given, returned = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        call = json.loads((given / "call.json").read_text())
        started = time.perf_counter()
        model = load(
            Call(given / "artifact" / call["entry"], call["options"], int(call["threads"]), tuple(call.get("taps", ())))
        )
        loaded = time.perf_counter() - started
        flat = load_file(str(given / "inputs.safetensors"))
        outputs: dict[str, Tensor] = {}
        seconds: dict[str, list[float]] = {}
        for case in call["cases"]:
            feed = {k.split("/", 1)[1]: t for k, t in flat.items() if k.startswith(f"{case}/")}
            for _ in range(int(call["repeat"])):
                begin = time.perf_counter()
                result = model(feed)
                seconds.setdefault(case, []).append(time.perf_counter() - begin)
            outputs.update({f"{case}/{name}": tensor.contiguous().clone() for name, tensor in result.items()})
    except PlanishError as problem:
        report = {"what": problem.what, "where": problem.where, "hint": problem.hint}
        (returned / "error.json").write_text(json.dumps(report))
        sys.exit(1)
    save_file(outputs, str(returned / "outputs.safetensors"))
    facts = {
        "protocol": 1,
        "device": f"{device} on {platform.system()} {platform.machine()}",
        "versions": {p: _version(p) for p in packages},
        "seconds": seconds,
        "load_seconds": loaded,
        **_peak(),
    }
    (returned / "device.json").write_text(json.dumps(facts, indent=1))


def _peak() -> dict[str, int]:
    """Peak resident memory of this process, where the system tells (not on Windows)."""
    try:
        import resource
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

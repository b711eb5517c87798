"""Where Core ML plans to compute each operation: `MLComputePlan`, on a Mac (macOS 14.4 or newer).

Core ML and its bridge are native code, and given a damaged package they can end the process: they get one of their own
(`python -m planish_targets.coreml.plan PACKAGE OUT.json`) and a time limit. The plan is the plan of that Mac; a phone
may decide otherwise.
"""

from __future__ import annotations

import importlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish_targets.contract import Unavailable

CPU = "CPU"
UNITS = {
    "MLNeuralEngineComputeDevice": "Neural Engine",
    "MLGPUComputeDevice": "GPU",
    "MLCPUComputeDevice": CPU,
}
LIMIT = 600.0  # seconds; compiling a large package for the Neural Engine takes minutes


@dataclass(frozen=True)
class Planned:
    """One operation of a plan.

    Args:
        unit: where Core ML prefers to compute it: "Neural Engine", "GPU", "CPU".
        able: all units that can.
        cost: its share of the whole, 0 to 1, as Core ML estimates it; None where it does not.
    """

    unit: str
    able: tuple[str, ...]
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """A plan and the machine that it is for.

    Args:
        machine: system and processor, for people.
        functions: function -> name of a result -> the operation that makes it; operations of which Core ML tells
            nothing are absent.
    """

    machine: str
    functions: Mapping[str, Mapping[str, Planned]]


def ask(package: Path, limit: float = LIMIT) -> Plan | Unavailable:
    """The plan for a package on this machine; Unavailable with the reason anywhere but on macOS, and when it broke."""
    if sys.platform != "darwin":
        return Unavailable("Core ML plans on macOS only")
    with tempfile.TemporaryDirectory(prefix="planish-plan-") as folder:
        told = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "planish_targets.coreml.plan", str(package), str(told)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return Unavailable(f"MLComputePlan did not answer within {limit:.0f} s")
        if ran.returncode or not told.is_file():
            last = next(reversed(ran.stderr.strip().splitlines()), "")
            return Unavailable(f"MLComputePlan broke (exit code {ran.returncode}): {last}")
        return _plan(json.loads(told.read_text()))


def _plan(told: Mapping[str, Any]) -> Plan:
    functions = {
        function: {name: Planned(o["unit"], tuple(o["able"]), o["cost"]) for name, o in operations.items()}
        for function, operations in told["functions"].items()
    }
    return Plan(told["machine"], functions)


def read(package: Path) -> dict[str, object]:
    """What Core ML tells of a package, as JSON takes it; runs in a process of its own."""
    ct = importlib.import_module("coremltools")
    compute_plan = importlib.import_module("coremltools.models.compute_plan")
    model = ct.models.MLModel(str(package), compute_units=ct.ComputeUnit.ALL)  # owns the compiled model: keep it
    plan = compute_plan.MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units=ct.ComputeUnit.ALL)
    functions = {
        name: dict(_told(plan, function.block)) for name, function in plan.model_structure.program.functions.items()
    }
    return {"machine": f"macOS {platform.mac_ver()[0]} {platform.machine()}", "functions": functions}


def _told(plan: Any, block: Any) -> Iterator[tuple[str, dict[str, object]]]:
    for operation in block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if usage is not None:
            entry: dict[str, object] = {
                "unit": _unit(usage.preferred_compute_device),
                "able": [_unit(device) for device in usage.supported_compute_devices],
                "cost": None if cost is None else float(cost.weight),
            }
            for output in operation.outputs:
                yield output.name, entry
        for inner in operation.blocks:
            yield from _told(plan, inner)


def _unit(device: Any) -> str:
    name = type(device).__name__
    return UNITS.get(name, name)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(read(Path(sys.argv[1]))))

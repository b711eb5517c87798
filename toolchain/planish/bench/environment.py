"""What of a machine belongs to its figures. No name of a machine or of a person is read."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from planish.bench.schema import NOT_MEASURED, Environment

_ZONES = Path("/sys/class/thermal")
_SUPPLIES = Path("/sys/class/power_supply")
_BUSY = 0.5  # running processes per core beside us, from which on a machine is not quiet


def load() -> float | None:
    """Running processes, averaged over a minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def temperature() -> float | None:
    """The warmest sensor, in degrees Celsius; None where there is none."""
    found = []
    for file in _ZONES.glob("thermal_zone*/temp") if _ZONES.is_dir() else ():
        try:
            found.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):  # a sensor that is switched off
            continue
    return max(found, default=None)


def environment(before: tuple[float | None, float | None]) -> Environment:
    """The machine, after a measurement.

    Args:
        before: `load()` and `temperature()` when it began.
    """
    first, warm = before
    last, warmer, cores = load(), temperature(), _cores()
    thermal = NOT_MEASURED
    if warm is not None and warmer is not None:
        thermal = f"{warm:.0f} °C before, {warmer:.0f} °C after (warmest sensor)"
    notes = []
    if first is not None and cores and first > _BUSY * cores:
        notes.append(f"the machine was busy: {first:.1f} running processes on {cores} cores before it began")
    memory = _memory()
    return Environment(
        device=f"{platform.system()} {platform.machine()}, {cores or 'unknown number of'} cores",
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cores=cores,
        memory_bytes=memory,
        thermal=thermal,
        energy=NOT_MEASURED,
        power=_power(),
        load=None if first is None or last is None else (first, last),
        notes=tuple(notes),
    )


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has neither
        return None


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    else:
        info = Path("/proc/cpuinfo")
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.is_file() else None
        told = found[1].strip() if found else platform.processor()
    return told[:500] or NOT_MEASURED


def _power() -> str:
    try:
        online = [f.read_text().strip() for f in _SUPPLIES.glob("*/online")] if _SUPPLIES.is_dir() else []
    except OSError:
        return NOT_MEASURED
    if not online:
        return NOT_MEASURED
    return "mains" if "1" in online else "battery"

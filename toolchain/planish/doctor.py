"""What can be compiled and run here, and the command that mends what cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Distribution
from packaging.version import Version

from planish.requirements import Requirement, requirements
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Evidence, NeedsMore, Target, Unavailable

PYTHON = "3.11"  # oldest that planish runs on
_LITTLE_DISK = 2 << 30
_LITTLE_MEMORY = 2 << 30


@dataclass(frozen=True)
class Finding:
    """Something to know: a problem (`grave`) or a warning, and the command or step that mends it."""

    what: str
    mend: str
    grave: bool = True


@dataclass(frozen=True)
class TargetHealth:
    """One target on this machine.

    Args:
        name: target name.
        requirements: its packages, installed or not.
        evidence: the grade that a run of its artifact earns here; None when nothing can run it.
        device: what would run it, or why nothing can.
        findings: what is missing, outside its window or in the way.
        variant: it is a variant of a target, which counts when it is asked for by name.
    """

    name: str
    requirements: tuple[Requirement, ...]
    evidence: Evidence | None
    device: str
    findings: tuple[Finding, ...] = ()
    variant: bool = False

    @property
    def installed(self) -> bool:
        """Every package is there, of whatever version."""
        return all(r.installed is not None for r in self.requirements)

    @property
    def ok(self) -> bool:
        """No grave finding."""
        return not any(f.grave for f in self.findings)


@dataclass(frozen=True)
class Machine:
    """Where planish runs; bytes are None where the system does not tell them."""

    python: str
    platform: str
    cores: int
    memory: int | None
    memory_free: int | None
    disk_free: int
    hub: str


@dataclass(frozen=True)
class Health:
    """The whole examination."""

    planish: str | None
    machine: Machine
    packages: tuple[Requirement, ...]
    targets: tuple[TargetHealth, ...]
    findings: tuple[Finding, ...]

    def ok(self, asked: Sequence[str] = ()) -> bool:
        """planish itself and the asked targets are fine; without any, those that are installed, and at least one is."""
        wanted = [t for t in self.targets if t.installed and not t.variant and t.name != "reference"]
        judged = [t for t in self.targets if t.name in asked] if asked else wanted
        return bool(judged) and all(t.ok for t in judged) and not any(f.grave for f in self.findings)


def examine(asked: Sequence[str] = ()) -> Health:
    """Look at this machine; nothing is imported from a vendor's SDK but what a target's `runner` looks at.

    Args:
        asked: names of targets; all, and their variants, when empty.

    Raises:
        PlanishError: no such target.
    """
    chosen = [registry.find(name) for name in asked] or list(registry.known().values())
    version, packages = _planish()
    machine = look_around()
    findings = (*_package_findings(packages), *_machine_findings(machine))
    return Health(version, machine, packages, tuple(map(examine_target, chosen)), findings)


def examine_target(target: Target) -> TargetHealth:
    """Packages, and what would run an artifact here."""
    health = _health(target)
    return replace(health, variant=target.name in registry.variants())


def _health(target: Target) -> TargetHealth:
    needed = requirements(target)
    missing = [r.package for r in needed if r.installed is None]
    findings = []
    if missing:
        whole = f"planish[{target.extra}]" if target.extra else " ".join(missing)
        findings.append(Finding(f"{', '.join(missing)} not installed", f"pip install '{whole}'"))
    findings += [
        Finding(f"{r.package} {r.installed} is outside {r.window}", f"pip install '{r.package}{r.window}'")
        for r in needed
        if r.installed is not None and not r.ok
    ]
    if missing:
        return TargetHealth(target.name, needed, None, "not installed", tuple(findings))
    lacking = target.missing() if isinstance(target, NeedsMore) else None
    if lacking is not None:
        findings.append(Finding(lacking.what, lacking.mend))
        return TargetHealth(target.name, needed, None, lacking.what, tuple(findings))
    try:
        runner = target.runner(Artifact(target.name, Path(), ""))
    except PlanishError as problem:
        runner = Unavailable(problem.what)
    if isinstance(runner, Unavailable):
        findings.append(Finding(f"nothing here runs its artifacts: {runner.reason}", _elsewhere(target.name), False))
        return TargetHealth(target.name, needed, None, runner.reason, tuple(findings))
    return TargetHealth(target.name, needed, runner.evidence, runner.device, tuple(findings))


def look_around() -> Machine:
    """The machine, from the standard library alone."""
    memory, free = _memory()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return Machine(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory,
        memory_free=free,
        disk_free=shutil.disk_usage(Path.cwd()).free,
        hub="switched off by HF_HUB_OFFLINE: folders and cached models only" if offline else "switched on",
    )


def _planish() -> tuple[str | None, tuple[Requirement, ...]]:
    """Version and own requirements of the installed planish; (None, ()) when it runs from a source tree."""
    try:
        here = metadata.distribution("planish")
    except metadata.PackageNotFoundError:
        return None, ()
    rows = []
    for line in here.requires or ():
        try:
            wanted = Distribution(line)
        except InvalidRequirement:  # a URL requirement of a patched wheel names no version to check
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            rows.append(Requirement(wanted.name, str(wanted.specifier), _installed(wanted.name)))
    return here.version, tuple(rows)


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package_findings(packages: Sequence[Requirement]) -> list[Finding]:
    return [
        Finding(
            f"{p.package} {p.installed or 'is missing'} (wanted: {p.window or 'any'})",
            f"pip install '{p.package}{p.window}'",
        )
        for p in packages
        if not p.ok
    ]


def _machine_findings(machine: Machine) -> list[Finding]:
    findings = []
    if Version(machine.python) < Version(PYTHON):
        findings.append(Finding(f"Python {machine.python} is older than {PYTHON}", f"install Python {PYTHON} or newer"))
    if machine.disk_free < _LITTLE_DISK:
        what = f"only {machine.disk_free / 1e9:.1f} GB are free on the disk of {Path.cwd()}"
        findings.append(Finding(what, "compile into a folder on another disk: planish compile -o", False))
    if machine.memory_free is not None and machine.memory_free < _LITTLE_MEMORY:
        what = f"only {machine.memory_free / 1e9:.1f} GB of memory are free"
        findings.append(Finding(what, "close other programs, or compile for one target at a time", False))
    return findings


def _elsewhere(name: str) -> str:
    return f'give a runner: planish compile --runner {name}="ssh HOST planish-run"'


def _memory() -> tuple[int | None, int | None]:
    """(bytes of memory, bytes that are free), within the limit of the container where there is one."""
    total = free = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "linux":
        table = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(table["MemAvailable"].split()[0]) * 1024
        limit, used = (_number(Path("/sys/fs/cgroup", name)) for name in ("memory.max", "memory.current"))
        if limit is not None and total is not None and limit < total:
            total, free = limit, min(free, max(limit - (used or 0), 0))
    return total, free


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:  # no cgroup v2 here
        return None
    return int(text) if text.isdigit() else None

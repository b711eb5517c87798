"""planish doctor"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import FAILED

if TYPE_CHECKING:
    from rich.text import Text

    from planish.doctor import Finding, Health, TargetHealth


def doctor_command(
    targets: options.Targets = None,
    as_json: options.Json = False,
) -> None:
    """Tell what can be compiled and run on this machine, and the command that mends what cannot.

    \b
    Examples:
      planish doctor
      planish doctor -t coreml
      planish doctor -t executorch:qnn
      planish doctor --json

    Exit code 0: planish itself and the targets given with -t are fine; without -t, all targets that are installed, and
    there is at least one. Warnings do not count, nor do variants (TARGET:NAME) that -t does not name. Exit code 1:
    otherwise.
    """
    asked = options.names(targets)
    with results_only():
        from planish.doctor import examine

        health = examine(asked)
    ok = health.ok(asked)
    if as_json:
        emit_json({"ok": ok, **report(health)})
    else:
        show(health, ok, asked)
    if not ok:
        raise typer.Exit(FAILED)


def report(health: Health) -> dict[str, object]:
    """The examination as JSON values."""
    return {
        "planish": health.planish,
        "machine": health.machine,
        "packages": [
            {"package": p.package, "wanted": p.window, "installed": p.installed, "ok": p.ok} for p in health.packages
        ],
        "findings": health.findings,
        "targets": [_target(t) for t in health.targets if not t.variant],
        "variants": [_target(t) for t in health.targets if t.variant],
    }


def _target(health: TargetHealth) -> dict[str, object]:
    return {
        "target": health.name,
        "ok": health.ok,
        "installed": health.installed,
        "evidence": health.evidence,
        "device": health.device,
        "packages": [
            {"package": r.package, "wanted": r.window, "installed": r.installed, "ok": r.ok}
            for r in health.requirements
        ],
        "findings": health.findings,
    }


def show(health: Health, ok: bool, asked: Sequence[str] = ()) -> None:
    """Machine, one row per target, then each finding with what mends it; variants in detail when they are asked for."""
    from rich.table import Table

    from planish.form import size

    console, machine = out(), health.machine
    console.print(f"planish {health.planish or '(source tree)'}", style="bold")
    memory = "unknown" if machine.memory is None else size(machine.memory)
    free = "" if machine.memory_free is None else f", {size(machine.memory_free)} free"
    console.print(f"  Python {machine.python}, {machine.platform}, {machine.cores} cores")
    console.print(f"  memory {memory}{free}; disk {size(machine.disk_free)} free")
    console.print(f"  Hugging Face hub {machine.hub}\n", soft_wrap=True)
    if health.packages:
        own = ", ".join(f"{p.package} {p.installed or '-'}" for p in health.packages)
        console.print(f"  {own}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("target", "state", "evidence here", "runs on", "packages"):
        table.add_column(heading, overflow="fold")
    for target in health.targets:
        table.add_row(*_row(target))
    console.print(table)
    if not asked and any(t.variant for t in health.targets):
        told = "variants are compiled for when -t names them; planish doctor -t NAME tells what one of them needs"
        console.print(told, style="dim", soft_wrap=True)
    console.print()
    found: list[tuple[str, Finding]] = [("planish", f) for f in health.findings]
    found += [(t.name, f) for t in health.targets for f in t.findings if asked or not t.variant]
    for name, finding in found:
        console.print("problem" if finding.grave else "warning", style="red" if finding.grave else "yellow", end="  ")
        console.print(f"{name}: {finding.what}", soft_wrap=True)
        console.print(f"         {finding.mend}", style="bold", soft_wrap=True)
    if found:
        console.print()
    console.print("ready" if ok else "not ready", style="bold green" if ok else "bold red")


def _row(target: TargetHealth) -> tuple[Text, ...]:
    from rich.text import Text

    state = "ready" if target.ok else "problem" if target.installed else "not installed"
    if target.variant and target.installed:
        state = "compiles" if target.ok else "needs more"
    style = {"ready": "green", "compiles": "green", "problem": "red"}.get(state, "dim")
    packages = ", ".join(f"{r.package} {r.installed or '-'}" for r in target.requirements)
    return (
        Text(target.name),
        Text(state, style),
        Text(str(target.evidence or "-")),
        Text(target.device if target.evidence else "-"),
        Text(packages),
    )

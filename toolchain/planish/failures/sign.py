"""What makes two failures the same one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from planish.failures.record import FailedGate, Finding, Record

Sign = tuple[str, ...]
REFUSED = "refused"  # instead of a failure: the model's class does not take such a config
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def of_finding(finding: Finding) -> Sign:
    """Class, message without names and numbers, pass and operator."""
    return ("stopped", finding.kind, _OWN.sub("#", finding.what), finding.pass_name, finding.op)


def of_gate(gate: FailedGate) -> Sign:
    """Target and check."""
    return ("gate", gate.target.partition("/")[0], gate.check)


def signs(findings: Iterable[Finding], gates: Iterable[FailedGate]) -> tuple[Sign, ...]:
    """Of all that failed, the most telling first."""
    return (*map(of_finding, findings), *map(of_gate, gates))


def wanted(record: Record) -> Sign | None:
    """What a smaller model must show; None when the failure is none of the model's graph."""
    if record.ended not in ("failed", "gate failed") or record.model is None or not record.model.config:
        return None
    return next(iter(signs(record.findings, record.gates)), None)

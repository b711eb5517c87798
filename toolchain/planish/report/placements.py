"""What leaves the accelerator, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planish.report.subject import Placed, Placement

_EXAMPLES = 3


@dataclass(frozen=True)
class Away:
    """Operations of one type with one reason.

    Args:
        where: "fallback" or "unknown".
        modules: some of the modules that they belong to.
    """

    op: str
    where: str
    unit: str
    reason: str
    count: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """Number of operations by where they are expected to run, in all and per unit."""

    accelerated: int
    fallback: int
    unknown: int
    units: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """All of them."""
        return self.accelerated + self.fallback + self.unknown


def shares(placement: Placement) -> Shares:
    """How many are where."""
    units: dict[str, int] = {}
    for node in placement.nodes:
        units[node.unit] = units.get(node.unit, 0) + 1
    count = {where: sum(n.where == where for n in placement.nodes) for where in ("accelerated", "fallback")}
    unknown = len(placement.nodes) - sum(count.values())
    ordered = sorted(units.items(), key=lambda item: (-item[1], item[0]))
    return Shares(count["accelerated"], count["fallback"], unknown, tuple(ordered))


def away(placement: Placement) -> tuple[Away, ...]:
    """What is not accelerated, most frequent first; grouped by operator and reason."""
    found: dict[tuple[str, str, str, str], list[Placed]] = {}
    for node in placement.nodes:
        if node.where != "accelerated":
            where = "fallback" if node.where == "fallback" else "unknown"
            found.setdefault((where, node.op, node.unit, node.reason), []).append(node)
    rows = [
        Away(op, where, unit, reason, len(nodes), _modules(nodes)) for (where, op, unit, reason), nodes in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (row.where != "fallback", -row.count, row.op)))


def _modules(nodes: Iterable[Placed]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.module for n in nodes if n.module))[:_EXAMPLES]

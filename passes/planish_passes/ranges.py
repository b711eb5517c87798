"""How large values become: annotations that targets with a narrow number format read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from planish_passes.infra import PassResult
from planish_passes.program import Program

KEY = "planish_range"  # in node.meta; copies of a program carry it, and so do nodes that take another's place


class Range(NamedTuple):
    """What was seen of one value over all runs.

    Args:
        peak: largest |x|.
        mean_square: largest mean of x^2 over the last axis, what a norm of this value adds up.
    """

    peak: float
    mean_square: float


def range_of(node: fx.Node) -> Range | None:
    """The annotation of a node, None where there is none."""
    found = node.meta.get(KEY)
    return found if isinstance(found, Range) else None


def widest(ranges: Iterable[Mapping[str, Range]]) -> dict[str, Range]:
    """Ranges of several runs as one."""
    found: dict[str, Range] = {}
    for one in ranges:
        for name, seen in one.items():
            known = found.get(name, seen)
            found[name] = Range(max(known.peak, seen.peak), max(known.mean_square, seen.mean_square))
    return found


@dataclass(frozen=True)
class AnnotateRanges:
    """Write what was seen of each value beside its node.

    Args:
        ranges: node name -> range, as `planish.verify.ranges.audit` returns it for this very program.
    """

    ranges: Mapping[str, Range]

    def run(self, program: Program) -> PassResult:
        """See the class."""
        changed = 0
        for node in program.graph.nodes:
            if node.name in self.ranges:
                node.meta[KEY] = self.ranges[node.name]
                changed += 1
        return PassResult(program, changed)

"""What leaves the accelerator, kind by kind, and what that costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from planish_targets.contract import Placed, Placement


@dataclass(frozen=True)
class Away:
    """Operations of one kind that run elsewhere, or nobody knows where.

    Args:
        label: "Op (unit): reason".
        count: how many.
        macs, moved: multiply-accumulates, and bytes read and written, of all together in the longest call; None where
            the target cannot tell.
        share: of the bytes that all operations of the artifact move (0..1).
    """

    label: str
    count: int
    macs: int | None = None
    moved: int | None = None
    share: float | None = None

    @property
    def cost(self) -> str:
        """The cost in words; empty where it is not known."""
        if self.moved is None or self.share is None:
            return ""
        products = f"{self.macs / 1e6:,.1f} million multiply-accumulates, " if self.macs else ""
        return f"{products}moves {self.moved / 1e6:,.2f} MB ({self.share:.1%} of all)"


def away(placement: Placement) -> tuple[Away, ...]:
    """Most frequent first."""
    kinds: dict[str, list[Placed]] = {}
    for node in placement.nodes:
        if node.where != "accelerated":
            label = f"{node.op} ({node.unit})"
            kinds.setdefault(f"{label}: {node.reason}" if node.reason else label, []).append(node)
    total = sum(n.work.moved for n in placement.nodes if n.work is not None)
    found = [_away(label, nodes, total) for label, nodes in kinds.items()]
    return tuple(sorted(found, key=lambda a: -a.count))


def _away(label: str, nodes: list[Placed], total: int) -> Away:
    works = [n.work for n in nodes if n.work is not None]
    if not works:
        return Away(label, len(nodes))
    moved = sum(w.moved for w in works)
    return Away(label, len(nodes), sum(w.macs for w in works), moved, moved / total if total else 0.0)


def delegation(placement: Placement) -> dict[str, Any]:
    """Shares, costs and memory as JSON values; what a target cannot tell is null or missing."""
    return {
        "share": placement.share(),
        "linear_share": placement.linear_share(),
        "product_share": placement.product_share(),
        "costs": [asdict(a) for a in away(placement)],
        "methods": [asdict(m) for m in placement.methods],
    }

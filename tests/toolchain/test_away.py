"""What leaves the accelerator is told kind by kind, with its cost; a gate looks at multiply-accumulates of weights."""

from __future__ import annotations

import pytest

from planish.away import away, delegation
from planish.lower import placed
from planish.request import Gates
from planish.verdict import Failed, NotRun, Passed
from planish_targets.contract import Placed, Placement
from planish_targets.cost import Memory, Method, Work

NODES = (
    Placed("a", "Linear", "accelerated", "XNN", work=Work(900, True, 400)),
    Placed("b", "Linear", "fallback", "CPU", "too wide", "head", Work(100, True, 40)),
    Placed("c", "Attention", "fallback", "CPU", "no kernel", "", Work(1000, False, 100)),
    Placed("d", "Norm", "fallback", "CPU", "no norm", "x", Work(moved=30)),
    Placed("e", "Norm", "fallback", "CPU", "no norm", "y", Work(moved=30)),
)
BLIND = (Placed("a", "Gemm", "accelerated", "GPU"), Placed("b", "Add", "fallback", "CPU"))


def test_shares_of_operations_of_weights_and_of_products() -> None:
    placement = Placement("test", NODES)
    assert placement.share() == 0.2
    assert placement.linear_share() == 0.9
    assert placement.product_share() == 0.45
    assert Placement("test", BLIND).linear_share() is None


def test_costs_by_kind() -> None:
    first, *rest = away(Placement("test", NODES))
    assert (first.label, first.count, first.macs, first.moved, first.share) == ("Norm (CPU): no norm", 2, 0, 60, 0.1)
    assert first.cost == "moves 0.00 MB (10.0% of all)"
    assert [k.label for k in rest] == ["Linear (CPU): too wide", "Attention (CPU): no kernel"]
    assert rest[1].cost.startswith("0.0 million multiply-accumulates")
    (blind,) = away(Placement("test", BLIND))
    assert (blind.label, blind.moved, blind.cost) == ("Add (CPU)", None, "")


def test_the_report_has_the_peak_of_each_method() -> None:
    memory = Memory(
        stored=7, mapped=1, packed=10, activations=100, states=1000, workspace=10000, loading=3, bookkeeping=5, code=2
    )
    told = delegation(Placement("test", NODES, methods=(Method("forward", 3, memory, memory.peak, "guess"),)))
    assert told["methods"][0]["peak"] == 1 + 10 + 100 + 1000 + 5 + 10000 + 2
    assert told["methods"][0]["memory"]["states"] == 1000
    assert [c["moved"] for c in told["costs"]] == [60, 40, 100]


@pytest.mark.parametrize(("limit", "kind"), [(0.9, Passed), (0.91, Failed)])
def test_the_gate_of_the_delegated_share(limit: float, kind: type) -> None:
    verdict = placed(Placement("test", NODES), Gates(delegated=limit))
    assert isinstance(verdict, kind)
    if isinstance(verdict, Failed):
        assert verdict.reason == "only 90.0% of the multiply-accumulates of weights are accelerated"


def test_a_target_that_cannot_tell_says_so_when_asked() -> None:
    assert isinstance(placed(Placement("table of X", BLIND), Gates()), Passed)
    verdict = placed(Placement("table of X", BLIND), Gates(delegated=0.5))
    assert isinstance(verdict, NotRun)
    assert "--gate delegated" in verdict.reason
    assert isinstance(placed(Placement("table of X", BLIND), Gates(placement=0.9, delegated=0.5)), Failed)

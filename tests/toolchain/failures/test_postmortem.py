"""Which pass, node and module an exception stopped at."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support import program_of
from torch import Tensor, fx, nn

from planish.failures.postmortem import examine
from planish.failures.record import Finding
from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult, run_passes
from planish_passes.nodes import op_name
from planish_passes.program import Program


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x) + 1


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.inner(x * 2).neg(),)


@dataclass(frozen=True)
class Refuses:
    """Stops at erf, in one of several ways."""

    how: str

    def run(self, program: Program) -> PassResult:
        for node in program.graph.nodes:
            if node.op == "call_function" and op_name(node) == "aten.erf":
                _stop(node, self.how)
        return PassResult(program, 0)


def _stop(node: fx.Node, how: str) -> None:
    if how == "refusal":
        raise PlanishError("erf has no form here", "module inner", "use another activation")
    if how == "defect":
        {}["table"]
    del node.meta["val"]


def stopped(how: str) -> Finding:
    program = program_of(Outer(), torch.ones(2, 3))
    with pytest.raises((PlanishError, KeyError)) as caught:
        run_passes(program, (Canonicalise(), Refuses(how)))
    return examine(caught.value)


@pytest.mark.parametrize(("how", "kind"), [("refusal", "PlanishError"), ("defect", "KeyError")])
def test_pass_node_module_and_line(how: str, kind: str) -> None:
    finding = stopped(how)
    assert (finding.kind, finding.pass_name, finding.ran) == (kind, "Refuses", ("Canonicalise",))
    assert (finding.node, finding.op, finding.module) == ("erf", "aten.erf", "inner")
    assert finding.source.startswith("test_postmortem.py, line ")
    assert "torch.erf(x) + 1" in finding.source
    assert [line[0] for line in finding.graph] == [" ", ">", " ", " ", " "]
    assert finding.graph[1].endswith("# inner")
    assert "Traceback" in finding.traceback


def test_a_pass_that_broke_the_program_is_named_with_its_node() -> None:
    finding = stopped("breaks")
    assert "pass Refuses broke the program: node erf has no value type" in finding.what
    assert (finding.pass_name, finding.node) == ("Refuses", "erf")


def test_the_node_that_the_text_names_wins_over_the_one_that_is_looked_at() -> None:
    program = program_of(Outer(), torch.ones(2, 3))
    with pytest.raises(PlanishError) as caught:
        _complains(program)
    assert examine(caught.value, "fake").node == "erf"


def _complains(program: Program) -> None:
    """As a target that looks at all nodes before it complains of one."""
    node = list(program.graph.nodes)[-2]
    raise PlanishError("aten.erf has no form", "aten.erf in module inner", f"see {node.op}")


def test_what_stops_outside_of_a_program_has_no_node() -> None:
    with pytest.raises(PlanishError) as caught:
        raise PlanishError("no such file", "x", "y")
    finding = examine(caught.value)
    assert (finding.what, finding.node, finding.pass_name, finding.graph) == ("no such file", "", "", ())

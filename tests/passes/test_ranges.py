"""Annotations of value ranges."""

from __future__ import annotations

import torch
from support import program_of
from torch import Tensor, nn

from planish_passes.infra import run_passes
from planish_passes.ranges import AnnotateRanges, Range, range_of, widest


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * x)


def test_annotations_stay_with_their_nodes_through_passes() -> None:
    program = program_of(Square(), torch.randn(2, 3))
    outcome = run_passes(program, (AnnotateRanges({"mul": Range(9.0, 27.0)}), AnnotateRanges({})))
    found = {n.name: range_of(n) for n in outcome.program.graph.nodes if range_of(n)}
    assert found == {"mul": Range(9.0, 27.0)}
    assert [s.changed for s in outcome.steps] == [1, 0]
    assert all(range_of(n) is None for n in program.graph.nodes)


def test_several_runs_become_the_widest() -> None:
    runs = [{"a": Range(1.0, 5.0), "b": Range(2.0, 2.0)}, {"a": Range(3.0, 4.0)}]
    assert widest(runs) == {"a": Range(3.0, 5.0), "b": Range(2.0, 2.0)}

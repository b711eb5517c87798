"""Packing in blocks against executorch's own packing at once."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor
from torch.export import ExportedProgram

pytest.importorskip("executorch")
from planish_targets.executorch import frugal
from planish_targets.executorch.lower import write


def theirs(weight: Tensor) -> Tensor:
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor

    found: Tensor = NodeVisitor.convert_to_qc4w(weight)
    return found


@pytest.mark.parametrize("shape", [(1, 2), (7, 6), (33, 32), (5, 3)])  # the last one is padded, by executorch
def test_blocks_are_what_executorch_makes_at_once(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frugal, "_BLOCK", 64)
    weight = torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frugal.in_blocks(weight, theirs), theirs(weight))
    assert not torch.equal(frugal.in_blocks(weight.flip(1), theirs), theirs(weight))


def test_a_weight_of_more_bits_is_refused_as_before() -> None:
    with pytest.raises(AssertionError, match="out of"):
        frugal.in_blocks(torch.tensor([[8, 0]], dtype=torch.int8), theirs)


def test_executorch_is_as_before_behind_it() -> None:
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend

    before = NodeVisitor.convert_to_qc4w, XnnpackBackend.preprocess
    with frugal.frugal():
        assert before[0] is not NodeVisitor.convert_to_qc4w
    with pytest.raises(RuntimeError, match="stop"), frugal.frugal():
        raise RuntimeError("stop")
    assert before == (NodeVisitor.convert_to_qc4w, XnnpackBackend.preprocess)


def test_copies_of_programs_share_weights_alone() -> None:
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend

    program = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(1, 4),))
    with frugal.frugal():
        again = XnnpackBackend.copy_exported_program_for_preprocess(program, [])
    assert all(again.state_dict[n] is t for n, t in program.state_dict.items())
    again.state_dict["weight"] = torch.zeros(4, 4)
    again.graph.erase_node(next(n for n in reversed(again.graph.nodes)))
    assert program.state_dict["weight"].any()
    assert program.graph.output_node() is not None


def test_nothing_of_a_lowered_program_stays_alive(tmp_path: Path) -> None:
    """executorch's own variables and caches would keep its graphs, and with them all weights."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = torch.nn.Embedding(8, 16), torch.nn.Linear(16, 16)

        def forward(self, ids: Tensor) -> Tensor:
            found: Tensor = self.linear(self.table(ids)).mean(1, keepdim=True)  # XNNPACK's has four dimensions
            return self.linear(found)

    kinds = (ExportedProgram, torch.fx.GraphModule, torch.fx.Graph)
    program = program_of(Small(), torch.zeros(1, 4, dtype=torch.int64))
    write(program, tmp_path / "first.pte")  # what is set up once
    gc.collect()
    before = {id(o) for o in gc.get_objects() if isinstance(o, kinds)}
    write(program, tmp_path / "second.pte")
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, kinds) and id(o) not in before]

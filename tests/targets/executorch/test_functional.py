"""Calls that write into buffers: as functions and back, against torch's own way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

pytest.importorskip("executorch")
from planish_targets.executorch.decompose import decompose
from planish_targets.executorch.functional import write_again
from planish_targets.executorch.retrace import Memory


class Cached(nn.Module):
    """A buffer that is written into and read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1, 8, 2, 4))

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        first = start[0].item()
        torch._check(first >= 0)  # type: ignore[operator]
        torch._check(first + x.shape[1] <= 8)  # type: ignore[operator]
        torch.ops.llama.update_cache(x, self.cache, first)
        return self.cache.sum() + x.sum()


def functional() -> ExportedProgram:
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers the operators)

    with torch.no_grad():
        program = torch.export.export(Cached(), (torch.randn(1, 2, 2, 4), torch.tensor([3])), strict=False)
        found: ExportedProgram | None = decompose(program, {}, Memory())
    assert found is not None
    return found


def shown(program: ExportedProgram) -> list[Any]:
    number = {n: i for i, n in enumerate(program.graph.nodes)}
    return [(str(n.target), str(torch.fx.node.map_arg(n.args, number.__getitem__)), str(n.kwargs)) for n in number]


def test_the_way_back_is_that_of_torch() -> None:
    from torch.export._remove_auto_functionalized_pass import unsafe_remove_auto_functionalized_pass

    ours, theirs = functional(), unsafe_remove_auto_functionalized_pass(functional())
    assert "auto_functionalized" in str(ours.graph)
    write_again(ours)
    assert shown(ours) == shown(theirs)
    for program in (ours, theirs):
        (spec,) = [s for s in program.graph_signature.output_specs if s.target == "cache"]
        assert spec.arg.name == next(n.name for n in program.graph.nodes if n.op == "placeholder")
    written = next(n for n in ours.graph.nodes if "update_cache" in str(n.target))
    other = next(n for n in theirs.graph.nodes if "update_cache" in str(n.target))
    assert written.meta["val"].shape == other.meta["val"].shape


@pytest.mark.parametrize("fault", ["another base", "a result that is read"])
def test_what_is_not_of_this_form_stays(fault: str) -> None:
    program = functional()
    node = next(n for n in program.graph.nodes if "auto_functionalized" in str(n.target))
    if fault == "another base":
        node.kwargs = {**node.kwargs, "_all_bases": [node.kwargs["_all_bases"][0]] * 2}
    else:
        (result,) = node.users
        result.args = (node, 0)
    before = shown(program)
    write_again(program)
    assert shown(program) == before

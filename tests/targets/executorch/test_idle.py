"""Whether a pass has something to do, against what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("executorch")
from executorch.backends.xnnpack._passes.decompose_cat import DecomposeConcatenate
from executorch.exir.pass_base import ExportPass
from executorch.exir.passes.const_prop_pass import ConstPropPass
from executorch.exir.passes.replace_aten_with_edge_pass import OpReplacePass

from planish_targets.executorch.idle import idle, skipped


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def edge(function: Callable[..., Any]) -> Any:
    exported = torch.export.export(Calls(function), (torch.randn(2),), strict=False).run_decompositions({})
    found = OpReplacePass()(exported.graph_module)
    assert found is not None
    return found.graph_module


def told(module: Any) -> list[tuple[str, str]]:
    return [(n.op, str(n.target)) for n in module.graph.nodes]


@pytest.mark.parametrize(
    ("kind", "function", "has_work"),
    [
        (DecomposeConcatenate, lambda x: torch.cat([x] * 5), False),
        (DecomposeConcatenate, lambda x: torch.cat([x] * 6), True),
        (ConstPropPass, lambda x: x * 2 + x, False),
        (ConstPropPass, lambda x: x + torch.ops.aten.full.default([2], 3.0), True),
    ],
)
def test_a_pass_is_idle_where_it_changes_nothing(
    kind: type[ExportPass], function: Callable[..., Any], has_work: bool
) -> None:
    module = edge(function)
    changed = kind()(module)
    assert changed is not None
    assert (told(changed.graph_module) != told(edge(function))) is has_work
    module = edge(function)
    assert idle(kind, module) is not has_work
    with skipped():
        result = kind()(module)
    assert result is not None
    assert (result.graph_module is module) is not has_work
    assert told(result.graph_module) == told(changed.graph_module)


def test_of_other_passes_nothing_is_known() -> None:
    assert not idle(OpReplacePass, edge(torch.relu))

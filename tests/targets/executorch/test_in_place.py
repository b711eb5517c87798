"""Passes in the graph itself against the retraces that they are in the place of, and what is left to a retrace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

pytest.importorskip("executorch")
from executorch.exir.pass_base import ExportPass, _ExportPassBase
from executorch.exir.passes.memory_format_ops_pass import DimOrderOpsRevertPass, MemoryFormatOpsPass
from executorch.exir.passes.replace_aten_with_edge_pass import OpReplacePass
from executorch.exir.passes.replace_broken_ops_with_function_ops_pass import ReplaceBrokenOpsWithFunctionalOpsPass
from executorch.exir.passes.scalar_to_tensor_pass import ScalarToTensorPass
from torch._export.pass_base import _ExportPassBaseDeprecatedDoNotUse
from torch._export.passes.replace_view_ops_with_view_copy_ops_pass import ReplaceViewOpsWithViewCopyOpsPass

from planish_targets.executorch.in_place import in_place
from planish_targets.executorch.retrace import Memory, alike

ORDER = (
    *(ReplaceViewOpsWithViewCopyOpsPass, ReplaceBrokenOpsWithFunctionalOpsPass, ScalarToTensorPass, OpReplacePass),
    *(MemoryFormatOpsPass, DimOrderOpsRevertPass),
)


class Mixed(nn.Module):
    """Views, numbers in the place of tensors, memory formats, a list of tensors and two results of one call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned = (x * 2 + 1.5).transpose(1, 2)
        halves = torch.cat([turned, turned.clone()], 2).permute(0, 2, 1).split(2, dim=2)
        whole = halves[0].to(torch.float64).contiguous() * 0.5
        return nn.functional.linear(x, self.weight).view(x.shape[0], -1), whole.sum(-1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ops.aten.full.default([2], 3.0)


def program(module: nn.Module, *inputs: Tensor, dynamic: Any = None) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False).run_decompositions({})


@torch.no_grad()
def passed(of: ExportedProgram, passes: tuple[Any, ...]) -> fx.GraphModule:
    module = of.graph_module
    for kind in passes:
        found = kind()(module)
        assert found is not None
        module = found.graph_module
    return module


def argument(value: Any, number: dict[fx.Node, int], module: fx.GraphModule) -> Any:
    if isinstance(value, fx.Node):
        return getattr(module, str(value.target)).tolist() if value.op == "get_attr" else number[value]
    if isinstance(value, (list, tuple)):
        return [argument(v, number, module) for v in value]
    return str(value)


def shown(module: fx.GraphModule) -> list[Any]:
    number = {n: i for i, n in enumerate(n for n in module.graph.nodes if n.op != "get_attr")}
    return [
        (n.op, str(n.target), argument(n.args, number, module), {k: str(v) for k, v in n.kwargs.items()})
        for n in number
    ]


def values(module: fx.GraphModule) -> list[Any]:
    return [n.meta.get("val") for n in module.graph.nodes if n.op == "call_function"]


def check_equal(make: Callable[[], ExportedProgram], passes: tuple[Any, ...]) -> fx.GraphModule:
    with in_place(Memory()):
        ours = passed(make(), passes)
    theirs = passed(make(), passes)
    assert shown(ours) == shown(theirs)
    for mine, other in zip(values(ours), values(theirs), strict=True):
        flat = [torch.utils._pytree.tree_leaves(v) for v in (mine, other)]
        for x, y in zip(*flat, strict=True):
            assert (str(x), getattr(x, "dtype", 0)) == (str(y), getattr(y, "dtype", 0))
            if isinstance(x, Tensor):
                assert [str(s) for s in x.stride()] == [str(s) for s in y.stride()]
    assert all("from_node" in n.meta for n in ours.graph.nodes if n.op == "call_function")
    ours.graph.lint()
    return ours


@pytest.mark.parametrize("count", range(1, len(ORDER) + 1))
def test_each_pass_leaves_what_a_retrace_leaves(count: int) -> None:
    ours = check_equal(lambda: program(Mixed(), torch.randn(2, 3, 4)), ORDER[:count])
    assert len(ours.graph.nodes) > 10


def test_unknown_sizes_stay_symbols() -> None:
    dynamic = ({1: Dim("length", min=3, max=9)},)
    check_equal(lambda: program(Mixed(), torch.randn(2, 5, 4), dynamic=dynamic), ORDER)


def test_the_graph_computes_what_it_did() -> None:
    x, module = torch.randn(2, 3, 4), Mixed()
    with in_place(Memory()):
        edited = passed(program(module, x), ORDER)
    edited.recompile()
    torch.testing.assert_close(tuple(edited(module.weight.detach(), x)), module(x))


def test_the_graph_itself_is_edited_and_says_whether_it_was() -> None:
    made = program(Mixed(), torch.randn(2, 3, 4))
    with in_place(Memory()):
        first, second = OpReplacePass()(made.graph_module), OpReplacePass()(made.graph_module)
    assert first is not None
    assert second is not None
    assert first.graph_module is second.graph_module is made.graph_module
    assert (first.modified, second.modified) == (True, False)


def test_a_value_that_an_edit_has_made_wrong_is_found_again() -> None:
    """What `ConvertToLinearPass` leaves behind: a node without a value that says what it is."""
    from executorch.backends.xnnpack._passes.convert_to_linear import ConvertToLinearPass

    made = passed(program(Mixed(), torch.randn(2, 3, 4)), ORDER[:-1])
    product = next(n for n in made.graph.nodes if "linear" in str(n.target))
    wanted, product.meta["val"] = product.meta["val"], torch.zeros(1)
    with in_place(Memory()), torch.no_grad():
        ConvertToLinearPass()(made)
    assert alike(product.meta["val"], wanted)


def test_other_passes_retrace() -> None:
    class Twice(ExportPass):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            return super().call_operator(op, (super().call_operator(op, args, kwargs, meta), *args[1:]), kwargs, meta)

    made = program(nn.ReLU(), torch.randn(2))
    with in_place(Memory()):
        result = Twice()(made.graph_module)
    assert result is not None
    assert result.graph_module is not made.graph_module
    assert sum(n.op == "call_function" for n in result.graph_module.graph.nodes) == 2


def test_a_known_pass_that_does_more_than_expected_retraces(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OpReplacePass.call_operator

    def twice(self: Any, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        return plain(self, op, (plain(self, op, args, kwargs, meta), *args[1:]), kwargs, meta)

    monkeypatch.setattr(OpReplacePass, "call_operator", twice)
    made = program(nn.ReLU(), torch.randn(2))
    with in_place(Memory()):
        result = OpReplacePass()(made.graph_module)
    assert result is not None
    assert sum(n.op == "call_function" for n in result.graph_module.graph.nodes) == 2
    assert sum(n.op == "call_function" for n in made.graph_module.graph.nodes) == 1


def test_control_flow_is_left_to_a_retrace() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))  # type: ignore[no-any-return]

    made = program(Branch(), torch.randn(3))
    with in_place(Memory()):
        result = OpReplacePass()(made.graph_module)
    assert result is not None
    assert result.graph_module is not made.graph_module
    inner = [m for m in result.graph_module.children() if isinstance(m, fx.GraphModule)]
    assert {type(n.target).__name__ for m in inner for n in m.graph.nodes if n.op == "call_function"} == {
        "EdgeOpOverload"
    }


def test_retraces_are_as_before_behind_it() -> None:
    before = [(b.call, b.call_operator) for b in (_ExportPassBase, _ExportPassBaseDeprecatedDoNotUse)]
    with pytest.raises(RuntimeError, match="stop"), in_place(Memory()):
        raise RuntimeError("stop")
    assert before == [(b.call, b.call_operator) for b in (_ExportPassBase, _ExportPassBaseDeprecatedDoNotUse)]

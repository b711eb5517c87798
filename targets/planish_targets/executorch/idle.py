"""Passes of executorch that retrace a whole program even when it holds nothing for them: which those are, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

_ATEN = torch.ops.aten
# What executorch.exir.passes.remove_mixed_type_operators brings to one dtype.
_PROMOTED = (
    *(_ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.sub.Tensor, _ATEN.div.Tensor, _ATEN.div.Tensor_mode),
    _ATEN.minimum.default,
)


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Within this, passes that have nothing to do in a graph leave it as it is."""
    from executorch.exir.passes.dim_order_ops_registry import DimOrderOpsMap
    from executorch.exir.passes.memory_format_ops_pass import MemoryFormatOpsPass
    from executorch.exir.passes.normalize_transpose_pass import NormalizeTransposePass
    from executorch.exir.passes.remove_mixed_type_operators import RemoveMixedTypeOperators
    from executorch.exir.passes.sym_to_tensor_pass import SymToTensorPass

    needed: dict[Any, Callable[[fx.Node], bool]] = {
        NormalizeTransposePass: lambda n: n.target is _ATEN.t.default,
        SymToTensorPass: number_for_tensor,
        RemoveMixedTypeOperators: mixed,
        MemoryFormatOpsPass: lambda n: n.target in DimOrderOpsMap,
    }
    for kind, has_work in needed.items():
        kind.call = _guarded(kind.call, has_work)
    try:
        yield
    finally:
        for kind in needed:
            del kind.call  # their base has it


def _guarded(call: Callable[..., PassResult], has_work: Callable[[fx.Node], bool]) -> Callable[..., PassResult]:
    def guarded(self: Any, module: fx.GraphModule) -> PassResult:
        nested = any(isinstance(m, fx.GraphModule) for m in module.children())  # control flow
        if nested or any(n.op == "call_function" and has_work(n) for n in module.graph.nodes):
            return call(self, module)
        return PassResult(module, False)

    return guarded


def number_for_tensor(node: fx.Node) -> bool:
    """True for a call that is given a number of the graph where its schema wants a tensor."""
    schema = getattr(node.target, "_schema", None)
    given = zip(node.args, schema.arguments if schema else (), strict=False)
    return any(isinstance(a, fx.Node) and isinstance(p.type, torch.TensorType) and not _is_tensor(a) for a, p in given)


def mixed(node: fx.Node) -> bool:
    """True for a sum, product, ... of operands that are not tensors of one dtype."""
    if node.target not in _PROMOTED:
        return False
    tensors = [a for a in node.args if isinstance(a, fx.Node) and _is_tensor(a)]
    return len(tensors) < len(node.args) or len({t.meta["val"].dtype for t in tensors}) > 1


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)

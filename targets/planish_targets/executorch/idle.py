"""Passes of executorch that retrace a whole program even when it holds nothing for them: which those are, and when."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from planish_targets.executorch.replaced import replaced

_ATEN = torch.ops.aten
_AT_ONCE = 5  # executorch.backends.xnnpack._passes.decompose_cat
# What executorch.exir.passes.remove_mixed_type_operators brings to one dtype.
_PROMOTED = (
    *(_ATEN.add.Tensor, _ATEN.mul.Tensor, _ATEN.sub.Tensor, _ATEN.div.Tensor, _ATEN.div.Tensor_mode),
    _ATEN.minimum.default,
)


@cache
def _needed() -> dict[Any, Callable[[fx.Node], bool]]:
    """Pass -> whether it has something to do at a call."""
    from executorch.backends.xnnpack._passes.decompose_cat import DecomposeConcatenate
    from executorch.exir.passes.const_prop_pass import ConstPropPass
    from executorch.exir.passes.normalize_transpose_pass import NormalizeTransposePass
    from executorch.exir.passes.remove_mixed_type_operators import RemoveMixedTypeOperators
    from executorch.exir.passes.sym_to_tensor_pass import SymToTensorPass

    return {
        NormalizeTransposePass: lambda n: n.target is _ATEN.t.default,
        SymToTensorPass: number_for_tensor,
        RemoveMixedTypeOperators: mixed,
        ConstPropPass: constant,
        DecomposeConcatenate: wide,
    }


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Within this, passes that have nothing to do in a graph leave it as it is."""
    with contextlib.ExitStack() as stack:
        for kind in _needed():
            stack.enter_context(replaced(kind, call=_guarded(kind, kind.call)))
        yield


def idle(kind: type, module: fx.GraphModule) -> bool:
    """True for a pass that has nothing to do in a graph; False where that is not known."""
    has_work = _needed().get(kind)
    nested = any(isinstance(m, fx.GraphModule) for m in module.children())  # control flow
    if has_work is None or nested:
        return False
    return not any(n.op == "call_function" and has_work(n) for n in module.graph.nodes)


def _guarded(kind: type, call: Callable[..., PassResult]) -> Callable[..., PassResult]:
    def guarded(self: Any, module: fx.GraphModule) -> PassResult:
        return PassResult(module, False) if idle(kind, module) else call(self, module)

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


def constant(node: fx.Node) -> bool:
    """True for a call that nothing goes into but constants of the graph module."""
    return all(source.op == "get_attr" for source in node.all_input_nodes)


def wide(node: fx.Node) -> bool:
    """True for a concatenation of more tensors than XNNPACK takes at once."""
    return "aten.cat" in str(getattr(node.target, "__name__", "")) and len(node.args[0]) > _AT_ONCE  # type: ignore[arg-type]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)

"""Remove what computes nothing, so that later passes and targets see one form of each thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from planish_passes.infra import PassResult
from planish_passes.program import Program, finish, op_name, rebuild, writes

_IDENTITY = frozenset(
    f"aten.{name}" for name in ("dropout", "feature_dropout", "alias", "detach", "detach_", "lift_fresh_copy", "clone")
)
_CHECKS = frozenset(("aten._assert_tensor_metadata", "aten._assert_scalar", "aten.sym_constrain_range_for_size"))
_CASTS = frozenset(("aten.to", "aten._to_copy", "aten.type_as"))


@dataclass(frozen=True)
class Canonicalise:
    """Functional form, then no-ops out.

    1. in-place operators become functional ones;
    2. run-time checks of the trace go (equal input shapes become the caller's contract);
    3. dropout, alias, detach, clone go;
    4. casts to the dtype that a tensor has go;
    5. `view` becomes `reshape`, `type_as` a cast, and `contiguous` goes; the integers of `1.0 - integers` are cast
       (torch's ONNX exporter stops at such a difference);
    6. `expand` and `slice` that change nothing go, also when the size is symbolic;
    7. `transpose` and `permute` pairs that cancel go;
    8. of two `reshape` in a row the first goes, and so does one that ends where the first began.
    """

    def run(self, program: Program) -> PassResult:
        """See the class."""
        program = _functional(program)
        before = len(program.graph.nodes)
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            if op_name(node) in _CHECKS:
                program.graph.erase_node(node)
                continue
            _rename(node)
            source = _same_as(node)
            if source is not None:
                node.replace_all_uses_with(source)
                program.graph.erase_node(node)
        program = finish(program)
        return PassResult(program, before - len(program.graph.nodes))


def _rename(node: fx.Node) -> None:
    """One name for each thing: `view` is a reshape, `type_as` a cast."""
    if op_name(node) in ("aten.view", "aten._unsafe_view"):
        node.target = torch.ops.aten.reshape.default
    elif op_name(node) == "aten.type_as":
        node.target, node.args = torch.ops.aten.to.dtype, (node.args[0], node.meta["val"].dtype)
    elif op_name(node) == "aten.rsub":
        _cast_first(node)


def _cast_first(node: fx.Node) -> None:
    source, dtype = node.args[0], node.meta["val"].dtype
    if not isinstance(source, fx.Node) or source.meta["val"].dtype == dtype:
        return
    with node.graph.inserting_before(node):
        cast = node.graph.call_function(torch.ops.aten.to.dtype, (source, dtype))
    cast.meta = {**node.meta, "val": source.meta["val"].to(dtype)}
    node.replace_input_with(source, cast)


def _functional(program: Program) -> Program:
    if not any(writes(n) for n in program.graph.nodes):
        return program
    from dataclasses import replace

    modules = {n.name: n.meta.get("planish_module") for n in program.graph.nodes}
    before = program.exported
    exported = before.run_decompositions({})
    # What it may hold stays as it was: targets put calls that write caches into programs.
    exported = exported._update(exported.graph_module, exported.graph_signature, verifiers=before.verifiers)
    for node in exported.graph.nodes:
        node.meta.setdefault("planish_module", _stack_path(node) or modules.get(node.name))
    module = fx.GraphModule(exported.graph_module, exported.graph)
    return replace(program, exported=rebuild(exported, module, exported.graph_signature))


def _stack_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]).removeprefix("model").removeprefix(".") if stack else ""


def _same_as(node: fx.Node) -> fx.Node | None:
    """The node whose value this node repeats, or None."""
    name = op_name(node)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if name in _IDENTITY or name == "aten.contiguous":
        return source
    value, given = node.meta.get("val"), source.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(given, torch.Tensor):
        return None
    if name in _CASTS and value.dtype == given.dtype and value.device == given.device:
        return source
    rule = _SHAPE_RULES.get(name)
    return rule(node, source) if rule else None


def _same_shape(node: fx.Node, source: fx.Node) -> fx.Node | None:
    ours, theirs = node.meta["val"].shape, source.meta["val"].shape
    equal = len(ours) == len(theirs) and all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return source if equal else None


def _equal(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    # Compared as expressions: `==` on symbols would add a guard to the trace.
    return str(a) == str(b)


def _full_slice(node: fx.Node, source: fx.Node) -> fx.Node | None:
    step = node.args[4] if len(node.args) > 4 else 1
    return _same_shape(node, source) if step == 1 else None


def _cancelling(node: fx.Node, source: fx.Node) -> fx.Node | None:
    first = source.args[0] if source.op == "call_function" and source.args else None
    if not isinstance(first, fx.Node) or op_name(source) not in ("aten.transpose", "aten.permute"):
        return None
    rank = node.meta["val"].dim()
    inner, outer = _order(source, rank), _order(node, rank)
    return first if [inner[o] for o in outer] == list(range(rank)) else None


def _order(node: fx.Node, rank: int) -> list[int]:
    if op_name(node) == "aten.permute":
        return [int(d) % rank for d in node.args[1]]  # type: ignore[union-attr, arg-type]
    a, b = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return order


def _reshaped(node: fx.Node, source: fx.Node) -> fx.Node | None:
    if op_name(source) == "aten.reshape" and source.op == "call_function" and isinstance(source.args[0], fx.Node):
        # A size of -1 stays what it was: the number of elements is the same.
        node.replace_input_with(source, source.args[0])
        source = source.args[0]
    return _same_shape(node, source)


_SHAPE_RULES: dict[str, Callable[[fx.Node, fx.Node], fx.Node | None]] = {
    "aten.expand": _same_shape,
    "aten.slice": _full_slice,
    "aten.reshape": _reshaped,
    "aten.transpose": _cancelling,
    "aten.permute": _cancelling,
}

"""A stable text form of a program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from planish_passes.nodes import module_path, op_name

if TYPE_CHECKING:
    from planish_passes.program import Program

_SHORT = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def describe(value: Any) -> str:
    """`f32[2, s0]` for a tensor, the number or symbol itself for anything else."""
    if isinstance(value, torch.Tensor):
        return f"{_SHORT.get(value.dtype, str(value.dtype))}[{', '.join(str(s) for s in value.shape)}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    return str(value)


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_argument(v) for v in value) + "]"
    return repr(value) if isinstance(value, str) else str(value)


def line(node: fx.Node, names: Mapping[str, str]) -> str:
    """One node: `%name: type = op(args)  # module`.

    Args:
        names: placeholder -> weight, as of `Program.weight_names`.
    """
    head = f"%{node.name}: {describe(node.meta.get('val'))}"
    if node.op == "placeholder":
        return f"{head} = " + (f"weight {names[node.name]!r}" if node.name in names else "input")
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    arguments = [_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
    where = f"  # {module_path(node)}" if module_path(node) else ""
    return f"{head} = {op_name(node)}({', '.join(arguments)}){where}"


def dump(program: Program) -> str:
    """One line per node."""
    names = program.weight_names()
    return "\n".join([f"program {program.name}", *(line(node, names) for node in program.graph.nodes)])


def around(node: fx.Node, names: Mapping[str, str], distance: int) -> tuple[str, ...]:
    """The lines of a node and of its neighbours in the order of execution; it is marked, placeholders are left out."""
    before, after, at = list[fx.Node](), list[fx.Node](), node
    while len(before) < distance and (at := at.prev).op not in ("root", "placeholder"):
        before.insert(0, at)
    at = node
    while len(after) < distance and at.op != "output" and (at := at.next).op != "root":
        after.append(at)
    return tuple(f"{'>' if n is node else ' '} {line(n, names)}" for n in (*before, node, *after))

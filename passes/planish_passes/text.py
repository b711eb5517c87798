"""A stable text form of a program."""

from __future__ import annotations

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


def dump(program: Program) -> str:
    """One line per node: `%name: type = op(args)  # module`."""
    names, lines = program.weight_names(), [f"program {program.name}"]
    for node in program.graph.nodes:
        head = f"%{node.name}: {describe(node.meta.get('val'))}"
        if node.op == "placeholder":
            source = f"weight {names[node.name]!r}" if node.name in names else "input"
            lines.append(f"{head} = {source}")
        elif node.op == "output":
            lines.append(f"return {_argument(node.args[0])}")
        else:
            arguments = [_argument(a) for a in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
            where = f"  # {module_path(node)}" if module_path(node) else ""
            lines.append(f"{head} = {op_name(node)}({', '.join(arguments)}){where}")
    return "\n".join(lines)

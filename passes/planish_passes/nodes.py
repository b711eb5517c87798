"""What a node of a program is called, and where in the model it comes from."""

from __future__ import annotations

import torch
from torch import fx


def op_name(node: fx.Node) -> str:
    """`aten.linear`, `planish.attention`; the overload is left out."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return str(getattr(target, "__name__", target))


def module_path(node: fx.Node) -> str:
    """The path of the source module that a node was traced from (`encoder.layer.0.attention`), "" at the top."""
    if "planish_module" in node.meta:
        return str(node.meta["planish_module"])
    stack = node.meta.get("nn_module_stack")
    return str(next(reversed(stack.values()))[0]) if stack else ""

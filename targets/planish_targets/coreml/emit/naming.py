"""Names of MIL operations, and the states of a package."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Var = Any  # a MIL value of coremltools' builder
# Operations that make a dense weight of what the file holds
COMPRESSED = ("constexpr_blockwise_shift_scale", "constexpr_lut_to_dense", "constexpr_affine_dequantize")


def safe_name(name: str) -> str:
    """A name that MIL takes. (coremltools repairs names only in packages that have a function "main".)"""
    return re.sub(r"\W", "_", name)


class Naming:
    """coremltools' builder; operations are named `<FX node>__<operation>`, so that each can be traced to its source.

    The two underscores keep them apart from names that coremltools' passes make up.

    Attributes:
        wide: True while operations are made that must stay fp32; `kept` has their names.
    """

    def __init__(self, builder: Any) -> None:
        self.owner = ""
        self.wide = False
        self.kept: set[str] = set()
        self._builder = builder
        self._count = 0

    def start(self, owner: str) -> None:
        """Operations from here on belong to this FX node."""
        self.owner, self._count = owner, 0

    def keep(self, result: Any, given: list[Any]) -> None:
        """What was made from `given` by others (a converter of coremltools), up to `result`, stays fp32 too."""
        known, pending = {id(var) for var in given}, [result]
        while pending:
            var = pending.pop()
            if isinstance(var, (tuple, list)):
                pending += var
            elif var is not None and id(var) not in known and var.op is not None and var.op.name not in self.kept:
                self.kept.add(var.op.name)
                pending += var.op.inputs.values()

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        build = getattr(self._builder, operation)

        def named(**given: Any) -> Any:
            if "name" not in given:
                given["name"] = f"{self.owner}__{operation}_{self._count}"
                self._count += 1
            elif given["name"] == self.owner:
                given["name"] = f"{self.owner}__{operation}"
            given["name"] = safe_name(given["name"])
            if self.wide:
                self.kept.add(given["name"])
            return build(**given)

        return named


class State:
    """A state of the package: a cache that is read and written, not passed. fp16: Core ML has no others.

    Args:
        var: the function's input.
        output: the node that is the state's new content.
    """

    def __init__(self, var: Var, output: str) -> None:
        self.var = var
        self.output = output
        self.written = False

"""Sizes that are known only when the model runs: the sequence length of a package with a flexible shape.

Such a size is a sympy expression over the dimensions of the program's inputs, in torch's symbolic shapes and in MIL's
alike. MIL infers shapes with symbols of torch's names, so that both can be compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import fx

from planish_targets.coreml.emit.naming import Naming, Var

Size = Any  # an int, or a sympy expression


def size_of(value: Any) -> Size:
    """A number, a symbolic one, or a node that stands for one."""
    if isinstance(value, fx.Node):
        value = value.meta["val"]
    if isinstance(value, torch.SymInt):
        found = value.node.expr
        return int(found) if found.is_number else found.xreplace({s: _symbol(s.name) for s in found.free_symbols})
    return int(value)


@cache
def _symbol(name: str) -> Size:
    # MIL takes no symbols but those of its own class, and two classes are never equal
    return importlib.import_module("coremltools.converters.mil.mil.program").Symbol(name)


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a node's result."""
    return tuple(size_of(s) for s in node.meta["val"].shape)


def fixed(sizes: Iterable[Size]) -> bool:
    """True when all sizes are numbers."""
    return all(isinstance(s, int) for s in sizes)


def is_size(node: fx.Node) -> bool:
    """True for nodes whose result is a size, or a comparison of sizes."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat))


def broadcast_shape(shapes: Iterable[Sequence[Size]]) -> tuple[Size, ...]:
    """The common shape of shapes that fit: of each axis, the size that is not 1."""
    given = list(shapes)
    rank = max(len(s) for s in given)
    axes = zip(*((*[1] * (rank - len(s)), *s) for s in given), strict=True)
    return tuple(next((s for s in axis if s != 1), 1) for axis in axes)


class Sizes:
    """MIL values of sizes, each computed once in the function that is open.

    Args:
        mb: builder.
        refuse: what to raise for a size that cannot be computed.
    """

    def __init__(self, mb: Naming, refuse: Callable[[str], Exception]) -> None:
        self._mb = mb
        self._refuse = refuse
        self._places: dict[Size, tuple[Var, int]] = {}
        self._made: dict[Size, Var] = {}

    def declare(self, var: Var) -> None:
        """An input: its dimensions are where sizes come from."""
        for axis, size in enumerate(var.shape):
            if not isinstance(size, int):
                self._places.setdefault(size, (var, axis))

    def is_input(self, size: Size) -> bool:
        """True for a dimension of an input."""
        return size in self._places

    def one(self, size: Size) -> Any:
        """int32 [1]; numbers stay numbers."""
        if isinstance(size, int):
            return np.array([size], np.int32)
        if size not in self._made:
            self._made[size] = self._compute(size)
        return self._made[size]

    def scalar(self, size: Size) -> Any:
        """int32 []."""
        return np.int32(size) if isinstance(size, int) else self._mb.squeeze(x=self.one(size), axes=[0])

    def vector(self, sizes: Sequence[Size]) -> Any:
        """int32 [rank], a list where all are numbers."""
        return list(sizes) if fixed(sizes) else self._mb.concat(values=[self.one(s) for s in sizes], axis=0)

    def reshape(self, x: Var, shape: Sequence[Size], **named: str) -> Var:
        """The same elements in another shape."""
        unknown = [s for s in shape if not isinstance(s, int)]
        given = [s if isinstance(s, int) else -1 for s in shape] if len(unknown) < 2 else self.vector(shape)
        return self._mb.reshape(x=x, shape=given, **named)

    def _compute(self, size: Size) -> Var:
        if size in self._places:
            var, axis = self._places[size]
            return self._mb.gather(x=self._mb.shape(x=var), indices=np.array([axis], np.int32), axis=0)
        if size.is_Add or size.is_Mul:
            build = self._mb.add if size.is_Add else self._mb.mul
            first, *others = (int(a) if a.is_Integer else a for a in size.args)
            result = self.one(first)
            for other in others:
                result = build(x=result, y=self.one(other))
            return result
        if size.is_Pow and size.exp.is_Integer and size.exp > 1:
            return self._mb.mul(x=self.one(size.base), y=self.one(size / size.base))
        raise self._refuse(f"the size {size} is neither a sum nor a product of the inputs' sizes")

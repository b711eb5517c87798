"""Retraces that compute again only what has changed, and graph modules whose Python code nobody asks for.

Most passes of executorch run a whole program on fake tensors to build a new graph, and most of them change little or
nothing in it. Here an operator that is given the very objects that it was given before returns what it returned then;
and where the result looks just like the value that the node had, that value stays, so that what follows is as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.graph import _PyTreeCodeGen

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Memory:
    """What operators made of fake tensors, by operator and arguments. Holds the arguments: an `id` stays theirs."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Any, Any]] = {}

    def call(self, compute: Callable[..., Any], target: Any, args: Any, kwargs: Any, known: Any) -> Any:
        """`compute(target, args, kwargs)`, or an equal result from before.

        Args:
            known: the value that the node had.
        """
        operator = _operator(target)
        if operator is None:
            return compute(target, args, kwargs)
        try:
            key = operator, _named(args), _named(kwargs)
        except _NamelessError:
            return compute(target, args, kwargs)
        if key not in self._made:
            found = compute(target, args, kwargs)
            self._made[key] = known if alike(found, known) else found, args, kwargs
        return self._made[key][0]

    def learn(self, nodes: Iterable[fx.Node]) -> None:
        """Take the values of nodes for what their operators make, of a graph whose values are fresh."""
        for node in nodes:
            operator = _operator(node.target) if node.op == "call_function" else None
            if operator is None or "val" not in node.meta:
                continue
            try:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), _value)
                self._made[operator, _named(args), _named(kwargs)] = node.meta["val"], args, kwargs
            except _NamelessError:
                continue


def _value(node: fx.Node) -> Any:
    """What a retrace gives to the readers of a node."""
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    if "val" not in node.meta:
        raise _NamelessError
    value = node.meta["val"]
    constant = getattr(value, "constant", None) if node.op == "placeholder" else None
    return value if constant is None else constant


class _NamelessError(Exception):
    """A value that is not told from others by identity or by itself."""


def _operator(target: Any) -> Any:
    """What computes the call, or None where its result is not a matter of the arguments alone."""
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.dialects.edge._ops import EdgeOpOverload

    operator = target._op if isinstance(target, EdgeOpOverload) else target
    if isinstance(operator, torch._ops.OpOverload):
        return None if torch.Tag.inplace_view in operator.tags else operator
    whole = (executorch_call_delegate, torch.ops.higher_order.auto_functionalized_v2)
    return operator if operator in whole or getattr(operator, "__module__", "") == "_operator" else None


def _named(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, nn.Module, torch._ops.OpOverload, *_SYMBOLIC)):
        return id(value)
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, tuple)):
        return tuple(_named(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _named(v)) for k, v in value.items())
    raise _NamelessError


def alike(a: Any, b: Any) -> bool:
    """True where two values of nodes say the same: dtypes, sizes, strides and numbers, by their symbols."""
    if type(a) is not type(b):
        return False
    if isinstance(a, FakeTensor):
        kind = [(t.fake_mode, t.dtype, t.device, t.layout, t.requires_grad, t.is_conj(), t.is_neg()) for t in (a, b)]
        laid = [(*t.shape, *t.stride(), t.storage_offset()) for t in (a, b)]
        return kind[0] == kind[1] and len(laid[0]) == len(laid[1]) and all(map(alike, *laid))
    if isinstance(a, _SYMBOLIC):
        return bool(a.node.expr == b.node.expr)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return isinstance(a, _PLAIN) and a == b


class _Remembering:
    """An interpreter of one call that asks a memory first."""

    def __init__(self, interpreter: fx.Interpreter, memory: Memory, known: Any) -> None:
        self._interpreter, self._memory, self._known = interpreter, memory, known

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._memory.call(self._interpreter.call_function, target, args, kwargs, self._known)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)


@contextlib.contextmanager
def remembered() -> Iterator[Memory]:
    """Within this, passes that retrace a program do not compute again what they have computed."""
    from executorch.exir.pass_base import _ExportPassBase
    from torch._export.pass_base import _ExportPassBaseDeprecatedDoNotUse

    memory = Memory()
    plain = {kind: kind._fx for kind in (_ExportPassBase, _ExportPassBaseDeprecatedDoNotUse)}

    def asking(compute: Callable[..., Any]) -> Callable[..., Any]:
        def _fx(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            interpreter = self.interpreter
            self.interpreter = _Remembering(interpreter, memory, meta.data.get("val"))
            try:
                return compute(self, kind, target, args, kwargs, meta)
            finally:
                self.interpreter = interpreter

        return _fx

    for kind, compute in plain.items():
        kind._fx = asking(compute)
    try:
        yield memory
    finally:
        for kind, compute in plain.items():
            kind._fx = compute


_COMPILE = fx.GraphModule.recompile


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """Within this, and within `uncompiled`, graph modules get their code at once: `torch.export` traces no other."""
    later = fx.GraphModule.recompile
    fx.GraphModule.recompile = _COMPILE  # type: ignore[method-assign]
    try:
        yield
    finally:
        fx.GraphModule.recompile = later  # type: ignore[method-assign]


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Within this, a graph module gets its Python code when it is called, which interpreters never do."""
    compile_now, print_code = fx.GraphModule.recompile, fx.GraphModule.__str__

    def later(self: fx.GraphModule) -> None:
        codegen = self._graph._codegen
        if isinstance(codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec

        def forward(module: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            compile_now(module)
            return type(module).forward(module, *args, **kwargs)

        type(self).forward = forward  # every graph module has a class of its own

    fx.GraphModule.recompile = later  # type: ignore[method-assign, assignment]
    fx.GraphModule.__str__ = object.__str__  # type: ignore[method-assign]  # of debug messages that nobody prints
    try:
        yield
    finally:
        fx.GraphModule.recompile = compile_now  # type: ignore[method-assign]
        fx.GraphModule.__str__ = print_code  # type: ignore[method-assign]

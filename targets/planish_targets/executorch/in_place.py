"""Passes of executorch that retrace a whole program to give some operators another form, done in the graph itself.

A retrace makes every node anew, with all that it takes to guard against what a pass could do. These passes do one of
two things at a call: nothing, or the same call of another operator or with other arguments. So each is asked what it
makes of a call, and what it made is written into the node. Values are asked for again, as a retrace does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.traceback import NodeSource, NodeSourceAction

from planish_targets.executorch.replaced import replaced
from planish_targets.executorch.retrace import Memory, alike, operator_of

_PLAIN = ("placeholder", "get_attr", "call_function", "output")


class _RetraceError(Exception):
    """The pass does more than to give a call another form."""


@dataclass(frozen=True)
class _Form:
    """What a pass makes of a call, with what stands for nodes in its arguments."""

    target: Any
    args: Any
    kwargs: Any


@contextlib.contextmanager
def in_place(memory: Memory) -> Iterator[None]:
    """Within this, passes that give calls another form edit the graph that they are given."""
    from executorch.exir.pass_base import ProxyValue, _ExportPassBase
    from torch._export.pass_base import ProxyValue as OldProxyValue
    from torch._export.pass_base import _ExportPassBaseDeprecatedDoNotUse

    known = _passes()
    with contextlib.ExitStack() as stack:
        for base, proxy in ((_ExportPassBase, ProxyValue), (_ExportPassBaseDeprecatedDoNotUse, OldProxyValue)):
            stack.enter_context(replaced(base, call=_editing(base, proxy, known, memory)))
        yield


def _passes() -> dict[type, Callable[[fx.Node], bool]]:
    """Those that override nothing of a retrace but what becomes of an operator -> whether they may change a call."""
    from executorch.backends.xnnpack._passes.convert_to_linear import ConvertToLinearPass
    from executorch.exir.passes.dim_order_ops_registry import DimOrderOpsMap, MemoryFormatOpsMap
    from executorch.exir.passes.memory_format_ops_pass import DimOrderOpsRevertPass, MemoryFormatOpsPass
    from executorch.exir.passes.replace_aten_with_edge_pass import OpReplacePass
    from executorch.exir.passes.replace_broken_ops_with_function_ops_pass import ReplaceBrokenOpsWithFunctionalOpsPass
    from executorch.exir.passes.scalar_to_tensor_pass import ScalarToTensorPass
    from torch._export.passes.replace_view_ops_with_view_copy_ops_pass import ReplaceViewOpsWithViewCopyOpsPass

    return {
        ReplaceViewOpsWithViewCopyOpsPass: lambda _: True,
        ReplaceBrokenOpsWithFunctionalOpsPass: lambda n: bool(getattr(n.target, "is_view", True)),
        ScalarToTensorPass: _has_number,
        OpReplacePass: lambda _: True,
        MemoryFormatOpsPass: lambda n: n.target in DimOrderOpsMap,
        DimOrderOpsRevertPass: lambda n: n.target in MemoryFormatOpsMap,
        ConvertToLinearPass: lambda _: False,  # asks for the values of what it has edited
    }


def _has_number(node: fx.Node) -> bool:
    return any(isinstance(a, (int, float)) for a in (*node.args, *node.kwargs.values()))


def _editing(
    base: Any, proxy: Any, known: Mapping[type, Callable[[fx.Node], bool]], memory: Memory
) -> Callable[..., PassResult]:
    retrace = base.call

    def call(self: Any, module: fx.GraphModule) -> PassResult:
        nested = any(isinstance(m, fx.GraphModule) for m in module.children())  # control flow
        if type(self) in known and not nested and all(n.op in _PLAIN for n in module.graph.nodes):
            with contextlib.suppress(_RetraceError):
                return PassResult(module, _Edit(self, module, proxy, base, known[type(self)], memory).run())
        result: PassResult = retrace(self, module)
        return result

    return call


class _Edit:
    """One pass over one graph: first what becomes of its nodes, then, if that can be written into them, the edit."""

    def __init__(
        self, of: Any, module: fx.GraphModule, proxy: Any, base: Any, may: Callable[[fx.Node], bool], memory: Memory
    ) -> None:
        self._pass, self._module, self._proxy, self._base = of, module, proxy, base
        self._may, self._memory = may, memory
        self._edited = "call" in vars(type(of))  # then the graph may have changed already
        self._forms: dict[fx.Node, _Form] = {}
        self._values: dict[fx.Node, Any] = {}  # those that change
        self._sources: dict[int, fx.Node] = {}  # id of a constant of the module -> where it is read
        self._asked: list[_Form] = []
        self._mode = next((v.fake_mode for v in map(_value, module.graph.nodes) if hasattr(v, "fake_mode")), None)

    def run(self) -> bool:
        """True where something has changed."""
        from torch._dispatch.python import enable_python_dispatcher

        if self._mode is None:
            raise _RetraceError
        self._mode.allow_non_fake_inputs = True  # constants
        with replaced(self._base, call_operator=self._record), self._mode, enable_python_dispatcher():
            for node in self._module.graph.nodes:
                if node.op == "get_attr":
                    self._read(node)
                elif node.op == "call_function":
                    self._look(node)
        for node, form in self._forms.items():
            self._write(node, form)
        for node, value in self._values.items():
            node.meta["val"] = value
        for node in self._module.graph.nodes:
            # what a retrace leaves behind, by which debuggers find an operation
            if node.op == "call_function" and "from_node" not in node.meta:
                node.meta["from_node"] = [NodeSource(node, type(self._pass).__name__, NodeSourceAction.CREATE)]
        return bool(self._forms or self._values)

    def _record(self, target: Any, args: Any, kwargs: Any, meta: Any) -> _Form:
        self._asked.append(_Form(target, args, kwargs))
        return self._asked[-1]

    def _read(self, node: fx.Node) -> None:
        constant = getattr(self._module, str(node.target), None)
        if not isinstance(constant, torch.Tensor):
            raise _RetraceError
        self._sources[id(constant)] = node

    def _look(self, node: fx.Node) -> None:
        target, given, same = node.target, (node.args, node.kwargs), True
        if _is_operator(target) and self._may(node):
            args, kwargs = fx.node.map_arg(given, self._proxied)
            form = self._form(target, args, kwargs)
            if not _same(form.args, args) or not _same(form.kwargs, kwargs):
                self._forms[node], same = form, False
                given = map_aggregate((form.args, form.kwargs), self._unproxied)  # type: ignore[assignment]
            elif form.target is not target:
                self._forms[node], same = _Form(form.target, *given), _one_operator(form.target, target)
            target = form.target
        known = node.meta.get("val")
        if same and not self._edited and known is not None and self._values.keys().isdisjoint(node.all_input_nodes):
            return
        args, kwargs = fx.node.map_arg(given, self._now)
        value = self._memory.call(_run, target, args, kwargs, known)
        if not alike(value, known):
            self._values[node] = value

    def _now(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return getattr(self._module, str(node.target))
        return self._values[node] if node in self._values else _value(node)

    def _proxied(self, node: fx.Node) -> Any:
        return self._now(node) if node.op == "get_attr" else self._proxy(self._now(node), node)

    def _unproxied(self, argument: Any) -> Any:
        return argument.node if isinstance(argument, self._proxy) else argument

    def _form(self, target: Any, args: Any, kwargs: Any) -> _Form:
        self._asked.clear()
        found = self._pass.call_operator(target, args, kwargs, None)
        if len(self._asked) != 1 or found is not self._asked[0]:
            raise _RetraceError
        return self._asked[0]

    def _write(self, node: fx.Node, form: _Form) -> None:
        def stored(argument: Any) -> Any:
            if isinstance(argument, torch.Tensor):
                return self._constant(node, argument)
            return self._unproxied(argument)

        node.target = form.target
        if form.args is not node.args or form.kwargs is not node.kwargs:
            node.args, node.kwargs = map_aggregate((form.args, form.kwargs), stored)  # type: ignore[assignment, misc]

    def _constant(self, before: fx.Node, value: torch.Tensor) -> fx.Node:
        if id(value) in self._sources:
            return self._sources[id(value)]
        number = 0
        while hasattr(self._module, f"_tensor_constant{number}"):
            number += 1
        setattr(self._module, f"_tensor_constant{number}", value)
        with self._module.graph.inserting_before(before):
            node = self._module.graph.get_attr(f"_tensor_constant{number}")
        assert self._mode is not None
        node.meta["val"] = self._mode.from_tensor(value)
        return node


def _value(node: fx.Node) -> Any:
    """What readers of a node get: of a constant that was lifted, its numbers."""
    value = node.meta.get("val")
    constant = getattr(value, "constant", None) if node.op == "placeholder" else None
    return value if constant is None else constant


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    return target(*args, **kwargs)


def _is_operator(target: Any) -> bool:
    from executorch.exir.dialects.edge._ops import EdgeOpOverload

    return isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket, EdgeOpOverload))


def _one_operator(a: Any, b: Any) -> bool:
    """True where one is the other in the edge dialect, so that their results are alike."""
    operator = operator_of(a)
    return operator is not None and operator is operator_of(b)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return len(a) == len(b) and all(k in b and v is b[k] for k, v in a.items())
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))

"""Decomposing a program one operator at a time: what torch traces twice as a whole, and 30 equal layers 30 times.

`ExportedProgram.run_decompositions` runs a program twice on fake tensors, which for a language model takes longer than
everything else in lowering. Nearly all of its operators stay as they are. Here those are copied; an operator that has a
decomposition is traced alone, once for all calls that look alike; one that writes into a buffer becomes a function.
Programs with anything else in them are left to torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.fx.traceback import NodeSource, NodeSourceAction

from planish_targets.executorch.functional import (
    functional,
    functional_signature,
    ordered_inputs,
    writes,
    written_place,
)
from planish_targets.executorch.retrace import Memory, chosen_at_run_time

_ITEM, _DENSE = torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default
_TOLD = ("nn_module_stack", "stack_trace", "torch_fn")  # of where a node comes from
_SIZE = torch.ops.aten.sym_size.int
_METADATA = (_SIZE, torch.ops.aten.sym_numel.default, torch.ops.aten.sym_stride.int)
_LIFTED = ("detach", "alias", "lift", "lift_fresh", "lift_fresh_copy")  # become others, or nothing


class _WholeError(Exception):
    """The program is one that torch must trace as a whole."""


def decompose(exported: ExportedProgram, table: Mapping[Any, Callable[..., Any]], memory: Memory) -> Any:
    """The program with every operator of the table decomposed, and functional; None where torch must do it.

    Args:
        exported: stays as it is.
        table: operator -> its decomposition.
        memory: what operators make of fake tensors.
    """
    try:
        return _Copy(exported, table, memory).program()
    except _WholeError:
        return None


class _Copy:
    """A graph in the making."""

    def __init__(self, exported: ExportedProgram, table: Mapping[Any, Callable[..., Any]], memory: Memory) -> None:
        self._exported, self._table, self._memory = exported, table, memory
        self._graph = fx.Graph()
        self._copied: dict[fx.Node, fx.Node] = {}
        self._written: dict[fx.Node, fx.Node] = {}  # buffer -> what it holds now
        self._sizes: dict[Any, fx.Node] = {}
        self._bodies: dict[Any, fx.Graph] = {}
        self._specs = ordered_inputs(exported.graph_signature.input_specs)
        self._buffers = {s.arg.name: s.target for s in self._specs if s.kind == InputKind.BUFFER}
        self._mode = next((v.fake_mode for v in _values(exported.graph) if isinstance(v, FakeTensor)), None)

    def program(self) -> ExportedProgram:
        exported = self._exported
        if any(n.op in ("get_attr", "call_module", "call_method") for n in exported.graph.nodes) or self._mode is None:
            raise _WholeError
        if any(s.kind != OutputKind.USER_OUTPUT for s in exported.graph_signature.output_specs):
            raise _WholeError  # functional already, in a way that is not ours
        with self._mode, torch.no_grad():
            inputs = {n.name: n for n in exported.graph.find_nodes(op="placeholder")}
            for spec in self._specs:
                self._take(inputs[spec.arg.name])
            for node in exported.graph.nodes:
                if node.op != "placeholder":
                    self._take(node)
        self._graph.eliminate_dead_code()
        return ExportedProgram(
            root=fx.GraphModule(exported.graph_module, self._graph),
            graph=self._graph,
            graph_signature=self._signature(),
            state_dict=exported.state_dict,
            range_constraints=dict(exported.range_constraints),
            module_call_graph=list(exported.module_call_graph),
            example_inputs=exported.example_inputs,
            constants=exported.constants,
            verifiers=[exported.verifier],
        )

    def _take(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._copied[node] = self._graph.node_copy(node)
            self._copied[node].meta = dict(node.meta)
        elif node.op == "output":
            given: Any = fx.node.map_arg(node.args[0], self._now)
            order = [n for n in self._graph.nodes if n in self._written]
            self._written = {n: self._written[n] for n in order}
            changed = tuple(self._written.values())
            self._graph.output((*changed, *given)).meta = dict(node.meta)
        elif node.target is _ITEM:
            self._copied[node] = self._put(node, _DENSE, (self._now(node.args[0]),), {}, node.meta["val"])
            if "unbacked_bindings" in node.meta:
                self._copied[node].meta["unbacked_bindings"] = node.meta["unbacked_bindings"]
        elif node.target is _SIZE and _plain_symbol(node.meta["val"]):
            self._copied[node] = self._size(node.meta["val"])
        elif self._body_of(node.target) is not None:
            self._copied[node] = self._inline(node)
        elif writes(node.target):
            self._write(node)
        else:
            self._keep(node)

    def _now(self, node: Any) -> fx.Node:
        """What stands for a node of the program at this place."""
        copied = self._copied[node]
        return self._written.get(copied, copied)

    def _put(self, like: fx.Node, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        made = self._graph.call_function(target, args, kwargs)
        made.meta = {k: like.meta[k] for k in _TOLD if k in like.meta}
        made.meta |= {"val": value, "from_node": [NodeSource(like, "decompose", NodeSourceAction.CREATE)]}
        return made

    def _keep(self, node: fx.Node) -> None:
        target = node.target
        if chosen_at_run_time(target) or getattr(target, "_opname", "") in _LIFTED:
            raise _WholeError
        if not isinstance(target, torch._ops.OpOverload) and not _plain(target):
            raise _WholeError
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._now)
        values, named = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        value = self._memory.call(lambda t, a, k: t(*a, **k), target, values, named, node.meta.get("val"))
        self._copied[node] = self._put(node, target, args, kwargs, value)

    def _body_of(self, target: Any) -> Callable[..., Any] | None:
        """What computes an operator in others; None for one that stays."""
        from torch._export.utils import _check_valid_to_preserve

        if target in _METADATA or not isinstance(target, torch._ops.OpOverload):
            return None
        if target in self._table:
            return self._table[target]
        composite: bool = target._can_decompose() and not _check_valid_to_preserve(target)
        return target if composite else None

    def _inline(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._now)
        given: list[fx.Node] = []
        fx.node.map_arg((args, kwargs), lambda n: given.append(n) or n)  # type: ignore[func-returns-value]
        body = self._body(node, args, kwargs, given)
        inner: dict[fx.Node, fx.Node] = {}
        for place, source in zip((n for n in body.nodes if n.op == "placeholder"), given, strict=True):
            inner[place] = source
        for step in body.nodes:
            if step.target is _SIZE:
                inner[step] = self._size(step.meta["val"])
            elif step.op == "call_function":
                stated, named = fx.node.map_arg((step.args, step.kwargs), inner.__getitem__)
                inner[step] = self._put(node, step.target, stated, named, step.meta.get("val"))
        returned: Any = body.output_node().args[0]
        return inner[returned]

    def _size(self, number: Any) -> fx.Node:
        """A symbol as the size of an input: as that of what is computed it would part the delegates that compute it."""
        expression = number.node.expr
        if expression not in self._sizes:
            places = ((n, d) for n in self._graph.find_nodes(op="placeholder") for d in _dims(n, expression))
            found = next(places, None)
            if found is None:
                raise _WholeError
            with self._graph.inserting_after(self._last_input()):
                made = self._graph.call_function(_SIZE, found)
            made.meta = {"val": number}
            self._sizes[expression] = made
        return self._sizes[expression]

    def _last_input(self) -> fx.Node:
        return list(self._graph.find_nodes(op="placeholder"))[-1]

    def _body(self, node: fx.Node, args: Any, kwargs: Any, given: list[fx.Node]) -> fx.Graph:
        """The decomposition of a call as a graph of its own, whose placeholders are the nodes that it is given."""
        order = {n: i for i, n in enumerate(dict.fromkeys(given))}
        plain = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        key = node.target, self._memory.key(plain), tuple(order[n] for n in given)
        if key not in self._bodies:
            self._bodies[key] = self._traced(node.target, args, kwargs, given)
        return self._bodies[key]

    def _traced(self, target: Any, args: Any, kwargs: Any, given: list[fx.Node]) -> fx.Graph:
        from torch._dispatch.python import enable_python_dispatcher
        from torch.fx.experimental.proxy_tensor import make_fx

        values = [n.meta["val"] for n in given]
        if not all(isinstance(v, (FakeTensor, torch.SymInt)) for v in values):
            raise _WholeError

        compute = self._body_of(target)
        assert compute is not None

        def run(*tensors: Any) -> Any:
            each = iter(tensors)
            stated, named = fx.node.map_arg((args, kwargs), lambda _: next(each))
            return compute(*stated, **named)

        with enable_python_dispatcher():
            body: fx.Graph = make_fx(run, decomposition_table=dict(self._table))(*values).graph
        body.eliminate_dead_code()
        for step in body.nodes:
            plain = step.op in ("placeholder", "output") or (step.op == "call_function" and not writes(step.target))
            if not plain or chosen_at_run_time(step.target) or _symbol(step):
                raise _WholeError
        if not isinstance(body.output_node().args[0], fx.Node):
            raise _WholeError
        return body

    def _write(self, node: fx.Node) -> None:
        """An operator that writes into one buffer and whose result nobody reads, as a function of that buffer."""
        place = written_place(node)
        old = None if place is None else node.args[place]
        if place is None or not isinstance(old, fx.Node) or old.name not in self._buffers:
            raise _WholeError
        before = self._now(old)
        if before.users:
            raise _WholeError  # a view taken before is to show what is written
        target, args, kwargs, index = functional(node, place, before, self._now)
        values = fx.node.map_arg(kwargs, lambda n: n.meta["val"])
        value = self._memory.call(lambda t, a, k: t(*a, **k), target, args, values, None)
        whole = self._put(node, target, args, kwargs, value)
        result = self._put(node, operator.getitem, (whole, index), {}, value[-1])
        self._written[self._copied[old]] = result

    def _signature(self) -> ExportGraphSignature:
        written = {after.name: self._buffers[before.name] for before, after in self._written.items()}
        outputs: Any = self._graph.output_node().args[0]
        return functional_signature(self._exported.graph_signature, self._specs, written, outputs)


def _values(graph: fx.Graph) -> Iterator[Any]:
    return (n.meta.get("val") for n in graph.nodes)


def _plain(target: Any) -> bool:
    """Arithmetic of numbers, and taking an element."""
    return target is operator.getitem or getattr(target, "__module__", "") == "_operator"


def _symbol(node: fx.Node) -> bool:
    """True for a number of a graph that is made in another way than by arithmetic and from sizes."""
    number = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
    return node.op == "call_function" and number and node.target is not _SIZE and not _plain(node.target)


def _plain_symbol(number: Any) -> bool:
    return isinstance(number, torch.SymInt) and bool(number.node.expr.is_Symbol)


def _dims(node: fx.Node, expression: Any) -> list[int]:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, FakeTensor) else ()
    return [d for d, s in enumerate(sizes) if isinstance(s, torch.SymInt) and s.node.expr == expression]

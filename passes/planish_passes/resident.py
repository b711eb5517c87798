"""Caches of a fixed size that a program writes into, for runtimes that keep them inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import SymInt, Tensor, fx

import planish_passes.decoder_ops  # noqa: F401  (registers the operators)
from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult
from planish_passes.match import is_op
from planish_passes.program import Port, Program, finish, module_path


@dataclass(frozen=True)
class Resident:
    """Caches that grow from call to call become buffers of `context` tokens, into which each call writes its slots.

    The program stays a function: buffers come in and go out whole. What lies behind a token's own slot is masked, so
    a buffer needs no cleaning: a text that begins at slot 0 sees nothing of the one before.

    Args:
        context: tokens that the caches hold.
        sizes: fixed sizes of other dynamic dimensions ("source").
        slots: name of the input that tells the place of each new token, int64 [1, Q].
    """

    context: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    slots: str = "position_ids"

    def run(self, program: Program) -> PassResult:
        """See the class.

        Raises:
            PlanishError: some part of the model needs to know how many tokens are cached.
        """
        if not program.states:
            return PassResult(program, 0)
        inputs = _inputs(program)
        inner = {i for _, i in program.states}
        changed = sum(self._settle(node, inputs[self.slots]) for node in list(program.graph.nodes))
        _count(program, [inputs[name] for name in inner], inputs[self.slots], self.context)
        sizes = {**self.sizes, "batch": 1}
        whole = {**sizes, "past": self.context}
        ports = tuple(self._fixed(p, whole if p.name in inner else sizes) for p in program.inputs)
        _propagate(program, {inputs[p.name]: p for p in ports})
        program = finish(program)
        returned: Any = program.graph.output_node().args[0]
        outputs = []
        for port, node in zip(program.outputs, returned, strict=True):
            shape = tuple(d if isinstance(d, int) else "sequence" for d in node.meta["val"].shape)
            outputs.append(replace(port, shape=shape))
        _demand_fixed(outputs, {o for o, _ in program.states})
        axes = {"sequence": (1, self.context)} if "sequence" in program.axes else {}
        return PassResult(replace(program, inputs=ports, outputs=tuple(outputs), axes=axes), changed)

    def _settle(self, node: fx.Node, slots: fx.Node) -> int:
        ops = torch.ops.planish
        if is_op(node, "planish.cached_attention"):
            node.target = ops.resident_attention.default
        elif is_op(node, "planish.kv_append"):
            node.target, node.args = ops.cache_write.default, (*node.args, slots)
        elif is_op(node, "planish.causal_mask"):
            node.update_arg(1, self.context)
        else:
            return 0
        return 1

    def _fixed(self, port: Port, sizes: Mapping[str, int]) -> Port:
        return replace(port, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in port.shape))


def _inputs(program: Program) -> dict[str, fx.Node]:
    names = program.weight_names()
    users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]
    return dict(zip((p.name for p in program.inputs), users, strict=True))


def _count(program: Program, caches: Sequence[fx.Node], slots: fx.Node, context: int) -> None:
    """What was "cached and new tokens" is the whole buffer; what was "cached tokens" is the first slot of a call."""
    pasts = {str(c.meta["val"].shape[2]) for c in caches}
    new = slots.meta["val"].shape[1]
    lengths = {str(c.meta["val"].shape[2] + new) for c in caches}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), SymInt):
            continue
        if str(node.meta["val"]) in lengths:
            _make_literal(node, context)
        elif str(node.meta["val"]) in pasts:
            for user in [u for u in node.users if u.op == "call_function"]:
                _begin_at_first_slot(program.graph, user, node, slots)


def _begin_at_first_slot(graph: fx.Graph, user: fx.Node, past: fx.Node, slots: fx.Node) -> None:
    value = user.meta.get("val")
    if isinstance(value, SymInt):
        return  # a size that is looked at when it is used itself
    if not (is_op(user, "aten.add") and isinstance(value, Tensor) and value.dtype == torch.int64):
        raise _outside(user, f"{user.target} reads their number")
    select = torch.ops.aten.select.int
    with graph.inserting_before(user):
        row = graph.call_function(select, (slots, 0, 0))
        first = graph.call_function(select, (row, 0, 0))
    user.replace_input_with(past, first)


def _outside(node: fx.Node, why: str) -> PlanishError:
    return PlanishError(
        f"the model counts cached tokens outside its attention: {why}",
        module_path(node) or node.name,
        "choose a target whose caches grow (onnxruntime), or report the model's config.json",
    )


def _propagate(program: Program, ports: Mapping[fx.Node, Port]) -> None:
    """Shapes of all nodes anew; the number of new tokens stays a symbol."""
    values: dict[fx.Node, Any] = {}
    mode = next(n.meta["val"].fake_mode for n in ports)
    with mode, torch.no_grad():
        for node in list(program.graph.nodes):
            if node.op == "placeholder":
                old, port = node.meta["val"], ports.get(node)
                if port is not None:
                    shape = [d if isinstance(d, int) else s for d, s in zip(port.shape, old.shape, strict=True)]
                    node.meta["val"] = torch.empty(shape, dtype=old.dtype)
                values[node] = node.meta["val"]
            elif node.op == "call_function":
                values[node] = node.meta["val"] = _call(node, values)
                if isinstance(values[node], (int, bool)):
                    _make_literal(node, values[node])


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])  # type: ignore[misc]
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, ValueError) as problem:
        raise _outside(node, " ".join(str(problem).split())[:200]) from problem


def _make_literal(node: fx.Node, value: int) -> None:
    for user in list(node.users):
        user.args = fx.node.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.node.map_arg(user.kwargs, lambda n: value if n is node else n)


def _demand_fixed(outputs: list[Port], states: set[str]) -> None:
    for port in outputs:
        if port.name in states and any(isinstance(d, (str, SymInt)) for d in port.shape):
            raise AssertionError(f"the cache {port.name} still grows: {port.shape}")

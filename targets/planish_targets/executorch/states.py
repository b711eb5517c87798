"""Caches inside the program: what goes in and comes out as a state becomes a buffer that kernels write into.

Buffers that executorch's `llama::custom_sdpa` reads hold tokens first, [1, C, H, D]; the others keep the order of
attention, [H, C, 1, D], of which [1, H, C, D] is a view. `llama::update_cache` writes both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument

from planish_passes.program import Port, Program, finish, op_name
from planish_targets.executorch.edit import Call, caller, fake_mode, swap

KEPT = ("planish.resident_attention", "planish.cache_write")
SLOTS, PLACES = "position_ids", "cache_position"
_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Cache:
    """A buffer inside the artifact.

    Args:
        name: of the state that it was, e.g. "past_key_values.0.key".
        shape: as stored.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes; caches are float32."""
        return torch.Size(self.shape).numel() * 4


@contextlib.contextmanager
def settled(graph: fx.Graph) -> Iterator[None]:
    """Numbers of a graph that are known only at run time and that nobody took are forgotten behind this: the record of
    symbols is shared with the programs of other targets, whose next operator would be blamed for them."""
    environment = getattr(fake_mode(graph), "shape_env", None)
    try:
        yield
    finally:
        if environment is not None:
            environment.pending_fresh_unbacked_symbols.clear()


def inside(program: Program) -> tuple[Program, tuple[Cache, ...]]:
    """The program without its states, in the form of executorch's own runners: (input_ids [1, Q], cache_position [Q])
    -> logits; and its caches. Edits the program."""
    if not program.states:
        return program, ()
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers the operators)

    inputs = _inputs(program)
    places = _places(program, inputs[SLOTS])
    start = _start(program, places)
    caches: list[Cache] = []
    for node in [n for n in program.graph.nodes if n.op == "call_function" and op_name(n) in KEPT]:
        caches += _attend(program, node, start) if op_name(node) == KEPT[0] else _write(program, node, start)
    program = _without_states(program)
    kept = tuple(p for p in program.inputs if p.name not in {i for _, i in program.states})
    ports = tuple(Port(PLACES, p.dtype, p.shape[1:]) if p.name == SLOTS else p for p in kept)
    outputs = tuple(p for p in program.outputs if p.name not in {o for o, _ in program.states})
    _respecify(program, len(ports), len(outputs))
    return finish(replace(program, inputs=ports, outputs=outputs, states=())), tuple(caches)


def _respecify(program: Program, inputs: int, outputs: int) -> None:
    """How many tensors a call takes and returns, as the exported program records it."""
    entry = next(e for e in program.exported._module_call_graph if e.fqn == "")
    signature = entry.signature
    assert signature is not None
    given: tuple[tuple[int, ...], dict[str, Any]] = (tuple(range(inputs)), {})
    returned = tuple(range(outputs))
    specs = {"in_spec": pytree.tree_structure(given), "out_spec": pytree.tree_structure(returned)}
    fresh = replace(entry, signature=replace(signature, inputs=[], outputs=[], forward_arg_names=None, **specs))
    program.exported._module_call_graph[:] = [fresh]


def _inputs(program: Program) -> dict[str, fx.Node]:
    names = program.weight_names()
    users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in names]
    return dict(zip((p.name for p in program.inputs), users, strict=True))


def _places(program: Program, slots: fx.Node) -> fx.Node:
    """The slots [1, Q] as a view of the input [Q] that executorch's runners give."""
    before = next(n for n in program.graph.nodes if n.op == "call_function")
    old = slots.meta["val"]
    readers = list(slots.users)
    with fake_mode(program.graph):
        slots.meta["val"] = torch.empty((old.shape[1],), dtype=old.dtype)
    view = caller(program.graph, slots, before)(_ATEN.unsqueeze.default, slots, 0)
    for reader in readers:
        reader.replace_input_with(slots, view)
    return slots


def _start(program: Program, places: fx.Node) -> fx.Node:
    """The first slot as a number of the graph."""
    from torch.fx.experimental.symbolic_shapes import compute_unbacked_bindings

    before = next(n for n in program.graph.nodes if n.op == "call_function" and n.op != "placeholder")
    call = caller(program.graph, places, before)
    first = call(_ATEN.select.int, places, 0, 0)
    start = call(_ATEN.item.default, first)
    environment = fake_mode(program.graph).shape_env
    bindings = compute_unbacked_bindings(environment, start.meta["val"])
    if bindings:
        start.meta["unbacked_bindings"] = bindings
    torch._check(start.meta["val"] >= 0)
    return start


def _attend(program: Program, node: fx.Node, start: fx.Node) -> list[Cache]:
    q, k, v, cache_k, cache_v, _, _, _, scale, _, _, _ = node.args
    assert isinstance(cache_k, fx.Node)
    assert isinstance(cache_v, fx.Node)
    call, ops = caller(program.graph, node), torch.ops.llama
    q, k, v = (_tokens_first(call, n) for n in (q, k, v))
    caches = [_resize(program, cache, (1, 2)) for cache in (cache_k, cache_v)]
    for new, cache in ((k, cache_k), (v, cache_v)):
        call(ops.update_cache.default, new, cache, start)
    out = call(ops.custom_sdpa.default, q, cache_k, cache_v, start, None, 0.0, True, scale)
    for part in list(node.users):
        if part.args[1] == 0:
            swap(program.graph, part, out)
    return caches


def _tokens_first(call: Call, node: Any) -> fx.Node:
    """[1, H, Q, D] -> [1, Q, H, D]."""
    moved = node.op == "call_function" and op_name(node) == "aten.transpose" and set(node.args[1:]) == {1, 2}
    source = node.args[0] if moved else call(_ATEN.transpose.int, node, 1, 2)
    contiguous = source.meta["val"].is_contiguous()
    return source if contiguous else call(_ATEN.clone.default, source, memory_format=torch.contiguous_format)


def _write(program: Program, node: fx.Node, start: fx.Node) -> list[Cache]:
    cache, new, _ = node.args
    assert isinstance(cache, fx.Node)
    call, shape = caller(program.graph, node), [int(s) for s in cache.meta["val"].shape]
    found = _resize(program, cache, (0, 1), squeeze=True)
    given = call(_ATEN.view.default, new, [shape[1], -1, 1, shape[3]])
    call(torch.ops.llama.update_cache.default, given, cache, start)
    swap(program.graph, node, call(_ATEN.view.default, cache, shape))
    return [found]


def _resize(program: Program, cache: fx.Node, swapped: tuple[int, int], *, squeeze: bool = False) -> Cache:
    shape = [int(s) for s in cache.meta["val"].shape]
    stored = (shape[1], shape[2], 1, shape[3]) if squeeze else (1, shape[2], shape[1], shape[3])
    with fake_mode(program.graph):
        cache.meta["val"] = torch.empty(stored, dtype=cache.meta["val"].dtype)
    name = next(n for n, node in _inputs(program).items() if node is cache)
    return Cache(name, stored)


def _without_states(program: Program) -> Program:
    """States out of the inputs and outputs; the inputs are buffers now."""
    exported, inputs = program.exported, _inputs(program)
    states = {i for _, i in program.states}
    signature = exported.graph_signature
    for name in states:
        node = inputs[name]
        index = next(i for i, s in enumerate(signature.input_specs) if getattr(s.arg, "name", "") == node.name)
        target = "cache." + name.removeprefix("past_key_values.")
        signature.input_specs[index] = InputSpec(InputKind.BUFFER, TensorArgument(node.name), target, persistent=True)
        exported._state_dict[target] = node.meta["val"]
        store = program.weights.with_tensor(target, torch.zeros(tuple(node.meta["val"].shape)))
        program = replace(program, weights=store)
    returned: Any = program.graph.output_node().args[0]
    gone = {o for o, _ in program.states}
    kept = [n for n, p in zip(returned, program.outputs, strict=True) if p.name not in gone]
    program.graph.output_node().args = (tuple(kept),)
    signature.output_specs[:] = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in kept]
    _placeholders_in_order(program)
    return program


def _placeholders_in_order(program: Program) -> None:
    """Buffers before user inputs, as the signature of an exported program demands."""
    signature, graph = program.exported.graph_signature, program.graph
    nodes = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    users = [s for s in signature.input_specs if s.kind == InputKind.USER_INPUT]
    signature.input_specs[:] = [s for s in signature.input_specs if s.kind != InputKind.USER_INPUT] + users
    anchor = next(n for n in graph.nodes if n.op != "placeholder")
    for spec in signature.input_specs:
        anchor.prepend(nodes[spec.arg.name])  # type: ignore[union-attr]

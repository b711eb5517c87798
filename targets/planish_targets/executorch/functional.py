"""Operators that write into buffers as functions, as executorch's passes want them, and the way back.

In between, a program is in the form of `torch.ops.higher_order.auto_functionalized_v2`: the call takes what the buffer
holds and returns, behind its own results, what it holds then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

_OWN = (InputKind.PARAMETER, InputKind.BUFFER)
_FUNCTION = torch.ops.higher_order.auto_functionalized_v2


def writes(target: Any) -> bool:
    """True for an operator that changes one of its arguments."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def written_place(node: fx.Node) -> int | None:
    """Which argument a call writes into; None where it cannot be made a function here."""
    target: Any = node.target
    arguments = target._schema.arguments
    places = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    if len(places) != 1 or node.users or places[0] >= len(node.args) or not target._schema.returns:
        return None
    if any(r.alias_info is not None for r in target._schema.returns):
        return None
    told = all(i < len(node.args) or a.name in node.kwargs or a.has_default_value() for i, a in enumerate(arguments))
    return places[0] if told else None


def functional(
    node: fx.Node, place: int, before: fx.Node, now: Callable[[Any], fx.Node]
) -> tuple[Any, Any, dict[str, Any], int]:
    """A call that writes as one that does not: target, arguments, and which of its results the buffer holds then.

    Args:
        node: the call.
        place: of the argument that it writes into, by `written_place`.
        before: what that buffer holds until then.
        now: node -> what stands for it.
    """
    target: Any = node.target
    arguments = target._schema.arguments
    named = {a.name: _given(node, i, a) for i, a in enumerate(arguments) if i != place}
    kwargs = {
        **fx.node.map_arg(named, now),
        f"_{arguments[place].name}_base_index": 0,
        "_all_bases": [before],
    }
    return _FUNCTION, (target,), kwargs, len(target._schema.returns)


def _given(node: fx.Node, place: int, argument: Any) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)


def write_again(exported: ExportedProgram) -> None:
    """Functions that `functional` made become the calls that they were. Others stay.

    What the program returns in the place of a buffer is then the buffer itself.
    """
    module = exported.graph_module
    with module._set_replace_hook(exported.graph_signature.get_replace_hook()):
        for node in module.graph.find_nodes(op="call_function", target=_FUNCTION):
            _write_again(node)
    module.recompile()


def _write_again(node: fx.Node) -> None:
    target: Any = node.args[0]
    bases: Any = node.kwargs["_all_bases"]
    arguments = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
    written = [a for a in arguments if f"_{a.name}_base_index" in node.kwargs]
    known = {a.name for a in arguments} | {f"_{a.name}_base_index" for a in written} | {"_all_bases"}
    if len(written) != 1 or len(bases) != 1 or set(node.kwargs) - known:
        return
    index = len(target._schema.returns)
    if any(u.target is not operator.getitem or u.args[1] != index for u in node.users):
        return
    given = {**node.kwargs, written[0].name: bases[0]}
    named = {a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given}
    placed = [given[a.name] for a in arguments if not a.kwarg_only]
    with node.graph.inserting_before(node):
        call = node.graph.call_function(target, tuple(placed), named)
    call.meta = {**node.meta, "val": node.meta["val"][:index] if index > 1 else node.meta["val"][0]}
    for result in list(node.users):
        result.replace_all_uses_with(bases[0])
        node.graph.erase_node(result)
    node.graph.erase_node(node)


def functional_signature(
    signature: ExportGraphSignature, inputs: Sequence[InputSpec], written: Mapping[str, str], outputs: Sequence[fx.Node]
) -> ExportGraphSignature:
    """The signature of a program that returns what its buffers hold, too.

    Args:
        signature: of the program that writes into them.
        inputs: its inputs in the order of the graph.
        written: output -> buffer, in the order of the graph.
        outputs: all that the graph returns, these first.
    """
    specs = [OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(o), buffer) for o, buffer in written.items()]
    kept = [
        replace(spec, arg=TensorArgument(n.name)) if isinstance(spec.arg, TensorArgument) else spec
        for spec, n in zip(signature.output_specs, outputs[len(specs) :], strict=True)
    ]
    return ExportGraphSignature([replace(s) for s in inputs], [*specs, *kept])


def ordered_inputs(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """Inputs in the order that torch gives them: parameters, then buffers, each as a walk over modules meets them."""
    places: dict[str, tuple[int, ...]] = {}
    children: dict[str, int] = {"": 0}  # path of a module -> its number among those of its parent
    counts: dict[str, int] = {}
    for spec in specs:
        if spec.kind not in _OWN or spec.target is None:
            continue
        *path, _ = spec.target.split(".")
        place: list[int] = []
        for depth in range(len(path)):
            parent, whole = ".".join(path[:depth]), ".".join(path[: depth + 1])
            if whole not in children:
                counts[parent] = counts.get(parent, 0) + 1
                children[whole] = counts[parent]
            place.append(children[whole])
        places[spec.target] = tuple(place)
    own = [sorted((s for s in specs if s.kind == k), key=lambda s: places[str(s.target)]) for k in _OWN]
    return [*own[0], *own[1], *(s for s in specs if s.kind not in _OWN)]

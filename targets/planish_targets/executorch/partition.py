"""Which operations go into which XNNPACK delegate: as few hand-overs as the graph's order allows, in linear time.

executorch's own partitioner tries all pairs of partitions and takes hours for a language model of 30 layers; it also
leaves neighbours apart that share a quantised input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

_WEIGHTS = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")


def partitioner() -> Any:
    """executorch's XNNPACK partitioner (its rules of what XNNPACK takes) with partitions by stage."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from torch.fx.passes.infra.partitioner import Partition

    class Staged(XnnpackPartitioner):  # type: ignore[misc]
        def generate_partitions(self, ep: Any) -> list[Any]:
            with still(ep):
                return self._stages(ep)

        def _stages(self, ep: Any) -> list[Any]:
            found = {n for group in self.get_matched_nodes_from_configs(ep) for n in group}
            matched = {n for n in found if n.op == "call_function"}
            weights = {s.arg.name for s in ep.graph_signature.input_specs if s.kind.name in _WEIGHTS}
            mutated = set(ep.graph_signature.buffers_to_mutate.values())
            buffers = {s.arg.name for s in ep.graph_signature.input_specs if s.target in mutated}
            constants = {n for n in ep.graph.nodes if n.op == "placeholder" and n.name in weights - buffers}
            stages: dict[int, list[fx.Node]] = {}
            numbers = staged(ep.graph.nodes, matched, constants)
            for node in found - matched:  # weights: where other delegates read them too, executorch makes copies
                numbers[node] = min(numbers[u] for u in node.users if u in matched)
            for node, stage in numbers.items():
                stages.setdefault(stage, []).append(node)
            return [Partition(id=i, nodes=nodes) for i, nodes in enumerate(stages.values())]

        def _check_if_called_from_to_backend(self) -> bool:
            return False  # looks through the whole stack for the sake of a warning

    return Staged()


class _Still(ExportGraphSignature):
    """A signature that does not change while it is asked, for every node and each of its inputs, what is what."""

    inputs_to_parameters = cached_property(lambda self: _plain(self).inputs_to_parameters)  # type: ignore[assignment]
    inputs_to_buffers = cached_property(lambda self: _plain(self).inputs_to_buffers)  # type: ignore[assignment]
    inputs_to_lifted_tensor_constants = cached_property(  # type: ignore[assignment]
        lambda self: _plain(self).inputs_to_lifted_tensor_constants
    )


def _plain(signature: ExportGraphSignature) -> ExportGraphSignature:
    return ExportGraphSignature(signature.input_specs, signature.output_specs)


@contextlib.contextmanager
def still(exported: ExportedProgram) -> Iterator[None]:
    """Within this, nothing changes the signature of a program, so that each of its tables is made once."""
    signature = exported.graph_signature
    exported._graph_signature = _Still(signature.input_specs, signature.output_specs)
    try:
        yield
    finally:
        exported._graph_signature = signature


def staged(
    nodes: Iterable[fx.Node], delegated: Collection[fx.Node], constants: Collection[fx.Node]
) -> dict[fx.Node, int]:
    """Delegated node -> number of its delegate.

    The number counts how often the longest way to a node leaves the delegates, so that what has one number can run at
    once: a way that leaves it and comes back would raise it. What depends on constants alone runs with its reader.

    Args:
        nodes: of a graph, in order.
        delegated: those that a delegate can take.
        constants: placeholders that are weights.
    """
    order = list(nodes)
    stages: dict[fx.Node, int] = {}
    fixed: set[fx.Node] = set()
    for node in order:
        if node.op in ("placeholder", "get_attr"):
            stages[node] = 0
            if node in constants:
                fixed.add(node)
            continue
        inputs = node.all_input_nodes
        enters = node in delegated
        stages[node] = max([stages[i] + (enters and i not in delegated) for i in inputs if i not in fixed], default=0)
        if node in delegated and inputs and all(i in fixed for i in inputs):
            fixed.add(node)
    for node in reversed(order):
        if node in fixed and node in delegated and node.users:
            stages[node] = min(stages[u] for u in node.users)
    return {n: stages[n] for n in order if n in delegated}

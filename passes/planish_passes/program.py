"""The program: torch's ExportedProgram plus lazy weights, named inputs and outputs, and what must be found in it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    TensorArgument,
)

from planish_passes.nodes import module_path, op_name
from planish_passes.text import dump
from planish_passes.weights import WeightStore

__all__ = ["Port", "Program", "add_weight", "copy_graph", "finish", "module_path", "op_name", "rebuild", "writes"]

_WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Port:
    """One input or output. A dimension is a number, or the name of a dynamic dimension ("batch", "sequence")."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Program:
    """One entry point of a model. Passes take and return programs; none changes one in place.

    Args:
        name: entry point ("encode", "decode", ...).
        exported: the graph; its tensors are fake, its weights are names that `weights` can read.
        weights: every weight and constant that the graph uses, by the target name in the graph signature.
        inputs: user inputs in call order.
        outputs: user outputs in order.
        expects: operator name -> how often the traced model called it; `assert_expected` enforces it.
        axes: dynamic dimension -> (smallest, largest) size; empty when every shape is fixed.
        states: (output, input) pairs: what a call returns as the first goes into the next call as the second.
        facts: what runtimes ask of a model beside its tensors: "bos_token_id", "eos_token_ids".
    """

    name: str
    exported: ExportedProgram
    weights: WeightStore
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    expects: Mapping[str, int] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    states: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The FX graph: placeholders (weights first, then inputs), calls, one output node."""
        return self.exported.graph

    def weight_names(self) -> dict[str, str]:
        """Placeholder node name -> weight name, for every placeholder that is not a user input."""
        return {
            s.arg.name: s.target
            for s in self.exported.graph_signature.input_specs
            if s.kind in _WEIGHT_KINDS and s.target is not None
        }

    def weight_of(self, node: object) -> str | None:
        """The weight name behind a node, or None when the node is not a weight placeholder."""
        return self.weight_names().get(node.name) if isinstance(node, fx.Node) else None

    def count(self) -> Counter[str]:
        """Operator name -> number of calls."""
        return Counter(op_name(n) for n in self.graph.nodes if n.op == "call_function")

    def copy(self) -> Program:
        """A program whose graph can be edited; weights and fake tensors are shared."""
        ep = self.exported
        module = fx.GraphModule(ep.graph_module, copy_graph(ep.graph))
        module.meta = dict(ep.graph_module.meta)
        signature = ExportGraphSignature(
            [copy.copy(s) for s in ep.graph_signature.input_specs],
            [copy.copy(s) for s in ep.graph_signature.output_specs],
        )
        # FX gives some names ("input") another form when it copies.
        names = {old.name: new.name for old, new in zip(ep.graph.nodes, module.graph.nodes, strict=True)}
        for spec in (*signature.input_specs, *signature.output_specs):
            if isinstance(spec.arg, TensorArgument):
                spec.arg = TensorArgument(names[spec.arg.name])
        return replace(self, exported=rebuild(ep, module, signature))

    def text(self) -> str:
        """A stable dump: operator, shapes, dtypes, arguments, source module. For tests, diffs and `explain`."""
        return dump(self)


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy whose nodes have the same names and their own `meta` dictionaries."""
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, mapping)
    old_output = graph.output_node()
    result = new.output(output)
    result.meta = dict(old_output.meta)
    for old, fresh in mapping.items():
        fresh.meta = dict(old.meta)
    return new


def rebuild(ep: ExportedProgram, module: fx.GraphModule, signature: ExportGraphSignature) -> ExportedProgram:
    """An ExportedProgram with another graph and signature, and its own dictionary of (fake) state."""
    return ep._update(module, signature, state_dict=dict(ep.state_dict))


def add_weight(program: Program, name: str, value: torch.Tensor) -> fx.Node:
    """Insert a placeholder for weight `name` before the user inputs. `value` is a fake tensor.

    The caller adds the same name to the weight store.
    """
    signature = program.exported.graph_signature
    first_user = next(i for i, s in enumerate(signature.input_specs) if s.kind == InputKind.USER_INPUT)
    anchor = [n for n in program.graph.nodes if n.op == "placeholder"][first_user]
    with program.graph.inserting_before(anchor):
        node = program.graph.placeholder("w_" + "".join(c if c.isalnum() else "_" for c in name))
    node.meta["val"] = value
    spec = InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)
    signature.input_specs.insert(first_user, spec)
    program.exported._state_dict[name] = value
    return node


def finish(program: Program) -> Program:
    """Settle the signature, drop dead nodes and weights that nothing uses. Every edit ends here."""
    graph, ep = program.graph, program.exported
    _rename_outputs(program)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output") or writes(n))
    names = program.weight_names()
    dead = {n.name for n in graph.nodes if n.op == "placeholder" and n.name in names and not n.users}
    for node in [n for n in graph.nodes if n.name in dead]:
        graph.erase_node(node)
    signature = ep.graph_signature
    signature.input_specs[:] = [s for s in signature.input_specs if getattr(s.arg, "name", None) not in dead]
    used = {s.target for s in signature.input_specs if s.target is not None}
    for store in (ep._state_dict, ep._constants):
        for name in [n for n in store if n not in used]:
            del store[name]
    return replace(program, weights=program.weights.keep(used))


def writes(node: fx.Node) -> bool:
    """True for an operator that changes the values of an argument in place; what it returns may go unused."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable and op_name(node) != "aten.detach_"


def _rename_outputs(program: Program) -> None:
    """Make the signature name the nodes that the output node returns, after outputs were replaced."""
    returned = program.graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    specs = program.exported.graph_signature.output_specs
    for spec, node in zip(specs, returned, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT and isinstance(node, fx.Node):
            spec.arg = TensorArgument(node.name)

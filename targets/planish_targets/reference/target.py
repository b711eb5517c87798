"""Reference target: torch's own saved program (.pt2), run by torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, fx

from planish_passes.infra import Pass
from planish_passes.ops import BODIES
from planish_passes.program import Program, module_path, op_name
from planish_passes.quantise import SCALES, VALUES, ZEROS
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets.attributes import attributes, fx_number, fx_steps
from planish_targets.contract import (
    Artifact,
    Attribute,
    Capabilities,
    Evidence,
    Numerics,
    Placed,
    Placement,
    Recipe,
    Runner,
)

_FILE = "model.pt2"

_CAPABILITIES = Capabilities(
    keeps=frozenset(f"planish.{op._schema.name.split('::')[1]}" for op in BODIES),
    bits=frozenset({2, 4, 8}),
    dynamic_shapes=True,
    caches=True,
    default=False,
)


@dataclass(frozen=True)
class ReferenceTarget:
    """Keeps every composite and every dynamic shape."""

    name: str = "reference"
    summary: str = "the program itself in torch (.pt2), for comparison and debugging"
    requires: Mapping[str, str] = field(default_factory=lambda: {"torch": ">=2.11,<3"})
    extra: str = ""
    capabilities: Capabilities = _CAPABILITIES

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32 throughout; activations are not rounded."""
        return Numerics()

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """None."""
        return ()

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Save the program with its weights."""
        exported = materialise(program)
        torch.export.save(exported, into / _FILE)
        options = {
            "inputs": [p.name for p in program.inputs],
            "outputs": [p.name for p in program.outputs],
            "modules": {n.name: module_path(n) for n in program.graph.nodes if n.op == "call_function"},
        }
        return Artifact(self.name, into, _FILE, options)

    def runner(self, artifact: Artifact) -> Runner:
        """torch, in a process of its own."""
        command = (sys.executable, "-m", "planish_targets.reference.run")
        return Runner(command, Evidence.EXECUTED, "torch CPU", several=True)

    def placement(self, artifact: Artifact) -> Placement:
        """Everything runs in torch."""
        graph = torch.export.load(artifact.path).graph
        nodes = (n for n in graph.nodes if n.op == "call_function")
        return Placement("torch", tuple(Placed(n.name, op_name(n), "accelerated", "torch") for n in nodes))

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales of the saved state."""
        state = torch.export.load(artifact.path).state_dict
        names = [n.removesuffix(VALUES) for n in state if n.endswith(VALUES)]
        read = state.get
        return {
            n: QuantizedTensor(state[n + VALUES], state[n + SCALES], read(n + ZEROS), WeightFormat()) for n in names
        }

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]]:
        """Epsilons of the saved graph."""
        exported, modules = torch.export.load(artifact.path), artifact.options.get("modules", {})
        assert isinstance(modules, Mapping)
        weights = {s.arg.name: s.target for s in exported.graph_signature.input_specs if s.target is not None}
        for node in exported.graph.nodes:
            node.meta["planish_module"] = modules.get(node.name, "")

        def read(node: fx.Node) -> Tensor | None:
            value = exported.state_dict.get(weights.get(node.name, ""))
            return value if value is not None and value.numel() == 1 and value.is_floating_point() else None

        return {artifact.entry: attributes(fx_steps(exported.graph), lambda key: fx_number(key, read))}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operators, dtypes and ports of a .pt2 file."""
        if path.suffix != ".pt2":
            return None
        from collections import Counter

        exported = torch.export.load(path)
        ops = Counter(op_name(n) for n in exported.graph.nodes if n.op == "call_function")
        dtypes: Counter[str] = Counter()
        for tensor in exported.state_dict.values():
            dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
        ports = exported.graph_signature
        return {
            "format": "torch ExportedProgram",
            "ops": dict(ops),
            "dtypes": dict(dtypes),
            "inputs": list(ports.user_inputs),
            "outputs": list(ports.user_outputs),
            "bytes": path.stat().st_size,
        }


def materialise(program: Program) -> torch.export.ExportedProgram:
    """The program with all its weights in memory (for SDKs that cannot stream them)."""
    copied = program.copy().exported
    for name in list(copied.state_dict):
        copied._state_dict[name] = program.weights.read(name)
    copied._example_inputs = None
    return copied

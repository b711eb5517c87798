"""ONNX Runtime target."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from planish_passes.infra import Pass
from planish_passes.numerics import BY_ROLE
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
from planish_targets.contract import (
    Artifact,
    Capabilities,
    Evidence,
    Numerics,
    Placed,
    Placement,
    Recipe,
    Runner,
    Unavailable,
)

OPSET = 21
FILE = "model.onnx"

_CAPABILITIES = Capabilities(keeps=frozenset({"planish.linear_q", "planish.embedding_q"}), dynamic_shapes=True)


@dataclass(frozen=True)
class OnnxRuntimeTarget:
    """CPU kernels of ONNX Runtime; the same file serves Android, iOS, Windows, Linux and macOS."""

    name: str = "onnxruntime"
    summary: str = "ONNX Runtime: .onnx, .ort and the operator list for a reduced mobile build"
    requires: Mapping[str, str] = field(
        default_factory=lambda: {"onnxruntime": ">=1.22,<2", "onnx": ">=1.18,<2", "onnxscript": ">=0.7,<1"}
    )
    extra: str = "onnxruntime"
    capabilities: Capabilities = _CAPABILITIES

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32; inputs of 8-bit linears are rounded per token, by role."""
        return Numerics(activations=BY_ROLE if recipe.bits == 8 else "none")

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """None: the shared form is what this target wants."""
        return ()

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write model.onnx, model.ort with the weights of both, and the operator list."""
        from planish_targets.onnx_graph.save import save
        from planish_targets.onnx_graph.tidy import tidy
        from planish_targets.onnx_graph.translate import translate
        from planish_targets.onnxruntime.composites import translations
        from planish_targets.onnxruntime.mobile import add_mobile_form

        model = translate(program, translations(), OPSET)
        weights = tidy(model, program.weights)
        save(model, weights, into / FILE)
        notes = add_mobile_form(into, FILE)
        return Artifact(self.name, into, FILE, {"outputs": [p.name for p in program.outputs]}, notes)

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The CPU execution provider, in a process of its own."""
        if find_spec("onnxruntime") is None:
            return Unavailable("onnxruntime is not installed (pip install 'planish[onnxruntime]')")
        command = (sys.executable, "-m", "planish_targets.onnxruntime.run")
        return Runner(command, Evidence.EXECUTED, "ONNX Runtime CPU")

    def placement(self, artifact: Artifact) -> Placement:
        """Every operator runs on the CPU provider, which is what this target is."""
        import onnx

        model = onnx.load(artifact.path, load_external_data=False)
        nodes = tuple(
            Placed(
                n.name,
                f"{n.domain}::{n.op_type}" if n.domain else n.op_type,
                "accelerated",
                "CPUExecutionProvider",
                module=next((p.value for p in n.metadata_props if p.key == "planish.module"), ""),
            )
            for n in model.graph.node
        )
        return Placement("the CPU provider has a kernel for every operator that the session loads", nodes)

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales from the file and its external data."""
        from planish_targets.onnx_graph.read import quantized_weights

        return quantized_weights(artifact.path)

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operators, dtypes and ports of an .onnx file."""
        if path.suffix != ".onnx":
            return None
        from planish_targets.onnx_graph.read import describe

        return describe(path)

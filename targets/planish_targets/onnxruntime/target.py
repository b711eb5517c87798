"""ONNX Runtime target."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from planish_passes import pipeline
from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.infra import Pass
from planish_passes.numerics import BY_BLOCK
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
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
    Unavailable,
)

OPSET = 21
FILE = "model.onnx"
LARGEST_ORT = 500_000_000  # bytes; the converter loads the whole model, and the format holds less than 2 GB

_QUANTISED = ("linear_q", "embedding_q", "linear_minima", "embedding_minima")
_ALWAYS = frozenset(f"planish.{n}" for n in (*_QUANTISED, "rms_norm", "gated"))
_FORMED = frozenset({"planish.cached_attention", "planish.rope"})  # DecoderForm turns them into kernels, where it can
_KERNELS = frozenset({"planish.group_query_attention", "planish.gated_halves", "planish.cache_lengths"})
_CAPABILITIES = Capabilities(keeps=_ALWAYS | _FORMED, bits=frozenset({4, 8}), dynamic_shapes=True, caches=True)


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
        """float32; inputs of linears with one scale per channel are rounded by role, of others by group."""
        return Numerics(activations=BY_BLOCK if recipe.bits else "none")

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Decoders in the form of the fastest kernels; encoders are taken as they are."""
        from planish_targets.onnx_graph.decoder_form import DecoderForm

        return (*pipeline.packed(), DecoderForm(), Expand(_ALWAYS | _KERNELS), Canonicalise())

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write model.onnx, model.ort with the weights of both, and the operator list."""
        from planish_targets.onnx_graph.pack import fold_packing
        from planish_targets.onnx_graph.save import save
        from planish_targets.onnx_graph.tidy import tidy
        from planish_targets.onnx_graph.translate import translate
        from planish_targets.onnxruntime.composites import translations
        from planish_targets.onnxruntime.mobile import add_mobile_form

        model = translate(program, translations(), OPSET)
        weights, aliases = fold_packing(model, program.weights)
        save(model, tidy(model, weights), into / FILE, aliases)
        size = sum(f.stat().st_size for f in into.iterdir())
        notes: tuple[str, ...] = (f"no model.ort: {size / 1e9:.1f} GB are beyond what that format is made for",)
        if size <= LARGEST_ORT:
            notes = add_mobile_form(into, FILE)
        options: dict[str, object] = {"outputs": [p.name for p in program.outputs]}
        if program.count()["planish.group_query_attention"] * 2 == len(program.states) > 0:
            # The kernel writes new keys and values behind the past: a caller may give one buffer for both.
            options["shared_buffers"] = [[past, present] for present, past in program.states]
        return Artifact(self.name, into, FILE, options, notes)

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The CPU execution provider, in a process of its own."""
        if find_spec("onnxruntime") is None:
            return Unavailable("onnxruntime is not installed (pip install 'planish[onnxruntime]')")
        command = (sys.executable, "-m", "planish_targets.onnxruntime.run")
        return Runner(command, Evidence.EXECUTED, "ONNX Runtime CPU", several=True)

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

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]]:
        """Epsilons of model.onnx and of model.ort."""
        from planish_targets.onnx_graph.attributes import module_names, read_onnx, read_ort
        from planish_targets.onnxruntime.mobile import ORT_FILE

        mobile = artifact.folder / ORT_FILE
        return {FILE: read_onnx(artifact.path), ORT_FILE: read_ort(mobile, module_names(artifact.path))}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operators, dtypes and ports of an .onnx file."""
        if path.suffix != ".onnx":
            return None
        from planish_targets.onnx_graph.read import describe

        return describe(path)

"""executorch's Core ML delegate: Neural Engine, GPU and CPU of Apple devices, from one .pte."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
from planish_passes.infra import Pass
from planish_passes.program import Program
from planish_targets.contract import Capabilities, Missing, Numerics, Recipe
from planish_targets.executorch.delegates import coreml_package
from planish_targets.executorch.delegates.delegate import Payload, Steps
from planish_targets.executorch.forms import Share
from planish_targets.executorch.lower import to_edge
from planish_targets.executorch.pte import PteFile


@dataclass(frozen=True)
class CoreML:
    """float16 on all compute units, for iOS 18 and macOS 15, as the target `coreml` is."""

    name: str = "coreml"
    backend: str = "CoreMLBackend"
    summary: str = "ExecuTorch program (.pte) for Apple devices, by the Core ML delegate; compile-only"
    requires: Mapping[str, str] = field(default_factory=lambda: {"coremltools": ">=9.0,<10"})
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(keeps=frozenset(), bits=frozenset()))
    advice: tuple[str, ...] = (
        "which of the Core ML operations run on the Neural Engine is decided on the device; for Apple alone, target "
        "coreml makes a package with caches and compressed weights",
    )
    variables: tuple[str, ...] = ()

    def missing(self) -> Missing | None:
        """Nothing: executorch and coremltools lower to it, on any system."""
        return None

    def numerics(self, recipe: Recipe) -> Numerics:
        """float16 weights and activations."""
        return Numerics(weights=torch.float16, compute=torch.float16)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """coremltools takes torch's own operators."""
        return (Expand(frozenset()), Canonicalise(), FoldConstants(), Share())

    def check(self, program: Program) -> None:
        """Nothing more than the capabilities say."""

    def edge(self, exported: ExportedProgram, facts: Mapping[str, object], reasons: MutableMapping[str, str]) -> Any:
        """With executorch's own partitioner."""
        from planish_targets.coreml import sdk

        ct = sdk.load().ct
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        specs = CoreMLBackend.generate_compile_specs(
            compute_unit=ct.ComputeUnit.ALL,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT16,
        )
        edge = to_edge(exported, facts, CoreMLPartitioner(compile_specs=specs))
        for node in edge.exported_program().graph.nodes:
            _explain(node, reasons)
        return edge

    def payload(self, file: PteFile, index: int) -> Payload:
        """By the reader of ML Programs of the target `coreml`."""
        return coreml_package.payload(file, index)

    def steps(self, file: PteFile, index: int, modules: Mapping[str, str]) -> Steps:
        """By the reader of ML Programs of the target `coreml`."""
        return coreml_package.package_steps(file, index, modules)


def _explain(node: fx.Node, reasons: MutableMapping[str, str]) -> None:
    schema = getattr(node.target, "_schema", None)
    if node.op == "call_function" and schema is not None:
        reasons[schema.name] = "executorch's Core ML partitioner: coremltools does not take it"

"""Core ML: an ML program (.mlpackage) for iOS 18 and macOS 15, fp16 compute, weights compressed from our integers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from planish_passes.errors import PlanishError
from planish_passes.infra import Pass
from planish_passes.palette import Palette
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
from planish_targets.contract import (
    Artifact,
    Attribute,
    Capabilities,
    Evidence,
    Numerics,
    Placement,
    Recipe,
    Runner,
    Unavailable,
    Wishes,
)

_PACKAGE = "model.mlpackage"
_KEEPS = "attention linear_q embedding_q linear_lut cache_write resident_attention causal_mask rope rms_norm gated"
_CAPABILITIES = Capabilities(
    keeps=frozenset(f"planish.{name}" for name in _KEEPS.split()),
    bits=frozenset({4, 8}),
    caches=True,
    resident=2048,
    ranged=frozenset({"sequence"}),
)
_NO_WISHES = Wishes()
# Tokens of one call: one function decodes, one takes prompts. Both share states and weights.
CHUNKS = (1, 64)


@dataclass(frozen=True)
class CoreMLTarget:
    """Keeps attention and the quantised operators; everything else becomes MIL operations one by one."""

    name: str = "coreml"
    summary: str = "Core ML program (.mlpackage) for iOS 18 / macOS 15: Neural Engine, GPU or CPU"
    requires: Mapping[str, str] = field(default_factory=lambda: {"coremltools": ">=9.0,<10"})
    extra: str = "coreml"
    capabilities: Capabilities = _CAPABILITIES
    wishes: Wishes = _NO_WISHES

    def adapted(self, wishes: Wishes) -> CoreMLTarget:
        """See contract.Adapts."""
        if not wishes.ane:
            return replace(self, wishes=wishes)
        if wishes.lengths:
            raise PlanishError(
                "flexible shapes are said to leave the Neural Engine (github.com/apple/coremltools/issues/1764)",
                "--ane with several lengths",
                "name one --sequence-length, or leave --ane out",
            )
        return replace(self, wishes=wishes, capabilities=replace(self.capabilities, ranged=frozenset()))

    def numerics(self, recipe: Recipe) -> Numerics:
        """fp16 weights and activations; activations are not quantised."""
        return Numerics(weights=torch.float16, compute=torch.float16, epsilons=torch.float16)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """None."""
        return ()

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write model.mlpackage. See `planish_targets.coreml.lower`."""
        from planish_targets.coreml.lower import lower, modules
        from planish_targets.coreml.versions import DEFAULT, spoken

        written = lower(program, into / _PACKAGE, CHUNKS, self.wishes)
        states = {name for pair in program.states for name in pair}
        options: dict[str, object] = {
            "inputs": [p.name for p in program.inputs if p.name not in states],
            "outputs": [p.name for p in program.outputs if p.name not in states],
            "precision": "fp32",
            "weights": written.weights,
            "modules": modules(program),
            "values": written.values,
            "opens_on": spoken(self.wishes.minimum_ios or DEFAULT),
        }
        if program.axes and self.wishes.lengths:
            options["lengths"] = self.wishes.lengths
        if states:
            options["context"] = next(p.shape[2] for p in program.inputs if p.name in states)
            options["functions"] = written.functions
            if written.masks:
                options["masks"] = {m.name: [m.window, m.chunk] for m in written.masks}
            options["logits"] = (
                "last" if next(p for p in program.outputs if p.name == "logits").shape[1] == 1 else "all"
            )
        return Artifact(self.name, into, _PACKAGE, options, written.notes)

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """Core ML itself on macOS; elsewhere the MIL interpreter (option "precision": fp32 or fp16)."""
        if find_spec("coremltools") is None:
            return Unavailable("coremltools is not installed: pip install 'planish[coreml]'")
        command = (sys.executable, "-m", "planish_targets.coreml.run")
        if sys.platform == "darwin":
            return Runner((*command, "--native"), Evidence.EXECUTED, "Core ML", several=True)
        finer = torch.float32 if artifact.options.get("precision", "fp32") == "fp32" else None
        return Runner(command, Evidence.EMULATED, "MIL interpreter", finer, several=True)

    def placement(self, artifact: Artifact) -> Placement:
        """Core ML's own plan on macOS, unknown elsewhere; and advice. See `planish_targets.coreml.advice`."""
        from planish_targets.coreml import plan
        from planish_targets.coreml.advice import placement

        return placement(artifact, plan.ask(artifact.path))

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales of the saved package."""
        from planish_targets.coreml.weights import read_weights

        return read_weights(artifact)

    def read_palettes(self, artifact: Artifact) -> Mapping[str, Palette]:
        """Indices and tables of the saved package."""
        from planish_targets.coreml.weights import read_palettes

        return read_palettes(artifact)

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]]:
        """Epsilons of the saved package, of each of its functions."""
        from planish_targets.coreml import mil
        from planish_targets.coreml.attributes import read

        modules = artifact.options.get("modules", {})
        assert isinstance(modules, Mapping)
        names = mil.functions(artifact.path)
        if len(names) == 1:
            return {artifact.entry: read(artifact.path, modules)}
        return {f"{artifact.entry}, function {n}": read(artifact.path, modules, n) for n in names}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operations, dtypes and ports of a .mlpackage."""
        from planish_targets.coreml.weights import inspect

        return inspect(path)

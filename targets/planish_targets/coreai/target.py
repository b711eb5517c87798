"""Core AI: a .aimodel for iOS 27 and macOS 27, float32 compute, weights compressed from our integers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
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
)
from planish_targets.coreai import sdk
from planish_targets.coreai.attention import KernelAttention
from planish_targets.coreai.compress import KEPT

_PACKAGE = "model.aimodel"
# Tokens of one call: one function decodes, one takes prompts. Both share states and weights.
CHUNKS = (1, 64)
_CAPABILITIES = Capabilities(
    keeps=KEPT | {"planish.attention"}, bits=frozenset({4, 8}), caches=True, resident=2048, default=False
)


@dataclass(frozen=True)
class CoreAITarget:
    """Everything but attention and quantised weights becomes torch's own operators, which coreai-torch converts."""

    name: str = "coreai"
    summary: str = "Core AI model (.aimodel) for iOS 27 / macOS 27; only when asked for"
    requires: Mapping[str, str] = field(
        default_factory=lambda: {"coreai-core": "==1.0.0b3", "coreai-torch": "==0.4.3", "torch": ">=2.13,<2.14"}
    )
    extra: str = "coreai"
    capabilities: Capabilities = _CAPABILITIES

    @property
    def varies(self) -> Mapping[str, str]:
        """See docs/decisions/0016-core-ai.md."""
        return {"*": "coreai-torch ends names of composites in random letters, and writes the time into metadata.json"}

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32; activations are not quantised."""
        return Numerics()

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Attention as the composite that Core AI has."""
        return (
            KernelAttention(),  # before what it leaves is expanded
            Expand(KEPT),
            Canonicalise(),  # the transpose behind attention cancels against the model's own
            FoldConstants(),  # masks that depend on nothing
        )

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write model.aimodel. See `planish_targets.coreai.lower`."""
        from planish_targets.coreai.lower import write
        from planish_targets.coreai.weights import locate

        written = write(program, into / _PACKAGE, CHUNKS)
        states = {name for pair in program.states for name in pair}
        options: dict[str, object] = {
            "inputs": [p.name for p in program.inputs if p.name not in states],
            "outputs": [p.name for p in program.outputs if p.name not in states],
            "modules": written.modules,
            "weights": locate(into / _PACKAGE, program),
        }
        if states:
            logits = next(p for p in program.outputs if p.name == "logits")
            options |= {
                "context": next(p.shape[2] for p in program.inputs if p.name in states),
                "functions": written.functions,
                "states": {name: list(shape) for name, shape in written.states},
                "logits": "last" if logits.shape[1] == 1 else "all",
            }
        return Artifact(self.name, into, _PACKAGE, options, _notes(states))

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The runtime of coreai-core, which computes on the CPU."""
        if reason := sdk.missing():
            return Unavailable(reason)
        command = (sys.executable, "-m", "planish_targets.coreai.run")
        return Runner(command, Evidence.EXECUTED, "Core AI runtime of coreai-core (CPU)", several=True)

    def placement(self, artifact: Artifact) -> Placement:
        """Unknown for every operation."""
        from planish_targets.coreai.asset import open_asset
        from planish_targets.coreai.placement import placement

        return placement(open_asset(artifact.path), _modules(artifact))

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales of the saved file."""
        return {n: t for n, t in _read(artifact).items() if isinstance(t, QuantizedTensor)}

    def read_palettes(self, artifact: Artifact) -> Mapping[str, Palette]:
        """Indices and tables of the saved file."""
        return {n: t for n, t in _read(artifact).items() if isinstance(t, Palette)}

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]]:
        """Epsilons of the saved file, of each of its functions."""
        from planish_targets.coreai.asset import open_asset
        from planish_targets.coreai.attributes import read

        asset, modules = open_asset(artifact.path), _modules(artifact)
        functions = asset.functions()
        label = "{}, function {}" if len(functions) > 1 else "{}"
        return {
            label.format(artifact.entry, name): read(asset, graph, modules.get(name, {}))
            for name, graph in functions.items()
        }

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Operations, dtypes, ports and states of a .aimodel."""
        from planish_targets.coreai.placement import describe

        return describe(path)


def _read(artifact: Artifact) -> dict[str, QuantizedTensor | Palette]:
    from planish_targets.coreai.weights import read

    places = artifact.options.get("weights")
    if not isinstance(places, dict):
        raise PlanishError(
            "a .aimodel holds no weight names, and this artifact comes without planish's record of them",
            str(artifact.path),
            "read it through its bundle, or compile the model again",
        )
    return read(artifact.path, places)


def _modules(artifact: Artifact) -> Mapping[str, Mapping[str, str]]:
    modules = artifact.options.get("modules", {})
    assert isinstance(modules, Mapping)
    return modules


def _notes(states: set[str]) -> tuple[str, ...]:
    notes: tuple[str, ...] = (
        "coreai: what runs in checks is coreai-core's own runtime, on a CPU; the Neural Engine and the GPU have "
        "compilers and kernels of their own, of which that says nothing",
    )
    if states:
        notes += (
            "coreai: an app zeroes the states before the first call; an NDArray that is made from a state's descriptor "
            "is not zeroed",
        )
    return notes

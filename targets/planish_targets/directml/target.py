"""DirectML target."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.expand import Expand
from planish_passes.infra import Pass
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
from planish_targets.directml import kernels
from planish_targets.directml.findings import MODEL
from planish_targets.directml.lower import OPSET, audited, write
from planish_targets.directml.rewrite import ScaleFirst
from planish_targets.directml.rules import DML, NodeCheck, check, shared_buffers
from planish_targets.directml.run import PACKAGE, provider

FILE = "model.onnx"
# Refusals that cost speed alone: ONNX Runtime runs the node on the CPU, and the placement says so.
_ONLY_SLOW = frozenset(("DML001-opset", "DML002-no-kernel", "DML002-version", "DML002-type"))
# Not all wrong by themselves, but promised away by this target: norms in float32, weights and attention in the one
# form that is known to be right, no control flow.
_PROMISED = frozenset(
    (
        *("DML005-gqa-inputs", "DML006-matmulnbits", "DML007-fused-attention", "DML009-packed-qkv"),
        *("DML010-control-flow", "DML015-fp16-norm", "DML016-support-query"),
    )
)
_CONTRACT = "DML014-io-contract"
_BINDING = (
    "bind each present to the buffer of its past (options.shared_buffers), and give a prompt in one call: "
    "DirectML's attention kernel writes in place, and takes the past as empty when several tokens come at once"
)
_QUANTISED = ("linear_q", "embedding_q", "linear_minima", "embedding_minima")
_ALWAYS = frozenset(f"planish.{n}" for n in (*_QUANTISED, "rms_norm", "gated"))
_FORMED = frozenset({"planish.cached_attention", "planish.rope"})  # the passes below make kernels of them
_KERNELS = frozenset(f"planish.{n}" for n in ("group_query_attention", "rotary_rows", "add_rms_norm", "cache_lengths"))
_CAPABILITIES = Capabilities(keeps=_ALWAYS | _FORMED, bits=frozenset({4, 8}), caches=True)


def _requires() -> Mapping[str, str]:
    package = PACKAGE if sys.platform == "win32" else "onnxruntime"
    return {package: ">=1.22,<2", "onnx": ">=1.18,<2", "onnxscript": ">=0.7,<1"}


@dataclass(frozen=True)
class DirectMLTarget:
    """Float16 arithmetic with norms and softmax in float32; integer weights stay one byte in the file."""

    name: str = "directml"
    summary: str = "Windows GPUs: a float16 .onnx file for ONNX Runtime's DirectML provider"
    requires: Mapping[str, str] = field(default_factory=_requires)
    extra: str = "directml"
    capabilities: Capabilities = _CAPABILITIES

    def numerics(self, recipe: Recipe) -> Numerics:
        """float16 weights and activations for every recipe; activations are never integers."""
        return Numerics(weights=torch.float16, compute=torch.float16)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Decoders: rotary positions and attention in forms of their own; then factors before products."""
        from planish_targets.directml.decoder_form import PlainAttention, RotaryRows
        from planish_targets.onnx_graph.decoder_form import DecoderForm

        return (
            PlainAttention(),
            RotaryRows(),
            DecoderForm(rotate=False, join_norms=True, packed=False),
            Expand(_ALWAYS | _KERNELS),
            ScaleFirst(),
            Canonicalise(),
        )

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write model.onnx and model.onnx.data.

        Raises:
            PlanishError: an operator has no form, or the written file breaks a rule of DirectML.
        """
        write(program, into / FILE)
        checks = check(into / FILE)
        refused = next((c for c in checks if _violates(c)), None)
        if refused is not None:
            raise PlanishError(
                f"DirectML cannot take {refused.op}: {refused.reason}",
                f"node {refused.node!r} in module {refused.module or '(top)'}",
                "compile for onnxruntime, which runs on the CPU of the same machine, or report the model's config.json",
            )
        away = [c for c in checks if c.node != MODEL and c.provider != DML]
        ops = ", ".join(sorted({c.op for c in away}))
        notes = [f"{len(away)} operations leave the GPU: {ops}"] if away else []
        options: dict[str, object] = {"outputs": [p.name for p in program.outputs], "opset": OPSET}
        options["all_on_device"] = not away
        shared = [list(pair) for pair in shared_buffers(into / FILE)]
        if shared:
            tokens = next([p.name, p.shape.index("sequence")] for p in program.inputs if "sequence" in p.shape)
            options |= {"shared_buffers": shared, "prompt_in_one_call": True, "new_tokens": tokens}
            notes.append(_BINDING)
        return Artifact(self.name, into, FILE, options, (*notes, *audited(program)))

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The DirectML provider on Windows; elsewhere the CPU provider, which rounds to float16 less often."""
        if find_spec("onnxruntime") is None:
            return Unavailable("onnxruntime is not installed (pip install 'planish[directml]')")
        command = (sys.executable, "-m", "planish_targets.directml.run")
        if provider() == DML:
            return Runner(command, Evidence.EXECUTED, "ONNX Runtime DirectML", several=True)
        device = "ONNX Runtime CPU in the place of DirectML"
        return Runner(command, Evidence.EMULATED, device, several=True)

    def placement(self, artifact: Artifact) -> Placement:
        """The static verdict on each node; nothing is run."""
        checks = check(artifact.path)
        nodes = tuple(_placed(c) for c in checks if c.node != MODEL)
        violations = tuple(_sentence(c) for c in checks if _violates(c)) + _undeclared(artifact)
        advice = tuple(f"structural: {_sentence(c)}" for c in checks if c.node == MODEL and not _violates(c))
        return Placement(f"kernel table of DirectML EP {kernels.VERSION}", nodes, violations, advice)

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """Integers and scales from the file and its external data."""
        from planish_targets.directml.read import read_weights

        return read_weights(artifact.path)

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]]:
        """Epsilons of the file."""
        from planish_targets.onnx_graph.attributes import read_onnx

        return {artifact.entry: read_onnx(artifact.path)}

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """None: the onnxruntime target describes .onnx files."""
        return None


def _undeclared(artifact: Artifact) -> tuple[str, ...]:
    declared = artifact.options.get("shared_buffers")
    known = {tuple(pair) for pair in declared} if isinstance(declared, list) else set()
    missing = [pair for pair in shared_buffers(artifact.path) if pair not in known]
    return tuple(f"{_CONTRACT}: {b} must share the buffer of {a}, and the artifact does not say so" for a, b in missing)


def _violates(found: NodeCheck) -> bool:
    if found.rule in _PROMISED:
        return True
    slow = found.node != MODEL and found.rule in _ONLY_SLOW
    return found.status == "refused" and not slow


def _placed(found: NodeCheck) -> Placed:
    module, reason = found.module or "", f"{found.reason} [{found.rule}]" if found.rule else found.reason
    if found.provider == DML and found.status == "registered":
        return Placed(found.node, found.op, "accelerated", DML, module=module)
    where = "fallback" if found.provider != DML and found.status != "unknown" else "unknown"
    return Placed(found.node, found.op, where, found.provider, reason, module)


def _sentence(found: NodeCheck) -> str:
    module = f" (module {found.module})" if found.module else ""
    return f"{found.rule}: {found.op} {found.node}{module}: {found.reason}"

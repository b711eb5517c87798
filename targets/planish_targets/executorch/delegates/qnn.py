"""executorch's QNN delegate: the Hexagon NPU of Qualcomm's chips. Never run: no machine with the SDK was at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
from planish_passes.infra import Pass
from planish_passes.program import Program
from planish_targets.contract import Capabilities, Missing, Numerics, Recipe, Unavailable
from planish_targets.executorch.forms import Share
from planish_targets.executorch.pte import PteFile
from planish_targets.executorch.retrace import compiled

ROOT, CHIP = "QNN_SDK_ROOT", "QNN_SOC_MODEL"
_LIBRARY = "lib/x86_64-linux-clang/libQnnHtp.so"
_CHIP = "SM8650"  # Snapdragon 8 Gen 3
_CLOSED = "payloads of QnnBackend are context binaries of Qualcomm's, whose format is not public"


@dataclass(frozen=True)
class Qnn:
    """float16 on the HTP, for one chip (environment variable QNN_SOC_MODEL)."""

    name: str = "qnn"
    backend: str = "QnnBackend"
    summary: str = "ExecuTorch program (.pte) for Qualcomm's Hexagon NPU, by the QNN delegate and its SDK; never run"
    requires: Mapping[str, str] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(keeps=frozenset(), bits=frozenset()))
    advice: tuple[str, ...] = (
        f"lowering to QNN follows executorch's sources and was never run; {CHIP} names the chip ({_CHIP} without it)",
    )
    variables: tuple[str, ...] = (ROOT, CHIP)

    def missing(self) -> Missing | None:
        """The SDK, which executorch would download otherwise: with its path in the environment it does not try."""
        root = os.environ.get(ROOT, "")
        mend = (
            f"install the Qualcomm AI Engine Direct SDK (Linux, x86-64) and set {ROOT} and LD_LIBRARY_PATH as it says"
        )
        if not root:
            return Missing(f"{ROOT} is not set, and planish downloads no SDK", mend)
        if not Path(root, _LIBRARY).is_file():
            return Missing(f"{ROOT} is {root}, and {_LIBRARY} is not in it", mend)
        return None

    def numerics(self, recipe: Recipe) -> Numerics:
        """float16 weights and activations."""
        return Numerics(weights=torch.float16, compute=torch.float16)

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Its own passes find the forms that it takes."""
        return (Expand(frozenset()), Canonicalise(), FoldConstants(), Share())

    def check(self, program: Program) -> None:
        """Nothing more than the capabilities say."""

    def edge(self, exported: ExportedProgram, facts: Mapping[str, object], reasons: MutableMapping[str, str]) -> Any:
        """With executorch's own way to QNN, which exports the program once more."""
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
        from executorch.backends.qualcomm.utils import utils

        chip = os.environ.get(CHIP, _CHIP)
        known = [c.name for c in QcomChipset]
        if chip not in known:
            raise ValueError(f"{CHIP}={chip} is no chip that executorch knows: {', '.join(known)}")
        specs = utils.generate_qnn_executorch_compiler_spec(
            soc_model=QcomChipset[chip], backend_options=utils.generate_htp_compiler_spec(use_fp16=True)
        )
        shapes = [n.meta["val"] for n in exported.graph.nodes if n.name in exported.graph_signature.user_inputs]
        given = tuple(torch.zeros([int(d) for d in s.shape], dtype=s.dtype) for s in shapes)
        with compiled():
            return utils.to_edge_transform_and_lower_to_qnn(
                exported.module(check_guards=False), given, specs, constant_methods=dict(facts) or None
            )

    def payload(self, file: PteFile, index: int) -> Unavailable:
        """Not readable."""
        return Unavailable(_CLOSED)

    def steps(self, file: PteFile, index: int, modules: Mapping[str, str]) -> Unavailable:
        """Not readable."""
        return Unavailable(_CLOSED)

"""Apple's packages for Core AI: are they here, and imports that keep quiet."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from planish_passes.errors import PlanishError
from planish_targets.quiet import quiet

INSTALL = "pip install 'planish[coreai]'"


@dataclass(frozen=True)
class Sdk:
    """What lowering needs of the packages.

    Args:
        converter: `coreai_torch.TorchConverter`.
        table: decompositions that the converter wants.
        ops: namespace of operators for compressed weights, `torch.ops.coreai`.
    """

    converter: Any
    table: Any
    ops: Any


def missing() -> str:
    """Why Core AI models cannot be made or run here, or "" when they can."""
    absent = [
        name for name, module in (("coreai-core", "coreai"), ("coreai-torch", "coreai_torch")) if not _here(module)
    ]
    return f"{' and '.join(absent)} not installed; {INSTALL}" if absent else ""


def _here(module: str) -> bool:
    return find_spec(module) is not None


def load() -> Sdk:
    """Import the packages.

    Raises:
        PlanishError: they are not installed, or their native parts do not load here.
    """
    if told := missing():
        raise PlanishError(f"lowering to Core AI is not possible: {told}", "target coreai", INSTALL)
    with quiet():
        try:
            import coreai_torch
            import coreai_torch._compression.custom_layers  # registers operators of compressed weights
            import torch
        except ImportError as problem:
            raise PlanishError(
                f"coreai-torch cannot be imported: {problem}",
                "target coreai",
                "its wheels want Linux with glibc 2.34 or macOS; compile there, or leave this target out",
            ) from problem
        return Sdk(coreai_torch.TorchConverter, coreai_torch.get_decomp_table(), torch.ops.coreai)

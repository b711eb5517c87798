"""Delegates beside XNNPACK: artifacts are compiled for them and checked by structure, and nothing here runs them."""

from __future__ import annotations

from planish_targets.executorch.delegates.coreml import CoreML
from planish_targets.executorch.delegates.delegate import Delegate
from planish_targets.executorch.delegates.qnn import Qnn
from planish_targets.executorch.delegates.vulkan import Vulkan

DELEGATES: tuple[Delegate, ...] = (CoreML(), Qnn(), Vulkan())


def reader(backend: str) -> Delegate | None:
    """The delegate whose payloads a .pte names so; None for XNNPACK's and unknown ones."""
    return next((d for d in DELEGATES if d.backend == backend), None)

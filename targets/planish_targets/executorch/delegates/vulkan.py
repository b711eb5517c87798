"""executorch's Vulkan delegate: GPUs of Android phones."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
from planish_passes.infra import Pass
from planish_targets.contract import Capabilities, Missing, Numerics, Recipe
from planish_targets.executorch.delegates import vulkan_graph
from planish_targets.executorch.delegates.delegate import Payload, Steps
from planish_targets.executorch.delegates.vulkan_forms import ConstantWhere, ExpandErfGelu, WholeNorm
from planish_targets.executorch.forms import Share
from planish_targets.executorch.lower import to_edge
from planish_targets.executorch.pte import PteFile
from planish_targets.executorch.rewrite import AdditiveMask


@dataclass(frozen=True)
class Vulkan:
    """float32: what a GPU's float16 would do to a model nothing here can tell."""

    name: str = "vulkan"
    backend: str = "VulkanBackend"
    summary: str = "ExecuTorch program (.pte) for GPUs of Android phones, by the Vulkan delegate; compile-only"
    requires: Mapping[str, str] = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(keeps=frozenset(), bits=frozenset()))
    advice: tuple[str, ...] = (
        "tensors are laid out for textures of up to 16384, as phones have them (executorch's default; desktops: 2048)",
    )

    def missing(self) -> Missing | None:
        """Nothing: executorch itself lowers to it."""
        return None

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32."""
        return Numerics()

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Forms that its runtime computes."""
        return (
            Expand(frozenset()),
            Canonicalise(),
            FoldConstants(),
            AdditiveMask(),  # one mask for all layers
            ConstantWhere(),
            WholeNorm(),
            ExpandErfGelu(),
            Share(),
        )

    def edge(self, exported: ExportedProgram, facts: Mapping[str, object], reasons: MutableMapping[str, str]) -> Any:
        """With executorch's own partitioner."""
        level = logging.root.level
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        logging.root.setLevel(level)  # that import opens the root logger for everybody
        rotary = any("cat" in str(n.target) or "stack" in str(n.target) for n in exported.graph.nodes)
        with _explained(reasons), _handles_kept(), _patterns_once(rotary):
            return to_edge(exported, facts, VulkanPartitioner({}))

    def payload(self, file: PteFile, index: int) -> Payload:
        """By executorch's own schema."""
        return vulkan_graph.payload(vulkan_graph.read(file, index))

    def steps(self, file: PteFile, index: int, modules: Mapping[str, str]) -> Steps:
        """By executorch's own schema."""
        return vulkan_graph.graph_steps(vulkan_graph.read(file, index), modules)


@contextlib.contextmanager
def _explained(reasons: MutableMapping[str, str]) -> Iterator[None]:
    """Within this, the partitioner's reasons for what it leaves are kept; otherwise they go to its log alone."""
    from executorch.backends.vulkan.partitioner import vulkan_partitioner

    kind = vulkan_partitioner.VulkanSupportedOperators
    log = kind.log_skip

    def keep(self: Any, node: fx.Node, reason: str) -> None:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None:
            reasons[schema.name] = f"executorch's Vulkan partitioner: {' '.join(reason.split())}"
        log(self, node, reason)

    kind.log_skip = keep
    try:
        yield
    finally:
        kind.log_skip = log


@contextlib.contextmanager
def _handles_kept() -> Iterator[None]:
    """Within this, operations keep the debug handles that lead to their source modules: the delegate's serialiser
    numbers them anew otherwise."""
    from executorch.backends.vulkan.serialization.vulkan_graph_builder import VkGraphBuilder

    process = VkGraphBuilder.process_node

    def keep(self: Any, node: fx.Node, number: int) -> None:
        process(self, node, node.meta.get("debug_handle", 0))

    VkGraphBuilder.process_node = keep
    try:
        yield
    finally:
        VkGraphBuilder.process_node = process


@contextlib.contextmanager
def _patterns_once(rotary: bool) -> Iterator[None]:
    """Within this, the graphs of rotary positions that the delegate looks for are traced once and not twice for each
    partition; and not at all for a program that holds nothing of the kind."""
    from executorch.backends.vulkan.patterns import fusable_patterns

    kept = {entry: entry.get_graphs_fn for entry in fusable_patterns.values() if entry.get_graphs_fn is not None}
    for entry, make in kept.items():
        entry.get_graphs_fn = cache(make) if rotary else list
    try:
        yield
    finally:
        for entry, make in kept.items():
            entry.get_graphs_fn = make

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
from planish_passes.errors import PlanishError
from planish_passes.expand import Expand
from planish_passes.fold import FoldConstants
from planish_passes.infra import Pass
from planish_passes.program import Program, module_path, op_name
from planish_targets.contract import Capabilities, Missing, Numerics, Recipe
from planish_targets.executorch.attention import ExpandAttention
from planish_targets.executorch.delegates import vulkan_graph
from planish_targets.executorch.delegates.delegate import Payload, Steps
from planish_targets.executorch.delegates.vulkan_forms import ConstantWhere, ExpandErfGelu, PlainScale, WholeNorm
from planish_targets.executorch.forms import InferredLength, Share
from planish_targets.executorch.lower import to_edge
from planish_targets.executorch.pte import PteFile
from planish_targets.executorch.rewrite import AdditiveMask
from planish_targets.executorch.states import KEPT


@dataclass(frozen=True)
class Vulkan:
    """float32: what a GPU's float16 would do to a model nothing here can tell."""

    name: str = "vulkan"
    backend: str = "VulkanBackend"
    summary: str = "ExecuTorch program (.pte) for GPUs of Android phones, by the Vulkan delegate; compile-only"
    requires: Mapping[str, str] = field(default_factory=dict)
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(keeps=frozenset(KEPT), bits=frozenset(), caches=True, resident=2048)
    )
    advice: tuple[str, ...] = (
        "tensors are laid out for textures of up to 16384, as phones have them (executorch's default; desktops: 2048)",
    )
    variables: tuple[str, ...] = ()

    def missing(self) -> Missing | None:
        """Nothing: executorch itself lowers to it."""
        return None

    def numerics(self, recipe: Recipe) -> Numerics:
        """float32."""
        return Numerics()

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Forms that its runtime computes."""
        return (
            ExpandAttention(),  # before composites are expanded: it leaves some
            PlainScale(),
            Expand(frozenset(KEPT)),
            Canonicalise(),
            FoldConstants(),
            AdditiveMask(),  # one mask for all layers
            ConstantWhere(),
            WholeNorm(),
            ExpandErfGelu(),
            InferredLength(),  # behind everything that makes reshapes
            Share(),
        )

    def check(self, program: Program) -> None:
        """Caches serve the runtime's own attention, which has neither windows nor caps nor biases."""
        for node in program.graph.nodes:
            if node.op == "call_function" and op_name(node) == "planish.cache_write":
                raise PlanishError(
                    "Vulkan's caches serve plain causal attention: no windows, chunks, softcaps, biases, sinks",
                    f"module {module_path(node) or '(top)'}",
                    "target executorch (XNNPACK) takes this model",
                )

    def edge(self, exported: ExportedProgram, facts: Mapping[str, object], reasons: MutableMapping[str, str]) -> Any:
        """With executorch's own partitioner."""
        level = logging.root.level
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        logging.root.setLevel(level)  # that import opens the root logger for everybody
        for node in exported.graph.nodes:
            if node.op == "call_function" and op_name(node) == "llama.custom_sdpa":
                node.args = (*node.args[:7], None)  # see `PlainScale`
        rotary = any("cat" in str(n.target) or "stack" in str(n.target) for n in exported.graph.nodes)
        with _explained(reasons), _handles_kept(), _patterns_once(rotary):
            return to_edge(exported, facts, VulkanPartitioner({"require_dynamic_shapes": _varies(exported)}))

    def payload(self, file: PteFile, index: int) -> Payload:
        """By executorch's own schema."""
        return vulkan_graph.payload(vulkan_graph.read(file, index))

    def steps(self, file: PteFile, index: int, modules: Mapping[str, str]) -> Steps:
        """By executorch's own schema."""
        return vulkan_graph.graph_steps(vulkan_graph.read(file, index), modules)


def _varies(exported: ExportedProgram) -> bool:
    """True when some length is known only at run time: operators that cannot be resized stay outside then."""
    values = [n.meta["val"] for n in exported.graph.nodes if n.op == "placeholder"]
    return any(not isinstance(d, int) for v in values if hasattr(v, "shape") for d in v.shape)


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

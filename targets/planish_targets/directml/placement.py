"""Which nodes ONNX Runtime moves to the CPU by itself, and which values are known before the first run."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from planish_targets.directml.graph import View
from planish_targets.directml.kernels import Kernel

# An initializer of up to this many elements does not keep a node on the device (source: see `shape_region`).
_SMALL = 100
_HALF = frozenset({"float16", "bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"})


def folded(view: View) -> frozenset[str]:
    """Values computed from constants alone: ONNX Runtime folds them when it loads the file."""
    known = set(view.constants)
    for node in view.nodes:
        if node.input and all(not name or name in known for name in node.input):
            known.update(node.output)
    return frozenset(known)


def shape_region(view: View, kernels: Mapping[int, Kernel]) -> tuple[frozenset[int], frozenset[str]]:
    """Nodes that ONNX Runtime moves to the CPU because they only work on shapes, and the values that live there.

    `kernels` holds the nodes (by index) that have a DirectML kernel. The walk starts at the outputs of Shape and Size,
    which DirectML leaves on the host, and takes every consumer all of whose inputs are host values, small constants or
    graph inputs. It stops at half-precision inputs and at inputs that the device kernel itself reads on the host.
    Source: `GetCpuPreferredNodes` in onnxruntime/core/framework/fallback_cpu_capability.cc.
    """
    consumers: dict[str, list[int]] = {}
    for i, node in enumerate(view.nodes):
        for name in node.input:
            consumers.setdefault(name, []).append(i)
    on_cpu: set[str] = set()
    queue: list[int] = []

    def spread(index: int) -> None:
        for out in view.nodes[index].output:
            on_cpu.add(out)
            for consumer in consumers.get(out, ()):
                heapq.heappush(queue, consumer)

    for i in kernels:
        if view.nodes[i].op_type in ("Shape", "Size"):
            spread(i)
    region: set[int] = set()
    seen: set[int] = set()
    while queue:
        current = heapq.heappop(queue)
        if current in seen:
            continue
        seen.add(current)
        if current not in kernels:
            spread(current)
        elif all(_stays_on_host(view, kernels[current], i, n, on_cpu) for i, n in enumerate(view.nodes[current].input)):
            region.add(current)
            spread(current)
    return frozenset(region), frozenset(on_cpu)


def _stays_on_host(view: View, kernel: Kernel, index: int, name: str, on_cpu: set[str]) -> bool:
    if not name:
        return False  # an omitted optional input counts as "not a host value" in ORT
    if view.types.get(name) in _HALF:
        return False
    constant = view.constants.get(name)
    if (constant is not None and constant.elements <= _SMALL) or name in view.inputs:
        return True
    return name in on_cpu and index not in kernel.cpu_inputs

"""Which operators of a graph must stay in float32 when the rest becomes float16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planish_targets.directml import kernels
from planish_targets.onnx_graph.translate import SOURCE

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST, SMALLEST = 65504.0, 2.0**-14  # of the normal numbers of float16

_SUMS = frozenset(
    (
        *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "CumSum"),
    )
)
_STATISTICS = _SUMS | frozenset(
    (
        *("LayerNormalization", "SimplifiedLayerNormalization", "InstanceNormalization", "GroupNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "Pow", "Exp", "Log"),
    )
)
_FILLED_BY_ATTRIBUTE = frozenset(("ConstantOfShape", "EyeLike", "Range", "RandomNormal", "RandomUniform"))
# Arithmetic around a statistic that belongs to it: eps, root, reciprocal, mask.
_ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip"),
        *("Abs", "Neg", "Sqrt", "Reciprocal", "Tanh", "Pow", "Exp", "Log"),
    )
)
_MOVES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Identity"))
_ATTENTION = "GroupQueryAttention"
_WIDE_INTEGERS = frozenset(("INT32", "INT64", "UINT32", "UINT64"))


def full_precision(graph: ir.Graph, opset: int, large: frozenset[str] = frozenset()) -> set[ir.Node]:
    """Nodes that keep float32, by these rules:

    1. norms, softmax, sums, powers: their statistics pass 65504, or lose what is small, in float16;
    2. what stands between a product and such a node, if nothing else reads it (masks, biases, x * x);
    3. what is computed from a sum, or with a constant too small for float16 (eps), up to and including the point where
       it meets the activations again (eps, root, x / root);
    4. what is computed from integers and constants alone (positions: float16 counts to 2048; dequantised weights,
       which ONNX Runtime folds when it loads the file);
    5. operators that take float32 but not float16 on DirectML or in ONNX;
    6. what comes from program nodes in `large`, whose values float16 cannot be trusted to hold. Attention kernels are
       left out: their caches have one type, and they return averages of what they were given.
    """
    nodes = list(graph)
    kept = {n for n in nodes if n.op_type in _STATISTICS or n.op_type in _FILLED_BY_ATTRIBUTE}
    kept |= {n for n in nodes if _reads_tiny(n) or not _takes_half(n, opset)}
    kept |= {n for n in nodes if n.meta.get(SOURCE) in large and n.op_type != _ATTENTION}
    for node in reversed(nodes):
        if node.op_type in _ELEMENTWISE | _MOVES and node not in kept:
            readers = [r for o in node.outputs for r, _ in o.uses()]
            if readers and not node.outputs[0].is_graph_output() and all(_pulls(r, kept) for r in readers):
                kept.add(node)
    kept |= set(_after_statistics(nodes))
    return kept | set(_from_integers(nodes))


def is_float(value: ir.Value | None) -> bool:
    """True for a float32 value."""
    return value is not None and value.dtype is not None and value.dtype.name == "FLOAT"


def _reads_tiny(node: ir.Node) -> bool:
    for value in node.inputs:
        if value is None or value.const_value is None or not is_float(value) or value.const_value.size > 1:
            continue
        number = abs(float(value.const_value.numpy().item()))
        if 0 < number < SMALLEST:
            return True
    return False


def _takes_half(node: ir.Node, opset: int) -> bool:
    """False when a kernel exists for float32 and none for float16."""
    domain = node.domain or "ai.onnx"
    signature = kernels.signature(domain, node.op_type, opset if domain == "ai.onnx" else 1)
    kernel = kernels.kernel(domain, node.op_type, signature.since_version) if signature else None
    if signature is None or kernel is None:
        return False
    named = [signature.input(i) for i, v in enumerate(node.inputs) if is_float(v)]
    named += [signature.output(i) for i, v in enumerate(node.outputs) if is_float(v)]
    sets = [kernel.types.get(p) for p in named if p is not None and p not in signature.fixed]
    return all(admitted is None or "float16" in admitted for admitted in sets)


def _pulls(reader: ir.Node, kept: set[ir.Node]) -> bool:
    # A norm is a good place for its own cast: behind a residual sum, which others read too.
    return reader in kept and not reader.op_type.endswith("Normalization")


def _after_statistics(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    statistics = {o for n in nodes if n.op_type in _SUMS or _reads_tiny(n) for o in n.outputs}
    for node in nodes:
        given = [v for v in node.inputs if v is not None]
        if node.op_type not in _ELEMENTWISE or not any(v in statistics for v in given):
            continue
        yield node
        if all(v in statistics or v.is_initializer() for v in given):
            statistics.update(node.outputs)


def _from_integers(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    derived: set[ir.Value] = set()
    constants: set[ir.Value] = set()
    for node in nodes:
        given = [v for v in node.inputs if v is not None]
        if given and all(v.is_initializer() or v in constants for v in given):
            constants.update(node.outputs)
            yield node
            continue
        floats = [v for v in given if is_float(v)]
        grown = any(v in derived for v in floats)
        whole = all(v in derived or v in constants or v.is_initializer() for v in floats)
        if (grown and whole) or _counts(node):
            derived.update(node.outputs)
            yield node


def _counts(node: ir.Node) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    return source is not None and source.dtype is not None and source.dtype.name in _WIDE_INTEGERS

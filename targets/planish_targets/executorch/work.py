"""Work of operations in a .pte, from the shapes in it: the longest that each may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from planish_targets.cost import Work
from planish_targets.executorch.pte import SCALAR_TYPES, PteFile

NOWHERE = 0xFFFFFFFF  # id of a value that an operation is not given, and of one that stays inside a delegate
# XNNPACK's types of values -> bits of one element
_BITS = {
    **dict.fromkeys(("fp32", "pfp32", "qint32", "qcint32", "int32"), 32),
    **dict.fromkeys(("fp16", "bf16"), 16),
    **dict.fromkeys(("qint8", "quint8", "qcint8", "qdint8", "qpint8"), 8),
    **dict.fromkeys(("qcint4", "qbint4"), 4),
}


@dataclass(frozen=True)
class Value:
    """A tensor: its shape, its bytes, and whether it is stored in the file."""

    dims: tuple[int, ...]
    nbytes: int
    constant: bool

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.dims)


def plan_value(file: PteFile, index: int) -> Value | bool | None:
    """A tensor or a truth value of the plan; None for everything else."""
    tensor = file.plan.values[index].val
    if type(tensor).__name__ != "Tensor":
        return bool(tensor.bool_val) if type(tensor).__name__ == "Bool" else None
    dims = tuple(int(s) for s in tensor.sizes)
    dtype = SCALAR_TYPES.get(int(tensor.scalar_type))
    return Value(dims, prod(dims) * (dtype.itemsize if dtype else 4), file.is_constant(index))


def graph_values(graph: Mapping[str, Any]) -> dict[int, Value]:
    """Values of an XNNPACK graph by id."""
    found = {}
    for value in graph["xvalues"]:
        tensor = inner(value)
        bits = _BITS.get(tensor["datatype"].removeprefix("xnn_datatype_"), 32)
        dims = tuple(tensor["dims"])
        found[tensor["id_out"]] = Value(dims, prod(dims) * bits // 8, bool(tensor["constant_buffer_idx"]))
    return found


def inner(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensor of an XNNPACK value, quantised or not."""
    union = value["xvalue_union"]
    return union.get("tensor_value", union)  # type: ignore[no-any-return]


def reads(node: Mapping[str, Any]) -> list[int]:
    """Ids of the values that an XNNPACK operation reads."""
    union = node["xnode_union"]
    return [i for key, i in union.items() if key.endswith("_id") and not key.startswith("output") and i != NOWHERE]


def writes(node: Mapping[str, Any]) -> list[int]:
    """Ids of the values that an XNNPACK operation makes."""
    union = node["xnode_union"]
    return [i for key, i in union.items() if key.endswith("_id") and key.startswith("output") and i != NOWHERE]


def delegated_work(node: Mapping[str, Any], values: Mapping[int, Value]) -> Work:
    """Of an XNNPACK operation."""
    kind, union = node["xnode_union_type"].removeprefix("_"), node["xnode_union"]
    given, made = [values[i] for i in reads(node)], [values[i] for i in writes(node)]
    moved = sum(v.nbytes for v in (*given, *made))
    if kind == "XNNScaledDotProductAttention":
        query, key = values[union["query_id"]], values[union["key_id"]]
        return Work(2 * query.count * key.dims[-2], False, moved)
    if kind == "XNNFullyConnected":
        return Work(made[0].count * given[0].dims[-1], True, moved)
    if kind == "XNNBatchMatrixMultiply":
        return Work(made[0].count * given[0].dims[-1], any(v.constant for v in given), moved)
    if "kernel_height" in union and "filter_id" in union:
        window = union["kernel_height"] * union["kernel_width"]
        back = given[0].count * union["group_output_channels"]  # each input reaches so many outputs
        forth = made[0].count * union["group_input_channels"]
        return Work((back if kind == "XNNConvTranspose2d" else forth) * window, True, moved)
    return Work(moved=moved)


_TRANSPOSED = 6  # argument of aten::convolution
_PRODUCTS = {"linear": 0, "mm": 0, "bmm": 0, "matmul": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1}  # -> the first factor
_ROWS = ("embedding", "embedding_byte", "embedding_2bit", "embedding_4bit")
_PARTS = ("select_copy", "slice_copy", "index", "index_select", "gather")


def kernel_work(name: str, given: Sequence[Value | bool | None]) -> Work:
    """Of a call of a portable kernel.

    Args:
        name: of the operator, without overload.
        given: its arguments, what it returns behind them.
    """
    short, tensors = name.split("::")[-1], [v for v in given if isinstance(v, Value)]
    if not tensors:
        return Work()
    moved, out = sum(v.nbytes for v in tensors[:-1]), tensors[-1]
    if short in _PRODUCTS and len(tensors) > _PRODUCTS[short] + 1:
        left, right = tensors[_PRODUCTS[short] : _PRODUCTS[short] + 2]
        return Work(out.count * left.dims[-1], left.constant or right.constant, moved)
    if short == "convolution":
        image, kernel = tensors[:2]
        return Work(
            (image if given[_TRANSPOSED] is True else out).count * prod(kernel.dims[1:]), kernel.constant, moved
        )
    if short == "custom_sdpa":
        query, cache = tensors[:2]
        return Work(2 * query.count * cache.dims[1], False, moved)
    if short in _ROWS:
        rows = out.count // max(out.dims[-1], 1)
        return Work(moved=rows * tensors[0].nbytes // max(tensors[0].dims[0], 1) + out.nbytes)
    if short in _PARTS:
        return Work(moved=2 * out.nbytes)
    if short == "update_cache":
        return Work(moved=2 * tensors[0].nbytes)
    return Work(moved=moved)

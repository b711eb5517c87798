"""Write an ONNX file whose weights are read some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from planish_passes.errors import PlanishError
from planish_passes.settle import ordered, workers
from planish_passes.weights import WeightStore

if TYPE_CHECKING:
    import onnx_ir as ir

_INSIDE = 256  # bytes up to which a tensor stays inside the .onnx file


def save(model: ir.Model, weights: WeightStore, path: Path, aliases: Mapping[str, str] | None = None) -> None:
    """Write `path` and its external data `path`.data; weights are read, written and dropped block by block.

    Args:
        aliases: name -> name of another weight with the same bytes, which are written once. Pairs of which the graph
            uses one only do not matter.

    Raises:
        PlanishError: the disk is full, or it cannot be written to.
    """
    import onnx_ir as ir

    used = model.graph.initializers
    shared = {name: owner for name, owner in (aliases or {}).items() if name in used and owner in used}
    with workers() as (pool, count):
        for name, value in model.graph.initializers.items():
            if name in shared:
                value.const_value = ir.Tensor(np.zeros(1, np.uint8), name=name)  # its place is filled in below
            elif value.const_value is None:
                value.const_value = _tensor(value, weights, pool, count)
        model.producer_name, model.producer_version = "planish", ""
        try:
            ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INSIDE)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise PlanishError(
                f"The artifact cannot be written: {reason}.", str(path), "make room on disk"
            ) from problem
    if shared:
        _share_bytes(path, shared, {a: weights.spec(a).shape for a in shared})


def _tensor(value: ir.Value, weights: WeightStore, pool: ThreadPoolExecutor, ahead: int) -> Any:
    import onnx_ir as ir

    assert value.dtype is not None
    assert value.shape is not None
    stream = _Stream(str(value.name), weights, value.dtype, value.shape, pool, ahead)
    return ir.Tensor(stream.numpy(), name=stream.name) if stream.nbytes <= _INSIDE else stream


class _Stream:
    """What onnx_ir asks of a tensor that is written into external data: sizes, and the bytes."""

    def __init__(
        self,
        name: str,
        weights: WeightStore,
        dtype: ir.DataType,
        shape: ir.Shape,
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self.name, self.weights, self.dtype, self.shape = name, weights, dtype, shape
        self.pool, self.ahead = pool, ahead
        self.size = int(np.prod(shape.numpy(), dtype=np.int64))
        self.nbytes = -(-self.size * dtype.bitwidth // 8)
        self.doc_string, self.raw = None, None
        self.metadata_props: dict[str, str] = {}
        self.meta: dict[str, Any] = {}

    def tofile(self, file: BinaryIO) -> None:
        """Write the tensor, a few blocks in memory at a time."""
        tasks = (lambda s=s: self._block(*s) for s in self.weights.spans(self.name))  # type: ignore[misc]
        written = 0
        for block in ordered(self.pool, tasks, self.ahead):
            written += file.write(block.reshape(-1).view(np.uint8).data)
        if written != self.nbytes:
            raise ValueError(f"{self.name}: {written} bytes written, {self.nbytes} declared")

    def numpy(self) -> np.ndarray[Any, Any]:
        """All of it."""
        array = self.weights.read(self.name).detach().contiguous().numpy()
        return array.astype(self.dtype.numpy(), copy=False)

    def tobytes(self) -> bytes:
        """All of it."""
        return self.numpy().tobytes()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return self.numpy()

    def __dlpack__(self, **_: Any) -> Any:
        raise TypeError(f"{self.name} is written in blocks and never held as a whole")

    def __dlpack_device__(self) -> tuple[int, int]:
        raise TypeError(f"{self.name} is written in blocks and never held as a whole")

    def _block(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        array = self.weights.rows(self.name, start, stop).detach().contiguous().numpy()
        return array.astype(self.dtype.numpy(), copy=False)


def _share_bytes(path: Path, aliases: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    import onnx

    model = onnx.load(path, load_external_data=False)
    held = {t.name: t for t in model.graph.initializer}
    for name, owner in aliases.items():
        held[name].CopyFrom(held[owner])
        held[name].name = name
        del held[name].dims[:]
        held[name].dims.extend(shapes[name])
    onnx.save(model, path)

"""Write an ONNX file whose weights are read one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planish_passes.weights import WeightStore

if TYPE_CHECKING:
    import onnx_ir as ir


def save(model: ir.Model, weights: WeightStore, path: Path) -> None:
    """Write `path` and its external data `path`.data; each weight is read, written and dropped."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.dtype is not None
            assert value.shape is not None
            value.const_value = ir.LazyTensor(
                _Reader(weights, name, value.dtype), dtype=value.dtype, shape=value.shape, name=name
            )
    model.producer_name, model.producer_version = "planish", ""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=256)


class _Reader:
    def __init__(self, weights: WeightStore, name: str, dtype: ir.DataType) -> None:
        self.weights, self.name, self.dtype = weights, name, dtype

    def __call__(self) -> ir.Tensor:
        import onnx_ir as ir

        array = self.weights.read(self.name).detach().contiguous().numpy()
        return ir.Tensor(array.astype(self.dtype.numpy(), copy=False), name=self.name)

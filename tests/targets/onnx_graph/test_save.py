"""External data is written in row blocks: the same bytes as in one piece, shared ones once, none lost unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from planish_passes import rows
from planish_passes.errors import PlanishError
from planish_passes.weights import TensorSpec, WeightStore
from planish_targets.onnx_graph.save import save

BIG = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))


def graph_of(**shapes: tuple[int, ...]) -> Any:
    """A graph whose only nodes read one initializer each."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    held = [ir.Value(name=n, shape=ir.Shape(s), type=kind) for n, s in shapes.items()]
    nodes = [ir.node("Identity", [v]) for v in held]
    outputs = [n.outputs[0] for n in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=held, opset_imports={"": 21}, name="test")
    for node, value in zip(nodes, held, strict=True):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{value.name}.out", value.shape, kind
    return ir.Model(graph, ir_version=10)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 16 * 7)


def store_with(**tensors: torch.Tensor) -> WeightStore:
    store = WeightStore()
    for name, tensor in tensors.items():
        store = store.with_tensor(name, tensor)
    return store


def test_values_arrive_in_blocks(tmp_path: Path) -> None:
    asked: list[int] = []

    def double(weight: torch.Tensor) -> torch.Tensor:
        asked.append(len(weight))
        return weight * 2

    store = store_with(big=BIG, small=torch.ones(3), one=torch.tensor(4.0))
    store = store.derive("twice", ("big",), double, TensorSpec((50, 16), torch.float32), by_rows=True)
    model = graph_of(big=(50, 16), small=(3,), twice=(50, 16), one=())
    threads = torch.get_num_threads()
    save(model, store, tmp_path / "m.onnx")
    assert torch.get_num_threads() == threads
    assert max(asked) == 7
    assert sum(asked) == 50
    written = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(written)
    found = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    for name, array in found.items():
        assert np.array_equal(array, store.read(name).numpy()), name
    inside = {t.name for t in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer if t.raw_data}
    assert inside == {"small", "one"}


def test_shared_bytes_are_written_once(tmp_path: Path) -> None:
    store = store_with(owner=BIG, flat=BIG.reshape(-1), left=BIG.reshape(25, 32))
    model = graph_of(owner=(50, 16), flat=(800,), left=(25, 32))
    # "left" has lost its owner, as unused tensors do: it is written for itself
    save(model, store, tmp_path / "m.onnx", {"flat": "owner", "left": "gone", "absent": "owner"})
    assert (tmp_path / "m.onnx.data").stat().st_size == 2 * BIG.nbytes
    for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), store.read(tensor.name).numpy())


def test_a_tensor_of_another_size_than_its_graph_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w: 3200 bytes written, 3264 declared"):
        save(graph_of(w=(51, 16)), store_with(w=BIG), tmp_path / "m.onnx")


def test_a_full_disk_is_the_users_to_solve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(PlanishError, match="No space left on device"):
        save(graph_of(w=(50, 16)), store_with(w=BIG), tmp_path / "m.onnx")

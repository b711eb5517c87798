"""What a retrace may take from before, and graph modules without code. That files stay the same, byte for byte, is
tested where whole programs are lowered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

pytest.importorskip("executorch")
from planish_targets.executorch.retrace import Memory, alike, remembered, uncompiled

ATEN = torch.ops.aten
MODE = FakeTensorMode(shape_env=ShapeEnv())


def fake(*shape: int) -> Tensor:
    with MODE:
        return torch.empty(shape)


def dynamic() -> Tensor:
    """[s, 4] with a size that only the graph knows."""
    how: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    return MODE.from_tensor(torch.empty(3, 4), symbolic_context=how)


class Counting:
    """Computes calls, and counts them."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        with MODE:
            return target(*args, **kwargs)


class Relu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@pytest.mark.parametrize(
    ("second", "calls"),
    [
        ((ATEN.add.Tensor, "x", 1), 1),
        ((ATEN.add.Tensor, "y", 1), 1),  # another tensor of the same looks
        ((ATEN.add.Tensor, "turned", 1), 2),
        ((ATEN.add.Tensor, "double", 1), 2),
        ((ATEN.add.Tensor, "x", 1.0), 2),  # equal to 1, and another type of result for integers
        ((ATEN.add.Tensor, "x", True), 2),
        ((ATEN.mul.Tensor, "x", 1), 2),
    ],
)
def test_equal_calls_are_computed_once(second: tuple[Any, str, Any], calls: int) -> None:
    given = {"x": fake(2, 4), "y": fake(2, 4), "turned": fake(4, 2).t(), "double": fake(2, 4).double()}
    compute, memory = Counting(), Memory()
    first = memory.call(compute, ATEN.add.Tensor, (given["x"], 1), {}, None)
    target, which, number = second
    again = memory.call(compute, target, (given[which], number), {}, None)
    assert compute.calls == calls
    assert (again is first) == (calls == 1)


def test_an_operator_of_the_edge_dialect_is_that_of_aten() -> None:
    from executorch.exir.passes.replace_aten_with_edge_pass import aten_to_edge

    x, compute, memory = fake(2, 4), Counting(), Memory()
    first = memory.call(compute, ATEN.relu.default, (x,), {}, None)
    assert memory.call(compute, aten_to_edge(ATEN.relu.default), (x,), {}, None) is first


def test_what_changes_the_shape_of_its_argument_is_always_computed() -> None:
    x, compute, memory = fake(2, 4), Counting(), Memory()
    for _ in range(2):
        memory.call(compute, ATEN.unsqueeze_.default, (x, 0), {}, None)
    assert compute.calls == 2
    assert x.shape == (1, 1, 2, 4)


def test_looks_go_by_symbols() -> None:
    a, b, memory = dynamic(), dynamic(), Memory()
    with MODE:
        same = a + 1
    assert memory.key(a) == memory.key(same)
    assert memory.key(a.shape[0]) == memory.key(same.shape[0])
    assert memory.key(a) != memory.key(b)
    assert memory.key(a.shape[0]) != memory.key(b.shape[0])
    assert memory.key(torch.zeros(2)) != memory.key(torch.zeros(2))  # with values: told by identity


def test_numbers_chosen_at_run_time_are_never_one() -> None:
    compute, memory = Counting(), Memory()
    with MODE:
        one, two = (torch.empty((), dtype=torch.int64) for _ in range(2))
    item = ATEN._local_scalar_dense.default
    found = [memory.call(compute, item, (t,), {}, None) for t in (one, one, two)]
    assert len({number.node.expr for number in found}) == 3
    kept = [memory.call(compute, item, (one,), {}, known) for known in found]
    assert all(a is b for a, b in zip(kept, found, strict=True))  # the same nodes again
    assert compute.calls == 3


def test_a_result_that_looks_like_the_old_value_is_the_old_value() -> None:
    x, compute = fake(2, 4), Counting()
    same, other = fake(2, 4), fake(4, 2).t()
    assert memory_of(compute, x, same) is same
    assert memory_of(compute, x, other) is not other


def memory_of(compute: Counting, x: Tensor, known: Tensor) -> Tensor:
    return Memory().call(compute, ATEN.relu.default, (x,), {}, known)  # type: ignore[no-any-return]


def test_alike_goes_by_dtype_sizes_strides_and_symbols() -> None:
    a, b = dynamic(), dynamic()
    assert alike(fake(2, 4), fake(2, 4))
    assert not alike(fake(2, 4), fake(4, 2).t())
    assert not alike(fake(2, 4), fake(2, 4).double())
    assert not alike(fake(2, 4), fake(3, 4)[1:])
    with MODE:
        assert alike(a + 1, a * 2)
    assert not alike(a, b)  # two symbols, though the example has one size
    assert alike([a, 1], [a, 1])
    assert not alike([a, 1], [a, True])


def test_values_that_were_learnt_are_not_computed() -> None:
    graph, x = fx.Graph(), fake(2, 4)
    read = graph.placeholder("x")
    node = graph.call_function(ATEN.relu.default, (read,))
    read.meta["val"], node.meta["val"] = x, fake(2, 4)
    compute, memory = Counting(), Memory()
    memory.learn(graph.nodes)
    assert memory.call(compute, ATEN.relu.default, (x,), {}, None) is node.meta["val"]
    assert compute.calls == 0


def test_passes_are_as_before_behind_it() -> None:
    from executorch.exir.pass_base import _ExportPassBase

    before = _ExportPassBase._fx, fx.GraphModule.recompile, fx.GraphModule.__str__
    with pytest.raises(RuntimeError, match="stop"), remembered(), uncompiled():
        raise RuntimeError("stop")
    assert before == (_ExportPassBase._fx, fx.GraphModule.recompile, fx.GraphModule.__str__)


def test_a_program_as_a_module_has_its_code() -> None:
    x = torch.tensor([-1.0, 2.0])
    program = torch.export.export(Relu(), (x,))
    with uncompiled():
        again = torch.export.export(program.module(), (x,), strict=True)  # traces Python
    assert again.module()(x).tolist() == [0.0, 2.0]


def test_a_graph_module_without_code_computes_what_its_graph_says() -> None:
    with uncompiled():
        module = fx.symbolic_trace(lambda x: torch.relu(x))
        assert module(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
        next(n for n in module.graph.nodes if n.op == "call_function").target = torch.neg
        module.recompile()
        assert module(torch.tensor([-1.0, 2.0])).tolist() == [1.0, -2.0]
        next(n for n in module.graph.nodes if n.op == "call_function").target = torch.abs
        module.recompile()
    assert module(torch.tensor([-1.0, 2.0])).tolist() == [1.0, 2.0]
    assert "torch.abs" in module.code

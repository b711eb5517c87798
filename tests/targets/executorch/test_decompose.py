"""Programs decomposed operator by operator against torch's own way, and what is left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

pytest.importorskip("executorch")
from planish_targets.executorch.decompose import decompose
from planish_targets.executorch.retrace import Memory, alike

_IGNORED = ("_assert_scalar", "_operator", "sym_size")  # checks of torch's that executorch takes away


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class Nested(nn.Module):
    """Weights and buffers in modules of several depths, used in another order than they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.early = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(x + self.shift)).flatten(0)  # type: ignore[no-any-return]


class Cached(nn.Module):
    """A buffer that is written into; `again` and `before`: in a way that is left to torch."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.register_buffer("zeros", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(1, 8, 2, 4))

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        first = start[0].item()
        torch._check(first >= 0)  # type: ignore[operator]
        torch._check(first + x.shape[1] <= 8)  # type: ignore[operator]
        seen = self.cache.view(8, 8) if self.how == "seen" else self.zeros
        done = torch.ops.llama.update_cache(x, self.cache, first)
        if self.how == "result":
            return done + 1  # type: ignore[no-any-return]
        return self.cache.sum() + seen.sum()


def table() -> dict[Any, Any]:
    from executorch.exir.tracer import _default_decomposition_table

    found = dict(_default_decomposition_table())
    found.pop(torch.ops.aten.linear.default, None)
    return found


def exported(module: nn.Module, *inputs: Tensor, dynamic: Any = None) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic, strict=False)


def both(program: ExportedProgram) -> tuple[ExportedProgram, ExportedProgram]:
    with torch.no_grad():
        ours = decompose(program, table(), Memory())
        return ours, program.run_decompositions(table())


def operators(program: ExportedProgram) -> list[str]:
    called = [n for n in program.graph.nodes if n.op == "call_function"]
    return [str(n.target) for n in called if not any(i in f"{n.target} {n.target.__module__}" for i in _IGNORED)]


def check_equal(program: ExportedProgram) -> ExportedProgram:
    ours, theirs = both(program)
    assert operators(ours) == operators(theirs)
    for signature in ("parameters", "buffers", "buffers_to_mutate"):
        a, b = (list(getattr(p.graph_signature, signature)) for p in (ours, theirs))
        assert len(a) == len(b) if signature == "buffers_to_mutate" else a == b
    a, b = ([n for n in p.graph.nodes if str(n.target) in operators(theirs)] for p in (ours, theirs))
    for mine, other in zip(a, b, strict=True):
        flat = [torch.utils._pytree.tree_leaves(n.meta.get("val")) for n in (mine, other)]
        for x, y in zip(*flat, strict=True):
            assert [str(s) for s in x.shape] == [str(s) for s in y.shape] if isinstance(x, Tensor) else True
            assert x.dtype == y.dtype if isinstance(x, Tensor) else True
    return ours


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "decomposed": (nn.functional.silu, (torch.randn(2, 3),)),
    "in two": (lambda x, y: torch.addcmul(x, y, x) + nn.functional.gelu(y), (torch.randn(2, 3), torch.randn(2, 3))),
    "composite": (lambda x: x.to(torch.float64).reshape(-1), (torch.randn(2, 3),)),
    "kept": (nn.functional.linear, (torch.randn(2, 3), torch.randn(4, 3))),
    "of itself": (lambda x: nn.functional.silu(x) @ nn.functional.silu(x).T, (torch.randn(2, 3),)),
    "nothing": (lambda x: x.contiguous() + x.contiguous(), (torch.randn(2, 3),)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_become_what_torch_makes_of_them(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    ours = check_equal(exported(Calls(function), *inputs))
    torch.testing.assert_close(ours.module()(*inputs), function(*inputs))


def test_weights_come_in_the_order_of_torch() -> None:
    x = torch.randn(3, 4)
    module = Nested().eval()
    ours = check_equal(exported(module, x))
    torch.testing.assert_close(ours.module()(x), module(x))


def test_unknown_sizes_are_those_of_inputs() -> None:
    x, module = torch.randn(2, 5, 4), Calls(lambda x: nn.functional.silu(x).transpose(1, 2).flatten(0, 1) * 2)
    ours = check_equal(exported(module, x, dynamic=(({1: Dim("length", max=9)},),)))
    sizes = [n for n in ours.graph.nodes if n.target is torch.ops.aten.sym_size.int]
    assert [n.args[0].op for n in sizes] == ["placeholder"] * len(sizes)
    y = torch.randn(2, 7, 4)
    torch.testing.assert_close(ours.module()(y), module(y))


def test_writing_into_a_buffer_becomes_a_function() -> None:
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers the operators)

    ours = check_equal(exported(Cached(), torch.randn(1, 2, 2, 4), torch.tensor([3])))
    assert list(ours.graph_signature.buffers_to_mutate.values()) == ["cache"]
    number = next(n for n in ours.graph.nodes if n.target is torch.ops.aten._local_scalar_dense.default)
    assert list(number.meta["unbacked_bindings"]) == [number.meta["val"].node.expr]


@pytest.mark.parametrize("how", ["seen", "result"])
def test_other_writing_is_left_to_torch(how: str) -> None:
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers the operators)

    program = exported(Cached(how), torch.randn(1, 2, 2, 4), torch.tensor([3]))
    assert decompose(program, table(), Memory()) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.nonzero(),  # a length that the values tell
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]),  # a constant that is lifted
        lambda x: x.add_(1),  # an input that is written into
        lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
    ],
)
def test_other_programs_are_left_to_torch(function: Callable[[Tensor], Tensor]) -> None:
    assert decompose(exported(Calls(function), torch.randn(3)), table(), Memory()) is None


def test_a_program_stays_as_it_was() -> None:
    program = exported(Calls(nn.functional.silu), torch.randn(2, 3))
    before = str(program)
    assert decompose(program, table(), Memory()) is not None
    assert str(program) == before


def test_equal_layers_are_traced_once() -> None:
    calls: list[Any] = []
    found = table()
    real = found[torch.ops.aten.silu.default]
    found[torch.ops.aten.silu.default] = lambda *a: calls.append(a) or real(*a)  # type: ignore[func-returns-value]
    module = Calls(lambda x: nn.functional.silu(nn.functional.silu(nn.functional.silu(x))))
    ours = decompose(exported(module, torch.randn(2, 3)), found, Memory())
    assert len(calls) == 1
    values = [n.meta["val"] for n in ours.graph.nodes if n.op == "call_function"]
    assert all(alike(values[0], v) for v in values[2::2])

import weakref
from dataclasses import replace

import pytest
import torch
from support import program_of
from torch import Tensor, nn
from torch.nn import functional

from planish_passes.calibrate import calibrate
from planish_passes.clusters import cluster
from planish_passes.errors import PlanishError
from planish_passes.interpret import interpret
from planish_passes.ops import dequantize
from planish_passes.palette import Palette, PaletteFormat
from planish_passes.program import Program
from planish_passes.rounding import Rounded, round_to_nearest, search
from planish_passes.weights import TensorSpec, WeightFormat

INT4 = WeightFormat(4, 16, False)
INT3 = WeightFormat(3, 16, False)


class Small(nn.Module):
    """A tied table, a projection pair that reads one input, a gate, a head; channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 32)
        self.query, self.key, self.out = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 32)
        self.spread = nn.Parameter(torch.exp(torch.randn(32)))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        y = functional.rms_norm(x, (32,)) * self.spread
        x = x + self.out(torch.tanh(self.query(y)) * self.key(y))
        return functional.linear(functional.rms_norm(x, (32,)) * self.spread, self.table.weight)


IDS = torch.randint(0, 50, (4, 24), generator=torch.Generator().manual_seed(1))
LINEARS = dict.fromkeys(("query.weight", "key.weight", "out.weight"), INT4)
ALL = {**LINEARS, "table.weight": INT4}


@pytest.fixture
def program() -> Program:
    return program_of(Small(), IDS)


def rounded_program(program: Program, rounded: dict[str, Rounded]) -> Program:
    store = program.weights
    for name, parts in rounded.items():
        weight = dequantize(*parts, torch.float32)
        store = store.with_lazy(name, TensorSpec.of(weight), lambda w=weight: w)
    return replace(program, weights=store)


def error(program: Program, rounded: dict[str, Rounded], ids: Tensor) -> float:
    truth, found = (interpret(p, {"x0": ids})["y0"] for p in (program, rounded_program(program, rounded)))
    return float((found - truth).square().mean() / truth.square().mean())


def batches(ids: Tensor, size: int) -> list[dict[str, Tensor]]:
    return [{"x0": part} for part in ids.split(size)]


@pytest.mark.parametrize("format", [INT4, INT3, WeightFormat(4, 16), WeightFormat(4, 0), WeightFormat(8, 32)])
def test_outputs_are_closer_than_with_rounding_of_values(program: Program, format: WeightFormat) -> None:
    formats = dict.fromkeys(ALL, format)
    generator = torch.Generator().manual_seed(2)
    other = torch.randint(0, 50, (4, 24), generator=generator)
    text = batches(torch.randint(0, 50, (64, 24), generator=generator), 16)
    calibrated = dict(calibrate(program, text, formats, shrinkage=0))  # random tokens are much like other random ones
    assert set(calibrated) == set(ALL)
    nearest, searched = (
        {n: method(program.weights.read(n), format) for n in ALL} for method in (round_to_nearest, search)
    )
    found = error(program, calibrated, other)
    assert 0 < found < 0.75 * error(program, nearest, other)
    assert found < 0.9 * error(program, searched, other)


def test_each_weight_comes_once_and_the_tied_table_last(program: Program) -> None:
    assert [name for name, _ in calibrate(program, batches(IDS, 4), ALL)] == [*LINEARS, "table.weight"]
    assert [name for name, _ in calibrate(program, batches(IDS, 4), LINEARS)] == list(LINEARS)
    assert [name for name, _ in calibrate(program, batches(IDS, 4), {"other": INT4})] == []


def test_the_split_into_batches_does_not_matter(program: Program) -> None:
    one, four = (dict(calibrate(program, batches(IDS, size), ALL)) for size in (4, 1))
    for name in ALL:
        assert (one[name].values != four[name].values).float().mean() < 0.01  # sums in another order
        torch.testing.assert_close(one[name].scales, four[name].scales, rtol=0.01, atol=1e-5)


def test_later_linears_see_the_rounded_ones_before_them(program: Program) -> None:
    """`out` alone is rounded for float inputs; after query and key it is rounded for what they then give."""
    alone = dict(calibrate(program, batches(IDS, 4), {"out.weight": INT4}))
    after = dict(calibrate(program, batches(IDS, 4), LINEARS))
    assert not torch.equal(alone["out.weight"].values, after["out.weight"].values)


def test_drift_is_made_up_for(program: Program) -> None:
    """Random tokens, coarse integers: what the last linear gets has moved, and it knows."""
    formats, errors = dict.fromkeys(LINEARS, WeightFormat(2, 16, False)), []
    generator = torch.Generator().manual_seed(2)
    text, other = (torch.randint(0, 50, (n, 24), generator=generator) for n in (64, 8))
    for share in (0.0, 0.5, 1.0):
        made = dict(calibrate(program, batches(text, 16), formats, compensation=share))
        errors.append(error(program, made, other))
    assert errors[1] < 0.97 * errors[0]
    assert errors[2] < 0.97 * errors[0]


def test_the_rounding_of_a_table_is_drift(program: Program) -> None:
    formats = {"table.weight": WeightFormat(2, 16, False), "query.weight": INT4}
    one, other = (dict(calibrate(program, batches(IDS, 4), formats, compensation=share)) for share in (0.0, 1.0))
    assert not torch.equal(one["query.weight"].values, other["query.weight"].values)


def test_the_last_linear_is_rounded_and_not_run(program: Program) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("it was run")

    refuse.__name__ = "aten.linear"
    last = [n for n in program.graph.nodes if "linear" in str(n.target)][-1]
    last.target = refuse
    assert list(dict(calibrate(program, batches(IDS, 4), ALL)))[-1] == "table.weight"


def test_without_drift_compensation_changes_nothing(program: Program) -> None:
    """The first linears of a program without rounded embeddings get what the float model gives them."""
    first = dict.fromkeys(("query.weight", "key.weight"), INT4)
    one, other = (dict(calibrate(program, batches(IDS, 4), first, compensation=share)) for share in (0.0, 1.0))
    for name in first:
        for part, expected in zip(one[name], other[name], strict=True):
            assert torch.equal(part, expected)


def test_linears_of_one_input_share_its_second_moment(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish_passes import calibrate as module

    made = []
    original = module.curvature
    monkeypatch.setattr(module, "curvature", lambda *a: made.append(a) or original(*a))
    list(calibrate(program, batches(IDS, 4), ALL))
    assert len(made) == 3  # query and key; out; the head


def test_small_weights_of_one_input_are_rounded_at_once(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """And come out as each of them does alone."""
    from planish_passes import calibrate as module

    rows = []
    original = module.gptq
    monkeypatch.setattr(module, "gptq", lambda w, *a: rows.append(len(w)) or original(w, *a))
    together = dict(calibrate(program, batches(IDS, 4), ALL))
    assert rows == [64, 32, 50]
    monkeypatch.setattr(module, "BLOCK", 0)
    alone = dict(calibrate(program, batches(IDS, 4), ALL))
    assert rows[3:] == [32, 32, 32, 50]
    other = dict(calibrate(program, batches(IDS, 4), {**ALL, "key.weight": INT3}))
    assert rows[7:] == [32, 32, 32, 50]
    for name in ALL:
        assert (together[name].values == alone[name].values).float().mean() > 0.99, name
    assert int(other["key.weight"].values.max()) == 3


def test_a_table_of_its_own_is_searched(program: Program) -> None:
    class Untied(Small):
        def forward(self, ids: Tensor) -> Tensor:
            return self.query(self.table(ids))

    found = dict(calibrate(program_of(Untied(), IDS), batches(IDS, 4), ALL))
    assert list(found) == ["table.weight", "query.weight"]
    expected = search(Untied().table.weight.detach(), INT4)
    for part, wanted in zip(found["table.weight"], expected, strict=True):
        assert torch.equal(part, wanted)


def test_a_weight_of_two_linears_is_rounded_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.tanh(self.linear(x)))

    x = torch.randn(64, 32)
    found = list(calibrate(program_of(Shared(), x), [{"x0": x}], {"linear.weight": INT4}))
    assert [name for name, _ in found] == ["linear.weight"]


def test_what_feeds_no_linear_is_not_run_and_values_are_dropped() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x.new_full((1,), 7.0) + torch.linalg.cholesky(-x[:32].T @ x[:32])  # fails if it is run

    x = torch.randn(64, 32)
    program = program_of(Deep(), x)
    alive: list[weakref.ref[Tensor]] = []
    peak = 0
    for node in program.graph.nodes:
        if "tanh" in str(node.target):
            target = node.target

            def watched(value: Tensor, target: object = target) -> Tensor:
                nonlocal peak
                result = target(value)  # type: ignore[operator]
                alive.append(weakref.ref(result))
                peak = max(peak, sum(r() is not None for r in alive))
                return result

            watched.__name__ = "tanh"
            node.target = watched
    names = [n for n, _ in calibrate(program, [{"x0": x}], {f"layers.{i}.weight": INT4 for i in range(8)})]
    assert len(names) == 8
    assert len(alive) == 14  # the last tanh feeds no linear
    assert peak <= 4  # of the rounded and the float model: the old value and the new one


def test_gradients_stay_as_the_caller_has_them(program: Program) -> None:
    for _ in calibrate(program, batches(IDS, 4), ALL):
        assert torch.is_grad_enabled()


def test_activations_that_are_not_finite_are_refused(program: Program) -> None:
    class Overflow(Small):
        def forward(self, ids: Tensor) -> Tensor:
            return self.query(self.table(ids) / 0)

    with pytest.raises(PlanishError, match="second moment"):
        list(calibrate(program_of(Overflow(), IDS), batches(IDS, 4), LINEARS))


def with_palettes(program: Program, made: dict[str, Palette]) -> Program:
    store = program.weights
    for name, palette in made.items():
        store = store.with_tensor(name, palette.dequantize())
    return replace(program, weights=store)


def test_palettes_are_made_with_a_look_at_the_inputs(program: Program) -> None:
    generator = torch.Generator().manual_seed(2)
    other, shown = (torch.randint(0, 50, (n, 24), generator=generator) for n in (4, 64))
    formats = dict.fromkeys(LINEARS, PaletteFormat(3, 8))
    made = {n: p for n, p in calibrate(program, batches(shown, 16), formats) if isinstance(p, Palette)}
    assert set(made) == set(LINEARS)
    plain = {n: cluster(program.weights.read(n), f) for n, f in formats.items()}
    truth, found, blind = (
        interpret(p, {"x0": other})["y0"]
        for p in (program, with_palettes(program, made), with_palettes(program, plain))
    )
    assert 0 < (found - truth).square().mean() < 0.75 * (blind - truth).square().mean()

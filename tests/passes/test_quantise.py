from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import capture_family, feed, program_of, symmetric_scales, symmetric_values
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.quantise import MINIMA, SCALES, VALUES, Quantise, quantized, widths
from planish_passes.weights import QuantizedTensor, WeightFormat


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.sampled_from([8, 32, 48]), st.floats(1e-9, 1e3), st.integers(0, 2**31))
def test_integers_are_nearest_and_scales_are_float16(rows: int, columns: int, size: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    format = WeightFormat(8)
    scales = symmetric_scales(weight, format)
    values = symmetric_values(weight, scales, format)
    assert torch.equal(scales.half().float(), scales)
    assert int(values.abs().max()) <= 127
    error = (QuantizedTensor(values, scales, None, format).dequantize() - weight).abs()
    assert bool((error <= scales * 0.5001).all())


def test_linear_and_embedding_are_covered_and_the_rest_is_listed() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear, self.conv = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Conv1d(8, 8, 1)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.linear(self.table(ids))
            return self.conv(x.transpose(1, 2)) + nn.functional.linear(x, self.linear.weight.flip(0)).transpose(1, 2)

    ids = torch.randint(0, 20, (2, 5))
    outcome = run_passes(program_of(Mixed(), ids), [Canonicalise(), Quantise()])
    assert outcome.program.count()["planish.embedding_q"] == 1
    reasons = {r.node: r.reason for r in outcome.refused}
    assert any("also used by flip" in r for r in reasons.values())
    assert any("computed at run time" in r for r in reasons.values())
    assert any("covers linear and embedding" in r for r in reasons.values())


def test_a_tied_weight_is_quantised_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.linear(self.table(ids), self.table.weight)

    program = run_passes(program_of(Tied(), torch.randint(0, 20, (2, 5))), [Quantise()]).program
    assert program.count() == {"planish.embedding_q": 1, "planish.linear_q": 1}
    assert list(quantized(program)) == ["table.weight"]
    assert len(program.weights) == 2


@pytest.mark.parametrize(("family", "linears"), [("bert", 12), ("albert", 13), ("vit", 12)])
def test_real_classes(family: str, linears: int) -> None:
    captured, model = capture_family(family)
    program = run_passes(captured.program, [Canonicalise(), Quantise()]).program
    assert program.count()["planish.linear_q"] == linears
    given = feed(program)
    with torch.no_grad():
        expected = model(**given).last_hidden_state
    found = interpret(program, given)["last_hidden_state"]
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999


class Small(nn.Module):
    """A table, a linear of the same width, and one more that nothing is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.other = nn.Embedding(20, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.other(self.linear(self.table(ids)))


def test_integers_and_minima_of_the_store_are_taken_and_the_rest_has_its_reason() -> None:
    torch.manual_seed(0)
    program = program_of(Small(), torch.randint(0, 20, (2, 5)))
    known = {
        name: torch.randint(-8, 8, (rows, 64), dtype=torch.int8)
        for name, rows in (("table.weight", 20), ("linear.weight", 64))
    }
    scales, minima = torch.rand(64, 2) + 0.5, torch.randn(64, 2)
    store, real = program.weights, dict[str, Tensor]()
    for name, values in known.items():
        rows = len(values)
        parts = {VALUES: values, SCALES: scales[:rows], MINIMA: minima[:rows]}
        for suffix, tensor in parts.items():
            store = store.with_tensor(name + suffix, tensor)
        real[name] = QuantizedTensor(values, scales[:rows], None, WeightFormat(4, 32), minima[:rows]).dequantize()
    formats = dict.fromkeys(known, WeightFormat(4, 32))
    passes = [Quantise(None, formats, reasons={"other.weight": "it is F16"})]
    outcome = run_passes(replace(program, weights=store), passes)
    assert [r.reason for r in outcome.refused] == ["it is F16"]
    assert {n: t.dequantize().tolist() for n, t in quantized(outcome.program).items()} == {
        n: t.tolist() for n, t in real.items()
    }
    ids = torch.randint(0, 20, (2, 5))
    model = {n: program.weights.read(n) for n in program.weights} | real
    x = nn.functional.linear(model["table.weight"][ids], model["linear.weight"], model["linear.bias"])
    wanted = nn.functional.linear(x, model["other.weight"], model["other.bias"])
    (found,) = interpret(outcome.program, {"x0": ids}).values()
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-3)
    assert widths(outcome.program) == {"table.weight": 4, "linear.weight": 4}

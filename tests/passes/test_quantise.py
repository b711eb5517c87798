import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import capture_family, feed, program_of, symmetric_scales, symmetric_values
from torch import Tensor, nn

from planish_passes.canonicalise import Canonicalise
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.quantise import Quantise, quantized
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

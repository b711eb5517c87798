"""Palettes: what k-means finds, the operators that look values up, the pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import capture_family, feed, program_of
from torch import nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import Palettise, cluster, look_up, palettes, sensitive
from planish_passes.program import op_name
from planish_passes.quantise import INT8, tables


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_values_that_fit_into_the_tables_are_kept() -> None:
    entries = torch.linspace(-2, 2, 16).half().float()
    chosen = torch.randint(0, 16, (8, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    weight = entries[chosen.long()]
    found = cluster(weight, group=4)
    assert torch.equal(found.indices, chosen)
    assert torch.equal(found.dequantize(), weight)


def test_entries_are_ascending_float16_and_the_nearest_one_is_taken() -> None:
    weight = normal(32, 96)
    found = cluster(weight, group=16)
    assert found.tables.shape == (2, 16)
    assert torch.equal(found.tables, found.tables.sort(dim=1).values)
    assert torch.equal(found.tables, found.tables.half().float())
    distance = (weight.view(2, -1, 1) - found.tables.view(2, 1, 16)).abs()
    assert torch.equal(distance.min(-1).values, (weight - found.dequantize()).abs().view(2, -1))


def test_normal_values_come_close_to_the_best_quantiser_of_16_values() -> None:
    weight = normal(16, 4096)
    error = (weight - cluster(weight, group=16).dequantize()).square().mean()
    assert error < 0.00965  # Max (1960), "Quantizing for minimum distortion", table I: 0.009497


def test_each_group_has_its_own_table() -> None:
    weight = torch.cat([normal(4, 64), 100 * normal(4, 64, 1)])
    found = cluster(weight, group=4)
    assert found.tables[1].abs().max() > 20 * found.tables[0].abs().max()
    assert torch.equal(found.dequantize()[:4], look_up(found.indices[:4], found.tables[:1]))


def test_what_has_no_palette_is_refused() -> None:
    with pytest.raises(PlanishError, match="10 output channels"):
        cluster(normal(10, 4), group=4)
    with pytest.raises(PlanishError, match="NaN"):
        cluster(torch.tensor([[float("nan")]]), group=1)


def test_the_operator_against_dense_weights() -> None:
    found, x = cluster(normal(8, 32), group=4), normal(3, 32, 1)
    dense = found.dequantize()
    assert torch.equal(
        torch.ops.planish.linear_lut(x, found.indices, found.tables, None), torch.nn.functional.linear(x, dense)
    )


def test_linears_get_palettes_and_tables_get_integers() -> None:
    shared = run_passes(capture_family("bert")[0].program, pipeline.fuse()).program
    keep = sensitive(shared)
    assert {n.split(".", 3)[-1] for n in keep if "layer.0" in n} == {
        "attention.self.value.weight",
        "intermediate.dense.weight",
    }
    form = run_passes(shared, (Palettise(leaves=keep), *pipeline.quantise(INT8))).program
    found = palettes(form)
    assert not keep & set(found)
    assert not tables(shared) & set(found)
    calls = Counter(op_name(n) for n in form.graph.nodes if n.op == "call_function")
    assert (calls["planish.linear_lut"], calls["planish.linear_q"], calls["aten.linear"]) == (8, 4, 0)
    given = feed(form)
    expanded = run_passes(form, pipeline.for_target(frozenset(), None)).program
    for name, value in interpret(form, given).items():
        assert torch.allclose(value, interpret(expanded, given)[name], atol=1e-5)


def test_channels_that_a_group_does_not_divide() -> None:
    program = program_of(nn.Linear(32, 24), torch.randn(2, 32))
    (found,) = palettes(run_passes(program, (Palettise(group=16),)).program).values()
    assert found.tables.shape == (3, 16)

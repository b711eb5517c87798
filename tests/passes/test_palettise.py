"""The pass that puts palettes in the place of linear weights."""

from __future__ import annotations

from collections import Counter

import torch
from support import capture_family, feed, program_of
from torch import nn

from planish_passes import pipeline
from planish_passes.clusters import cluster
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import INDICES, TABLES, PaletteFormat, palettes
from planish_passes.palettise import Palettise, fitting, sites
from planish_passes.program import op_name
from planish_passes.quantise import INT8, tables

FORMAT = PaletteFormat(4, 16)


def test_linears_that_are_named_get_palettes_and_all_others_integers() -> None:
    shared = run_passes(capture_family("bert")[0].program, pipeline.fuse()).program
    can = sites(shared)
    assert not tables(shared) & set(can)
    assert len(can) == 12
    keep = {n for n in can if "value" in n or "intermediate" in n}
    formats = {n: PaletteFormat(6 if "query" in n else 4, 16) for n in can if n not in keep}
    form = run_passes(shared, (Palettise(formats), *pipeline.quantise(INT8))).program
    found = palettes(form)
    assert {n: p.tables.shape[1] for n, p in found.items()} == {n: 2**f.bits for n, f in formats.items()}
    calls = Counter(op_name(n) for n in form.graph.nodes if n.op == "call_function")
    assert (calls["planish.linear_lut"], calls["planish.linear_q"], calls["aten.linear"]) == (8, 4, 0)
    given = feed(form)
    expanded = run_passes(form, pipeline.for_target(frozenset(), None)).program
    for name, value in interpret(form, given).items():
        assert torch.allclose(value, interpret(expanded, given)[name], atol=1e-5)


def test_palettes_that_are_in_the_store_stay() -> None:
    program = program_of(nn.Linear(32, 16), torch.randn(2, 32))
    (name,) = sites(program)
    made = cluster(torch.zeros(16, 32) + 3, FORMAT)
    store = program.weights.with_tensor(name + INDICES, made.indices).with_tensor(name + TABLES, made.tables)
    form = run_passes(type(program)(**{**vars(program), "weights": store}), (Palettise({name: FORMAT}),)).program
    assert bool((palettes(form)[name].dequantize() == 3).all())


def test_channels_that_a_group_does_not_divide() -> None:
    assert fitting(FORMAT, 24) == PaletteFormat(4, 8)
    assert fitting(FORMAT, 48) == FORMAT
    assert fitting(FORMAT, 7) == PaletteFormat(4, 1)

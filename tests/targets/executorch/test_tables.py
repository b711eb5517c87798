"""Quantised tables: what is stored is what the kernels read, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.executorch import TARGET, tables
from planish_targets.executorch.pte import PteFile, open_pte

pytest.importorskip("executorch")

FORMATS = [WeightFormat(4, 32, symmetric=False), WeightFormat(4, 32), WeightFormat(8, 32), WeightFormat(8)]


class Lookup(nn.Module):
    """A table of 50 rows and a linear behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up = nn.Embedding(50, 64), nn.Linear(64, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.words(ids))  # type: ignore[no-any-return]


def lowered(format: WeightFormat, into: Path) -> Artifact:
    recipe = Recipe(f"int{format.bits}", format.bits)
    numerics = TARGET.numerics(recipe)
    shared = (*pipeline.fuse(), *pipeline.quantise(format), *pipeline.yardstick(numerics.weights, numerics.activations))
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe))
    program: Program = run_passes(program_of(Lookup(), torch.tensor([[3, 1, 4]])), (*shared, *rest)).program
    return TARGET.lower(program, into, recipe)


def unread(file: PteFile) -> list[tuple[int, ...]]:
    """Sizes of constants in the file that no instruction takes."""
    calls = [i.instr_args for i in file.plan.chains[0].instructions]
    used = {value for call in calls for value in getattr(call, "args", ())}
    constants = [i for i in range(len(file.plan.values)) if file.is_constant(i)]
    return [tuple(file.plan.values[i].val.sizes) for i in constants if i not in used]


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_every_constant_of_the_file_is_read(format: WeightFormat, tmp_path: Path) -> None:
    assert unread(open_pte(lowered(format, tmp_path).path)) == []


def test_a_table_that_stays_beside_its_packed_form_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "finish", lambda program: program)
    assert (50, 64) in unread(open_pte(lowered(FORMATS[0], tmp_path).path))


@pytest.mark.parametrize("format", FORMATS[:2], ids=str)
def test_codes_come_back(format: WeightFormat, tmp_path: Path) -> None:
    found = TARGET.read_weights(lowered(format, tmp_path))["words.weight"]
    assert found.format == format
    assert found.values.shape == (50, 64)
    assert int(found.values.min()) >= -8
    assert int(found.values.max()) <= 7
    assert (found.zero_points is None) == format.symmetric


def test_packing_has_an_inverse() -> None:
    values = torch.randint(-8, 8, (5, 6), dtype=torch.int8)
    assert torch.equal(tables.unpacked(tables.packed(values)), values)
    assert tables.packed(values)[0, 0] == int(values[0, 0] + 8) << 4 | int(values[0, 1] + 8)

"""Palettes in a package: tables and indices arrive, and defects in them are found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import program_of
from torch import nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import PaletteFormat, palettes
from planish_passes.palettise import Palettise, sites
from planish_passes.program import Program
from planish_targets.contract import Artifact, Recipe
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.mil import graph, spec
from planish_targets.coreml.weights import read_palettes

pytest.importorskip("coremltools")

ROWS, GROUP, COLUMNS = 48, 16, 24  # three tables; three divides the columns too, so that the wrong axis fits


def lowered(bits: int, into: Path) -> tuple[Program, Artifact]:
    torch.manual_seed(0)
    shared = program_of(nn.Linear(COLUMNS, ROWS), torch.randn(2, COLUMNS))
    shared = run_passes(shared, pipeline.fuse()).program
    shared = run_passes(shared, (Palettise(dict.fromkeys(sites(shared), PaletteFormat(bits, GROUP))),)).program
    yardstick = run_passes(shared, pipeline.yardstick(torch.float16, "none")).program
    form = run_passes(yardstick, pipeline.for_target(TARGET.capabilities.keeps, None)).program
    return form, TARGET.lower(form, into, Recipe("palettes", bits))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Artifact]:
    return lowered(4, tmp_path_factory.mktemp("palette"))


def found(form: Program, artifact: Artifact) -> set[str]:
    """What differs from the program."""
    return {name for name, check in (("weights", _weights), ("outputs", _outputs)) if not _holds(check, form, artifact)}


def _holds(check: Callable[[Program, Artifact], bool], form: Program, artifact: Artifact) -> bool:
    try:
        return check(form, artifact)
    except PlanishError:
        return False


def _weights(form: Program, artifact: Artifact) -> bool:
    stored, expected = read_palettes(artifact), palettes(form)
    return set(stored) == set(expected) and all(
        torch.equal(stored[n].indices, p.indices) and torch.equal(stored[n].tables, p.tables)
        for n, p in expected.items()
    )


def _outputs(form: Program, artifact: Artifact) -> bool:
    given = {"x0": torch.randn(2, COLUMNS, generator=torch.Generator().manual_seed(1))}
    truth = interpret(form, given)["y0"]
    return float((mil.load(artifact.path).run(given)["y0"] - truth).abs().max() / truth.abs().max()) < 1e-5


def _blob(artifact: Artifact) -> Path:
    return artifact.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def _place(artifact: Artifact, key: str) -> tuple[int, int]:
    """First byte and number of bytes of the tables or the indices."""
    walked = mil.load(artifact.path).function.block.walk()
    stored = next(o for o in walked if o.type == "constexpr_lut_to_dense").inputs[key][0]
    assert isinstance(stored, graph.Stored)
    start = stored.file.check(stored.offset, stored.type.dtype, stored.shape, stored.name)
    size = 2 * 16 * ROWS // GROUP if key == "lut" else ROWS * COLUMNS // 2
    return start, size


def turn_tables_round(artifact: Artifact) -> None:
    start, size = _place(artifact, "lut")
    raw = bytearray(_blob(artifact).read_bytes())
    entries = [raw[i : i + 2] for i in range(start, start + size, 2)]
    raw[start : start + size] = b"".join(entries[at + 15 - i] for at in range(0, len(entries), 16) for i in range(16))
    _blob(artifact).write_bytes(raw)


def swap_halves_of_bytes(artifact: Artifact) -> None:
    start, size = _place(artifact, "indices")
    raw = bytearray(_blob(artifact).read_bytes())
    raw[start : start + size] = bytes((b >> 4 | b << 4) & 0xFF for b in raw[start : start + size])
    _blob(artifact).write_bytes(raw)


def group_columns(artifact: Artifact) -> None:
    path = artifact.path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model = spec._messages().Model.FromString(path.read_bytes())
    for function in model.mlProgram.functions.values():
        operations: Any = function.block_specializations[function.opset].operations
        sizes = next(o for o in operations if o.type == "constexpr_lut_to_dense").inputs["lut"].arguments[0].value
        rows, columns = sizes.type.tensorType.dimensions[:2]
        rows.constant.size, columns.constant.size = 1, ROWS // GROUP
    path.write_bytes(model.SerializeToString())


def test_tables_and_indices_arrive_packed(made: tuple[Program, Artifact]) -> None:
    assert found(*made) == set()
    (stored,) = mil.load(made[1].path).quantized_weights().values()
    assert (stored.dtype, stored.op_type) == ("uint4", "constexpr_lut_to_dense")
    assert TARGET.read_weights(made[1]) == {}


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_tables_of_other_sizes(bits: int, tmp_path: Path) -> None:
    form, artifact = lowered(bits, tmp_path)
    assert found(form, artifact) == set()
    (stored,) = mil.load(artifact.path).quantized_weights().values()
    assert stored.lut is not None
    assert (stored.dtype, stored.lut.shape) == (f"uint{bits}", (ROWS // GROUP, 1, 2**bits, 1))


@pytest.mark.parametrize("fault", [turn_tables_round, swap_halves_of_bytes, group_columns])
def test_each_fault_is_found(fault: Callable[[Artifact], None], made: tuple[Program, Artifact], tmp_path: Path) -> None:
    form, artifact = made
    shutil.copytree(artifact.folder, tmp_path / "copy")
    copy = replace(artifact, folder=tmp_path / "copy")
    fault(copy)
    assert found(form, copy) == {"weights", "outputs"}

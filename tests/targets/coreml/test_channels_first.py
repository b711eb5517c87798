"""The forms that `--ane` chooses: channels first and 1x1 convolutions, positions without gathers; same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from support import capture_family, feed, program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import PaletteFormat, palettes
from planish_passes.palettise import Palettise, sites
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe, Wishes
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.emit import channels_first

pytest.importorskip("coremltools")

FRIENDLY = TARGET.adapted(Wishes(ane=True))


def form(family: str, weights: str = "float") -> Program:
    program = run_passes(capture_family(family)[0].program, pipeline.fuse()).program
    if weights == "int8":
        program = run_passes(program, pipeline.quantise(WeightFormat(8))).program
    if weights == "lut4":
        program = run_passes(program, (Palettise(dict.fromkeys(sites(program), PaletteFormat(4, 32))),)).program
    yardstick = run_passes(program, pipeline.yardstick(torch.float16, "none")).program
    sizes = {n: s for n, s in (("batch", 1), ("sequence", 16)) if n in yardstick.axes}
    return run_passes(yardstick, pipeline.for_target(TARGET.capabilities.keeps, sizes)).program


def lowered(program: Program, into: Path, target: object = FRIENDLY) -> tuple[Artifact, Counter[str]]:
    into.mkdir(exist_ok=True)
    artifact = target.lower(program, into, Recipe("any"))  # type: ignore[attr-defined]
    return artifact, Counter(o.type for o in mil.load(artifact.path).operations())


def error(program: Program, artifact: Artifact) -> float:
    given = feed(program, batch=1)
    found, largest = mil.load(artifact.path).run(given), 0.0
    for name, truth in interpret(program, given).items():
        keep = given["attention_mask"].bool() if "attention_mask" in given else slice(None)
        largest = max(largest, float((found[name][keep] - truth[keep]).abs().max() / truth[keep].abs().max()))
    return largest


@pytest.mark.parametrize(
    ("family", "weights"),
    [("bert", "int8"), ("vit", "lut4"), ("convnext", "float"), ("swin", "float")],
)
def test_the_same_numbers_with_channels_first(family: str, weights: str, tmp_path: Path) -> None:
    program = form(family, weights)
    _, plain = lowered(program, tmp_path / "plain", TARGET)
    artifact, operations = lowered(program, tmp_path / "ane")
    assert error(program, artifact) < 5e-6
    assert plain["linear"] > 0
    assert operations["linear"] == 0
    assert operations["conv"] == plain["conv"] + plain["linear"]
    added = operations["transpose"] - plain["transpose"]
    assert added < (plain["linear"] if family == "swin" else 0)  # its windows are moved about between linears
    (said,) = (note for note in artifact.notes if "channels first" in note)
    assert said.startswith(f"channels first: {plain['linear']} linears as 1x1 convolutions need ")
    stored, expected = TARGET.read_weights(artifact), quantized(program)
    assert {n: t.values.tolist() for n, t in stored.items()} == {n: t.values.tolist() for n, t in expected.items()}
    tables = TARGET.read_palettes(artifact)
    assert set(tables) == set(palettes(program))
    assert all(torch.equal(tables[n].indices, p.indices) for n, p in palettes(program).items())


def test_a_turn_the_wrong_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(channels_first._BACK, "heads", (0, 1, 2, 3))
    with pytest.raises(PlanishError, match="with channels first it came out with shape"):
        lowered(form("bert"), tmp_path)


def test_keys_turned_the_wrong_way_are_seen_in_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels_first, "_FROM_ROWS", (0, 1, 2))  # 16 tokens, 32 channels: no shape is the same
    with pytest.raises(PlanishError):
        lowered(form("bert"), tmp_path)


class Between(nn.Module):
    """A linear between operations that have no form with channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.cumsum(self.linear(torch.cumsum(x, 1)), 1),)


def test_it_is_left_where_it_costs_more_than_it_saves(tmp_path: Path) -> None:
    order = (*pipeline.yardstick(torch.float16, "none"), *pipeline.for_target(TARGET.capabilities.keeps, {}))
    program = run_passes(program_of(Between(), torch.zeros(1, 4, 8)), order).program
    artifact, operations = lowered(program, tmp_path)
    assert (operations["linear"], operations["conv"]) == (1, 0)
    assert "not channels first: 1 linears as 1x1 convolutions need 2 transposes" in artifact.notes


def test_nothing_is_said_where_there_is_nothing_to_choose(tmp_path: Path) -> None:
    artifact, operations = lowered(form("mobilenet-v2"), tmp_path)
    assert operations["conv"] > 0
    assert not [note for note in artifact.notes if "channels first" in note]


def test_positions_of_an_encoder_are_a_slice(tmp_path: Path) -> None:
    program = form("bert", "int8")
    _, plain = lowered(program, tmp_path / "plain", TARGET)
    _, operations = lowered(program, tmp_path / "ane")
    assert operations["gather"] < plain["gather"]


def test_shapes_are_fixed() -> None:
    assert TARGET.capabilities.ranged == {"sequence"}
    assert FRIENDLY.capabilities.ranged == frozenset()

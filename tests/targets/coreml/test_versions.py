"""Older versions of iOS: what they open, and what is refused for them, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import fused
from support import capture_family, feed

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import Pass, run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import PaletteFormat
from planish_passes.palettise import Palettise, sites
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe, Wishes
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.mil import spec
from planish_targets.coreml.versions import MACOS

pytest.importorskip("coremltools")

NEW = {"constexpr_blockwise_shift_scale", "read_state", "coreml_update_state"}  # since iOS 18
SPECIFICATION, OPSET = {16: 7, 17: 8, 18: 9}, {16: "CoreML6", 17: "CoreML7", 18: "CoreML8"}


def form(family: str, *order: Pass, sizes: Any = None) -> Program:
    shared = run_passes(capture_family(family)[0].program, (*pipeline.fuse(), *order)).program
    yardstick = run_passes(shared, pipeline.yardstick(torch.float16, "none")).program
    fixed = {n: s for n, s in (("batch", 1), ("sequence", 16)) if n in yardstick.axes} if sizes is None else sizes
    return run_passes(yardstick, pipeline.for_target(TARGET.capabilities.keeps, fixed)).program


def lowered(program: Program, ios: int, into: Path, **wishes: Any) -> Artifact:
    return TARGET.adapted(Wishes(minimum_ios=ios, **wishes)).lower(program, into, Recipe("any"))


@pytest.mark.parametrize(
    ("family", "bits", "ios"),
    [("bert", 0, 16), ("bert", 8, 16), ("bert", 8, 17), ("bert", 8, 18), ("modernbert", 8, 16), ("swin", 0, 17)],
)
def test_float_and_int8_per_channel_open_on_all(family: str, bits: int, ios: int, tmp_path: Path) -> None:
    program = form(family, *pipeline.quantise(WeightFormat(8) if bits else None))
    artifact = lowered(program, ios, tmp_path)
    assert artifact.options["opens_on"] == f"iOS {ios} / macOS {MACOS[ios]}"
    model = spec._messages().Model.FromString((artifact.path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    assert model.specificationVersion == SPECIFICATION[ios]
    assert {f.opset for f in model.mlProgram.functions.values()} == {OPSET[ios]}
    loaded = mil.load(artifact.path)
    types = {o.type for o in loaded.operations(constants=True)}
    assert ios == 18 or not types & NEW
    given = feed(program, batch=1)
    for name, truth in interpret(program, given).items():
        found = loaded.run(given)[name]
        if "attention_mask" in given:
            found, truth = found[given["attention_mask"].bool()], truth[given["attention_mask"].bool()]
        assert float((found - truth).abs().max() / truth.abs().max()) < 3e-6
    stored, expected = TARGET.read_weights(artifact), quantized(program)
    assert bool(expected) == bool(bits)
    assert set(stored) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(stored[name].values, weight.values)
        assert torch.equal(stored[name].scales, weight.scales)
        assert stored[name].format == weight.format


def llama() -> Program:
    return run_passes(
        fused("llama").program, (*pipeline.resident(24), *pipeline.for_target(TARGET.capabilities.keeps, None))
    ).program


def palettes() -> Program:
    shared = run_passes(capture_family("bert")[0].program, pipeline.fuse()).program
    return form("bert", Palettise(dict.fromkeys(sites(shared), PaletteFormat(4, 16))))


REFUSED = {
    "4-bit integers": lambda: form("bert", *pipeline.quantise(WeightFormat(4, 16))),
    "scales for groups of 16": lambda: form("bert", *pipeline.quantise(WeightFormat(8, 16))),
    "tables for groups of channels": palettes,
    "states": llama,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_version_lacks_is_refused_before_anything_is_written(what: str, tmp_path: Path) -> None:
    program = REFUSED[what]()
    for ios in (16, 17):
        with pytest.raises(PlanishError, match=what) as caught:
            lowered(program, ios, tmp_path)
        assert f"iOS {ios} / macOS {MACOS[ios]} has no" in caught.value.what
        assert "iOS 18 / macOS 15 has" in caught.value.what
        assert f"--minimum-ios {ios}" in caught.value.hint
        assert not list(tmp_path.iterdir())


def test_named_lengths_of_several_inputs_need_ios_18_and_ranges_do_not(tmp_path: Path) -> None:
    program = form("bert", sizes={"batch": 1})
    with pytest.raises(PlanishError, match="several inputs with lengths that are named"):
        lowered(program, 17, tmp_path / "named", lengths=(8, 16))
    (tmp_path / "range").mkdir()
    loaded = mil.load(lowered(program, 16, tmp_path / "range").path)
    given = feed(program, batch=1, sequence=11)
    (found,), (truth,) = loaded.run(given).values(), interpret(program, given).values()
    mask = given["attention_mask"].bool()
    assert float((found[mask] - truth[mask]).abs().max() / truth[mask].abs().max()) < 2e-6

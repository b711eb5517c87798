"""Recipe lut4: palettes for linears, integers for embeddings; which linears get wide ones; other targets say no."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoders import DECODERS
from support import FAMILIES, capture_family, feed, random_model
from transformers import AutoModelForCausalLM

from planish import build
from planish import palettes as choosing
from planish.compiled import Compiled, Silent
from planish.quantising import palette_rounding
from planish.recipes import RECIPES
from planish.request import Request
from planish.tasks import TASKS
from planish.verdict import Failed, Passed
from planish.verify.weights import check_palettes
from planish_passes import pipeline
from planish_passes.clusters import cluster
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.palette import Palette, PaletteFormat
from planish_passes.palettise import sites
from planish_passes.weights import WeightFormat


def palettes() -> dict[str, Palette]:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 16, (32, 8), dtype=torch.uint8, generator=generator)
    return {"a": Palette(indices, torch.randn(2, 16, generator=generator).sort().values)}


def test_equal_palettes_pass_and_each_part_is_compared() -> None:
    wanted = palettes()
    one = wanted["a"]
    assert isinstance(check_palettes(wanted, palettes()), Passed)
    changed = one.indices.clone()
    changed[3, 2] ^= 1
    for found, words in (
        ({}, "no palette"),
        ({"a": replace(one, indices=changed)}, "1 of 256 indices"),
        ({"a": replace(one, tables=one.tables.flip(1))}, "entries differ"),
        ({"a": replace(one, tables=one.tables.flip(0))}, "entries differ"),
    ):
        verdict = check_palettes(wanted, found)  # type: ignore[arg-type]
        assert isinstance(verdict, Failed)
        assert verdict.check == "palettes"
        assert words in verdict.reason


def compiled(target: str, tmp_path: Path, **more: Any) -> Compiled:
    model = random_model(FAMILIES["bert"]())
    given = {"task": "feature-extraction"}
    if more.pop("language", False):
        model, given = random_model(DECODERS["llama"](), AutoModelForCausalLM), {"context": 96}
    model.save_pretrained(tmp_path / "model")
    request = Request(model=str(tmp_path / "model"), targets=(target,), recipe="lut4", **given, **more)
    return build.compile_model(request, Silent(), tmp_path / "work")


def test_core_ml_takes_them_and_they_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    result = compiled("coreml", tmp_path, gates={"cosine": 0.5})
    assert not result.failed, result.failed
    checks = {v.check: v for v in result.targets[0].verdicts}
    assert isinstance(checks["palettes"], Passed)
    formats = Counter(w.format for w in result.weights)
    assert formats["int8 per channel"] == 3
    assert formats["16 values per 16 channels"] > 0
    assert formats["64 values per 16 channels"] > 0
    assert sum(formats[f"{n} values per 16 channels"] for n in (16, 64)) == 12


def test_a_language_model_has_16_values_everywhere_and_its_caches_compute_the_same(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    result = compiled("coreml", tmp_path, language=True, gates={"divergence": 5, "agreement": 0})
    assert not result.failed, result.failed
    checks = {v.check: v for v in result.targets[0].verdicts}
    assert {c for c, v in checks.items() if isinstance(v, Passed)} >= {"palettes", "weights", "lowering", "decoding"}
    formats = Counter(w.format for w in result.weights if "values" in w.format)
    assert formats == {"16 values per 16 channels": 15}


def test_a_target_without_palettes_says_so(tmp_path: Path) -> None:
    (name, verdict), *_ = compiled("onnxruntime", tmp_path, verify=False).failed
    assert name == "onnxruntime"
    assert "no palettes" in verdict.reason
    assert "coreml" in verdict.reason


@pytest.mark.parametrize("text", [True, False])
def test_the_weights_that_16_values_cannot_hold_get_64(text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    program = run_passes(capture_family("bert")[0].program, pipeline.fuse()).program
    name = "encoder.layer.1.output.dense.weight"
    store = program.weights
    for other in sites(program):
        if other != name:  # these fit into tables of 16 values
            store = store.with_tensor(other, cluster(store.read(other), PaletteFormat(4, 16)).dequantize())
    program = replace(program, weights=store)
    shown = [{p.name: feed(program)[p.name] for p in program.inputs}]
    monkeypatch.setattr(choosing, "readable", lambda *_: text)
    monkeypatch.setattr(choosing, "shown", lambda *_, **__: shown)
    request, task = Request(model="x", targets=("coreml",), recipe="lut4"), TASKS["feature-extraction"]
    recipe = replace(RECIPES["lut4"], bits=5.0)
    source: Any = SimpleNamespace(files=())
    found = choosing.formats(program, recipe, WeightFormat(8), request, task, source, Silent())
    assert set(found) == set(sites(program))
    assert [n for n, f in found.items() if f.bits == 6] == [name]
    assert {f.group for f in found.values()} == {16}


def test_bits_and_sizes_that_were_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    few, many = (
        sum("64 values" in w.format for w in compiled("coreml", tmp_path / str(bits), bits=bits, verify=False).weights)
        for bits in (6.7, 7.4)
    )
    assert few < many
    with pytest.raises(PlanishError, match="nothing is left for palettes"):
        compiled("coreml", tmp_path / "small", max_size=1000, verify=False)


def test_calibration_that_is_impossible_is_refused_and_never_chosen() -> None:
    program = run_passes(capture_family("vit")[0].program, pipeline.fuse()).program
    source: Any = SimpleNamespace()
    for asked, found in (("auto", "search"), ("nearest", "search"), ("search", "search")):
        request = Request(model="x", targets=("coreml",), recipe="lut4", rounding=asked)  # type: ignore[arg-type]
        assert palette_rounding(request, program, TASKS["feature-extraction"], source, 1) == found
    request = Request(model="x", targets=("coreml",), recipe="lut4", rounding="calibrated")
    with pytest.raises(PlanishError, match="nothing to calibrate with"):
        palette_rounding(request, program, TASKS["feature-extraction"], source, 1)

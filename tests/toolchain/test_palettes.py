"""Recipe lut4: palettes where they do, integers elsewhere; other targets say no."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import FAMILIES, random_model

from planish import build
from planish.compiled import Compiled, Silent
from planish.request import Request
from planish.verdict import Failed, Passed
from planish.verify.weights import check_palettes
from planish_passes.palette import Palette


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
    random_model(FAMILIES["bert"]()).save_pretrained(tmp_path / "model")
    request = Request(
        model=str(tmp_path / "model"), targets=(target,), recipe="lut4", task="feature-extraction", **more
    )
    return build.compile_model(request, Silent(), tmp_path / "work")


def test_core_ml_takes_them_and_they_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    result = compiled("coreml", tmp_path, gates={"cosine": 0.5})
    assert not result.failed, result.failed
    checks = {v.check: v for v in result.targets[0].verdicts}
    assert isinstance(checks["palettes"], Passed)
    formats = [w.format for w in result.weights]
    assert "16 values per 16 channels" in formats
    assert "int8 per channel" in formats


def test_a_target_without_palettes_says_so(tmp_path: Path) -> None:
    (name, verdict), *_ = compiled("onnxruntime", tmp_path, verify=False).failed
    assert name == "onnxruntime"
    assert "no palettes" in verdict.reason
    assert "coreml" in verdict.reason

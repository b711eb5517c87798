"""Packages of many architectures, run by the MIL interpreter, against the original models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import FAMILIES, capture_family, feed
from torch.nn.functional import cosine_similarity

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_targets.contract import Recipe
from planish_targets.coreml import TARGET, mil

pytest.importorskip("coremltools")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_interpreter_agrees_with_torch(family: str, tmp_path: Path) -> None:
    captured, model = capture_family(family)
    order = (*pipeline.fuse(), *pipeline.yardstick(torch.float16, "none"))
    yardstick = run_passes(captured.program, order).program
    sizes = {name: size for name, size in (("batch", 1), ("sequence", 16)) if name in yardstick.axes}
    form = run_passes(yardstick, pipeline.for_target(TARGET.capabilities.keeps, sizes)).program
    package = mil.load(TARGET.lower(form, tmp_path, Recipe("float")).path)
    given = feed(form, batch=1)
    # the model with the weights that the file holds
    with torch.no_grad():
        before = {name: p.clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
        truth = model(**given)[0]
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    (found,) = package.run(given).values()
    mask = given.get("attention_mask")
    pairs = [(found.flatten(), truth.flatten())]
    if mask is not None:
        pairs = list(zip(found[mask.bool()], truth[mask.bool()], strict=True))
    assert min(float(cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairs) >= 0.99999

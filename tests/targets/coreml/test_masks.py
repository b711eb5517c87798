"""Masks that a package takes as inputs: the same that the program computes, and used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoders import fused, logits, prompt
from torch import Tensor

from planish_passes import pipeline
from planish_passes.decoder_ops import causal_mask
from planish_passes.infra import run_passes
from planish_passes.program import Program
from planish_targets.contract import Artifact, Recipe, Wishes
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.masks import AWAY, Mask
from planish_targets.coreml.run import load
from planish_targets.serve import Call

pytest.importorskip("coremltools")

CUTS = [11, 6, 1, 1]


@pytest.mark.parametrize(("window", "chunk"), [(0, 0), (5, 0), (0, 4), (3, 4)])
def test_values_are_those_of_the_program(window: int, chunk: int) -> None:
    slots = torch.arange(3, 12)[None]
    found = Mask(window, chunk).values(slots, 16)
    assert torch.equal(found == 0, causal_mask(slots, 16, window, chunk))
    assert set(found.unique().tolist()) == {0.0, AWAY}
    assert float(torch.tensor(AWAY).half().exp()) == 0.0


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Program, Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish_targets.coreml.target.CHUNKS", (1, 8))
        yardstick = run_passes(fused(request.param).program, pipeline.yardstick(torch.float16, "none")).program
        order = (*pipeline.resident(32), *pipeline.for_target(TARGET.capabilities.keeps, None))
        form = run_passes(yardstick, order).program
        into: Path = tmp_path_factory.mktemp(request.param)
        return request.param, yardstick, TARGET.adapted(Wishes(ane=True)).lower(form, into, Recipe("float"))


def told(artifact: Artifact, tokens: Tensor) -> Tensor:
    model, found, at = load(Call(artifact.path, artifact.options, 1)), [], 0
    for count in CUTS:
        places = torch.arange(at, at + count)[None]
        found.append(model({"input_ids": tokens[:, at : at + count], "position_ids": places})["logits"])
        at += count
    return torch.cat(found, 1)


def test_a_decoder_with_masks_and_angles_from_outside(
    lowered: tuple[str, Program, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, yardstick, artifact = lowered
    names = {"causal_mask": [0, 0]} | ({"causal_mask_window_8": [8, 0]} if family == "gemma2" else {})
    assert artifact.options["masks"] == names
    assert artifact.options["inputs"] == ["input_ids", "position_ids"]
    for function, size in (("decode", 1), ("prefill", 8)):
        program = mil.load(artifact.path, function)
        assert {p.name: p.shape for p in program.inputs if p.name in names} == dict.fromkeys(names, (1, 1, size, 32))
        types = [o.type for o in program.operations()]
        assert not {"greater_equal", "less", "logical_and", "select"} & set(types)
        assert types.count("gather") == 1  # the embedding
    tokens = prompt(batch=1)
    truth = logits(yardstick, tokens[:, : sum(CUTS)], CUTS)
    error = lambda: float((told(artifact, tokens) - truth).abs().max() / truth.abs().max())  # noqa: E731
    assert error() < 1e-5
    monkeypatch.setattr(Mask, "values", lambda self, slots, length: torch.zeros(1, 1, slots.shape[1], length))
    assert error() > 1e-2

"""Packages that take a range of lengths, or some that are named: each length against the program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import capture_family, feed, program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Port, Program
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe, Wishes
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.emit.sizes import Sizes

pytest.importorskip("coremltools")

NAMED = (8, 16, 24)


def made(family: str, into: Path, lengths: tuple[int, ...] = (), bits: int = 0) -> tuple[Program, Artifact]:
    order = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if bits else None))
    yardstick = run_passes(
        capture_family(family)[0].program, (*order, *pipeline.yardstick(torch.float16, "none"))
    ).program
    form = run_passes(yardstick, pipeline.for_target(TARGET.capabilities.keeps, {"batch": 1})).program
    target = TARGET.adapted(Wishes(lengths=lengths))
    return form, target.lower(form, into, Recipe("int8" if bits else "float", bits))


def error(form: Program, artifact: Artifact, length: int) -> float:
    """Largest difference of what is not padding, as a share of the largest value."""
    given = feed(form, batch=1, sequence=length)
    (found,), (truth,) = mil.load(artifact.path).run(given).values(), interpret(form, given).values()
    mask = given["attention_mask"].bool()
    return float((found[mask] - truth[mask]).abs().max() / truth[mask].abs().max())


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2", "modernbert"])
def test_every_length_of_a_range(family: str, tmp_path: Path) -> None:
    form, artifact = made(family, tmp_path)
    loaded = mil.load(artifact.path)
    low, high = form.axes["sequence"]
    assert {p.shape for p in loaded.inputs} == {(1, None)}
    assert set(loaded.function.limits.values()) == {((1, 1), (low, high))}
    assert max(error(form, artifact, n) for n in (8, 13, 40)) < 2e-6
    with pytest.raises(PlanishError, match="its shape is"):
        error(form, artifact, high + 1)
    assert any("flexible input shapes" in a and "concerns input" in a for a in TARGET.placement(artifact).advice)


def test_lengths_that_are_named_and_no_others(tmp_path: Path) -> None:
    form, artifact = made("bert", tmp_path, NAMED, bits=8)
    assert max(error(form, artifact, n) for n in NAMED) < 2e-6
    assert artifact.options["lengths"] == NAMED
    assert any("flexible input shapes" in a and "concerns input" in a for a in TARGET.placement(artifact).advice)
    with pytest.raises(PlanishError, match="its shape is") as caught:
        error(form, artifact, 12)
    assert "(1, 16)" in caught.value.hint
    with pytest.raises(PlanishError, match="sequence = 600 is outside"):
        made("bert", tmp_path / "long", (8, 600))


def test_a_size_that_is_computed_wrongly_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sizes, "_compute", lambda self, size: self.one(13))
    with pytest.raises(PlanishError, match=r"came out with shape \(1, 13\)"):
        made("bert", tmp_path)


class Every(nn.Module):
    """Sizes in every place where a model may have them."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        count = x.shape[1]
        grid = torch.arange(count)[:, None] - torch.arange(1, 2 * count + 1, 2)[None]
        return (
            torch.cat([x, x], 1)[:, 1 : count + 1],
            x[:, -3:],
            x[:, -1],
            x.reshape(1, 2 * count, 2),
            (x[:, :, None, :1] * torch.full((1, count, count, 1), 0.5)).reshape(1, count * count),
            x.expand(3, count, 4),
            grid.to(torch.float32),
            x.repeat(1, 2, 1)[:, : 2 * count - 1],
        )


def test_sizes_in_every_place(tmp_path: Path) -> None:
    x = torch.randn(1, 6, 4)
    program = program_of(Every(), x, dynamic=[{1: torch.export.Dim("sequence", min=4, max=64)}])
    ports = (Port("x0", torch.float32, (1, "sequence", 4)),)
    program = replace(program, inputs=ports, axes={"sequence": (4, 64)})
    form = run_passes(program, (*pipeline.fuse(), *pipeline.for_target(TARGET.capabilities.keeps, {}))).program
    artifact = TARGET.lower(form, tmp_path, Recipe("float"))
    for count in (4, 9):
        given = {"x0": torch.randn(1, count, 4).half().float()}
        found, truth = mil.load(artifact.path).run(given), interpret(form, given)
        for name, value in truth.items():
            assert found[name].shape == value.shape, name
            torch.testing.assert_close(found[name], value.float(), rtol=1e-3, atol=1e-3)


def test_what_has_no_size_at_run_time_is_refused_by_name(tmp_path: Path) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.split([2, x.shape[1] - 2], 1)

    program = program_of(Halves(), torch.randn(1, 8, 4), dynamic=[{1: torch.export.Dim("sequence", min=4, max=64)}])
    program = replace(program, inputs=(Port("x0", torch.float32, (1, "sequence", 4)),), axes={"sequence": (4, 64)})
    with pytest.raises(PlanishError, match="parts whose sizes depend"):
        TARGET.lower(program, tmp_path, Recipe("float"))

"""Two programs of one model over one data file: equal bits, and no weight twice."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.weights import WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Recipe, Unavailable
from planish_targets.executorch import TARGET
from planish_targets.executorch.ptd import open_ptd
from planish_targets.executorch.weights import same

pytest.importorskip("executorch")

INT8 = Recipe("int8", 8)
FEED = {"x0": torch.tensor([[3, 1, 4, 1]])}
SPLIT = TARGET.with_split_weights()


class Part(nn.Module):
    """A table that both parts of a model have, and a linear of its own."""

    def __init__(self, own: str, rows: int = 500) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(rows, 64)
        torch.manual_seed(len(own))
        self.add_module(own, nn.Linear(64, 64))
        self.own = own

    def forward(self, ids: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(self.own)(torch.tanh(self.words(ids))))


@cache
def lowered(own: str, rows: int = 500) -> Artifact:
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8)))
    passes += pipeline.yardstick(torch.float32, "int8_token_asymmetric")
    passes += (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(INT8))
    program = run_passes(program_of(Part(own, rows), FEED["x0"]), passes).program
    return SPLIT.lower(program, Path(mkdtemp(prefix="planish-test-")), INT8)


def copied(artifact: Artifact, into: Path) -> Artifact:
    shutil.copytree(artifact.folder, into)
    return dataclasses.replace(artifact, folder=into)


def answer(artifact: Artifact) -> Tensor:
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    ran = runner.run(command, artifact, {"case": FEED})
    assert isinstance(ran, runner.Ran), ran
    return ran.outputs["case"]["y0"]


def data(artifact: Artifact) -> Path:
    return artifact.path.with_suffix(".ptd")


def test_one_file_serves_both_and_holds_nothing_twice(tmp_path: Path) -> None:
    apart = [lowered("read"), lowered("write it")]
    together = TARGET.share_weights([copied(a, tmp_path / str(i)) for i, a in enumerate(apart)])
    one, two = (data(a) for a in together)
    assert one.samefile(two)
    table = 500 * 64
    assert sum(data(a).stat().st_size for a in apart) - one.stat().st_size > 0.9 * table
    assert together[0].options["data"] == together[1].options["data"] != apart[0].options["data"]
    spans = Counter(span for span in open_ptd(one).places.values())
    content = one.read_bytes()
    stored = [content[begin : begin + size] for begin, size in spans if size > 64]
    assert len(set(stored)) == len(stored)
    for artifact, before in zip(together, apart, strict=True):
        assert torch.equal(answer(artifact), answer(before))
        assert "ship it once" in artifact.notes[-1]
        found, truth = TARGET.read_weights(artifact), TARGET.read_weights(before)
        assert all(same(found[n], truth[n]) for n in truth)
    assert len(quantized_names(together)) == 3


def quantized_names(artifacts: tuple[Artifact, ...]) -> set[str]:
    return {name for a in artifacts for name in TARGET.read_weights(a)}


def test_programs_stay_apart_when_a_name_means_two_constants(tmp_path: Path) -> None:
    parts = [copied(lowered("read"), tmp_path / "0"), copied(lowered("read", 400), tmp_path / "1")]
    apart = TARGET.share_weights(parts)
    assert [a.options for a in apart] == [p.options for p in parts]
    assert all("words.weight.q_values is not the same in all programs" in a.notes[-1] for a in apart)
    assert not data(parts[0]).samefile(data(parts[1]))


def test_programs_stay_apart_when_one_has_all_inside(tmp_path: Path) -> None:
    first, second = (copied(lowered(n), tmp_path / n) for n in ("read", "write it"))
    data(second).unlink()
    assert list(TARGET.share_weights([first, second])) == [first, second]
    assert list(TARGET.share_weights([first])) == [first]

"""Memory of a loaded file: what the estimate counts, and the estimate against what a process needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support import program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_targets import runner
from planish_targets.contract import Artifact, Recipe, Unavailable
from planish_targets.cost import Memory
from planish_targets.executorch import TARGET

pytest.importorskip("executorch")


def lowered(module: nn.Module, into: Path, *examples: Tensor) -> Artifact:
    passes = (*pipeline.fuse(), *pipeline.quantise(None), *pipeline.yardstick(torch.float32, "none"))
    passes += (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe("float")))
    return TARGET.lower(run_passes(program_of(module, *examples), passes).program, into, Recipe("float"))


def memory(artifact: Artifact) -> Memory:
    (method,) = TARGET.placement(artifact).methods
    assert method.peak == method.memory.peak
    return method.memory


class Shared(nn.Module):
    """One weight for several products, a table, and a wide value in the middle."""

    def __init__(self, width: int, rows: int, times: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.inner, self.times = nn.Embedding(rows, width), nn.Linear(width, width, bias=False), times

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for _ in range(self.times):
            x = torch.tanh(self.inner(x))
        return x  # type: ignore[no-any-return]


def test_a_shared_weight_is_stored_once_and_held_by_each_product(tmp_path: Path) -> None:
    found = memory(lowered(Shared(32, 10, 3), tmp_path, torch.tensor([[1, 2]])))
    weight, table = 32 * 32 * 4, 10 * 32 * 4
    assert found.stored == weight + table
    assert (found.mapped, found.packed) == (table, 3 * weight)
    assert (found.states, found.loading) == (0, weight)
    assert found.workspace == 2 * (2 * 32 * 4)  # a product's input and its output
    artifact = Artifact("executorch", tmp_path, "model.pte")
    described = TARGET.inspect(artifact.path)
    assert described is not None
    assert found.activations + found.states == described["planned_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at resident sizes")
def test_the_estimate_is_near_what_a_process_needs(tmp_path: Path) -> None:
    """79 MB, of which the estimate is off by less than a tenth."""
    artifact = lowered(Shared(1024, 8000, 11), tmp_path, torch.tensor([[1, 2, 3]]))
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    ran = runner.run(command, artifact, {"case": {"x0": torch.tensor([[1, 2, 3]])}})
    assert isinstance(ran, runner.Ran), ran
    peak, start = (int(str(ran.device[k])) for k in ("peak_rss_bytes", "start_rss_bytes"))
    assert peak - start > 70e6
    assert abs(memory(artifact).peak / (peak - start) - 1) < 0.1

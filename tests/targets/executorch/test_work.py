"""Work of operations: products by hand, and a whole network against torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import program_of
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_targets.contract import Placement, Recipe
from planish_targets.cost import Work
from planish_targets.executorch import TARGET
from planish_targets.executorch.work import Value, kernel_work

pytest.importorskip("executorch")


def value(*dims: int, constant: bool = False, itemsize: int = 4) -> Value:
    return Value(dims, torch.Size(dims).numel() * itemsize, constant)


@pytest.mark.parametrize(
    ("operator", "given", "work"),
    [
        ("aten::linear", [value(2, 3, 8), value(5, 8, constant=True), None, value(2, 3, 5)], (240, True, 472)),
        (
            "aten::addmm",
            [value(5, constant=True), value(3, 8), value(8, 5, constant=True), value(3, 5)],
            (120, True, 336),
        ),
        ("aten::bmm", [value(2, 3, 8), value(2, 8, 5), value(2, 3, 5)], (240, False, 632)),
        (
            "aten::convolution",
            [value(1, 4, 9), value(6, 2, 3, constant=True), None, None, None, None, False, None, value(1, 6, 7)],
            (252, True, 456),
        ),
        (
            "aten::convolution",
            [value(1, 4, 9), value(4, 6, 3, constant=True), None, None, None, None, True, None, value(1, 6, 11)],
            (648, True, 696),
        ),
        (
            "llama::custom_sdpa",
            [value(1, 3, 4, 16), value(1, 32, 2, 16), value(1, 32, 2, 16), value(1, 3, 4, 16)],
            None,
        ),
        (
            "quantized_decomposed::embedding_4bit",
            [value(100, 8, itemsize=1), value(1, 3), value(1, 3, 16)],
            (0, False, 216),
        ),
        ("aten::select_copy", [value(100, 8), value(8)], (0, False, 64)),
        ("llama::update_cache", [value(1, 3, 2, 16), value(1, 99, 2, 16), value(1)], (0, False, 768)),
    ],
)
def test_kernels(operator: str, given: list[Any], work: tuple[int, bool, int] | None) -> None:
    """What a kernel returns stands twice at the end of its arguments."""
    found = kernel_work(operator, [*given, given[-1]])
    if work is None:
        assert (found.macs, found.linear) == (2 * 3 * 4 * 16 * 32, False)
    else:
        assert found == Work(*work)


class Network(nn.Module):
    """Every kind of product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 16, 1, groups=2)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.grouped(torch.relu(self.depth(torch.relu(self.first(x)))))
        tokens = self.norm(seen.flatten(2).transpose(1, 2))
        tokens = tokens + self.down(torch.relu(self.up(tokens)))
        return torch.softmax(torch.bmm(tokens, tokens.transpose(1, 2)), -1)


def placed(into: Path) -> Placement:
    x = torch.randn(1, 3, 16, 16)
    passes = (*pipeline.fuse(), *pipeline.quantise(None), *pipeline.yardstick(torch.float32, "none"))
    passes += (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe("float")))
    program = run_passes(program_of(Network(), x), passes).program
    return TARGET.placement(TARGET.lower(program, into, Recipe("float")))


def test_products_are_those_that_torch_counts(tmp_path: Path) -> None:
    placement = placed(tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Network()(torch.randn(1, 3, 16, 16))
    counted = {str(op): flops // 2 for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = counted.pop("aten.bmm")
    assert sum(n.work.macs for n in placement.nodes if n.work and n.work.linear) == sum(counted.values())
    assert sum(n.work.macs for n in placement.nodes if n.work) == sum(counted.values()) + attention
    assert placement.linear_share() == placement.product_share() == 1.0


def test_a_layer_that_is_left_out_is_missing_from_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    whole = XnnpackPartitioner.get_matched_nodes_from_configs

    def without(self: Any, program: Any) -> list[list[fx.Node]]:
        return [
            g for g in whole(self, program) if not any("'grouped'" in str(n.meta.get("nn_module_stack")) for n in g)
        ]

    monkeypatch.setattr(XnnpackPartitioner, "get_matched_nodes_from_configs", without)
    placement = placed(tmp_path)
    tokens, lost = 64, 64 * 16 * 4
    total = 8 * 27 * tokens + 8 * 9 * tokens + lost + 2 * 16 * 32 * tokens
    assert placement.linear_share() == pytest.approx(1 - lost / total)
    (away,) = [n for n in placement.nodes if n.where == "fallback" and n.work and n.work.linear]
    assert (away.op, away.module) == ("aten::convolution", "grouped")
    assert away.work is not None
    assert away.work.macs == lost

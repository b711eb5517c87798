"""Checks that are asked together find what they find alone, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import empty, fused, prompt
from torch import Tensor

from planish.verify import together as module
from planish.verify.together import Steps, asked, known, together, walked
from planish_passes.interpret import Run, interpret, interpret_all
from planish_passes.program import Program
from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Runner

RUNNER = Runner(("nobody",), Evidence.EXECUTED, "nobody")


def text(length: int) -> dict[str, Tensor]:
    tokens = prompt(batch=1, length=length)
    program = fused("llama").program
    return {"input_ids": tokens, "position_ids": torch.arange(length)[None], **empty(program, 1)}


def logits(program: Program, run: Run) -> Steps[Tensor]:
    (told,) = yield from walked(program, [run])
    return told["logits"]


def walks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs of each walk."""
    seen: list[int] = []

    def counted(program: Program, runs: Sequence[Run]) -> list[dict[str, Tensor]]:
        seen.append(len(runs))
        return interpret_all(program, runs)

    monkeypatch.setattr(module, "interpret_all", counted)
    return seen


def test_runs_of_one_program_are_walked_together_and_equal_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program, seen, tapped = fused("llama").program, walks(monkeypatch), list[str]()
    tap = Run(text(5), tap=lambda node, value: tapped.append(node.name), returns=("logits",))
    runs = [Run(text(5)), tap, Run(text(9)), Run(text(5), torch.float64)]
    found = together([logits(program, run) for run in runs])
    assert seen == [3]
    assert len(tapped) == len(set(tapped)) > 10
    for run, one in zip(runs, found, strict=True):
        assert torch.equal(one, interpret(program, run.inputs, compute=run.compute)["logits"])


def test_a_walk_reads_no_more_than_its_share_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    program, seen = fused("llama").program, walks(monkeypatch)
    monkeypatch.setattr(module, "TOGETHER", 12)
    together([logits(program, Run(text(n))) for n in (5, 6, 7, 20)])
    assert seen == [2, 1, 1]


def test_programs_come_before_artifacts_which_are_called_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, order = fused("llama").program, list[str]()
    artifact = Artifact("nobody", tmp_path, "model")

    def run_all(command: Runner, given: Artifact, calls: Sequence[runner.Call], **how: Any) -> list[runner.Ran]:
        order.append(f"{len(calls)} calls")
        return [runner.Ran({"case": {"y": c.cases["case"]["x"] + 1}}, {}, Evidence.EXECUTED) for c in calls]

    def check(steps: int, value: float) -> Steps[float]:
        for _ in range(steps):
            yield from walked(program, [Run(text(3))])
            order.append("walk")
        call = runner.Call({"case": {"x": torch.tensor(value)}})
        (ran,) = yield from asked(RUNNER, artifact, [call], 1, 10.0)
        assert isinstance(ran, runner.Ran)
        return float(ran.outputs["case"]["y"])

    monkeypatch.setattr(module.protocol, "run_all", run_all)
    assert together([check(0, 1.0), check(2, 2.0), known("at once")]) == [2.0, 3.0, "at once"]
    assert order == ["walk", "walk", "2 calls"]

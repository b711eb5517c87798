"""Programs over one file of weights must answer with the same bits as over their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from planish import sharing
from planish.compiled import TargetResult, TensorBytes
from planish.request import Request
from planish.sharing import CHECK, share_weights, split, stored_twice
from planish.verdict import Failed, NotRun, Passed, Verdict
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Evidence, Runner
from planish_targets.executorch.target import ExecutorchTarget
from planish_targets.runner import Broke, Ran

REQUEST = Request(model="m", targets=("executorch",), split_weights=True, verify=True)
PROGRAMS = ("executorch/encode", "executorch/decode")


class Fake(ExecutorchTarget):
    """Shares by a note; runs nothing."""

    def runner(self, artifact: Artifact) -> Runner:
        return Runner(("true",), Evidence.EXECUTED, "Fake")

    def share_weights(self, artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
        return tuple(replace(a, notes=("shared",), options={"data": "one"}) for a in artifacts)


def results() -> list[TargetResult]:
    given = {"case": {"x": torch.ones(1)}}
    return [
        TargetResult(name, Artifact("executorch", Path(name), "model.pte"), (), golden_inputs=given)
        for name in PROGRAMS
    ]


def verdicts(monkeypatch: pytest.MonkeyPatch, after: Any, request: Request = REQUEST) -> list[Verdict]:
    """Of both programs, when the second run of the first one gives `after`."""
    value = torch.tensor([1.0, 2.0])

    def run(runner: Runner, artifact: Artifact, cases: Any, **how: Any) -> Ran | Broke:
        first = artifact.folder.name == "encode" and artifact.notes == ("shared",)
        told = after if first else value
        return told if isinstance(told, Broke) else Ran({"case": {"y": told}}, {"device": "Fake"}, Evidence.EXECUTED)

    monkeypatch.setattr(sharing.protocol, "run", run)
    made = share_weights(results(), [Fake()], request)
    assert [r.target for r in made] == list(PROGRAMS)
    assert all(r.artifact is not None and r.artifact.notes == ("shared",) for r in made)
    return [next(v for v in r.verdicts if v.check == CHECK) for r in made]


def test_equal_bits_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(isinstance(v, Passed) for v in verdicts(monkeypatch, torch.tensor([1.0, 2.0])))


@pytest.mark.parametrize(
    ("after", "reason"),
    [(torch.tensor([1.0, 2.0 + 1e-6]), "other bits: case/y"), (Broke("it crashed"), "it crashed")],
)
def test_other_bits_and_crashes_fail(after: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = verdicts(monkeypatch, after)
    assert isinstance(first, Failed)
    assert reason in first.reason
    assert isinstance(second, Passed)


def test_without_checks_nothing_is_run_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = REQUEST.model_copy(update={"verify": False})
    assert all(isinstance(v, NotRun) for v in verdicts(monkeypatch, Broke("must not run"), asked))


def test_nothing_is_run_where_nothing_was_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "share_weights", lambda self, given: tuple(replace(a, notes=("apart",)) for a in given))
    made = share_weights(results(), [Fake()], REQUEST.model_copy(update={"verify": False}))
    assert [(r.artifact.notes, r.verdicts) for r in made if r.artifact] == [(("apart",), ())] * 2


def test_one_program_and_refused_ones_are_left_alone() -> None:
    alone = results()[:1]
    assert list(share_weights(alone, [Fake()], REQUEST)) == alone
    refused = [results()[0], replace(results()[1], artifact=None)]
    assert list(share_weights(refused, [Fake()], REQUEST)) == refused


def test_a_target_that_cannot_is_refused_when_it_is_alone() -> None:
    executorch, reference = registry.find("executorch"), registry.find("reference")
    found = split(REQUEST, [executorch, reference])
    assert isinstance(found[0], ExecutorchTarget)
    assert found[0].split
    assert found[1] is reference
    with pytest.raises(PlanishError, match="reference does not write weights") as caught:
        split(REQUEST, [reference])
    assert caught.value.where == "--split-weights"
    assert caught.value.hint.endswith("executorch")
    assert split(REQUEST.model_copy(update={"split_weights": False}), [executorch]) == (executorch,)


def test_weights_that_two_programs_hold_are_told() -> None:
    executorch, reference = registry.find("executorch"), registry.find("reference")
    table, own = TensorBytes("words", 400, 100, "int8"), TensorBytes("own", 400, 100, "int8")
    (told,) = stored_twice([[table], [table, own]], [reference, executorch])
    assert "executorch: each of the 2 programs holds 100 bytes of the same weights; --split-weights" in told
    assert not stored_twice([[table], [own]], [executorch])
    assert not stored_twice([[table], [replace(table, format="int4")]], [executorch])
    assert not stored_twice([[table, own]], [executorch])
    assert not stored_twice([[table], [table]], [reference])
    assert not stored_twice([[table], [table, replace(own, after=100_000)]], [executorch])

"""A small run of what `python ci/fuzz.py` does: broken files get an error that says what, where and what to do."""

from __future__ import annotations

from pathlib import Path

import fuzzing
import pytest
from bundles import Pair, runner

from planish.trust.check import Trusted
from planish.trust.evidence import attest
from planish.trust.sign import KeySigner
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError


def test_a_fault_is_a_fault() -> None:
    outcomes = fuzzing.Outcomes()

    def silent() -> None:
        raise PlanishError("what", "", "hint")

    for call in (lambda: {}["key"], silent, lambda: None):
        outcomes.ask("label", call)
    assert (outcomes.read, outcomes.refused, len(outcomes.faults)) == (1, 0, 2)
    assert "KeyError" in outcomes.faults[0]


def judged(outcomes: fuzzing.Outcomes, least: int) -> None:
    assert outcomes.faults == []
    assert outcomes.total >= least
    assert outcomes.refused + outcomes.read == outcomes.total


def test_requests(tmp_path: Path) -> None:
    judged(fuzzing.fuzz_requests(tmp_path, 300, seed=1), 300)


def test_manifests(bundle: Path) -> None:
    judged(fuzzing.fuzz_manifests(bundle, 150, seed=1), 120)


def test_policies(tmp_path: Path, owner: Pair) -> None:
    judged(fuzzing.fuzz_policies(tmp_path, owner.public.read_bytes(), 200, seed=1), 200)


def test_signatures(bundle: Path, owners: Trusted) -> None:
    judged(fuzzing.fuzz_signatures(bundle, owners, 150, seed=1), 150)


def test_archives(bundle: Path, tmp_path: Path) -> None:
    judged(fuzzing.fuzz_archives(bundle, tmp_path, 150, seed=1), 150)


@pytest.mark.parametrize("fuzz", ["results", "golden"])
def test_tensors(bundle: Path, phone: Pair, tmp_path: Path, fuzz: str) -> None:
    if fuzz == "golden":
        judged(fuzzing.fuzz_golden(bundle, 40, seed=1), 40)
        return
    execution = Execution(commands={"coreml": runner(tmp_path)})
    attest(bundle, "coreml", KeySigner(phone.private), tmp_path / "result", execution, keep_failed=False)
    judged(fuzzing.fuzz_results(bundle, tmp_path / "result", 150, seed=1), 150)

"""A sample of what `python ci/tamper.py` does: every attempt on a signed bundle is refused, and none crashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bundles import Pair, compiled, model_folder
from tampering import Mutation, mutations

from planish.bundle import write_bundle
from planish.compiled import Silent
from planish.trust.check import Trusted
from planish.trust.sign import KeySigner, sign_bundle
from planish.verify import Ask, verify_bundle
from planish_passes.errors import PlanishError

EVERY = 3


@pytest.fixture(scope="session")
def other(owner: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle of the same maker."""
    root = tmp_path_factory.mktemp("other")
    at = write_bundle(compiled(model_folder(root / "other"), root, "two"), root / "other.planish")
    sign_bundle(at, KeySigner(owner.private))
    return at


def refused(bundle: Path, owners: Trusted) -> bool:
    ask = Ask(signers=owners, run=False)
    try:
        report = verify_bundle(bundle, targets=None, runner={}, threads=1, timeout=9, progress=Silent(), ask=ask)
    except PlanishError as problem:
        return bool(problem.what and problem.where and problem.hint)
    return bool(report.failed)


def test_untouched(written: Path, owners: Trusted) -> None:
    assert not refused(written, owners)


def test_every_nth_mutation(written: Path, other: Path, owners: Trusted, tmp_path: Path) -> None:
    tried: list[Mutation] = []
    for mutation in list(mutations(written, other, seed=1, flips=2))[::EVERY]:
        at = Path(shutil.copytree(written, tmp_path / "work" / written.name))
        mutation.apply(at)
        assert refused(at, owners), f"{mutation.kind}: {mutation.name}"
        tried.append(mutation)
        shutil.rmtree(tmp_path / "work")
    assert len(tried) >= 300
    assert len({mutation.kind for mutation in tried}) >= 20

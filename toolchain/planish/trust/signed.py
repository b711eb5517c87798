"""Signature and policy as verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from planish.bundle import Bundle
from planish.trust.check import Signer, Trusted, verify_claim
from planish.trust.envelope import LARGEST, SignatureRefused, read_claim
from planish.trust.evidence import Judged
from planish.trust.judge import NAME, judge
from planish.trust.policy import Demands
from planish.trust.sign import signed_files
from planish.verdict import Failed, Metric, Passed, Verdict
from planish_targets.contract import Evidence

CHECK = "signature"  # name of the verdict


def check_signature(bundle: Bundle, trusted: Trusted) -> tuple[Passed | Failed, Signer | None]:
    """Is every file of the bundle, and no other, signed by somebody who is trusted?

    Args:
        bundle: one whose hashes fit.
        trusted: whose signature counts.

    Raises:
        PlanishError: it is signed in a way for which nobody is named, or Sigstore cannot be reached.
    """
    if bundle.signature is None:
        return Failed(CHECK, Evidence.EXECUTED, "the bundle is not signed"), None
    where = str(bundle.signature)
    try:
        with bundle.signature.open("rb") as file:
            claim = read_claim(file.read(LARGEST + 1), where)
        wanted = signed_files(bundle)
        if claim.files != wanted:
            paths = sorted(p for p in {*claim.files, *wanted} if claim.files.get(p) != wanted.get(p))
            raise SignatureRefused(f"The signature is of other files: {', '.join(paths[:3])}.", where, "")
        signer = verify_claim(claim, bundle.root, trusted, where)
    except SignatureRefused as problem:
        return Failed(CHECK, Evidence.EXECUTED, _sentence(problem.what)), None
    return Passed(CHECK, Evidence.EXECUTED, (Metric("files", len(claim.files)),), str(signer)), signer


def check_policy(bundle: Bundle, demands: Demands, sent: Sequence[Judged]) -> list[Verdict]:
    """One failed verdict per broken rule, or one that passed."""
    broken: list[Verdict] = list(judge(demands.rules, bundle.manifest, sent))
    return broken or [Passed(NAME, Evidence.STRUCTURAL)]


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].removesuffix(".")

"""Evidence from devices: run an artifact and sign what came out, accept such a result into a bundle, judge it again."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from planish.bundle import Bundle, open_bundle
from planish.bundle.additions import PARTS, Recorded
from planish.bundle.files import fingerprint, settle
from planish.bundle.manifest import EVIDENCE, SIGNATURE
from planish.trust.check import Signer, Trusted, trusts
from planish.trust.results import (
    Result,
    ResultRefused,
    describe_run,
    read_result,
    store,
    verify_result,
    write_result,
)
from planish.trust.sign import Signing, sign_folder
from planish.verdict import Failed, NotRun, Passed, Verdict
from planish.verify.golden import check_golden, golden_inputs
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets import runner as protocol
from planish_targets.contract import Evidence, Unavailable

CHECK = "device"  # name of the verdicts


@dataclass(frozen=True)
class Judged:
    """A result, what its outputs are worth and who says so.

    Args:
        target: what was run.
        verdict: of the comparison with the golden outputs; NotRun when the signer is not trusted.
        signer: None when nobody whom we trust signed it.
        folder: where the result lies; None when it was not kept.
    """

    target: str
    verdict: Verdict
    signer: Signer | None
    folder: Path | None


def attest(path: Path, target: str, signing: Signing, into: Path, execution: Execution, *, keep_failed: bool) -> Judged:
    """Run an artifact on the golden inputs, compare, and write a signed result.

    Args:
        path: the bundle.
        target: what to run.
        signing: who signs.
        into: the folder to write; must not exist.
        execution: how to run it.
        keep_failed: write it also when the outputs are not the stored ones.

    Raises:
        PlanishError: a damaged bundle, nothing to run, a runner that broke, or a key that cannot sign.
    """
    bundle = whole(path)
    told = describe_run(bundle, target)
    if os.path.lexists(into):
        raise PlanishError("There is already something of that name.", str(into), "choose another place with -o")
    ran = _run(bundle, target, execution)
    device = {**ran.device, "evidence": str(ran.evidence)}
    verdict = check_golden(bundle, target, ran.outputs, ran.evidence, str(ran.device.get("device", "")), CHECK)
    if isinstance(verdict, Failed) and not keep_failed:
        return Judged(target, verdict, None, None)
    with _beside(into) as folder:
        write_result(folder, told, ran.outputs, device)
        expected = {name: fingerprint(folder / name).sha256 for name in PARTS if name != SIGNATURE}
        claim = sign_folder(folder, signing, folder / SIGNATURE, expected, (SIGNATURE,))
        settle(folder)
        os.rename(folder, into)
    return Judged(target, verdict, Signer(claim.kind, "of this run", claim.hint), into)


def accept(path: Path, result: Path, trusted: Trusted, *, keep_failed: bool) -> Judged:
    """Check a result of a device and put it into the bundle.

    Raises:
        PlanishError: unsigned, altered, of something else, of nobody who is trusted, or recorded already.
    """
    bundle = whole(path)
    read = read_result(result, bundle, exact=False)
    signer = verify_result(read, trusted, str(result))
    verdict = _verdict(bundle, read, signer)
    if isinstance(verdict, Failed) and not keep_failed:
        return Judged(read.told.target, verdict, signer, None)
    at = bundle.root / EVIDENCE / registry.folder(read.told.target) / read.name
    if os.path.lexists(at):
        raise PlanishError("The bundle has this result already.", str(at), "nothing is to be done")
    with _beside(bundle.root) as folder:
        store(read, folder)
        settle(folder)
        at.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, at)
    return Judged(read.told.target, verdict, signer, at)


def judge_recorded(bundle: Bundle, trusted: Trusted) -> tuple[Judged, ...]:
    """Everything that devices sent back, checked again: files, signer, numbers.

    A result of somebody who is not trusted says nothing; one that was altered has failed.
    """
    return tuple(_judge(bundle, recorded, trusted) for recorded in bundle.evidence())


def whole(path: Path) -> Bundle:
    """Open a bundle and check every hash.

    Raises:
        PlanishError: it is not a bundle, or not whole.
    """
    bundle = open_bundle(path)
    if problems := bundle.check_hashes():
        hint = "copy it again from where it was made, or compile it again"
        raise PlanishError(f"The bundle is not whole: {problems[0]}.", str(bundle.root), hint)
    return bundle


def _judge(bundle: Bundle, recorded: Recorded, trusted: Trusted) -> Judged:
    where = f"{EVIDENCE}/{registry.folder(recorded.target)}/{recorded.name}"
    try:
        result = read_result(recorded.folder, bundle)
        if result.told.target != recorded.target or result.name != recorded.name:
            raise ResultRefused("The result lies where another one belongs.", where, "accept it again")
        if not trusts(trusted, result.claim):
            by = f"{result.claim.kind} {result.claim.hint[:16]}".strip()
            reason = f"{where}: {result.device.device}, signed by {by}, which nothing here says to trust"
            return Judged(recorded.target, NotRun(CHECK, reason), None, recorded.folder)
        signer = verify_result(result, trusted, where)
    except PlanishError as problem:
        failed = Failed(CHECK, Evidence.NOT_RUN, f"{where}: {problem.what}")
        return Judged(recorded.target, failed, None, recorded.folder)
    return Judged(recorded.target, _verdict(bundle, result, signer), signer, recorded.folder)


def _verdict(bundle: Bundle, result: Result, signer: Signer) -> Passed | Failed:
    device = f"{result.device.device}, signed by {signer}"
    return check_golden(bundle, result.told.target, result.outputs, result.device.evidence, device, CHECK)


def _run(bundle: Bundle, target: str, execution: Execution) -> protocol.Ran:
    artifact = bundle.artifact(target)
    given = golden_inputs(bundle, target)
    if not given:
        hint = "compile it with checks, so that it stores inputs and outputs"
        raise PlanishError("The bundle stores no golden inputs.", f"{bundle.root} {target}", hint)
    runner = execution.runner(registry.find(target.partition("/")[0]), artifact)
    if isinstance(runner, Unavailable):
        hint = f'name a command that can: --runner {target.partition("/")[0]}="ssh HOST planish-run"'
        raise PlanishError(f"Nothing here runs the artifact: {runner.reason}.", target, hint)
    ran = protocol.run(runner, artifact, given, threads=execution.threads, timeout=execution.timeout)
    if isinstance(ran, protocol.Broke):
        raise PlanishError(f"The run broke: {ran.reason}.", target, "planish verify shows more; then try again")
    return ran


@contextmanager
def _beside(at: Path) -> Iterator[Path]:
    at.parent.mkdir(parents=True, exist_ok=True)
    folder = at.parent / f".{at.name}.new-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

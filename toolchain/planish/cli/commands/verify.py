"""planish verify"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import GATE, Told, UsageError, tell
from planish.cli.progress import progress

if TYPE_CHECKING:
    from planish.verify import Ask, BundleReport
    from planish.verify.lowering import Execution


def verify_command(
    bundle: options.BundleOrPacked,
    targets: options.Targets = None,
    runner: options.RunnerPairs = None,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtimes.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of one run.")] = 600.0,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Run every artifact.")] = True,
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer", help="Apps' libraries must split hard texts as transformers does.")
    ] = False,
    signature: Annotated[
        bool, typer.Option("--signature", help="It must be signed by somebody who is trusted.")
    ] = False,
    key: options.TrustedKeys = None,
    certificate: options.TrustedRoots = None,
    identity: options.TrustedIdentity = None,
    issuer: options.TrustedIssuer = None,
    evidence_key: Annotated[
        list[Path] | None,
        typer.Option(
            "--evidence-key", metavar="PUB.pem", help="Public key of a device whose results count; repeatable."
        ),
    ] = None,
    attest: Annotated[
        Path | None,
        typer.Option(
            "--attest",
            metavar="KEY.pem",
            help="Sign with this key what each artifact returns here, once more run, for planish accept.",
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="POLICY.toml", help="Rules that the bundle must keep.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Check a bundle again: hash every file, run every artifact on the stored inputs, compare with the stored outputs.

    \b
    Examples:
      planish verify my-model-int8.planish
      planish verify my-model-int8.planish.zip --signature --key maker.pub.pem
      planish verify my-model-int8.planish --policy policy.toml --no-run
      planish verify my-model-int8.planish --runner coreml="ssh mac planish-run"
      planish verify my-model-int8.planish --target coreml --attest mac.pem
                                      on a Mac: signed `executed` evidence
      planish verify my-model-int8.planish --tokenizer
      planish verify my-model-int8.planish --json | jq .ok

    A policy names the signers that count and what is asked of each target; all that it does not find is refused:

    \b
      version = 1
      [signature]
      keys = ["maker.pub.pem"]
      [[sources]]
      hub = "BAAI/*"
      [targets.coreml]
      evidence = "executed"
      checks = ["quality", "lowering"]
    """
    commands = options.pairs(runner, "--runner")
    with progress(quiet) as shown, results_only(verbose):
        shown.stage("start", "torch, transformers")
        from planish.bundle.unpack import unpacked
        from planish.cli.results import artifact_sizes, results_to_json, show_results
        from planish.verify import verify_bundle
        from planish.verify.lowering import Execution

        signers = options.trusted(key, certificate, identity, issuer)
        ask = replace(_ask(signature, signers, evidence_key, policy, run), tokenizer=tokenizer)
        asked = options.known_targets(options.names(targets))
        options.check_commands(commands)
        with unpacked(bundle) as folder:
            report = verify_bundle(
                folder,
                targets=asked or None,
                runner=commands,
                threads=threads,
                timeout=timeout,
                progress=shown,
                ask=ask,
            )
            sizes = artifact_sizes(report.targets)
            attested = _attested(folder, bundle, report, attest, Execution(threads, timeout, commands))
    if as_json:
        told = {"ok": not report.failed, "bundle": bundle, "signer": report.signer}
        emit_json({**told, **({"attested": attested} if attest else {}), **results_to_json(report, sizes)})
    else:
        show_results(report, sizes, str(bundle))
        _show_trust(report)
        for name, at in attested.items():
            out().print("result", style="bold", end="  ")
            out().print(f"{name}: {at}", soft_wrap=True)
    if report.failed:
        count = len(report.failed)
        what = f"{count} gates failed." if count > 1 else "A gate failed."
        where = ", ".join(dict.fromkeys(f"{name} {verdict.check}" for name, verdict in report.failed))
        tell(Told(what, where, _hint(report)))
        raise typer.Exit(GATE)


def _ask(signature: bool, signers: object, evidence_key: list[Path] | None, policy: Path | None, run: bool) -> Ask:
    from planish.trust.check import Trusted
    from planish.trust.policy import load_policy
    from planish.verify import Ask

    assert signers is None or isinstance(signers, Trusted)
    if policy is not None:
        if signature or signers is not None or evidence_key:
            hint = "leave --signature, --key and --evidence-key out, or write them into the policy"
            raise UsageError("The policy itself says whose signatures count.", "--policy", hint)
        return Ask(policy=load_policy(policy), run=run)
    devices = options.trusted(evidence_key, None, None, None) or Trusted()
    if signature and signers is None:
        signers = Trusted()  # what the bundle is signed with decides what to say
    return Ask(signers=signers, devices=devices, run=run)


def _attested(
    folder: Path, bundle: Path, report: BundleReport, key: Path | None, execution: Execution
) -> dict[str, Path]:
    """Target -> folder with its signed result, beside the bundle, for each artifact that passed here."""
    if key is None:
        return {}
    from planish.cli.commands.sign import signing_of
    from planish.trust.evidence import attest
    from planish.verdict import Passed

    signing = signing_of(key, None, None, sigstore=False, ambient=False)
    found = {}
    for result in report.targets:
        if any(v.check == "lowering" and isinstance(v, Passed) for v in result.verdicts):
            into = bundle.with_name(f"{bundle.name}.{result.target.replace('/', '-')}.result")
            done = attest(folder, result.target, signing, into, execution, keep_failed=False)
            if done.folder is not None:
                found[result.target] = done.folder
    return found


def _show_trust(report: BundleReport) -> None:
    from planish.verdict import Passed

    console = out()
    for result in report.targets:
        for sent in (v for v in result.verdicts if v.check == "device" and isinstance(v, Passed)):
            console.print("evidence", style="green", end="  ")
            console.print(f"{result.target}: {sent.evidence} on {sent.device}", soft_wrap=True)
    for split in (v for v in report.verdicts if v.check == "tokenizer" and isinstance(v, Passed)):
        counts = {m.name: int(m.value) for m in split.metrics}
        console.print("tokenizer", style="green", end="  ")
        told = f"as transformers: {counts['texts']} texts, {counts['characters']:,} characters, {split.device}"
        console.print(told, soft_wrap=True)
    if report.signer is not None:
        console.print("signed", style="green", end="  ")
        console.print(f"by {report.signer}", soft_wrap=True)
    if any(v.check == "policy" and isinstance(v, Passed) for v in report.verdicts):
        console.print("policy", style="green", end="  ")
        console.print("kept")
    if not report.failed:
        console.print("no check failed", style="green")


def _hint(report: BundleReport) -> str:
    checks = {verdict.check for _, verdict in report.failed}
    if "policy" in checks:
        return "get a bundle that keeps the policy, or change the policy on purpose"
    if "tokenizer" in checks:
        return "let the app bring another tokenizer library along, or another tokenizer.json"
    if "signature" in checks:
        return "get the bundle from its maker again, and do not ship this one"
    return "compile the model again, or copy the bundle again from where it was made"

"""planish attest, planish accept"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.commands.sign import Ambient, Certificate, Chain, Key, Sigstore, signing_of
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import GATE, Told, UsageError, tell
from planish.cli.progress import progress

if TYPE_CHECKING:
    from planish.trust.evidence import Judged

KeepFailed = Annotated[bool, typer.Option("--keep-failed", help="Write it also on exit 3.")]


def attest_command(
    bundle: options.Bundle,
    target: Annotated[str, typer.Option("--target", "-t", metavar="TARGET", help="What to run.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.")],
    key: Key = None,
    certificate: Certificate = None,
    chain: Chain = None,
    sigstore: Sigstore = False,
    ambient: Ambient = False,
    runner: options.RunnerPairs = None,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtime.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of the run.")] = 600.0,
    keep_failed: KeepFailed = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run an artifact here, on the inputs that the bundle stores, and sign what came out.

    This is for the machine that has the runtime: a Mac, a Windows box. Its folder goes back to the bundle's maker, who
    calls planish accept. An app on a phone writes the same four files itself (docs/trust.md).

    \b
    Examples:
      planish attest m.planish -t coreml --key mac.pem -o on-mac
      planish attest m.planish -t directml --key box.pem -o on-winbox \\
          --runner directml="ssh winbox planish-run"
      planish accept m.planish on-mac --key mac.pub.pem
    """
    commands = options.pairs(runner, "--runner")
    with progress(quiet) as shown, results_only():
        signing = signing_of(key, certificate, chain, sigstore, ambient)
        shown.stage("run", target)
        from planish.trust.evidence import attest
        from planish.verify.lowering import Execution

        options.check_commands(commands)
        judged = attest(bundle, target, signing, output, Execution(threads, timeout, commands), keep_failed=keep_failed)
    _end(judged, bundle, as_json, "the result")


def accept_command(
    bundle: options.Bundle,
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="Folder that a device sent back.", show_default=False)
    ],
    key: options.TrustedKeys = None,
    certificate: options.TrustedRoots = None,
    identity: options.TrustedIdentity = None,
    issuer: options.TrustedIssuer = None,
    keep_failed: KeepFailed = False,
    as_json: options.Json = False,
) -> None:
    """Take the result of a device into a bundle, under evidence/.

    It must be signed by somebody who is named here, be of this bundle and this artifact, and reproduce the stored
    outputs. The bundle's own signature stays good: each result carries its own.

    \b
    Examples:
      planish accept m.planish on-mac --key mac.pub.pem
      planish verify m.planish --evidence-key mac.pub.pem
    """
    with results_only():
        from planish.trust.evidence import accept

        trusted = options.trusted(key, certificate, identity, issuer)
        if trusted is None:
            hint = "--key PUB.pem, --certificate ROOT.pem, or --identity NAME --issuer URL"
            raise UsageError("Nothing says whose results count.", "--key", hint)
        judged = accept(bundle, result, trusted, keep_failed=keep_failed)
    _end(judged, bundle, as_json, "it")


def _end(judged: Judged, bundle: Path, as_json: bool, what: str) -> None:
    from planish.bundle import verdict_to_json
    from planish.form import small
    from planish.verdict import Failed, NotRun

    verdict = judged.verdict
    assert not isinstance(verdict, NotRun)
    failed = isinstance(verdict, Failed)
    if as_json:
        told: dict[str, Any] = {"target": judged.target, "verdict": verdict_to_json(verdict)}
        emit_json({"ok": not failed, "bundle": bundle, **told, "signer": judged.signer, "folder": judged.folder})
    else:
        gate = next((f"{m.name} {small(m.value)}, limit {small(m.limit)}" for m in verdict.metrics if m.limit), "")
        text = f"{judged.target}: {verdict.evidence} on {verdict.device}; {gate}".rstrip("; ")
        out().print("FAILED" if failed else "passed", style="bold red" if failed else "green", end="  ")
        out().print(text, soft_wrap=True)
        if judged.folder is not None:
            out().print("result", style="bold", end="  ")
            out().print(str(judged.folder), soft_wrap=True)
    if isinstance(verdict, Failed):
        kept = f"--keep-failed writes {what} all the same" if judged.folder is None else "it was written all the same"
        tell(Told(f"The outputs are not those of the bundle: {verdict.reason}.", judged.target, kept))
        raise typer.Exit(GATE)

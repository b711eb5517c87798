"""planish verify"""

from __future__ import annotations

from typing import Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.guard import GATE, Told, tell
from planish.cli.progress import progress


def verify_command(
    bundle: options.Bundle,
    targets: options.Targets = None,
    runner: options.RunnerPairs = None,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtimes.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of one run.")] = 600.0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Check a bundle again: hash every file, run every artifact on the stored inputs, compare with the stored outputs.

    \b
    Examples:
      planish verify my-model-int8.planish
      planish verify my-model-int8.planish --runner coreml="ssh mac planish-run"
      planish verify my-model-int8.planish --json | jq .ok
    """
    commands = options.pairs(runner, "--runner")
    with progress(quiet) as shown, results_only(verbose):
        shown.stage("start", "torch, transformers")
        from planish.cli.results import artifact_sizes, results_to_json, show_results
        from planish.verify import verify_bundle

        asked = options.known_targets(options.names(targets))
        options.check_commands(commands)
        report = verify_bundle(
            bundle, targets=asked or None, runner=commands, threads=threads, timeout=timeout, progress=shown
        )
        sizes = artifact_sizes(report.targets)
    if as_json:
        emit_json({"ok": not report.failed, "bundle": bundle, **results_to_json(report, sizes)})
    else:
        show_results(report, sizes, str(bundle))
        if not report.failed:
            out().print("no check failed", style="green")
    if report.failed:
        count = len(report.failed)
        what = f"{count} gates failed." if count > 1 else "A gate failed."
        where = ", ".join(f"{name} {verdict.check}" for name, verdict in report.failed)
        tell(Told(what, where, "compile the model again, or copy the bundle again from where it was made"))
        raise typer.Exit(GATE)

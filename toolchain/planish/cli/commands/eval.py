"""planish eval"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only
from planish.cli.progress import progress

if TYPE_CHECKING:
    from planish.evaluate import Scored, Text


def eval_command(
    bundle: options.Bundle,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to predict, UTF-8.  [default: Python's help topics]"),
    ] = None,
    targets: options.Targets = None,
    tokens: Annotated[
        int, typer.Option(min=2, max=1 << 20, metavar="N", help="Tokens of the text that are used.")
    ] = 256,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The original: folder, hub id, or .gguf file.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub model.")] = None,
    runner: options.RunnerPairs = None,
    threads: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Threads of the runtimes.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, max=1e6, metavar="SECONDS", help="Limit of one run.")] = 600.0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure a language model: perplexity of a text, and with --model the distance to the original.

    Perplexity says how well a text is predicted: lower is better, and it only compares models with the same tokenizer
    on the same text. KL is what quantisation changed in the distribution of the next token (0: nothing), top-1 the
    share of tokens where the most probable one is still the same.

    \b
    Examples:
      planish eval my-llm-int4.planish
      planish eval my-llm-int4.planish --model ./my-llm --tokens 512
      planish eval my-llm-int4.planish --text my-domain.txt -t onnxruntime
      planish eval my-llm-int4.planish --model ./my-llm --json | jq '.targets[0].kl_mean'
    """
    commands = options.pairs(runner, "--runner")
    with progress(quiet) as shown, results_only(verbose):
        shown.stage("start", "torch, transformers")
        from planish import evaluate
        from planish.language import open_language
        from planish.verify.lowering import Execution
        from planish_passes.errors import PlanishError

        asked = options.known_targets(options.names(targets))
        options.check_commands(commands)
        language = open_language(bundle)
        told = evaluate.read_text(language, text, tokens)
        truth = None
        if model is not None:
            shown.stage("original", "run by transformers")
            truth = evaluate.original_logits(model, told, revision)
        rows = evaluate.score(language, told, asked, truth, Execution(threads, timeout, commands), shown)
        if all(row.reason for row in rows):
            reasons = "; ".join(f"{row.name}: {row.reason}" for row in rows)
            raise PlanishError(f"No target of this bundle runs here ({reasons}).", str(bundle), "planish doctor")
        first = evaluate.original(truth, told) if truth is not None else None
    if as_json:
        found = {"model": model, "perplexity": first.perplexity} if first else None
        emit_json({"bundle": bundle, "text": _text(told), "original": found, "targets": [_row(r) for r in rows]})
    else:
        _show([*([first] if first else []), *rows], told, str(bundle))


def _text(text: Text) -> dict[str, Any]:
    return {"name": text.name, "sha256": text.sha256, "tokens": text.tokens.shape[1]}


def _row(row: Scored) -> dict[str, Any]:
    far = row.far
    return {
        "target": row.name,
        "device": row.device,
        "evidence": row.evidence,
        "perplexity": row.perplexity,
        "kl_mean": far.kl_mean if far else None,
        "kl_max": far.kl_max if far else None,
        "agreement": far.agreement if far else None,
        "seconds": row.seconds,
        "not_run": row.reason or None,
    }


def _show(rows: Sequence[Scored], text: Text, title: str) -> None:
    from rich.table import Table

    console = out()
    console.print(title, style="bold", soft_wrap=True)
    console.print(
        f"{text.tokens.shape[1]} tokens of {text.name}, sha256 {text.sha256[:16]}", style="dim", soft_wrap=True
    )
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("target", style="bold")
    table.add_column("evidence")
    for title in ("perplexity", "KL", "KL max", "top-1", "time"):
        table.add_column(title, justify="right")
    for row in rows:
        far = row.far
        table.add_row(
            row.name,
            row.evidence.value if row.evidence else "-",
            "not run" if row.perplexity is None else f"{row.perplexity:.3f}",
            f"{far.kl_mean:.2e}" if far else "-",
            f"{far.kl_max:.2e}" if far else "-",
            f"{far.agreement:.1%}" if far else "-",
            "-" if row.seconds is None else f"{row.seconds:.1f} s",
        )
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(f"not run: {row.name}: {row.reason}", style="yellow", soft_wrap=True)

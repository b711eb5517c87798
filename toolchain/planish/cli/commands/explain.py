"""planish explain"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, out, results_only
from planish.cli.output import exit_on_sigterm

if TYPE_CHECKING:
    from planish.failures.find import Found
    from planish.failures.reduce import Reduced

_LABEL = 9  # width of the first column
_SMALLEST = "reduced.json"


def explain_command(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Output of the compile, or a bundle.  [default: what failed last]"),
    ] = None,
    reduce: Annotated[
        bool,
        typer.Option("--reduce/--no-reduce", help="Look for the smallest config that fails in the same way."),
    ] = True,
    seconds: Annotated[float, typer.Option("--time", min=1, metavar="SECONDS", help="For that search.")] = 120.0,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER|ZIP", help="Bug report to write.  [default: beside the record]"),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell why a compile failed: pass, node, and line of the model.

    \b
    Examples:
      planish explain                          the compile that failed last
      planish explain my-model-int8.planish    by its output, or a bundle
      planish explain --no-reduce              at once
      planish explain --report bug.zip         to send
      planish explain --json | jq '.findings[0].node'

    Then it looks for the smallest config whose random model fails in the same
    way (each try in a process of its own), and makes a folder for a bug report:
    no weights, no tokens, no paths, no names; README.md is ready to paste.
    Nothing is sent anywhere.

    A failed compile leaves a record in ~/.cache/planish/failures, which the next
    compile of that output replaces. A compile that was killed has one, too.
    """
    with results_only():
        from planish.failures.find import find

        found = find(path)
    if not as_json:
        show(found)
    with results_only(), exit_on_sigterm():
        small = _smallest(found, seconds, _say(quiet)) if reduce else "it was not asked for"
        at = _write(found, small, report)
    if as_json:
        emit_json(to_json(found, small, at))
    else:
        _show_more(small, at)


def _say(quiet: bool) -> Callable[[str], None]:
    console = err()
    return lambda line: None if quiet else console.print(f"  try: {line}", style="dim", soft_wrap=True)


def _smallest(found: Found, seconds: float, say: Callable[[str], None]) -> Reduced | str:
    """Searched once: the answer is kept beside the record."""
    from planish.bundle.files import write_whole
    from planish.failures.attempt import attempt
    from planish.failures.reduce import Reduced, reduce

    kept = found.folder / _SMALLEST if found.folder is not None else None
    if kept is not None and kept.is_file():
        return Reduced(**json.loads(kept.read_bytes()))
    small = reduce(found.record, attempt, seconds, say)
    if kept is not None and isinstance(small, Reduced):
        write_whole(kept, json.dumps(asdict(small)).encode())
    return small


def _write(found: Found, small: Reduced | str, report: Path | None) -> Path | None:
    from planish.cli.commands.doctor import report as health_report
    from planish.doctor import examine
    from planish.failures.folder import write_report

    at = report or (found.folder / "report" if found.folder is not None else None)
    return None if at is None else write_report(found.record, small, _plain(health_report(examine())), at)


def _plain(values: dict[str, object]) -> dict[str, Any]:
    from planish.cli.console import plain

    made: dict[str, Any] = plain(values)
    return made


def to_json(found: Found, small: Reduced | str, at: Path | None) -> dict[str, Any]:
    """The record as JSON values, with its sentence, the smallest config (or why there is none) and the report."""
    from planish.failures.words import title

    reduced = {"reason": small} if isinstance(small, str) else asdict(small)
    return {
        "explanation": title(found.record),
        **found.record.model_dump(mode="json"),
        "reduced": reduced,
        "report": at,
    }


def show(found: Found) -> None:
    """The record in words."""
    from planish.failures.words import rows, title

    console = out()
    console.print(title(found.record), style="bold", soft_wrap=True)
    console.print()
    for label, text in rows(found.record):
        console.print(f"{label:{_LABEL}}", style="bold", end="")
        console.print(text, soft_wrap=True)


def _show_more(small: Reduced | str, at: Path | None) -> None:
    console = out()
    console.print()
    console.print(f"{'smallest':{_LABEL}}", style="bold", end="")
    if isinstance(small, str):
        console.print(f"not reduced: {small}", soft_wrap=True)
    else:
        left = "" if small.complete else "; the time was over, --time gives more"
        told = {k: v for k, v in small.config.items() if v not in (None, [], {})}
        refused = f" ({small.refused} refused by the model's class)" if small.refused else ""
        console.print(f"random weights, {small.tries} tries{refused}{left}", soft_wrap=True)
        console.print(json.dumps(told), soft_wrap=True)
        console.print(json.dumps(small.request), soft_wrap=True)
    if at is not None:
        console.print(f"{'report':{_LABEL}}", style="bold", end="")
        console.print(f"{at} (README.md is ready to paste)", soft_wrap=True)

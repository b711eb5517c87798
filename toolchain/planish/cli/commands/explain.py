"""planish explain"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only

if TYPE_CHECKING:
    from planish.failures.find import Found

_LABEL = 9  # width of the first column


def explain_command(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[PATH]", help="Output of the compile, or a bundle.  [default: what failed last]"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Tell why a compile failed: which pass refused which node and why, and the line of the model that it comes from.

    \b
    Examples:
      planish explain                          the compile that failed last
      planish explain my-model-int8.planish    by its output; a bundle of --keep-failed, too
      planish explain --json | jq '.findings[0].node'

    A failed compile leaves a record in ~/.cache/planish/failures, which the next compile of that output replaces. A
    compile that was killed has one, too.
    """
    with results_only():
        from planish.failures.find import find

        found = find(path)
    if as_json:
        emit_json(to_json(found))
    else:
        show(found)


def to_json(found: Found) -> dict[str, Any]:
    """The record as JSON values, with its sentence."""
    from planish.failures.words import title

    return {"explanation": title(found.record), **found.record.model_dump(mode="json")}


def show(found: Found) -> None:
    """The record in words."""
    from planish.failures.words import rows, title

    console = out()
    console.print(title(found.record), style="bold", soft_wrap=True)
    console.print()
    for label, text in rows(found.record):
        console.print(f"{label:{_LABEL}}", style="bold", end="")
        console.print(text, soft_wrap=True)

"""planish report"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, err, out, results_only
from planish.cli.guard import UsageError

MOST = 8
_MARK = b'<meta name="generator" content="planish report">'


def report_command(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders NAME.planish.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Page to write.  [default: NAME.report.html; comparison.report.html]"
        ),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="PUB.pem", help="Whose signature under measurements counts; repeatable."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write the report of a bundle as one HTML page; of several bundles, a comparison with the first one.

    Every bundle has a report.html from its compile. This makes it again, from the manifest and report.json. The page
    needs no network and holds no script: send it, archive it, open it on a phone.

    \b
    Examples:
      planish report my-model-int8.planish --open
      planish report before.planish after.planish -o what-changed.html
      planish report m-float.planish m-int8.planish m-int4.planish
      planish report my-model-int8.planish --json | jq '.bundles[0].targets'
    """
    if len(bundles) > MOST:
        raise UsageError(f"{len(bundles)} bundles do not fit beside each other.", "BUNDLE", f"give at most {MOST}")
    with results_only():
        from planish.report import comparison, open_subject, page
        from planish.report.summary import summary

        labels = "ABCDEFGH" if len(bundles) > 1 else [""]
        trusted = options.trusted(key, None, None, None)
        subjects = [open_subject(path, label, trusted) for path, label in zip(bundles, labels, strict=False)]
        made = comparison(subjects) if len(subjects) > 1 else page(subjects[0])
        name = "comparison" if len(subjects) > 1 else subjects[0].manifest.name
        at = write_page(made, output or Path(f"{name}.report.html"))
    if as_json:
        emit_json({"report": at, "bundles": summary(subjects)})
    else:
        out().print("report", style="bold", end="  ")
        out().print(str(at), soft_wrap=True)
    if show:
        import webbrowser

        if not webbrowser.open(at.as_uri()):
            err().print(f"note: no browser can be opened here; the page is {at}", style="dim", soft_wrap=True)


def write_page(page: bytes, at: Path) -> Path:
    """Write a page, or replace one that planish made. Returns the absolute path.

    Raises:
        PlanishError: something else has that name.
        OSError: it cannot be written there.
    """
    from planish_passes.errors import PlanishError

    at = at.absolute()
    if at.is_dir():
        raise PlanishError("There is a folder of that name.", str(at), "give another file with -o")
    if at.exists():
        with at.open("rb") as file:
            if _MARK not in file.read(4096):
                what = "There is already a file of that name, and it is no report of planish."
                raise PlanishError(what, str(at), "give another file with -o, or move that one away")
    at.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=at.parent, prefix=f".{at.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(page)
        mask = os.umask(0o077)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # what mkstemp makes is private
        os.replace(name, at)
    except BaseException:
        os.unlink(name)
        raise
    return at

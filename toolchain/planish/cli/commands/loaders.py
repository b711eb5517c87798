"""planish loaders"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only


def loaders_command(
    bundle: options.Bundle,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.  [default: NAME-loaders]")
    ] = None,
    lang: Annotated[
        list[str] | None,
        typer.Option(
            "--lang", metavar="NAME,...", help="python, cpp, csharp, kotlin, swift.  [default: all that open a target]"
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the source code that apps open a bundle with: small, one folder per language, made from the manifest.

    Before it loads anything, a loader checks the manifest's version, the signature of the maker whose public key the
    app brings along, and the hash of every file. A compile puts the same files into the bundle; this writes them for
    one that has none, and leaves the bundle as it is.

    \b
    Examples:
      planish loaders my-model-int8.planish
      planish loaders my-model-int8.planish --lang kotlin,swift -o app/loaders
      planish loaders my-model-int8.planish --json | jq .files
    """
    with results_only():
        from planish.bundle import open_bundle
        from planish.loaders import write_loaders

        opened = open_bundle(bundle)
        at = output or Path(f"{opened.manifest.name}-loaders")
        made = write_loaders(opened, at, options.names(lang) or None)
    if as_json:
        emit_json({"bundle": bundle, "output": at, "files": sorted(made)})
        return
    for name, data in made.items():
        out().print(f"{len(data):>7,} bytes  {name}", soft_wrap=True)
    out().print("loaders", style="bold", end="  ")
    out().print(str(at), soft_wrap=True)

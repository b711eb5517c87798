"""planish pack, planish unpack"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out, results_only


def pack_command(
    bundle: options.Bundle,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Archive.  [default: BUNDLE.zip]")
    ] = None,
    deflate: Annotated[
        bool, typer.Option("--deflate", help="Compress; an app can map stored files only into memory.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an archive that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Pack a bundle into one .zip file, with its signature and its evidence. Equal bundles make equal files.

    \b
    Examples:
      planish pack my-model-int8.planish               # my-model-int8.planish.zip
      planish pack my-model-int8.planish --deflate -o model.zip
      planish verify my-model-int8.planish.zip --signature --key key.pub.pem
      planish unpack my-model-int8.planish.zip
    """
    with results_only():
        from planish.bundle.pack import pack_bundle
        from planish.form import size

        packed = pack_bundle(bundle, output, deflate=deflate, replace=replace)
    if as_json:
        emit_json({"ok": True, "bundle": bundle, "archive": packed})
        return
    how = "deflated" if packed.deflated else "stored"
    out().print(f"packed {packed.files} files, {size(packed.bytes)}, {how}", style="green")
    out().print("archive", style="bold", end="  ")
    out().print(str(packed.path), soft_wrap=True)


def unpack_command(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="What planish pack wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to make.  [default: without .zip]")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Unpack a packed bundle, and check every hash.

    Names that lead elsewhere, links, bombs and archives that can be read in two ways are refused before anything is
    written.

    \b
    Examples:
      planish unpack my-model-int8.planish.zip
      planish unpack model.zip -o my-model-int8.planish
    """
    with results_only():
        from planish.bundle.unpack import unpack_and_check

        at = unpack_and_check(archive, output)
    if as_json:
        emit_json({"ok": True, "archive": archive, "bundle": at})
        return
    out().print("bundle", style="bold", end="  ")
    out().print(str(at), soft_wrap=True)

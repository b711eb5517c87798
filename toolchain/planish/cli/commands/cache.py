"""planish cache"""

from __future__ import annotations

from typing import Annotated

import typer

from planish.cli import options
from planish.cli.console import emit_json, out
from planish.cli.guard import FAILED


def cache_command(
    cache: Annotated[
        str | None, typer.Option(metavar="DIR", help="Cache folder.  [default: $PLANISH_CACHE, or the user's own]")
    ] = None,
    prune: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove bundles, longest unused first, down to SIZE (20GB; 0).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read everything; remove and name what is damaged.")] = False,
    as_json: options.Json = False,
) -> None:
    """Tell what planish build keeps on this machine, check it, make it smaller.

    \b
    Examples:
      planish cache
      planish cache --prune 20GB
      planish cache --check        exit code 1 when something was damaged
    """
    from planish.form import size
    from planish.matrix.cache import Cache

    store = Cache(cache, lambda text: None).local
    damaged = list(store.damage()) if check else []
    freed = 0
    if prune is not None:
        before, after = store.prune(_bytes(prune))
        freed = before - after
    bundles, used = store.usage()
    if as_json:
        told = {"folder": store.root, "bundles": bundles, "bytes": used, "freed": freed, "damaged": damaged}
        emit_json(told)
    else:
        console = out()
        console.print(f"{store.root}: {bundles} bundles, {size(used)}", soft_wrap=True)
        if prune is not None:
            console.print(f"removed {size(freed)}")
        for path in damaged:
            console.print(f"damaged, and removed: {path}", soft_wrap=True)
    if damaged:
        raise typer.Exit(FAILED)


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is no size such as 20GB", param_hint="--prune") from None

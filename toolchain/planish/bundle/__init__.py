"""One folder with every artifact, what an app needs beside it, and the evidence. See docs/bundle-format.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.bundle.manifest import Manifest
    from planish.bundle.read import Bundle, open_bundle
    from planish.bundle.verdicts import verdict_from_json, verdict_to_json
    from planish.bundle.write import write_bundle

__all__ = ["Bundle", "Manifest", "open_bundle", "verdict_from_json", "verdict_to_json", "write_bundle"]

_HOMES = {
    "Bundle": "read",
    "Manifest": "manifest",
    "open_bundle": "read",
    "verdict_from_json": "verdicts",
    "verdict_to_json": "verdicts",
    "write_bundle": "write",
}


def __getattr__(name: str) -> Any:
    # Late: these bring torch, which nobody needs who only compares the files of a bundle or puts them back.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Targets by name: every folder here that has a module-level TARGET."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

import planish_targets
from planish_passes.errors import PlanishError
from planish_targets.contract import Target


@cache
def targets() -> dict[str, Target]:
    """All targets, by name. Importing them needs no vendor SDK."""
    found: dict[str, Target] = {}
    for entry in pkgutil.iter_modules(planish_targets.__path__):
        if entry.ispkg:
            module = importlib.import_module(f"planish_targets.{entry.name}")
            if hasattr(module, "TARGET"):
                found[module.TARGET.name] = module.TARGET
    return dict(sorted(found.items()))


def find(name: str) -> Target:
    """The target of that name; what follows a slash is one of its programs ("onnxruntime/decode").

    Raises:
        PlanishError: no such target; suggests the nearest.
    """
    known = targets()
    if (plain := name.partition("/")[0]) in known:
        return known[plain]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise PlanishError(f"unknown target {name!r}", "--target", f"{hint}known targets: {', '.join(known)}")

"""Targets by name: every folder here that has a module-level TARGET, and the variants that they offer."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

import planish_targets
from planish_passes.errors import PlanishError
from planish_targets.contract import OffersVariants, Target


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


def variants() -> dict[str, Target]:
    """Variants of all targets, by full name ("executorch:vulkan")."""
    return {name: v for t in targets().values() if isinstance(t, OffersVariants) for name, v in t.variants.items()}


def known() -> dict[str, Target]:
    """Everything that can be compiled for, by name: targets, then variants."""
    return {**targets(), **variants()}


def find(name: str) -> Target:
    """The target or variant of that name; what follows a slash is one of its programs ("onnxruntime/decode").

    Raises:
        PlanishError: no such target; suggests the nearest.
    """
    found = known()
    if (plain := name.partition("/")[0]) in found:
        return found[plain]
    kind = "variant" if ":" in name and name.partition(":")[0] in found else "target"
    raise PlanishError(f"unknown {kind} {name!r}", "--target", hint(name))


def hint(name: str) -> str:
    """What to write in the place of a name that nothing has."""
    base, colon, _ = name.partition(":")
    if colon and base in targets():
        offered = [n for n in variants() if n.startswith(f"{base}:")]
        if not offered:
            return f"{base} has no variants: write {base!r}"
        kind, names = f"variants of {base}", offered
    else:
        kind, names = "known targets", list(known())
    near = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"{kind}: {', '.join(names)}"


def folder(name: str) -> str:
    """A name of a target, or of one of its programs, as a path that every file system takes."""
    return name.replace(":", "-")

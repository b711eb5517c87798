"""The key of a bundle: a hash over everything that it is made from. See docs/decisions/0041-the-cache-key.md."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planish.locate import locate
from planish.matrix.facts import Facts
from planish.matrix.file import Job
from planish.matrix.hashes import Hashes, model_files

FORMAT = 1  # of the inputs; one that changes makes every key another one


@dataclass(frozen=True)
class Inputs:
    """All that a bundle is made from, as JSON values.

    Args:
        data: group -> name -> value, see `inputs_of`.
    """

    data: Mapping[str, Any]

    @property
    def key(self) -> str:
        """sha256 of the inputs as canonical JSON."""
        return key_of(self.data)


def key_of(data: Mapping[str, Any]) -> str:
    """sha256 of JSON values in one form: keys sorted, no blanks."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def inputs_of(job: Job, facts: Facts, hashes: Hashes) -> Inputs:
    """Everything that the bundle of a job depends on.

    Raises:
        PlanishError: the model cannot be found.
        OSError: a file of it cannot be read.
    """
    request = job.request
    found = locate(request.model, request.revision)
    asked = json.loads(request.model_dump_json(exclude={"output", "model"}))
    used = ("", *request.targets)
    names = sorted({name for target in used for name in facts.variables[target]})
    return Inputs(
        {
            "format": FORMAT,
            "bundle": job.name,
            "model": {
                "location": request.model if found.kind == "hub" else Path(request.model).name,
                "kind": found.kind,
                "revision": found.revision,
                "files": {name: hashes.of(path) for name, path in model_files(found).items()},
            },
            "request": asked,
            "planish": {"version": _version(), "sources": facts.sources},
            "packages": {name: v for target in used for name, v in facts.packages[target].items()},
            "machine": machine(),
            "environment": {name: os.environ.get(name) for name in names},
        }
    )


def machine() -> dict[str, str]:
    """Interpreter, system and kind of processor."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.system(),
        "processor": platform.machine(),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What changed between two sets of inputs, in words, most telling first."""
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = [path for path in dict.fromkeys((*new, *old)) if old.get(path) != new.get(path)]
    return tuple(_words(path, old.get(path), new.get(path)) for path in changed)


def _flat(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in data.items():
        inner = (*path, name)
        found += _flat(value, inner) if isinstance(value, Mapping) else [(inner, value)]
    return found


def _words(path: tuple[str, ...], old: Any, new: Any) -> str:
    group, name = path[0], ".".join(path[1:])
    if path[:2] == ("model", "files"):
        how = "is new" if old is None else "is gone" if new is None else "changed"
        return f"model file {'.'.join(path[2:])} {how}"
    if path == ("planish", "sources"):
        return "planish's own code changed"
    label = {"packages": "package ", "environment": "environment variable ", "request": "", "planish": "planish "}
    return f"{label.get(group, f'{group} ')}{name}: {_short(old)} -> {_short(new)}".replace(" :", ":")


def _short(value: Any) -> str:
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _version() -> str:
    try:
        return version("planish")
    except PackageNotFoundError:  # running from its source tree
        return "unknown"

"""What an installation is: planish's own code, the packages of each target, the names that requests may use.

Asking the targets means importing torch, and reading what 80 packages depend on takes seconds. Both follow from the
files that are installed, so the answers are kept under the hash of those.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from planish.bundle.files import write_whole
from planish.request_checks import Names, installed_names

# What takes part in every compile, whatever the target; the rest of planish's own dependencies draws and asks only.
CORE = (
    "torch",
    "transformers",
    "optimum",
    "accelerate",
    "cyclonedx-python-lib",
    "gguf",
    "jinja2",
    "numpy",
    "packageurl-python",
    "packaging",
    "pydantic",
    "safetensors",
    "vl-convert-python",
)
VARIABLES = ("SOURCE_DATE_EPOCH", "PLANISH_BUILDER_ID")  # stand in every bundle
_SOURCES = ("planish", "planish_targets", "planish_passes")


@dataclass(frozen=True)
class Facts:
    """What the key of a bundle takes from the installation.

    Args:
        sources: hash of planish's own files.
        names: targets and recipes.
        packages: target -> package -> version, of all that its compile can import; "" for what every compile imports.
        variables: target -> environment variables that its compile reads; "" for every compile.
        varies: target -> pattern of an artifact's files -> why their bytes differ from compile to compile.
    """

    sources: str
    names: Names
    packages: Mapping[str, Mapping[str, str]]
    variables: Mapping[str, tuple[str, ...]]
    varies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read_facts(folder: Path) -> Facts:
    """The facts of this installation.

    Args:
        folder: where they are kept between runs.

    Raises:
        OSError: they cannot be kept.
    """
    sources, here = source_digest(), installed()
    listing = json.dumps([sources, sys.version, here], sort_keys=True)
    kept = folder / f"{hashlib.sha256(listing.encode()).hexdigest()}.json"
    try:
        return _from_json(json.loads(kept.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never asked, or damaged: ask again
    facts = _ask(sources, here)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(asdict(facts)).encode())
    return facts


def source_digest() -> str:
    """Hash over path and contents of every file of planish's packages."""
    whole = hashlib.sha256()
    for package in _SOURCES:
        root = Path(__import__(package).__path__[0])
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = f"{package}/{path.relative_to(root).as_posix()}"
                whole.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def installed() -> dict[str, str]:
    """Normalised name -> version of every installed distribution, from the names of their folders alone."""
    found: dict[str, str] = {}
    for place in dict.fromkeys(sys.path):
        for entry in _listing(place):
            told = re.fullmatch(r"(.+?)-([^-]+)(-py[\d.]+)?\.(dist|egg)-info", entry)
            if told:
                found.setdefault(_normal(told[1]), told[2])
    return found


def _listing(place: str) -> list[str]:
    try:
        return sorted(os.listdir(place or "."))
    except OSError:  # entries of sys.path need not exist
        return []


def _ask(sources: str, here: Mapping[str, str]) -> Facts:
    from planish_targets import registry
    from planish_targets.contract import ReadsVariables, Varies

    packages = {"": _closure(CORE, here)}
    variables: dict[str, tuple[str, ...]] = {"": VARIABLES}
    for name, target in registry.known().items():
        packages[name] = _closure(target.requires, here)
        variables[name] = tuple(target.variables) if isinstance(target, ReadsVariables) else ()
    varies = {name: dict(target.varies) for name, target in registry.known().items() if isinstance(target, Varies)}
    return Facts(sources, installed_names(), packages, variables, varies)


def _closure(roots: Iterable[str], here: Mapping[str, str]) -> dict[str, str]:
    """The roots and all that they depend on, as far as it is installed."""
    found: dict[str, str] = {}
    waiting = [_normal(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name in here and name not in found:
            found[name] = here[name]
            waiting += _needs(name)
    return dict(sorted(found.items()))


def _needs(name: str) -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        told = requires(name) or ()
    except PackageNotFoundError:  # a folder that only looks like one
        return
    for line in told:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield _normal(need.name)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _from_json(data: Mapping[str, Any]) -> Facts:
    names = Names(**{key: tuple(value) for key, value in data["names"].items()})
    variables = {target: tuple(value) for target, value in data["variables"].items()}
    return Facts(data["sources"], names, data["packages"], variables, data["varies"])

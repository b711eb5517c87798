"""A bug report as a folder: what failed, on what versions, and how to see it again. No weights, no path, no name.

What is in it was decided by naming what goes in, never by what to leave out: texts are cleaned on top of that.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.bundle.surroundings import without_paths
from planish.failures.record import Record
from planish.failures.reduce import Reduced
from planish.failures.words import rows, title
from planish_passes.errors import PlanishError

MARK = "<!-- planish explain -->"
_SECRETS = re.compile(r"\b(hf_|ghp_|github_pat_|sk-|glpat-|AKIA)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s@]+@")
_PATHS = re.compile(r"(?<![\w.~>/:-])(?:[A-Za-z]:[\\/]|/)(?:[^\s\"'/\\:,;()]+[\\/])+([^\s\"'/\\:,;()]+)")
_REPRODUCE = '''"""Makes a random model of config.json in this folder and compiles it: python reproduce.py"""

import subprocess
from pathlib import Path

from planish.failures.attempt import make_model

here = Path(__file__).parent
make_model(here, "{task}", here / "model")
subprocess.run(["planish", "compile", "-c", str(here / "planish.toml")], check=False)
'''


def write_report(record: Record, reduced: Reduced | str, health: Mapping[str, Any], at: Path) -> Path:
    """Write the folder, or the .zip.

    Args:
        health: what `planish doctor --json` says.

    Raises:
        PlanishError: something else has that name.
        OSError: it cannot be written.
    """
    at = at.absolute()
    made = {name: text.encode("utf-8", "replace") for name, text in files(record, reduced, health).items()}
    if at.suffix == ".zip":
        if at.exists() and not zipfile.is_zipfile(at):
            raise PlanishError("There is already a file of that name.", str(at), "give another name with --report")
        with zipfile.ZipFile(at, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in made.items():
                archive.writestr(f"{at.stem}/{name}", data)
        return at
    if at.exists() and not (at.is_dir() and (not any(at.iterdir()) or _ours(at))):
        hint = "give another name with --report"
        raise PlanishError("There is already something of that name, and it is no report.", str(at), hint)
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    for name, data in made.items():
        (at / name).write_bytes(data)
    return at


def files(record: Record, reduced: Reduced | str, health: Mapping[str, Any]) -> dict[str, str]:
    """File name -> text."""
    clean, told = _Clean(record), cleaned(record)
    found: dict[str, Any] = {
        "README.md": _readme(told, reduced, clean),
        "record.json": json.dumps(told.model_dump(mode="json"), indent=1),
        "doctor.json": json.dumps(clean(health), indent=1),
    }
    if record.model is not None and record.model.config:
        small = reduced.config if isinstance(reduced, Reduced) else record.model.config
        found["config.json"] = json.dumps(small, indent=1)
    if record.model is not None and isinstance(reduced, Reduced):
        found["reproduce.py"] = _REPRODUCE.format(task=record.model.task)
        found["planish.toml"] = _toml({"model": "./model", **reduced.request, "task": record.model.task})
    return found


def cleaned(record: Record) -> Record:
    """The record without the names of the user: of folders, of the model, of commands."""
    data = record.model_dump(mode="json")
    clean = _Clean(record)
    asked = {k: v for k, v in data["request"].items() if k not in ("model", "output", "revision", "runner")}
    asked["runner"] = dict.fromkeys(data["request"].get("runner") or {}, "(a command)")
    stages = [(n, "" if n.split()[0] in ("source", "bundle") else d) for n, d in data["stages"]]
    return Record.model_validate({**clean(data), "request": clean(asked), "stages": clean(stages)})


class _Clean:
    """Takes names, paths and secrets out of texts at any depth."""

    def __init__(self, record: Record) -> None:
        model, output = str(record.request.get("model", "")), Path(record.output)
        self._names = {name: told for name, told in ((model, "MODEL"), (output.name, "OUTPUT")) if len(name) > 2}
        site = {Path(p): "<site>" for p in sys.path if p}
        known = {Path(model): "MODEL"} if model.startswith((".", "/", "~")) or Path(model).exists() else {}
        self._known = {**site, Path(sys.prefix): "<python>", output: "OUTPUT", **known}

    def __call__(self, value: Any) -> Any:
        """The same value, cleaned."""
        return self._walk(without_paths(json.loads(json.dumps(value)), self._known))

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            for name, told in self._names.items():
                value = value.replace(name, told)
            return _PATHS.sub(r"<path>/\1", _SECRETS.sub("(hidden)", value))
        if isinstance(value, list):
            return [self._walk(v) for v in value]
        return {k: self._walk(v) for k, v in value.items()} if isinstance(value, dict) else value


def _ours(at: Path) -> bool:
    readme = at / "README.md"
    return readme.is_file() and MARK in readme.read_text("utf-8", "replace")[:200]


def _readme(record: Record, reduced: Reduced | str, clean: _Clean) -> str:
    told = "\n".join(f"{label:10}{text}".rstrip() for label, text in rows(record) if label not in ("output", "began"))
    if isinstance(reduced, Reduced):
        end = "nothing smaller shows it" if reduced.complete else "the time was over"
        again = (
            f"`python reproduce.py` makes a random model of config.json and compiles it ({reduced.tries} models were "
            f"tried, {end}):\n\n```json\n{json.dumps(_short(reduced.config))}\n```\n\n"
            f"```toml\n{_toml({'model': './model', **reduced.request})}```"
        )
    else:
        again = f"Not reduced: {clean(reduced)}."
    versions = ", ".join(f"{k} {v}" for k, v in record.versions.items())
    traces = "\n\n".join(f.traceback for f in record.findings if f.traceback)
    trace = f"\n<details><summary>Traceback</summary>\n\n```\n{traces}\n```\n</details>\n" if traces else ""
    return (
        f"{MARK}\n# {title(record)}\n\n```\n{told}\n```\n\n## To see it again\n\n{again}\n\n"
        f"## Versions\n\nPython {record.python}, {record.platform}; {versions}\n{trace}\n"
        "Model (add its hub id, if it may be known):\n"
    )


def _short(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if v is not None and v not in ([], {})}


def _toml(values: Mapping[str, Any]) -> str:
    import tomlkit

    return tomlkit.dumps({k: v for k, v in values.items() if v not in (None, {})})

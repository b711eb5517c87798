"""What of the machine belongs into a bundle (versions, date) and what does not (its paths)."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from planish.bundle.manifest import ToolsEntry
from planish_passes.errors import PlanishError

_PACKAGES = (
    "torch",
    "transformers",
    "optimum",
    "tokenizers",
    "safetensors",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-directml",
    "coremltools",
    "executorch",
    "gguf",
)


def package_version(name: str) -> str | None:
    """Version of an installed distribution; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tools() -> ToolsEntry:
    """Python, system and the packages that take part in a compile, as installed here."""
    found = {name: package_version(name) for name in _PACKAGES}
    return ToolsEntry(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: number for name, number in found.items() if number is not None},
    )


def created() -> str:
    """Now, or SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch), in UTC.

    Raises:
        PlanishError: the variable holds no date.
    """
    told = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if told is None else datetime.fromtimestamp(int(told), UTC)
    except (ValueError, OverflowError, OSError) as problem:
        hint = "give seconds since 1970-01-01, or unset it"
        raise PlanishError(f"{told!r} is not a date.", "environment variable SOURCE_DATE_EPOCH", hint) from problem
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def without_paths(data: Any, known: Mapping[Path, str]) -> Any:
    """JSON values with every mention of a machine's folder replaced, in strings at any depth (keys are left alone).

    Args:
        data: JSON values.
        known: folder -> what to write for it. The home, working and temporary folders are always replaced.
    """
    always = {Path(os.path.expanduser("~")): "~", Path.cwd(): "<cwd>", Path(tempfile.gettempdir()): "<tmp>"}
    names: dict[str, str] = {}
    for path, name in {**always, **known}.items():
        for form in (path.absolute(), path.resolve()):
            if len(form.parts) > 1:  # the root itself is in every path
                names[str(form)] = name
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w./~-])(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            # A file name that is not UTF-8 arrives with lone surrogates, which JSON cannot hold.
            return pattern.sub(lambda m: names[m[0]], value).encode("utf-8", "replace").decode()
        if isinstance(value, list):
            return [cleaned(v) for v in value]
        return {k: cleaned(v) for k, v in value.items()} if isinstance(value, dict) else value

    return cleaned(data)

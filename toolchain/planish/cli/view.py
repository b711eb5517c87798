"""Show a model or an artifact in Netron."""

from __future__ import annotations

import json
from pathlib import Path

from planish.inspect import BundleFacts, Facts, ModelFacts
from planish_passes.errors import PlanishError

_VIEWABLE = (".onnx", ".ort", ".pte", ".pt2", ".mlmodel", ".mlpackage", ".safetensors", ".gguf")


def viewable(facts: Facts, location: str) -> Path:
    """The one file that Netron should open.

    Raises:
        PlanishError: there is none.
    """
    if isinstance(facts, ModelFacts):
        path = Path(location).expanduser()
        candidates = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    elif isinstance(facts, BundleFacts):
        candidates = [a.path for a in facts.artifacts.values()]
    else:
        candidates = [a.path for a in facts]
    for path in candidates:
        if path.suffix in _VIEWABLE:
            return _inner_model(path) if path.suffix == ".mlpackage" else path
    raise PlanishError("There is nothing that Netron can show.", location, f"it opens {', '.join(_VIEWABLE)}")


def view(path: Path) -> None:
    """Serve a file with Netron and open the browser; returns when the user ends it with Ctrl-C.

    Raises:
        PlanishError: Netron is not installed.
    """
    try:
        import netron
    except ImportError as error:
        raise PlanishError("Netron is not installed.", "--view", "pip install netron") from error
    netron.start(str(path), browse=True)
    netron.wait()


def _inner_model(package: Path) -> Path:
    try:
        manifest = json.loads((package / "Manifest.json").read_text("utf-8"))
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        return package / "Data" / str(root)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PlanishError("The package names no model.", str(package), "it is damaged: compile it again") from error

"""Names of bundles."""

from __future__ import annotations

import os
import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def bundle_name(model: str, recipe: str) -> str:
    """NAME-RECIPE.planish."""
    return f"{model_name(model)}-{recipe}.planish"


def model_name(model: str) -> str:
    """The name of a folder, hub id or file; of what is above it where that says nothing."""
    if os.path.exists(model):
        path = Path(model).resolve()
        if _COMMIT.fullmatch(path.name) and path.parent.name == "snapshots":
            name = path.parent.parent.name.rpartition("--")[2]  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        else:
            name = path.parent.name if path.name == "model" else path.name
    else:
        name = model.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".gguf") or "model"

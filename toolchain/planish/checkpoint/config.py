"""The config of a model: built-in architectures only, unless the user allows more."""

from __future__ import annotations

import difflib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from planish.checkpoint.gguf_reader import quick_gguf
from planish.locate import Located
from planish_passes.errors import PlanishError


def read_config(found: Located, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the config of a located model.

    Raises:
        PlanishError: unreadable, of an unknown architecture, in need of the model's own code, or already quantised.
    """
    where = str(found.file or found.folder / "config.json")
    how: dict[str, Any] = {"gguf_file": found.file.name} if found.file is not None else {}
    if found.file is None:
        _check_config(found.folder / "config.json", trust_remote_code)
    try:
        with quick_gguf() if how else nullcontext():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                found.folder, trust_remote_code=trust_remote_code, local_files_only=True, **how
            )
    except MemoryError:
        raise
    except Exception as error:  # a config is free text to transformers: its classes raise anything at all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "compare with the original model, or update transformers if the architecture is new"
        raise PlanishError(f"transformers cannot read the config: {reason}", where, hint) from error
    if getattr(config, "quantization_config", None) is not None and found.kind != "gguf":
        stored: Any = config.quantization_config
        method = dict(stored).get("quant_method", "some method")
        raise PlanishError(
            f"The weights are already quantised ({method}).", where, "use the original model: planish quantises it once"
        )
    return config


def _check_config(path: Path, trust_remote_code: bool) -> None:
    try:
        config = json.loads(path.read_text("utf-8"))
        kind, code = config.get("model_type"), config.get("auto_map")
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise PlanishError(f"config.json is not readable: {error}.", str(path), "download it again") from error
    if kind in CONFIG_MAPPING or (code and trust_remote_code):
        return
    if code:
        raise PlanishError(
            f"The architecture {kind or '(unnamed)'} is Python code in the model's folder, which planish does not run.",
            str(path),
            "read that code first; then allow it with trust_remote_code, or use a model that transformers has built in",
        )
    if not kind:
        raise PlanishError("config.json has no model_type.", str(path), "use the config.json of a transformers model")
    near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "update transformers if the architecture is new"
    raise PlanishError(f"transformers does not know the architecture {kind}.", str(path), hint)

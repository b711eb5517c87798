"""Compile a random model of a config in a process of its own, and say what failed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planish.failures.sign import REFUSED, Sign

_PATIENCE = 5.0  # seconds that a process has to end after it was told to
_MOST = 200_000_000  # weights that are worth to be made up


def attempt(config: Mapping[str, Any], task: str, request: Mapping[str, Any], seconds: float) -> tuple[Sign, ...]:
    """What fails when a random model of this config is compiled; () when nothing does, (`REFUSED`, reason) when its
    class does not take the config.

    Args:
        request: without model and output.
        seconds: until it is stopped.
    """
    # Imports take longer than the compile of a small model: one process has them, and each try is a fork of it.
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload(["planish.failures.warm"])
    with tempfile.TemporaryDirectory(prefix="planish-reduce-") as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(config))
        process = context.Process(target=_child, args=(str(folder), task, dict(request)))
        process.start()
        process.join(max(seconds, 1.0))
        if process.is_alive():
            process.terminate()
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        told = folder / "signs.json"
        return tuple(map(tuple, json.loads(told.read_text()))) if told.is_file() else ()


def _child(folder: str, task: str, request: dict[str, Any]) -> None:
    silent = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silent, number)
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = fails(Path(folder), task, request)
    new = Path(folder, "signs.new")
    new.write_text(json.dumps(found))
    new.rename(Path(folder, "signs.json"))


def fails(folder: Path, task: str, request: dict[str, Any]) -> tuple[Sign, ...]:
    """The same, in this process; `folder` holds config.json."""
    from planish.build import compile_model
    from planish.compiled import Silent
    from planish.exhausted import exhausted
    from planish.failures.gates import failed_gate
    from planish.failures.postmortem import examine
    from planish.failures.sign import signs
    from planish.request import Request
    from planish.untraceable import first_line

    model = folder / "model"
    try:
        make_model(folder, task, model)
    except Exception as problem:  # sizes that do not fit together: model classes raise whatever they like
        if exhausted(problem):
            raise
        return ((REFUSED, first_line(problem)),)
    asked = Request.model_validate({**request, "model": str(model), "task": task})
    with contextlib.chdir(folder):
        try:
            done = compile_model(asked, Silent(), folder / "work")
        except Exception as problem:
            return signs((examine(problem),), ())
    refusals = [t.refusal for t in done.targets if t.refusal is not None]
    return signs(refusals, [failed_gate(target, verdict, ()) for target, verdict in done.failed])


def make_model(folder: Path, task: str, at: Path) -> None:
    """A model with random weights, as files.

    Raises:
        Exception: the class refuses the config.
    """
    import torch
    from transformers import AutoConfig

    from planish.source import auto_class

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        count = sum(p.numel() for p in auto_class(task).from_config(config).parameters())
    if count > _MOST:
        raise ValueError(f"{count} weights")
    torch.manual_seed(0)
    auto_class(task).from_config(config).to(torch.float32).save_pretrained(at)

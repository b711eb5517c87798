"""Runner of the ExecuTorch target."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.executorch.attached import attached
from planish_targets.executorch.header import read_header
from planish_targets.executorch.pte import INSTALL
from planish_targets.quiet import quiet
from planish_targets.serve import Call, Model, serve

_DEFECT = "compile the model again; `planish inspect` shows what the file holds"


def load(call: Call) -> Model:
    """Open a .pte file. Threads are set first: resetting the pool under a loaded method can crash.

    Raises:
        PlanishError: the file is not a whole .pte, the runtime refuses it, or its ports are not known.
    """
    read_header(call.path)
    data = attached(call)
    inputs, outputs = _names(call, "inputs"), _names(call, "outputs")
    dtypes = [getattr(torch, d) for d in _names(call, "input_dtypes")]
    skip_compiler()
    with quiet():
        from executorch.runtime import Runtime, Verification

        use_threads(call.threads)
        if call.options.get("kernels"):
            more_kernels(call)
        try:
            runtime = Runtime.get()
            program = runtime.load_program(call.path, verification=Verification.InternalConsistency, data_path=data)
            method = program.load_method("forward")
        except RuntimeError as problem:
            raise PlanishError(told(problem), str(call.path), _DEFECT) from problem
    if method is None:
        raise PlanishError("the .pte file has no method `forward`", str(call.path), _DEFECT)

    longest = int(call.options.get("longest", 0))  # type: ignore[call-overload]
    whole = call.options.get("logits") == "all"

    def call_once(given: list[Tensor]) -> Any:
        try:
            return method.execute(given)
        except RuntimeError as problem:
            shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(inputs, given, strict=True))
            raise PlanishError(f"{told(problem)}; given {shapes}", str(call.path), _DEFECT) from problem

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = [feed[name].to(dtype).contiguous() for name, dtype in zip(inputs, dtypes, strict=True)]
        return dict(zip(outputs, call_once(given), strict=True))

    def decoder(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Longer texts in parts; caches are inside, and what is given for them is not needed."""
        ids, places = feed["input_ids"], feed["position_ids"][0]
        # The first two have the names of executorch's own runner; others are the same for every part.
        others = [feed[name].to(dtype).contiguous() for name, dtype in zip(inputs[2:], dtypes[2:], strict=True)]
        parts = [
            call_once([i.contiguous(), p.contiguous(), *others])
            for i, p in zip(ids.split(longest, dim=1), places.split(longest), strict=True)
        ]
        results = [torch.cat(r, dim=1) if whole else r[-1].clone() for r in zip(*parts, strict=True)]
        return dict(zip(outputs, results, strict=True))

    return decoder if "context" in call.options else model


def prepare() -> None:
    """The runtime, with nothing in it."""
    skip_compiler()
    with quiet():
        from executorch.runtime import Runtime

        Runtime.get()


@functools.cache
def use_threads(count: int) -> None:
    """Set the size of the runtime's pool of threads, once in a process."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(count)


def more_kernels(call: Call) -> None:
    """Kernels for quantised tables, attention and caches, which executorch ships as libraries of their own."""
    for name in _names(call, "kernels"):
        folder = _folder(name)
        library = next(iter(sorted(folder.glob("lib*_aot_lib.*"))), None)
        if library is None:
            raise PlanishError(f"this executorch has no kernels in {name}", str(call.path), INSTALL)
        torch.ops.load_library(str(library))


def _folder(name: str) -> Path:
    package = find_spec("executorch")
    assert package is not None
    return Path(next(iter(package.submodule_search_locations or ())), *name.split("."))


def skip_compiler() -> None:
    """Let executorch's runtime find the one small module of `executorch.exir` that it needs, without the compiler.

    The package's own import takes seconds and a hundred megabytes that are no part of what is measured here.
    """
    spec = find_spec("executorch.exir")
    if spec is not None and spec.submodule_search_locations and "executorch.exir" not in sys.modules:
        package = ModuleType("executorch.exir")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["executorch.exir"] = package


def _names(call: Call, key: str) -> list[str]:
    names = call.options.get(key)
    if not isinstance(names, list):
        raise PlanishError(f"a .pte names no ports, and call.json has no {key!r}", str(call.path), _DEFECT)
    return names


def told(problem: RuntimeError) -> str:
    """What the runtime says, in one line."""
    return f"the ExecuTorch runtime refuses: {' '.join(str(problem).split())[:300]}"


if __name__ == "__main__":
    serve("ExecuTorch CPU (XNNPACK)", ("executorch", "torch"), load, prepare)

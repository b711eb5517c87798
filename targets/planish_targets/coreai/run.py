"""Runner of the Core AI target: the runtime that coreai-core brings, on the CPU."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.coreai.asset import check
from planish_targets.coreai.states import MAIN
from planish_targets.coreml.resident import chunks_of, context_of, resident
from planish_targets.serve import Call, Model, serve

_DEFECT = "compile the model again; `planish inspect` shows what the file holds"


def load(call: Call) -> Model:
    """Open a .aimodel.

    Raises:
        PlanishError: it is not whole, or the runtime refuses it.
    """
    check(call.path)
    loop = asyncio.new_event_loop()
    opened = contextlib.AsyncExitStack()
    atexit.register(lambda: loop.run_until_complete(opened.aclose()))
    functions, names = chunks_of(call.options), [MAIN]
    if functions:
        names = list(functions)
    try:
        from coreai.authoring import AIModelAsset

        model = loop.run_until_complete(opened.enter_async_context(AIModelAsset.load(call.path).executable()))
        ready = {name: model.load_function(name) for name in names}
    except (RuntimeError, KeyError, ValueError) as problem:
        raise PlanishError(_told(problem), str(call.path), _DEFECT) from problem
    states = _zeros(call.options)

    def one(function: str, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        run = ready[function or MAIN]
        given = {name: _array(feed, name, call) for name in run.desc.input_names}
        try:
            made = loop.run_until_complete(run(inputs=given, state=states))
        except RuntimeError as problem:
            shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in given.items())
            raise PlanishError(f"{_told(problem)}; given {shapes}", str(call.path), _DEFECT) from problem
        return {name: torch.from_numpy(np.array(value.numpy())) for name, value in made.items()}

    return resident(one, functions, *context_of(call.options)) if functions else lambda feed: one("", feed)


def _zeros(options: Mapping[str, object]) -> dict[str, Any]:
    """States as they begin. An array that the runtime makes from a state's description is not zeroed: what it holds is
    chance, and attention over it is silently wrong."""
    from coreai.runtime import NDArray

    states = options.get("states", {})
    assert isinstance(states, Mapping)
    return {name: NDArray(np.zeros(shape, np.float32)) for name, shape in states.items()}


def _array(feed: Mapping[str, Tensor], name: str, call: Call) -> Any:
    from coreai.runtime import NDArray

    if name not in feed:
        raise PlanishError(f"the model wants an input {name!r}", str(call.path), "give it")
    tensor = feed[name]
    narrow = {torch.int64: torch.int32, torch.float64: torch.float32}.get(tensor.dtype, tensor.dtype)
    return NDArray(np.array(tensor.to(narrow).contiguous().numpy()))


def _told(problem: Exception) -> str:
    return f"the Core AI runtime refuses: {' '.join(str(problem).split())[:300]}"


if __name__ == "__main__":
    serve("Core AI runtime of coreai-core (CPU)", ("coreai-core", "coreai-torch", "torch"), load)

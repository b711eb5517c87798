"""Runner of the Core ML target: the MIL interpreter, or Core ML itself (`--native`, macOS)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.coreml.emit.naming import safe_name
from planish_targets.coreml.masks import fed
from planish_targets.coreml.resident import SLOTS, chunks_of, context_of, resident
from planish_targets.serve import Call, Model, serve


def load(call: Call) -> Model:
    """Open a package with the MIL interpreter."""
    from planish_targets.coreml import mil

    torch.set_num_threads(call.threads)
    precision = call.options.get("precision", "fp32")
    if precision not in ("fp32", "fp16"):
        raise PlanishError(f"unknown precision {precision!r}", "option precision of the Core ML runner", "fp32 or fp16")
    decoded = mil.Decoded()
    functions = chunks_of(call.options)
    programs = {name: mil.load(call.path, name or None, decoded) for name in functions or {"": 0}}
    states: dict[str, Tensor] = {}
    named, values = _program_names(call.options), call.options.get("values", {})
    assert isinstance(values, Mapping)

    def one(function: str, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        program, shown = programs[function], dict[str, Tensor]()

        def tap(name: str, value: Tensor) -> None:
            if values.get(name) in call.taps:
                shown[values[name]] = value

        told = {**feed, **fed(call.options, feed[SLOTS])} if functions else feed
        given = {port.name: told[named.get(port.name, port.name)] for port in program.inputs}
        made = program.run(given, precision, tap if call.taps else None, states)  # type: ignore[arg-type]
        return {**shown, **{named.get(name, name): value for name, value in made.items()}}

    return resident(one, functions, *context_of(call.options)) if functions else lambda feed: one("", feed)


def load_native(call: Call) -> Model:
    """Open a package with Core ML, on all compute units."""
    open_model, functions = importlib.import_module("coremltools").models.MLModel, chunks_of(call.options)
    if functions:
        return _native_decoder(open_model, call, functions)
    model: Any = open_model(str(call.path))
    names, named = [entry.name for entry in model.get_spec().description.input], _program_names(call.options)

    def predict(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = {name: _narrow(feed[named.get(name, name)]).numpy() for name in names}
        return {named.get(name, name): torch.from_numpy(value) for name, value in model.predict(given).items()}

    return predict


def _native_decoder(open_model: Any, call: Call, functions: Mapping[str, int]) -> Model:
    # one state for all functions, as https://github.com/apple/coremltools/pull/2686 describes
    models = {name: open_model(str(call.path), function_name=name) for name in functions}
    state = next(iter(models.values())).make_state()
    taken = set(_listed(call.options, "inputs"))

    def one(function: str, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        told = {name: tensor for name, tensor in feed.items() if name in taken} | fed(call.options, feed[SLOTS])
        given = {safe_name(name): _narrow(tensor).numpy() for name, tensor in told.items()}
        return {name: torch.from_numpy(value) for name, value in models[function].predict(given, state).items()}

    return resident(one, functions, *context_of(call.options))


def _program_names(options: Mapping[str, object]) -> dict[str, str]:
    """Name of an input or output in the package -> its name in the program (MIL takes no dots)."""
    return {safe_name(name): name for key in ("inputs", "outputs") for name in _listed(options, key)}


def _listed(options: Mapping[str, object], key: str) -> tuple[str, ...]:
    given = options.get(key, ())
    assert isinstance(given, (list, tuple))
    return tuple(str(name) for name in given)


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32)


if __name__ == "__main__":
    if "--native" in sys.argv:
        sys.argv.remove("--native")
        serve("Core ML", ("coremltools", "torch"), load_native)
    else:
        serve("MIL interpreter", ("coremltools", "torch"), load, shows=True)

"""Runner of the Core ML target: the MIL interpreter, or Core ML itself (`--native`, macOS)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.serve import Call, Model, serve


def load(call: Call) -> Model:
    """Open a package with the MIL interpreter."""
    from planish_targets.coreml import mil

    torch.set_num_threads(call.threads)
    program = mil.load(call.path)
    precision = call.options.get("precision", "fp32")
    if precision not in ("fp32", "fp16"):
        raise PlanishError(f"unknown precision {precision!r}", "option precision of the Core ML runner", "fp32 or fp16")
    names = [port.name for port in program.inputs]

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        shown: dict[str, Tensor] = {}

        def tap(name: str, value: Tensor) -> None:
            if name in call.taps:
                shown[name] = value

        given = {name: feed[name] for name in names}
        return {**shown, **program.run(given, precision=precision, tap=tap)}  # type: ignore[arg-type]

    return model


def load_native(call: Call) -> Model:
    """Open a package with Core ML, on all compute units."""
    from planish_targets.coreml import sdk

    model: Any = sdk.load().ct.models.MLModel(str(call.path))
    description = model.get_spec().description.input
    names = [entry.name for entry in description]

    def predict(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = {name: _narrow(feed[name]).numpy() for name in names}
        return {name: torch.from_numpy(value) for name, value in model.predict(given).items()}

    return predict


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32)


if __name__ == "__main__":
    if "--native" in sys.argv:
        sys.argv.remove("--native")
        serve("Core ML", ("coremltools", "torch"), load_native)
    else:
        serve("MIL interpreter", ("coremltools", "torch"), load)

"""Open an ONNX or ORT file in ONNX Runtime and run it; inside runner processes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.onnx_graph.translate import VALUE
from planish_targets.serve import Call, Model

TAP = "planish.tap:"  # prefix of outputs that show inner values


_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
# Waiting threads that spin take the processor from each other when the machine is shared.
_SETTINGS = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}


def load(call: Call, providers: Sequence[str], settings: Mapping[str, str] | None = None) -> Model:
    """Open `call.path`.

    Args:
        call: file and thread count.
        providers: execution providers in order of preference.
        settings: more session configuration entries ("session.disable_cpu_ep_fallback", ...).

    Returns:
        A function from named inputs, cast to the dtypes that the file declares, to named outputs.

    Raises:
        PlanishError: a provider is not in this build of ONNX Runtime, or it refuses the file.
    """
    return _model(open_session(call, providers, settings), call)


def open_session(call: Call, providers: Sequence[str], settings: Mapping[str, str] | None = None) -> Any:
    """The InferenceSession of `load`."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    for provider in providers:
        if provider not in available:
            hint = f"install the ONNX Runtime package that has it; this one has {', '.join(available)}"
            raise PlanishError(f"no {provider} in this ONNX Runtime", call.path.name, hint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = call.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = "DmlExecutionProvider" not in providers  # DirectML does not take it
    for key, value in {**_SETTINGS, **(settings or {})}.items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(_source(call), options, providers=list(providers))
    except Exception as problem:
        # The binding raises classes of its own per status code, without a common base.
        text = str(problem).strip().splitlines()[0]
        hint = "compile the model again; if it stays, report it with the model's config.json"
        raise PlanishError(f"ONNX Runtime refuses the file: {text}", call.path.name, hint) from problem


def arrays_of(session: Any, call: Call, feed: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inputs of a session as arrays of the types that the file declares.

    Raises:
        PlanishError: an input has no value; names it.
    """
    wanted = {i.name: _DTYPES[i.type] for i in session.get_inputs()}
    missing = [name for name in wanted if name not in feed]
    if missing:
        where = f"{call.path.name}, which takes {', '.join(wanted)}"
        raise PlanishError(f"no value for input {missing[0]!r}", where, "give every input of the artifact")
    return {name: feed[name].to(dtype).contiguous().numpy() for name, dtype in wanted.items()}


def _model(session: Any, call: Call) -> Model:
    returned = [o.name for o in session.get_outputs()]

    def model(feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        arrays = session.run(returned, arrays_of(session, call, feed))
        return {n.removeprefix(TAP): torch.from_numpy(array) for n, array in zip(returned, arrays, strict=True)}

    return model


def _source(call: Call) -> str | bytes:
    """The file; or, when inner values are asked for, the same model with them as extra outputs."""
    if not call.taps or call.path.suffix != ".onnx":
        return str(call.path)
    import onnx

    model = onnx.load(call.path)
    for node in list(model.graph.node):
        name = next((p.value for p in node.metadata_props if p.key == VALUE), None)
        if name in call.taps:
            model.graph.node.append(onnx.helper.make_node("Identity", [node.output[0]], [TAP + name]))
            model.graph.output.append(onnx.ValueInfoProto(name=TAP + name))
    return bytes(model.SerializeToString())

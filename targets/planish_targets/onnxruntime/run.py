"""Runner of the onnxruntime target: the CPU execution provider."""

from __future__ import annotations

from planish_targets.onnx_graph.session import load
from planish_targets.serve import Call, Model, serve


def load_cpu(call: Call) -> Model:
    """Open an .onnx or .ort file on the CPU provider."""
    return load(call, ["CPUExecutionProvider"])


if __name__ == "__main__":
    serve("ONNX Runtime CPU", ("onnxruntime",), load_cpu, shows=True)

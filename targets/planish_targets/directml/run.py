"""Runner of the directml target: the DirectML provider where it is installed, else the CPU provider in its place."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from planish_targets.onnx_graph.session import load, open_session
from planish_targets.serve import Call, Model, serve

DML, CPU = "DmlExecutionProvider", "CPUExecutionProvider"
PACKAGE = "onnxruntime-directml"


def provider() -> str:
    """The provider that this machine can run an artifact on."""
    if sys.platform != "win32":
        return CPU
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return CPU
    return DML


def open_artifact(call: Call) -> Model:
    """Open the file on `provider()`.

    An artifact whose nodes are all expected on the device must not run elsewhere: the fallback is then forbidden, and
    a run proves the placement too.
    """
    chosen = provider()
    whole = chosen == DML and call.options.get("all_on_device") is True
    settings = {"session.disable_cpu_ep_fallback": "1"} if whole else {}
    providers = [chosen] if whole or chosen == CPU else [chosen, CPU]
    if chosen == DML and call.options.get("shared_buffers"):
        from planish_targets.directml.in_place import in_place

        return in_place(open_session(call, providers, settings), call, "dml")
    return load(call, providers, settings)


if __name__ == "__main__":
    on_device = provider() == DML
    device = "ONNX Runtime DirectML" if on_device else "ONNX Runtime CPU in the place of DirectML"
    serve(device, (PACKAGE,) if on_device else ("onnxruntime",), open_artifact, shows=True)

"""The form for reduced mobile builds: model.ort, and the list of operators and types that such a build needs.

Both files use one copy of the weights: the .onnx file's external data points into the .ort file. The converter is
native code that holds the model several times, so it runs as a process of its own: this file, which knows nothing of
planish.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

ORT_FILE = "model.ort"
SMALLEST = 1024  # tensors below this many bytes stay inside model.onnx
LARGE = 64 * 1024  # bytes; a tensor of this size that is stored twice is worth a note


def add_mobile_form(folder: Path, file: str) -> tuple[str, ...]:
    """Write model.ort and the operator list next to `file`, and let `file` use the weights in model.ort.

    Returns:
        Notes for the user (tensors that ONNX Runtime changed while converting, so that both files hold them).

    Raises:
        PlanishError: the converter failed; tells its last words.
    """
    done = subprocess.run([sys.executable, __file__, str(folder), file], capture_output=True, text=True)
    from planish_passes.errors import PlanishError
    from planish_targets.onnxruntime.kernel_tables import sort_kernel_tables

    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        hint = "report it with the model's config.json"
        raise PlanishError(f"{ORT_FILE} cannot be written: {last}", str(folder / file), hint)
    sort_kernel_tables(folder / ORT_FILE)
    kept: list[str] = json.loads(done.stdout.splitlines()[-1])
    if not kept:
        return ()
    return (f"{len(kept)} tensors are stored in both {file} and {ORT_FILE}: {', '.join(kept[:3])}",)


def convert(folder: Path, file: str) -> list[str]:
    """Write the files; returns the names of tensors that both files hold."""
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        convert_onnx_models_to_ort(
            folder / file,
            output_dir=folder,
            optimization_styles=[OptimizationStyle.Fixed],
            target_platform="arm",
            enable_type_reduction=True,
        )
    _name_no_place(folder)
    return _share(folder, file)


def _name_no_place(folder: Path) -> None:
    """The list of operators says where the model was on this machine, and every build is in another folder."""
    for listed in folder.glob("*.config"):
        lines = listed.read_text("utf-8").splitlines(keepends=True)
        listed.write_text(
            "".join(line.replace(f"{folder}/", "") if line[0] == "#" else line for line in lines), "utf-8"
        )


def _share(folder: Path, file: str) -> list[str]:
    """Point the external data of `file` into model.ort; tensors whose bytes are not there move into `file`."""
    import onnx
    from onnx.external_data_helper import set_external_data

    model = onnx.load(folder / file)
    stored = _offsets(folder / ORT_FILE)
    missing = []
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < SMALLEST:
            continue
        at = stored.get(tensor.name)
        if at is None or at[1] != tensor.raw_data:
            if len(tensor.raw_data) >= LARGE:
                missing.append(tensor.name)
            continue
        data = tensor.raw_data
        set_external_data(tensor, ORT_FILE, offset=at[0], length=len(data))
        tensor.ClearField("raw_data")
    onnx.save(model, folder / file)
    (folder / f"{file}.data").unlink()
    return missing


def _offsets(path: Path) -> dict[str, tuple[int, bytes]]:
    """Initializer name -> (offset in the file, bytes)."""
    import numpy as np
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    buffer = np.fromfile(path, dtype=np.uint8)
    graph = InferenceSession.GetRootAs(buffer.data, 0).Model().Graph()
    base, found = buffer.ctypes.data, {}
    for number in range(graph.InitializersLength()):
        tensor = graph.Initializers(number)
        if tensor.RawDataLength():
            raw = tensor.RawDataAsNumpy()
            found[tensor.Name().decode()] = (int(raw.ctypes.data - base), raw.tobytes())
    return found


if __name__ == "__main__":
    print(json.dumps(convert(Path(sys.argv[1]), sys.argv[2])))

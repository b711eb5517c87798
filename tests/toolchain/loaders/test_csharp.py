"""The C# loader with ONNX Runtime's own C# binding, built from its sources, on .NET 8 and the real runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shipping import (
    FAULTS,
    HOME,
    TEXTS,
    Shipped,
    ask_python,
    bytewise,
    needs,
    onnxruntime_library,
    question,
    written_tokens,
)

pytestmark = needs("dotnet/Microsoft.ML.OnnxRuntime.dll", "dotnet/runtime", "dotnet/reference", programs=("mcs",))
APPS = Path(__file__).parent / "apps"
CONFIG = {
    "runtimeOptions": {
        "tfm": "net8.0",
        "framework": {"name": "Microsoft.NETCore.App", "version": "8.0.0"},
        "configProperties": {"System.Globalization.Invariant": True},
    }
}


def build(shipped: Shipped, folder: Path, *more: str) -> Path:
    """The app, with the libraries that it needs beside it. Assemblies of .NET Core 3.1 are referred to."""
    binding, reference = HOME / "dotnet/Microsoft.ML.OnnxRuntime.dll", HOME / "dotnet/reference"
    shutil.copyfile(binding, folder / binding.name)
    names = [*sorted(reference.glob("System*.dll")), reference / "mscorlib.dll", reference / "netstandard.dll"]
    app = folder / "app.exe"
    # 1702: the same assembly, said twice.
    command = ["mcs", "-nostdlib", "-noconfig", "-nowarn:1702", "-warnaserror", f"-out:{app}", *more]
    command += [f"-r:{path}" for path in (*names, folder / binding.name)]
    command += [str(path) for path in (*sorted((shipped.loaders / "csharp").glob("*.cs")), APPS / "Answer.cs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]
    (folder / "app.runtimeconfig.json").write_text(json.dumps(CONFIG))
    library = onnxruntime_library(folder)
    (folder / "libonnxruntime.so").symlink_to(library)
    return app


def ask_app(app: Path, questions: Sequence[dict[str, Any]], **given: Any) -> list[Any]:
    at, answers = app.with_name("ask.json"), app.with_name("answers.json")
    at.write_text(json.dumps({"questions": questions, **given}))
    command = [str(HOME / "dotnet/runtime/dotnet"), str(app), str(at), str(answers)]
    env = {"LD_LIBRARY_PATH": str(app.parent), "DOTNET_CLI_TELEMETRY_OPTOUT": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(answers.read_text()))


@pytest.fixture(scope="module")
def answers(
    encoder: Shipped,
    faults: list[dict[str, Any]],
    tokens: dict[str, list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """Of the faults, and of the texts on two targets."""
    app = build(encoder, tmp_path_factory.mktemp("csharp"))
    asked = {"bundle": str(encoder.bundle), "key": encoder.key, "texts": TEXTS}
    whole = [{**asked, "target": target} for target in ("onnxruntime", "directml")]
    return ask_app(app, [*faults, *whole], tokens=tokens)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_refuses(answers: list[Any], fault: str) -> None:
    assert FAULTS[fault][1] in answers[list(FAULTS).index(fault)]["refused"]


def test_it_refuses_another_key(answers: list[Any]) -> None:
    assert answers[len(FAULTS)] == {"refused": "the signature is not of this key"}


def test_vectors_are_those_of_python(encoder: Shipped, answers: list[Any]) -> None:
    targets = ("onnxruntime", "directml")
    wanted = ask_python(encoder, [question(encoder, target, "embed", *TEXTS) for target in targets])
    for mine, theirs in zip(answers[-2:], wanted, strict=True):
        assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-6


def test_it_writes_what_python_writes(writer: Shipped, tmp_path: Path) -> None:
    app = build(writer, tmp_path, "-d:WRITES")
    prompts = (("ab", 12, True), ("hello", 400, False))
    (wanted,) = ask_python(writer, [question(writer, "onnxruntime", "generate", *prompts)])
    asked = {"bundle": str(writer.bundle), "target": "onnxruntime", "key": writer.key}
    questions = [{**asked, "texts": [text], "count": count, "chat": chat} for text, count, chat in prompts]
    assert ask_app(app, questions, **written_tokens(writer, prompts)) == [[bytewise(text)] for text in wanted]

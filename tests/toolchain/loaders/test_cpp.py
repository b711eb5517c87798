"""The C++ loaders, compiled with the warnings on, on real artifacts: what they answer and refuse."""

from __future__ import annotations

import json
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

pytestmark = needs(programs=("g++",), files=("/usr/include/nlohmann/json.hpp", "/usr/include/openssl/evp.h"))
binding = needs("onnxruntime/include")
HEADERS = HOME / "onnxruntime/include"
APPS = Path(__file__).parent / "apps"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")


def build(source: Path, loaders: Path, to: Path, *more: str) -> Path:
    command = ["g++", "-std=c++17", "-O0", *WARNINGS, f"-I{loaders / 'cpp'}", str(source), "-o", str(to), *more]
    done = subprocess.run([*command, "-lcrypto"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[:4000]
    return to


def ask_app(app: Path, questions: Sequence[dict[str, Any]], **given: Any) -> list[Any]:
    at = app.with_suffix(".json")
    at.write_text(json.dumps({"questions": questions, **given}))
    command, env = [str(app), str(at)], {"LD_LIBRARY_PATH": str(app.parent)}
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return list(json.loads(done.stdout[done.stdout.rindex(b"\n") + 1 :] if b"\n" in done.stdout else done.stdout))


def embedding(shipped: Shipped, target: str) -> dict[str, Any]:
    return {"bundle": str(shipped.bundle), "target": target, "key": shipped.key, "texts": TEXTS}


@pytest.fixture(scope="module")
def answers(
    encoder: Shipped,
    faults: list[dict[str, Any]],
    tokens: dict[str, list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """Of the faults, and of the texts on two targets."""
    headers, root = HEADERS, tmp_path_factory.mktemp("cpp")
    library = onnxruntime_library(root)
    app = build(APPS / "answer.cpp", encoder.loaders, root / "app", f"-isystem{headers}", str(library))
    whole = [embedding(encoder, target) for target in ("onnxruntime", "directml")]
    return ask_app(app, [*faults, *whole], tokens=tokens)


@binding
@pytest.mark.parametrize("fault", FAULTS)
def test_it_refuses(answers: list[Any], fault: str) -> None:
    assert FAULTS[fault][1] in answers[list(FAULTS).index(fault)]["refused"]


@binding
def test_it_refuses_another_key(answers: list[Any]) -> None:
    assert answers[len(FAULTS)] == {"refused": "the signature is not of this key"}


@binding
def test_vectors_are_those_of_python(encoder: Shipped, answers: list[Any]) -> None:
    targets = ("onnxruntime", "directml")
    wanted = ask_python(encoder, [question(encoder, target, "embed", *TEXTS) for target in targets])
    for mine, theirs in zip(answers[-2:], wanted, strict=True):
        assert np.array(mine).shape == (len(TEXTS), 32)
        assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-6


def executorch_flags() -> list[str]:
    """Headers and libraries of the Python package; the whole of each library, which registers itself."""
    import executorch

    root = Path(next(iter(executorch.__path__)))
    if not (root / "include").is_dir() or not list((root / "lib").glob("libexecutorch.*")):
        pytest.skip("this executorch package has no C++ headers and libraries")
    names = ("executorch", "executorch_kernels_optimized", "executorch_backend_xnnpack", "executorch_threadpool")
    libraries = [str(path) for name in names for path in (root / "lib").glob(f"lib{name}.so")]
    includes = [f"-isystem{root / part}" for part in ("include", "include/executorch/runtime/core/portable_type/c10")]
    return [
        *includes,
        "-DC10_USING_CUSTOM_GENERATED_MACROS",
        "-Wl,--no-as-needed",
        *libraries,
        f"-Wl,-rpath,{root / 'lib'}",
    ]


def test_executorch_computes_what_python_does(encoder: Shipped, tokens: dict[str, list[int]], tmp_path: Path) -> None:
    app = build(APPS / "answer.cpp", encoder.loaders, tmp_path / "app", "-DEXECUTORCH", *executorch_flags())
    (mine,) = ask_app(app, [embedding(encoder, "executorch")], tokens=tokens)
    (theirs,) = ask_python(encoder, [question(encoder, "executorch", "embed", *TEXTS)])
    assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-6


@binding
def test_it_writes_what_python_writes(writer: Shipped, tmp_path: Path) -> None:
    headers, library = HEADERS, onnxruntime_library(tmp_path)
    app = build(APPS / "answer.cpp", writer.loaders, tmp_path / "app", "-DWRITES", f"-isystem{headers}", str(library))
    prompts = (("ab", 12, True), ("hello", 400, False))
    (wanted,) = ask_python(writer, [question(writer, "onnxruntime", "generate", *prompts)])
    asked = {"bundle": str(writer.bundle), "target": "onnxruntime", "key": writer.key}
    questions = [{**asked, "texts": [text], "count": count, "chat": chat} for text, count, chat in prompts]
    assert ask_app(app, questions, **written_tokens(writer, prompts)) == [[bytewise(text)] for text in wanted]


def test_writing_with_executorch_compiles(writer: Shipped, tmp_path: Path) -> None:
    """Its kernels for caches are in no C++ library of the package, so it is not run."""
    flags = [flag for flag in executorch_flags() if not flag.endswith(".so")]
    build(APPS / "answer.cpp", writer.loaders, tmp_path / "app.o", "-DEXECUTORCH", "-DWRITES", "-c", *flags)


def test_labels_cannot_be_code(classifier: Shipped, tmp_path: Path) -> None:
    source = tmp_path / "labels.cpp"
    source.write_text(
        '#include <iostream>\n#include "planish/text.hpp"\n'
        "int main() { std::cout << nlohmann::json(planish::contract::LABELS).dump(); }\n"
    )
    app = build(source, classifier.loaders, tmp_path / "labels")
    manifest = json.loads((classifier.bundle / "manifest.json").read_text())
    assert json.loads(subprocess.check_output([app])) == list(manifest["labels"].values())

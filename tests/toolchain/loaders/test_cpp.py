"""The C++ loader, compiled with the warnings on, on a real artifact in ONNX Runtime: what it answers and refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shipping import FAULTS, TEXTS, Shipped, ask_python, onnxruntime_library, question, tool

APPS = Path(__file__).parent / "apps"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")


def build(source: Path, loaders: Path, to: Path, *more: str) -> Path:
    if shutil.which("g++") is None or not Path("/usr/include/nlohmann/json.hpp").is_file():
        pytest.skip("needs g++, OpenSSL's and nlohmann's headers: sh ci/loader_tools.sh")
    command = [
        "g++",
        "-std=c++17",
        "-O0",
        *WARNINGS,
        f"-I{loaders / 'cpp'}",
        str(source),
        "-o",
        str(to),
        *more,
        "-lcrypto",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[:4000]
    return to


@pytest.fixture(scope="module")
def answers(
    encoder: Shipped,
    faults: list[dict[str, Any]],
    tokens: dict[str, list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """Of the faults, and of the texts on two targets."""
    headers, root = tool("onnxruntime/include"), tmp_path_factory.mktemp("cpp")
    library = onnxruntime_library(root)
    app = build(APPS / "embed.cpp", encoder.loaders, root / "embed", f"-isystem{headers}", str(library))
    whole = [
        {"bundle": str(encoder.bundle), "target": target, "key": encoder.key, "texts": TEXTS}
        for target in ("onnxruntime", "directml")
    ]
    (root / "ask.json").write_text(json.dumps({"questions": [*faults, *whole], "tokens": tokens}))
    command, env = [str(app), str(root / "ask.json")], {"LD_LIBRARY_PATH": str(root)}
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("fault", FAULTS)
def test_it_refuses(answers: list[Any], fault: str) -> None:
    assert FAULTS[fault][1] in answers[list(FAULTS).index(fault)]["refused"]


def test_it_refuses_another_key(answers: list[Any]) -> None:
    assert answers[len(FAULTS)] == {"refused": "the signature is not of this key"}


def test_vectors_are_those_of_python(encoder: Shipped, answers: list[Any]) -> None:
    targets = ("onnxruntime", "directml")
    wanted = ask_python(encoder, [question(encoder, target, "embed", *TEXTS) for target in targets])
    for mine, theirs in zip(answers[-2:], wanted, strict=True):
        assert np.array(mine).shape == (len(TEXTS), 32)
        assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-6


def test_labels_cannot_be_code(classifier: Shipped, tmp_path: Path) -> None:
    source = tmp_path / "labels.cpp"
    source.write_text(
        '#include <iostream>\n#include "planish/text.hpp"\n'
        "int main() { std::cout << nlohmann::json(planish::contract::LABELS).dump(); }\n"
    )
    app = build(source, classifier.loaders, tmp_path / "labels")
    manifest = json.loads((classifier.bundle / "manifest.json").read_text())
    assert json.loads(subprocess.check_output([app])) == list(manifest["labels"].values())

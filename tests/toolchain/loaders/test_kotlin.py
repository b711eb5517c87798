"""The Kotlin loaders, compiled with the warnings as errors. ONNX Runtime's Java binding is in no registry that tests
reach: a stand-in with its public names hands tensors to the real runtime, in a process of its own. ExecuTorch's is
compiled against, and not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shipping import FAULTS, HOME, TEXTS, Shipped, ask_python, bytewise, needs, question, written_tokens

APPS = Path(__file__).parent / "apps"
JSON = Path("/usr/share/java/com.android.json.jar")
pytestmark = needs("kotlin", programs=("java", "javac"), files=(str(JSON),))
QUICK = {"JAVA_OPTS": "-XX:TieredStopAtLevel=1 -Xshare:auto", "PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class files of the stand-ins."""
    at = tmp_path_factory.mktemp("bindings")
    sources = [str(path) for path in sorted((APPS / "java").rglob("*.java"))]
    subprocess.run(["javac", "-Werror", "-d", str(at), *sources], check=True, timeout=300)
    return at


def build(shipped: Shipped, reply: str, bindings: Path, to: Path) -> str:
    """Class path of the app."""
    home = HOME / "kotlin"
    sources = [str(path) for path in sorted((shipped.loaders / "kotlin/planish").glob("*.kt"))]
    command = [str(home / "bin/kotlinc"), "-Werror", "-cp", f"{bindings}:{JSON}", "-d", str(to)]
    command += [*sources, str(APPS / "Answer.kt"), str(APPS / reply)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=QUICK)
    assert done.returncode == 0, done.stderr[:4000]
    return f"{to}:{bindings}:{JSON}:{home / 'lib/kotlin-stdlib.jar'}"


def ask_app(classes: str, at: Path, questions: Sequence[dict[str, Any]], **given: Any) -> list[Any]:
    at.write_text(json.dumps({"questions": questions, **given}))
    settings = [f"-Dpython={sys.executable}", f"-Druntime={APPS / 'runtime.py'}", "-Dfile.encoding=UTF-8"]
    command = ["java", "-XX:TieredStopAtLevel=1", *settings, "-cp", classes, "AnswerKt", str(at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout))


@pytest.fixture(scope="module")
def answers(
    encoder: Shipped,
    faults: list[dict[str, Any]],
    tokens: dict[str, list[int]],
    bindings: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """Of the faults, and of the texts on two targets."""
    root = tmp_path_factory.mktemp("kotlin")
    classes = build(encoder, "Embed.kt", bindings, root / "app.jar")
    asked = {"bundle": str(encoder.bundle), "key": encoder.key, "texts": TEXTS}
    whole = [{**asked, "target": target} for target in ("onnxruntime", "directml")]
    return ask_app(classes, root / "ask.json", [*faults, *whole], tokens=tokens)


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


def test_it_writes_what_python_writes(writer: Shipped, bindings: Path, tmp_path: Path) -> None:
    classes = build(writer, "Write.kt", bindings, tmp_path / "app.jar")
    prompts = (("ab", 12, True), ("hello", 400, False))
    (wanted,) = ask_python(writer, [question(writer, "onnxruntime", "generate", *prompts)])
    asked = {"bundle": str(writer.bundle), "target": "onnxruntime", "key": writer.key}
    questions = [{**asked, "texts": [text], "count": count, "chat": chat} for text, count, chat in prompts]
    found = ask_app(classes, tmp_path / "ask.json", questions, **written_tokens(writer, prompts))
    assert found == [[bytewise(text)] for text in wanted]

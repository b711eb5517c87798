"""planish run: the answer is the artifact's own; whatever happens in its process becomes three lines."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shipping import reseal
from typer.testing import CliRunner, Result

from planish.bundle import open_bundle
from planish.cli.app import app
from planish.language import open_language, stop_tokens
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Evidence, Runner, Unavailable
from planish_targets.onnxruntime.run import load_cpu
from planish_targets.serve import Call

PROMPT = "w5 w17 w42 w99 w3"
READY = '{"protocol": 1, "device": "Fake", "load_seconds": 0}'


@pytest.fixture(autouse=True)
def targets() -> dict[str, Any]:
    """The real ones, not the fakes of conftest.py."""
    return dict(registry.targets())


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any]) -> Any:
    """Replace the runner of ONNX Runtime by a small program."""

    def use(found: str | Unavailable) -> None:
        command = (sys.executable, "-c", str(found))
        made = found if isinstance(found, Unavailable) else Runner(command, Evidence.EXECUTED, "Fake")
        monkeypatch.setattr(type(targets["onnxruntime"]), "runner", lambda self, artifact: made)

    return use


def plain_loop(bundle: Path, tokens: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache: the whole text in every call."""
    artifact = open_bundle(bundle).artifact("onnxruntime")
    model, made = load_cpu(Call(artifact.path, artifact.options, 1)), []
    empty = {f"past_key_values.{n}.{kind}": torch.zeros(1, 2, 0, 8) for n in range(2) for kind in ("key", "value")}
    for _ in range(count):
        text = torch.tensor([tokens + made])
        logits = model({"input_ids": text, "position_ids": torch.arange(text.shape[1])[None], **empty})["logits"]
        made.append(int(logits[0, -1].argmax()))
    return made


def test_greedy_is_what_a_plain_loop_gives(run: Any, tiny: Any) -> None:
    result = run("run", tiny.bundle, PROMPT, "--raw", "-n", 12, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    prompt = open_language(tiny.bundle).text(PROMPT)
    wanted = plain_loop(tiny.bundle, prompt, 12)
    wanted = wanted[: wanted.index(2)] if 2 in wanted else wanted
    assert len(wanted) > 3
    assert data["tokens"] == wanted
    assert data["text"] == open_language(tiny.bundle).tokenizer.decode(wanted, skip_special_tokens=True)
    assert data["counts"] == {"prompt": len(prompt), "computed": len(prompt), "answer": len(wanted)}
    assert data["tokens_per_second"]["decode"] > 0
    assert data["peak_memory_bytes"] > 50_000_000


def test_a_conversation_keeps_its_cache(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["run", str(tiny.bundle), "-n", "4"]
    result: Result = CliRunner().invoke(app, given, input="w5 w6\n\nw7\n/exit\nw8\n", catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    answers = result.stdout.splitlines()
    speeds = [line for line in result.stderr.splitlines() if line.startswith("prompt ")]
    assert (len(answers), len(speeds)) == (2, 2)
    language = open_language(tiny.bundle)
    turns = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": answers[0]}]
    first, second = language.conversation(turns[:1]), language.conversation([*turns, {"role": "user", "content": "w7"}])
    assert first[-1] == 3  # the template ends with "assistant"
    assert speeds[0].startswith(f"prompt {len(first)} tokens")
    # The last word of the answer was written, but never read.
    assert speeds[1].startswith(f"prompt {len(second) - len(first) - 3} tokens")
    told = plain_loop(tiny.bundle, second, 4)
    assert answers[1] == language.tokenizer.decode(told, skip_special_tokens=True)


def test_a_seed_reaches_the_draw(run: Any, tiny: Any) -> None:
    how = ("--temperature", 2, "--top-p", 0.9, "-n", 8, "-q")
    one, other = (run("run", tiny.bundle, PROMPT, "--raw", *how, "--seed", seed).stdout for seed in (1, 2))
    assert one.strip()
    assert one != other


def test_end_tokens_of_every_file(tiny: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny.bundle, tmp_path / "b.planish")
    language = open_language(bundle)
    artifact = language.bundle.artifact("onnxruntime")
    assert stop_tokens(language, artifact) == (2,)
    (bundle / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    path = artifact.folder / "genai_config.json"
    path.write_text(json.dumps({"model": {**json.loads(path.read_text())["model"], "eos_token_id": 9}}))
    assert stop_tokens(language, artifact) == (2, 7, 8, 9)


def test_an_encoder_is_refused(run: Any, encoder: Path, told: Any) -> None:
    for command in ("run", "eval"):
        result = run(command, encoder, *(["w1"] if command == "run" else []))
        what, _, hint = told(result)
        assert result.exit_code == 1
        assert what == "This is a feature-extraction model: it does not write text."
        assert "planish verify" in hint


@pytest.mark.parametrize("command", ["run", "eval"])
def test_wrong_targets(run: Any, tiny: Any, told: Any, runner: Any, command: str) -> None:
    prompt = ["w1"] if command == "run" else []
    assert "onnxruntime" in told(run(command, tiny.bundle, *prompt, "-t", "onnxruntim"))[2]
    assert told(run(command, tiny.bundle, *prompt, "-t", "coreml"))[0] == "The bundle has no target 'coreml'."
    runner(Unavailable("not installed"))
    named = told(run(command, tiny.bundle, *prompt, "-t", "onnxruntime"))
    assert named[0] == "onnxruntime cannot be run here: not installed."
    result = run(command, tiny.bundle, *prompt)
    assert result.exit_code == 1
    assert told(result)[0] == "No target of this bundle runs here (onnxruntime: not installed)."


CRASH = "import os, signal, sys; os.kill(os.getpid(), signal.SIGSEGV)"
TALKS = f"import sys; sys.stdin.readline(); print({READY!r}, flush=True); sys.stdin.readline(); "


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (CRASH, "The runtime crashed with SIGSEGV."),
        (TALKS + CRASH, "The runtime crashed with SIGSEGV."),
        (TALKS + """print('{"token": 9}', flush=True); """ + CRASH, "The runtime crashed with SIGSEGV."),
        ("import sys; sys.exit('no such thing')", "The runner exited with 1: no such thing."),
        ("print('hello')", "This runner does not write text."),
        ("print('{}')", "This runner does not write text."),
        ("import time; time.sleep(60)", "No answer within 1 s; the process was stopped."),
        (TALKS + "import time; time.sleep(60)", "No answer within 1 s; the process was stopped."),
        ("""print('{"error": {"what": "a", "where": "b", "hint": "c"}}')""", "a"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_what_happens_in_the_process(run: Any, tiny: Any, told: Any, runner: Any, program: str, what: str) -> None:
    runner(program)
    result = run("run", tiny.bundle, "w1", "--timeout", 1)
    assert result.exit_code == 1
    assert told(result)[0] == what


def test_a_damaged_artifact(run: Any, tiny: Any, told: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny.bundle, tmp_path / "b.planish")
    artifact: Artifact = open_bundle(bundle).artifact("onnxruntime")
    artifact.path.unlink()  # a hard link to the original
    artifact.path.write_bytes(b"\x08\x07damaged")
    result = run("run", bundle, "w1")
    assert result.exit_code == 1
    assert told(result)[0].startswith("ONNX Runtime refuses the file")


def test_prompts_that_do_not_fit(run: Any, tiny: Any, told: Any) -> None:
    long = told(run("run", tiny.bundle, "w1 " * 300, "--raw"))
    assert long[0] == "The text has 300 tokens; the model takes 1 to 256."
    full = json.loads(run("run", tiny.bundle, "w1 " * 255, "--raw", "--json").stdout)
    assert full["finish"] in ("context", "stop")
    assert len(full["tokens"]) <= 2


def test_the_tokenizer_of_a_gguf_file_lies_beside_an_artifact(tiny: Any, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny.bundle, tmp_path / tiny.bundle.name))
    reseal(bundle, lambda manifest: manifest.update(tokenizer=None))
    shutil.rmtree(bundle / "tokenizer")
    assert open_language(bundle).text(PROMPT) == open_language(tiny.bundle).text(PROMPT)
    (bundle / "targets" / "onnxruntime" / "tokenizer.json").unlink()
    with pytest.raises(PlanishError, match=r"The bundle has no tokenizer\."):
        open_language(bundle)

"""The Python loader in a process that has no planish: what it answers, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from shipping import FAULTS, TEXTS, Shipped, ask_python, question, reseal, sign

from planish.bundle import open_bundle
from planish.chat import Answer, Chat
from planish.language import choose, open_language, stop_tokens
from planish_targets.stream import Decoding, Sampling


@pytest.fixture(scope="module")
def refusals(encoder: Shipped, faults: list[dict[str, Any]]) -> list[Any]:
    return ask_python(encoder, faults)


@pytest.mark.parametrize("fault", FAULTS)
def test_it_refuses(refusals: list[Any], fault: str) -> None:
    assert FAULTS[fault][1] in refusals[list(FAULTS).index(fault)]["refused"]


def test_it_refuses_another_key(refusals: list[Any]) -> None:
    assert refusals[-1] == {"refused": "the signature is not of this key"}


def test_vectors_are_the_models_own(encoder: Shipped) -> None:
    targets = ("onnxruntime", "directml", "executorch")
    answers = ask_python(encoder, [question(encoder, target, "embed", *TEXTS) for target in targets])
    folder = encoder.bundle.parent / "model"
    tokenizer, model = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder).eval()
    for longest, answer, limit in ((100, answers[0], 1e-4), (48, answers[1], 2e-2), (48, answers[2], 1e-4)):
        for text, found in zip(TEXTS, answer, strict=True):
            given = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
            with torch.no_grad():
                vector = model(**given).last_hidden_state[0].mean(0)
            wanted = torch.nn.functional.normalize(vector, dim=0)
            assert np.abs(np.array(found) - wanted.numpy()).max() < limit


def test_labels_cannot_be_code(classifier: Shipped) -> None:
    (answer,) = ask_python(classifier, [question(classifier, "onnxruntime", "classify", "What a day")])
    folder = classifier.bundle.parent / "model"
    model = tf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = (
            model(**tf.AutoTokenizer.from_pretrained(folder)("What a day", return_tensors="pt")).logits[0].softmax(0)
        )
    assert list(answer[0]) == list(open_bundle(classifier.bundle).manifest.labels.values())  # type: ignore[union-attr]
    assert list(answer[0].values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_kernels_that_the_package_lacks_are_named(writer: Shipped, tmp_path: Path) -> None:
    def unknown(manifest: dict[str, Any]) -> None:
        manifest["targets"]["executorch"]["artifact"]["options"]["kernels"] = ["kernels.nowhere"]

    bundle = Path(shutil.copytree(writer.bundle, tmp_path / writer.bundle.name))
    reseal(bundle, unknown)
    sign(bundle, writer.pair)
    (answer,) = ask_python(writer, [question(replace(writer, bundle=bundle), "executorch", "generate", ("x", 1, True))])
    assert answer == {"refused": "this executorch has no kernels in kernels.nowhere, which executorch needs"}


PROMPTS = (("ab 🙂", 12, True), ("hello", 9, False), ("x", 400, True))


def test_it_writes_what_planish_writes(writer: Shipped) -> None:
    answers = ask_python(
        writer,
        [
            question(writer, "onnxruntime", "generate", *PROMPTS),
            question(writer, "executorch", "generate", *PROMPTS),
        ],
    )
    language = open_language(writer.bundle)
    for target, answer in zip(("onnxruntime", "executorch"), answers, strict=True):
        found = choose(language.bundle, target)
        ends = stop_tokens(language, found.artifact)
        with Decoding(found.runner, found.artifact, found.states, found.longest) as open_:
            for (prompt, count, chat), text in zip(PROMPTS, answer, strict=True):
                told = list(Chat(language, open_, Sampling(count, ends), raw=not chat).ask(prompt))
                assert isinstance(told[-1], Answer)
                assert text == "".join(str(t) for t in told[:-1])
                assert text

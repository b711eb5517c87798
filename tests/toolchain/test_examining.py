"""The original model: asked once, gone before anything else needs its memory, and loaded again for a failure alone."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from support import FAMILIES, random_model
from torch import nn

from planish.capture import capture
from planish.examining import Examiner
from planish.recipes import find_recipe
from planish.request import Request
from planish.source import Source, open_source
from planish.tasks import PROGRAMS, Task
from planish.verdict import Failed, NotRun, Passed
from planish.verify.decoder_exam import DecoderExam
from planish.verify.decoding import PROMPT
from planish.verify.diverge import module_outputs
from planish.verify.quality import held
from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.memory import give_back_memory
from planish_passes.program import Program
from planish_passes.weights import TensorSpec, WeightStore

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 128}
MODELS: dict[str, tuple[Any, Any, str]] = {
    "bert": (tf.AutoModel, FAMILIES["bert"], "feature-extraction"),
    "llama": (
        tf.AutoModelForCausalLM,
        lambda: tf.LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            vocab_size=100,
            max_position_embeddings=128,
        ),
        "text-generation",
    ),
    "t5": (tf.AutoModelForSeq2SeqLM, lambda: tf.T5Config(decoder_start_token_id=0, **SIZES), "text2text-generation"),
}


@dataclass
class Loads:
    """Every original that was loaded, unless it is gone."""

    alive: list[weakref.ref[nn.Module]] = field(default_factory=list)

    def count(self) -> int:
        return len(self.alive)

    def left(self) -> int:
        return sum(ref() is not None for ref in self.alive)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    seen, real = Loads(), Source.reference

    def reference(source: Source) -> nn.Module:
        model = real(source)
        seen.alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Source, "reference", reference)
    return seen


def opened(family: str, folder: Path) -> tuple[Source, list[tuple[Task, Program]]]:
    auto, config, task = MODELS[family]
    random_model(config(), auto).save_pretrained(folder)
    source = open_source(str(folder), task=task)
    captured = [(t, capture(source.model_class(), source.config, t, source.weights).program) for t in PROGRAMS[task]]
    return source, [(t, run_passes(p, pipeline.fuse()).program) for t, p in captured]


def examiner(source: Source, **options: Any) -> Examiner:
    request = Request(model=source.location, targets=("onnxruntime",), **options)
    return Examiner(request, find_recipe("float"), source, source.folder / "original")


def shifted(program: Program) -> Program:
    """With one bias or weight that is not the model's."""
    name = next(n for n in program.weights if program.weights.spec(n).shape == (32,))
    store = program.weights
    return replace(program, weights=store.with_tensor(name, store.read(name) + 0.5))


@pytest.mark.parametrize("family", MODELS)
def test_it_answers_once_and_leaves(family: str, loads: Loads, tmp_path: Path) -> None:
    source, programs = opened(family, tmp_path)
    exams = examiner(source, verify=True).exams(programs)
    assert (loads.count(), loads.left()) == (1, 0)
    for exam, (_, program) in zip(exams, programs, strict=True):
        assert isinstance(exam.capture(program), Passed)
        assert isinstance(exam.capture(shifted(program)), Failed)
    encoders = sum(task.metric != "tokens" for task, _ in programs)
    assert loads.count() == 1 + encoders  # again for the failure alone, to find its layer
    assert loads.left() == 0


def test_a_failure_names_the_layer(loads: Loads, tmp_path: Path) -> None:
    source, programs = opened("bert", tmp_path)
    (exam,) = examiner(source, verify=True).exams(programs)
    store = programs[0][1].weights
    name = "encoder.layer.1.intermediate.dense.bias"
    wrong = replace(programs[0][1], weights=store.with_tensor(name, store.read(name) + 0.5))
    verdict = exam.capture(wrong)
    assert isinstance(verdict, Failed)
    assert verdict.diverged is not None
    assert verdict.diverged.module == "encoder.layer.1.intermediate.dense"


def test_without_checks_it_is_never_loaded(loads: Loads, tmp_path: Path) -> None:
    source, programs = opened("bert", tmp_path)
    (exam,) = examiner(source, verify=False).exams(programs)
    assert isinstance(exam.capture(programs[0][1]), NotRun)
    assert loads.count() == 0


def test_a_held_program_reads_each_weight_once(tmp_path: Path) -> None:
    _, ((_, program),) = opened("bert", tmp_path)
    reads: list[str] = []

    def noted(name: str) -> torch.Tensor:
        reads.append(name)
        return program.weights.read(name)

    store = WeightStore()
    for name in program.weights:
        store = store.with_lazy(name, program.weights.spec(name), lambda name=name: noted(name))  # type: ignore[misc]
    once = held(replace(program, weights=store))
    for name in [*store, *store]:
        assert TensorSpec.of(once.weights.read(name)) == store.spec(name)
    assert sorted(reads) == sorted(store)


def test_long_answers_lie_on_disk(tmp_path: Path) -> None:
    source, programs = opened("llama", tmp_path)
    (exam,) = examiner(source, verify=True).exams(programs)
    assert isinstance(exam, DecoderExam)
    model, prompt = source.reference(), exam.story[:, :PROMPT]
    with torch.no_grad():
        wanted = {"text": model(input_ids=exam.text).logits, "story": model(input_ids=exam.story).logits}
    assert set(exam.truth) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(exam.truth[name], tensor)
    inner = module_outputs(model, {"input_ids": prompt})
    assert list(exam.inner) == list(inner)
    assert all(torch.equal(a, b) for p in inner for a, b in zip(exam.inner[p], inner[p], strict=True))
    assert not any(isinstance(t, torch.Tensor) for kept in (exam.truth, exam.inner) for t in vars(kept).values())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_freed_memory_goes_back_to_the_system() -> None:
    def own() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("RssAnon")).split()[1]) >> 10

    # Small enough to lie on the heap, and every 64th stays, so that the heap cannot shrink by itself.
    made = [torch.ones(1 << 13) for _ in range(8000)]
    kept, before = made[::64], own()
    made.clear()
    give_back_memory()
    assert before - own() > 200
    assert len(kept) == 125

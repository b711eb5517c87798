"""The original model, asked once for all that checks of its programs need; then it leaves memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from planish.lower import source_length
from planish.recipes import RecipeSpec
from planish.request import Request
from planish.shelved import Single, shelved
from planish.source import Source
from planish.tasks import PROGRAMS, Task
from planish.tasks.generation import TOKENS
from planish.verify.decoder_exam import DecoderExam
from planish.verify.exam import EncoderExam, Exam, NoExam
from planish_passes.memory import give_back_memory
from planish_passes.program import Program

_TEXT = 256  # tokens that the quality of a language model is measured on


@dataclass(frozen=True)
class Examiner:
    """What exams depend on, but for the programs.

    Args:
        folder: for answers; does not exist.
    """

    request: Request
    recipe: RecipeSpec
    source: Source
    folder: Path

    def exams(self, programs: Sequence[tuple[Task, Program]]) -> list[Exam]:
        """One for each program. The original is loaded by transformers, and gone when this returns."""
        if not self.request.verify:
            return [NoExam() for _ in programs]
        model = self.source.reference()
        made = [self._exam(model, task, program) for task, program in programs]
        left = weakref.ref(model)
        del model
        if left() is not None:
            gc.collect()  # it holds itself
        made = [self._shelved(exam, self.folder / task.entry) for exam, (task, _) in zip(made, programs, strict=True)]
        give_back_memory()
        return made

    def _shelved(self, exam: Exam, folder: Path) -> Exam:
        """Logits of whole texts are large, and are looked at once or twice: meanwhile they lie on disk."""
        if not isinstance(exam, DecoderExam):
            return exam
        truth = shelved({name: [tensor] for name, tensor in exam.truth.items()}, folder / "truth.safetensors")
        return replace(exam, truth=Single(truth), inner=shelved(exam.inner, folder / "inner.safetensors"))

    def _exam(self, model: nn.Module, task: Task, program: Program) -> Exam:
        source, gates, longest = self.source, self.request.gates, _longest(program)
        samples = task.samples(source.tokenizer_files, source.config, longest)
        read = self._read(task, program)
        original = task.original(model, read)
        if task.metric == "tokens":
            text = samples[0][TOKENS][:, :_TEXT]
            return DecoderExam.of(original, text, longest, self.recipe, gates, task.given(model, read))
        pad = int(getattr(source.config, "pad_token_id", 0) or 0)

        def again() -> nn.Module:
            return task.original(source.reference(), read)

        exam = EncoderExam(samples, pad, longest, again, self.recipe, gates, task.metric)
        return exam.ask(original, program)

    def _read(self, task: Task, program: Program) -> Mapping[str, Tensor]:
        """What the encoder has read, for programs that need it: padded to the length of fixed shapes."""
        if not task.dependent:
            return {}
        length = source_length(self.request, program)
        encoder = PROGRAMS[self.source.task][0]
        samples = encoder.samples(self.source.tokenizer_files, self.source.config, length)
        sample = samples[len(samples) // 2]
        if TOKENS not in sample:
            return dict(sample)
        room = length - sample[TOKENS].shape[1]
        return {n: torch.nn.functional.pad(t[:, :length], (0, max(room, 0))) for n, t in sample.items()}


def _longest(program: Program) -> int:
    if "sequence" in program.axes:
        return program.axes["sequence"][1]
    return next((int(p.shape[1]) for p in program.inputs if p.name == "input_ids"), 0)

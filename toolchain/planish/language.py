"""What it takes to run the language model of a bundle: its tokenizer, caches, context and end tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.bundle import Bundle, open_bundle
from planish.bundle.manifest import TargetEntry
from planish.tasks.generation import SLOTS, TOKENS
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Runner, Unavailable
from planish_targets.decode import State

TASK = "text-generation"
UNKNOWN = "?"  # a dtype that the manifest does not know
_PAST, _PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Language:
    """A bundle of a language model.

    Args:
        bundle: where it is.
        tokenizer: of the original model, from the bundle.
    """

    bundle: Bundle
    tokenizer: Any

    @property
    def chats(self) -> bool:
        """The tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation, up to where the model's answer begins.

        Raises:
            PlanishError: the template refuses the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as problem:
            # Templates are programs (Jinja): they raise what they want.
            where = "chat template of the tokenizer"
            hint = "leave --system out, or complete a text with --raw"
            raise PlanishError(f"The template refuses the conversation: {problem}.", where, hint) from problem
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, text: str) -> list[int]:
        """Tokens of a text, with the special tokens that the model expects around one."""
        return list(self.tokenizer(text)["input_ids"])


@dataclass(frozen=True)
class Ready:
    """A target of a bundle that can be run here."""

    artifact: Artifact
    runner: Runner
    states: tuple[State, ...]
    longest: int


def open_language(path: Path) -> Language:
    """Open the bundle of a language model.

    Raises:
        PlanishError: no bundle, one of another task, or one without a tokenizer.
    """
    from transformers import AutoTokenizer

    bundle = open_bundle(path)
    if bundle.manifest.task != TASK:
        what = f"This is a {bundle.manifest.task} model: it does not write text."
        hint = f"planish verify {path} runs and checks it; planish inspect {path} shows its inputs and outputs"
        raise PlanishError(what, str(path), hint)
    folder = _tokenizer(bundle)
    if folder is None:
        hint = "put the tokenizer's files beside the model and compile it again"
        raise PlanishError("The bundle has no tokenizer.", str(path), hint)
    try:
        return Language(bundle, AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as problem:
        hint = "the bundle is damaged: copy or compile it again"
        raise PlanishError(f"The tokenizer cannot be opened: {problem}.", str(folder), hint) from problem


def _tokenizer(bundle: Bundle) -> Path | None:
    """The model's own files; of a GGUF file, which has none, those that were made of it and lie beside an artifact."""
    if bundle.manifest.tokenizer is not None:
        return bundle.root / bundle.manifest.tokenizer
    artifacts = [bundle.root / e.artifact.folder for e in bundle.manifest.targets.values() if e.artifact is not None]
    return next((folder for folder in artifacts if (folder / "tokenizer.json").is_file()), None)


def choose(bundle: Bundle, asked: str | None) -> Ready:
    """The target that the user named, or the first that runs here.

    Raises:
        PlanishError: none does, or the named one does not; with the reason.
    """
    if asked is not None:
        found = ready(bundle, asked)
        if isinstance(found, Unavailable):
            raise PlanishError(f"{asked} cannot be run here: {found.reason}.", str(bundle.root), _hint(bundle, asked))
        return found
    reasons = []
    for name, entry in bundle.manifest.targets.items():
        if entry.artifact is None:
            reasons.append(f"{name}: no artifact")
            continue
        found = ready(bundle, name)
        if isinstance(found, Ready):
            return found
        reasons.append(f"{name}: {found.reason}")
    hint = "planish doctor tells what is missing; -t onnxruntime runs wherever Python does"
    raise PlanishError(f"No target of this bundle runs here ({'; '.join(reasons)}).", str(bundle.root), hint)


def ready(bundle: Bundle, name: str, command: Runner | None = None) -> Ready | Unavailable:
    """A target with its runner, or why it cannot be run here.

    Args:
        bundle: where it is.
        name: of the target.
        command: stands in for the target's own runner.

    Raises:
        PlanishError: the bundle has no such target or artifact, or it is none that can be fed token by token.
    """
    artifact = bundle.artifact(name)
    entry = bundle.manifest.targets[name]
    runner = command or registry.find(name).runner(artifact)
    if isinstance(runner, Unavailable):
        return runner
    return Ready(artifact, runner, _states(entry, artifact), artifact.context or _longest(entry, bundle))


def stop_tokens(language: Language, artifact: Artifact) -> tuple[int, ...]:
    """Tokens that end an answer: of the tokenizer, generation_config.json, config.json and genai_config.json."""
    return tuple(sorted({*_numbers(language.tokenizer.eos_token_id), *named_ends(language.bundle, artifact.folder)}))


def named_ends(bundle: Bundle, artifact: Path) -> set[int]:
    """Tokens that end an answer: what the files beside the tokenizer and in an artifact's folder say."""
    folders = [artifact]
    if bundle.manifest.tokenizer:
        folders.append(bundle.root / bundle.manifest.tokenizer)
    found: set[int] = set()
    for path in (f / n for f in folders for n in ("generation_config.json", "config.json", "genai_config.json")):
        if path.is_file():
            told = _read(path)
            for place in (told, told.get("text_config"), told.get("model")):
                if isinstance(place, Mapping):
                    found.update(_numbers(place.get("eos_token_id")))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as problem:
        hint = "the bundle is damaged: copy or compile it again"
        raise PlanishError(f"It is not JSON: {problem}.", str(path), hint) from problem


def _numbers(value: object) -> Iterable[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int)]


def _states(entry: TargetEntry, artifact: Artifact) -> tuple[State, ...]:
    # Without checks (--no-verify) the manifest knows neither outputs nor dtypes; runners cast to those of the file.
    told = artifact.options.get("outputs")
    outputs = {p.name for p in entry.outputs} or {str(name) for name in (told if isinstance(told, list) else ())}
    known, states = {"batch": 1, "past": 0}, []
    for port in entry.inputs:
        if port.name in (TOKENS, SLOTS):
            _demand_free(port.shape[1], artifact)
            continue
        output = _PRESENT + port.name.removeprefix(_PAST)
        if not port.name.startswith(_PAST) or (outputs and output not in outputs):
            raise _odd(artifact, f"nothing to feed its input {port.name!r} with")
        _demand_free(port.shape[2], artifact)
        shape = tuple(size if isinstance(size, int) else known.get(size, 1) for size in port.shape)
        states.append(State(output, port.name, "float32" if port.dtype == UNKNOWN else port.dtype, shape))
    return tuple(states)


def _demand_free(size: int | str, artifact: Artifact) -> None:
    if isinstance(size, int):
        raise _odd(artifact, "a fixed shape")


def _odd(artifact: Artifact, why: str) -> PlanishError:
    hint = "compile it again without --sequence-length and --fixed; or choose another target with -t"
    return PlanishError(f"The artifact cannot be fed token by token: it has {why}.", artifact.target, hint)


def _longest(entry: TargetEntry, bundle: Bundle) -> int:
    limit = entry.axes.get("past")
    if limit is None:
        raise PlanishError("The manifest names no longest text.", str(bundle.root), "compile the model again")
    return limit.max


def _hint(bundle: Bundle, name: str) -> str:
    others = [n for n, e in bundle.manifest.targets.items() if n != name and e.artifact is not None]
    return f"planish doctor tells what is missing{'; or choose -t ' + others[0] if others else ''}"

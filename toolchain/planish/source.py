"""The model that is compiled: its config, task, files and weights; nothing is loaded before it is asked for."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from planish.checkpoint import Checkpoint, GgufFile, Loaded, load_weights, name_tensors, open_folder
from planish.checkpoint.config import read_config
from planish.checkpoint.gguf_reader import quick_gguf
from planish.locate import Kind, Located, is_sentence_transformer, locate
from planish.tasks import PROGRAMS
from planish_passes.errors import PlanishError
from planish_passes.weights import WeightStore

# Heads that optimum's tables leave out, by the end of the class name.
_SUFFIXES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}
_READ = frozenset(("input_ids", "pixel_values", "input_features"))  # main inputs that tasks make


@dataclass(frozen=True)
class SourceFile:
    """A file that the result depends on.

    Args:
        name: relative to the model's folder, with forward slashes.
        path: where it is now.
        bytes: its size.
    """

    name: str
    path: Path
    bytes: int

    @cached_property
    def sha256(self) -> str:
        """Hex digest; the file is read once, when first asked."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Source:
    """A model found, understood and checked, but not loaded.

    Args:
        location: as the user gave it.
        kind: where it came from.
        folder: where config and tokenizer files are (hub: in the snapshot; GGUF: the file's parent).
        revision: the resolved commit of a model of the hub.
        config: its configuration.
        task: optimum's name of the task.
        architecture: the class that `model_class()` makes, e.g. "BertModel".
        files: every config, tokenizer and weight file in use.
        checkpoint: the opened weight files.
        trust_remote_code: the user allowed Python code of the model's folder to run.
    """

    location: str
    kind: Kind
    folder: Path
    revision: str | None
    config: PreTrainedConfig
    task: str
    architecture: str
    files: tuple[SourceFile, ...]
    checkpoint: Checkpoint = field(repr=False, compare=False)
    trust_remote_code: bool = False

    @property
    def tokenizer_files(self) -> Path:
        """Where the tokenizer is: the folder, or the GGUF file."""
        return self.files[0].path if self.kind == "gguf" else self.folder

    def model_class(self) -> Any:
        """The AutoModel… class of the task, with `from_config` and `from_pretrained`."""
        return auto_class(self.task)

    def weights(self, model: nn.Module) -> WeightStore:
        """One lazy tensor per name in `model.state_dict()`, tied names included; see `load` for what to tell the user.

        Args:
            model: an instance of the class built from the config, on the meta device. Its dtypes are the store's.

        Raises:
            PlanishError: naming a weight that is missing or has another shape than the config says.
        """
        return self.load(model).store

    def load(self, model: nn.Module) -> Loaded:
        """`weights` with notes, aliases and a check for NaN (`Loaded.check_finite`)."""
        checkpoint, rules = self.checkpoint, None
        if isinstance(checkpoint, GgufFile):
            checkpoint, rules = name_tensors(checkpoint, model)
        stored = ", ".join(getattr(self.config, "architectures", None) or ()) or "another model"
        hint = f"it holds {stored}: choose the task that fits it, or a checkpoint trained for {self.task}"
        where = str(self.checkpoint.paths[0] if self.kind == "gguf" else self.folder)
        return load_weights(model, checkpoint, rules=rules, where=where, hint=hint, unneeded=self._is_unneeded)

    def reference(self) -> nn.Module:
        """The model as transformers itself loads it: float32, eval mode, plain attention; independent of `load`."""
        how: dict[str, Any] = {"gguf_file": self.files[0].name} if self.kind == "gguf" else {"use_safetensors": True}
        with quick_gguf() if self.kind == "gguf" else nullcontext():
            model: nn.Module = self.model_class().from_pretrained(
                self.folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=self.trust_remote_code,
                **how,
            )
        return model.eval()

    def provenance(self) -> Mapping[str, Any]:
        """What a bundle records of the model, ready for JSON. Reads every file once for its hash."""
        return {
            "location": self.location if self.kind == "hub" else Path(self.location).name,
            "kind": self.kind,
            "revision": self.revision,
            "task": self.task,
            "architecture": self.architecture,
            "license": _license(self.folder),
            "files": [{"name": f.name, "bytes": f.bytes, "sha256": f.sha256} for f in self.files],
        }

    def _is_unneeded(self, name: str) -> bool:
        # Checkpoints of masked language models have no pooler; features are the last hidden state, before it.
        return self.task == "feature-extraction" and "pooler" in name.split(".")


def open_source(
    location: str, *, task: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> Source:
    """Find a model, read its config, settle the task and check the headers of its weight files.

    Args:
        location: a folder, a .gguf file or a model id of the Hugging Face hub.
        task: optimum's name; inferred from the architecture when None.
        revision: branch, tag or commit (hub only).
        trust_remote_code: run Python code that comes with the model.

    Raises:
        PlanishError: with what to do about it.
    """
    found = locate(location, revision)
    checkpoint: Checkpoint
    if found.file is not None:
        checkpoint = GgufFile(found.file)
        config = read_config(found, trust_remote_code)
    else:
        config = read_config(found, trust_remote_code)
        checkpoint = open_folder(found.folder, getattr(config, "transformers_weights", None))
    chosen = _known_task(task, found) if task is not None else _infer_task(config, found)
    return Source(
        location=location,
        kind=found.kind,
        folder=found.folder,
        revision=found.revision,
        config=config,
        task=chosen,
        architecture=_architecture(config, chosen, found, trust_remote_code),
        files=_files(found, checkpoint),
        checkpoint=checkpoint,
        trust_remote_code=trust_remote_code,
    )


def auto_class(task: str) -> Any:
    """The AutoModel… class of a task, by optimum's table."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task, framework="pt", library="transformers")


def _infer_task(config: PreTrainedConfig, found: Located) -> str:
    if is_sentence_transformer(found.root):
        return "feature-extraction"
    names = list(getattr(config, "architectures", None) or ())
    if not names and found.kind == "gguf":
        names = ["ForCausalLM"]  # a GGUF file that names no class is a language model
    task = next((t for t in map(_task_of, names) if t), None)
    if task is None:
        what = f"The task does not follow from the architecture {names[0]}." if names else "The config names no task."
        raise PlanishError(what, str(found.folder), f"give one of: {', '.join(PROGRAMS)}")
    return _known_task(task, found)


def _task_of(architecture: str) -> str | None:
    import transformers
    from optimum.exporters.tasks import TasksManager

    kind = getattr(transformers, architecture, None)
    by_name = next((task for suffix, task in _SUFFIXES.items() if architecture.endswith(suffix)), None)
    if kind is not None:
        try:
            found = str(TasksManager.infer_task_from_model(kind))
        except ValueError:  # not in optimum's tables: the name decides
            return by_name
        # Some classes that write text are in its tables for the first task that they were trained for.
        return by_name if found == "fill-mask" and by_name == "text2text-generation" else found
    return by_name


def _known_task(task: str, found: Located) -> str:
    from optimum.exporters.tasks import TasksManager

    name = TasksManager.map_from_synonym(task)
    if name in PROGRAMS:
        return str(name)
    supported = f"supported: {', '.join(PROGRAMS)}"
    if name in TasksManager.get_all_tasks():
        hint = f"{supported}; a model may also be compiled for another task than its own"
        raise PlanishError(f"The task {name} is not supported yet.", found.root.name, hint)
    near = difflib.get_close_matches(task, list(PROGRAMS), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise PlanishError(f"There is no task {task}.", found.root.name, hint + supported)


def _architecture(config: PreTrainedConfig, task: str, found: Located, trust_remote_code: bool) -> str:
    from transformers.models.auto import auto_factory

    auto, factory = auto_class(task), cast(Any, auto_factory)
    if type(config) in auto._model_mapping:
        classes = auto._model_mapping[type(config)]
        if isinstance(classes, (list, tuple)) and not config.architectures:
            known = " or ".join(c.__name__ for c in classes)
            hint = f'add "architectures": ["{classes[0].__name__}"] to config.json'
            raise PlanishError(f"The config does not say whether it is {known}.", str(found.folder), hint)
        return str(factory._get_model_class(config, auto._model_mapping).__name__)
    code = (getattr(config, "auto_map", None) or {}).get(auto.__name__)
    if code and trust_remote_code:
        return str(code).rpartition(".")[2]
    if code:
        raise PlanishError(
            f"The {task} head of {config.model_type} is Python code in the model's folder, which planish does not run.",
            str(found.folder),
            "read that code first; then allow it with trust_remote_code, or choose another task",
        )
    fits = [t for t in PROGRAMS if _reads(config, auto_class(t)._model_mapping)]
    hint = f"tasks that it has: {', '.join(fits)}" if fits else "use another model"
    given = " or ".join(config.architectures or ()) or config.model_type
    raise PlanishError(
        f"For {task}, planish compiles what transformers has in {auto.__name__}; {given} is not there.",
        str(found.folder),
        hint,
    )


def _reads(config: PreTrainedConfig, classes: Any) -> bool:
    """Whether a class for this config is there, and reads what a task makes."""
    if type(config) not in classes:
        return False
    found = classes[type(config)]
    first = found[0] if isinstance(found, (list, tuple)) else found
    return getattr(first, "main_input_name", "input_ids") in _READ


def _files(found: Located, checkpoint: Checkpoint) -> tuple[SourceFile, ...]:
    paths = list(checkpoint.paths)
    if found.file is None:
        small = {p for pattern in ("*.json", "*.txt", "*.model", "*.jinja") for p in found.root.rglob(pattern)}
        # Deeper than a module's folder are other copies of the model, not parts of it.
        paths += sorted(p for p in small if len(p.relative_to(found.root).parts) <= 2 and p.is_file())
    return tuple(SourceFile(p.relative_to(found.root).as_posix(), p, p.stat().st_size) for p in paths)


def _license(folder: Path) -> str | None:
    card = folder / "README.md"
    if not card.is_file():
        return None
    import yaml
    from huggingface_hub import metadata_load

    try:
        named = (metadata_load(card) or {}).get("license")
    except yaml.YAMLError:  # a damaged card says nothing about the licence, and is no reason to fail
        return None
    return None if named is None else str(named)

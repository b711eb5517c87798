"""Which files of the source an app needs beside the artifact."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from planish.bundle.files import fingerprint
from planish.source import Source
from planish_passes.errors import PlanishError

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",  # sentencepiece: spiece.model, tokenizer.model, sentencepiece.bpe.model
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_MODEL = (
    "config.json",
    "generation_config.json",
    "modules.json",  # sentence-transformers, with what its modules and its wrapper are set to
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]*_*/config.json",
)
_WEIGHTS = (".safetensors", ".gguf")
_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")


def companions(source: Source) -> tuple[str | None, dict[str, Path]]:
    """The folder that tokenizer or processor files go to, and path inside the bundle -> file of the source.

    The folder is None when the source has neither (a GGUF file keeps its tokenizer inside).
    """
    chosen: dict[str, Path] = {}
    for file in source.files:
        # A model that is one module of several keeps its files one level down; they come first and up.
        inner = file.path.is_relative_to(source.folder)
        name = file.path.relative_to(source.folder).as_posix() if inner else file.name
        if _is_any(name, (*_TOKENIZER, *_PROCESSOR, *_MODEL)) and (inner or name not in chosen):
            chosen[name] = file.path
    if not any(_is_any(name, (*_TOKENIZER, *_PROCESSOR)) for name in chosen):
        return None, {}
    folder = "processor" if any(_is_any(name, _PROCESSOR) for name in chosen) else "tokenizer"
    return folder, {f"{folder}/{name}": path for name, path in sorted(chosen.items())}


def licenses(source: Source) -> dict[str, Path]:
    """Licence and notice files: path inside the bundle -> file of the source."""
    if source.kind == "gguf":  # the file's neighbours may belong to anything
        return {}
    found: dict[str, Path] = {}
    for folder in dict.fromkeys((_root(source), source.folder)):
        for path in sorted(folder.iterdir()):
            if path.is_file() and _is_any(path.name.upper(), _LICENSES):
                found.setdefault(path.name, path)
    return found


def role(name: PurePosixPath) -> str:
    """What a file of the source is: `weights`, `tokenizer`, `processor` or `config`."""
    if name.suffix in _WEIGHTS:
        return "weights"
    # Folders do not count: a model that is one module of several keeps its files one level down.
    if _is_any(name.name, _TOKENIZER):
        return "tokenizer"
    return "processor" if _is_any(name.name, _PROCESSOR) else "config"


def check_unchanged(source: Source, copied: dict[str, Path], into: Path) -> None:
    """Compare copies with the hashes of the provenance.

    Raises:
        PlanishError: a file of the source changed while the model was compiled.
    """
    hashes = {f.path: f.sha256 for f in source.files}
    for inside, path in copied.items():
        if path in hashes and fingerprint(into / inside).sha256 != hashes[path]:
            raise PlanishError("The model changed while it was compiled.", str(path), "compile it again")


def _root(source: Source) -> Path:
    first = source.files[0]
    return first.path.parents[len(PurePosixPath(first.name).parts) - 1]


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    # fnmatch's star crosses folders; a pattern is meant for its own level.
    return any(name.count("/") == p.count("/") and fnmatch(name, p) for p in patterns)

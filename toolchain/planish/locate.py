"""From what the user typed to files on this disk: a folder, a GGUF file or a model on the hub."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planish_passes.errors import PlanishError

Kind = Literal["folder", "hub", "gguf"]

# Pickles are never downloaded. Some repositories keep the same model again in sub-folders and in other precisions.
_WANTED = [
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "README.md",
    "LICEN[SC]E*",
    "NOTICE*",
    "COPYING*",
    "model*.safetensors",
    "0_*/*.safetensors",
]
_UNWANTED = ["onnx/*", "openvino/*", "original/*", "coreml/*", "model.fp16*", "*training*", "*.non_ema*"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Located:
    """Where the files are.

    Args:
        folder: holds config.json and the tokenizer (GGUF: the file's parent).
        root: the folder that was named; differs from `folder` when the model is one module of several.
        file: the GGUF file.
        revision: the commit, for a model of the hub.
    """

    kind: Kind
    folder: Path
    root: Path
    file: Path | None = None
    revision: str | None = None


def locate(location: str, revision: str | None = None) -> Located:
    """Find a model.

    Raises:
        PlanishError: nothing there, not a model, or the hub cannot deliver it.
    """
    path = Path(location).expanduser()
    try:
        if path.is_dir():
            return Located("folder", _model_folder(path), path)
        if path.is_file():
            return _gguf(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if _looks_like_path(location, path) or not _HUB_ID.fullmatch(location):
        raise _no_such_path(path)
    root, commit = _download(location, revision)
    return Located("hub", _model_folder(root), root, revision=commit)


def is_sentence_transformer(root: Path) -> bool:
    """True for a folder with sentence-transformers' list of modules."""
    return (root / "modules.json").is_file()


def _model_folder(root: Path) -> Path:
    if (root / "config.json").is_file():
        return root
    # sentence-transformers may keep the transformer in a sub-folder, its first module.
    if is_sentence_transformer(root):
        try:
            folder = root / str(json.loads((root / "modules.json").read_text("utf-8"))[0]["path"])
        except (ValueError, LookupError, TypeError) as error:
            raise PlanishError("modules.json is not readable.", str(root), "download the folder again") from error
        if (folder / "config.json").is_file() and folder.resolve().is_relative_to(root.resolve()):
            return folder
    from planish.checkpoint.folder import INDEX, SINGLE, no_weights  # late: they bring torch

    names = sorted(p.name for p in root.iterdir())
    if not any(name in names for name in (SINGLE, INDEX)):
        raise no_weights(str(root), names)
    raise PlanishError("There is no config.json.", str(root), "planish needs it beside the weights: copy it there")


def _gguf(path: Path) -> Located:
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix.lower() == ".gguf" or magic == b"GGUF":
        return Located("gguf", path.parent, path.parent, file=path)
    if path.suffix == ".safetensors":
        raise PlanishError("The weights alone are not a model.", str(path), "give the folder that also has config.json")
    from planish.checkpoint.folder import no_weights

    raise no_weights(str(path), [path.name])


def _looks_like_path(location: str, path: Path) -> bool:
    outright = location.startswith((".", "/", "~")) or "\\" in location or location.endswith(".gguf")
    return outright or location.count("/") > 1 or ("/" in location and path.parent.is_dir())


def _no_such_path(path: Path) -> PlanishError:
    parent = path.absolute().parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=3, cutoff=0.5)
    except OSError as error:
        return _unreadable(parent, error)
    hint = f"did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else "check the path"
    return PlanishError(f"There is no {path.name} in {parent}.", str(path), hint)


def _unreadable(path: Path, error: OSError) -> PlanishError:
    return PlanishError(f"It cannot be read: {error.strerror or error}.", str(path), "check the rights of the folder")


def _download(repo: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import errors, snapshot_download

    where = f"hub: {repo}" + (f" at {revision}" if revision else "")
    try:
        found = snapshot_download(repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except errors.GatedRepoError as error:
        hint = f"ask for access at https://huggingface.co/{repo}, then `hf auth login`"
        raise PlanishError("The model is gated.", where, hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name (owner/model); private models need `hf auth login`"
        raise PlanishError("The hub has no such model, or it is private.", where, hint) from error
    except errors.RevisionNotFoundError as error:
        raise PlanishError("The model has no such revision.", where, "give a branch, tag or commit of it") from error
    except errors.HFValidationError as error:
        raise _no_such_path(Path(repo)) from error
    except (errors.LocalEntryNotFoundError, ConnectionError) as error:
        raise _offline(repo, where) from error
    except OSError as error:  # HTTP errors and a full disk
        raise PlanishError(f"The download failed: {str(error).splitlines()[0]}", where, "try again") from error
    # A snapshot folder is named after its commit.
    return Path(found), Path(found).name


def _offline(repo: str, where: str) -> PlanishError:
    from huggingface_hub import constants

    near = difflib.get_close_matches(repo, [p.name for p in Path().iterdir()], n=1, cutoff=0.5)
    meant = f"; or did you mean the folder {near[0]}?" if near else ""
    if constants.HF_HUB_OFFLINE:
        hint = f"unset HF_HUB_OFFLINE, or download it first with `hf download {repo}`{meant}"
        return PlanishError("It is neither a folder here nor a cached model, and the hub is switched off.", where, hint)
    hint = f"check the connection, or give a folder{meant}"
    return PlanishError("It is neither a folder here nor a cached model, and the hub cannot be reached.", where, hint)

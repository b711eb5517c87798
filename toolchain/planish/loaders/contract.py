"""What a loader has to know of a bundle: ports, tokens around a text, how outputs become answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from planish.bundle.manifest import TargetEntry
from planish.bundle.read import Bundle
from planish.language import named_ends
from planish.loaders.text import Text, read_text
from planish_targets.coreml.emit.naming import safe_name

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
_FED = {IDS, MASK, TYPES}  # what a text alone can fill
_PAST, _PRESENT = "past_key_values.", "present."
_SLOTS = ("position_ids", "cache_position")
_UNKNOWN = "?"
_LONGEST = 512  # where nothing names a limit
# What sentence-transformers calls the ways to make one vector of many, before and after it gave them one key.
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Tensor:
    """An input or output: name, torch's name of the dtype ("?" where nobody knows), sizes or names of axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Pooling:
    """How token vectors become one vector.

    Args:
        mode: cls, mean, max, lasttoken; "" = the output is one vector already.
        normalize: to length 1 at the end.
        told: by the model; else it is the habit of most.
    """

    mode: str
    normalize: bool
    told: bool


@dataclass(frozen=True)
class Labels:
    """What a classifier answers: names by index; `several` may be true at once (sigmoid instead of softmax)."""

    names: tuple[str, ...]
    several: bool


@dataclass(frozen=True)
class State:
    """A cache that the app keeps: what a call returns as `output` the next one takes as `input`; tokens are axis 2.

    Args:
        shape: of the empty cache.
    """

    output: str
    input: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Writing:
    """How a language model is fed.

    Args:
        states: caches that the app keeps; empty when they are inside the artifact.
        positions: name of the second input.
        flat: it is [N] and not [1, N].
        context: tokens that a cache holds.
        functions: of a Core ML package: name and tokens of one call, small first.
        step: most tokens of one call.
    """

    states: tuple[State, ...]
    positions: str
    flat: bool
    context: int
    functions: tuple[tuple[str, int], ...]
    step: int


@dataclass(frozen=True)
class Target:
    """One artifact of the bundle.

    Args:
        name: as in the manifest.
        runtime: onnxruntime, coreml or executorch.
        axes: name, smallest and largest size of dimensions that may vary.
        longest: tokens that a text is cut to.
    """

    name: str
    runtime: str
    folder: str
    entry: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    axes: tuple[tuple[str, int, int], ...]
    writing: Writing | None = None
    longest: int = 0


@dataclass(frozen=True)
class Contract:
    """All that is generated from; `why` tells what calls there are not, and why."""

    name: str
    task: str
    planish: str
    targets: tuple[Target, ...]
    text: Text | None
    pooling: Pooling | None
    labels: Labels | None
    stop: tuple[int, ...]
    why: tuple[str, ...]

    @property
    def writes(self) -> bool:
        """It continues texts."""
        return any(t.writing for t in self.targets)


def contract(bundle: Bundle) -> Contract:
    """Read it from the manifest and the files beside the tokenizer.

    Args:
        bundle: its manifest need not list everything yet.
    """
    manifest = bundle.manifest
    why: list[str] = []
    targets = tuple(
        _target(name, entry, manifest.task, why)
        for name, entry in manifest.targets.items()
        if entry.artifact is not None and _runtime(entry) is not None
    )
    found = read_text(bundle)
    text = None if isinstance(found, str) else found
    why += [found] if isinstance(found, str) else []
    targets = tuple(replace(target, longest=_longest(target, text)) for target in targets)
    settings = _json(bundle, "config.json")
    fed = text is not None and bool(targets) and all({i.name for i in t.inputs} <= _FED for t in targets)
    pooling = _pooling(bundle, targets, why) if fed and manifest.task == "feature-extraction" else None
    labels = None
    if fed and manifest.task == "text-classification" and manifest.labels:
        ordered = sorted(manifest.labels.items(), key=lambda item: int(item[0]))
        labels = Labels(
            tuple(label for _, label in ordered), settings.get("problem_type") == "multi_label_classification"
        )
    return Contract(
        name=manifest.name,
        task=manifest.task,
        planish=manifest.planish,
        targets=targets,
        text=text,
        pooling=pooling,
        labels=labels,
        stop=_stop(bundle, text) if any(t.writing for t in targets) else (),
        why=tuple(dict.fromkeys(why)),
    )


def _longest(target: Target, text: Text | None) -> int:
    """Tokens that a text is cut to: what the artifact takes, and what the model was made for."""
    if target.writing is not None:
        return target.writing.context
    axes = {name: high for name, _, high in target.axes}
    size = next((i.shape[1] for i in target.inputs if i.name == IDS and len(i.shape) == 2), None)
    limits = [size if isinstance(size, int) else axes.get(str(size)), text.longest if text else None]
    return min((limit for limit in limits if limit), default=_LONGEST)


def _runtime(entry: TargetEntry) -> str | None:
    ends = {".onnx": "onnxruntime", ".mlpackage": "coreml", ".pte": "executorch"}
    assert entry.artifact is not None
    return next((runtime for end, runtime in ends.items() if entry.artifact.entry.endswith(end)), None)


def _target(name: str, entry: TargetEntry, task: str, why: list[str]) -> Target:
    made, runtime = entry.artifact, _runtime(entry)
    assert made is not None
    assert runtime is not None
    inputs = tuple(Tensor(p.name, p.dtype, p.shape) for p in entry.inputs)
    told = [made.options.get(key) for key in ("inputs", "input_dtypes", "input_shapes")]
    if runtime == "executorch" and all(isinstance(t, list) for t in told):
        inputs = tuple(Tensor(str(n), str(d), tuple(s)) for n, d, s in zip(*told, strict=True))  # type: ignore[arg-type]
    if runtime == "coreml":  # a package has names that MIL takes
        inputs = tuple(replace(p, name=safe_name(p.name)) for p in inputs)
    outputs = tuple(Tensor(p.name, p.dtype, p.shape) for p in entry.outputs)
    if not outputs and isinstance(named := made.options.get("outputs"), list):
        outputs = tuple(Tensor(str(n), _UNKNOWN, ()) for n in named)
    axes = tuple((axis, limit.min, limit.max) for axis, limit in entry.axes.items())
    target = Target(name, runtime, made.folder, made.entry, inputs, outputs, axes)
    if task != "text-generation":
        return target
    writing = _writing(target, made.options)
    if isinstance(writing, str):
        why.append(f"{name} has no generate: {writing}")
        return target
    return replace(target, writing=writing)


def _writing(target: Target, options: Any) -> Writing | str:
    """How to feed it token by token, or why it cannot be."""
    if options.get("masks"):
        return "it takes masks, which the app makes (examples/ios)"
    states: list[State] = []
    positions, flat, step = "", False, 0
    limits = {name: high for name, _, high in target.axes}
    for port in target.inputs:
        if port.name in _SLOTS:
            positions, flat = port.name, len(port.shape) == 1
        elif port.name == IDS:
            step = port.shape[1] if isinstance(port.shape[1], int) else limits.get(str(port.shape[1]), 0)
        elif port.name.startswith(_PAST):
            if isinstance(port.shape[2], int):
                return "its shapes are fixed"
            sizes = tuple(size if isinstance(size, int) else int(size == "batch") for size in port.shape)
            states.append(State(_PRESENT + port.name.removeprefix(_PAST), port.name, sizes))
        else:
            return f"nothing to feed its input {port.name} with"
    inside = options.get("context")
    context = inside if isinstance(inside, int) else limits.get("past", 0)
    calls = options.get("functions") or {}
    functions = tuple(sorted(((str(n), int(s)) for n, s in calls.items()), key=lambda item: item[1]))
    if not positions or not context or not (states or isinstance(inside, int)):
        return "it keeps no cache"
    if functions and functions[0][1] != 1:
        return "no function takes a single token"
    return Writing(
        tuple(states), positions, flat, context, functions, min(int(options.get("longest", step)) or step, context)
    )


def _pooling(bundle: Bundle, targets: tuple[Target, ...], why: list[str]) -> Pooling | None:
    ranks = {len(t.outputs[0].shape) for t in targets if t.outputs}
    modules = _json(bundle, "modules.json")
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules] if isinstance(modules, list) else []
    if odd := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        why.append(f"no embed: the model's module {odd[0]} is not in the artifact")
        return None
    normalize = "Normalize" in kinds
    if ranks == {2}:
        return Pooling("", normalize, True)
    if "Pooling" not in kinds:
        return Pooling("mean", True, False)
    at = next(m for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling")
    settings = _json(bundle, f"{at.get('path')}/config.json")
    modes = [mode for key, mode in _POOLINGS.items() if settings.get(key) is True]
    named = settings.get("pooling_mode")
    if named in _POOLINGS.values():
        modes = [str(named)]
    others = [k for k, v in settings.items() if k.startswith("pooling_mode_") and v is True and k not in _POOLINGS]
    if len(modes) != 1 or others:
        why.append(f"no embed: this way of pooling is not known ({', '.join([*modes, *others]) or 'none is named'})")
        return None
    return Pooling(modes[0], normalize, True)


def _json(bundle: Bundle, name: str) -> Any:
    """A file beside the tokenizer; {} when there is none that can be read."""
    folder = bundle.manifest.tokenizer
    if folder is None or f"{folder}/{name}" not in bundle.manifest.files:
        return {}
    try:
        return json.loads((bundle.root / folder / name).read_text("utf-8"))
    except ValueError:  # the source's own: what cannot be read says nothing
        return {}


def _stop(bundle: Bundle, text: Text | None) -> tuple[int, ...]:
    """Of every file that names one: a token that ends a text ends it on each target."""
    found = set(text.ends if text else ())
    for entry in bundle.manifest.targets.values():
        if entry.artifact is not None:
            found |= named_ends(bundle, bundle.root / entry.artifact.folder)
    return tuple(sorted(found))

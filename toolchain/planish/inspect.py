"""Describe what lies at a path: a model, a bundle, or an artifact of any target."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.away import Away, away
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Artifact, Target
from planish_targets.cost import Method

if TYPE_CHECKING:
    from planish.bundle import Manifest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ModelFacts:
    """A model that may be compiled.

    Args:
        origin: folder, hub or gguf.
        refusal: why it cannot be compiled, as planish would say it; None when source, task and weights are in order.
        tasks: the tasks that planish compiles.
        parameters: stored numbers; None when the weights cannot be read.
        dtypes: stored dtype -> bytes.
    """

    location: str
    origin: str
    architecture: str
    model_type: str
    task: str
    revision: str | None
    parameters: int | None
    dtypes: Mapping[str, int]
    files: Mapping[str, int]
    config: Mapping[str, Any]
    tasks: tuple[str, ...]
    refusal: PlanishError | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(self.dtypes.values())


@dataclass(frozen=True)
class PlacementFacts:
    """Where the operations of an artifact are expected to run, in short.

    Args:
        linear_share, product_share: of the multiply-accumulates of weights, and of all products; None where the target
            cannot tell.
        fallbacks: operations that leave the accelerator: "Op (unit): reason" -> count.
        costs: the same with what they cost.
        methods: entry points, with the memory that each is expected to need.
    """

    target: str
    source: str
    share: float
    operations: int
    fallbacks: Mapping[str, int]
    violations: tuple[str, ...]
    advice: tuple[str, ...]
    linear_share: float | None = None
    product_share: float | None = None
    costs: tuple[Away, ...] = ()
    methods: tuple[Method, ...] = ()


@dataclass(frozen=True)
class ArtifactFacts:
    """One artifact file or package.

    Args:
        targets: every target that reads this kind of file.
        ops: operator -> count.
        dtypes: dtype -> bytes of constants.
        placements: one per target that could say; `unplaced` holds the reasons of the others.
    """

    path: Path
    targets: tuple[str, ...]
    format: str
    bytes: int
    ops: Mapping[str, int]
    dtypes: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    placements: tuple[PlacementFacts, ...] = ()
    unplaced: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleFacts:
    """A bundle: its manifest and every artifact in it.

    Args:
        signature: what `model.sig` claims, which nobody checked; "" when there is none.
        evidence: targets of which devices sent results, unchecked as well.
    """

    path: Path
    manifest: Manifest
    artifacts: Mapping[str, ArtifactFacts]
    signature: str = ""
    evidence: tuple[str, ...] = ()


Facts = ModelFacts | BundleFacts | tuple[ArtifactFacts, ...]


def inspect(location: str, asked: Sequence[str] = ()) -> Facts:
    """Describe a model (folder, hub id, .gguf), a bundle, an artifact, or a folder of artifacts.

    Args:
        location: a path, or a hub id.
        asked: targets to look at; all when empty.

    Raises:
        PlanishError: nothing there, or nothing that planish knows.
    """
    path = Path(location).expanduser()
    chosen = [registry.find(name) for name in asked] or list(registry.targets().values())
    if path.is_dir() and (path / MANIFEST).is_file() and not (path / "config.json").is_file():
        return inspect_bundle(path, asked)
    if path.exists() and not _is_model(path):
        found = inspect_artifacts(path, chosen)
        if found:
            return found
        if path.is_file():
            raise PlanishError(
                f"{path.name} is of no kind that planish knows.",
                str(path),
                "give a model folder, a .gguf file, a bundle (NAME.planish), or an artifact: "
                ".onnx, .ort, .pte, .pt2, .mlpackage",
            )
    return inspect_model(location)


def inspect_bundle(path: Path, asked: Sequence[str] = ()) -> BundleFacts:
    """Manifest, and the artifacts of those targets (all when empty).

    Raises:
        PlanishError: not a readable bundle, or it has no artifact for an asked target.
    """
    from planish.bundle import open_bundle

    bundle = open_bundle(path)
    made = [name for name, entry in bundle.manifest.targets.items() if entry.artifact is not None]
    artifacts = {}
    for name in bundle.named(asked) if asked else made:
        artifact = bundle.artifact(name)
        facts = _describe(artifact.path, [(registry.find(name), artifact)])
        if facts is not None:
            artifacts[name] = facts
    sent = tuple(recorded.target for recorded in bundle.evidence())
    return BundleFacts(path, bundle.manifest, artifacts, _signature(bundle.signature), sent)


def _signature(file: Path | None) -> str:
    from planish.trust.envelope import LARGEST, SignatureRefused, read_claim

    if file is None:
        return ""
    try:
        with file.open("rb") as stream:
            claim = read_claim(stream.read(LARGEST + 1), str(file))
    except SignatureRefused as problem:
        return f"unreadable: {problem.what}"
    return f"{claim.kind} {claim.hint}".strip()


def inspect_artifacts(path: Path, targets: Sequence[Target]) -> tuple[ArtifactFacts, ...]:
    """The artifact at a path, or those directly inside a folder; empty when no target knows any."""
    here = _describe(path, [(t, Artifact(t.name, path.parent, path.name)) for t in targets])
    if here is not None or not path.is_dir():
        return (here,) if here is not None else ()
    inside = [_describe(p, [(t, Artifact(t.name, path, p.name)) for t in targets]) for p in sorted(path.iterdir())]
    return tuple(facts for facts in inside if facts is not None)


def inspect_model(location: str) -> ModelFacts:
    """Config, task and weights; a folder that planish refuses is described as far as its config.json can be read.

    Raises:
        PlanishError: there is no model at all.
    """
    from planish.source import open_source
    from planish.tasks import PROGRAMS

    try:
        source = open_source(location)
    except PlanishError as refusal:
        config = _config(Path(location).expanduser())
        if config is None:
            raise
        return _refused(location, config, tuple(PROGRAMS), refusal)
    numbers, dtypes = 0, Counter[str]()
    for key in source.checkpoint.keys():  # noqa: SIM118  (not a mapping)
        spec = source.checkpoint.spec(key)
        count = 1
        for size in spec.shape:
            count *= size
        numbers += count
        dtypes[str(spec.dtype).removeprefix("torch.")] += spec.nbytes
    record = source.config.to_diff_dict()
    return ModelFacts(
        location=location,
        origin=source.kind,
        architecture=source.architecture,
        model_type=str(source.config.model_type),
        task=source.task,
        revision=source.revision,
        parameters=numbers,
        dtypes=dict(dtypes),
        files={f.name: f.bytes for f in source.files},
        config=json.loads(json.dumps(record, default=str)),
        tasks=tuple(PROGRAMS),
    )


def _describe(path: Path, asked: Sequence[tuple[Target, Artifact]]) -> ArtifactFacts | None:
    told: Mapping[str, Any] | None = None
    names, placements, unplaced = [], [], {}
    for target, artifact in asked:
        facts = target.inspect(path)
        if facts is None:
            continue
        told = told or facts
        names.append(target.name)
        try:
            placements.append(_placement(target, artifact))
        except PlanishError as problem:
            unplaced[target.name] = problem.what
    if told is None:
        return None
    return ArtifactFacts(
        path=path,
        targets=tuple(names),
        format=str(told["format"]),
        bytes=int(told["bytes"]),
        ops=dict(Counter(told["ops"]).most_common()),
        dtypes=dict(told["dtypes"]),
        inputs=tuple(map(_port, told["inputs"])),
        outputs=tuple(map(_port, told["outputs"])),
        placements=tuple(placements),
        unplaced=unplaced,
    )


def _placement(target: Target, artifact: Artifact) -> PlacementFacts:
    placement = target.placement(artifact)
    costs = away(placement)
    return PlacementFacts(
        target.name,
        placement.source,
        placement.share(),
        len(placement.nodes),
        {kind.label: kind.count for kind in costs},
        placement.violations,
        placement.advice,
        placement.linear_share(),
        placement.product_share(),
        costs,
        placement.methods,
    )


def _port(port: object) -> str:
    if not isinstance(port, Mapping):
        return str(port)
    shape = ", ".join(map(str, port.get("shape") or ()))
    return f"{port.get('name')}: {port.get('dtype', '?')}[{shape}]"


def _is_model(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() == ".gguf"
    return (path / "config.json").is_file() or (path / "modules.json").is_file()


def _config(path: Path) -> Mapping[str, Any] | None:
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # the refusal that led here says what is wrong
        return None
    return config if isinstance(config, dict) else None


def _refused(location: str, config: Mapping[str, Any], tasks: tuple[str, ...], refusal: PlanishError) -> ModelFacts:
    folder = Path(location).expanduser()
    named = config.get("architectures")
    return ModelFacts(
        location=location,
        origin="folder",
        architecture=str(named[0]) if isinstance(named, list) and named else "",
        model_type=str(config.get("model_type") or ""),
        task="",
        revision=None,
        parameters=None,
        dtypes={},
        files={p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()},
        config=config,
        tasks=tasks,
        refusal=refusal,
    )

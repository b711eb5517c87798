"""manifest.json as types; `python -m planish.bundle.schema` makes docs/bundle-manifest.schema.json from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from planish.bundle.files import MANIFEST as MANIFEST
from planish.bundle.part import BundlePath, Count, Number, Part, Sha256, TargetName
from planish.bundle.verdicts import FailedEntry, PassedEntry, VerdictEntry
from planish_targets.contract import Evidence

FORMAT: Literal["planish-bundle"] = "planish-bundle"
VERSION: Literal[1] = 1
REPORT = "report.json"
PAGE = "report.html"
SIGNATURE = "model.sig"  # as model-signing calls it; who signs adds it later, so no manifest lists it
EVIDENCE = "evidence"  # folder of what devices sent back; every result in it carries its own signature
Result = Literal["passed", "failed", "not-run"]
Extra = Annotated[dict[str, JsonValue], Field(description="keys of others; planish reads none of them")]


class FileEntry(Part):
    """One file of the bundle."""

    bytes: Count
    sha256: Sha256


class SourceFileEntry(FileEntry):
    """One file that the bundle was made from."""

    name: str = Field(description="relative to the model's folder")


class License(Part):
    """What the source says of its licence."""

    id: str | None = Field(description="`license` of the model card; null when it names none")
    files: tuple[BundlePath, ...] = Field(description="licence and notice files of the source, copied into the bundle")


class SourceEntry(Part):
    """Where the model came from."""

    location: str = Field(description="hub id, or the base name of a folder or file")
    kind: str = Field(description="folder, hub or gguf")
    revision: str | None = Field(description="resolved commit of a model of the hub")
    architecture: str = Field(description="class of the model, e.g. BertModel")
    model_type: str = Field(description="`model_type` of the config, e.g. bert")
    license: License
    files: tuple[SourceFileEntry, ...]


class WeightsEntry(Part):
    """Format of the quantised weights."""

    bits: int = Field(ge=1, le=8)
    group: Count = Field(description="values per scale along the reduced dimension; 0 = the whole row")
    symmetric: bool


class RecipeEntry(Part):
    """The quantisation recipe."""

    name: str
    weights: WeightsEntry | None = Field(description="null = no weight is quantised")


class ToolsEntry(Part):
    """What made the bundle."""

    python: str
    platform: str = Field(description="operating system and processor, e.g. Linux x86_64")
    packages: dict[str, str] = Field(description="distribution name -> version")


class TensorEntry(Part):
    """An input or output of an artifact."""

    name: str
    dtype: str = Field(description="name of the torch dtype, e.g. int64")
    shape: tuple[Count | str, ...] = Field(description='a size, the name of an axis, or "?" where it is not known')


class AxisEntry(Part):
    """Limits of a dimension that may vary."""

    min: Count
    max: Count


class ArtifactEntry(Part):
    """The files that an app ships for one target."""

    folder: BundlePath
    entry: BundlePath = Field(description="file or package folder that the runtime opens, relative to `folder`")
    bytes: Count = Field(description="sum over all files of `folder`")
    sha256: Sha256 = Field(description="of the entry; of a package folder: see docs/bundle-format.md, tree hash")
    options: dict[str, JsonValue] = Field(description="facts that a runner needs")


class PlacementEntry(Part):
    """Where the operations are expected to run; the list is in report.json."""

    source: str = Field(description="what the statement rests on")
    operations: Count
    fallbacks: Count = Field(description="operations that leave the accelerator")
    unknown: Count
    share: float = Field(ge=0, le=1, description="accelerated operations / all operations")
    violations: tuple[str, ...] = Field(description="findings that make the artifact unfit")


class LatencyEntry(Part):
    """Time of one call on the machine that compiled; not a statement about a phone."""

    device: str
    seconds: dict[str, Number] = Field(description="golden case -> median seconds of one call")


def result_of(verdicts: Iterable[VerdictEntry]) -> Result:
    """failed: one failed; passed: at least one ran and none failed; not-run: none ran."""
    entries = tuple(verdicts)
    if any(isinstance(v, FailedEntry) for v in entries):
        return "failed"
    return "passed" if any(isinstance(v, PassedEntry) for v in entries) else "not-run"


def digest_of(files: Mapping[str, FileEntry], path: str) -> str:
    """Hash of a file, or of a folder: sha256 of its sorted lines `<sha256>  <path inside the folder>`.

    Raises:
        ValueError: no such file or folder.
    """
    if path in files:
        return files[path].sha256
    prefix = f"{path}/"
    inside = sorted((name.removeprefix(prefix), e.sha256) for name, e in files.items() if name.startswith(prefix))
    if not inside:
        raise ValueError(f"files: {path} is not among them")
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in inside).encode()).hexdigest()


class TargetEntry(Part):
    """One target: artifact, interface and evidence."""

    artifact: ArtifactEntry | None = Field(description="null: lowering was refused, the verdicts say why")
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    axes: dict[str, AxisEntry]
    requires: dict[str, str] = Field(description="package that builds or runs it -> version specifier")
    evidence: Evidence = Field(description="grade of the lowering check, which runs the artifact")
    result: Result = Field(description="failed: a gate failed; passed: a check ran and none failed; not-run: none ran")
    verdicts: tuple[VerdictEntry, ...]
    placement: PlacementEntry | None
    latency: LatencyEntry | None
    golden: BundlePath | None = Field(description="safetensors file with `<case>/in/<name>` and `<case>/out/<name>`")
    notes: tuple[str, ...]
    x: Extra = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.result != result_of(self.verdicts):
            raise ValueError(f"result {self.result!r} does not follow from the verdicts")
        return self


class Manifest(Part):
    """manifest.json: what is in the bundle, where it came from and what was proved."""

    format: Literal["planish-bundle"]
    version: Literal[1]
    sha256: Sha256 = Field(description="of this file, with these 64 digits replaced by zeros")
    name: str
    created: str = Field(description="UTC, ISO 8601; the only value that differs between equal builds")
    planish: str = Field(description="version of planish")
    task: str = Field(description="optimum's name of the task")
    labels: dict[str, str] | None = Field(description="class index -> label, for classifiers")
    recipe: RecipeEntry
    source: SourceEntry
    request: dict[str, JsonValue] = Field(description="what was asked, without paths and commands of the machine")
    tools: ToolsEntry
    result: Result = Field(description="failed when any gate failed, of the program or of a target")
    verdicts: tuple[VerdictEntry, ...] = Field(description="checks of the program that all targets share")
    targets: dict[TargetName, TargetEntry] = Field(
        description="name of the target or variant, and behind a slash the program where a model has several",
        json_schema_extra={"additionalProperties": False},
    )
    tokenizer: BundlePath | None = Field(description="folder that AutoTokenizer / AutoProcessor can open")
    notes: tuple[str, ...]
    files: dict[BundlePath, FileEntry] = Field(
        description="every file of the bundle but manifest.json", json_schema_extra={"additionalProperties": False}
    )
    x: Extra = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [path.casefold() for path in self.files]
        if len(set(names)) != len(names):
            raise ValueError("files: two paths differ in case only")
        if MANIFEST in names:
            raise ValueError(f"files: {MANIFEST} cannot list itself")
        if later := [name for name in names if name == SIGNATURE or name.partition("/")[0] == EVIDENCE]:
            raise ValueError(f"files: {later[0]} is added after the manifest, and cannot be in it")
        for path in (self.tokenizer, REPORT, *self.source.license.files):
            if path is not None:
                digest_of(self.files, path)
        for name, target in self.targets.items():
            if target.golden is not None:
                digest_of(self.files, target.golden)
            made = target.artifact
            if made is not None and digest_of(self.files, f"{made.folder}/{made.entry}") != made.sha256:
                raise ValueError(f"targets: the hash of {name} is not that of its files")
        if self.result != result_of([*self.verdicts, *(v for t in self.targets.values() for v in t.verdicts)]):
            raise ValueError(f"result {self.result!r} does not follow from the verdicts")
        return self

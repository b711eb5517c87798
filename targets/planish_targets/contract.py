"""What a target is: the types that every folder in targets/ implements and the toolchain consumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from planish_passes.infra import Pass
from planish_passes.palette import Palette
from planish_passes.program import Program
from planish_passes.weights import QuantizedTensor
from planish_targets.cost import Method, Work


class Evidence(StrEnum):
    """How an artifact was examined, from the strongest to the weakest. A grade is never rounded up."""

    EXECUTED = "executed"  # the target's own runtime ran it
    EXECUTED_ARM64_EMULATED = "executed-arm64-emulated"  # the target's own runtime, on a CPU that QEMU emulates
    EMULATED = "emulated"  # a reference interpreter or a compatibility layer ran it
    STRUCTURAL = "structural"  # checked against published rules only
    NOT_RUN = "not-run"  # nothing could be said; the reason is given


@dataclass(frozen=True)
class Numerics:
    """How a target computes a recipe; the yardstick for it computes the same way.

    Args:
        weights: dtype that weights which stay float are stored in.
        compute: dtype that the runtime rounds activations to.
        activations: how inputs of quantised linears are rounded (`planish_passes.ops.ACTIVATIONS`).
        fast: the same, where speed is worth more than faithfulness; "" = no faster way.
        epsilons: dtype that epsilons of normalisations are stored in.
    """

    weights: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    activations: str = "none"
    fast: str = ""
    epsilons: torch.dtype = torch.float32


@dataclass(frozen=True)
class Capabilities:
    """What a target can encode.

    Args:
        keeps: composite operators that it encodes itself; all others are expanded before lowering.
        bits: widths of quantised weights.
        dynamic_shapes: True when batch and sequence may stay symbolic in the artifact.
        batch: batch size when shapes are fixed.
        sequence: default sequence length when shapes are fixed.
        max_rank: highest tensor rank, 0 = no limit.
        caches: True when programs with key/value caches can be lowered.
        resident: tokens that caches inside the artifact hold unless the request says otherwise; 0 = caches are its
            inputs and outputs.
        default: compiled for when a request names no targets; False = only when it is asked for.
        ranged: dimensions that may vary in an artifact when the request asks for it, where shapes are fixed otherwise.
    """

    keeps: frozenset[str]
    bits: frozenset[int] = frozenset({8})
    dynamic_shapes: bool = False
    batch: int = 1
    sequence: int = 128
    max_rank: int = 0
    caches: bool = False
    resident: int = 0
    default: bool = True
    ranged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Wishes:
    """What a request asks of the form of artifacts, beyond the recipe. The defaults ask for nothing.

    Args:
        minimum_ios: the oldest iOS that opens them; None = the target's own choice.
        ane: forms that the Apple Neural Engine is said to prefer.
        lengths: sequence lengths that one artifact takes, ascending; (): one that the program says, or all.
    """

    minimum_ios: int | None = None
    ane: bool = False
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What a target needs to know of a quantisation recipe.

    Args:
        name: `float`, `int8`, ...
        bits: width of quantised weights; 0 when nothing is quantised.
    """

    name: str
    bits: int = 0


@dataclass(frozen=True)
class Artifact:
    """What lowering wrote.

    Args:
        target: name of the target.
        folder: the folder that holds it and nothing else.
        entry: path of the file (or package folder) that the runtime opens, relative to `folder`.
        options: facts a runner needs (input order, precision, ...); JSON values only.
        notes: messages for people: what was converted in an unexpected way, what to know when shipping.
    """

    target: str
    folder: Path
    entry: str
    options: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file or package that the runtime opens."""
        return self.folder / self.entry

    @property
    def context(self) -> int:
        """Tokens that the caches inside hold; 0 when it has none inside. They start as zeros and live as long as the
        loaded artifact; a call at slot 0 begins a new text."""
        held = self.options.get("context", 0)
        return held if isinstance(held, int) else 0

    def nbytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())


@dataclass(frozen=True)
class Runner:
    """A command that speaks the runner protocol (docs/runner-protocol.md).

    Args:
        command: argument vector; the input folder and the output folder are appended.
        evidence: the grade that a successful run earns.
        device: what ran it, for people ("ONNX Runtime CPU", "MIL interpreter").
        compute: dtype that the runner rounds activations to, when it is finer than the target's own numerics.
        several: it takes more than one pair of folders; what `planish_targets.serve` is the inside of does.
    """

    command: Sequence[str]
    evidence: Evidence
    device: str
    compute: torch.dtype | None = None
    several: bool = False


@dataclass(frozen=True)
class Unavailable:
    """Nothing here can run the artifact; the reason is what the user reads."""

    reason: str


@dataclass(frozen=True)
class Placed:
    """One operation in the artifact and where it is expected to run.

    Args:
        node: name in the artifact.
        op: operator type in the target's own words.
        where: "accelerated" | "fallback" | "unknown".
        unit: provider or delegate name ("XnnpackBackend", "DmlExecutionProvider", "CPUExecutionProvider").
        reason: why it falls back or is unknown; empty when accelerated.
        module: source module path, when known.
        work: what it does, where the target can tell.
    """

    node: str
    op: str
    where: str
    unit: str
    reason: str = ""
    module: str = ""
    work: Work | None = None


@dataclass(frozen=True)
class Placement:
    """Where every operation is expected to run, and advice that makes no promise.

    Args:
        source: what the statement rests on ("kernel table of DirectML EP 1.24.4", "delegation info").
        nodes: one entry per operation.
        violations: findings that make the artifact unfit for the target; a non-empty list fails the build.
        advice: labelled hints, each with its source grade.
        methods: the artifact's entry points, where the target can tell what they cost.
    """

    source: str
    nodes: tuple[Placed, ...]
    violations: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    methods: tuple[Method, ...] = ()

    def share(self) -> float:
        """Accelerated operations / all operations (0..1); 1.0 when there is none."""
        return sum(n.where == "accelerated" for n in self.nodes) / len(self.nodes) if self.nodes else 1.0

    def linear_share(self) -> float | None:
        """Accelerated multiply-accumulates of weights / all of them (0..1); None where there are none, or the target
        cannot tell of every operation."""
        return self._share_of([n for n in self.nodes if n.work is None or n.work.linear])

    def product_share(self) -> float | None:
        """The same of all products, those of attention included."""
        return self._share_of(self.nodes)

    @staticmethod
    def _share_of(nodes: Sequence[Placed]) -> float | None:
        macs = [(n.work.macs, n.where == "accelerated") for n in nodes if n.work is not None]
        total = sum(count for count, _ in macs)
        return sum(count for count, on in macs if on) / total if total and len(macs) == len(nodes) else None


@dataclass(frozen=True)
class Attribute:
    """A number that a written file states for one operator.

    Args:
        name: "epsilon" of a normalisation, be it an attribute or a constant that is added before a square root.
        value: the number as stored.
        dtype: what it is stored as.
        op: operator type in the target's own words.
        module: source module path, "" where the file does not tell.
    """

    name: str
    value: float
    dtype: torch.dtype
    op: str
    module: str = ""


class Target(Protocol):
    """One folder in targets/ with a module-level `TARGET` that satisfies this."""

    @property
    def name(self) -> str:
        """What users write after --target."""
        ...

    @property
    def summary(self) -> str:
        """One line for --help."""
        ...

    @property
    def requires(self) -> Mapping[str, str]:
        """Distribution name -> version specifier, e.g. {"onnxruntime": ">=1.22,<2"}."""
        ...

    @property
    def extra(self) -> str:
        """`pip install planish[extra]` brings what is required."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can encode."""
        ...

    def numerics(self, recipe: Recipe) -> Numerics:
        """How this target computes the recipe."""
        ...

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Target passes, run after the shared pipeline and before `lower`."""
        ...

    def lower(self, program: Program, into: Path, recipe: Recipe) -> Artifact:
        """Write the artifact into the existing empty folder `into`.

        Raises:
            PlanishError: an operator or dtype has no form here; names the op, its module and the way out.
        """
        ...

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        """The command that runs the artifact here, best evidence first."""
        ...

    def placement(self, artifact: Artifact) -> Placement:
        """Where each operation of the written artifact is expected to run."""
        ...

    def read_weights(self, artifact: Artifact) -> Mapping[str, QuantizedTensor]:
        """The integers and scales, read back from the written files, by program weight name (without suffix)."""
        ...

    def read_attributes(self, artifact: Artifact) -> Mapping[str, Sequence[Attribute]] | Unavailable:
        """File that a runtime opens (relative to the folder) -> the numbers that it states for operators, in any order.
        `planish_targets.attributes` finds them in a graph. Unavailable: some form in the file cannot be read."""
        ...

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        """Describe a bare artifact file: {"format", "ops": {type: count}, "dtypes": {dtype: bytes},
        "inputs": [...], "outputs": [...], "bytes": n}; None when the file is not of this target's kind."""
        ...


@dataclass(frozen=True)
class Missing:
    """What a target lacks on this machine and no package brings, and the step that mends it."""

    what: str
    mend: str


@runtime_checkable
class NeedsMore(Protocol):
    """A target that needs more than packages: an SDK, a driver. It is asked before any work begins."""

    def missing(self) -> Missing | None:
        """What is not here; None when nothing is missing. Looks only, and never downloads."""
        ...


@runtime_checkable
class ReadsVariables(Protocol):
    """A target whose artifacts depend on environment variables; they become part of the key of cached bundles."""

    @property
    def variables(self) -> Sequence[str]:
        """Names of the variables."""
        ...


@runtime_checkable
class Varies(Protocol):
    """A target of which some files have other bytes in every compile."""

    @property
    def varies(self) -> Mapping[str, str]:
        """Pattern of paths in the artifact's folder -> why; empty where this machine can do better."""
        ...


@runtime_checkable
class OffersVariants(Protocol):
    """A target with further forms of its artifact, each of them a target with a name of its own."""

    @property
    def variants(self) -> Mapping[str, Target]:
        """Full name ("executorch:vulkan") -> variant. Compiled for on request alone, never by default."""
        ...


@runtime_checkable
class Adapts(Protocol):
    """A target whose artifacts have forms that a request can choose."""

    def adapted(self, wishes: Wishes) -> Target:
        """The same target, making these forms.

        Raises:
            PlanishError: the wishes contradict each other.
        """
        ...


@runtime_checkable
class SplitsWeights(Target, Protocol):
    """A target that can write weights into a file of their own."""

    def with_split_weights(self) -> Target:
        """The same target, which does."""
        ...

    def share_weights(self, artifacts: Sequence[Artifact]) -> tuple[Artifact, ...]:
        """Programs of one model over one file of weights, in each folder under the same name; unchanged where that
        saves next to nothing. Rewrites the files."""
        ...


@runtime_checkable
class ReadsPalettes(Protocol):
    """A target that stores weights as indices into tables (`planish.linear_lut`)."""

    def read_palettes(self, artifact: Artifact) -> Mapping[str, Palette]:
        """Indices and tables, read back from the written files, by program weight name (without suffix)."""
        ...

"""What a delegate beside XNNPACK is: how a program is lowered to it, and how its payload is read."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch.export import ExportedProgram

from planish_passes.infra import Pass
from planish_passes.program import Program
from planish_targets.attributes import Number, Step
from planish_targets.contract import Capabilities, Missing, Numerics, Recipe, Unavailable
from planish_targets.executorch.pte import PteFile


@dataclass(frozen=True)
class Operation:
    """One operation in a payload.

    Args:
        op: operator in the payload's own words.
        key: what the payload calls it; with the delegate's index in front, a key of `Written.inner`.
    """

    op: str
    key: str


@dataclass(frozen=True)
class Payload:
    """What the bytes of a delegate hold.

    Args:
        operations: in the order of the payload, constants left out.
        dtypes: dtype -> bytes of constants.
        problems: published rules that the payload breaks; its runtime would refuse it, or compute something else.
    """

    operations: tuple[Operation, ...]
    dtypes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class Delegate(Protocol):
    """A backend that artifacts are compiled for and that nothing here can run."""

    @property
    def name(self) -> str:
        """What stands behind the colon of the variant's name."""
        ...

    @property
    def backend(self) -> str:
        """What the .pte calls it ("VulkanBackend")."""
        ...

    @property
    def summary(self) -> str:
        """One line for --help."""
        ...

    @property
    def requires(self) -> Mapping[str, str]:
        """Distribution name -> version specifier, beside executorch itself."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can encode."""
        ...

    @property
    def advice(self) -> tuple[str, ...]:
        """What to know of every artifact, each with its source."""
        ...

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that lowering reads."""
        ...

    def missing(self) -> Missing | None:
        """What no package brings; see `planish_targets.contract.NeedsMore`."""
        ...

    def numerics(self, recipe: Recipe) -> Numerics:
        """How it computes a recipe."""
        ...

    def passes(self, recipe: Recipe) -> tuple[Pass, ...]:
        """Forms that it takes."""
        ...

    def check(self, program: Program) -> None:
        """Nothing, when the form that the passes made can be encoded; asked before executorch sees the program.

        Raises:
            PlanishError: it cannot; names the module and the way out.
        """
        ...

    def edge(self, exported: ExportedProgram, facts: Mapping[str, object], reasons: MutableMapping[str, str]) -> Any:
        """Partition and lower to it.

        Args:
            exported: the program with its weights.
            facts: values of constant methods.
            reasons: receives why an operator stays outside: its name ("aten::cumsum") -> the reason.
        """
        ...

    def payload(self, file: PteFile, index: int) -> Payload | Unavailable:
        """Read and check delegate `index` of a file; Unavailable where the format is not public."""
        ...

    def steps(self, file: PteFile, index: int, modules: Mapping[str, str]) -> Steps | Unavailable:
        """The same delegate for `planish_targets.attributes`; `modules`: key of an operation -> source module."""
        ...


@dataclass(frozen=True)
class Steps:
    """A payload in the words that finding epsilons needs; keys are the payload's own.

    Args:
        steps: its operations.
        numbers: key of a constant of one element -> its value.
        ports: keys of inputs, then of outputs, in the order in which the plan hands them over.
    """

    steps: tuple[Step, ...]
    numbers: Mapping[Hashable, Number]
    ports: tuple[Hashable, ...]

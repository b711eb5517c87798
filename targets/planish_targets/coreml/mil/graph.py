"""An ML program as plain records: functions, blocks, operations, constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from planish_targets.coreml.mil.blob import BlobFile
from planish_targets.coreml.mil.types import TensorType


@dataclass(frozen=True)
class Stored:
    """A constant in the weight file, checked but not read."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    file: BlobFile
    offset: int

    def read(self) -> Tensor:
        """The elements, as a view of the mapped file where the element type allows it."""
        return self.file.read(self.offset, self.type.dtype, self.shape, self.name)


@dataclass(frozen=True)
class Immediate:
    """A constant in the specification itself."""

    type: TensorType
    value: Tensor


@dataclass(frozen=True)
class Ref:
    """A use of a value by its MIL name."""

    name: str


Literal = str | Stored | Immediate
Binding = Ref | Literal


@dataclass(frozen=True)
class Named:
    """A declared value. `state` marks a state that is read and written, not passed."""

    name: str
    type: TensorType
    state: bool = False


@dataclass(frozen=True)
class Operation:
    """One MIL operation. Constants carry their value under the input name `val`."""

    type: str
    name: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def output(self) -> str:
        """The name of the first output; of the operation itself when it has none."""
        return self.outputs[0].name if self.outputs else self.name

    @property
    def constant(self) -> bool:
        """True for what Core ML evaluates when it loads the model."""
        return self.type == "const" or self.type.startswith("constexpr_")

    def uses(self) -> Iterator[str]:
        """Names of the values that it reads, those inside its blocks included."""
        for bindings in self.inputs.values():
            yield from (binding.name for binding in bindings if isinstance(binding, Ref))
        for block in self.blocks:
            yield from block.uses()


@dataclass(frozen=True)
class Block:
    """Operations in execution order."""

    inputs: tuple[Named, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def uses(self) -> Iterator[str]:
        """Names of the values that the operations and the outputs read."""
        for operation in self.operations:
            yield from operation.uses()
        yield from self.outputs

    def walk(self) -> Iterator[Operation]:
        """Every operation, those of nested blocks right after their owner."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.walk()


@dataclass(frozen=True)
class Function:
    """One entry point of a package.

    `limits` holds, for inputs with a flexible shape, the allowed sizes of each dimension:
    an inclusive (low, high) per dimension, high None when unbounded; `shapes` those of inputs that name theirs.
    """

    name: str
    block: Block
    inputs: tuple[Named, ...]
    limits: Mapping[str, tuple[tuple[int, int | None], ...]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

"""Evaluation of one function, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from planish_targets.coreml.mil.errors import CorruptPackage, MilRunError
from planish_targets.coreml.mil.graph import Binding, Block, Function, Immediate, Named, Operation, Ref, Stored
from planish_targets.coreml.mil.ops import MOVES, OPS, OpError
from planish_targets.coreml.mil.types import TensorType, cast

Precision = Literal["fp16", "fp32"]
Tap = Callable[[str, Tensor], None]

# Operations that need the scope, blocks or states: written here, not in the registry.
STRUCTURAL = frozenset({"const", "read_state", "write_state", "coreml_update_state", "cond", "while_loop"})
# Parameters that are a tuple of values even when the tuple has one element.
TUPLES = frozenset({"values", "loop_vars", "ref_tensors", "begins", "ends", "end_masks"})


@dataclass(frozen=True)
class StateRef:
    """A state, by the name it has in the mapping of states."""

    name: str


@dataclass(frozen=True)
class Deferred:
    """A constexpr result, computed at each use so that no dense copy of a weight outlives its user."""

    operation: Operation
    operands: Mapping[str, tuple[Value, ...]]
    index: int


class Decoded:
    """Dense weights that stay: fp32, whatever precision they were rounded to, because operations compute in fp32.

    Args:
        budget: bytes that they may take; what does not fit is computed at each use.
    """

    def __init__(self, budget: int = 4 << 30) -> None:
        self._room = budget
        # the operands stay too: the identity of those that are not in a file is their address
        self._kept: dict[Hashable, tuple[list[Tensor], Deferred]] = {}

    def get(self, value: Deferred, precision: Precision, compute: Callable[[], list[Tensor]]) -> Tensor:
        """The weight; computed if nobody has asked for these operands at this precision before."""
        key = (precision, _identity(value))
        if key in self._kept:
            return self._kept[key][0][value.index]
        results = [widen(result) for result in compute()]
        size = sum(result.nbytes for result in results)
        if size <= self._room:
            self._room -= size
            self._kept[key] = results, value
        return results[value.index]


Value: TypeAlias = "Tensor | str | Stored | Immediate | StateRef | Deferred"
Scope = dict[str, Value]
Operands = Mapping[str, tuple[Value, ...]]


class Execution:
    """One run: `function` at a precision, with a tap on every computed value and a mapping of states."""

    def __init__(
        self,
        function: Function,
        precision: Precision,
        tap: Tap | None,
        states: MutableMapping[str, Tensor],
        decoded: Decoded | None = None,
    ) -> None:
        self.function = function
        self.decoded = decoded
        self.precision = precision
        self.tap = tap
        self.states = states
        # results whose declared shape is wrong in a known, harmless way: name -> what differs
        self.contradictions: dict[str, str] = {}
        self.kinds = {port.name: port.type for port in function.inputs if port.state}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate the function on inputs that already have their declared types."""
        scope: Scope = {}
        for port in self.function.inputs:
            scope[port.name] = StateRef(port.name) if port.state else inputs[port.name]
            if port.state and port.name not in self.states:
                shape = [dim or 0 for dim in port.type.shape or ()]
                self.states[port.name] = self.settle(torch.zeros(shape, dtype=port.type.dtype.carrier), port.type)
        values = self.block(self.function.block, scope, release=True)
        return dict(zip(self.function.block.outputs, values, strict=True))

    def block(self, block: Block, scope: Scope, release: bool = False) -> list[Tensor]:
        """Evaluate a block in its scope; `release` drops values after their last use."""
        dying = _last_uses(block) if release else {}
        for position, operation in enumerate(block.operations):
            self.step(operation, scope)
            for name in dying.get(position, ()):
                scope.pop(name, None)
        missing = [name for name in block.outputs if name not in scope]
        if missing:
            raise CorruptPackage(f"nothing computes the outputs {missing}", f"MIL function {self.function.name}")
        return [self.dense(scope[name], name) for name in block.outputs]

    def step(self, operation: Operation, scope: Scope) -> None:
        """Evaluate one operation and bind its outputs."""
        operands = {
            key: tuple(_lookup(binding, scope, operation) for binding in given)
            for key, given in operation.inputs.items()
        }
        if operation.type == "const":
            (scope[operation.output],) = operands["val"]
        elif operation.constant:
            for index, output in enumerate(operation.outputs):
                scope[output.name] = Deferred(operation, operands, index)
        else:
            for output, value in zip(operation.outputs, self.results(operation, operands, scope), strict=True):
                scope[output.name] = value
                if self.tap is not None:
                    self.tap(output.name, value)

    def results(self, operation: Operation, operands: Operands, scope: Scope) -> list[Tensor]:
        """Compute an operation; every result has its declared type and shape."""
        if operation.type in STRUCTURAL:
            values = self.structural(operation, operands, scope)
        else:
            values = self.compute(operation, operands)
        if len(values) != len(operation.outputs):
            what = f"{len(values)} results for {len(operation.outputs)} outputs"
            raise MilRunError(what, operation.type, operation.output)
        for output, value in zip(operation.outputs, values, strict=True):
            if not output.type.admits(value.shape):
                self.contradicted(operation, output, value)
        return [self.settle(value, output.type) for output, value in zip(operation.outputs, values, strict=True)]

    def contradicted(self, operation: Operation, output: Named, value: Tensor) -> None:
        """Raise for a result of another shape than declared, unless coremltools is known to declare it wrongly.

        coremltools infers the type of `select` from its values and forgets the condition. Apple's CPU
        runtime broadcasts all the same, its E5RT refuses to load such a program
        (https://github.com/onnxsim/onnxsim/pull/1399). What is computed from it is declared wrongly too.
        """
        what = f"computed a shape of {list(value.shape)}, the package declares {output.type}"
        if operation.type != "select" and self.contradictions.keys().isdisjoint(operation.uses()):
            raise MilRunError(what, operation.type, output.name)
        self.contradictions[output.name] = what

    def settle(self, value: Tensor, declared: TensorType) -> Tensor:
        """Convert to the declared type; at precision fp32, floats below 32 bits stay 32 bits wide."""
        if declared.dtype.kind == "float" and declared.dtype.bits < 32 and self.precision == "fp32":
            return value.to(torch.float32)
        return cast(value, declared.dtype)

    def compute(self, operation: Operation, operands: Operands) -> list[Tensor]:
        """Evaluate an operation of the registry."""
        arguments: dict[str, object] = {}
        for key, given in operands.items():
            values = tuple(self.operand(value, operation) for value in given)
            arguments[key] = values if key in TUPLES or len(values) != 1 else values[0]
        try:
            result = OPS[operation.type](**arguments)
        except (OpError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise MilRunError(f"cannot be computed: {error}", operation.type, operation.output) from error
        return list(result) if isinstance(result, tuple) else [result]

    def operand(self, value: Value, operation: Operation) -> Tensor | str:
        """A value as operations take it: arithmetic gets floats below 32 bits as fp32."""
        if isinstance(value, str):
            return value
        dense = self.dense(value, operation.output)
        return dense if operation.type in MOVES else widen(dense)

    def dense(self, value: Value, user: str) -> Tensor:
        """The tensor behind a value: reads the weight file, evaluates constexpr operations."""
        if isinstance(value, Stored):
            return value.read()
        if isinstance(value, Immediate):
            return value.value
        if isinstance(value, Deferred):
            if self.decoded is None:
                return self.results(value.operation, value.operands, {})[value.index]
            return self.decoded.get(value, self.precision, lambda: self.results(value.operation, value.operands, {}))
        if isinstance(value, Tensor):
            return value
        raise MilRunError(f"takes a tensor, found a {type(value).__name__}", self.function.name, user)

    def structural(self, operation: Operation, operands: Operands, scope: Scope) -> list[Tensor]:
        """States and control flow."""
        if operation.type == "read_state":
            return [self.states[_state(operation, operands["input"])]]
        if operation.type == "write_state":
            return self.write(_state(operation, operands["input"]), operands["data"], operation)
        if operation.type == "coreml_update_state":
            return self.write(_state(operation, operands["state"]), operands["value"], operation)
        if operation.type == "cond":
            chosen = bool(self.dense(operands["pred"][0], operation.output))
            return self.block(operation.blocks[0 if chosen else 1], dict(scope))
        values = [self.dense(value, operation.output) for value in operands["loop_vars"]]
        condition, body = operation.blocks
        while bool(self.block(condition, scope | _bind(condition, values))[0]):
            values = self.block(body, scope | _bind(body, values))
        return values

    def write(self, state: str, data: tuple[Value, ...], operation: Operation) -> list[Tensor]:
        value = self.dense(data[0], operation.output)
        declared = self.kinds[state]
        if not declared.admits(value.shape):
            what = f"writes a shape of {list(value.shape)} to state {state}, declared {declared}"
            raise MilRunError(what, operation.type, operation.output)
        self.states[state] = self.settle(value, declared)
        return [self.states[state]] if operation.outputs else []


def _identity(value: Value) -> Hashable:
    if isinstance(value, Stored):
        return str(value.file.path), value.offset
    if isinstance(value, Deferred):
        given = sorted((key, tuple(_identity(v) for v in values)) for key, values in value.operands.items())
        return value.operation.type, tuple(given)
    return value if isinstance(value, str) else id(value)


def widen(value: Tensor) -> Tensor:
    """Floats below 32 bits as fp32, everything else as it is."""
    return value.to(torch.float32) if value.is_floating_point() and value.dtype.itemsize < 4 else value


def _lookup(binding: Binding, scope: Scope, operation: Operation) -> Value:
    if not isinstance(binding, Ref):
        return binding
    if binding.name not in scope:
        raise MilRunError(f"uses {binding.name}, which nothing defines", operation.type, operation.output)
    return scope[binding.name]


def _state(operation: Operation, given: tuple[Value, ...]) -> str:
    if not isinstance(given[0], StateRef):
        raise MilRunError("its operand is not a state", operation.type, operation.output)
    return given[0].name


def _bind(block: Block, values: list[Tensor]) -> Scope:
    return {port.name: value for port, value in zip(block.inputs, values, strict=True)}


def _last_uses(block: Block) -> dict[int, list[str]]:
    last: dict[str, int] = {}
    for position, operation in enumerate(block.operations):
        last.update(dict.fromkeys(operation.uses(), position))
    dying: dict[int, list[str]] = {}
    for name, position in last.items():
        if name not in block.outputs:
            dying.setdefault(position, []).append(name)
    return dying

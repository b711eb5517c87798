"""A loaded ML program: what it takes, what it holds, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from planish_passes.errors import PlanishError
from planish_targets.coreml.mil.errors import MilRunError, UnsupportedMilOp
from planish_targets.coreml.mil.execute import STRUCTURAL, Decoded, Deferred, Execution, Precision, Tap, Value
from planish_targets.coreml.mil.graph import Binding, Function, Immediate, Named, Operation, Ref
from planish_targets.coreml.mil.ops import OPS
from planish_targets.coreml.mil.ops.compress import packed_indices
from planish_targets.coreml.mil.quantized import QuantizedBlob
from planish_targets.coreml.mil.spec import function_names, read_function
from planish_targets.coreml.mil.types import cast

# The operand that holds the integers of each operation that decompresses a weight.
DATA = {
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_affine_dequantize": "quantized_data",
    "constexpr_lut_to_dense": "indices",
    "constexpr_sparse_to_dense": "nonzero_data",
    "constexpr_lut_to_sparse": "indices_nonzero_data",
    "constexpr_sparse_blockwise_shift_scale": "nonzero_data",
}


@dataclass(frozen=True)
class MilPort:
    """An input, output or state of a function. A flexible dimension is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class MilOutput:
    """A result of an operation, as declared; `dtype` is MIL's name (fp16, int4, ...)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class MilOperation:
    """An operation as the package declares it; `inputs` are the names of the values that it reads."""

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[MilOutput, ...]

    @property
    def output(self) -> str:
        """The name of the first output; of the operation itself when it has none (write_state)."""
        return self.outputs[0].name if self.outputs else self.name


def load(package: Path, function: str | None = None, decoded: Decoded | None = None) -> MilProgram:
    """Load one function of a saved .mlpackage.

    Args:
        package: the package folder (or a bare .mlmodel file).
        function: its name; None takes the only or the default function.
        decoded: keeps decompressed weights from run to run, for functions of one package that share it; None
            decompresses at each use.

    Raises:
        CorruptPackage: files are missing, truncated or contradict each other.
        UnsupportedMilOp: operations that the interpreter does not know, all of them.
        PlanishError: not an ML program, or no such function.
    """
    package = Path(package)
    loaded = read_function(package, function)
    unknown = [
        (operation.type, operation.output)
        for operation in loaded.block.walk()
        if operation.type not in OPS and operation.type not in STRUCTURAL
    ]
    if unknown:
        raise UnsupportedMilOp(unknown, f"function {loaded.name} of {package}")
    return MilProgram(package, loaded, decoded)


def functions(package: Path) -> tuple[str, ...]:
    """Names of the functions of a saved .mlpackage; errors as of `load`."""
    return function_names(Path(package))


class MilProgram:
    """One function of a package, ready to run on the CPU with torch.

    What it proves is the meaning of the program and the bytes of its weights (evidence: `emulated`).
    Accumulation order, rounding inside operations and placement of Apple hardware are not modelled.

    Attributes:
        contradictions: after a run, results of `select`, and of what follows from it, whose shape is not
            the declared one: name -> what differs. Apple's CPU runtime computes them, its other runtime
            refuses the program, so report them. Any other contradiction is an error.
    """

    def __init__(self, package: Path, function: Function, decoded: Decoded | None = None) -> None:
        self.package = package
        self.function = function
        self.decoded = decoded
        self.contradictions: dict[str, str] = {}
        self._definitions = {
            output.name: operation for operation in function.block.walk() for output in operation.outputs
        }

    @property
    def inputs(self) -> tuple[MilPort, ...]:
        """What run() takes."""
        return tuple(_port(entry) for entry in self.function.inputs if not entry.state)

    @property
    def states(self) -> tuple[MilPort, ...]:
        """What run() reads and writes through `states`."""
        return tuple(_port(entry) for entry in self.function.inputs if entry.state)

    @property
    def outputs(self) -> tuple[MilPort, ...]:
        """What run() returns, in order."""
        ports = {entry.name: entry for entry in self.function.inputs}
        for operation in self.function.block.operations:
            ports.update((entry.name, entry) for entry in operation.outputs)
        return tuple(_port(ports[name]) for name in self.function.block.outputs)

    def operations(self, constants: bool = False) -> tuple[MilOperation, ...]:
        """Operations in execution order, nested blocks included; const and constexpr ones on request."""
        return tuple(
            MilOperation(
                type=operation.type,
                name=operation.name,
                inputs=tuple(dict.fromkeys(operation.uses())),
                outputs=tuple(
                    MilOutput(output.name, output.type.dtype.name, output.type.shape) for output in operation.outputs
                ),
            )
            for operation in self.function.block.walk()
            if constants or not operation.constant
        )

    def run(
        self,
        inputs: Mapping[str, Tensor],
        precision: Precision = "fp32",
        tap: Tap | None = None,
        states: MutableMapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate the function.

        Args:
            inputs: one tensor for each input. Integers are narrowed to the declared type when they
                fit; floats are converted to the declared precision (kept fp32 at precision fp32).
            precision: "fp16" rounds the result of every operation to its declared type (operations
                themselves compute and accumulate in fp32). "fp32" keeps every float activation in
                fp32 and dequantised weights unrounded; stored constants keep their stored values.
            tap: called with the MIL name and value of every result of an operation, constants aside.
            states: updated in place; a missing state starts as zeros. None forgets states after the run.

        Raises:
            PlanishError: an input is missing, unknown or does not fit.
            MilRunError: an operation cannot be computed or contradicts its declaration.
        """
        if precision not in ("fp16", "fp32"):
            raise PlanishError(f"unknown precision {precision!r}", str(self.package), "fp16 or fp32")
        execution = Execution(self.function, precision, tap, {} if states is None else states, self.decoded)
        expected = {entry.name: entry for entry in self.function.inputs if not entry.state}
        if set(inputs) != set(expected):
            raise PlanishError(
                f"inputs are {sorted(inputs)}",
                f"{self.package}, function {self.function.name}",
                f"pass exactly {sorted(expected)}",
            )
        self._check_states(states or {})
        with torch.no_grad():
            ready = {name: self._accept(inputs[name], entry, execution) for name, entry in expected.items()}
            try:
                return execution.run(ready)
            finally:
                self.contradictions = execution.contradictions

    def constant(self, name: str) -> Tensor:
        """The dense value of a const or constexpr output: floats as declared, sub-byte integers as 8-bit.

        Raises:
            PlanishError: no such constant.
        """
        value = self._constant(name)
        return Execution(self.function, "fp16", None, {}).dense(value, name)

    def parameter(self, operation: str, name: str) -> Tensor | None:
        """A constant that an operation (by the name of its result) takes under this name; None when it takes none."""
        for found in self.function.block.walk():
            if found.output == operation and name in found.inputs:
                (binding,) = found.inputs[name]
                if isinstance(binding, Immediate):
                    return binding.value
                return self.constant(binding.name) if isinstance(binding, Ref) else None
        return None

    def quantized_weights(self) -> dict[str, QuantizedBlob]:
        """Every compressed weight as stored, by the output name of the operation that decompresses it."""
        return {
            operation.output: self._quantized(operation)
            for operation in self.function.block.walk()
            if operation.type in DATA
        }

    def _quantized(self, operation: Operation) -> QuantizedBlob:
        def read(key: str) -> Tensor | None:
            if key not in operation.inputs:
                return None
            value = self._resolve(operation.inputs[key][0], operation)
            return Execution(self.function, "fp16", None, {}).dense(value, operation.output)

        data, lut, shape = read(DATA[operation.type]), read("lut"), read("shape")
        assert data is not None
        dtype = self._element_type(operation, DATA[operation.type])
        if operation.type == "constexpr_lut_to_dense" and shape is not None and lut is not None:
            data = packed_indices(data, lut, shape)
        masks = [mask for mask in (read("mask"), read("indices_mask"), read("data_mask")) if mask is not None]
        offsets = [offset for offset in (read("offset"), read("zero_point")) if offset is not None]
        axis, vector_axis = read("axis"), read("vector_axis")
        return QuantizedBlob(
            name=operation.output,
            op_type=operation.type,
            dtype=dtype,
            data=data,
            scale=read("scale"),
            offset=offsets[0] if offsets else None,
            lut=lut,
            axis=None if axis is None else int(axis),
            vector_axis=None if vector_axis is None else int(vector_axis),
            mask=masks[0] if masks else None,
            shape=operation.outputs[-1].type.shape,
        )

    def _element_type(self, operation: Operation, key: str) -> str:
        binding = operation.inputs[key][0]
        if isinstance(binding, Ref):
            outputs = {output.name: output for output in self._definitions[binding.name].outputs}
            return outputs[binding.name].type.dtype.name
        return "string" if isinstance(binding, str) else binding.type.dtype.name

    def _constant(self, name: str) -> Value:
        operation = self._definitions.get(name)
        if operation is None or not operation.constant:
            raise PlanishError(f"no constant {name!r}", str(self.package), "see operations(constants=True)")
        if operation.type == "const":
            return self._resolve(operation.inputs["val"][0], operation)
        operands = {
            key: tuple(self._resolve(binding, operation) for binding in given)
            for key, given in operation.inputs.items()
        }
        index = [output.name for output in operation.outputs].index(name)
        return Deferred(operation, operands, index)

    def _resolve(self, binding: Binding, operation: Operation) -> Value:
        if not isinstance(binding, Ref):
            return binding
        if binding.name not in self._definitions:
            raise MilRunError(f"uses {binding.name}, which nothing defines", operation.type, operation.output)
        return self._constant(binding.name)

    def _check_states(self, states: Mapping[str, Tensor]) -> None:
        declared = {entry.name: entry for entry in self.function.inputs if entry.state}
        for name, value in states.items():
            if name not in declared or not declared[name].type.admits(value.shape):
                wanted = f"declared {declared[name].type}" if name in declared else f"states are {sorted(declared)}"
                raise PlanishError(f"state {name} of shape {list(value.shape)}", str(self.package), wanted)

    def _accept(self, value: Tensor, entry: Named, execution: Execution) -> Tensor:
        """Check one input against its declaration and convert it."""
        where = f"input {entry.name} of {self.package}, declared {entry.type}"
        limits = self.function.limits.get(entry.name, ())
        outside = [
            size
            for size, (low, high) in zip(value.shape, limits, strict=False)
            if size < low or (high is not None and size > high)
        ]
        named = self.function.shapes.get(entry.name, (tuple(value.shape),))
        if not entry.type.admits(value.shape) or outside or tuple(value.shape) not in named:
            hint = f"allowed sizes: {limits}" if outside else "pass a tensor of the declared shape"
            hint = hint if tuple(value.shape) in named else f"allowed shapes: {', '.join(map(str, named))}"
            raise PlanishError(f"its shape is {list(value.shape)}", where, hint)
        dtype = entry.type.dtype
        if dtype.kind == "float":
            return execution.settle(value, entry.type)
        if value.is_floating_point() or not torch.equal(cast(value, dtype).to(torch.int64), value.to(torch.int64)):
            raise PlanishError(f"its values ({value.dtype}) do not fit the type", where, f"pass {dtype.name} values")
        return cast(value, dtype)


def _port(entry: Named) -> MilPort:
    return MilPort(entry.name, entry.type.shape or (), entry.type.dtype.carrier)

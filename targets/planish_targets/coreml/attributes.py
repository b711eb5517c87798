"""Epsilons in a saved .mlpackage.

Where the operation computes in fp16, its epsilon is an fp16 constant: 1e-5 is stored as 1.0014e-05, and what fp16
cannot hold (1e-12) as its smallest positive number, 2^-24 (see `emit.network.layer_norm`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from planish_targets import attributes as steps
from planish_targets.attributes import Number, Step
from planish_targets.contract import Attribute
from planish_targets.coreml.mil.graph import Immediate, Operation, Ref, Stored
from planish_targets.coreml.mil.spec import read_function

# Defaults of the MIL specification, for packages that leave the input out
_DEFAULTS = {"layer_norm": 1e-5, "batch_norm": 1e-5, "instance_norm": 1e-5, "l2_norm": 1e-6}
_KINDS = {
    **dict.fromkeys(("sqrt", "rsqrt"), steps.ROOT),  # rsqrt's own epsilon, 1e-12, guards it and is no one's attribute
    **dict.fromkeys(("cast", "identity", "reshape", "transpose", "expand_dims", "squeeze"), steps.SAME),
    "add": steps.ADD,
}


def read(package: Path, modules: Mapping[str, str], function: str | None = None) -> tuple[Attribute, ...]:
    """Epsilons of one function.

    Args:
        function: its name; None takes the only or the default one.
        modules: name of an FX node, with which MIL names start -> source module.
    """
    found, number = steps_of(package, lambda op: modules.get(op.output.partition("__")[0], ""), function)
    return steps.attributes(found, number)


def steps_of(
    package: Path, module: Callable[[Operation], str], function: str | None = None
) -> tuple[list[Step], Callable[[Any], Number | None]]:
    """One function in the words of `planish_targets.attributes`, and the value of a key that is a constant.

    Args:
        module: source module of an operation.
    """
    operations = list(read_function(package, function).block.walk())
    constants = {op.output: op.inputs["val"][0] for op in operations if op.type == "const"}

    def number(key: Any) -> Number | None:
        value = constants.get(key) if isinstance(key, str) else key
        if not isinstance(value, (Stored, Immediate)) or value.type.dtype.kind != "float":
            return None
        tensor = value.value if isinstance(value, Immediate) else value.read() if value.shape in ((), (1,)) else None
        if tensor is None or tensor.numel() != 1:
            return None
        return Number(float(tensor), value.type.dtype.storage)

    return [_step(op, module(op), number) for op in operations], number


def _step(op: Operation, module: str, number: Any) -> Step:
    if op.type in _DEFAULTS:
        given = _key(op, "epsilon")
        epsilon = Number(_DEFAULTS[op.type]) if given is None else number(given)
        return Step(steps.NORM, op.type, (), op.output, module, epsilon)
    power = number(_key(op, "y")) if op.type == "pow" else None
    kind = steps.ROOT if power is not None and steps.is_half(power.value) else _KINDS.get(op.type, steps.OTHER)
    keys = (_key(op, name) for name in ("x", "y"))
    return Step(kind, op.type, tuple(k for k in keys if k is not None), op.output, module)


def _key(op: Operation, name: str) -> Hashable:
    """The name of a value, or a constant that is written at the place itself; None when the input is left out."""
    given = op.inputs.get(name)
    if not given:
        return None
    return given[0].name if isinstance(given[0], Ref) else given[0]

"""What the MIL reader and interpreter refuse."""

from __future__ import annotations

from collections.abc import Sequence

from planish_passes.errors import PlanishError


class UnsupportedMilOp(PlanishError):
    """The package holds operations that the interpreter does not implement.

    Attributes:
        ops: every unknown operation of the function, as (op type, output name).
        op_type, output: the first of them.
    """

    def __init__(self, ops: Sequence[tuple[str, str]], where: str) -> None:
        self.ops = tuple(ops)
        self.op_type, self.output = self.ops[0]
        listed = ", ".join(f"{op_type} -> {output}" for op_type, output in self.ops)
        super().__init__(
            f"the MIL interpreter does not implement {listed}",
            where,
            "check this package on a Mac, or add the op to planish_targets/coreml/mil/ops",
        )


class MilRunError(PlanishError):
    """An operation could not be computed, or its result contradicts what the package declares."""

    def __init__(self, what: str, op_type: str, output: str) -> None:
        self.op_type = op_type
        self.output = output
        super().__init__(what, f"MIL op {op_type} -> {output}", "the package or these inputs are not valid Core ML")


class CorruptPackage(PlanishError):
    """The package's files are missing, truncated or contradict each other."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what, where, "the package is damaged: convert or copy it again")

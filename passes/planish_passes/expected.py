"""What the traced model called must be in the graph."""

from __future__ import annotations

from dataclasses import dataclass

from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult
from planish_passes.program import Program

# A quantised or fused form of an operator still counts as that operator.
FORMS = {
    "planish.linear_q": "aten.linear",
    "planish.embedding_q": "aten.embedding",
    "planish.cached_attention": "planish.attention",
}


@dataclass(frozen=True)
class AssertExpected:
    """Fail when an operator that the model's modules called is not there in that number.

    A fusion or rewrite that loses a layer is how other tools go wrong in silence.
    """

    def run(self, program: Program) -> PassResult:
        """See the class.

        Raises:
            PlanishError: names operator, expected and found numbers.
        """
        found = program.count()
        for form, operator in FORMS.items():
            found[operator] += found[form]
        wrong = [f"{op}: {n} expected, {found[op]} found" for op, n in program.expects.items() if found[op] != n]
        if wrong:
            raise PlanishError(
                "the program does not hold what the model's modules called",
                f"program {program.name!r}: {'; '.join(wrong)}",
                "a pass or the trace lost an operator; report the model's config.json",
            )
        return PassResult(program, 0)

"""How far inner values of a program are from the original model's, module by module. It gates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from planish.verdict import Drift
from planish.verify.cases import Case
from planish.verify.diverge import Beside, apart
from planish.verify.together import Steps, walked
from planish_passes.interpret import Run
from planish_passes.program import Program

OF = "quantisation"


def from_model(program: Program, truth: Mapping[str, Sequence[Tensor]], case: Case) -> Steps[Drift]:
    """A program against the original model, at the end of every module that both have.

    Args:
        program: quantised, as a target computes it.
        truth: `diverge.module_outputs` of the same inputs; a task may have wrapped the model as `model`.
        case: the inputs.
    """
    wrapped = {path.removeprefix("model."): values for path, values in truth.items()}
    ways = [Beside(known, case) for known in (truth, wrapped)]
    yield from walked(program, [Run(case.inputs, tap=way.tap) for way in ways])
    for way in ways:
        if way.found:
            return Drift(OF, case.name, tuple(apart(*pair) for pair in way.found))
    return Drift(OF, case.name, reason="no module of the program has a counterpart in the original model")

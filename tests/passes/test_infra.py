from dataclasses import dataclass

import pytest
from support import capture_family

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.infra import PassResult, run_passes
from planish_passes.program import Program


@dataclass(frozen=True)
class LosesTypes:
    def run(self, program: Program) -> PassResult:
        del next(n for n in program.graph.nodes if n.op == "call_function").meta["val"]
        return PassResult(program, 1)


@dataclass(frozen=True)
class LosesWeights:
    def run(self, program: Program) -> PassResult:
        from dataclasses import replace

        return PassResult(replace(program, weights=program.weights.keep(set())), 1)


def test_a_pass_that_breaks_the_program_is_named_with_those_before_it() -> None:
    program = capture_family("bert")[0].program
    for broken, problem in ((LosesTypes(), "has no value type"), (LosesWeights(), "not in the store")):
        with pytest.raises(PlanishError, match=problem) as caught:
            run_passes(program, [Canonicalise(), broken])
        assert type(broken).__name__ in caught.value.what
        assert "after Canonicalise" in caught.value.where


def test_both_sides_can_be_watched() -> None:
    seen = []
    program = capture_family("bert")[0].program
    run_passes(program, [Canonicalise()], watch=lambda name, before, after: seen.append((name, before, after)))
    name, before, after = seen[0]
    assert name == "Canonicalise"
    assert before.text() != after.text()

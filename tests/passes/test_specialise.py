import pytest
import torch
from support import capture_family, feed

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.fold import FoldConstants
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.specialise import Specialise


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "vit"])
def test_fixed_shapes_give_the_same_numbers(family: str) -> None:
    program = capture_family(family)[0].program
    sizes = {axis: {"batch": 2, "sequence": 16}[axis] for axis in program.axes}
    fixed = run_passes(program, [Specialise(sizes), Canonicalise(), FoldConstants()]).program
    assert fixed.axes == {}
    assert all(isinstance(s, int) for p in (*fixed.inputs, *fixed.outputs) for s in p.shape)
    assert "aten.sym_size" not in fixed.count()
    given = feed(program)
    assert torch.equal(interpret(fixed, given)["last_hidden_state"], interpret(program, given)["last_hidden_state"])


def test_a_length_that_the_model_does_not_take_is_refused() -> None:
    program = capture_family("bert")[0].program
    with pytest.raises(PlanishError, match="sequence = 513 is outside") as caught:
        run_passes(program, [Specialise({"batch": 1, "sequence": 513})])
    assert "sequence-length" in caught.value.hint


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "modernbert"])
def test_one_dimension_may_stay_dynamic(family: str) -> None:
    program = capture_family(family)[0].program
    form = run_passes(program, [Specialise({"batch": 1}), Canonicalise(), FoldConstants()]).program
    assert form.axes == {"sequence": program.axes["sequence"]}
    assert all(p.shape == (1, "sequence") for p in form.inputs)
    assert [p.shape[:2] for p in form.outputs] == [(1, "sequence")]
    for length in (7, 16):
        given = feed(program, batch=1, sequence=length)
        found, truth = (interpret(p, given)["last_hidden_state"] for p in (form, program))
        assert torch.equal(found, truth)

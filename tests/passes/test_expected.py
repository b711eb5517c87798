from dataclasses import replace

import pytest
from support import capture_family

from planish_passes.canonicalise import Canonicalise
from planish_passes.errors import PlanishError
from planish_passes.expected import AssertExpected
from planish_passes.infra import run_passes
from planish_passes.quantise import Quantise


def test_counts_of_a_real_model_hold_before_and_after_quantisation() -> None:
    program = capture_family("bert")[0].program
    assert program.expects == {"aten.embedding": 3, "aten.layer_norm": 5, "aten.linear": 12, "planish.attention": 2}
    run_passes(program, [AssertExpected(), Canonicalise(), Quantise(), AssertExpected()])


def test_a_lost_layer_fails_by_name() -> None:
    program = capture_family("bert")[0].program.copy()
    norm = next(n for n in program.graph.nodes if "layer_norm" in n.name)
    norm.replace_all_uses_with(norm.args[0])
    with pytest.raises(PlanishError, match="layer_norm: 5 expected, 4 found"):
        run_passes(replace(program), [Canonicalise(), AssertExpected()])

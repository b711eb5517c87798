import torch
from support import capture_family, feed

from planish_passes.canonicalise import Canonicalise
from planish_passes.expand import Expand
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.quantise import Quantise


def test_expanding_changes_no_number() -> None:
    program = run_passes(capture_family("bert")[0].program, [Canonicalise(), Quantise()]).program
    after = run_passes(program, [Expand()])
    assert after.steps[0].changed == 2 + 12 + 3
    assert not [op for op in after.program.count() if op.startswith("planish.")]
    given = feed(program)
    assert torch.equal(
        interpret(after.program, given)["last_hidden_state"], interpret(program, given)["last_hidden_state"]
    )


def test_what_a_target_keeps_stays_and_modules_are_remembered() -> None:
    program = capture_family("bert")[0].program
    kept = run_passes(program, [Expand(frozenset({"planish.attention"}))]).program
    assert kept.count()["planish.attention"] == 2
    expanded = run_passes(program, [Expand()]).program
    softmax = next(n for n in expanded.graph.nodes if "softmax" in n.name)
    assert softmax.meta["planish_module"] == "encoder.layer.0.attention.self"

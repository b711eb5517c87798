import torch
from support import capture_family, feed

from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.pipeline import for_target
from planish_passes.taps import tap_points, with_taps


def test_tapped_outputs_are_the_inner_values() -> None:
    program = capture_family("bert")[0].program
    form = run_passes(program, for_target(frozenset(), {"batch": 2, "sequence": 16})).program
    tapped = with_taps(form)
    assert len(tapped.outputs) >= 1 + 12 + 5 - 1
    given, seen = feed(program), {}
    plain = interpret(form, given, tap=lambda n, v: seen.setdefault(n.name, v.clone()))
    shown = interpret(tapped, given)
    assert torch.equal(shown["last_hidden_state"], plain["last_hidden_state"])
    extra = [p.name for p in tapped.outputs[1:]]
    assert all(torch.equal(shown[name], seen[name]) for name in extra)
    assert set(extra) <= {n.name for n in tap_points(form)}

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import program_of
from torch import Tensor, nn

import planish_passes.decoder_ops  # noqa: F401  (registers operators)
from planish_passes.canonicalise import Canonicalise
from planish_passes.fuse_cache import FuseCache
from planish_passes.infra import Outcome, run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program

ops = torch.ops.planish


class Cached(nn.Module):
    """Attention over a cache; `change` may alter keys and values, `mask` makes the mask, `show` adds an output."""

    def __init__(
        self,
        change: Callable[[Tensor], Tensor] = lambda k: k,
        mask: Callable[[Tensor], Tensor] = lambda m: m,
        show: Callable[[Tensor], tuple[Tensor, ...]] = lambda k: (),
    ) -> None:
        super().__init__()
        self.change, self.mask, self.show = change, mask, show

    def forward(self, q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, slots: Tensor) -> object:
        keys, values = ops.kv_append(past_k, k), ops.kv_append(past_v, v)
        mask = self.mask(ops.causal_mask(slots, keys.shape[2], 4, 0))
        out = ops.attention(q, self.change(keys), values, mask, None, None, 0.5, 2.0)
        return out, keys, values, *self.show(keys)


def given() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    heads = ((4, 3), (2, 3), (2, 3), (2, 5), (2, 5))
    return *(torch.randn(2, h, s, 8) for h, s in heads), torch.arange(5, 8).expand(2, -1)


def programs(module: nn.Module) -> tuple[Program, Outcome]:
    program = replace(program_of(module, *given()), states=(("y1", "x3"), ("y2", "x4")))
    program = run_passes(program, [Canonicalise()]).program
    return program, run_passes(program, [FuseCache(), Canonicalise()])


def same(a: Program, b: Program) -> bool:
    inputs = {f"x{i}": t for i, t in enumerate(given())}
    first, second = interpret(a, inputs), interpret(b, inputs)
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_an_exact_match_is_one_operator_that_returns_the_states() -> None:
    program, outcome = programs(Cached())
    assert outcome.program.count() == {"planish.cached_attention": 1, "getitem": 3}
    joined = next(n for n in outcome.program.graph.nodes if "cached_attention" in str(n.target))
    assert joined.args[8:] == (0.5, 2.0, 4, 0)
    assert not outcome.refused
    assert same(program, outcome.program)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Cached(show=lambda k: (k.sum(),)), "keys are also used elsewhere"),
        (Cached(change=lambda k: k * 2), "keys are not a cache with new ones appended"),
        (Cached(mask=lambda m: m & m.flip(-1)), "the mask is not the causal one"),
    ],
    ids=["another reader", "changed keys", "another mask"],
)
def test_what_does_not_match_stays_in_parts_and_is_listed(module: nn.Module, reason: str) -> None:
    program, outcome = programs(module)
    assert outcome.program.count()["planish.cached_attention"] == 0
    assert outcome.program.count()["planish.kv_append"] == 2
    assert reason in outcome.refused[0].reason
    assert same(program, outcome.program)


def test_a_wrong_join_would_be_seen() -> None:
    program, outcome = programs(Cached())
    broken = outcome.program.copy()
    node = next(n for n in broken.graph.nodes if "cached_attention" in str(n.target))
    node.args = (*node.args[:10], 0, node.args[11])
    broken.exported.graph_module.recompile()
    assert not same(program, broken)

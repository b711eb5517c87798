from dataclasses import replace

import pytest
import torch
from support import capture_family, program_of

from planish_passes import ops
from planish_passes.canonicalise import Canonicalise
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.numerics import BY_BLOCK, BY_CACHE, BY_ROLE, RoundActivations, RoundEpsilons, RoundWeights
from planish_passes.quantise import MINIMA, Quantise
from planish_passes.weights import WeightFormat


def test_roles_of_the_linears_of_a_layer() -> None:
    passes = [Canonicalise(), Quantise(), RoundActivations(BY_ROLE)]
    program = run_passes(capture_family("bert")[0].program, passes).program
    linears = [n for n in program.graph.nodes if n.op == "call_function" and "linear_q" in str(n.target)]
    found = {n.meta["planish_module"].split("layer.0.")[-1]: n.args[-1] for n in linears[:6]}
    assert found == {
        "attention.self.query": "int8_token_symmetric",
        "attention.self.key": "int8_token_symmetric",
        "attention.self.value": "int8_token_residual",
        "attention.output.dense": "int8_token_symmetric",
        "intermediate.dense": "int8_token_residual",
        "output.dense": "uint8_token_after_gelu",
    }


@pytest.mark.parametrize(
    ("activations", "steps"),
    [("none", 0.0), ("int8_token_symmetric", 0.51), ("int8_token_residual", 0.003), ("int8_token_asymmetric", 1.01)],
)
def test_rounding_error_is_bounded_by_the_step(activations: str, steps: float) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(64, 96), torch.zeros(1, 96), torch.randn(3, 96).abs(), -torch.randn(3, 96).abs()])
    step = x.abs().amax(-1, keepdim=True) / 127
    error = (ops.quantize_activations(x, activations) - x).abs()
    assert bool((error <= step * steps + 1e-7).all())


def test_rounding_after_gelu_needs_no_sign() -> None:
    x = torch.nn.functional.gelu(torch.randn(64, 96) * 3)
    step = (x.amax(-1, keepdim=True) + ops.GELU_LOW) / 255
    assert bool(((ops.quantize_activations(x, "uint8_token_after_gelu") - x).abs() <= step * 0.51).all())


def test_weights_are_rounded_and_mask_fills_stay_finite() -> None:
    program = run_passes(capture_family("bert")[0].program, [Canonicalise()]).program
    store = program.weights.derive(
        "embeddings.LayerNorm.bias",
        ("embeddings.LayerNorm.bias",),
        lambda t: torch.full_like(t, -3.4e38),
        program.weights.spec("embeddings.LayerNorm.bias"),
    )
    rounded = run_passes(replace(program, weights=store), [RoundWeights(torch.float16)]).program.weights
    assert bool((rounded.read("embeddings.LayerNorm.bias") == -65504).all())
    weight = rounded.read("embeddings.word_embeddings.weight")
    assert torch.equal(weight, program.weights.read("embeddings.word_embeddings.weight").half().float())


def test_minima_of_kept_weights_are_not_rounded() -> None:
    class Offsets(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.minima, self.other = (torch.nn.Parameter(torch.full((4, 2), 0.1)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.planish.linear_minima(torch.ops.planish.linear_minima(x, self.minima), self.other)

    program = program_of(Offsets(), torch.randn(3, 4))
    named = next(s for s in program.exported.graph_signature.input_specs if s.target == "minima")
    named.target = "w" + MINIMA
    held = program.weights.read("minima")
    store = program.weights.with_tensor("w" + MINIMA, held)
    rounded = RoundWeights(torch.float16).run(replace(program, weights=store)).program.weights
    assert torch.equal(rounded.read("w" + MINIMA), held)
    assert not torch.equal(rounded.read("other"), held)


@pytest.mark.parametrize(("states", "chosen"), [((), "int8_token_asymmetric"), ((("a", "b"),), "int8_token_pair")])
def test_programs_with_caches_have_two_passes(states: tuple[tuple[str, str], ...], chosen: str) -> None:
    program = run_passes(capture_family("bert")[0].program, [Canonicalise(), Quantise()]).program
    program = RoundActivations(BY_CACHE).run(replace(program, states=states)).program
    assert {n.args[6] for n in program.graph.nodes if "linear_q" in str(n.target)} == {chosen}


@pytest.mark.parametrize(("epsilon", "stored"), [(1e-5, 1.00135803e-05), (1e-12, 2.0**-24), (2.0**-10, 2.0**-10)])
def test_epsilons_become_float16_numbers_and_never_nothing(epsilon: float, stored: float) -> None:
    x = torch.randn(3, 8) * 1e-3
    norm = torch.nn.LayerNorm(8, eps=epsilon)  # 1e-5 is the operator's own default, which a call may leave out
    program = program_of(norm, x)
    rounded = run_passes(program, [RoundEpsilons(torch.float16)])
    assert rounded.steps[-1].changed == (epsilon != stored)
    wanted = torch.nn.functional.layer_norm(x, (8,), norm.weight, norm.bias, stored)
    found = interpret(rounded.program, {"x0": x})["y0"]
    assert torch.allclose(found, wanted, rtol=1e-5, atol=0)
    if epsilon != stored:
        assert not torch.allclose(found, norm(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("format", "rounded"),
    [
        (WeightFormat(4, 16), "int8_block16"),
        (WeightFormat(4, 64), "int8_block64"),  # a row is one group
        (WeightFormat(8, 16), "int8_block16"),
        (WeightFormat(8), "int8_token_residual"),
    ],
)
def test_blocks_are_the_groups_also_where_there_is_one(format: WeightFormat, rounded: str) -> None:
    mlp = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.SiLU())
    passes = [Canonicalise(), Quantise(format), RoundActivations(BY_BLOCK)]
    program = run_passes(program_of(mlp, torch.randn(2, 64)), passes).program
    (linear,) = [n for n in program.graph.nodes if n.op == "call_function" and "linear_q" in str(n.target)]
    assert linear.args[6] == rounded

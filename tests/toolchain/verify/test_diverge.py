import torch
from support import program_of
from torch import nn

from planish.verify.cases import Case
from planish.verify.diverge import Layers, relative_error
from planish_passes.interpret import interpret

LOWEST = torch.finfo(torch.float32).min
HALF_LOWEST = torch.finfo(torch.float16).min


class Doubles(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_mask_fills_of_two_types_are_one_number() -> None:
    mask = torch.tensor([[0.0, LOWEST], [0.0, 0.0]])
    assert relative_error(torch.tensor([[0.0, HALF_LOWEST], [0.0, 0.0]]), mask) == 0


def test_a_mask_that_hides_another_slot_or_too_weakly_differs() -> None:
    mask = torch.tensor([[0.0, LOWEST], [0.0, 0.0]])
    assert relative_error(torch.tensor([[LOWEST, 0.0], [0.0, 0.0]]), mask) >= 1
    assert relative_error(torch.tensor([[0.0, -100.0], [0.0, 0.0]]), mask) > 0.9
    assert relative_error(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), mask) == 1


def test_large_activations_keep_their_size() -> None:
    truth = torch.tensor([1.0e6, 2.0])
    assert relative_error(torch.tensor([HALF_LOWEST * -1, 2.0]), truth) > 0.9
    assert relative_error(torch.tensor([float("inf"), 2.0]), truth) == float("inf")


def test_steps_below_what_float16_has_digits_for() -> None:
    program = program_of(Doubles(), torch.ones(4))
    (node,) = [n.name for n in program.graph.nodes if n.op == "call_function"]

    def error(x: torch.Tensor, found: torch.Tensor, compute: torch.dtype) -> float:
        layers = Layers(Case("c", {"x0": x}), {node: found}, compute)
        interpret(program, {"x0": x}, tap=layers.tap, forced={node: found})
        (step,) = layers.found
        return step.largest

    tiny = torch.tensor([3.0e-7, 1.0e-7, 0.0, 0.0])  # twice that lies between float16 numbers
    assert error(tiny, (2 * tiny).half().float(), torch.float32) > 0.01
    assert error(tiny, (2 * tiny).half().float(), torch.float16) < 1e-3
    assert error(tiny * 1e3, 2.1e3 * tiny, torch.float16) > 0.04
    assert error(tiny, tiny + 1e-3, torch.float16) > 10

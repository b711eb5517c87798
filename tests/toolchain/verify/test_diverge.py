import torch

from planish.verify.diverge import relative_error

LOWEST = torch.finfo(torch.float32).min
HALF_LOWEST = torch.finfo(torch.float16).min


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

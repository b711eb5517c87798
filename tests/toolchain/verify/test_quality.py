import pytest
import torch
from torch import nn

from planish.verify.cases import Case
from planish.verify.quality import eager
from planish_passes.errors import PlanishError


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 2)

    def forward(self, input_ids: torch.Tensor, return_dict: bool) -> dict[str, torch.Tensor]:
        return {"y": self.table(input_ids)}


def test_an_original_that_stops_is_named_with_what_it_was_given() -> None:
    ids = torch.tensor([[1, 3]])
    assert eager(Narrow(), [Case("fits", {"input_ids": ids})], ["y"])["fits"]["y"].shape == (1, 2, 2)
    with pytest.raises(PlanishError, match=r"the original model stops at input_ids \[1, 2\]: IndexError") as caught:
        eager(Narrow(), [Case("beyond", {"input_ids": ids + 9})], ["y"])
    assert "config.json" in caught.value.hint

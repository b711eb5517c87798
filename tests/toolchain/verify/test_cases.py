import torch

from planish.verify.cases import batches, edge_cases, fixed_cases
from planish_passes.program import Port

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def sample(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SAMPLES = [sample(n) for n in (3, 30, 5, 9, 400, 7)]
DYNAMIC = [Port(n, torch.int64, ("batch", "sequence")) for n in NAMES]
FIXED = [Port(n, torch.int64, (1, 16)) for n in NAMES]


def test_batches_hold_every_sample_once_and_stay_small() -> None:
    cases = batches(SAMPLES, DYNAMIC, pad=99, budget=64)
    assert sum(c.inputs["input_ids"].shape[0] for c in cases) == len(SAMPLES)
    assert all(c.inputs["input_ids"].numel() <= 64 for c in cases[:-1])
    assert sum(int(c.mask.sum()) for c in cases) == 3 + 30 + 5 + 9 + 400 + 7


def test_edges_are_the_shortest_a_padded_batch_and_the_longest() -> None:
    cases = {c.name: c for c in edge_cases(SAMPLES, DYNAMIC, 99, 128)}
    assert cases["short"].inputs["input_ids"].shape == (1, 3)
    padded = cases["padded"]
    assert padded.inputs["input_ids"].shape == (3, 30)
    assert bool((padded.inputs["input_ids"][~padded.mask] == 99).all())
    assert bool((padded.inputs["token_type_ids"] == 0).all())
    longest = cases["longest"].inputs["input_ids"]
    assert longest.shape == (1, 128)
    assert longest[0, -1] == 400, "the closing token stays"


def test_fixed_shapes_are_cut_or_padded() -> None:
    cases = fixed_cases(SAMPLES, FIXED, 99)
    assert all(c.inputs["input_ids"].shape == (1, 16) for c in cases)
    lengths = {int(c.mask.sum()) for c in cases}
    assert min(lengths) == 3
    assert max(lengths) == 16

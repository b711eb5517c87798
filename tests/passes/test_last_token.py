"""Only the last token's logits: equal values, fewer rows."""

from dataclasses import replace

import torch
from decoders import empty, fused, prompt

from planish_passes import pipeline
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.last_token import LastToken
from planish_passes.program import Program, op_name
from planish_passes.quantise import MINIMA, Quantise
from planish_passes.weights import WeightFormat


def answers(program: Program, length: int) -> dict[str, torch.Tensor]:
    tokens = prompt(batch=1, length=length)
    return interpret(program, {"input_ids": tokens, "position_ids": torch.arange(length)[None], **empty(program, 1)})


def test_the_last_row_is_the_same_and_states_are_whole() -> None:
    whole = fused("llama").program
    last = run_passes(whole, pipeline.last_token()).program
    full, cut = answers(whole, 9), answers(last, 9)
    assert cut["logits"].shape[1] == 1
    assert torch.allclose(cut["logits"], full["logits"][:, -1:], rtol=0, atol=1e-6)
    assert all(torch.equal(cut[o], full[o]) for o, _ in whole.states)
    assert last.outputs[0].shape == ("batch", 1, whole.outputs[0].shape[2])


def test_head_norm_and_the_last_mlp_work_on_one_row() -> None:
    last = run_passes(fused("llama").program, (LastToken(),)).program
    rows = [(op_name(n), n.meta["val"].shape[1]) for n in last.graph.nodes if op_name(n) == "aten.linear"]
    assert [width for _, width in rows[-5:]] == [1, 1, 1, 1, 1]  # output of attention, gate, up, down, head
    assert all(not isinstance(width, int) for _, width in rows[:-5])


def test_a_cap_on_logits_is_computed_for_one_row() -> None:
    whole = fused("gemma2").program
    last = run_passes(whole, (LastToken(),)).program
    assert torch.allclose(answers(last, 5)["logits"], answers(whole, 5)["logits"][:, -1:], rtol=0, atol=1e-6)


def test_encoders_are_left_alone() -> None:
    from support import capture_family

    program = capture_family("bert")[0].program
    assert LastToken().run(program.copy()).changed == 0


def test_a_head_with_minima_works_on_one_row() -> None:
    program = fused("llama").program
    formats = {name: format for name, (format, _) in Quantise(WeightFormat(4, 16)).plan(program).weights.items()}
    store = program.weights
    for name in formats:
        rows, columns = store.spec(name).shape
        store = store.with_tensor(name + MINIMA, torch.linspace(-1, 1, rows * columns // 16).view(rows, -1))
    whole = run_passes(replace(program, weights=store), (Quantise(None, formats),)).program
    last = run_passes(whole, (LastToken(),)).program
    rows = [n.meta["val"].shape[1] for n in last.graph.nodes if op_name(n) == "planish.linear_minima"]
    assert rows[-5:] == [1, 1, 1, 1, 1]
    assert torch.allclose(answers(last, 5)["logits"], answers(whole, 5)["logits"][:, -1:], rtol=1e-5, atol=1e-4)

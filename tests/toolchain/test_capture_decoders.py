from dataclasses import replace

import pytest
import torch
import transformers as tf
from decoders import DECODERS, capture_model, decoder, difference, fused, greedy, prompt
from support import random_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from planish_passes.errors import PlanishError
from planish_passes.program import Program

# (cached attention, attention, rope, root-mean-square norms, gated products)
COUNTS = {
    "llama": (2, 0, 4, 5, 2),
    "qwen2": (1, 0, 2, 3, 1),
    "gemma2": (2, 0, 4, 9, 2),
    "mistral": (1, 0, 2, 3, 1),
    "smollm3": (2, 0, 2, 5, 2),
    "cohere2": (2, 0, 2, 0, 2),
    "gpt2": (1, 0, 0, 0, 0),
    "falcon": (0, 1, 2, 0, 0),
    "mixtral": (1, 0, 2, 3, 1),
}
KINDS = ("planish.cached_attention", "planish.attention", "planish.rope", "planish.rms_norm", "planish.gated")


@pytest.mark.parametrize("family", COUNTS)
def test_prompt_part_and_tokens_are_those_of_the_model(family: str) -> None:
    program = fused(family).program
    assert difference(program, decoder(family)[1]) < 1e-5
    assert tuple(program.count()[k] for k in KINDS) == COUNTS[family]


@pytest.mark.parametrize("family", ["llama", "gemma2", "falcon"])
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    model, tokens = decoder(family)[1], prompt(batch=1, length=5)
    with torch.no_grad():
        wanted = model.generate(tokens, max_new_tokens=20, min_new_tokens=20, do_sample=False)[:, 5:]  # type: ignore[operator]
    assert torch.equal(greedy(fused(family).program, tokens, 20), wanted)


def test_dimensions_and_states_have_names() -> None:
    program = decoder("llama")[0].program
    assert [p.shape for p in program.inputs[:3]] == [
        ("batch", "sequence"),
        ("batch", "sequence"),
        ("batch", 2, "past", 8),
    ]
    assert {p.name: p.shape for p in program.outputs}["present.0.key"] == ("batch", 2, "past + sequence", 8)
    assert program.states[0] == ("present.0.key", "past_key_values.0.key")


def test_experts_are_named_weights() -> None:
    names = set(fused("mixtral").program.weight_names().values())
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert not [n for n in names if "lifted" in n]


def test_a_model_past_the_hook_says_so() -> None:
    assert "captured with plain attention" in decoder("falcon")[0].notes[0]


def _one_late(slots: Tensor) -> Tensor:
    return slots + (slots[:, :1] > 0).to(torch.int64)


def _wrong_base(program: Program) -> Program:
    store = program.weights
    for name in program.weight_names().values():
        if name.endswith(("cos_table", "sin_table")):
            store = store.derive(name, (name,), lambda t: t.roll(1, dims=1), store.spec(name))
    return replace(program, weights=store)


def _without(program: Program, argument: int) -> Program:
    program = program.copy()
    for node in program.graph.nodes:
        if "cached_attention" in str(node.target):
            node.args = (*node.args[:argument], 0, *node.args[argument + 1 :])
    program.exported.graph_module.recompile()
    return program


def test_planted_defects_are_seen() -> None:
    assert difference(fused("llama").program, decoder("llama")[1], _one_late) > 1e-3
    assert difference(_wrong_base(fused("llama").program), decoder("llama")[1]) > 1e-3
    assert difference(_without(fused("gemma2").program, 9), decoder("gemma2")[1]) > 1e-4  # soft cap
    assert difference(_without(fused("mistral").program, 10), decoder("mistral")[1]) > 1e-3  # window


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            lambda: tf.LlamaConfig(
                rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, **_tiny()
            ),
            "data-dependent",
        ),
        (lambda: tf.Phi3Config(rope_parameters=_long_rope(), pad_token_id=0, **_tiny()), "changes .*inv_freq while"),
        (lambda: tf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64), "keeps LinearAttentionLayer"),
        (lambda: tf.OpenAIGPTConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=64), "does not keep keys and values"),
    ],
    ids=["angles that follow the longest text", "buffers that change", "recurrent", "no cache"],
)
def test_what_cannot_be_one_program_is_refused_by_reason(config: object, reason: str) -> None:
    made = config()  # type: ignore[operator]
    with pytest.raises(PlanishError, match=reason) as refusal:
        capture_model(made, random_model(made, AutoModelForCausalLM))
    assert refusal.value.hint
    assert "/" not in refusal.value.where


def _tiny() -> dict[str, int]:
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def _long_rope() -> dict[str, object]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}


def test_an_error_of_the_models_own_code_names_class_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, *args: object, **kwargs: object) -> object:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr(tf.models.llama.modeling_llama.LlamaMLP, "forward", broken)
    config = DECODERS["llama"]()
    with pytest.raises(PlanishError, match="LlamaForCausalLM cannot be traced: ZeroDivisionError: by nobody") as error:
        capture_model(config, nn.Identity())
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert error.value.where.startswith("modeling_llama.py, line ")

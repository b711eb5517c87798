import pytest
import torch
import transformers as tf
from support import FAMILIES, capture_family, feed, random_model, store_of
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModel, AutoModelForMaskedLM

from planish import hooks
from planish.capture import capture
from planish.meta import build_without_weights
from planish.tasks import TASKS
from planish_passes.errors import PlanishError
from planish_passes.interpret import interpret

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced_with_dynamic_shapes(family: str) -> None:
    captured, _ = capture_family(family)
    assert "batch" in captured.program.axes
    assert captured.program.inputs[0].shape[0] == "batch"
    assert captured.program.outputs[0].shape[0] == "batch"


def test_padding_masks_stay_out_of_the_graph() -> None:
    counts = capture_family("bert")[0].program.count()
    assert counts["planish.attention"] == 2
    assert not {"aten.arange", "aten.where", "aten.softmax", "aten.new_ones"} & set(counts)


def test_a_model_that_bypasses_the_interface_is_said_so() -> None:
    captured, _ = capture_family("mpnet")
    assert captured.program.count()["planish.attention"] == 0
    assert "0 of 2 layers" in captured.notes[0]


def test_positions_that_start_behind_padding_shorten_the_longest_input() -> None:
    assert capture_family("bert")[0].program.axes["sequence"] == (2, 512)
    assert capture_family("roberta")[0].program.axes["sequence"] == (2, 510)


def test_no_weight_is_in_memory_while_tracing() -> None:
    model = build_without_weights(AutoModel, FAMILIES["bert"](), hooks.IMPLEMENTATION)
    assert all(isinstance(p, FakeTensor) for p in model.parameters())


def test_buffers_outside_the_checkpoint_are_rebuilt_exactly() -> None:
    config = FAMILIES["modernbert"]()
    truth = dict(random_model(config).named_buffers())
    rebuilt = dict(build_without_weights(AutoModel, config, hooks.IMPLEMENTATION).named_buffers())
    assert truth.keys() == rebuilt.keys()
    assert all(torch.equal(truth[name], rebuilt[name]) for name in truth)


def test_a_buffer_that_nobody_rebuilds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.BertModel, "_init_weights", lambda self, module: None)
    with pytest.raises(PlanishError, match="position_ids is in no checkpoint"):
        build_without_weights(AutoModel, FAMILIES["bert"](), hooks.IMPLEMENTATION)


def test_attention_that_asks_for_more_than_the_hook_carries_is_not_hooked() -> None:
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(hooks.Unhooked, match="head_mask"):
        hooks.attention_hook(nn.Identity(), q, q, q, None, head_mask=torch.ones(2))
    with pytest.raises(hooks.Unhooked, match="causal"):
        hooks.attention_hook(nn.Identity(), q, q, q, None, is_causal=True)


def test_a_head_has_its_own_outputs() -> None:
    config = FAMILIES["bert"]()
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    program = capture(AutoModelForMaskedLM, config, TASKS["fill-mask"], store_of(model)).program
    assert [(o.name, o.shape) for o in program.outputs] == [("logits", ("batch", "sequence", 100))]


def test_a_model_that_cannot_be_traced_is_refused_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def decides(self: nn.Module, *args: object, **kwargs: object) -> object:
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setattr(tf.BertModel, "forward", decides)
    with pytest.raises(PlanishError, match="BertModel cannot be traced: RuntimeError: data-dependent"):
        capture(AutoModel, FAMILIES["bert"](), TASKS["feature-extraction"], lambda model: None)


def test_values_that_torch_export_forgets_the_readers_of() -> None:
    config = tf.EsmConfig(pad_token_id=1, position_embedding_type="rotary", **TINY)
    model = random_model(config)
    program = capture(
        AutoModel, config, TASKS["feature-extraction"], store_of(model)
    ).program  # stopped when dead nodes went
    assert all(node in source.users for node in program.graph.nodes for source in node.all_input_nodes)
    given = feed(program)
    with torch.no_grad():
        truth = model(**given).last_hidden_state
    found = interpret(program, given)["last_hidden_state"]
    assert torch.allclose(found[given["attention_mask"].bool()], truth[given["attention_mask"].bool()], atol=1e-5)


def test_fixed_shapes_where_lengths_cannot_be_left_open() -> None:
    config = tf.XLNetConfig(vocab_size=100, d_model=32, n_layer=1, n_head=4, d_inner=32)
    model = random_model(config)
    captured = capture(AutoModel, config, TASKS["feature-extraction"], store_of(model), {"sequence": 12})
    assert captured.program.axes == {}
    assert {p.name: p.shape for p in captured.program.inputs}["input_ids"] == (1, 12)
    assert any(n.startswith("shapes are fixed (batch 1, sequence 12)") for n in captured.notes)
    given = feed(captured.program, batch=1, sequence=12)
    with torch.no_grad():
        truth = model(**given).last_hidden_state
    assert torch.allclose(interpret(captured.program, given)["last_hidden_state"], truth, atol=1e-5)

"""Names survive the exporter: ports, dimensions, modules, inner values."""

import onnx
import pytest
from support import capture_family, program_of
from torch import Tensor, nn

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.taps import with_taps
from planish_targets.onnx_graph.save import save
from planish_targets.onnx_graph.tidy import tidy
from planish_targets.onnx_graph.translate import MODULE, VALUE, translate


def test_names_and_dimensions(tmp_path) -> None:
    form = run_passes(capture_family("bert")[0].program, pipeline.for_target(frozenset(), None)).program
    model = translate(form, {}, 21)
    save(model, tidy(model, form.weights), tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(written)
    assert [i.name for i in written.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    shape = written.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in shape] == ["batch", "sequence"]
    facts = [{p.key: p.value for p in n.metadata_props} for n in written.graph.node]
    assert "encoder.layer.1.output.LayerNorm" in {f.get(MODULE) for f in facts}
    assert {n.name for n in form.graph.nodes if "layer_norm" in n.name} <= {f.get(VALUE) for f in facts}
    assert not [n for n in written.graph.node if any(a.name == "allowzero" for a in n.attribute)]
    assert not {"Identity", "Constant"} & {n.op_type for n in written.graph.node}


def test_ports_win_over_inner_names() -> None:
    form = run_passes(capture_family("bert")[0].program, pipeline.for_target(frozenset(), None)).program
    tapped = with_taps(form)
    model = translate(tapped, {}, 21)
    names = [v.name for n in model.graph for v in n.outputs]
    assert len(names) == len(set(names))
    assert [o.name for o in model.graph.outputs] == [p.name for p in tapped.outputs]


def test_an_operator_without_a_form_is_refused_by_name() -> None:
    import torch

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(PlanishError, match="no ONNX form") as caught:
        translate(program_of(Odd(), torch.eye(3)), {}, 21)
    assert "eigvals" in caught.value.where or "eig" in caught.value.where

"""float16 with float32 islands: each rule of `precision`, checked on the graph and by arithmetic in true float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from planish_passes.weights import TensorSpec, WeightStore

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from planish_targets.directml.half import to_half  # noqa: E402
from planish_targets.onnx_graph.translate import SOURCE  # noqa: E402

OPSET = 21


def half(body: str, opset: int = OPSET, **options: Any) -> Any:
    """`body` (a graph in ONNX's text form) through `to_half`, types inferred first as the exporter would give them."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n{body}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        node.meta[SOURCE] = node.outputs[0].name
    to_half(model, WeightStore(), opset, **options)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return made


def kinds(made: Any) -> dict[str, list[str]]:
    """Operator -> element types of its results, in order."""
    known = {v.name: v.type.tensor_type.elem_type for v in (*made.graph.value_info, *made.graph.output)}
    found: dict[str, list[str]] = {}
    for node in made.graph.node:
        name = onnx.TensorProto.DataType.Name(known[node.output[0]])
        found.setdefault(node.op_type, []).append(name)
    return found


def run(made: Any, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(made).run(None, inputs)[0])


def test_arithmetic_becomes_half_and_the_ports_stay() -> None:
    made = half("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> { m = MatMul(x, w) y = Relu(m) }")
    assert kinds(made) == {"Cast": ["FLOAT16", "FLOAT"], "MatMul": ["FLOAT16"], "Relu": ["FLOAT16"]}
    ports = [v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)]
    assert ports == [onnx.TensorProto.FLOAT] * 2
    assert [(v.name) for v in made.graph.output] == ["y"]
    assert made.graph.initializer[0].data_type == onnx.TensorProto.FLOAT16


def test_ports_that_go_from_call_to_call_become_half_too() -> None:
    body = "g (float[2] past, float[2] x) => (float[4] present, float[4] y) "
    body += "{ present = Concat<axis=0>(past, x) y = Neg(present) }"
    made = half(body, ports=frozenset({"past", "present"}))
    found = {v.name: v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)}
    kind = onnx.TensorProto
    assert found == {"past": kind.FLOAT16, "x": kind.FLOAT, "present": kind.FLOAT16, "y": kind.FLOAT}


def test_a_port_that_a_norm_makes_is_rounded_at_the_end() -> None:
    made = half("g (float[2,2] x) => (float[2,2] present) { present = Softmax(x) }", ports=frozenset({"present"}))
    assert kinds(made) == {"Softmax": ["FLOAT"], "Cast": ["FLOAT16"]}


def test_large_values_stay_float_and_a_half_would_overflow() -> None:
    body = "g (float[2] x) => (float[2] y) <float[1] k = {1000}, float[1] r = {0.001}> "
    body += "{ a = Relu(x) b = Mul(a, k) y = Mul(b, r) }"
    given = np.array([100.0, 200.0], np.float32)
    kept = half(body, large=frozenset({"b", "y"}))
    assert kinds(kept)["Mul"] == ["FLOAT", "FLOAT"]
    assert kinds(kept)["Relu"] == ["FLOAT16"]
    np.testing.assert_allclose(run(kept, x=given), given, rtol=1e-3)
    assert np.isinf(run(half(body), x=given)).all()


def test_an_inner_value_that_is_also_an_output_keeps_its_readers() -> None:
    made = half("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Sqrt(y) }")
    found = ReferenceEvaluator(made).run(None, {"x": np.array([4.0, 9.0], np.float32)})
    np.testing.assert_array_equal(found[0], [4, 9])
    np.testing.assert_array_equal(found[1], [2, 3])


# --- rule 1: statistics ---

NORM = "g (float[1,4] x) => (float[1,4] y) <float[4] s = {1,1,1,1}> { a = Add(x, x) y = LayerNormalization(a, s) }"


def test_a_norm_and_its_weights_stay_float32_and_the_sum_before_it_does_not() -> None:
    made = half(NORM)
    assert kinds(made)["LayerNormalization"] == ["FLOAT"]
    assert kinds(made)["Add"] == ["FLOAT16"]
    assert {i.name: i.data_type for i in made.graph.initializer} == {"s": onnx.TensorProto.FLOAT}


def test_softmax_stays_float32_together_with_scale_and_mask() -> None:
    made = half(
        "g (float[2,2] a, float[2,2] b, bool[2,2] k) => (float[2,2] y) <float f = {-3.4e38}, float c = {0.5}>"
        " { s = MatMul(a, b) t = Mul(s, c) w = Where(k, t, f) p = Softmax(w) y = MatMul(p, b) }"
    )
    found = kinds(made)
    assert found["Mul"] == found["Where"] == found["Softmax"] == ["FLOAT"]
    assert found["MatMul"] == ["FLOAT16", "FLOAT16"]


# --- rules 2 and 3: a norm that is written out ---

RMS = """g (float[1,128] x) => (float[1,128] y) <float e = {1e-6}, int64[1] axis = {-1}>
{ p = Mul(x, x) m = ReduceMean(p, axis) n = Add(m, e) r = Sqrt(n) y = Div(x, r) }"""


def test_a_written_out_norm_survives_massive_activations() -> None:
    x = np.ones((1, 128), np.float32)
    x[0, 3] = 3000
    truth = x / np.sqrt((x * x).mean() + 1e-6)
    made = half(RMS)
    assert all(set(kinds(made)[op]) == {"FLOAT"} for op in ("Mul", "ReduceMean", "Add", "Sqrt", "Div"))
    np.testing.assert_allclose(run(made, x=x), truth, rtol=2e-3)


def test_the_same_norm_fails_without_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: this is what the test above protects from."""
    monkeypatch.setattr("planish_targets.directml.half.full_precision", lambda *_: set())
    x = np.full((1, 128), 3000, np.float32)
    with np.errstate(all="ignore"):
        assert not np.allclose(run(half(RMS), x=x), 1.0, rtol=0.1)


def test_a_tiny_constant_is_not_rounded_to_zero() -> None:
    made = half("g (float[2] x) => (float[2] y) <float e = {1e-9}> { c = Max(x, e) y = Div(x, c) }")
    assert not np.isnan(run(made, x=np.zeros(2, np.float32))).any()


def test_the_mean_over_tokens_is_summed_in_float32() -> None:
    made = half(
        "g (float[1,900,2] x) => (float[1,2] y) <int64[1] axis = {1}>"
        " { s = ReduceSum<keepdims = 0>(x, axis) y = Relu(s) }"
    )
    assert run(made, x=np.full((1, 900, 2), 70, np.float32))[0, 0] == np.float16(63000)
    assert kinds(made)["ReduceSum"] == ["FLOAT"]


# --- rule 4: integers ---


def test_positions_keep_every_step() -> None:
    """3001 has no float16; its sine has."""
    made = half(
        "g (int64[2] p, float[2] x) => (float[2] y) <float f = {0.5}>"
        " { c = Cast<to = 1>(p) a = Mul(c, f) s = Sin(a) y = Mul(s, x) }"
    )
    assert kinds(made)["Sin"] == ["FLOAT"]
    assert kinds(made)["Mul"] == ["FLOAT", "FLOAT16"]
    p = np.array([3001, 3003])
    np.testing.assert_allclose(run(made, p=p, x=np.ones(2, np.float32)), np.sin(p * 0.5), atol=1e-3)


def test_rows_of_a_quantised_table_become_half_at_once() -> None:
    made = half(
        "g (int64[3] i) => (float[3,2] y) <int8[4,2] w = {1,2,3,4,5,6,7,8}, float[4,1] s = {1,2,3,4}>"
        " { r = Gather(w, i) c = Cast<to = 1>(r) f = Gather(s, i) y = Mul(c, f) }"
    )
    assert kinds(made)["Cast"] == ["FLOAT16", "FLOAT"]
    assert kinds(made)["Mul"] == ["FLOAT16"]


# --- rule 5: what the device takes ---


def test_an_operator_without_a_half_kernel_stays_float32() -> None:
    made = half("g (float[2,2] x) => (float[2,2] y) { a = Relu(x) d = Det(a) y = Add(a, d) }")
    assert kinds(made)["Det"] == ["FLOAT"]


def test_sizes_that_are_always_float32_are_not_cast() -> None:
    made = half(
        "g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}>"
        ' { r = Relu(x) y = Resize<mode = "nearest">(r, , s) }'
    )
    assert kinds(made)["Resize"] == ["FLOAT16"]
    assert {i.name: i.data_type for i in made.graph.initializer} == {"s": onnx.TensorProto.FLOAT}


# --- weights ---


def with_weight(body: str, rows: int, value: float) -> tuple[Any, WeightStore]:
    """A graph of `x` and a weight `w` whose data only the store has."""
    text = f"g (float[{rows},2] x, float[{rows},2] w) => (float[{rows},2] y) {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {OPSET}]>\n{text}')
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    model.graph.initializers.add(model.graph.inputs.pop())
    tensor = torch.full((rows, 2), value)
    return model, to_half(model, WeightStore().with_lazy("w", TensorSpec.of(tensor), lambda: tensor), OPSET)


def test_a_weight_is_rounded_when_read_and_kept_in_range() -> None:
    model, weights = with_weight("y = Add(x, w)", 4, -3.4e38)
    assert weights.spec("w").dtype == torch.float16
    assert weights.read("w").min() == -65504
    assert model.graph.initializers["w"].dtype.name == "FLOAT16"


def test_a_large_weight_is_stored_half_where_float32_reads_it() -> None:
    small, _ = with_weight("a = Add(x, w) y = Softmax(a)", 4, 1.0)
    large, _ = with_weight("a = Add(x, w) y = Softmax(a)", 9000, 1.0)
    assert small.graph.initializers["w"].dtype.name == "FLOAT"
    assert large.graph.initializers["w"].dtype.name == "FLOAT16"
    assert [n.op_type for n in large.graph] == ["Cast", "Add", "Softmax"]

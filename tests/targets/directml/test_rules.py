"""Every rule: a small model with the planted defect, and its repaired twin."""

from __future__ import annotations

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from planish_passes.errors import PlanishError
from planish_targets.directml import kernels
from planish_targets.directml.findings import MODEL
from planish_targets.directml.rules import NodeCheck, check, shared_buffers, summary

onnx = pytest.importorskip("onnx")

DML, CPU = "DmlExecutionProvider", "CPUExecutionProvider"


def save(folder: Path, text: str, opset: int = 21, extra: str = '"com.microsoft": 1') -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, {extra}]>\n{text}')
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def run(folder: Path, text: str, opset: int = 21, **more: Any) -> list[NodeCheck]:
    return check(save(folder, text, opset, **more))


def of(checks: list[NodeCheck], op: str) -> NodeCheck:
    (found,) = [c for c in checks if c.op == op and c.node != MODEL]
    return found


def clean(checks: list[NodeCheck]) -> bool:
    return all(c.status == "registered" and c.rule is None and c.provider == DML for c in checks)


def findings(checks: list[NodeCheck]) -> dict[str | None, str]:
    return {c.rule: c.status for c in checks if c.node == MODEL}


# --- the table ---


def test_table_is_whole_and_keeps_its_sources() -> None:
    assert sum(len(k) for k in kernels.kernels().values()) == 423
    table = json.loads(files("planish_targets.directml").joinpath("kernels.json").read_text())
    assert {k.source for ks in kernels.kernels().values() for k in ks} == set(table["sources"])
    assert max(k.since_version for (d, _), ks in kernels.kernels().items() if d == "ai.onnx" for k in ks) == 21


def test_every_constraint_of_the_table_names_a_type_parameter() -> None:
    """A constraint that names nothing could never refuse."""
    compared = 0
    for (domain, op), entries in kernels.kernels().items():
        for k in entries:
            version = k.since_version if domain == "ai.onnx" else 1
            signature = kernels.signature(domain, op, version)
            if signature and signature.since_version == k.since_version:
                compared += 1
                names = {*signature.inputs, *signature.outputs}
                assert set(k.types) <= names, (domain, op, k.since_version, set(k.types) - names)
    assert compared > 380


# --- rules 1 and 2 ---

SIN_RELU = "g (float[2] x) => (float[2] y) { s = Sin(x) y = Relu(s) }"


def test_sin_leaves_the_device_at_opset_22_and_relu_stays(tmp_path: Path) -> None:
    bad = run(tmp_path, SIN_RELU, 22)
    assert (of(bad, "Sin").provider, of(bad, "Sin").status, of(bad, "Sin").rule) == (CPU, "refused", "DML001-opset")
    assert (of(bad, "Relu").provider, of(bad, "Relu").status) == (DML, "registered")
    assert findings(bad) == {"DML001-opset": "refused"}
    assert clean(run(tmp_path, SIN_RELU, 21))


SCATTER = "g (float[4] x, int64[2,1] i, float[2] u) => (float[4] y) { y = ScatterND(x, i, u) }"


def test_a_kernel_of_another_version_does_not_match(tmp_path: Path) -> None:
    bad = of(run(tmp_path, SCATTER, 18), "ScatterND")
    assert (bad.provider, bad.status, bad.rule) == (CPU, "refused", "DML002-version")
    assert clean(run(tmp_path, SCATTER, 17))


def test_unregistered_operator(tmp_path: Path) -> None:
    bad = of(run(tmp_path, "g (float[2,2] x) => (float y) { y = Det(x) }"), "Det")
    assert (bad.provider, bad.status, bad.rule) == (CPU, "refused", "DML002-no-kernel")
    maybe = of(run(tmp_path, "g (float[2] x) => (float[2] y) { y = Gelu(x) }"), "Gelu")
    assert (maybe.provider, maybe.status, maybe.rule) == (CPU, "unknown", "DML002-no-kernel")
    good = "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
    assert clean(run(tmp_path, good))


def test_type_outside_the_kernel(tmp_path: Path) -> None:
    bad = of(run(tmp_path, "g (double[2] x) => (double[2] y) { y = Sin(x) }"), "Sin")
    assert (bad.provider, bad.status, bad.rule) == (CPU, "refused", "DML002-type")
    assert clean(run(tmp_path, "g (float16[2] x) => (float16[2] y) { y = Sin(x) }"))


def test_type_of_contrib_output_is_propagated_and_custom_one_is_unknown(tmp_path: Path) -> None:
    head = "g (double[2] x, float[2] z) => (float[2] y) "
    known = run(tmp_path, head + "{ a = com.microsoft.QuickGelu(z) b = Neg(a) y = Relu(b) }")
    assert clean(known)
    bad = run(tmp_path, head + "{ a = com.microsoft.QuickGelu(x) b = Sin(a) y = Cast<to=1>(b) }")
    assert of(bad, "com.microsoft::QuickGelu").rule == of(bad, "Sin").rule == "DML002-type"
    lost = run(tmp_path, head + "{ a = my.domain.Thing(z) b = Sin(a) y = Relu(b) }", extra='"my.domain": 1')
    assert of(lost, "my.domain::Thing").status == "refused"
    assert (of(lost, "Sin").status, of(lost, "Sin").provider) == ("unknown", CPU)


# --- rule 3 ---

BATCH = "a = Shape<start=0, end=1>(x)"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("<int64[2] s = {-1, 2}> { y = Reshape<allowzero=1>(x, s) }", "refused"),
        (f"<int64[1] m = {{-1}}> {{ {BATCH} s = Concat<axis=0>(a, m) y = Reshape<allowzero=1>(x, s) }}", "refused"),
        (f"<int64[1] m = {{2}}> {{ {BATCH} s = Concat<axis=0>(a, m) y = Reshape<allowzero=1>(x, s) }}", "registered"),
        ("{ y = Reshape<allowzero=1>(x, given) }", "unknown"),
        ("<int64[2] s = {2, 2}> { y = Reshape<allowzero=1>(x, s) }", "registered"),
        ("<int64[2] s = {-1, 2}> { y = Reshape(x, s) }", "registered"),
    ],
)
def test_allowzero_reshape(tmp_path: Path, body: str, status: str) -> None:
    found = of(run(tmp_path, f"g (float[2,2] x, int64[2] given) => (float[N,M] y) {body}"), "Reshape")
    assert found.status == status
    assert (found.rule == "DML003-reshape-allowzero") == (status != "registered")
    assert found.provider == DML


# --- rule 4 ---


def test_gather_block_quantized(tmp_path: Path) -> None:
    head = "g (uint8[4,16] t, int64[2] i, float[4,1] s) => (float[2,32] y) "
    text = head + "{ y = com.microsoft.GatherBlockQuantized(t, i, s) }"
    bad = of(run(tmp_path, text), "com.microsoft::GatherBlockQuantized")
    assert (bad.provider, bad.status, bad.rule) == (CPU, "refused", "DML004-gather-block-quantized")
    assert clean(run(tmp_path, "g (float[4,32] t, int64[2] i) => (float[2,32] y) { y = Gather(t, i) }"))


# --- rules 5, 9, 13, 14 ---


def gqa(kind: str = "float", inputs: str = "q, k, v, pk, pv, lens, total", attributes: str = "") -> str:
    cache = f"{kind}[1,2,8,4]"
    return f"""g ({kind}[1,1,8] q, {kind}[1,1,8] k, {kind}[1,1,8] v, {cache} pk, {cache} pv, int32[1] lens,
        int64[1,1] pos, {kind}[8,2] cos, {kind}[8,2] sin) => ({kind}[1,1,8] y, {cache} nk, {cache} nv)
        <int32[1] total = {{1}}> {{
        y, nk, nv = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=2{attributes}>({inputs}) }}"""


def test_group_query_attention(tmp_path: Path) -> None:
    name = "com.microsoft::GroupQueryAttention"
    good = run(tmp_path, gqa())
    assert (of(good, name).status, of(good, name).rule) == ("registered", None)
    assert findings(good) == {"DML014-io-contract": "unknown", "DML019-gqa-prompt": "unknown"}
    contract = next(c for c in good if c.rule == "DML014-io-contract")
    assert "pk = nk" in contract.reason
    assert "pv = nv" in contract.reason

    rotary = of(run(tmp_path, gqa(inputs="q, k, v, pk, pv, lens, total, cos, sin", attributes=", do_rotary=1")), name)
    assert (rotary.provider, rotary.status, rotary.rule) == (DML, "refused", "DML013-gqa-rotary")
    packed = of(run(tmp_path, gqa(inputs="q, , , pk, pv, lens, total")), name)
    assert (packed.status, packed.rule) == ("unknown", "DML009-packed-qkv")
    newer = of(run(tmp_path, gqa(inputs="q, k, v, pk, pv, lens, total, cos, sin, pos")), name)
    assert (newer.status, newer.rule, newer.provider) == ("unknown", "DML005-gqa-inputs", CPU)
    typed = of(run(tmp_path, gqa(kind="double")), name)
    assert (typed.status, typed.rule) == ("refused", "DML002-type")
    # Any int32 input will do to feed the host input from outside.
    fed = of(run(tmp_path, gqa(inputs="q, k, v, pk, pv, lens, lens")), name)
    assert (fed.status, fed.rule) == ("unknown", "DML002-cpu-input")


@pytest.mark.parametrize(
    ("attribute", "ignored"),
    [("softcap=30.0", True), ("local_window_size=8", True), ("softcap=0.0", False), ("local_window_size=-1", False)],
)
def test_attributes_that_the_attention_kernel_does_not_read(tmp_path: Path, attribute: str, ignored: bool) -> None:
    found = of(run(tmp_path, gqa(attributes=f", {attribute}")), "com.microsoft::GroupQueryAttention")
    assert (found.status, found.rule) == (("refused", "DML018-gqa-ignored") if ignored else ("registered", None))


def test_a_cache_that_is_no_port_cannot_be_shared(tmp_path: Path) -> None:
    text = (
        gqa()
        .replace("y, nk, nv = com", "ck = Identity(pk) y, nk, nv = com")
        .replace("q, k, v, pk, pv", "q, k, v, ck, pv")
    )
    found = run(tmp_path, text)
    assert ("DML014-io-contract", "refused") in {(c.rule, c.status) for c in found if c.node == MODEL}


def test_pairs_that_share_a_buffer_are_listed(tmp_path: Path) -> None:
    assert shared_buffers(save(tmp_path, gqa())) == (("pk", "nk"), ("pv", "nv"))


def test_no_io_contract_without_a_cache(tmp_path: Path) -> None:
    text = gqa(inputs="q, k, v, , , lens, total").replace("y, nk, nv = com", "nk = Neg(pk) nv = Neg(pv) y = com")
    assert findings(run(tmp_path, text)) == {}


# --- rule 6 ---


def nbits(folder: Path, attributes: str, weight: str = "UINT8", rest: str = ", z") -> Path:
    text = "g (float[1,64] x, int32[64] order, float[8] bias) => (float[1,8] y) "
    path = save(folder, text + f"{{ y = com.microsoft.MatMulNBits<N=8{attributes}>(x, w, s{rest}) }}")
    model, kinds = onnx.load(path), onnx.TensorProto
    w = onnx.helper.make_tensor("w", kinds.DataType.Value(weight), [8, 2, 16], bytes(256), raw=True)
    s = onnx.helper.make_tensor("s", kinds.FLOAT, [16], bytes(64), raw=True)
    z = onnx.helper.make_tensor("z", kinds.UINT8, [8, 1], b"\x88" * 8, raw=True)
    model.graph.initializer.extend([w, s, z])
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("attributes", "more", "status", "rule", "provider"),
    [
        (", K=64, bits=4, block_size=32", {}, "registered", None, DML),
        (", K=64, block_size=32", {}, "registered", None, DML),
        (", K=64, bits=8, block_size=32", {}, "unknown", "DML006-matmulnbits", CPU),
        (", K=60, bits=4, block_size=32", {}, "unknown", "DML006-matmulnbits", CPU),
        (", K=64, bits=4, block_size=32, accuracy_level=4", {}, "registered", "DML006-matmulnbits", DML),
        (", K=64, bits=4, block_size=32", {"rest": ", z, order"}, "refused", "DML006-matmulnbits", DML),
        (", K=64, bits=4, block_size=32", {"rest": ", z, , bias"}, "refused", "DML006-matmulnbits", DML),
        (", K=64, bits=4, block_size=32", {"rest": ""}, "unknown", "DML006-matmulnbits", DML),
        (", K=64, bits=4, block_size=32", {"weight": "INT8"}, "refused", "DML002-type", CPU),
    ],
)
def test_matmul_nbits(
    tmp_path: Path, attributes: str, more: dict[str, str], status: str, rule: str | None, provider: str
) -> None:
    found = of(check(nbits(tmp_path, attributes, **more)), "com.microsoft::MatMulNBits")
    assert (found.status, found.rule, found.provider) == (status, rule, provider), found.reason
    assert found.weight_bytes == 256 + 64 + (8 if more.get("rest", "z") else 0)


# --- rules 7, 8, 10, 11 ---


def test_fused_attention(tmp_path: Path) -> None:
    head = "g (float[1,4,8] x, float[8,24] w, float[24] b) => (float[1,4,8] y) "
    text = head + "{ y = com.microsoft.Attention<num_heads=2>(x, w, b) }"
    bad = of(run(tmp_path, text), "com.microsoft::Attention")
    assert (bad.status, bad.rule) == ("unknown", "DML007-fused-attention")


def test_symbolic_inputs_are_advised_against(tmp_path: Path) -> None:
    dynamic = run(tmp_path, "g (float[N] x) => (float[N] y) { y = Sin(x) }")
    assert findings(dynamic) == {"DML008-dynamic-shapes": "registered"}
    assert findings(run(tmp_path, "g (float[2] x) => (float[2] y) { y = Sin(x) }")) == {}


LOOP = """g (int64 n, bool c, float[2] x) => (float[2] y) {
    y = Loop(n, c, x) <body = b (int64 i, bool go, float[2] h) => (bool again, float[2] r)
        { again = Identity(go) r = Sin(h) }> }"""


def test_loop_is_refused_and_its_body_is_checked(tmp_path: Path) -> None:
    bad = run(tmp_path, LOOP, 21)
    assert (of(bad, "Loop").status, of(bad, "Loop").rule) == ("refused", "DML010-control-flow")
    body = of(bad, "Sin")
    assert body.status == "registered"
    assert "Loop_0.body/" in body.node
    assert of(run(tmp_path, LOOP, 22), "Sin").rule == "DML001-opset"
    assert clean(run(tmp_path, "g (float[2] x) => (float[2] y) { a = Sin(x) y = Sin(a) }"))


IF = """g (bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a) { a = Relu(x) },
    else_branch = e () => (float[2] b) { b = Neg(x) }> }"""


def test_if_runs_but_costs_graph_capture(tmp_path: Path) -> None:
    found = of(run(tmp_path, IF, 19), "If")
    assert (found.provider, found.status, found.rule) == (DML, "registered", "DML010-control-flow")
    revised = of(run(tmp_path, IF, 21), "If")
    assert (revised.provider, revised.status, revised.rule) == (CPU, "refused", "DML010-control-flow")


def test_internal_domain(tmp_path: Path) -> None:
    text = "g (float[2] x, float[2] z) => (float[2] y) { y = com.microsoft.dml.DmlFusedAdd(x, z) }"
    bad = run(tmp_path, text, extra='"com.microsoft.dml": 1')
    node = of(bad, "com.microsoft.dml::DmlFusedAdd")
    assert (node.provider, node.status, node.rule) == (CPU, "refused", "DML011-internal-domain")
    assert findings(bad) == {"DML011-internal-domain": "refused"}
    assert clean(run(tmp_path, "g (float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }"))


# --- rules 15, 16 ---


def test_half_precision_norm(tmp_path: Path) -> None:
    bad = "g (float16[1,8] x, float16[8] w) => (float16[1,8] y) { y = SimplifiedLayerNormalization(x, w) }"
    found = of(run(tmp_path, bad), "SimplifiedLayerNormalization")
    assert (found.provider, found.status, found.rule) == (DML, "unknown", "DML015-fp16-norm")
    good = """g (float16[1,8] x, float[8] w) => (float16[1,8] y) {
        a = Cast<to=1>(x) b = SimplifiedLayerNormalization(a, w) y = Cast<to=10>(b) }"""
    assert clean(run(tmp_path, good))
    skip = bad.replace("= SimplifiedLayerNormalization(x", "= com.microsoft.SkipSimplifiedLayerNormalization(x, x")
    assert of(run(tmp_path, skip), "com.microsoft::SkipSimplifiedLayerNormalization").rule == "DML015-fp16-norm"


@pytest.mark.parametrize(("square", "rule"), [("Mul(x, x)", "DML015-fp16-norm"), ("Mul(x, z)", None)])
def test_half_precision_norm_written_out(tmp_path: Path, square: str, rule: str | None) -> None:
    head = "g (float16[1,8] x, float16[1,8] z) => (float16[1,1] y) <int64[1] a = {-1}> "
    assert of(run(tmp_path, f"{head} {{ s = {square} y = ReduceMean(s, a) }}", 18), "ReduceMean").rule == rule


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("LayerNormalization", "x, w"),
        ("SimplifiedLayerNormalization", "x, w"),
        ("com.microsoft.SkipLayerNormalization", "x, x, w"),
        ("com.microsoft.SkipSimplifiedLayerNormalization", "x, x, w"),
    ],
)
def test_norm_outputs_that_the_support_query_turns_down(tmp_path: Path, op: str, inputs: str) -> None:
    head, name = "g (float[1,8] x, float[8] w) => (float[1,8] y", op.replace("microsoft.", "microsoft::")
    bad = of(run(tmp_path, f"{head}, float[1,1] m) {{ y, m = {op}({inputs}) }}"), name)
    assert (bad.provider, bad.status, bad.rule) == (CPU, "unknown", "DML016-support-query")
    assert clean(run(tmp_path, f"{head}) {{ y = {op}({inputs}) }}"))
    if "Skip" in op:
        assert clean(run(tmp_path, f"{head}, float[1,8] sum) {{ y, , , sum = {op}({inputs}) }}"))


# --- placement ---


def test_shape_computation_belongs_on_the_cpu(tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[A,B] y) <int64 zero = {0}, int64[1] m = {-1}, int64[1] ax = {0}> {
        s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, ax) t = Concat<axis=0>(u, m) y = Reshape(x, t) }"""
    found = run(tmp_path, text)
    for op in ("Gather", "Concat"):
        assert of(found, op).provider == CPU
        assert of(found, op).status == "registered"
        assert of(found, op).reason.startswith("shape computation")
    assert of(found, "Shape").provider == of(found, "Reshape").provider == DML
    assert of(found, "Reshape").status == "registered"


def test_a_type_without_a_kernel_is_refused_among_shape_computations_too(tmp_path: Path) -> None:
    text = "g (float[N,4] x) => (float[A,B] y) { s = Shape(x) d = Cast<to=11>(s) r = Sqrt(d) "
    text += "t = Cast<to=7>(r) y = Reshape(x, t) }"
    found = of(run(tmp_path, text), "Sqrt")
    assert (found.provider, found.status, found.rule) == (CPU, "refused", "DML002-type")


def test_host_input_computed_on_the_device_is_unknown(tmp_path: Path) -> None:
    bad = "g (float[2,2] x, float[2] d) => (float[A,B] y) { s = Cast<to=7>(d) y = Reshape(x, s) }"
    found = of(run(tmp_path, bad), "Reshape")
    assert (found.status, found.rule) == ("unknown", "DML002-cpu-input")
    good = "g (float[2,2] x) => (float[A,B] y) <float[2] d = {4, 1}> { s = Cast<to=7>(d) y = Reshape(x, s) }"
    assert of(run(tmp_path, good), "Reshape").status == "registered"


def test_weight_bytes_and_summary(tmp_path: Path) -> None:
    text = """g (float[2,2] x) => (float[2,2] y, float z) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}> {
        z = Det(w) a = MatMul(x, w) b = MatMul(a, w) c = Mul(b, b) y = Add(c, x) u = Det(v) }"""
    found = run(tmp_path, text)
    total = summary(found)
    assert (total.nodes, total.on_dml, total.on_cpu, total.refused) == (6, 4, 2, 2)
    assert total.share_nodes == pytest.approx(4 / 6)
    # `w` is shared with a CPU node and lives on the device all the same; `v` does not.
    assert total.share_bytes == pytest.approx(0.5)
    assert total.by_rule == {"DML002-no-kernel": 2}


def test_source_module_is_read_from_the_exporters_metadata(tmp_path: Path) -> None:
    path = save(tmp_path, "g (float[2] x) => (float[2] y) { a = Sin(x) b = Relu(a) y = Neg(b) }")
    model = onnx.load(path)
    scopes = "['', 'model.layers.0', 'model.layers.0.mlp', 'sin']"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    model.graph.node[1].metadata_props.add(key="namespace", value=": M/model: A/model.layers.1: B/relu: aten.relu")
    onnx.save(model, path)
    assert [c.module for c in check(path)] == ["model.layers.0.mlp", "model.layers.1", None]


# --- the file ---


def test_external_data(tmp_path: Path) -> None:
    path = save(tmp_path, "g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2, 2], bytes(16), raw=True))
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").stat().st_size == 16
    assert clean(check(path))
    assert of(check(path), "MatMul").weight_bytes == 16

    (tmp_path / "w.bin").write_bytes(b"1234")
    assert "holds 4 bytes, 16 are needed" in check(path)[0].reason
    (tmp_path / "w.bin").unlink()
    assert "is missing" in check(path)[0].reason
    (tmp_path / "w.bin").write_bytes(bytes(16))
    model = onnx.load(path, load_external_data=False)
    entries = {e.key: e for e in model.graph.initializer[0].external_data}
    entries["length"].value = "12"
    path.write_bytes(model.SerializeToString())
    assert "length 12 is not the 16 bytes" in check(path)[0].reason
    entries["length"].value, entries["location"].value = "16", "../w.bin"
    path.write_bytes(model.SerializeToString())
    assert "not a plain path" in check(path)[0].reason
    assert findings(check(path)) == {"DML017-external-data": "refused"}


def test_a_shape_in_external_data_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, "g (float[2,2] x) => (float[A,B] y) { y = Reshape<allowzero=1>(x, s) }")
    model = onnx.load(path)
    data = b"".join(v.to_bytes(8, "little", signed=True) for v in (-1, 2))
    model.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.INT64, [2], data, raw=True))
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (of(check(path), "Reshape").status, of(check(path), "Reshape").rule) == (
        "refused",
        "DML003-reshape-allowzero",
    )


def test_errors_for_people(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="no such ONNX file"):
        check(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a protobuf")
    with pytest.raises(PlanishError, match="Not a readable ONNX file"):
        check(tmp_path / "bad.onnx")


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 22, "f": 1]> g (float[2] x) => (float[2] y) { y = f.wave(x) }
        <domain: "f", opset_import: ["": 22]> wave (a) => (b) { b = Sin(a) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert of(check(tmp_path / "m.onnx"), "Sin").rule == "DML001-opset"


def test_a_thousand_nodes_take_under_two_seconds(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node(("Sin", "Relu")[i % 2], [f"v{i}"], [f"v{i + 1}"]) for i in range(1000)]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in ("v0", "v1000")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    start = time.perf_counter()
    assert len(check(tmp_path / "m.onnx")) == 1000
    assert time.perf_counter() - start < 2

"""Decoders on the DirectML target: what is written, what it promises, and every rule broken once.

Artifacts run on the CPU provider, which computes also what DirectML would not: the rules stand for the rest.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from decoders import empty, fused, prompt
from torch import Tensor

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import Outcome, run_passes
from planish_passes.interpret import interpret
from planish_passes.match import is_op
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.ranges import AnnotateRanges, Range
from planish_passes.weights import WeightFormat
from planish_targets.contract import Artifact, Recipe
from planish_targets.directml import TARGET, run
from planish_targets.directml.in_place import in_place
from planish_targets.onnx_graph.session import load, open_session
from planish_targets.serve import Call, Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = ["CPUExecutionProvider"]
FORMATS: Mapping[str, WeightFormat | None] = {
    "float": None,
    "int8": WeightFormat(8, 16),
    "int4": WeightFormat(4, 16, symmetric=False),
    "int4-symmetric": WeightFormat(4, 16),
}


@dataclass(frozen=True)
class Made:
    shared: Program
    yardstick: Program
    form: Outcome
    artifact: Artifact


def lowered(family: str, kind: str, into: Path, ranges: Mapping[str, Range] | None = None) -> Made:
    wanted = FORMATS[kind]
    recipe = Recipe(kind, wanted.bits if wanted else 0)
    shared = run_passes(fused(family).program, pipeline.quantise(wanted)).program
    numerics = TARGET.numerics(recipe)
    yardstick = run_passes(shared, pipeline.yardstick(numerics.weights, numerics.activations)).program
    order = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe))
    form = run_passes(yardstick, (AnnotateRanges(ranges or {}), *order))
    return Made(shared, yardstick, form, TARGET.lower(form.program, into, recipe))


@cache
def made(family: str, kind: str) -> Made:
    """Callers that edit the files copy the folder."""
    return lowered(family, kind, Path(mkdtemp(prefix="planish-test-")))


def graph_of(artifact: Artifact) -> Any:
    return onnx.load(artifact.path, load_external_data=False).graph


def logits(program: Program, model: Model, tokens: Tensor, cuts: tuple[int, ...]) -> Tensor:
    states, found, start = empty(program, len(tokens)), [], 0
    for length in cuts:
        places = torch.arange(start, start + length).expand(len(tokens), -1)
        result = model({"input_ids": tokens[:, start : start + length], "position_ids": places, **states})
        found.append(result["logits"])
        states, start = {into: result[out] for out, into in program.states}, start + length
    return torch.cat(found, dim=1)


def on_cpu(artifact: Artifact) -> Model:
    return load(Call(artifact.path, artifact.options, 1), CPU)


# --- what it writes ---

KERNEL = ("llama", "qwen3", "phi3", "gpt2", "stablelm")  # plain, norms of heads, one linear for three, no rotary, part
WRITTEN_OUT = ("gemma2", "gemma3")


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((f, "int4") for f in KERNEL + WRITTEN_OUT),
        *(("llama", k) for k in ("float", "int8", "int4-symmetric")),
        ("qwen2", "int8"),
    ],
)
def test_families_compute_the_yardstick_in_one_call_and_in_parts(family: str, kind: str) -> None:
    it, tokens, cuts = made(family, kind), prompt(1), (9, 5, 1, 1, 1, 7)
    truth = logits(it.yardstick, lambda f: interpret(it.yardstick, f), tokens, cuts)
    model = on_cpu(it.artifact)
    for parts in (cuts, (24,)):
        found = logits(it.yardstick, model, tokens, parts)
        assert found.dtype == torch.float32
        assert float((found - truth).norm() / truth.norm()) < 4e-3
    assert TARGET.placement(it.artifact).violations == ()


@pytest.mark.parametrize("family", KERNEL)
def test_nothing_leaves_the_device_and_caches_are_half(family: str) -> None:
    artifact = made(family, "int4").artifact
    placed = TARGET.placement(artifact)
    assert [n for n in placed.nodes if n.where == "fallback"] == []
    # Honest: the length of the cache is read on the host, and nothing has shown where DirectML puts what computes it.
    assert {n.op for n in placed.nodes if n.where == "unknown"} == {"com.microsoft::GroupQueryAttention"}
    assert artifact.options["all_on_device"] is True
    assert artifact.options["shared_buffers"] == [[past, present] for present, past in fused(family).program.states]
    assert artifact.options["new_tokens"] == ["input_ids", 1]
    graph = graph_of(artifact)
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert {types[n] for pair in artifact.options["shared_buffers"] for n in pair} == {onnx.TensorProto.FLOAT16}
    assert types["logits"] == onnx.TensorProto.FLOAT


def test_a_kernel_that_ignores_soft_caps_and_windows_is_not_used_for_any_layer() -> None:
    """gemma3 here has one layer with a window and one without."""
    it = made("gemma3", "int4")
    assert "GroupQueryAttention" not in {n.op_type for n in graph_of(it.artifact).node}
    assert "shared_buffers" not in it.artifact.options
    reasons = {r.reason for step in it.form.steps for r in step.refused}
    assert reasons == {"no GroupQueryAttention: DirectML's kernel ignores the sliding window"}
    capped = {r.reason for step in made("gemma2", "int4").form.steps for r in step.refused}
    assert "no GroupQueryAttention: DirectML's kernel ignores the soft cap" in capped


def test_a_window_that_is_never_reached_is_dropped(tmp_path: Path) -> None:
    it = made("mistral", "float")
    assert "GroupQueryAttention" not in {n.op_type for n in graph_of(it.artifact).node}
    wide = fused("mistral").program.copy()
    for node in wide.graph.nodes:
        if is_op(node, "planish.cached_attention"):
            node.update_arg(10, 256)  # positions end at 256
    order = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe("float")))
    artifact = TARGET.lower(run_passes(wide, order).program, tmp_path, Recipe("float"))
    nodes = [n for n in graph_of(artifact).node if n.op_type == "GroupQueryAttention"]
    assert len(nodes) == len(wide.states) // 2
    assert {a.name for n in nodes for a in n.attribute} == {"num_heads", "kv_num_heads", "scale"}


def test_a_tied_table_is_stored_once_and_gathered_in_packed_form() -> None:
    it = made("qwen2", "int4")
    graph = graph_of(it.artifact)
    blocks = {t.name for t in graph.initializer if t.name.endswith(".q_values.blocks")}
    (table,) = {i for n in graph.node if n.op_type == "Gather" for i in n.input} & blocks
    readers = Counter(n.op_type for n in graph.node if table in n.input)
    assert readers == {"Gather": 1, "MatMulNBits": 1}
    places = [
        tuple(e.value for e in t.external_data if e.key == "offset") for t in graph.initializer if t.external_data
    ]
    assert len(places) == len(set(places))
    assert (
        len([t for t in graph.initializer if t.dims and t.dims[0] == 128 and t.data_type == onnx.TensorProto.UINT8])
        == 2
    )


@pytest.mark.parametrize(("family", "kind"), [("llama", "int4"), ("qwen2", "int4-symmetric"), ("llama", "int8")])
def test_weights_come_back_bit_equal(family: str, kind: str) -> None:
    it = made(family, kind)
    found, truth = TARGET.read_weights(it.artifact), quantized(it.shared)
    assert found.keys() == truth.keys()
    for name, weight in truth.items():
        assert torch.equal(found[name].values, weight.values)
        assert torch.equal(found[name].scales, weight.scales)
        assert (found[name].zero_points is None) == (weight.zero_points is None)
        assert weight.zero_points is None or torch.equal(found[name].zero_points, weight.zero_points)  # type: ignore[arg-type]


def test_symmetric_weights_state_their_zero_points_once_per_shape() -> None:
    graph = graph_of(made("llama", "int4-symmetric").artifact)
    products = [n for n in graph.node if n.op_type == "MatMulNBits"]
    points = {n.input[3] for n in products}
    assert all(p.startswith("zero_points_of_8.") for p in points)
    assert len(points) < len(products)


# --- the audit ---


def test_values_that_were_seen_large_stay_float_and_are_named(tmp_path: Path) -> None:
    yardstick = made("llama", "int4").yardstick
    products = [n for n in yardstick.graph.nodes if is_op(n, "planish.linear_q")]
    large = next(n for n in products if "down_proj" in n.meta["planish_module"])
    sums = {n.name: Range(20_000.0, 700_000.0) for n in large.users}
    it = lowered("llama", "int4", tmp_path, {large.name: Range(19_000.0, 600_000.0), **sums})
    kinds = _product_types(it.artifact)
    kept = [module for module, kind in kinds.items() if kind == "FLOAT"]
    assert kept == [large.meta["planish_module"]]
    assert set(_product_types(made("llama", "int4").artifact).values()) == {"FLOAT16"}
    (note,) = [n for n in it.artifact.notes if n.startswith("float32 where values passed 16376")]
    assert f"{large.meta['planish_module']} (1.9e+04)" in note
    (norms,) = [n for n in it.artifact.notes if n.startswith("norms that float16 would overflow")]
    assert "layernorm (7e+05)" in norms
    tokens = prompt(1)
    truth = logits(it.yardstick, lambda f: interpret(it.yardstick, f), tokens, (24,))
    found = logits(it.yardstick, on_cpu(it.artifact), tokens, (24,))
    assert float((found - truth).norm() / truth.norm()) < 4e-3
    assert TARGET.placement(it.artifact).violations == ()


def _product_types(artifact: Artifact) -> dict[str, str]:
    model = onnx.load(artifact.path, load_external_data=False)
    held = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    casts = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast"}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            module = next(p.value for p in node.metadata_props if p.key == "planish.module")
            scales = casts.get(node.input[2])
            kind = onnx.TensorProto.DataType.Name(scales.attribute[0].i) if scales is not None else held[node.input[2]]
            found[module] = kind
    return found


def test_keys_that_pass_half_are_refused_by_module(tmp_path: Path) -> None:
    yardstick = made("llama", "int4").yardstick
    key = next(
        n
        for n in yardstick.graph.nodes
        if "k_proj" in n.meta.get("planish_module", "") and is_op(n, "planish.linear_q")
    )
    turned = {n.name: Range(1e5, 1e9) for n in yardstick.graph.nodes if is_op(n, "planish.rope")}
    with pytest.raises(PlanishError, match="queries, keys or values reach 1e\\+05"):
        lowered("llama", "int4", tmp_path, {key.name: Range(1e5, 1e9), **turned})


# --- every rule, broken once ---


def _first(model: Any, op: str) -> Any:
    return next(n for n in model.graph.node if n.op_type == op)


def _set(node: Any, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def _attribute(op: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: _set(_first(model, op), name, value)


def _drop_zero_points(model: Any) -> None:
    del _first(model, "MatMulNBits").input[3:]


def _pack_queries(model: Any) -> None:
    node = _first(model, "GroupQueryAttention")
    node.input[1], node.input[2] = "", ""


def _bias(model: Any) -> None:
    node = _first(model, "MatMulNBits")
    node.input.extend(["", node.input[2]])


def _gather_quantized(model: Any) -> None:
    node = _first(model, "MatMulNBits")
    made_node = onnx.helper.make_node(
        "GatherBlockQuantized", [node.input[1], "input_ids", node.input[2]], ["extra"], domain="com.microsoft"
    )
    model.graph.node.append(made_node)


def _norm_in_half(model: Any) -> None:
    norm = _first(model, "SimplifiedLayerNormalization")
    cast = next(n for n in model.graph.node if n.output[0] == norm.input[0])
    assert cast.op_type == "Cast"
    norm.input[0] = cast.input[0]


def _skip_norm_in_half(model: Any) -> None:
    norm = _first(model, "SkipSimplifiedLayerNormalization")
    cast = next(n for n in model.graph.node if n.output[0] in norm.input[:2])
    assert cast.op_type == "Cast"
    norm.input[0] = norm.input[1] = cast.input[0]


def _allowzero(model: Any) -> None:
    node = _first(model, "Reshape")
    shape = next(t for t in model.graph.initializer if t.name == node.input[1])
    sizes = onnx.numpy_helper.to_array(shape).copy()
    sizes[0] = -1
    shape.CopyFrom(onnx.numpy_helper.from_array(sizes, shape.name))
    _set(node, "allowzero", 1)


def _newer_opset(model: Any) -> None:
    next(o for o in model.opset_import if not o.domain).version = 22


def _internal(model: Any) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft.dml", 1))
    first = _first(model, "MatMulNBits").output[0]
    model.graph.node.append(onnx.helper.make_node("DmlFusedAdd", [first, first], ["extra"], domain="com.microsoft.dml"))


def _branch(model: Any) -> None:
    out = onnx.helper.make_tensor_value_info("v", onnx.TensorProto.INT64, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["input_ids"], ["v"])], "b", [], [out])
    model.graph.initializer.append(onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
    model.graph.node.append(onnx.helper.make_node("If", ["yes"], ["extra"], then_branch=body, else_branch=body))


def _fused_attention(model: Any) -> None:
    first = _first(model, "MatMulNBits").output[0]
    given = [first, "w", "b"]
    model.graph.node.append(onnx.helper.make_node("Attention", given, ["extra"], domain="com.microsoft", num_heads=2))


def _cache_behind_a_node(model: Any) -> None:
    node = _first(model, "GroupQueryAttention")
    model.graph.node.insert(0, onnx.helper.make_node("Identity", [node.input[3]], ["copied"]))
    node.input[3] = "copied"


def _extra_output(model: Any) -> None:
    _first(model, "SkipSimplifiedLayerNormalization").output[1] = "mean"


DEFECTS: Mapping[str, tuple[Callable[[Any], None], str]] = {
    "opset 22": (_newer_opset, "DML001-opset"),
    "allowzero": (_allowzero, "DML003-reshape-allowzero"),
    "quantised gather": (_gather_quantized, "DML004-gather-block-quantized"),
    "accuracy_level": (_attribute("MatMulNBits", "accuracy_level", 4), "DML006-matmulnbits"),
    "8 bits": (_attribute("MatMulNBits", "bits", 8), "DML006-matmulnbits"),
    "no zero points": (_drop_zero_points, "DML006-matmulnbits"),
    "bias": (_bias, "DML006-matmulnbits"),
    "fused attention": (_fused_attention, "DML007-fused-attention"),
    "packed": (_pack_queries, "DML009-packed-qkv"),
    "branch": (_branch, "DML010-control-flow"),
    "internal operator": (_internal, "DML011-internal-domain"),
    "rotary inside": (_attribute("GroupQueryAttention", "do_rotary", 1), "DML013-gqa-rotary"),
    "cache behind a node": (_cache_behind_a_node, "DML014-io-contract"),
    "norm in half": (_norm_in_half, "DML015-fp16-norm"),
    "sum and norm in half": (_skip_norm_in_half, "DML015-fp16-norm"),
    "mean of a norm": (_extra_output, "DML016-support-query"),
    "soft cap": (_attribute("GroupQueryAttention", "softcap", 30.0), "DML018-gqa-ignored"),
    "window": (_attribute("GroupQueryAttention", "local_window_size", 8), "DML018-gqa-ignored"),
}


@pytest.fixture
def llama(tmp_path: Path) -> Artifact:
    """An int4 llama whose files the test may damage."""
    it = made("llama", "int4").artifact
    shutil.copytree(it.folder, tmp_path / "artifact")
    return replace(it, folder=tmp_path / "artifact")


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_broken_rule_is_a_violation(llama: Artifact, defect: str) -> None:
    change, rule = DEFECTS[defect]
    assert TARGET.placement(llama).violations == ()
    model = onnx.load(llama.path, load_external_data=False)
    change(model)
    onnx.save(model, llama.path)
    assert any(v.startswith(rule) for v in TARGET.placement(llama).violations)


def test_caches_that_are_not_declared_shared_are_a_violation(llama: Artifact) -> None:
    options = {k: v for k, v in llama.options.items() if k != "shared_buffers"}
    pairs = llama.options["shared_buffers"]
    assert len(TARGET.placement(replace(llama, options=options)).violations) == len(pairs)  # type: ignore[arg-type]
    short = {**llama.options, "shared_buffers": pairs[:-1]}  # type: ignore[index]
    (missing,) = TARGET.placement(replace(llama, options=short)).violations
    assert missing.startswith(f"DML014-io-contract: {pairs[-1][1]}")  # type: ignore[index]


def test_a_loop_that_the_target_would_hand_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: kernels take the window after all."""
    monkeypatch.setattr("planish_targets.directml.composites._group_query_attention", _with_cap)
    with pytest.raises(PlanishError, match="softcap"):
        lowered("llama", "int4", tmp_path)


def _with_cap(*given: Any) -> Any:
    from planish_targets.onnx_graph.contrib import contrib

    attributes = {"num_heads": 4, "kv_num_heads": 2, "scale": 1.0, "softcap": 5.0}
    return contrib("GroupQueryAttention", list(given[:7]), attributes, outputs=3)


# --- in place ---


def test_caches_in_one_buffer_give_the_same_logits() -> None:
    it, tokens = made("llama", "int4"), prompt(1)
    call = Call(it.artifact.path, it.artifact.options, 1)
    bound = in_place(open_session(call, CPU), call, "cpu")
    cuts = (20, 1, 1, 1, 1)
    assert torch.equal(
        logits(it.yardstick, bound, tokens, cuts), logits(it.yardstick, on_cpu(it.artifact), tokens, cuts)
    )


def test_a_prompt_in_parts_is_refused_where_the_kernel_would_forget_the_first() -> None:
    it = made("llama", "int4")
    call = Call(it.artifact.path, it.artifact.options, 1)
    bound = in_place(open_session(call, CPU), call, "cpu")
    with pytest.raises(PlanishError, match="4 new tokens behind a cache of 20"):
        logits(it.yardstick, bound, prompt(1), (20, 4))


def test_on_windows_the_runner_binds_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run, "provider", lambda: run.DML)
    monkeypatch.setattr(run, "open_session", lambda *given: seen.append(given) or "session")
    monkeypatch.setattr("planish_targets.directml.in_place.in_place", lambda *given: seen.append(given))
    artifact = made("llama", "int4").artifact
    call = Call(artifact.path, artifact.options, 1)
    run.open_artifact(call)
    assert seen == [
        (call, [run.DML], {"session.disable_cpu_ep_fallback": "1"}),
        ("session", call, "dml"),
    ]

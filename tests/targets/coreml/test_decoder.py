"""Language models: caches as states, two functions that share weights, 4-bit weights, and the runner around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from decoders import fused, logits, prompt
from torch import Tensor, fx

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.program import Program, finish, op_name
from planish_passes.quantise import quantized
from planish_passes.ranges import AnnotateRanges, Range
from planish_passes.weights import WeightFormat
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Recipe, Runner
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.audit import LIMIT
from planish_targets.coreml.resident import resident
from planish_targets.coreml.run import load
from planish_targets.serve import Call, Model

pytest.importorskip("coremltools")

CONTEXT, CHUNK, CUTS = 32, 8, [11, 6, *[1] * 7]
INT4 = WeightFormat(4, 16, symmetric=False)


@dataclass(frozen=True)
class Lowered:
    """A language model on its way: yardstick with caches that grow, form that was lowered, package."""

    yardstick: Program
    form: Program
    artifact: Artifact

    def model(self, **options: object) -> Model:
        return load(Call(self.artifact.path, {**self.artifact.options, **options}, 1))


def lowered(
    family: str,
    into: Path,
    format: WeightFormat = INT4,
    last: bool = False,
    seen: Callable[[fx.Node], Range | None] | None = None,
) -> Lowered:
    shared = run_passes(fused(family).program, pipeline.quantise(format)).program
    yardstick = run_passes(shared, pipeline.yardstick(torch.float16, "none")).program
    full = yardstick
    if seen is not None:
        found = {n.name: seen(n) for n in full.graph.nodes}
        full = run_passes(full, [AnnotateRanges({name: r for name, r in found.items() if r is not None})]).program
    if last:
        full = run_passes(full, pipeline.last_token()).program
    order = (*pipeline.resident(CONTEXT), *pipeline.for_target(TARGET.capabilities.keeps, None))
    form = run_passes(full, order).program
    into.mkdir(exist_ok=True)
    return Lowered(yardstick, form, TARGET.lower(form, into, Recipe("int4", format.bits)))


def told(model: Model, tokens: Tensor, cuts: Sequence[int]) -> Tensor:
    """Logits of all calls, one behind the other."""
    found, at = [], 0
    for count in cuts:
        places = torch.arange(at, at + count)[None]
        found.append(model({"input_ids": tokens[:, at : at + count], "position_ids": places})["logits"])
        at += count
    return torch.cat(found, 1)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish_targets.coreml.target.CHUNKS", (1, CHUNK))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish_targets.coreml.target.CHUNKS", (1, CHUNK))
        return lowered("llama", tmp_path_factory.mktemp("llama"))


def test_prompt_part_and_tokens_compute_what_growing_caches_do(llama: Lowered) -> None:
    tokens = prompt(batch=1)
    truth = logits(llama.yardstick, tokens, CUTS)
    assert error(told(llama.model(), tokens, CUTS), truth) < 1e-5
    assert error(told(llama.model(precision="fp16"), tokens, CUTS), truth) < 2e-2


def test_tables_of_positions_end_with_the_caches(llama: Lowered) -> None:
    every = mil.load(llama.artifact.path, "decode").operations(constants=True)
    shapes = [o.shape for op in every if op.type == "const" for o in op.outputs if "_table_of_" in o.name]
    assert len(shapes) == 2
    assert {shape[0] for shape in shapes if shape} == {CONTEXT}


def test_advice_speaks_of_both_functions(llama: Lowered) -> None:
    placed = TARGET.placement(llama.artifact)
    assert {n.node.partition("/")[0] for n in placed.nodes} == {"decode", "prefill"}
    gathered = next(line for line in placed.advice if "gather, recurrent layers" in line)
    assert "in decode " in gathered
    assert "in prefill " in gathered
    shares = [line for line in placed.advice if line.startswith("[estimate] ")]
    assert [("of decode" in line, "of prefill" in line) for line in shares] == [(True, False), (False, True)]


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "gptj", "gpt_oss", "falcon"])
def test_other_families(family: str, tmp_path: Path) -> None:
    made, tokens = lowered(family, tmp_path), prompt(batch=1)
    assert error(told(made.model(), tokens, CUTS), logits(made.yardstick, tokens, CUTS)) < 1e-4


def test_logits_of_the_last_token_alone(tmp_path: Path) -> None:
    made, tokens = lowered("qwen2", tmp_path, last=True), prompt(batch=1)
    truth = logits(made.yardstick, tokens, CUTS)
    ends = torch.tensor(CUTS).cumsum(0) - 1
    found = told(made.model(), tokens, CUTS)
    assert found.shape == (1, len(CUTS), 128)
    assert error(found, truth[:, ends]) < 1e-5


def test_a_second_text_sees_nothing_of_the_first(llama: Lowered) -> None:
    model, tokens = llama.model(), prompt(batch=1)
    told(model, tokens.flip(1), [24])
    assert error(told(model, tokens, CUTS), logits(llama.yardstick, tokens, CUTS)) < 1e-5


def test_ports_and_states(llama: Lowered) -> None:
    options, described = llama.artifact.options, TARGET.inspect(llama.artifact.path)
    assert llama.artifact.context == CONTEXT
    assert (options["inputs"], options["outputs"]) == (["input_ids", "position_ids"], ["logits"])
    assert options["functions"] == {"decode": 1, "prefill": CHUNK}
    assert described is not None
    assert described["functions"] == ["decode", "prefill"]
    for name, count in (("decode", 1), ("prefill", CHUNK)):
        program = mil.load(llama.artifact.path, name)
        assert [(p.name, p.shape) for p in program.inputs] == [("input_ids", (1, count)), ("position_ids", (1, count))]
        caches = {f"past_key_values_{n}_{kind}" for n in range(2) for kind in ("key", "value")}
        assert {p.name: (p.shape, p.dtype) for p in program.states} == dict.fromkeys(
            caches, ((1, 2, CONTEXT, 8), torch.float16)
        )


def test_every_constant_is_stored_once_for_both_functions(llama: Lowered) -> None:
    def places(name: str) -> set[tuple[str, int]]:
        block = mil.load(llama.artifact.path, name).function.block
        stored = (b for o in block.walk() for given in o.inputs.values() for b in given)
        return {(b.file.path.name, b.offset) for b in stored if isinstance(b, mil.graph.Stored)}

    decode, prefill = places("decode"), places("prefill")
    weights = len(quantized(llama.form))
    assert len(decode & prefill) >= 3 * weights
    assert len(prefill - decode) <= 2  # shapes


def test_a_tied_table_and_head_are_one_weight(tmp_path: Path) -> None:
    made = lowered("qwen2", tmp_path)
    tied = [n for n in made.form.graph.nodes if op_name(n) == "planish.embedding_q"]
    assert len(tied) == 1
    stored = mil.load(made.artifact.path, "decode").quantized_weights()
    assert sum(w.shape == (128, 32) for w in stored.values()) == 1


@pytest.mark.parametrize(
    "format", [INT4, WeightFormat(4, 16), WeightFormat(8, 32), WeightFormat(8, 16, False)], ids=str
)
def test_integers_in_the_file_are_the_program_s(format: WeightFormat, tmp_path: Path) -> None:
    made = lowered("gpt2", tmp_path, format)
    stored, expected = TARGET.read_weights(made.artifact), quantized(made.form)
    assert set(stored) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(stored[name].values, weight.values), name
        assert torch.equal(stored[name].scales, weight.scales), name
        assert stored[name].format == weight.format
        assert (weight.zero_points is None) == format.symmetric
        if weight.zero_points is not None:
            zeros = stored[name].zero_points
            assert zeros is not None
            assert torch.equal(zeros, weight.zero_points), name


def test_four_bits_take_half_a_byte(llama: Lowered) -> None:
    described = TARGET.inspect(llama.artifact.path)
    assert described is not None
    dtypes = described["dtypes"]
    assert isinstance(dtypes, dict)
    assert dtypes["int4"] == sum(w.values.numel() for w in quantized(llama.form).values()) // 2
    assert "int8" not in dtypes


def test_norms_are_fp32_unless_the_audit_shows_that_fp16_holds_them(tmp_path: Path) -> None:
    def wide(made: Lowered) -> set[str]:
        found = mil.load(made.artifact.path, "decode").operations()
        return {o.type for o in found if o.outputs and o.outputs[0].dtype == "fp32"}

    calm = lowered("llama", tmp_path / "calm", seen=lambda node: Range(5.0, 1.0))
    unknown = lowered("llama", tmp_path / "unknown")
    assert {"reduce_mean", "rsqrt"} <= wide(unknown)
    assert wide(calm) == {"cast"}  # the logits


def test_large_values_stay_fp32_and_are_named(tmp_path: Path) -> None:
    sums = [n.name for n in fused("llama").program.graph.nodes if op_name(n) == "aten.add"]
    made = lowered("llama", tmp_path, seen=lambda n: Range(2 * LIMIT, LIMIT**2) if n.name in sums else None)
    found = [o for o in mil.load(made.artifact.path, "decode").operations() if o.type == "add"]
    wide = {o.output.rpartition("__")[0] for o in found if o.outputs[0].dtype == "fp32"}
    assert set(sums) <= wide
    assert any("fp32 where values passed" in note and "model.layers.0" in note for note in made.artifact.notes)
    assert any("norms that fp16 would overflow" in note for note in made.artifact.notes)
    tokens = prompt(batch=1)
    assert error(told(made.model(), tokens, CUTS), logits(made.yardstick, tokens, CUTS)) < 1e-5


def test_runner_keeps_states_over_the_cases_of_one_process(llama: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    runner = TARGET.runner(llama.artifact)
    assert isinstance(runner, Runner)
    tokens = prompt(batch=1)
    cases = {
        "prompt": {"input_ids": tokens[:, :11], "position_ids": torch.arange(11)[None]},
        "token": {"input_ids": tokens[:, 11:12], "position_ids": torch.tensor([[11]])},
    }
    ran = protocol.run(runner, llama.artifact, cases, repeat=2, timeout=120)
    assert isinstance(ran, protocol.Ran), ran
    truth = logits(llama.yardstick, tokens[:, :12], [11, 1])
    assert error(ran.outputs["token"]["logits"], truth[:, 11:]) < 1e-5


def test_a_state_of_another_kind_is_refused(llama: Lowered, tmp_path: Path) -> None:
    form = llama.form.copy()
    write = next(n for n in form.graph.nodes if op_name(n) == "planish.resident_attention")
    key = next(u for u in write.users if u.args[1] == 1)
    with form.graph.inserting_after(key):
        doubled = form.graph.call_function(torch.ops.aten.mul.Tensor, (key, 2.0))
    doubled.meta = dict(key.meta)
    form.graph.output_node().replace_input_with(key, doubled)
    form = finish(form)
    with pytest.raises(PlanishError, match="next call's state"):
        TARGET.lower(form, tmp_path, Recipe("int4", 4))


class Parts:
    """Records what a function of the package would be given."""

    def __init__(self, every: bool) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.model = resident(partial(self.one), {"decode": 1, "prefill": 8}, 20, every)
        self.every = every

    def one(self, name: str, feed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        places = feed["position_ids"]
        assert places.max() < 20
        self.calls.append((name, int(places[0, 0]), places.shape[1]))
        rows = feed["input_ids"].float()[..., None]
        return {"logits": rows if self.every else rows[:, -1:]}

    def run(self, first: int, count: int) -> Tensor:
        tokens = torch.arange(first, first + count)[None]
        return self.model({"input_ids": tokens, "position_ids": tokens, "past_key_values.0.key": torch.ones(1)})[
            "logits"
        ]


@pytest.mark.parametrize("every", [True, False], ids=["all", "last"])
@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 8), (3, 2), (0, 11), (5, 15), (17, 3), (11, 9), (0, 20)])
def test_texts_of_any_length_in_fixed_calls(first: int, count: int, every: bool) -> None:
    parts = Parts(every)
    want = torch.arange(first, first + count) if every else torch.tensor([first + count - 1])
    assert torch.equal(parts.run(first, count)[0, :, 0].long(), want)
    assert len(parts.calls) <= 2 + count // 8 + 8 * (first + count > 12)


def test_padding_never_goes_beyond_the_end_of_the_caches() -> None:
    parts = Parts(every=True)
    parts.run(14, 6)
    assert parts.calls == [("decode", 14 + n, 1) for n in range(6)]


@pytest.mark.parametrize("slots", [[0, 2], [3, 3], [19, 20], [-1, 0]])
def test_places_that_the_caches_do_not_have_are_refused(slots: list[int]) -> None:
    with pytest.raises(PlanishError, match="position_ids"):
        Parts(True).model({"input_ids": torch.tensor([[1, 1]]), "position_ids": torch.tensor([slots])})


def test_decompressed_weights_are_kept_between_runs(llama: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish_targets.coreml.mil.ops import OPS

    asked, plain = [0], OPS["constexpr_blockwise_shift_scale"]

    def counted(**given: Tensor) -> Tensor | tuple[Tensor, ...]:
        asked[0] += 1
        return plain(**given)

    monkeypatch.setitem(OPS, "constexpr_blockwise_shift_scale", counted)
    model, tokens, weights = llama.model(), prompt(batch=1), len(quantized(llama.form))
    told(model, tokens, CUTS)
    assert asked[0] == weights
    program = mil.load(llama.artifact.path, "decode", mil.Decoded(budget=0))
    for run in (1, 2):
        program.run({"input_ids": tokens[:, :1], "position_ids": torch.tensor([[0]])})
        assert asked[0] == weights + run * weights

"""The Core ML target: lowering against the yardstick, integers in the file, refusals, advice.

Packages run in the MIL interpreter, in this process; one test goes through the runner's own process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import Pass, run_passes
from planish_passes.interpret import interpret
from planish_passes.ops import attention
from planish_passes.program import Port, Program
from planish_passes.quantise import quantized
from planish_passes.weights import QuantizedTensor, TensorSpec, WeightFormat, WeightStore
from planish_targets import runner as protocol
from planish_targets.contract import Artifact, Evidence, Recipe, Runner, Unavailable
from planish_targets.coreml import TARGET, mil
from planish_targets.coreml.rules import RULES
from planish_targets.coreml.run import load
from planish_targets.serve import Call

pytest.importorskip("coremltools")

FLOAT, INT8 = Recipe("float"), Recipe("int8", 8)
SEQUENCE = 12


@dataclass(frozen=True)
class Lowered:
    """A program on its way: yardstick, the form that was lowered, and the package."""

    yardstick: Program
    program: Program
    artifact: Artifact

    def run(self, feed: Mapping[str, Tensor], precision: str = "fp32") -> dict[str, Tensor]:
        return mil.load(self.artifact.path).run(feed, precision=precision)  # type: ignore[arg-type]


def _shared(recipe: Recipe) -> tuple[Pass, ...]:
    return (*pipeline.fuse(), *pipeline.quantise(WeightFormat(8) if recipe.bits else None))


def lowered(shared: Program, recipe: Recipe, into: Path, sizes: Mapping[str, int] | None = None) -> Lowered:
    numerics = TARGET.numerics(recipe)
    yardstick = run_passes(shared, pipeline.yardstick(numerics.weights, numerics.activations)).program
    order = (*pipeline.for_target(TARGET.capabilities.keeps, sizes), *TARGET.passes(recipe))
    program = run_passes(yardstick, order).program
    into.mkdir(parents=True, exist_ok=True)
    return Lowered(yardstick, program, TARGET.lower(program, into, recipe))


def exported(module: nn.Module, inputs: Mapping[str, Tensor]) -> Program:
    """A program of fixed shapes from any module; every result is an output."""
    with torch.no_grad():
        ep = torch.export.export(module.eval(), tuple(inputs.values()))
    store = WeightStore()
    tensors = {**ep.state_dict, **ep.constants}
    for spec in ep.graph_signature.input_specs:
        if spec.target is not None:
            value = tensors[spec.target].detach()
            store = store.with_lazy(spec.target, TensorSpec.of(value), lambda value=value: value, (spec.target,))
    values = [n.meta["val"] for n in ep.graph.output_node().args[0]]  # type: ignore[union-attr]
    outputs = tuple(Port(f"out_{i}", v.dtype, tuple(v.shape)) for i, v in enumerate(values))
    ports = tuple(Port(name, t.dtype, tuple(t.shape)) for name, t in inputs.items())
    return run_passes(Program("f", ep, store, ports, outputs), pipeline.fuse()).program


class Function(nn.Module):
    def __init__(self, body: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.body = body

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.body(*tensors)


def agree(have: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    assert list(have) == list(want)
    for name, expected in want.items():
        error = (have[name].to(torch.float64) - expected.to(torch.float64)).abs().max()
        assert error <= tolerance * max(1.0, float(expected.to(torch.float64).abs().max())), f"{name}: {error}"


@pytest.fixture(scope="module")
def shared_bert() -> Callable[[Recipe], Program]:
    from transformers import AutoModel, BertConfig

    from planish.capture import capture
    from planish.tasks import TASKS

    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    state = model.state_dict()

    def store(built: nn.Module) -> WeightStore:
        made = WeightStore()
        for name, tensor in built.state_dict(keep_vars=True).items():
            made = made.with_lazy(name, TensorSpec.of(tensor), lambda name=name: state[name], (name,))
        return made

    captured = capture(AutoModel, config, TASKS["feature-extraction"], store).program
    return lambda recipe: run_passes(captured, _shared(recipe)).program


@pytest.fixture(scope="module", params=[FLOAT, INT8], ids=["float", "int8"])
def bert(
    request: pytest.FixtureRequest, shared_bert: Callable[[Recipe], Program], tmp_path_factory: pytest.TempPathFactory
) -> Lowered:
    recipe: Recipe = request.param
    into = tmp_path_factory.mktemp(recipe.name)
    return lowered(shared_bert(recipe), recipe, into, {"batch": 1, "sequence": SEQUENCE})


@pytest.fixture(scope="module")
def int8(shared_bert: Callable[[Recipe], Program], tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return lowered(shared_bert(INT8), INT8, tmp_path_factory.mktemp("int8"), {"batch": 1, "sequence": SEQUENCE})


@pytest.fixture
def ids() -> dict[str, Tensor]:
    mask = torch.ones(1, SEQUENCE, dtype=torch.int64)
    mask[:, -4:] = 0
    feed = {"input_ids": torch.randint(0, 100, (1, SEQUENCE)), "attention_mask": mask}
    return feed | {"token_type_ids": torch.randint(0, 2, (1, SEQUENCE))}


def test_package_computes_what_the_yardstick_computes(bert: Lowered, ids: dict[str, Tensor]) -> None:
    agree(bert.run(ids), interpret(bert.yardstick, ids), 1e-5)
    agree(bert.run(ids, "fp16"), interpret(bert.yardstick, ids), 1e-2)


def test_ports_are_int32_in_and_float32_out(bert: Lowered) -> None:
    described = TARGET.inspect(bert.artifact.path)
    assert described is not None
    assert described["inputs"] == [
        {"name": name, "shape": [1, SEQUENCE], "dtype": "int32"}
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert described["outputs"] == [{"name": "last_hidden_state", "shape": [1, SEQUENCE, 32], "dtype": "float32"}]
    assert described["bytes"] == bert.artifact.nbytes()


def test_every_float_operation_is_fp16_but_the_last_cast(bert: Lowered) -> None:
    wide = [o for o in mil.load(bert.artifact.path).operations() if o.outputs[0].dtype == "fp32"]
    assert [o.type for o in wide] == ["cast"]
    assert wide[0].outputs[0].name == "last_hidden_state"


def test_epsilon_below_fp16_is_noted(bert: Lowered) -> None:
    assert any("1e-12" in note for note in bert.artifact.notes)


def test_integers_and_scales_in_the_file_are_the_program_s(int8: Lowered) -> None:
    stored, expected = TARGET.read_weights(int8.artifact), quantized(int8.program)
    assert set(stored) == set(expected)
    assert len(stored) == 15
    for name, weight in expected.items():
        assert same(stored[name], weight), name
        assert stored[name].format == weight.format


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    return torch.equal(a.values, b.values) and a.values.dtype == b.values.dtype and torch.equal(a.scales, b.scales)


def test_quantised_weights_take_one_byte_each(int8: Lowered) -> None:
    described = TARGET.inspect(int8.artifact.path)
    assert described is not None
    dtypes = described["dtypes"]
    assert isinstance(dtypes, dict)
    assert dtypes["int8"] == sum(w.values.numel() for w in quantized(int8.program).values())
    assert dtypes["fp16"] < dtypes["int8"] / 4


@pytest.fixture
def damaged(int8: Lowered, tmp_path: Path) -> tuple[Artifact, Path]:
    """A copy of the int8 package and its weight file."""
    folder = tmp_path / "copy"
    shutil.copytree(int8.artifact.folder, folder)
    artifact = replace(int8.artifact, folder=folder)
    return artifact, artifact.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


NAME = "encoder.layer.0.intermediate.dense.weight"


def test_a_flipped_integer_is_seen(int8: Lowered, damaged: tuple[Artifact, Path]) -> None:
    artifact, file = damaged
    weight, raw = quantized(int8.program)[NAME], bytearray(file.read_bytes())
    at = raw.find(weight.values.numpy().tobytes())
    raw[at + 7] ^= 1
    file.write_bytes(raw)
    stored = TARGET.read_weights(artifact)[NAME]
    assert int((stored.values != weight.values).sum()) == 1
    assert torch.equal(stored.scales, weight.scales)


def test_swapped_scales_are_seen(int8: Lowered, damaged: tuple[Artifact, Path]) -> None:
    artifact, file = damaged
    weight, raw = quantized(int8.program)[NAME], bytearray(file.read_bytes())
    at = raw.find(weight.scales.to(torch.float16).numpy().tobytes())
    assert weight.scales[0] != weight.scales[1]
    raw[at : at + 2], raw[at + 2 : at + 4] = raw[at + 2 : at + 4], raw[at : at + 2]
    file.write_bytes(raw)
    assert not same(TARGET.read_weights(artifact)[NAME], weight)


def test_truncated_weights_are_refused(damaged: tuple[Artifact, Path]) -> None:
    artifact, file = damaged
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(mil.CorruptPackage):
        TARGET.read_weights(artifact)


def test_runner_runs_in_its_own_process(int8: Lowered, ids: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    runner = TARGET.runner(int8.artifact)
    assert isinstance(runner, Runner)
    assert runner.evidence is Evidence.EMULATED
    ran = protocol.run(runner, int8.artifact, {"case": ids}, repeat=2, timeout=120)
    assert isinstance(ran, protocol.Ran), ran
    agree(ran.outputs["case"], int8.run(ids), 1e-6)
    assert "MIL interpreter" in str(ran.device["device"])
    assert len(ran.seconds("case")) == 2


def test_runner_refuses_an_unknown_precision(int8: Lowered) -> None:
    with pytest.raises(PlanishError, match="fp64"):
        load(Call(int8.artifact.path, {"precision": "fp64"}, 1))


def test_no_runner_without_coremltools(int8: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish_targets.coreml.target.find_spec", lambda name: None)
    found = TARGET.runner(int8.artifact)
    assert isinstance(found, Unavailable)
    assert "pip install" in found.reason


def test_macos_runs_core_ml_itself(int8: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    runner = TARGET.runner(int8.artifact)
    assert isinstance(runner, Runner)
    assert runner.evidence is Evidence.EXECUTED
    assert "--native" in runner.command


def test_placement_claims_nothing_and_knows_the_modules(int8: Lowered) -> None:
    placed = TARGET.placement(int8.artifact)
    assert {n.where for n in placed.nodes} == {"unknown"}
    assert placed.share() == 0
    assert not placed.violations
    linear = next(n for n in placed.nodes if n.op == "linear")
    assert linear.module == "encoder.layer.0.attention.self.query"
    softmaxes = {n.module for n in placed.nodes if n.op == "softmax"}
    assert softmaxes == {"encoder.layer.0.attention.self", "encoder.layer.1.attention.self"}


def test_each_rule_gives_one_line_with_its_grade(int8: Lowered) -> None:
    advice = TARGET.placement(int8.artifact).advice
    *lines, share = advice
    assert len(lines) == len(RULES)
    assert all(line.startswith(("[S] ", "[C] ")) for line in lines)
    assert share.startswith("[estimate] 100.0 % of the ")
    assert "says nothing about placement" in share
    about = {rule.source: line for rule, line in zip(RULES, lines, strict=True)}
    assert "concerns embedding_q_default" in about["github.com/hollance/neural-engine"]
    assert "concerns nothing here" in about["github.com/apple/coremltools/issues/1764"]


def test_wide_tables_and_fp32_operations_are_advised(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20000, 2)

        def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
            return (self.table(ids) * 70000.0,)  # finite, beyond fp16

    made = lowered(exported(Wide(), {"ids": torch.tensor([[1, 2]])}), FLOAT, tmp_path)
    lines = TARGET.placement(made.artifact).advice
    assert any("dimensions above 16384" in line and "[20000, 2]" in line for line in lines)


def test_dilated_convolutions_are_advised(tmp_path: Path) -> None:
    for dilation, about in ((1, "concerns nothing here"), (2, "concerns conv2d")):
        (into := tmp_path / str(dilation)).mkdir()
        layer = nn.Conv2d(4, 8, 3, dilation=dilation)
        lines = TARGET.placement(lowered(exported(layer, {"x": torch.zeros(1, 4, 9, 9)}), FLOAT, into).artifact).advice
        (line,) = (n for n in lines if "dilated convolutions" in n)
        assert about in line


def test_work_that_a_rule_speaks_about_is_not_counted_as_staying(tmp_path: Path) -> None:
    made = lowered(exported(nn.Sequential(nn.Linear(4, 16400)), {"x": torch.zeros(1, 4)}), FLOAT, tmp_path)
    assert TARGET.placement(made.artifact).advice[-1].startswith("[estimate] 0.0 % of the 0.1312 million ")


def test_the_work_of_a_linear_and_a_convolution_is_counted(tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.linear(self.conv(x)),)

    made = lowered(exported(Layers(), {"x": torch.zeros(1, 4, 16, 16)}), FLOAT, tmp_path)
    flops = 2 * 8 * 16 * 16 * 4 * 9 + 2 * 8 * 16 * 10 * 16
    assert f" of the {flops / 1e6:.6g} million " in TARGET.placement(made.artifact).advice[-1]


def test_lowering_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lowered(exported(Function(lambda x: (x + 1,)), {"x": torch.zeros(2, 3)}), FLOAT, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_operator_without_a_form_is_refused_by_name(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Function(lambda x: (torch.linalg.qr(x)[0],))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.head(x)  # type: ignore[no-any-return]

    with pytest.raises(PlanishError) as caught:
        lowered(exported(Outer(), {"x": torch.rand(3, 3)}), FLOAT, tmp_path)
    assert "linalg_qr" in caught.value.what
    assert "head" in caught.value.where
    assert "emitter" in caught.value.hint


def test_an_open_batch_is_refused(shared_bert: Callable[[Recipe], Program], tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="dimensions batch are dynamic"):
        TARGET.lower(shared_bert(FLOAT), tmp_path, FLOAT)


def test_a_row_that_may_attend_to_nothing_stays_finite(tmp_path: Path) -> None:
    def body(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        return (torch.ops.planish.attention(q, k, v, keep.to(torch.bool), None, None, 0.25, 0.0),)

    feed = {name: torch.randn(1, 2, 4, 8) for name in "qkv"} | {"keep": torch.ones(1, 1, 4, 4, dtype=torch.int64)}
    feed["keep"][:, :, 2] = 0
    made = lowered(exported(Function(body), feed), FLOAT, tmp_path)
    want = {"out_0": attention(feed["q"], feed["k"], feed["v"], feed["keep"].bool(), None, None, 0.25, 0.0)}
    agree(made.run(feed), want, 1e-4)
    agree(made.run(feed, "fp16"), want, 2e-3)


def test_attention_with_shared_heads_softcap_bias_and_sinks(tmp_path: Path) -> None:
    def body(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor) -> tuple[Tensor, ...]:
        call = torch.ops.planish.attention
        return call(q, k, v, None, bias, None, 0.25, 5.0), call(q, k, v, None, None, sinks, 0.25, 0.0)

    feed = {"q": torch.randn(2, 4, 3, 8), "k": torch.randn(2, 2, 5, 8), "v": torch.randn(2, 2, 5, 6)}
    feed |= {"bias": torch.randn(1, 4, 3, 5), "sinks": torch.randn(4)}
    made = lowered(exported(Function(body), feed), FLOAT, tmp_path)
    # scale / softcap is a constant that fp16 rounds
    agree(made.run(feed), dict(zip(("out_0", "out_1"), body(*feed.values()), strict=True)), 2e-4)


def _moves(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    rows = torch.tensor([[0], [2]])
    return (
        x[:, ::2],
        x[:, -2:, 1],
        x[:, [0, -1]],
        x[rows, torch.tensor([1, 3])],
        x.flip(-1),  # coremltools' own converter
        x.permute(2, 0, 1).reshape(5, -1),
        x.transpose(0, -1).contiguous(),
        torch.cat([x, x[:, :1]], dim=1),
        torch.stack([x, 2 * x], dim=-1),
        x.unsqueeze(1).expand(-1, 2, -1, -1),
        x.repeat(2, 1, 3),
        *x.split([1, 3], dim=1),
        *x.chunk(2, dim=-1),
        x.unbind(1)[3],
        F.pad(x, (1, 2, 0, 1), value=0.5),
        F.pad(x, (1, 1), mode="reflect"),
        torch.gather(x, 2, ids.abs()),
        x.index_select(1, ids[0, 0].abs()),
        x[ids[:, 0, 0]],  # negative at run time
    )


def _numbers(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    keep = x > 0.3
    return (
        torch.add(x, y, alpha=2) - 1,
        torch.sub(x, y, alpha=0.5),
        x / (y.abs() + 1) // 0.25,
        2 ** (x * 0.5) + x**2,
        torch.where(keep, x, -float("inf")).softmax(-1),
        torch.where(keep[:, :1], x.amax(), torch.zeros(())),
        x.masked_fill(keep & (y < 0), torch.finfo(torch.float32).min).clamp(min=-3),
        (keep ^ (y <= 0.1)).to(torch.int64).cumsum(-1),
        (~keep | (x == y)).float(),
        (keep * (y > 0)).to(torch.int32),
        x.clamp(-0.5, 0.5) + F.relu6(6 * x) + F.hardtanh(x),
        F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.hardswish(x),
        x.mean(-1, keepdim=True) + x.sum((0, 1)) + x.amin(),
        x.abs().rsqrt() + x.abs().log() + x.reciprocal(),  # two of them: coremltools' own converters
        x.var(-1),
        -x.sigmoid().tanh().exp().sqrt().sin().cos().erf(),
        (x * 3).round() + (x * 3).floor() + (x * 3).ceil() + x.sign(),
    )


@pytest.mark.parametrize(
    ("body", "feed"),
    [
        (_moves, {"x": torch.randn(3, 4, 5), "ids": torch.randint(-3, 0, (3, 4, 5))}),
        (_numbers, {"x": torch.rand(2, 3, 4) + 0.01, "y": torch.randn(2, 3, 4)}),
    ],
    ids=["moves", "numbers"],
)
def test_operators_against_torch(
    body: Callable[..., tuple[Tensor, ...]], feed: dict[str, Tensor], tmp_path: Path
) -> None:
    made = lowered(exported(Function(body), feed), FLOAT, tmp_path)
    agree(made.run(feed), {f"out_{i}": t for i, t in enumerate(body(*feed.values()))}, 2e-3)


def test_layers_against_torch(tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2)
            self.norm = nn.BatchNorm2d(6)
            self.line = nn.Conv1d(6, 4, 3, padding="same", bias=False)
            self.weight = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.norm(self.conv(x))
            pooled = F.max_pool2d(y, 3, 2, 1) + F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
            flat = self.line(y.flatten(2)).mean(-1)
            computed = F.linear(flat, self.weight * flat.mean(), torch.ones(5))
            return pooled, F.adaptive_avg_pool2d(y, 1), computed, F.layer_norm(flat, (4,))

    torch.manual_seed(0)
    module = Layers().eval()
    module.norm.running_mean = torch.randn(6)
    module.norm.running_var = torch.rand(6) + 0.5
    feed = {"x": torch.randn(1, 4, 9, 9)}
    made = lowered(exported(module, feed), FLOAT, tmp_path)
    agree(made.run(feed), interpret(made.yardstick, feed), 1e-4)

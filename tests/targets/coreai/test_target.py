"""Lowering, running, reading back and planted defects, on one small network with everything an encoder has."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from support import program_of
from torch import Tensor, nn
from torch.nn import functional as F

from planish.verdict import Passed
from planish.verify.weights import check_artifact_weights
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.palette import PaletteFormat, palettes
from planish_passes.program import Program
from planish_passes.quantise import MINIMA, SCALES, VALUES, quantized
from planish_passes.weights import QuantizedTensor, WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Recipe, Unavailable
from planish_targets.coreai import TARGET, sdk
from planish_targets.coreai.asset import HASH, PROGRAM, open_asset
from planish_targets.coreai.resources import resources

for package in ("coreai", "coreai_torch"):
    pytest.importorskip(package, reason="needs pip install 'planish[coreai]'")

FORMATS = {
    "float": None,
    "int8": WeightFormat(8),
    "int4": WeightFormat(4, 16, symmetric=False),
    "symmetric4": WeightFormat(4),
}
ATTENTION = torch.ops.planish.attention


class Encoder(nn.Module):
    """Embedding, masked attention, layer norm, both forms of GELU."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(100, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (p(x).view(1, 6, 2, 16).transpose(1, 2) for p in (self.query, self.key, self.value))
        attended = ATTENTION(q, k, v, mask.bool()[:, None, None], None, None, 16**-0.5, 0.0)
        x = self.norm(x + attended.reshape(1, 6, 32))
        return self.norm(x + self.down(F.gelu(F.gelu(self.up(x)), approximate="tanh")))  # type: ignore[no-any-return]


FEED = {"x0": torch.tensor([[3, 1, 4, 1, 5, 9]]), "x1": torch.tensor([[1, 1, 1, 1, 0, 0]])}


def prepared(
    module: nn.Module, examples: tuple[Tensor, ...], recipe: str, palette: Mapping[str, PaletteFormat] | None = None
) -> tuple[Program, Program]:
    """Yardstick, and the form to lower."""
    fused = run_passes(program_of(module, *examples), pipeline.fuse()).program
    if palette:
        fused = run_passes(fused, pipeline.palettise(palette)).program
    yardstick = run_passes(fused, pipeline.quantise(FORMATS[recipe])).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe(recipe)))
    return yardstick, run_passes(yardstick, rest).program


@cache
def made(recipe: str) -> tuple[Program, Program, Artifact]:
    yardstick, program = prepared(Encoder(), tuple(FEED.values()), recipe)
    return yardstick, program, TARGET.lower(program, Path(mkdtemp(prefix="planish-test-")), Recipe(recipe))


def run(artifact: Artifact, feed: dict[str, Tensor] = FEED) -> runner.Ran | runner.Broke:
    command = TARGET.runner(artifact)
    assert not isinstance(command, Unavailable)
    return runner.run(command, artifact, {"case": feed}, repeat=2)


def error(artifact: Artifact, yardstick: Program) -> float:
    ran = run(artifact)
    assert isinstance(ran, runner.Ran), ran
    assert ran.evidence is Evidence.EXECUTED
    truth = interpret(yardstick, FEED)
    return max(float((ran.outputs["case"][n] - t).abs().max() / t.abs().max()) for n, t in truth.items())


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    zeros, others = a.zero_points, b.zero_points
    equal = zeros is others if zeros is None or others is None else torch.equal(zeros, others)
    return equal and torch.equal(a.values, b.values) and torch.equal(a.scales, b.scales) and a.format == b.format


@pytest.mark.parametrize("recipe", FORMATS)
def test_the_runtime_computes_the_yardstick_with_our_integers(recipe: str) -> None:
    yardstick, _, artifact = made(recipe)
    assert error(artifact, yardstick) < 2e-6
    found, truth = TARGET.read_weights(artifact), quantized(yardstick)
    assert len(truth) == (6 if FORMATS[recipe] else 0)
    assert found.keys() == truth.keys()
    assert all(same(found[name], truth[name]) for name in truth)


def test_four_bits_take_four_bits() -> None:
    sizes = {r: made(r)[2].nbytes() for r in ("float", "int8", "int4")}
    weights = sum(t.values.numel() for t in quantized(made("int8")[0]).values())
    assert sizes["float"] - sizes["int8"] > 2.4 * weights
    assert sizes["int8"] - sizes["int4"] > 0.1 * weights  # scales and zero points of groups take the rest


def test_palettes_come_back_bit_equal(tmp_path: Path) -> None:
    formats = {
        "up.weight": PaletteFormat(4, 16),
        "down.weight": PaletteFormat(6, 32),
        "key.weight": PaletteFormat(4, 8),
    }
    yardstick, program = prepared(Encoder(), tuple(FEED.values()), "int8", formats)
    artifact = TARGET.lower(program, tmp_path, Recipe("lut4"))
    assert error(artifact, yardstick) < 2e-6
    found, truth = TARGET.read_palettes(artifact), palettes(yardstick)
    assert set(truth) == set(formats)
    assert found.keys() == truth.keys()
    for name, palette in truth.items():
        assert torch.equal(found[name].indices, palette.indices)
        assert torch.equal(found[name].tables, palette.tables)
    assert TARGET.read_weights(artifact).keys() == quantized(yardstick).keys()


def test_minima_of_kept_blocks_come_back(tmp_path: Path) -> None:
    """As recipe keep has them for Q4_1: w = q * scale + minimum, in groups of 32."""
    program, format = run_passes(program_of(Encoder(), *FEED.values()), pipeline.fuse()).program, WeightFormat(4, 32)
    random = torch.Generator().manual_seed(0)
    store, shapes = program.weights, {"up.weight": (64, 32), "words.weight": (100, 32)}
    for name, (rows, columns) in shapes.items():
        store = store.with_tensor(
            name + VALUES, torch.randint(-8, 8, (rows, columns), dtype=torch.int8, generator=random)
        )
        store = store.with_tensor(name + SCALES, torch.rand(rows, columns // 32, generator=random) + 0.5)
        store = store.with_tensor(name + MINIMA, torch.randn(rows, columns // 32, generator=random))
    kept = pipeline.keep(dict.fromkeys(shapes, format), {})
    yardstick = run_passes(dataclasses.replace(program, weights=store), kept).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(Recipe("keep")))
    artifact = TARGET.lower(run_passes(yardstick, rest).program, tmp_path, Recipe("keep"))
    assert error(artifact, yardstick) < 2e-6
    verdict = check_artifact_weights(yardstick, TARGET.read_weights(artifact))
    assert isinstance(verdict, Passed), verdict


class Tied(nn.Module):
    """One weight as table and as linear, as in masked language models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.relu(F.linear(torch.tanh(self.words(ids)), self.words.weight))


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    yardstick, program = prepared(Tied(), (torch.tensor([[1, 2, 3]]),), "int8")
    artifact = TARGET.lower(program, tmp_path, Recipe("int8"))
    ((name, truth),) = quantized(yardstick).items()
    assert same(TARGET.read_weights(artifact)[name], truth)
    assert (artifact.path / PROGRAM).read_bytes().count(truth.values.numpy().tobytes()) == 1


class Attentions(nn.Module):
    """Grouped heads; a mask with a row that attends to nothing, alone and with a bias; what the composite has not."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return (
            ATTENTION(q, k, v, None, None, None, 0.25, 0.0),
            ATTENTION(q, k, v, mask, None, None, 0.3, 0.0),
            ATTENTION(q, k, v, mask, bias, None, 0.25, 0.0),
            ATTENTION(q, k, v[..., :7], mask, None, None, 0.25, 0.0),
            ATTENTION(q, k, v, mask, None, None, 0.25, 2.0),
        )


def test_attention_in_all_its_forms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = torch.ones(1, 1, 5, 9, dtype=torch.bool).tril(3)
    mask[0, 0, 2] = False
    given = (*(torch.randn(1, h, n, 16) for h, n in ((4, 5), (2, 9), (2, 9))), mask, torch.randn(1, 4, 5, 9))
    yardstick, program = prepared(Attentions(), given, "float")
    counts = program.count()
    assert (counts["aten.scaled_dot_product_attention"], counts["aten.softmax"]) == (3, 2)
    artifact = TARGET.lower(program, tmp_path, Recipe("float"))
    feed = {f"x{i}": t for i, t in enumerate(given)}
    ran, truth = run(artifact, feed), interpret(yardstick, feed)
    assert isinstance(ran, runner.Ran), ran
    for name, wanted in truth.items():
        assert float((ran.outputs["case"][name] - wanted).abs().max()) < 2e-6, name


def damaged(artifact: Artifact, into: Path, data: bytes, *, hashed: bool = True) -> Artifact:
    """The same artifact with another program, and (`hashed`) with a hash to go with it."""
    shutil.copytree(artifact.folder, into, dirs_exist_ok=True)
    (into / artifact.entry / PROGRAM).write_bytes(data)
    if hashed:
        (into / artifact.entry / HASH).write_bytes(hashlib.sha256(data).digest())
    return dataclasses.replace(artifact, folder=into)


def test_a_flipped_byte_is_caught_by_the_file_s_own_hash(tmp_path: Path) -> None:
    _, _, artifact = made("int8")
    data = bytearray((artifact.path / PROGRAM).read_bytes())
    data[len(data) // 2] ^= 1
    changed = damaged(artifact, tmp_path, bytes(data), hashed=False)
    for look in (TARGET.read_weights, TARGET.placement, TARGET.read_attributes):
        with pytest.raises(PlanishError, match="was changed or cut off"):
            look(changed)
    broke = run(changed)
    assert isinstance(broke, runner.Broke)
    assert "was changed or cut off" in broke.reason


@pytest.mark.parametrize("name", ["up.weight", "words.weight"])
def test_a_flipped_byte_of_a_weight_is_named_even_when_the_hash_fits(name: str, tmp_path: Path) -> None:
    yardstick, _, artifact = made("int8")
    data, truth = bytearray((artifact.path / PROGRAM).read_bytes()), quantized(yardstick)
    stored = truth[name].values.numpy().tobytes()
    assert data.count(stored) == 1
    data[data.index(stored) + 5] ^= 1
    found = TARGET.read_weights(damaged(artifact, tmp_path, bytes(data)))
    assert [n for n in truth if not same(found[n], truth[n])] == [name]


def test_swapped_weights_are_seen(tmp_path: Path) -> None:
    yardstick, _, artifact = made("int8")
    data, truth = (artifact.path / PROGRAM).read_bytes(), quantized(yardstick)
    query, key = (truth[n].values.numpy().tobytes() for n in ("query.weight", "key.weight"))
    data = data.replace(query, b"?" * len(query)).replace(key, query).replace(b"?" * len(query), key)
    found = TARGET.read_weights(damaged(artifact, tmp_path, data))
    assert {n for n in truth if not same(found[n], truth[n])} == {"key.weight", "query.weight"}


@pytest.mark.parametrize("cut", [100, 4000])
def test_a_truncated_file_with_a_hash_that_fits_is_an_error_and_not_a_crash(cut: int, tmp_path: Path) -> None:
    _, _, artifact = made("int8")
    data = (artifact.path / PROGRAM).read_bytes()
    short = damaged(artifact, tmp_path, data[:-cut])
    for look in (TARGET.read_weights, TARGET.placement):
        with pytest.raises(PlanishError, match="is not whole MLIR bytecode"):
            look(short)
    assert isinstance(run(short), runner.Broke)


def test_garbage_behind_the_head_ends_the_reader_s_process_alone(tmp_path: Path) -> None:
    """The tables of constants are whole, what native code reads is not."""
    _, _, artifact = made("int8")
    data = bytearray((artifact.path / PROGRAM).read_bytes())
    first = min(offset for offset, _ in resources(artifact.path / PROGRAM).places.values())
    data[400:1400] = b"\x5a" * 1000
    assert first > 1400
    broken = damaged(artifact, tmp_path, bytes(data))
    with pytest.raises(PlanishError, match="cannot be read by coreai-core"):
        TARGET.placement(broken)
    assert isinstance(run(broken), runner.Broke)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    artifact = damaged(made("float")[2], tmp_path, b"")
    (artifact.path / HASH).unlink()
    with pytest.raises(PlanishError, match="cannot be read: No such file"):
        TARGET.placement(artifact)


def test_weights_that_are_not_where_lowering_put_them(tmp_path: Path) -> None:
    _, _, artifact = made("int8")
    places = {"up.weight": [{"function": "main", "operation": 0, "minima": None, "symmetric": True}]}
    moved = dataclasses.replace(artifact, options={**artifact.options, "weights": places})
    with pytest.raises(PlanishError, match="is not where lowering put it"):
        TARGET.read_weights(moved)
    with pytest.raises(PlanishError, match="holds no weight names"):
        TARGET.read_weights(dataclasses.replace(artifact, options={}))


def test_a_composite_that_states_two_epsilons_tells_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, artifact = made("float")
    asset = open_asset(artifact.path)
    graphs = {n: dataclasses.replace(g, epsilon=1e-3) if g.composite else g for n, g in asset.graphs.items()}
    lying = dataclasses.replace(asset, graphs=graphs)
    monkeypatch.setattr("planish_targets.coreai.asset.open_asset", lambda _: lying)
    (stated,) = TARGET.read_attributes(artifact).values()
    assert sorted({round(a.value, 6) for a in stated}) == [1e-5, 1e-3]


def test_nothing_of_the_machine_is_in_the_file() -> None:
    data = (made("float")[2].path / PROGRAM).read_bytes()
    for trace in (b".py", b"site-packages", str(Path.cwd()).encode(), str(Path.home()).encode()):
        assert trace not in data


def test_placement_claims_nothing_and_names_modules() -> None:
    placement = TARGET.placement(made("int8")[2])
    assert {n.where for n in placement.nodes} == {"unknown"}
    assert {n.module for n in placement.nodes if n.op == "coreai.blockwise_shift_scale"} == {
        *("words", "query", "key", "value", "up", "down")
    }
    composites = [n.op for n in placement.nodes if n.op.startswith("composite ")]
    assert sorted(composites) == [*["composite layer_norm"] * 2, "composite scaled_dot_product_attention"]


def test_inspect_tells_bytes_and_ports() -> None:
    yardstick, _, artifact = made("int8")
    described = TARGET.inspect(artifact.path)
    assert described is not None
    assert described["dtypes"]["int8"] >= sum(t.values.numel() for t in quantized(yardstick).values())  # type: ignore[index]
    assert described["inputs"] == [{"name": n, "shape": [1, 6], "dtype": "int32"} for n in ("x0", "x1")]
    assert described["outputs"] == [{"name": "y0", "shape": [1, 6, 32], "dtype": "float32"}]
    assert TARGET.inspect(Path(__file__)) is None


def test_a_wrong_shape_is_told_with_names() -> None:
    wrong = {name: torch.ones(1, 9, dtype=torch.int64) for name in FEED}
    broke = run(made("float")[2], wrong)
    assert isinstance(broke, runner.Broke)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1  # type: ignore[no-any-return]


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(x)


def test_an_operator_without_a_form_is_refused_by_name(tmp_path: Path) -> None:
    _, program = prepared(Odd(), (torch.randn(2, 3),), "float")
    with pytest.raises(PlanishError) as caught:
        TARGET.lower(program, tmp_path, Recipe("float"))
    assert "special_i0e" in caught.value.what
    assert "inner" in caught.value.where


def test_lowering_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TARGET.lower(made("float")[1], tmp_path, Recipe("float"))
    assert capfd.readouterr().out == ""


def test_without_the_packages_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, artifact = made("float")
    monkeypatch.setattr(sdk, "find_spec", lambda _: None)
    told = TARGET.runner(artifact)
    assert isinstance(told, Unavailable)
    assert "pip install 'planish[coreai]'" in told.reason
    with pytest.raises(PlanishError, match="coreai-core and coreai-torch not installed"):
        TARGET.lower(program, tmp_path, Recipe("float"))

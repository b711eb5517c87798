"""Variants of the ExecuTorch target: what is known of a file that nothing here runs, and planted defects in it."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import transformers as tf
from decoders import capture_model
from support import program_of, random_model
from torch import Tensor, nn
from torch.nn import functional as F

from planish.build import compile_model
from planish.compiled import Silent
from planish.request import Request
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program, op_name
from planish_targets import registry
from planish_targets.contract import Artifact, Recipe, Target, Unavailable
from planish_targets.executorch.delegates.qnn import ROOT
from planish_targets.executorch.delegates.vulkan_forms import ExpandErfGelu, WholeNorm
from planish_targets.executorch.lower import to_edge, write
from planish_targets.executorch.pte import open_pte
from planish_targets.executorch.registered import backends

pytest.importorskip("executorch")

FLOAT = Recipe("float")
LOWERED = ("executorch:coreml", "executorch:vulkan")
BACKENDS = {"executorch:coreml": "CoreMLBackend", "executorch:vulkan": "VulkanBackend"}
FEED = {"x0": torch.tensor([[3, 1, 4, 1, 5, 9]]), "x1": torch.tensor([[1, 1, 1, 1, 0, 0]])}


class Encoder(nn.Module):
    """Embedding, masked attention, norms with and without weights, both forms of GELU, and a running sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.total = nn.Embedding(50, 16), Total()
        self.query, self.up = nn.Linear(16, 16), nn.Linear(16, 32)
        self.norm, self.plain = nn.LayerNorm(16), nn.LayerNorm(32, elementwise_affine=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        q = self.query(x).view(1, 6, 2, 8).transpose(1, 2)
        attended = torch.ops.planish.attention(q, q, q, mask.bool()[:, None, None], None, None, 8**-0.5, 0.0)
        x = self.up(self.norm(x + attended.reshape(1, 6, 16)))
        return self.total(self.plain(F.gelu(F.gelu(x), approximate="tanh")))  # type: ignore[no-any-return]


class Total(nn.Module):
    """A sum that Vulkan has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


def prepared(
    target: Target, module: nn.Module, examples: tuple[Tensor, ...], without: tuple[type, ...] = ()
) -> tuple[Program, Program]:
    """Yardstick, and the form to lower."""
    numerics = target.numerics(FLOAT)
    passes = (*pipeline.fuse(), *pipeline.yardstick(numerics.weights, numerics.activations))
    yardstick = run_passes(program_of(module, *examples), passes).program
    own = tuple(p for p in target.passes(FLOAT) if not isinstance(p, without))
    return yardstick, run_passes(yardstick, (*pipeline.for_target(target.capabilities.keeps, None), *own)).program


@cache
def made(name: str) -> tuple[Program, Program, Artifact]:
    target = registry.find(name)
    yardstick, form = prepared(target, Encoder(), tuple(FEED.values()))
    return yardstick, form, target.lower(form, Path(mkdtemp(prefix="planish-test-")), FLOAT)


def changed(artifact: Artifact, into: Path, data: bytes) -> Artifact:
    """The same artifact with other bytes."""
    (into / artifact.entry).write_bytes(data)
    return dataclasses.replace(artifact, folder=into)


@pytest.mark.parametrize("name", LOWERED)
def test_what_is_lowered_is_the_yardstick(name: str) -> None:
    """Of Vulkan, the form; of Core ML the form as well: its fp16 begins behind it."""
    yardstick, form, _ = made(name)
    torch.testing.assert_close(interpret(form, FEED)["y0"], interpret(yardstick, FEED)["y0"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", LOWERED)
def test_every_delegate_is_of_the_backend_and_every_operation_has_a_place(name: str) -> None:
    artifact = made(name)[2]
    assert {d.id for d in open_pte(artifact.path).plan.delegates} == {BACKENDS[name]}
    placement = registry.find(name).placement(artifact)
    assert not placement.violations
    inside = [n for n in placement.nodes if n.where == "accelerated"]
    assert {n.unit for n in inside} == {BACKENDS[name]}
    linear = "linear" if name == "executorch:coreml" else "aten.linear.default"
    assert sorted(n.module for n in inside if n.op == linear) == ["query", "up"]
    assert f"{len(inside)} of {len(placement.nodes)} operations are in {BACKENDS[name]}" in artifact.notes[1]


def test_an_operator_that_stays_outside_is_listed_with_module_and_reason() -> None:
    artifact = made("executorch:vulkan")[2]
    outside = [n for n in registry.find("executorch:vulkan").placement(artifact).nodes if n.where == "fallback"]
    assert [(n.op, n.module, n.unit) for n in outside] == [("aten::cumsum", "total", "portable kernel")]
    assert "no operator implementation" in outside[0].reason
    assert "left to portable kernels: aten::cumsum (1)" in artifact.notes[1]
    assert registry.find("executorch:coreml").placement(made("executorch:coreml")[2]).share() == 1.0


@pytest.mark.parametrize("name", LOWERED)
def test_nothing_runs_it_and_the_reason_is_true(name: str) -> None:
    command = registry.find(name).runner(made(name)[2])
    assert isinstance(command, Unavailable)
    here = backends()
    assert here is not None
    assert "XnnpackBackend" in here
    assert (f"{BACKENDS[name]} is not registered" in command.reason) == (BACKENDS[name] not in here)


@pytest.mark.parametrize("name", LOWERED)
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    artifact = made(name)[2]
    short = changed(artifact, tmp_path, artifact.path.read_bytes()[:-100])
    target = registry.find(name)
    for look in (target.placement, target.read_attributes):
        with pytest.raises(PlanishError, match="is cut off"):
            look(short)


@pytest.mark.parametrize("name", LOWERED)
def test_a_file_of_another_backend_is_a_violation(name: str) -> None:
    other = next(n for n in LOWERED if n != name)
    violations = registry.find(name).placement(made(other)[2]).violations
    assert violations == (f"delegate 0 is one of {BACKENDS[other]}, not of {BACKENDS[name]}",)
    module, xnnpack = nn.Linear(8, 8), registry.find("executorch")
    plain = xnnpack.lower(prepared(xnnpack, module, (torch.ones(1, 8),))[1], Path(mkdtemp()), FLOAT)
    assert "delegate 0 is one of XnnpackBackend" in registry.find(name).placement(plain).violations[0]


def test_a_file_without_any_delegate_is_a_violation(tmp_path: Path) -> None:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    target = registry.find("executorch:vulkan")
    form = prepared(target, nn.Linear(8, 8), (torch.ones(1, 8),))[1]
    write(form, tmp_path / "model.pte", None, lambda e, f: to_edge(e, f, VulkanPartitioner({}, operator_allowlist=[])))
    placement = target.placement(Artifact(target.name, tmp_path, "model.pte"))
    assert "nothing is delegated to VulkanBackend" in placement.violations[0]
    assert placement.share() == 0.0


def payload_at(artifact: Artifact) -> int:
    """Where the first delegate's payload begins in the file."""
    file = open_pte(artifact.path)
    at = artifact.path.read_bytes().find(file.payload(0))
    assert at > 0
    return at


def _magic(data: bytearray, at: int) -> None:
    data[at + 4 : at + 8] = b"XX00"


def _identifier(data: bytearray, at: int) -> None:
    data[at + 36 : at + 40] = b"VK99"


def _sizes(data: bytearray, at: int) -> None:
    data[at + 14 : at + 18] = struct.pack("<I", 1 << 30)


def _flatbuffer(data: bytearray, at: int) -> None:
    data[at + 40 : at + 400] = b"\x5a" * 360


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_magic, "does not begin as one"),
        (_identifier, "no graph of version VK00"),
        (_sizes, "is cut off"),
        (_flatbuffer, "cannot be read"),
    ],
)
def test_a_damaged_vulkan_payload_is_a_violation(
    damage: Callable[[bytearray, int], None], what: str, tmp_path: Path
) -> None:
    artifact = made("executorch:vulkan")[2]
    data = bytearray(artifact.path.read_bytes())
    damage(data, payload_at(artifact))
    target, broken = registry.find("executorch:vulkan"), changed(artifact, tmp_path, bytes(data))
    assert any(what in v for v in target.placement(broken).violations)
    with pytest.raises(PlanishError, match=what):
        target.read_attributes(broken)


def test_a_constant_that_is_not_in_the_file_is_a_violation(tmp_path: Path) -> None:
    """The payload names its constants; the file's own table names one of them otherwise."""
    artifact = made("executorch:vulkan")[2]
    file = open_pte(artifact.path)
    key = file.program.named_data[0].key.encode()
    data = artifact.path.read_bytes()
    table = data[: file.header.program]
    assert table.count(key) == 1
    gone = changed(artifact, tmp_path, table.replace(key, b"0" * len(key)) + data[file.header.program :])
    violations = registry.find("executorch:vulkan").placement(gone).violations
    assert any("is not in the file" in v for v in violations)


@pytest.mark.parametrize(("size", "what"), [(7, "ends without a table"), (3000, "damaged table|holds no|ends without")])
def test_a_damaged_core_ml_payload_is_a_violation(size: int, what: str, tmp_path: Path) -> None:
    artifact = made("executorch:coreml")[2]
    data, at, count = (
        bytearray(artifact.path.read_bytes()),
        payload_at(artifact),
        len(open_pte(artifact.path).payload(0)),
    )
    data[at + count - size : at + count] = b"\x5a" * size
    violations = registry.find("executorch:coreml").placement(changed(artifact, tmp_path, bytes(data))).violations
    assert len(violations) == 1
    assert re.search(what, violations[0])


def test_a_damaged_ml_program_is_a_violation(tmp_path: Path) -> None:
    artifact = made("executorch:coreml")[2]
    data = artifact.path.read_bytes()
    where = data.find(b"\x0a\x04main", payload_at(artifact))
    assert where > 0
    broken = changed(artifact, tmp_path, data[:where] + b"\xff" * 40 + data[where + 40 :])
    assert registry.find("executorch:coreml").placement(broken).violations


@pytest.mark.parametrize(
    ("without", "what"),
    [(ExpandErfGelu, "the runtime computes the tanh form"), (WholeNorm, "the runtime refuses it")],
)
def test_what_vulkan_would_compute_otherwise_is_a_violation(without: type, what: str, tmp_path: Path) -> None:
    """The partitioner takes both, the serialiser writes both."""
    target = registry.find("executorch:vulkan")

    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(F.gelu(x), (8,))

    artifact = target.lower(prepared(target, Small(), (torch.ones(2, 8),), (without,))[1], tmp_path, FLOAT)
    assert [what in v for v in target.placement(artifact).violations] == [True]


@pytest.mark.parametrize("name", LOWERED)
def test_epsilons_are_read_from_the_payload(name: str) -> None:
    found = registry.find(name).read_attributes(made(name)[2])
    assert not isinstance(found, Unavailable)
    assert sorted(a.module for a in found["model.pte"]) == ["norm", "plain"]
    assert all(a.value == pytest.approx(1e-5, rel=1e-2) for a in found["model.pte"])


# -- language models --------------------------------------------------------------------------------------------------


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "head_dim": 8}


@cache
def decoder(family: str) -> tuple[Program, Program]:
    """Yardstick and form of a tiny language model with caches of 32 tokens inside."""
    configs = {
        "llama": lambda: tf.LlamaConfig(tie_word_embeddings=True, **SIZES),
        "gemma2": lambda: tf.Gemma2Config(sliding_window=8, query_pre_attn_scalar=16, **SIZES),
        "granite": lambda: tf.GraniteConfig(attention_multiplier=0.2, **SIZES),
    }
    config, target = configs[family](), registry.find("executorch:vulkan")
    captured = capture_model(config, random_model(config, tf.AutoModelForCausalLM)).program
    passes = (*pipeline.fuse(), *pipeline.last_token(), *pipeline.resident(32))
    yardstick = run_passes(captured, passes).program
    rest = (*pipeline.for_target(target.capabilities.keeps, None), *target.passes(FLOAT))
    return yardstick, run_passes(yardstick, rest).program


def test_a_language_model_has_its_caches_in_the_vulkan_delegate(tmp_path: Path) -> None:
    target = registry.find("executorch:vulkan")
    artifact = target.lower(decoder("llama")[1], tmp_path, FLOAT)
    assert artifact.context == 32
    assert artifact.options["longest"] == 32
    placement = target.placement(artifact)
    assert (placement.violations, placement.share()) == ((), 1.0)
    assert sum(n.op == "sdpa_with_kv_cache.default" for n in placement.nodes) == 1
    assert [type(i.instr_args).__name__ for i in open_pte(artifact.path).plan.chains[0].instructions] == [
        "DelegateCall"
    ]
    epsilons = target.read_attributes(artifact)
    assert not isinstance(epsilons, Unavailable)
    assert [a.value for a in epsilons["model.pte"]] == [1e-6] * 3


def test_another_scale_of_attention_goes_into_the_query() -> None:
    """The form is a function with caches in and out, so the interpreter runs it."""
    yardstick, form = decoder("granite")
    scales = [n.args[8] for n in form.graph.nodes if op_name(n) == "planish.resident_attention"]
    assert scales == [8**-0.5]
    inner = {i for _, i in form.states}
    given = {p.name: torch.zeros([int(d) for d in p.shape]) for p in form.inputs if p.name in inner}
    given |= {"input_ids": torch.tensor([[5, 7, 11]]), "position_ids": torch.arange(3)[None]}
    found, wanted = interpret(form, given)["logits"], interpret(yardstick, given)["logits"]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_caches_behind_a_window_are_refused_with_the_module(tmp_path: Path) -> None:
    with pytest.raises(PlanishError) as caught:
        registry.find("executorch:vulkan").lower(decoder("gemma2")[1], tmp_path, FLOAT)
    assert "no windows" in caught.value.what
    assert caught.value.where == "module model.layers.0.self_attn"
    assert not list(tmp_path.iterdir())


def test_a_scale_that_vulkan_refuses_is_a_violation(tmp_path: Path) -> None:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    write(decoder("llama")[1], tmp_path / "model.pte", None, lambda e, f: to_edge(e, f, VulkanPartitioner({})))
    target = registry.find("executorch:vulkan")
    (violation,) = target.placement(Artifact(target.name, tmp_path, "model.pte")).violations
    assert "refuses a scale" in violation


# -- QNN: no SDK is here ----------------------------------------------------------------------------------------------


def test_qnn_without_its_sdk_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ROOT, raising=False)
    request = Request(model="no-such-model", targets=("executorch:qnn",))
    with pytest.raises(PlanishError) as caught:
        compile_model(request, Silent(), tmp_path)
    assert "QNN_SDK_ROOT is not set" in caught.value.what  # and not that there is no such model
    monkeypatch.setenv(ROOT, str(tmp_path))
    with pytest.raises(PlanishError, match="is not in it"):
        compile_model(request, Silent(), tmp_path)


_LOWER = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from torch import nn
from support import program_of
import executorch.backends.qualcomm.scripts.download_qnn_sdk as download
from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_targets import registry
from planish_targets.contract import Recipe

def tried(*_, **__):
    print("DOWNLOAD")
    raise SystemExit(9)

for name in ("install_qnn_sdk", "_download_qnn_sdk", "_atomic_download", "_download_archive"):
    setattr(download, name, tried)
target, recipe = registry.find("executorch:qnn"), Recipe("float")
form = run_passes(program_of(nn.Linear(8, 8), torch.ones(1, 8)), target.passes(recipe)).program
for chip in ("SM1", "SM8650"):
    os.environ["QNN_SOC_MODEL"] = chip
    try:
        target.lower(form, Path(sys.argv[1]), recipe)
    except PlanishError as refusal:
        print("REFUSED", refusal.what)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="executorch's package has QNN on Linux alone")
def test_qnn_never_downloads(tmp_path: Path) -> None:
    """With an SDK that is none, executorch's own code runs as far as its backend; in a process of its own."""
    library = tmp_path / "sdk" / "lib" / "x86_64-linux-clang" / "libQnnHtp.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    code = _LOWER.format(tests=str(Path(__file__).parents[2]))
    environment = {**os.environ, ROOT: str(tmp_path / "sdk"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    told = done.stdout.splitlines()
    assert [line.startswith("REFUSED") for line in told] == [True, True], done.stdout + done.stderr[-2000:]
    assert "QNN_SOC_MODEL=SM1 is no chip that executorch knows" in told[0]
    assert "Failed to initialize QNN backend" in told[1]


def test_gelu_written_out_is_the_erf_form() -> None:
    x = torch.linspace(-12, 12, 4001)
    form = run_passes(program_of(nn.GELU(), x), (ExpandErfGelu(),)).program
    assert not form.count()["aten.gelu"]
    found = interpret(form, {"x0": x})["y0"]
    assert float((found - F.gelu(x.double())).abs().max()) < 1e-6
    assert float((F.gelu(x, approximate="tanh") - F.gelu(x)).abs().max()) > 3e-4  # what the shader would compute
    tanh = run_passes(program_of(nn.GELU("tanh"), x), (ExpandErfGelu(),)).program
    assert tanh.count()["aten.gelu"] == 1

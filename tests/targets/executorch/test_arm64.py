"""ExecuTorch's arm64 wheel under QEMU. What needs the emulator runs where it is set up, and is skipped elsewhere:

apt-get install qemu-user-static binutils-aarch64-linux-gnu && python -m planish_targets.executorch.arm64 --setup
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from decoders import capture_model
from support import program_of, random_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from planish_passes import pipeline
from planish_passes.errors import PlanishError
from planish_passes.infra import run_passes
from planish_passes.interpret import interpret
from planish_passes.program import Program
from planish_passes.quantise import quantized
from planish_passes.weights import WeightFormat
from planish_targets import runner
from planish_targets.contract import Artifact, Evidence, Recipe, Runner
from planish_targets.executorch import TARGET
from planish_targets.executorch.arm64 import root
from planish_targets.executorch.arm64.__main__ import main, stated
from planish_targets.executorch.arm64.cpus import CPUS, DEFAULT, write_prefixes

COMMAND = (sys.executable, "-m", "planish_targets.executorch.arm64")
ABOUT = {"pins": root._pins(), "debian": {"libc6": "2.36-9", "zlib1g": "1"}}
NOTHING = Artifact("executorch", Path(__file__).parent, "model.pte")
FEED = {"case": {"x": torch.ones(2)}}


def missing() -> str:
    """Why the emulated tests are skipped; "" when they can run."""
    try:
        root.qemu()
        root.made(root.location())
    except PlanishError as problem:
        return f"{problem.what}: {problem.hint}"
    return ""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and first on PATH a QEMU that is a shell script (`qemu`)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return root.location()


def qemu(folder: Path, script: str, told: str = "qemu-aarch64 version 9.1.2 (Debian 1:9.1.2+ds-1)") -> None:
    path = folder / "qemu-aarch64-static"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{told}" && exit\n{script}\n')
    path.chmod(0o755)


def ready(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "made.json").write_text(json.dumps(ABOUT))


def answer() -> runner.Ran | runner.Broke:
    return runner.run(Runner(COMMAND, Evidence.EMULATED, "mine"), NOTHING, FEED, timeout=60)


def test_without_a_root_the_reason_says_so(home: Path) -> None:
    broke = answer()
    assert isinstance(broke, runner.Broke)
    assert broke.reason.startswith("the arm64 root is not set up")
    assert root.SETUP in broke.log


def test_a_root_of_other_wheels_is_not_used(home: Path) -> None:
    ready(home)
    assert root.made(home)["debian"] == ABOUT["debian"]
    (home / "made.json").write_text(json.dumps({**ABOUT, "pins": "0" * 64}))
    with pytest.raises(PlanishError, match="another version of planish"):
        root.made(home)


def test_a_crash_of_the_emulated_process_keeps_its_signal(home: Path, tmp_path: Path) -> None:
    ready(home)
    qemu(tmp_path, "kill -SEGV $$")
    broke = answer()
    assert isinstance(broke, runner.Broke)
    assert broke.reason == "the runtime crashed with SIGSEGV"


@pytest.mark.parametrize(("name", "said"), [("sme", "QEMU 9.1.2 computes wrong numbers as max"), ("i8mm", "")])
def test_an_old_emulator_is_refused_where_it_computes_wrong_numbers(
    home: Path, tmp_path: Path, name: str, said: str
) -> None:
    ready(home)
    qemu(tmp_path, "exit 3")
    with pytest.raises(SystemExit) as caught:
        main(["--cpu", name, str(tmp_path), str(tmp_path)])
    report = tmp_path / "error.json"
    if said:
        assert str(caught.value.code).startswith(f"error: {said}")  # exit code 1
        assert json.loads(report.read_text())["what"] == said
    else:
        assert caught.value.code == 3  # of the emulator
        assert not report.exists()


def test_without_qemu_the_reason_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlanishError, match="no qemu-aarch64") as caught:
        root.make(tmp_path / "root", lambda path, source: None)
    assert caught.value.hint == root.TOOLS


def test_help_tells_the_two_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert root.TOOLS in told
    assert root.SETUP in told
    assert all(name in told for name in CPUS)


def test_the_answer_names_the_emulator_and_keeps_none_of_its_times() -> None:
    told = {"protocol": 1, "device": "ExecuTorch", "versions": {"torch": "2"}, "evidence": "executed"}
    times = {"seconds": {"a": [9.0]}, "load_seconds": 1.0, "peak_rss_bytes": 5, "start_rss_bytes": 4}
    assert stated({**told, **times}, CPUS["cortex-a76"], "7.2.22", ABOUT) == {
        "protocol": 1,
        "device": "ExecuTorch, emulated by QEMU 7.2.22 as cortex-a76",
        "versions": {"torch": "2", "qemu": "7.2.22", "debian libc6": "2.36-9"},
        "evidence": "executed-arm64-emulated",
    }


def test_files_about_the_cpu_say_what_its_register_says(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    write_prefixes(tmp_path)
    for name, cpu in CPUS.items():
        prefix = tmp_path / "cpu" / name
        assert (prefix / "lib").samefile(tmp_path / "lib")
        cores = (prefix / "proc/cpuinfo").read_text().split("\n\n")
        registers = sorted(prefix.glob("sys/devices/system/cpu/cpu*/regs/identification/midr_el1"))
        assert len(cores) == len(registers)
        for core, register in zip(cores, registers, strict=True):
            told = dict(re.findall(r"^CPU (\w+)\s*: (\w+)$", core, re.MULTILINE))
            parts = (int(told[n], 0) for n in ("implementer", "variant", "part", "revision"))
            implementer, variant, part, revision = parts
            assert implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision == cpu.midr
            assert int(register.read_text(), 0) == cpu.midr


def test_the_mirror_is_debians_own() -> None:
    lines = [
        "Node main http://a/",
        "Debian main http://b/debian-security/",
        "Debian contrib http://c/",
        "Debian main http://d/",
    ]
    assert root.choose("\n".join(lines)) == "http://d/"
    for none in ("", "\n".join(lines[:3]), "odd"):
        with pytest.raises(PlanishError, match="no mirror of Debian"):
            root.choose(none)


def test_the_root_holds_the_versions_that_lower_here() -> None:
    """A .pte of another release need not open; torch and executorch fit each other in pairs."""
    pinned = dict(re.findall(r"^([\w-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", root.WHEELS.read_text(), re.MULTILINE))
    assert len(pinned) == sum("==" in line for line in root.WHEELS.read_text().splitlines())
    for name in ("executorch", "torch"):
        assert pinned[name] == version(name).partition("+")[0]


class Encoder(nn.Module):
    """A table, two linears, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(50, 64), nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.norm(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


IDS = {"x0": torch.tensor([[3, 1, 4, 1, 5, 9]])}
emulated = pytest.mark.skipif(bool(reason := missing()), reason=reason)


@cache
def encoder(bits: int) -> tuple[Program, Artifact]:
    recipe = Recipe("int8" if bits else "float", bits)
    numerics = TARGET.numerics(recipe)
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(bits) if bits else None))
    passes += pipeline.yardstick(numerics.weights, numerics.activations)
    yardstick = run_passes(program_of(Encoder(), *IDS.values()), passes).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe))
    artifact = TARGET.lower(run_passes(yardstick, rest).program, Path(mkdtemp(prefix="planish-test-")), recipe)
    return yardstick, artifact


def computed(artifact: Artifact, cases: dict[str, dict[str, Tensor]]) -> runner.Ran:
    ran = runner.run(Runner(COMMAND, Evidence.EMULATED, "mine"), artifact, cases, timeout=550)
    assert isinstance(ran, runner.Ran), (ran.reason, ran.log)
    assert ran.evidence is Evidence.EXECUTED_ARM64_EMULATED
    assert re.search(rf"aarch64, emulated by QEMU [\d.]+ as {CPUS[DEFAULT].model}$", str(ran.device["device"]))
    return ran


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max())


def errors(artifact: Artifact, yardstick: Program) -> Tensor:
    """Of each token, relative to the largest value."""
    truth = interpret(yardstick, IDS)["y0"]
    return (computed(artifact, {"case": IDS}).outputs["case"]["y0"] - truth).abs().amax(-1)[0] / truth.abs().max()


@emulated
def test_arm64_kernels_compute_the_yardstick_in_float() -> None:
    yardstick, artifact = encoder(0)
    assert errors(artifact, yardstick).max() <= 2e-6


@emulated
def test_arm64_kernels_compute_the_yardstick_in_int8() -> None:
    """A value on the edge may round the other way, in one token; x86 does it in another one."""
    yardstick, artifact = encoder(8)
    found = errors(artifact, yardstick)
    assert found.max() <= 2e-3
    assert found.median() <= 2e-6


@emulated
def test_a_changed_weight_is_seen_through_the_emulator(tmp_path: Path) -> None:
    yardstick, artifact = encoder(8)
    data, truth = bytearray(artifact.path.read_bytes()), quantized(yardstick)["up.weight"]
    stored = truth.values.numpy().tobytes()
    assert data.count(stored) == 1
    data[data.index(stored) + 5] ^= 0x40
    (tmp_path / artifact.entry).write_bytes(data)
    found = errors(dataclasses.replace(artifact, folder=tmp_path), yardstick)
    assert found.max() > 2e-3
    assert found.min() > 1e-4


@emulated
def test_a_decoder_with_caches_in_int4_call_by_call(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, **sizes)
    recipe = Recipe("int4", 4)
    numerics = TARGET.numerics(recipe)
    program = capture_model(config, random_model(config, AutoModelForCausalLM)).program
    passes = (*pipeline.fuse(), *pipeline.quantise(WeightFormat(4, 32, symmetric=False)))
    passes += (*pipeline.yardstick(numerics.weights, numerics.activations), *pipeline.last_token())
    yardstick = run_passes(program, (*passes, *pipeline.resident(32))).program
    rest = (*pipeline.for_target(TARGET.capabilities.keeps, None), *TARGET.passes(recipe))
    artifact = TARGET.lower(run_passes(yardstick, rest).program, tmp_path, recipe)

    tokens = torch.randint(3, 128, (1, 12), generator=torch.Generator().manual_seed(1))
    cuts = ((0, 7), (7, 11), (11, 12))  # a prompt, a part, a token
    places = torch.arange(12)[None]
    cases = {f"to {e}": {"input_ids": tokens[:, s:e], "position_ids": places[:, s:e]} for s, e in cuts}
    outputs = computed(artifact, cases).outputs
    inner = {i for _, i in yardstick.states}
    states = {p.name: torch.zeros([int(d) for d in p.shape]) for p in yardstick.inputs if p.name in inner}
    for name, given in cases.items():
        truth = interpret(yardstick, {**given, **states})
        states = {i: truth[o] for o, i in yardstick.states}
        assert error(outputs[name]["logits"], truth["logits"]) <= 1e-5

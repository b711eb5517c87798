"""A command line without models: fake targets, fake compile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from planish.cli.app import app
from planish.compiled import Compiled, TargetResult
from planish.request import Request
from planish.verdict import Failed, Metric, NotRun, Passed
from planish_targets import registry
from planish_targets.contract import (
    Artifact,
    Capabilities,
    Evidence,
    Placed,
    Placement,
    Runner,
    Unavailable,
)

Run = Callable[..., Result]
RUNS = Runner(("true",), Evidence.EXECUTED, "Fake CPU")
CAN = Capabilities(keeps=frozenset(), dynamic_shapes=True)


@dataclass(frozen=True)
class FakeTarget:
    """As much of a target as the command line asks of it."""

    name: str
    summary: str = "a fake"
    extra: str = "fake"
    requires: Mapping[str, str] = field(default_factory=lambda: {"packaging": ">=1"})
    runs: Runner | Unavailable = RUNS
    suffix: str = ".onnx"
    capabilities: Capabilities = CAN

    def runner(self, artifact: Artifact) -> Runner | Unavailable:
        return self.runs

    def inspect(self, path: Path) -> Mapping[str, object] | None:
        if path.suffix != self.suffix:
            return None
        return {
            "format": "Fake 1",
            "ops": {"Add": 1, "MatMul": 3},
            "dtypes": {"float32": 2048},
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1, "sequence"]}],
            "outputs": ["y"],
            "bytes": 4096,
        }

    def placement(self, artifact: Artifact) -> Placement:
        nodes = (Placed("a", "MatMul", "accelerated", "GPU"), Placed("b", "Add", "fallback", "CPU", "no kernel"))
        return Placement("fake table", nodes, advice=("keep it short",))


def fake_targets() -> dict[str, FakeTarget]:
    """Four product targets and the reference."""
    found = {name: FakeTarget(name) for name in ("coreml", "directml", "executorch", "onnxruntime", "reference")}
    found["reference"] = FakeTarget("reference", capabilities=replace(CAN, default=False))
    found["coreml"] = FakeTarget("coreml", runs=Unavailable("no interpreter"), suffix=".mlpackage")
    return found


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeTarget]:
    """The registry holds fakes."""
    found = fake_targets()
    monkeypatch.setattr(registry, "targets", lambda: found)
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in args], prog_name="planish", catch_exceptions=False)

    return call


@pytest.fixture
def told() -> Callable[[Result], tuple[str, str, str]]:
    """error, where and hint of a failed call."""
    return three_lines


def three_lines(result: Result) -> tuple[str, str, str]:
    """error, where, hint of a failed call; nothing else may be on stderr but progress."""
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "where: ", "hint: "))]
    assert [line.split(":")[0] for line in lines] == ["error", "where", "hint"], result.stderr
    assert "Traceback" not in result.output
    what, where, hint = (line.split(": ", 1)[1] for line in lines)
    return what, where, hint


PASSED = Passed("lowering", Evidence.EMULATED, (Metric("relative", 1e-6, 1e-5), Metric("max_abs", 2e-6)), "Fake CPU")
QUALITY = Passed(
    "quality", Evidence.EXECUTED, (Metric("cosine", 0.999999, 0.99, False), Metric("max_abs", 3.1e-2)), "torch CPU"
)


CONFIG = SimpleNamespace(to_dict=lambda: {"hidden_size": 8, "_name_or_path": "secret"})


@dataclass
class FakeBuild:
    """What compile_model was asked, and what it answers."""

    verdict: Passed | Failed | NotRun = PASSED
    error: BaseException | None = None
    requests: list[Request] = field(default_factory=list)
    workdirs: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)

    def compile_model(self, request: Request, progress: Any, workdir: Path) -> Compiled:
        self.requests.append(request)
        self.workdirs.append(workdir)
        progress.stage("capture", "FakeModel")
        print("a library talks")
        if self.error is not None:
            raise self.error
        progress.note("worth knowing")
        results = []
        for name in request.targets:
            folder = workdir / name
            folder.mkdir()
            with (folder / "model.onnx").open("wb") as file:
                file.truncate(23_100_000)
            placement = FakeTarget(name).placement(Artifact(name, folder, "model.onnx"))
            results.append(
                TargetResult(
                    name,
                    Artifact(name, folder, "model.onnx", notes=("ship it whole",)),
                    (QUALITY, self.verdict),
                    placement,
                    latency={"short": 0.001, "longest": 0.0042},
                    latency_device="Fake CPU",
                    shapes={"input_ids": (1, "sequence")},
                )
            )
        source: Any = SimpleNamespace(task="feature-extraction", architecture="FakeModel", config=CONFIG)
        return Compiled(request, source, (), tuple(results), (), (), (), ("traced twice",))

    def write_bundle(self, compiled: Compiled, at: Path) -> Path:
        self.written.append(at)
        at.mkdir()
        return at.absolute()


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    """compile_model and write_bundle are fakes."""
    import planish.bundle

    fake = FakeBuild()
    module = ModuleType("planish.build")
    module.compile_model = fake.compile_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planish.build", module)
    monkeypatch.setattr(planish.bundle, "write_bundle", fake.write_bundle)
    return fake


WORDS = [f"w{i}" for i in range(124)]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def compile_bundle(model: Path, at: Path, **options: Any) -> Path:
    """A bundle for ONNX Runtime, without checks."""
    from planish.build import compile_model
    from planish.bundle import write_bundle
    from planish.compiled import Silent

    request = Request(model=str(model), targets=("onnxruntime",), recipe="float", verify=False, **options)
    return write_bundle(compile_model(request, Silent(), at.parent / f"{at.stem}-work"), at)


@dataclass(frozen=True)
class Tiny:
    """A random language model of 128 words, and its bundle."""

    model: Path
    bundle: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Compiled once; tests that change it copy it."""
    import transformers as tf
    from decoders import DECODERS
    from support import random_model
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("tiny")
    random_model(DECODERS["llama"](), tf.AutoModelForCausalLM).save_pretrained(root / "model")
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "assistant", *WORDS])}
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(root / "model")
    return Tiny(root / "model", compile_bundle(root / "model", root / "tiny.planish"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random encoder."""
    from support import FAMILIES, random_model

    root = tmp_path_factory.mktemp("encoder")
    random_model(FAMILIES["bert"]()).save_pretrained(root / "model")
    return compile_bundle(root / "model", root / "bert.planish")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of failed compiles lie here."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder

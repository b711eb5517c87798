"""Programs that are called with golden inputs, through any command that speaks the runner protocol."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bundles import compiled, model_folder

from planish.bench.calls import Calls
from planish.bench.process import Plan
from planish.bench.subjects import entry, subjects
from planish.bundle import Bundle, open_bundle, write_bundle
from planish.verify.lowering import Execution
from planish_passes.errors import PlanishError
from planish_targets.contract import Evidence

PLAN = Plan(rounds=3, warmups=2, calls=4)
RUNNER = """
import json, sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
given, returned = map(Path, sys.argv[1:3])
call = json.loads((given / "call.json").read_text())
inputs = load_file(given / "inputs.safetensors")
save_file({k.partition("/")[0] + "/out": v for k, v in inputs.items()}, returned / "outputs.safetensors")
# The first call is slow; a longer input takes longer.
seconds = {c: [1.0] + [0.001 * len(c) + 0.0001 * n for n in range(1, call["repeat"])] for c in call["cases"]}
facts = {"protocol": 1, "device": "Pocket 3", "versions": {"system": "7"}, "evidence": "executed", "seconds": seconds,
         "load_seconds": 0.25, "start_rss_bytes": 100, "peak_rss_bytes": 300}
FACTS
(returned / "device.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("calls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))
        return open_bundle(
            write_bundle(compiled(model_folder(root / "tiny-bert"), root, fine=True), root / "tiny.planish")
        )


def subject(bundle: Bundle, folder: Path, facts: str = "") -> Any:
    path = folder / "runner.py"
    path.write_text(RUNNER.replace("FACTS", facts))
    execution = Execution(1, 60.0, {"onnxruntime": f"{sys.executable} {path}"})
    (found,) = subjects([bundle], ["onnxruntime"], execution)
    return found


def test_one_process(bundle: Bundle, tmp_path: Path) -> None:
    found = subject(bundle, tmp_path)
    assert isinstance(found, Calls)
    told = found.process(1, PLAN)
    assert told.samples["latency", "short"] == pytest.approx([0.0052, 0.0053, 0.0054, 0.0055])  # without warm-ups
    assert told.samples["load_warm", ""] == [0.25]
    assert told.samples["artifact_memory", ""] == [200.0]
    assert told.conditions["latency", "padded"] == {"tokens": 10}
    assert (told.runtime, told.versions, told.evidence) == ("Pocket 3", {"system": "7"}, Evidence.EXECUTED)
    named = entry("A", found, told)
    assert (named.seal, named.target, named.bytes) == (bundle.manifest.sha256, "onnxruntime", 406)


def test_a_command_earns_emulated_unless_it_says_otherwise(bundle: Bundle, tmp_path: Path) -> None:
    told = subject(bundle, tmp_path, 'del facts["evidence"]').process(1, PLAN)
    assert told.evidence is Evidence.EMULATED


def test_a_long_run_takes_the_longest_input(bundle: Bundle, tmp_path: Path) -> None:
    measure, case, course = subject(bundle, tmp_path).sustained(1, 0.6, PLAN)
    assert (measure, case) == ("latency", "padded")
    assert len(course) == round(0.6 / 0.0061)
    assert course[1][0] == course[0][1]


def test_a_runner_without_times_or_one_that_breaks(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match="tells no times"):
        subject(bundle, tmp_path, 'facts["seconds"] = {}').process(1, PLAN)
    with pytest.raises(PlanishError, match=r"The run broke: .*SIGKILL"):
        subject(bundle, tmp_path, "import os; os.kill(os.getpid(), 9)").process(1, PLAN)


def test_what_cannot_be_measured_is_told_and_what_was_named_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "runner.py"
    path.write_text(RUNNER.replace("FACTS", ""))
    execution = Execution(1, 60.0, {"onnxruntime": f"{sys.executable} {path}"})
    found = [one for one in subjects([bundle], [], execution) if isinstance(one, str)]
    assert f"{bundle.manifest.name}, executorch: there is no artifact" in found
    with pytest.raises(PlanishError, match="no artifact for executorch"):
        list(subjects([bundle], ["executorch"], execution))


def test_no_golden_inputs(bundle: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    bare = Path(shutil.copytree(bundle.root, tmp_path / "bare.planish"))
    entries = dict(bundle.manifest.targets)
    entries["onnxruntime"] = entries["onnxruntime"].model_copy(update={"golden": None})
    without = replace(bundle, root=bare, manifest=bundle.manifest.model_copy(update={"targets": entries}))
    with pytest.raises(PlanishError, match="stores no golden inputs"):
        subject(without, tmp_path)

"""Compiles on a Ray cluster: what a node sends, what the build makes of it, and a real Ray of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matrices import FACTS, bundle, contents

from planish.matrix import cluster
from planish.matrix import compile as module
from planish.matrix.cluster import Cluster, Item, compile_here, expected
from planish.matrix.compile import Compiled
from planish.matrix.file import Job
from planish_passes.errors import PlanishError

MAKES = """
import json, sys, tomllib
from pathlib import Path
at = Path(tomllib.loads(Path(sys.argv[3]).read_text())["output"])
(at / "targets").mkdir(parents=True)
(at / "manifest.json").write_text('{"format": "planish-bundle"}')
(at / "targets" / "empty").write_bytes(b"")
(at / "targets" / "model").write_bytes(b"0123456789")
print("capture", file=sys.stderr)
print('{"ok": true}')
"""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with the same installation, whose compiles only write files."""
    monkeypatch.setattr(cluster, "read_facts", lambda folder: FACTS)
    monkeypatch.setattr(module, "_CHILD", (sys.executable, "-c", MAKES))
    monkeypatch.setattr(cluster, "_PIECE", 4)


def items(job: Job, **changes: Any) -> list[Item]:
    wanted = {**expected(FACTS, job.request), **changes}
    return list(compile_here(job.request.model_dump_json(exclude={"output"}), job.name, wanted))


def received(job: Job, sent: list[Item]) -> Compiled:
    """What a build makes of it, without a cluster."""
    driver = object.__new__(Cluster)
    return driver._receive(job, iter(sent), lambda line: None)


@pytest.mark.usefixtures("node")
def test_a_bundle_travels_in_pieces(job: Job) -> None:
    sent = items(job)
    assert sent[0] == ("say", "capture")
    assert [value for kind, value in sent if kind == "file" and value[0] == "targets/model"] == [
        ("targets/model", b"0123"),
        ("targets/model", b"4567"),
        ("targets/model", b"89"),
    ]
    bundle(job.output, b"old")
    made = received(job, sent)
    assert made.passed
    assert contents(job.output) == {
        "manifest.json": b'{"format": "planish-bundle"}',
        "targets/empty": b"",
        "targets/model": b"0123456789",
    }


@pytest.mark.usefixtures("node")
def test_a_stream_that_breaks_off_leaves_the_old_bundle(job: Job) -> None:
    sent = items(job)
    before = contents(bundle(job.output, b"old"))
    for length in range(1, len(sent)):
        with pytest.raises(PlanishError, match=r"ended without a word|in part only"):
            received(job, sent[:length])
        assert contents(job.output) == before
    assert os.listdir(job.output.parent) == [job.output.name]


@pytest.mark.usefixtures("node")
def test_a_node_with_another_installation_refuses(job: Job) -> None:
    for changes, told in (
        ({"packages": {"torch": "2.14.0", "sdk-of-onnxruntime": "1.0", "sdk-of-coreml": "1.0"}}, "2.14.0 -> 2.13.0"),
        ({"planish": {"sources": "1" * 64}}, "planish's own code changed"),
        ({"machine": {**expected(FACTS, job.request)["machine"], "processor": "riscv64"}}, "processor: riscv64 -> "),
    ):
        made = received(job, items(job, **changes))
        assert made.error is not None
        assert told in made.error.what
    assert not job.output.exists()


@pytest.mark.usefixtures("node")
def test_errors_and_gates_come_back(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    told = '{"error": {"what": "a", "where": "b", "hint": "c"}}'
    monkeypatch.setattr(module, "_CHILD", (sys.executable, "-c", f"print('{told}'); raise SystemExit(1)"))
    made = received(job, items(job))
    assert made.error is not None
    assert (made.summary, made.error.what) == (None, "a")
    monkeypatch.setattr(module, "_CHILD", (sys.executable, "-c", "print('{\"ok\": false}'); raise SystemExit(3)"))
    gate = received(job, items(job))
    assert (gate.passed, gate.summary) == (False, {"ok": False})


@pytest.mark.usefixtures("node")
def test_other_targets_may_differ(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(FACTS, packages={**FACTS.packages, "directml": {"sdk-of-directml": "2"}})
    monkeypatch.setattr(cluster, "read_facts", lambda folder: facts)
    assert received(job, items(job)).passed


@pytest.mark.usefixtures("node")
def test_a_cancelled_task_ends_its_compile_and_leaves_nothing(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"
    monkeypatch.setattr(module, "_CHILD", (sys.executable, "-c", hangs))
    monkeypatch.setattr(cluster.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    asked = job.request.model_dump_json(exclude={"output"})
    task = compile_here(asked, job.name, expected(FACTS, job.request))
    kind, pid = next(task)
    assert kind == "say"
    assert os.listdir(tmp_path / "temporary")
    task.close()  # type: ignore[attr-defined]
    assert os.listdir(tmp_path / "temporary") == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PlanishError, match="not installed") as caught:
        Cluster(FACTS)
    assert "planish[ray]" in caught.value.hint


TOML = """
output = "dist"
targets = ["reference"]
task = "feature-extraction"
verify = false
cache = "cache"
[[model]]
model = "./m"
"""


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A project with one tiny model, and an environment in which Ray starts quickly."""
    from support import FAMILIES, random_model

    random_model(FAMILIES["bert"]()).save_pretrained(tmp_path / "m")
    (tmp_path / "planish.toml").write_text(TOML)
    # Ray imports jsonschema in each of its processes, and this part of that takes seconds; Ray waits 15 in all.
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "rfc3987_syntax.py").write_text("raise ImportError('left out')\n")
    path = os.pathsep.join([str(tmp_path / "quick"), *(p for p in sys.path if p)])
    return tmp_path, {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home"), "PYTHONPATH": path}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_real_ray_of_this_machine(project: tuple[Path, dict[str, str]]) -> None:
    from planish.bundle import open_bundle

    root, env = project
    command = [sys.executable, "-m", "planish.cli", "build", "--executor", "ray", "--json"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    data = json.loads(done.stdout)
    if "error" in data and data["error"]["what"].startswith("Ray does not start"):
        pytest.skip(f"this machine is too busy for Ray: {data['error']['what']}")
    assert [job["action"] for job in data["jobs"]] == ["built"], done.stdout
    assert "m-float | " in done.stderr
    assert open_bundle(root / "dist" / "m-float.planish").manifest.name == "m-float"
    local = subprocess.run([*command[:4], "--json"], cwd=root, env=env, capture_output=True, text=True, check=True)
    assert [job["action"] for job in json.loads(local.stdout)["jobs"]] == ["up to date"]

"""planish build: plan, table, JSON, exit codes; and the whole of it on a real model, as a user runs it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matrices import bundle

from planish.matrix import run as module
from planish.matrix import work
from planish.matrix.compile import Compiled
from planish.matrix.file import Job
from planish_passes.errors import PlanishError

TEXT = """
output = "dist"
targets = ["onnxruntime"]
cache = "cache"
[recipe.float]
[recipe.int8]
[[model]]
model = "./m"
"""
SUMMARY: dict[str, Any] = {
    "ok": True,
    "failed": [],
    "targets": [{"target": "onnxruntime", "bytes": 23_100_000, "evidence": "executed"}],
}


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Compiled]:
    """A project whose compiles end as the dictionary says; else they pass."""
    from matrices import FACTS

    ends: dict[str, Compiled] = {}

    class Fake:
        def compile(self, job: Job, say: Callable[[str], None]) -> Compiled:
            say("capture")
            bundle(job.output, files={"manifest.json": b'{"format": "planish-bundle", "source": {"files": []}}'})
            return ends.get(job.name, Compiled(SUMMARY, None, 2.0))

        def stop(self) -> None:
            raise AssertionError("nothing is to be stopped")

    monkeypatch.setattr(module, "Local", Fake)
    monkeypatch.setattr(work, "read_facts", lambda folder: FACTS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "planish.toml").write_text(TEXT)
    return ends


def test_table_and_progress(run: Any, ends: dict[str, Compiled]) -> None:
    result = run("build")
    assert result.exit_code == 0
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert rows[1:3] == [f"m-{r} built 2.0 s 23.1 MB onnxruntime executed" for r in ("float", "int8")]
    assert "m-int8 | capture" in result.stderr
    again = run("build")
    assert "m-int8 up to date - 23.1 MB onnxruntime executed" in " ".join(again.stdout.split())
    assert again.stderr == ""
    assert "capture" not in run("build", "--force", "--quiet").stderr
    assert run("build", "--force", "--twice").stdout.count("a second compile wrote the same artifacts") == 2


def test_plan_and_why(run: Any, ends: dict[str, Compiled], tmp_path: Path) -> None:
    run("build", "--only", "m-float")
    assert [line.split() for line in run("build", "--plan").stdout.splitlines()] == [
        ["m-float", "up", "to", "date"],
        ["m-int8", "compile", "not", "built", "here", "before"],
    ]
    (tmp_path / "planish.toml").write_text(TEXT.replace("[recipe.float]", "[recipe.float]\nthreads = 3"))
    assert "threads: 1 -> 3" in run("build", "-n").stdout
    why = run("build", "--why", "m-float").stdout
    assert "m-float: compile\n  threads: 1 -> 3\n  key " in why
    assert "model.files.config.json = 44136fa3" in why
    data = json.loads(run("build", "--why", "m-float", "--json").stdout)["jobs"][0]
    assert data["reasons"] == ["threads: 1 -> 3"]
    assert data["inputs"]["packages"]["torch"] == "2.13.0"
    assert json.loads(run("build", "--plan", "--json").stdout)["jobs"][1]["action"] == "compile"


def test_json(run: Any, ends: dict[str, Compiled], tmp_path: Path) -> None:
    data = json.loads(run("build", "--json").stdout)
    assert data["ok"] is True
    assert [job["action"] for job in data["jobs"]] == ["built", "built"]
    assert data["jobs"][0]["bundle"] == str(tmp_path / "dist" / "m-float.planish")
    assert data["jobs"][0]["result"]["targets"][0]["bytes"] == 23_100_000


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals, /proc")
GATE = {"target": "onnxruntime", "check": "quality", "reason": "too far"}


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (Compiled({**SUMMARY, "ok": False, "failed": [GATE]}, None, 1.0), 3, "m-int8: onnxruntime quality: too far"),
        (Compiled(None, PlanishError("It cannot.", "there", "mend it"), 1.0), 1, "hint: mend it"),
    ],
)
def test_exit_codes(run: Any, ends: dict[str, Compiled], end: Compiled, code: int, told: str) -> None:
    ends["m-int8"] = end
    result = run("build")
    assert result.exit_code == code
    assert told in result.stdout
    assert "m-float built" in " ".join(result.stdout.split())
    assert json.loads(run("build", "--json").stdout)["ok"] is False


def test_a_failure_weighs_more_than_a_gate(run: Any, ends: dict[str, Compiled]) -> None:
    ends["m-float"] = Compiled({**SUMMARY, "ok": False, "failed": [GATE]}, None, 1.0)
    ends["m-int8"] = Compiled(None, PlanishError("It cannot.", "there", "mend it"), 1.0)
    assert run("build").exit_code == 1


def test_wrong_calls(run: Any, ends: dict[str, Compiled], told: Any, tmp_path: Path) -> None:
    result = run("build", "--only", "m-int9")
    assert (result.exit_code, told(result)[2]) == (1, "did you mean 'm-int8'?")
    assert run("build", "--executor", "slurm").exit_code == 2
    assert run("build", "none.toml").exit_code == 1
    assert run("build", "--jobs", "0").exit_code == 2
    (tmp_path / "planish.toml").write_text(TEXT + 'recipe = "int9"\n')
    assert "unknown recipe 'int9'" in told(run("build"))[0]
    (tmp_path / "m" / "config.json").unlink()
    (tmp_path / "planish.toml").write_text(TEXT)
    assert run("build", "--plan").exit_code == 1


class Project:
    """A real model, and the command line as a process."""

    def __init__(self, root: Path) -> None:
        from support import FAMILIES, random_model

        self.root = root
        random_model(FAMILIES["bert"]()).save_pretrained(root / "m")
        self.write("")
        self.env = {**os.environ, "XDG_CACHE_HOME": str(root / "home")}

    def write(self, options: str) -> None:
        head = 'task = "feature-extraction"\nverify = false\n'
        text = TEXT.replace("[recipe.int8]", f"[recipe.int8]\n{options}").replace("onnxruntime", "reference")
        (self.root / "planish.toml").write_text(head + text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "planish.cli", "build", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.root, env=self.env, start_new_session=True, **pipes)

    def build(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and JSON."""
        process = self.start("--json", *arguments)
        said, told = process.communicate()
        assert said, told
        return process.returncode, json.loads(said)

    def wait_for(self, process: subprocess.Popen[str], *words: str) -> None:
        """Until a line of progress has all of these words."""
        assert process.stderr is not None
        for line in process.stderr:
            if all(word in line for word in words):
                return
        raise AssertionError(f"it ended without {words}")

    def actions(self) -> list[str]:
        code, data = self.build()
        assert code == 0, data
        return [job["action"] for job in data["jobs"]]


@dataclass(frozen=True)
class Crashed:
    """A project whose first build lost a compile to a crash, and what that build said."""

    project: Project
    code: int
    jobs: list[dict[str, Any]]
    second: list[str]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    made = Project(tmp_path_factory.mktemp("project"))
    process = made.start("--json")
    made.wait_for(process, "m-float | ", "source")
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    os.kill(next(int(pid) for told in children for pid in told.read_text().split()), signal.SIGSEGV)
    said, _ = process.communicate()
    return Crashed(made, process.returncode, json.loads(said)["jobs"], made.actions())


@pytest.fixture(scope="module")
def project(crashed: Crashed) -> Project:
    return crashed.project


@LINUX
def test_a_crash_is_the_end_of_one_job(crashed: Crashed) -> None:
    assert crashed.code == 1
    assert [job["action"] for job in crashed.jobs] == ["failed", "built"]
    assert "SIGSEGV" in crashed.jobs[0]["error"]["what"]
    assert crashed.second == ["built", "up to date"]


@LINUX
def test_nothing_to_do_takes_no_time(project: Project) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert project.actions() == ["up to date", "up to date"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2
    code = (
        "import sys; from planish.cli import main; sys.argv = ['planish', 'build', '-q']\n"
        "try: main()\n"
        "finally: print('LOADED', sorted(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project.root, env=project.env, capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("LOADED")[2]
    assert "'planish.matrix.run'" in loaded
    assert "'torch'" not in loaded
    assert "'transformers'" not in loaded


@LINUX
def test_bundles_are_bundles(project: Project) -> None:
    from planish.bundle import open_bundle

    for name in ("m-float", "m-int8"):
        assert open_bundle(project.root / "dist" / f"{name}.planish").manifest.name == name
    shutil.rmtree(project.root / "dist")
    assert project.actions() == ["from cache", "from cache"]
    assert open_bundle(project.root / "dist" / "m-int8.planish").manifest.name == "m-int8"


@LINUX
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted(project: Project, how: signal.Signals) -> None:
    """The old bundle stands, nothing half is left, no compile goes on, and the next build is as if nothing had been."""
    from planish.bundle import open_bundle

    project.write(f"threads = {10 + how}")
    process = project.start()
    project.wait_for(process, "m-int8 | ", "estimate")  # its folder for work is there by now
    assert [name for name in os.listdir(project.root / "dist") if name.startswith(".planish-") and "build" not in name]
    process.send_signal(how)
    process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[how]
    end = time.monotonic() + 30
    while [name for name in os.listdir(project.root / "dist") if name.startswith(".planish-") and "build" not in name]:
        assert time.monotonic() < end, "the compile goes on, or left its work"
        time.sleep(0.1)
    assert open_bundle(project.root / "dist" / "m-int8.planish").manifest.request["threads"] == 1
    assert not list((project.root / "cache" / "objects").rglob(".*"))
    project.write("")
    assert project.actions() == ["up to date", "up to date"]

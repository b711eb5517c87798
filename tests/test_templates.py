"""The build-step templates in ci/templates: valid by the schemas of their systems, and run as far as a system is here.

GitHub's and GitLab's runners, Xcode and MSBuild are not here: their shells, variables and tools are stood in for,
or xbuild, Mono's build engine, reads the same file. The one bundle comes out of a cache, so that nothing is compiled.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from matrices import bundle

from planish.matrix.store import Entry, fingerprints
from planish.matrix.work import Work

TEMPLATES = Path(__file__).parents[1] / "ci" / "templates"
posix = pytest.mark.skipif(os.name != "posix", reason="bash")


def run(*command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


BUNDLE = {
    "manifest.json": b'{"format": "planish-bundle"}',
    "targets/coreml/model.mlpackage/Manifest.json": b"{}",
    "tokenizer/config.json": b"{}",
    "tokenizer/vocab.txt": b"[PAD]",
}
SUMMARY = {"ok": True, "failed": [], "targets": [{"target": "coreml", "bytes": 2, "evidence": "structural"}]}


@dataclass(frozen=True)
class App:
    """The repository of an app with a tiny model, and a folder with commands in front of PATH."""

    root: Path
    commands: Path

    @property
    def path(self) -> str:
        """PATH with `planish` as it is here."""
        return f"{self.commands}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's own cache that is empty."""
    with pytest.MonkeyPatch.context() as patch:
        at = tmp_path_factory.mktemp("home")
        patch.setenv("XDG_CACHE_HOME", str(at))
        yield at


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, home: Path) -> App:
    """A bundle for Core ML is in the cache."""
    root = tmp_path_factory.mktemp("app")
    (root / "m").mkdir()
    (root / "m" / "config.json").write_text("{}")
    text = 'output = "dist"\ntargets = ["coreml"]\n[[model]]\nname = "tiny"\nmodel = "m"\n'
    (root / "planish.toml").write_text(f'cache = "cache"\n{text}')
    work = Work.open(root / "planish.toml", None, print)
    inputs = work.plan(work.matrix.jobs)[0].inputs
    assert inputs is not None
    entry = Entry(inputs.data, fingerprints(bundle(root / "made", files=BUNDLE)), SUMMARY)
    work.cache.store(entry, root / "made")
    commands = root / "bin"
    commands.mkdir()
    executable(commands / "planish", f'#!/bin/sh\nexec "{sys.executable}" -m planish.cli "$@"\n')
    done = run(str(commands / "planish"), "build", cwd=root)
    assert done.returncode == 0, done.stdout
    return App(root, commands)


def refusing(folder: Path, code: int) -> Path:
    """A `planish` that ends with a code."""
    return executable(folder / "planish", f'#!/bin/sh\necho "called $*"\nexit {code}\n')


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((TEMPLATES / name).read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "schema"), [("github-actions.yml", "vendor.github-workflows"), ("gitlab-ci.yml", "vendor.gitlab-ci")]
)
def test_the_schemas_of_the_systems(name: str, schema: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    assert run(*command, str(TEMPLATES / name)).returncode == 0
    broken = tmp_path / name
    broken.write_text((TEMPLATES / name).read_text().replace("runs-on:", "runs_on:").replace("script:", "scripts:"))
    assert run(*command, str(broken)).returncode == 1


def steps(name: str) -> list[str]:
    """The lines that call planish, but those that ask the machine or check everything again."""
    if name == "gitlab-ci.yml":
        lines = load(name)["planish"]["script"]
    else:
        lines = [step["run"] for step in load(name)["jobs"]["build"]["steps"] if "run" in step]
    return [line for line in lines if "planish build" in line]


@posix
@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_the_steps_of_pipelines(built: App, name: str, tmp_path: Path) -> None:
    assert len(steps(name)) == 2
    for line in steps(name):  # both systems run bash with these options (GitHub: `shell: bash`)
        done = run("bash", "-eo", "pipefail", "-c", line, cwd=built.root, PATH=built.path)
        assert done.returncode == 0, done.stdout
    assert '"ok": true' in (built.root / "result.json").read_text()
    for code in (1, 3):
        refusing(tmp_path, code)
        failed = run("bash", "-eo", "pipefail", "-c", steps(name)[-1], cwd=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
        assert failed.returncode == code


@posix
def test_every_bundle_is_verified_and_one_bad_one_fails(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "dist" / f"{name}.planish").mkdir(parents=True)
    executable(tmp_path / "planish", '#!/bin/sh\necho "$*"\n[ "$2" != dist/a.planish ]\n')
    loops = [line for line in load("gitlab-ci.yml")["planish"]["script"] if "verify" in line]
    loops += [s["run"] for s in load("github-actions.yml")["jobs"]["build"]["steps"] if "verify" in s.get("run", "")]
    assert len(loops) == 2
    for line in loops:
        done = run("bash", "-eo", "pipefail", "-c", line, cwd=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
        assert (done.returncode, done.stdout) == (1, "verify dist/a.planish\n")
        executable(tmp_path / "good", '#!/bin/sh\necho "$*"\n')
        done = run("bash", "-ec", line.replace("planish verify", "./good verify"), cwd=tmp_path)
        assert done.stdout == "verify dist/a.planish\nverify dist/b.planish\n"


XCRUN = """#!/bin/sh
echo "xcrun $*"
[ "$1 $2" = "coremlcompiler compile" ] || exit 1
[ -f "$3/Manifest.json" ] || exit 1
mkdir "$4/$(basename "$3" .mlpackage).mlmodelc"
"""


def xcode(app: App, tmp_path: Path, *names: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The build phase, with the variables that Xcode sets and a compiler that only makes a folder."""
    executable(app.commands / "xcrun", XCRUN)
    given = {
        "SRCROOT": str(app.root),
        "TARGET_BUILD_DIR": str(tmp_path / "Build Products"),
        "UNLOCALIZED_RESOURCES_FOLDER_PATH": "My App.app",
        "IPHONEOS_DEPLOYMENT_TARGET": "18.2",
        "PATH": app.path,
    }
    return run("bash", str(TEMPLATES / "xcode-build-phase.sh"), *names, cwd=tmp_path, **{**given, **env})


@posix
def test_the_build_phase_of_xcode(built: App, tmp_path: Path) -> None:
    script = str(TEMPLATES / "xcode-build-phase.sh")
    assert run(str(Path(sys.executable).with_name("shellcheck")), script).returncode == 0
    for _ in range(2):  # what an earlier build left is replaced
        done = xcode(built, tmp_path, "tiny-float")
        assert done.returncode == 0, done.stdout
    inside = tmp_path / "Build Products" / "My App.app" / "tiny-float"
    assert sorted(p.relative_to(inside).as_posix() for p in inside.rglob("*")) == [
        "model.mlmodelc",
        "tokenizer",
        "tokenizer/config.json",
        "tokenizer/vocab.txt",
    ]
    assert "--deployment-target 18.2 --platform ios" in done.stdout
    none = xcode(built, tmp_path)
    assert (none.returncode, none.stdout.splitlines()[0].startswith("error: name at least one")) == (2, True)
    unknown = xcode(built, tmp_path, "tiny-int8")
    assert unknown.returncode == 1
    assert "error: planish build ended with 1" in unknown.stdout
    gate = xcode(built, tmp_path, "tiny-float", PLANISH=str(refusing(tmp_path, 3)))
    assert gate.returncode == 3
    assert "error: a model failed a gate" in gate.stdout
    elsewhere = xcode(built, tmp_path, "other", PLANISH=str(refusing(tmp_path, 0)))
    assert elsewhere.returncode == 1
    assert "has no artifact for coreml" in elsewhere.stdout


GRADLE = """
ext.planish = [bundles: ['tiny-float'], target: 'coreml', file: '%(root)s/planish.toml', output: '%(root)s/dist',
               command: ['%(command)s']]
apply from: '%(template)s'
"""


@pytest.mark.skipif(shutil.which("gradle") is None, reason="gradle is not installed (Debian: apt-get install gradle)")
def test_the_gradle_task(built: App, tmp_path: Path) -> None:
    def gradle(command: Path) -> subprocess.CompletedProcess[str]:
        values = {"root": built.root, "command": command, "template": TEMPLATES / "planish.gradle"}
        (tmp_path / "build.gradle").write_text(GRADLE % values)
        return run("gradle", "--no-daemon", "--offline", "planishAssets", cwd=tmp_path)

    done = gradle(built.commands / "planish")
    assert done.returncode == 0, done.stdout
    made = tmp_path / "build" / "generated" / "planish" / "tiny-float"
    assert (made / "model.mlpackage" / "Manifest.json").is_file()
    assert (made / "tokenizer" / "vocab.txt").is_file()
    failed = gradle(refusing(tmp_path, 3))
    assert failed.returncode != 0
    assert "exit value 3" in failed.stdout


PROJECT = """<Project DefaultTargets="Build" xmlns="http://schemas.microsoft.com/developer/msbuild/2003">
  <PropertyGroup>
    <OutDir>out/</OutDir>
    <PlanishTarget>coreml</PlanishTarget>
    <PlanishCommand>{command}</PlanishCommand>
    <PlanishFile>{root}/planish.toml</PlanishFile>
    <PlanishOutput>{root}/dist</PlanishOutput>
  </PropertyGroup>
  <ItemGroup><PlanishBundle Include="{bundle}" /></ItemGroup>
  <Target Name="AssignTargetPaths" />
  <Target Name="Build" DependsOnTargets="AssignTargetPaths" />
  <Import Project="{template}" />
</Project>
"""
ENGINE = next((tool for tool in ("msbuild", "xbuild") if shutil.which(tool)), None)


def test_the_msbuild_target_is_whole() -> None:
    project = ET.parse(TEMPLATES / "planish.targets").getroot()
    space = {"m": "http://schemas.microsoft.com/developer/msbuild/2003"}
    targets = {target.get("Name"): target for target in project.findall("m:Target", space)}
    assert set(targets) == {"PlanishBuild", "_PlanishCopy"}
    assert targets["PlanishBuild"].get("BeforeTargets") == "AssignTargetPaths"
    called = [task.get("Targets") for task in targets["PlanishBuild"].findall("m:MSBuild", space)]
    assert called == ["_PlanishCopy"]


@pytest.mark.skipif(ENGINE is None, reason="neither msbuild nor xbuild is installed (Debian: mono-xbuild)")
def test_the_msbuild_target_runs(built: App, tmp_path: Path) -> None:
    def build(command: Path, bundle: str) -> subprocess.CompletedProcess[str]:
        values = {"root": built.root, "command": command, "bundle": bundle, "template": TEMPLATES / "planish.targets"}
        (tmp_path / "app.csproj").write_text(PROJECT.format(**values))
        return run(str(ENGINE), "app.csproj", cwd=tmp_path)

    for _ in range(2):
        done = build(built.commands / "planish", "tiny-float")
        assert done.returncode == 0, done.stdout
    assert (tmp_path / "out" / "models" / "tiny-float" / "model.mlpackage" / "Manifest.json").is_file()
    assert (tmp_path / "out" / "models" / "tiny-float" / "tokenizer" / "vocab.txt").is_file()
    failed = build(refusing(tmp_path, 3), "tiny-float")
    assert failed.returncode != 0
    assert "exited with code" in failed.stdout
    none = build(refusing(tmp_path, 0), "other")
    assert none.returncode != 0
    assert "other has no artifact for coreml" in none.stdout

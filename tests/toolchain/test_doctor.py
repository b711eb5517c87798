"""Doctor: what counts as a problem, and what mends it."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import planish.doctor as doctor
from planish.requirements import demand
from planish_passes.errors import PlanishError
from planish_targets import registry
from planish_targets.contract import Evidence, Missing, Runner, Unavailable

RUNS = Runner(("true",), Evidence.EMULATED, "an interpreter")


def target(name: str = "t", requires: dict[str, str] | None = None, runner: Any = RUNS) -> Any:
    def run(artifact: Any) -> Any:
        if isinstance(runner, Exception):
            raise runner
        return runner

    return SimpleNamespace(name=name, extra="ex", requires=requires or {"packaging": ">=1"}, runner=run)


def test_healthy() -> None:
    health = doctor.examine_target(target())
    assert (health.ok, health.installed, health.evidence, health.device) == (
        True,
        True,
        Evidence.EMULATED,
        "an interpreter",
    )


def test_missing_package() -> None:
    health = doctor.examine_target(target(requires={"no-such-thing": ">=1", "packaging": ">=1"}))
    assert (health.ok, health.installed, health.evidence) == (False, False, None)
    assert [f.mend for f in health.findings] == ["pip install 'planish[ex]'"]


def test_outside_the_window() -> None:
    health = doctor.examine_target(target(requires={"packaging": ">=1,<2"}))
    assert (health.ok, health.installed) == (False, True)
    assert health.findings[0].mend == "pip install 'packaging>=1,<2'"


@pytest.mark.parametrize("runner", [Unavailable("no Mac"), PlanishError("no Mac", "w", "h")])
def test_nothing_runs_it_is_a_warning(runner: Any) -> None:
    health = doctor.examine_target(target(runner=runner))
    assert (health.ok, health.evidence, health.device) == (True, None, "no Mac")
    assert "--runner t=" in health.findings[0].mend


def test_verdict_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "good": target("good"),
        "absent": target("absent", {"no-such-thing": ">=1"}),
        "old": target("old", {"packaging": "<1"}),
        "reference": target("reference"),
    }
    monkeypatch.setattr(registry, "targets", lambda: found)
    monkeypatch.setattr(doctor, "_planish", lambda: ("1.0", ()))
    assert not doctor.examine().ok()  # one that is installed is too old
    assert doctor.examine(["good"]).ok(["good"])
    assert not doctor.examine(["good", "absent"]).ok(["good", "absent"])
    del found["old"]
    assert doctor.examine().ok()  # what is not installed is not wanted
    del found["good"]
    assert not doctor.examine().ok()  # nothing to compile for
    with pytest.raises(PlanishError):
        doctor.examine(["nope"])


def variant(name: str, missing: Missing | None = None) -> Any:
    made = target(name, runner=Unavailable("nothing here runs it"))
    made.missing = lambda: missing
    return made


def test_variants_count_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    base = target("base")
    base.variants = {
        "base:sdk": variant("base:sdk", Missing("the SDK is not there", "set SDK_ROOT")),
        "base:b": variant("base:b"),
    }
    monkeypatch.setattr(registry, "targets", lambda: {"base": base})
    monkeypatch.setattr(doctor, "_planish", lambda: ("1.0", ()))
    health = doctor.examine()
    assert [(t.name, t.variant, t.ok) for t in health.targets] == [
        ("base", False, True),
        ("base:sdk", True, False),
        ("base:b", True, True),
    ]
    assert health.targets[1].findings == (doctor.Finding("the SDK is not there", "set SDK_ROOT"),)
    assert health.ok()
    assert not doctor.examine(["base:sdk"]).ok(["base:sdk"])
    assert doctor.examine(["base:b"]).ok(["base:b"])


def test_what_no_package_brings_is_demanded_before_any_work() -> None:
    with pytest.raises(PlanishError) as caught:
        demand(variant("base:sdk", Missing("the SDK is not there", "set SDK_ROOT")))
    assert caught.value.what == "target 'base:sdk' cannot be compiled here: the SDK is not there"
    assert caught.value.hint == "set SDK_ROOT"
    demand(variant("base:b"))


def test_own_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["packaging<1", "pytest; extra == 'x'", "no-such-thing>=2", "pluggy>=0.1"]
    real = metadata.distribution
    fake: Any = SimpleNamespace(version="0.1", requires=requires)
    monkeypatch.setattr(metadata, "distribution", lambda name: fake if name == "planish" else real(name))
    version, packages = doctor._planish()
    assert version == "0.1"
    assert [(p.package, p.ok) for p in packages] == [("packaging", False), ("no-such-thing", False), ("pluggy", True)]
    assert [f.mend for f in doctor._package_findings(packages)] == [
        "pip install 'packaging<1'",
        "pip install 'no-such-thing>=2'",
    ]


def test_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    assert doctor._planish() == (None, ())


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    machine = doctor.look_around()
    assert "HF_HUB_OFFLINE" in machine.hub
    assert machine.cores >= 1
    assert machine.disk_free > 0
    if sys.platform == "linux":
        assert machine.memory is not None
        assert machine.memory_free is not None
        assert 0 < machine.memory_free <= machine.memory
    small = replace(machine, disk_free=1, memory_free=1, python="3.10.2")
    assert [f.grave for f in doctor._machine_findings(small)] == [True, False, False]
    roomy = replace(machine, disk_free=1 << 40, memory_free=None)
    assert doctor._machine_findings(roomy) == []


def test_numbers_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("12\n")
    numbers = [doctor._number(tmp_path / n) for n in ("memory.max", "memory.current", "nothing")]
    assert numbers == [None, 12, None]

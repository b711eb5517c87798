"""The machine, without its name; what is not known says so."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from planish.bench import environment as module
from planish.bench.environment import environment, temperature


def test_no_name_of_the_machine_or_its_user() -> None:
    told = environment((0.1, None)).model_dump_json()
    assert platform.node() not in told or len(platform.node()) < 4
    assert Path.home().name not in told or Path.home().name in ("root", "")
    assert '"energy":"not measured"' in told


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cores", lambda: 2)
    assert environment((0.5, None)).notes == ()
    assert environment((3.0, None)).notes == ("the machine was busy: 3.0 running processes on 2 cores before it began",)
    assert environment((None, None)).load is None


def test_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ZONES", tmp_path)
    assert temperature() is None
    assert environment((None, None)).thermal == "not measured"
    for number, value in enumerate(("45000", "71500", "off")):
        (tmp_path / f"thermal_zone{number}").mkdir()
        (tmp_path / f"thermal_zone{number}" / "temp").write_text(value)
    assert temperature() == 71.5
    assert environment((None, 40.0)).thermal == "40 °C before, 72 °C after (warmest sensor)"


def test_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SUPPLIES", tmp_path)
    assert environment((None, None)).power == "not measured"
    (tmp_path / "AC").mkdir()
    for online, power in (("0\n", "battery"), ("1\n", "mains")):
        (tmp_path / "AC" / "online").write_text(online)
        assert environment((None, None)).power == power

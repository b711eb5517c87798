"""Names of targets and of their variants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from planish.request_checks import installed_names
from planish_passes.errors import PlanishError
from planish_targets import registry

VULKAN, COREML = (SimpleNamespace(name=f"made:{name}") for name in ("vulkan", "coreml"))


@pytest.fixture(autouse=True)
def targets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    offers = SimpleNamespace(name="made", variants={"made:coreml": COREML, "made:vulkan": VULKAN})
    found: dict[str, Any] = {"made": offers, "plain": SimpleNamespace(name="plain")}
    monkeypatch.setattr(registry, "targets", lambda: found)
    return found


def test_a_variant_and_its_programs_are_found_by_name(targets: dict[str, Any]) -> None:
    assert registry.find("made:vulkan") is VULKAN
    assert registry.find("made:vulkan/decode") is VULKAN
    assert registry.find("made/decode") is targets["made"]
    assert list(registry.variants()) == ["made:coreml", "made:vulkan"]
    assert list(registry.known()) == ["made", "plain", "made:coreml", "made:vulkan"]


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("made:vulcan", "unknown variant", "did you mean 'made:vulkan'? variants of made: made:coreml, made:vulkan"),
        ("made:qqq", "unknown variant", "variants of made: made:coreml, made:vulkan"),
        ("plain:vulkan", "unknown variant", "plain has no variants: write 'plain'"),
        ("other:vulkan", "unknown target", "made, plain, made:coreml, made:vulkan"),
        ("plian", "unknown target", "did you mean 'plain'?"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name: str, what: str, hint: str) -> None:
    with pytest.raises(PlanishError) as caught:
        registry.find(name)
    assert caught.value.what.startswith(what)
    assert hint in caught.value.hint


def test_names_become_paths_that_every_file_system_takes() -> None:
    assert registry.folder("made:vulkan/decode") == "made-vulkan/decode"


def test_real_names_are_different_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    folders = [registry.folder(name).casefold() for name in registry.known()]
    assert len(set(folders)) == len(folders) >= 5
    assert not any(set(f) & set('<>:"/\\|?*') for f in folders)


def test_targets_on_request_are_known_but_not_compiled_for_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    on_request = [name for name, t in registry.targets().items() if not t.capabilities.default]
    assert on_request == ["coreai", "reference"]
    assert not set(on_request) & set(installed_names().default)

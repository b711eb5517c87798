"""A compile's result, small but complete (tests/bundles.py), written once and copied for tests that spoil it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundles import KNOWN, compiled, model_folder

from planish.bundle import contents, write_bundle
from planish.compiled import Compiled
from planish_targets import registry


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; its weights are never read as a model."""
    return model_folder(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session", autouse=True)
def known_targets() -> Iterator[None]:
    """Windows of versions that do not change with the real targets."""
    with pytest.MonkeyPatch.context() as patch:
        # Of this module alone: the session outlives these tests.
        patch.setattr(contents, "registry", SimpleNamespace(known=lambda: KNOWN, folder=registry.folder))
        yield


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Plots of reports take a process each, and are looked at in tests/toolchain/report, later in the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))
        yield


Make = Callable[..., Compiled]


@pytest.fixture(scope="session")
def make(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(marker)` = a compile whose artifacts contain `marker`, in a work folder of its own."""

    def build(marker: str = "one", task: str | None = None) -> Compiled:
        return compiled(model, tmp_path_factory.mktemp("work"), marker, task)

    return build


@pytest.fixture(scope="session")
def written(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle; only to be copied."""
    return write_bundle(make(), tmp_path_factory.mktemp("written") / "tiny-int8.planish")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    """A bundle to spoil."""
    return Path(shutil.copytree(written, tmp_path / written.name))

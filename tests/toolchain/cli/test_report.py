"""planish report: one page, several bundles, and what it will not overwrite."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest
from reports import manifest_data, write
from typer.testing import Result

Run = Callable[..., Result]
Told = Callable[[Result], tuple[str, str, str]]


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles") / "tiny-int8.planish")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are looked at elsewhere."""
    monkeypatch.setattr("planish.report.pages.draw", lambda specs: ({}, "not now"))


def test_a_page_beside(run: Run, bundle: Path, tmp_path: Path) -> None:
    done = run("report", bundle)
    assert done.exit_code == 0, done.stderr
    page = tmp_path / "tiny-int8.report.html"
    assert str(page) in done.stdout
    assert "<title>tiny-int8: Failed</title>" in page.read_text()
    assert run("report", bundle).exit_code == 0  # its own page may be replaced
    assert list(tmp_path.iterdir()) == [page]


def test_a_comparison(run: Run, bundle: Path, tmp_path: Path) -> None:
    other = write(bundle.with_name("other.planish"), {**manifest_data(), "name": "tiny-int4"})
    done = run("report", bundle, other, "-o", "changes/page.html", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["report"] == str(tmp_path / "changes" / "page.html")
    assert [(b["label"], b["name"]) for b in told["bundles"]] == [("A", "tiny-int8"), ("B", "tiny-int4")]
    found = told["bundles"][0]["targets"]
    assert {name: t["result"] for name, t in found.items()} == {
        "onnxruntime": "passed",
        "coreml": "failed",
        "executorch": "refused",
    }
    assert found["coreml"]["gates"][1]["value"] == "NaN"
    assert found["onnxruntime"]["placement"]["fallback"] == 5
    assert found["onnxruntime"]["calls"][0]["tokens_per_second"] == pytest.approx(3000)
    assert "tiny-int4" in (tmp_path / "changes" / "page.html").read_text()


def test_other_files_are_left_alone(run: Run, told: Told, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("<title>mine</title>")
    done = run("report", bundle, "-o", "mine.html")
    assert done.exit_code == 1
    assert "no report of planish" in told(done)[0]
    assert (tmp_path / "mine.html").read_text() == "<title>mine</title>"
    (tmp_path / "folder").mkdir()
    assert "There is a folder of that name" in told(run("report", bundle, "-o", "folder"))[0]


def test_a_folder_that_is_no_bundle(run: Run, told: Told, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    done = run("report", "x")
    assert done.exit_code == 1
    assert "not a planish bundle" in told(done)[0]


def test_too_many(run: Run, told: Told, bundle: Path) -> None:
    done = run("report", *[bundle] * 9)
    assert done.exit_code == 2
    assert told(done)[0] == "9 bundles do not fit beside each other."


def test_it_opens_in_the_browser(run: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not opened.append(url))
    done = run("report", bundle, "--open")
    assert opened == [(tmp_path / "tiny-int8.report.html").as_uri()]
    assert "no browser" not in done.stderr
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "no browser can be opened here" in run("report", bundle, "--open").stderr


def test_help_teaches(run: Run) -> None:
    done = run("report", "--help")
    assert "planish report before.planish after.planish" in done.stdout

"""The page in a real browser: it logs nothing, fetches nothing, fits a phone, follows light and dark, and the keyboard.

Skipped where there is no Chromium: `apt-get install chromium` on Debian and Ubuntu, or any Chrome in the PATH.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import pytest

from planish.report import Subject, comparison, page

Make = Callable[..., Subject]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Tab]:
    program = browser.chromium()
    if program is None:
        pytest.skip(browser.MISSING)
    with browser.tab(program) as opened:
        yield opened


def faults(tab: browser.Tab, path: Path, width: int, height: int) -> list[str]:
    """Everything that is wrong with a page as the browser sees it."""
    tab.logged.clear()
    tab.fetched.clear()
    tab.open(path, width, height)
    found = [f"logged {level}: {text}" for level, text in tab.logged]
    found += [f"fetched {url}" for url in tab.fetched if url != path.as_uri()]
    if (wide := tab.value("document.documentElement.scrollWidth")) > width:
        found.append(f"{wide} pixels wide")
    if not height < (tall := tab.value("document.documentElement.scrollHeight")) < 30_000:
        found.append(f"{tall} pixels high")
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pages", [1, 2])
def test_it_is_quiet_and_fits(tab: browser.Tab, make: Make, tmp_path: Path, size: str, pages: int) -> None:
    long = "a_very_long_name_without_any_place_to_break_it_" * 4

    def named(data: dict[str, Any]) -> None:
        data["name"] = data["source"]["location"] = long

    def deep(data: dict[str, Any]) -> None:
        data["weights"][0]["name"] = f"{long}.weight"
        data["targets"]["onnxruntime"]["drift"][0]["layers"][0]["module"] = long
        data["targets"]["onnxruntime"]["placement"]["nodes"][1]["module"] = long

    at = tmp_path / "report.html"
    at.write_bytes(page(make(named, deep)) if pages == 1 else comparison([make(label="A"), make(named, deep, "B")]))
    assert faults(tab, at, *SIZES[size]) == []
    shown = f"document.querySelectorAll('figure .{'narrow' if size == 'phone' else 'wide'} svg')"
    assert tab.value(f"[...{shown}].every(s => s.getBoundingClientRect().width > 300)")
    assert tab.value(f"{shown}.length") >= 3


def test_a_bad_page_is_noticed(tab: browser.Tab, tmp_path: Path) -> None:
    at = tmp_path / "bad.html"
    at.write_text(
        "<!doctype html><title>x</title><script>throw new Error('oh')</script><img src='http://127.0.0.1:9/x.png'>"
        "<div style='width:900px'>wide</div>"
    )
    found = " ".join(faults(tab, at, *SIZES["phone"]))
    for fault in ("logged error", "fetched http://127.0.0.1:9/x.png", "pixels wide"):
        assert fault in found


def test_light_and_dark(tab: browser.Tab, subject: Subject, tmp_path: Path) -> None:
    at = tmp_path / "report.html"
    at.write_bytes(page(subject))
    paper = {}
    for dark in (False, True):
        tab.open(at, *SIZES["desk"], dark=dark)
        paper[dark] = tab.value("getComputedStyle(document.body).backgroundColor")
        # Words on tiles stay readable: their colours differ by a ratio that WCAG 2.2 asks of small text.
        assert tab.value(_CONTRAST) >= 4.5
    assert paper[False] != paper[True]


_CONTRAST = """(() => {
  const light = name => {
    const probe = document.createElement('i');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const part = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    probe.remove();
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const kinds = ['--kind-float', '--kind-8', '--kind-4', '--kind-table', '--kind-mixed'];
  const pairs = [['--ink', '--paper'], ['--soft', '--paper'], ['--soft', '--card'], ['--accent', '--paper'],
    ['--good', '--good-tint'], ['--bad', '--bad-tint'], ['--open', '--open-tint'], ['--good', '--paper'],
    ['--bad', '--paper'], ...kinds.map(k => ['--ink', k])];
  return Math.min(...pairs.map(([a, b]) => ratio(a, b)));
})()"""


def test_the_keyboard_reaches_everything(tab: browser.Tab, subject: Subject, tmp_path: Path) -> None:
    at = tmp_path / "report.html"
    at.write_bytes(page(subject))
    tab.open(at, *SIZES["desk"])
    tab.press("Tab")
    assert tab.value("document.activeElement.textContent") == "To the content"
    reached = []
    for _ in range(60):
        tab.press("Tab")
        reached.append(tab.value("document.activeElement.tagName + ' ' + document.activeElement.className"))
    assert "SUMMARY " in reached
    assert "DIV scroll" in reached
    names = "[...document.querySelectorAll('[role=region], nav, figure')].every(e => e.ariaLabel)"
    assert tab.value(names)


def test_a_picture_of_it(tab: browser.Tab, subject: Subject, tmp_path: Path) -> None:
    at = tmp_path / "report.html"
    at.write_bytes(page(subject))
    tab.open(at, *SIZES["phone"])
    data = tab.picture()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width == SIZES["phone"][0]
    assert height > SIZES["phone"][1]

"""The page says what the bundle says, to people, and nothing in a bundle can make it do anything."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from planish.report import Subject, comparison, page
from planish.report import pages as module

Make = Callable[..., Subject]
LIMIT = 2_000_000  # bytes; what a page may have
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)>{{ 7*7 }}{% raw %}</style>"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Seen(HTMLParser):
    """Elements, attributes and words of a page; and whether its elements close as they opened."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(html.decode())
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def dangers(html: bytes) -> list[str]:
    """Everything on a page that could run, or fetch."""
    seen = Seen(html)
    known = {"a", "meta", "style", "svg", "g", "path", "line", "rect", "circle", "text", "tspan", "title"}
    prose = {"html", "head", "body", "header", "main", "footer", "section", "article", "nav", "details", "summary"}
    prose |= {"div", "span", "p", "h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "b", "em", "code", "figure"}
    prose |= {"figcaption", "table", "thead", "tbody", "tr", "th", "td"}
    found = [f"element {tag}" for tag in seen.tags if tag not in known | prose]
    for tag, key, value in seen.attributes:
        fetches = key in {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}
        if key.startswith("on") or key == "style" or (fetches and not value.startswith("#")):
            found.append(f"{tag} {key}={value}")
        if "url(" in value.lower() or "javascript:" in value.lower():
            found.append(f"{tag} {key}={value}")
    return found


def poisoned(data: Any, spoiling: Any = ()) -> Any:
    """Every string that a model, a recipe or a machine could have put there, with an attack behind it."""
    fixed = {"result", "evidence", "check", "of", "to", "where", "sha256", "format", "folder", "entry"}
    fixed |= {"seal", "artifact", "id", "subject", "unit", "measure", "created"} if "subjects" in spoiling else set()
    if isinstance(data, dict):
        return {k: v if k in fixed else poisoned(v, spoiling) for k, v in data.items()}
    if isinstance(data, list):
        return [poisoned(v, spoiling) for v in data]
    return f"{data}{ATTACK}" if isinstance(data, str) and data not in ("NaN",) else data


def words(*subjects: Subject, drawn: str = "not now") -> str:
    """Text of a page without plots, which are the slow part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw", lambda specs: ({}, drawn))
        return Seen(comparison(subjects) if len(subjects) > 1 else page(*subjects)).text


def spoil(data: dict[str, Any]) -> None:
    kept = copy.deepcopy({k: data[k] for k in ("files", "sha256", "format") if k in data})
    data.update(poisoned(copy.deepcopy(data), data))
    data.update(kept)


def test_nothing_in_it_runs_or_fetches(subject: Subject) -> None:
    assert dangers(page(subject)) == []


def test_hostile_words_stay_words(make: Make) -> None:
    one, other = (make(spoil, spoil, label, spoil) for label in "AB")
    for html in (page(one), comparison([one, other])):
        assert dangers(html) == []
        seen = Seen(html)
        assert "<script>alert(1)</script>" in seen.text  # as text
        assert "{{ 7*7 }}" in seen.text
        assert "49" not in seen.text
        assert seen.faults == seen.open == []
        assert len(html) < LIMIT


def test_the_look_for_dangers_finds_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe = module._environment().overlay(autoescape=False)
    monkeypatch.setattr(module, "_environment", lambda: unsafe)
    monkeypatch.setattr(module, "draw", lambda specs: ({}, "not now"))
    found = dangers(page(make(spoil, spoil)))
    assert {"element script", "element img"} <= set(found)
    assert any("onerror" in danger for danger in found)


def test_names_that_hide_or_turn_writing_round_are_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "draw", lambda specs: ({}, "not now"))
    html = page(make(lambda m: m.update(name="safe\u202egpj.exe\x00\x1b[31m"))).decode()
    assert "safe\N{REPLACEMENT CHARACTER}gpj.exe" in html
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", html)


def test_the_policy_allows_this_style_and_nothing_else(subject: Subject) -> None:
    html = page(subject).decode()
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'" in html
    assert "@import" not in style[1]
    assert "url(" not in style[1]


def test_verdict_first(subject: Subject) -> None:
    text = words(subject)
    at = [text.index(words) for words in ("Failed 1 of 3 targets", "How to read this", "Did quantisation hurt?")]
    assert at == sorted(at)
    assert "1 of 3 targets passed every gate, 1 failed, 1 was refused." in text
    assert "Of the artifacts, 1 ran in the target's own runtime, 1 ran in a stand-in." in text


def test_a_failure_names_its_place(subject: Subject) -> None:
    text = words(subject)
    assert "coreml: Lowering an output is NaN." in text
    assert "not a number , limit ≤ 0.001" in text
    assert "It begins in encoder.layer.1.dense (planish.linear_q, node linear_3 ): relative error 0.5." in text


def test_each_grade_is_explained_and_none_is_rounded_up(subject: Subject) -> None:
    text = words(subject)
    for grade in ("executed", "emulated", "structural", "not-run"):
        assert grade in text
    card = text[text.index("coreml ✕ failed") :][:60]
    assert "emulated" in card


def test_what_leaves_the_accelerator_is_told_with_its_reason(subject: Subject) -> None:
    text = words(subject)
    assert "1 of 6 operations are accelerated, 5 fall back." in text
    assert "5 Gather Cpu no table e.1 , e.2 , e.3" in text


def test_time_and_memory(subject: Subject) -> None:
    text = words(subject)
    assert "300 MB of the whole process, 100 MB of it since the artifact was opened" in text
    assert "short 12 4 ms 2 ms to 10 ms 3" in text
    assert "sample0 to sample1 128 300 ms 200 ms to 400 ms 2" in text
    assert "Thermal state and energy: not measured" in text
    assert "not on a phone" in text


def test_what_was_not_measured_says_so(make: Make) -> None:
    def bare(data: dict[str, Any]) -> None:
        data["weights"], data["refused"], data["targets"] = [], [], {}

    text = words(make(report=bare))
    assert "Not measured: the check did not run" in text
    assert "Not known: report.json lists no weights." in text
    assert "onnxruntime, coreml, executorch: not measured." in text


def test_plots_that_cannot_be_drawn_leave_the_tables(subject: Subject) -> None:
    text = words(subject, drawn="the plotting process failed")
    assert "No plot: the plotting process failed. The table below has every value." in text
    assert "encoder.layer.2.norm" in text


def test_every_plot_has_a_caption_and_a_table(subject: Subject) -> None:
    html = page(subject)
    seen = Seen(html)
    figures = seen.tags.count("figure")
    assert figures == 3  # two drifts, the treemap
    assert seen.tags.count("figcaption") == figures
    assert html.decode().count("as a table</summary>") == figures
    assert "int8 per channel" in seen.text


def test_numbers_that_are_none(make: Make) -> None:
    def odd(data: dict[str, Any]) -> None:
        told = data["targets"]["onnxruntime"]
        told["drift"][0]["layers"][0]["typical"] = "Infinity"
        told["drift"][0]["layers"][1]["typical"] = "NaN"
        told["drift"][1]["layers"] = [{**layer, "typical": 0.0} for layer in told["drift"][1]["layers"]]
        told["speed"]["seconds"] = {"short": [0.0, -1.0], "none": []}

    text = words(make(report=odd))
    assert "∞" in text
    assert "not a number" in text


def test_equal_results_make_equal_pages_inside_bundles(make: Make) -> None:
    later = make(lambda m: m.update(created="2030-01-01T00:00:00Z"))
    assert page(make(), sealed=False) == page(later, sealed=False)
    assert "2030-01-01 00:00 UTC" in words(later)


def _drift(of: str, scale: float, modules: list[str]) -> dict[str, Any]:
    layers = [
        {"node": m, "op": "linear", "module": m, "largest": 0.1, "typical": scale * 1e-3 * (i % 9 + 1)}
        for i, m in enumerate(modules)
    ]
    return {"of": of, "case": "prompt", "reason": "", "layers": layers}


def test_a_large_model_fits(make: Make) -> None:
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "norm"]
    modules = [f"model.layers.{n}.{part}" for n in range(80) for part in parts]

    def large(data: dict[str, Any]) -> None:
        data["weights"] = [
            {"name": f"{m}.weight", "before": 4_000_000, "after": 1_000_000 + i, "format": "int4 per 64"}
            for i, m in enumerate(modules)
        ]
        for number, told in enumerate(data["targets"].values()):
            told["drift"] = [_drift(of, 1 + number, modules) for of in ("quantisation", "lowering")]

    one, other = make(report=large, label="A"), make(report=large, label="B")
    assert len(page(one)) < LIMIT
    assert len(comparison([one, other])) < LIMIT


def test_measurements_are_shown_with_who_stands_behind_them(make: Make) -> None:
    text = words(make(bench=bool))
    assert "Pocket 3, 2026-11-28 12:00 UTC unsigned" in text
    assert "pocket app 2.1; 4 processes of 1 counted calls, 2 before them; in turn" in text
    assert "power: battery; thermal: not measured; energy: not measured" in text
    assert "one call short 1 11.5 ms – 10 ms to 12.5 ms 4" in text
    assert "prompt 1 510 ms – 500 ms to 520 ms 3 251.0 tokens/s" in text
    assert "one token 1 11.2 ms 12.2 ms" in text
    assert "Without a pause for 1.0 minutes: +30.0 % time per call at the end." in text
    assert "23 ms" not in text  # of another bundle
    assert "Measured later" not in words(make())


def test_measurements_that_cannot_be_shown_are_told(make: Make) -> None:
    subject = replace(make(), unshown=("evidence/measurements/1: The measurements were altered.",))
    assert "Not shown: evidence/measurements/1: The measurements were altered." in words(subject)


def test_bundles_that_were_measured_in_turn(make: Make) -> None:
    def both(data: dict[str, Any]) -> None:
        data["subjects"][1]["seal"] = "1" * 64

    one = make(label="A", bench=both)
    manifest = one.manifest.model_copy(update={"sha256": "1" * 64, "name": "tiny-B"})
    other = replace(one, manifest=manifest, label="B")
    text = words(one, other)
    assert "one call, short, threads: 1 B onnxruntime to A onnxruntime 1.95 1.9 to 2.1 4 Pocket 3 unsigned" in text
    assert "Measured in turn" not in words(make(label="A"), make(label="B"))


def test_comparison(make: Make) -> None:
    def smaller(data: dict[str, Any]) -> None:
        data["name"] = "tiny-int4"
        data["targets"]["onnxruntime"]["artifact"]["bytes"] = 7
        data["targets"]["onnxruntime"]["verdicts"][0]["metrics"][0]["value"] = 0.9
        data["targets"]["onnxruntime"]["verdicts"][0]["result"] = "passed"
        del data["targets"]["executorch"]

    text = words(make(label="A"), make(smaller, label="B"))
    assert "tiny-int8 and tiny-int4" in text
    assert "onnxruntime 21 B 7 B −66.7 %, better" in text
    assert "onnxruntime: cosine similarity 0.99820 18 % of its limit 0.90000 beyond its limit" in text
    assert "executorch – refused" not in text
    assert "not asked for" in text


def test_bundles_of_other_weights_are_told(make: Make) -> None:
    def other(data: dict[str, Any]) -> None:
        data["source"]["files"][0]["sha256"] = "6" * 64

    said = "made from different weights"
    assert said not in words(make(label="A"), make(label="B"))
    assert said in words(make(label="A"), make(other, label="B"))

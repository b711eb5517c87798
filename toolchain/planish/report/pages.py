"""The page. Every word that comes from a model or a bundle is escaped; there is no script, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from planish.bundle.part import Number, decode
from planish.bundle.surroundings import package_version
from planish.bundle.verdicts import FailedEntry, NotRunEntry
from planish.form import cosine, milliseconds, plain, size, visible
from planish.report import accuracy, cards, changes, charts, drifts, measured, placements, sizes, speeds, words
from planish.report.draw import draw
from planish.report.subject import Subject

TITLES = {"passed": "Passed", "failed": "Failed", "not-run": "Not checked"}
HOST_ONLY = "Nothing here was measured on a phone."
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SHARES = frozenset({"agreement", "accelerated_share"})
_COSINES = frozenset({"cosine", "cosine_token"})
_SECTIONS = (
    ("failures", "What failed"),
    ("quality", "Quantisation"),
    ("lowering", "Lowering"),
    ("bytes", "Bytes"),
    ("placement", "Placement"),
    ("speed", "Speed"),
    ("checks", "Checks"),
    ("left", "Left as it was"),
    ("provenance", "Provenance"),
)


def page(subject: Subject, sealed: bool = True) -> bytes:
    """report.html of one bundle: UTF-8, self-contained.

    Args:
        subject: the bundle.
        sealed: False for the page inside the bundle, whose bytes go into the manifest's seal: it names neither the seal
            nor the time, so that equal results make equal pages.
    """
    manifest, report = subject.manifest, subject.report
    found, courses = cards.cards(subject), drifts.courses([subject])
    leaves = sizes.leaves(report)
    specs: dict[str, charts.Spec] = {}
    if leaves:
        specs |= _both("treemap", lambda width: charts.treemap(leaves, width))
    specs |= _drift_specs(courses) | _time_specs(subject)
    failures = [("Shared program", v) for v in manifest.verdicts if isinstance(v, FailedEntry)]
    failures += [(card.target, v) for card in found for v in card.failed]
    return _render(
        "report.html",
        specs,
        subject=subject,
        m=manifest,
        verdict_title=TITLES[manifest.result],
        summary=cards.summary(found),
        evidence=cards.evidence(found),
        host_only=HOST_ONLY,
        sections=[(key, title) for key, title in _SECTIONS if failures or key != "failures"],
        cards=found,
        grades=words.GRADES,
        failures=failures,
        quality=[(t, g) for t, e in manifest.targets.items() for g in accuracy.gates(e.verdicts, "quality")],
        lowering=[
            (t, e.evidence.value, g)
            for t, e in manifest.targets.items()
            for g in accuracy.gates(e.verdicts, "lowering", "decoding")
        ],
        courses=courses,
        formats=sizes.formats(report),
        groups=sizes.groups(report),
        files=[(t, rows) for t in manifest.targets if (rows := sizes.files(subject, t))],
        placed=[
            (t, p, placements.shares(p), placements.away(p)) for t in manifest.targets if (p := report.of(t).placement)
        ],
        speeds=[
            (t, e.evidence.value, s, speeds.rows(s) if s else ())
            for t, e in manifest.targets.items()
            for s in (report.of(t).speed,)
        ],
        language=manifest.task == "text-generation",
        asked=dict.fromkeys(v.check for e in manifest.targets.values() for v in (*manifest.verdicts, *e.verdicts)),
        refused=_refused(subject),
        notes=dict.fromkeys((*manifest.notes, *(n for e in manifest.targets.values() for n in e.notes))),
        asked_for=subject.asked(),
        sealed=sealed,
        measured=[(number, one, measured.blocks(one, subject)) for number, one in enumerate(subject.measurements)],
        unshown=subject.unshown,
        why_not=lambda check, target="": _why_not(subject, check, target),
    )


def comparison(subjects: Sequence[Subject]) -> bytes:
    """A page of several bundles side by side, the first being what the others are held against."""
    courses = drifts.courses(subjects)
    metric, points = changes.points(subjects)
    trees = [(s, sizes.leaves(s.report)) for s in subjects]
    largest = max(sum(leaf.bytes for leaf in leaves) for _, leaves in trees)
    specs = _drift_specs(courses)
    if len(points) > 1:
        specs |= _both("tradeoff", lambda width: charts.tradeoff(points, metric, width))
    for subject, leaves in trees:
        if leaves:
            part = sum(leaf.bytes for leaf in leaves) / largest
            specs |= _both(
                f"treemap {subject.label}",
                lambda width, leaves=leaves, part=part: charts.treemap(leaves, width, part),
            )
    return _render(
        "comparison.html",
        specs,
        subjects=subjects,
        title=" and ".join(f"{s.label}: {s.manifest.name}" for s in subjects),
        titles=TITLES,
        host_only=HOST_ONLY,
        states=changes.states(subjects),
        grades=words.GRADES,
        metric=metric,
        points=points,
        tables=changes.tables(subjects, _value),
        courses=courses,
        trees=[(s, sizes.formats(s.report), bool(leaves)) for s, leaves in trees],
        differences=changes.differences(subjects),
        same_weights=changes.same_weights(subjects),
        pairs=measured.pairs(subjects),
    )


def _both(name: str, make: Any) -> dict[str, charts.Spec]:
    return {f"{name} wide": make(charts.WIDE), f"{name} narrow": make(charts.NARROW)}


def _drift_specs(courses: Sequence[drifts.Course]) -> dict[str, charts.Spec]:
    specs: dict[str, charts.Spec] = {}
    for of in drifts.KINDS:
        for number, course in enumerate(c for c in courses if c.of == of):
            if course.lines:
                specs |= _both(f"{number} {of}", lambda width, course=course: charts.course(course, width))
    return specs


def _time_specs(subject: Subject) -> dict[str, charts.Spec]:
    specs: dict[str, charts.Spec] = {}
    for number, one in enumerate(subject.measurements):
        for block in measured.blocks(one, subject):
            for at, run in enumerate(block.sustained):
                name = f"sustained {number} {block.subject.id} {at}"
                specs |= _both(name, lambda width, run=run: charts.course_of_time(run, width))
    return specs


def _refused(subject: Subject) -> list[tuple[str, int, str]]:
    found: dict[str, list[str]] = {}
    for refusal in subject.report.refused:
        found.setdefault(refusal.reason, []).append(refusal.module or refusal.node)
    return [(reason, len(names), names[0]) for reason, names in found.items()]


def _why_not(subject: Subject, check: str, target: str = "") -> str:
    entries = subject.manifest.targets
    for name in [target] if target else entries:
        for verdict in entries[name].verdicts:
            if verdict.check == check and isinstance(verdict, NotRunEntry):
                return verdict.reason
    return "the check did not run" if not target or entries[target].artifact else "there is no artifact"


def _render(template: str, specs: Mapping[str, charts.Spec], **context: Any) -> bytes:
    pictures, undrawn = draw(specs)
    style = files("planish.report").joinpath("templates/style.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            drawn=lambda name: Markup(pictures.get(name, "") or pictures.get(f"{name} wide", "")),
            undrawn=undrawn,
            style=Markup(style),
            style_hash=digest,
            made_by=package_version("planish") or "(from its source tree)",
        )
        .encode("utf-8", "replace")
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("planish.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.globals.update(
        size=lambda count: size(max(int(count), 0)),
        seconds=milliseconds,
        number=lambda value: plain(decode(value)),
        number_of=lambda value: f"{value:.1f}",
        value=_value,
        date=lambda told: f"{told[:10]} {told[11:16]} UTC" if _DATE.fullmatch(told) else told,
        share=lambda used: "not known" if used is None else f"{used:.0%}",
        check=words.check,
        metric_word=words.metric,
        swatch=_swatch,
    )
    return made


def _shown(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _value(name: str, number: Number) -> str:
    value = decode(number)
    if name in _COSINES:
        return cosine(value)
    if name in _SHARES and 0 <= value <= 1:
        return f"{int(value * 1000) / 10:.1f} %"  # never rounded up
    return plain(value) + (f" {words.UNITS[name]}" if name in words.UNITS and name not in _SHARES else "")


def _swatch(colour: int, dash: int | None = None) -> Markup:
    """A line as in the plots, or a dot."""
    colour %= charts.LINES
    if dash is None:
        return Markup(
            '<svg viewBox="0 0 30 10" aria-hidden="true"><circle cx="15" cy="5" r="5" fill="var(--series-{})"/></svg>'
        ).format(colour)
    return Markup(
        '<svg viewBox="0 0 30 10" aria-hidden="true"><line x1="0" x2="30" y1="5" y2="5" stroke-width="2.5" '
        'stroke="var(--series-{})" stroke-dasharray="{}"/></svg>'
    ).format(colour, " ".join(map(str, charts.DASHES[dash % charts.LINES])))

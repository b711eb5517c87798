"""Plots as Vega specifications (https://vega.github.io/vega). Words of a model are data in them, never expressions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from planish.bench.schema import Sustained
from planish.form import milliseconds, plain, power, size, visible
from planish.report.changes import Point
from planish.report.drifts import Course, Line
from planish.report.sizes import Leaf

Spec = dict[str, Any]

WIDE, NARROW = 960, 358  # pixels: a page on a desk, a page on a phone
LINES = 6  # colours and dashes that lines of a plot have
DASHES = ([1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [1, 2], [10, 4])
_FONT = {"labelFont": "inherit", "labelFontSize": 12, "labelColor": "var(--soft)"}
_TITLE = {"titleFont": "inherit", "titleFontSize": 12, "titleFontWeight": "normal", "titleColor": "var(--soft)"}
_AXIS = {**_FONT, **_TITLE, "domainColor": "var(--line)", "tickColor": "var(--line)", "gridColor": "var(--hair)"}
_LONGEST = 96  # characters of a name
_DOTS = 600  # beyond, they are a band, and half of the page's bytes


def treemap(leaves: Sequence[Leaf], width: int, part: float = 1.0) -> Spec:
    """Bytes of weights: a rectangle per weight, framed by block, coloured by format.

    Args:
        leaves: what to draw.
        width: in pixels.
        part: height, as a share of the usual one: what makes several comparable by area.
    """
    root = {"id": "root", "label": "all weights"}
    names = _ends([leaf.group for leaf in leaves])
    groups = [{"id": f"g {g}", "parent": "root", "label": _short(name)} for g, name in names.items()]
    ends = [
        {
            "id": f"w {number}",
            "parent": f"g {leaf.group}",
            "label": _short(leaf.name.removesuffix(".weight")),
            "told": size(leaf.bytes),
            "bytes": leaf.bytes,
            "fill": f"var(--kind-{leaf.kind})",
            "tip": f"{_short(leaf.group)} · {_short(leaf.name)}: {size(leaf.bytes)}, {leaf.format}",
        }
        for number, leaf in enumerate(leaves)
    ]
    squares = {
        "type": "treemap",
        "field": "bytes",
        "method": "squarify",
        "ratio": 1.4,
        "round": True,
        "paddingInner": 2,
        "paddingTop": 17,
        "size": [{"signal": "width"}, {"signal": "height"}],
    }
    data = [
        {
            "name": "tree",
            "values": [root, *groups, *ends],
            "transform": [{"type": "stratify", "key": "id", "parentKey": "parent"}, squares],
        },
        {"name": "frames", "source": "tree", "transform": [{"type": "filter", "expr": "datum.depth === 1"}]},
        {"name": "ends", "source": "tree", "transform": [{"type": "filter", "expr": "datum.depth === 2"}]},
    ]
    inside = "datum.x1 - datum.x0 > {wide} && datum.y1 - datum.y0 > {high}"
    box = {side: {"field": field} for side, field in (("x", "x0"), ("y", "y0"), ("x2", "x1"), ("y2", "y1"))}
    ink = {
        "font": {"value": "inherit"},
        "fill": {"value": "var(--ink)"},
        "limit": {"signal": "datum.x1 - datum.x0 - 8"},
    }

    def text(source: str, field: str, down: int, high: int, soft: bool = False) -> Spec:
        shown = {"signal": f"{inside.format(wide=58, high=high)} ? datum.{field} : ''"}
        place = {"x": {"field": "x0", "offset": 5}, "y": {"field": "y0", "offset": down}, "text": shown}
        tone = {"fill": {"value": "var(--soft)"}} if soft else {}
        how = {**ink, **place, **tone, "fontSize": {"value": 11}}
        return {"type": "text", "from": {"data": source}, "interactive": False, "encode": {"enter": how}}

    tile = {**box, "fill": {"field": "fill"}, "description": {"field": "tip"}}
    marks = [
        {"type": "rect", "from": {"data": "ends"}, "encode": {"enter": tile}},
        text("frames", "label", 12, 14, soft=True),
        text("ends", "label", 14, 17),
        text("ends", "told", 28, 32, soft=True),
    ]
    height = (440 if width > NARROW else 560) * max(part, 0.12)
    return {**_base(width, round(height)), "data": data, "marks": marks}


def course(drawn: Course, width: int) -> Spec:
    """Error against depth, on a logarithmic scale; a line per column, a tick per block."""
    told = [e for line in drawn.lines for e in line.errors.values() if math.isfinite(e)]
    low, high = _decades([e for e in told if e > 0])
    if not all(told):
        low /= 10  # what is exact is drawn one decade below the rest
    points = [
        {
            "line": number,
            "x": row,
            "y": max(line.errors[module], low),
            "tip": f"{_short(module)}: {plain(line.errors[module])} ({_short(line.label)})",
        }
        for number, line in enumerate(drawn.lines)
        for row, module in enumerate(drawn.modules)
        if math.isfinite(line.errors.get(module, math.inf))
    ]
    left, bottom, top = 52, 40, 10
    height = (300 if width > NARROW else 280) - bottom - top
    inner = width - left - 12
    ticks = _spread(drawn.blocks(), inner / max(len(drawn.modules) - 1, 1))
    return {
        **_base(inner, height),
        "padding": {"left": left, "right": 12, "top": top, "bottom": bottom},
        "data": [
            {"name": "points", "values": points},
            {"name": "blocks", "values": [{"x": row, "label": _short(name, 18)} for row, name in ticks]},
            {"name": "powers", "values": _powers(low, high, exact=not all(told))},
        ],
        "scales": [
            {"name": "x", "type": "linear", "range": "width", "domain": [0, max(len(drawn.modules) - 1, 1)]},
            {"name": "y", "type": "log", "range": "height", "domain": [low, high], "clamp": True},
        ],
        "marks": [
            *_grid(inner),
            _rules("blocks", height),
            _labels("blocks", height + 17),
            _caption("blocks of the model, in order of execution", inner / 2, height + 35),
            *_lines(drawn.lines, dots=width > NARROW and len(points) <= _DOTS),
        ],
    }


def tradeoff(points: Sequence[Point], metric: str, width: int) -> Spec:
    """Size against loss: a dot per bundle and group of targets.

    Args:
        points: what to draw.
        metric: what the loss is, in words.
        width: in pixels.
    """
    low, high = _decades([p.loss for p in points if p.loss > 0])
    exact = any(p.loss <= low / 10 for p in points)
    low = low / 10 if exact else low
    values = [
        {
            "x": point.bytes / 1e6,
            "y": max(point.loss, low),
            "label": _short(point.label if width > NARROW else point.label.partition(" ")[0], 60),
            "line": point.number % LINES,
            "tip": f"{_short(point.label)}: {size(point.bytes)}, {metric} {plain(point.loss)}",
        }
        for point in points
    ]
    left, bottom = 62, 44
    inner, height = width - left - 16, 300 - bottom - 12
    place = {"x": {"scale": "x", "field": "x"}, "y": {"scale": "y", "field": "y"}}
    colour = {"signal": "'var(--series-' + datum.line + ')'"}
    dot = {**place, "size": {"value": 90}, "fill": colour, "description": {"field": "tip"}}
    right = {"signal": f"scale('x', datum.x) > {inner * 0.6}"}
    name = {
        **place,
        "dx": {"signal": f"{right['signal']} ? -10 : 10"},
        "align": {"signal": f"{right['signal']} ? 'right' : 'left'"},
        "baseline": {"value": "middle"},
        "text": {"field": "label"},
        "font": {"value": "inherit"},
        "fontSize": {"value": 12},
        "fill": {"value": "var(--ink)"},
    }
    return {
        **_base(inner, height),
        "padding": {"left": left, "right": 16, "top": 12, "bottom": bottom},
        "data": [{"name": "points", "values": values}, {"name": "powers", "values": _powers(low, high, exact)}],
        "scales": [
            {"name": "x", "range": "width", "domain": {"data": "points", "field": "x"}, "zero": True, "nice": True},
            {"name": "y", "type": "log", "range": "height", "domain": [low, high]},
        ],
        "axes": [
            {"orient": "bottom", "scale": "x", "title": "size of the artifact, MB", "tickCount": 6, **_AXIS},
        ],
        "marks": [
            *_grid(inner),
            {"type": "symbol", "from": {"data": "points"}, "encode": {"enter": dot}},
            {"type": "text", "from": {"data": "points"}, "encode": {"enter": name}},
        ],
    }


def course_of_time(run: Sustained, width: int) -> Spec:
    """Median time per part of a long run, from zero."""
    times = [w.median * 1e3 for w in run.windows]
    points = [{"x": w.at / 60, "y": w.median * 1e3, "line": 0, "tip": milliseconds(w.median)} for w in run.windows]
    left, bottom = 52, 44
    inner, height = width - left - 12, 220 - bottom - 10
    linear = {"type": "linear", "zero": True, "nice": True}
    return {
        **_base(inner, height),
        "padding": {"left": left, "right": 12, "top": 10, "bottom": bottom},
        "data": [{"name": "points", "values": points}],
        "scales": [
            {"name": "x", "range": "width", "domain": [0, run.seconds / 60], "type": "linear"},
            {"name": "y", "range": "height", "domain": [0, max(times, default=1.0)], **linear},
        ],
        "axes": [
            {"orient": "bottom", "scale": "x", "title": "minutes", "tickCount": 6, **_AXIS},
            {"orient": "left", "scale": "y", "grid": True, "title": "ms", "tickCount": 5, **_AXIS},
        ],
        "marks": _lines((Line("", {}, 0, 0),), dots=True),
    }


def _base(width: float, height: float) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega/v6.json",
        "width": width,
        "height": height,
        "padding": 0,
        "autosize": "none",
    }


def _lines(lines: Sequence[Line], dots: bool) -> list[Spec]:
    """A line per column, with dots that tell their values; dashes and colours tell them apart."""
    place = {"x": {"scale": "x", "field": "x"}, "y": {"scale": "y", "field": "y"}}
    marks: list[Spec] = []
    for number, line in enumerate(lines):
        inner, colour = {"data": f"line{number}"}, {"value": f"var(--series-{line.colour % LINES})"}
        stroke = {
            **place,
            "stroke": colour,
            "strokeWidth": {"value": 1.75},
            "strokeDash": {"value": DASHES[line.dash % LINES]},
            "strokeJoin": {"value": "round"},
        }
        dot = {**place, "fill": colour, "size": {"value": 14}, "description": {"field": "tip"}}
        own = {"name": f"line{number}", "source": "points"}
        marks.append(
            {
                "type": "group",
                "data": [{**own, "transform": [{"type": "filter", "expr": f"datum.line === {number}"}]}],
                "marks": [
                    {"type": "line", "from": inner, "encode": {"enter": stroke}},
                    *([{"type": "symbol", "from": inner, "encode": {"enter": dot}}] if dots else []),
                ],
            }
        )
    return marks


def _rules(source: str, height: int) -> Spec:
    at = {"scale": "x", "field": "x"}
    enter = {"x": at, "y": {"value": 0}, "y2": {"value": height + 4}, "stroke": {"value": "var(--hair)"}}
    return {"type": "rule", "from": {"data": source}, "encode": {"enter": enter}}


def _labels(source: str, down: int) -> Spec:
    enter = {
        "x": {"scale": "x", "field": "x"},
        "y": {"value": down},
        "text": {"field": "label"},
        "font": {"value": "inherit"},
        "fontSize": {"value": 12},
        "fill": {"value": "var(--soft)"},
    }
    return {"type": "text", "from": {"data": source}, "encode": {"enter": enter}}


def _caption(text: str, x: float, y: float) -> Spec:
    enter = {
        "x": {"value": x},
        "y": {"value": y},
        "align": {"value": "center"},
        "text": {"value": text},
        "font": {"value": "inherit"},
        "fontSize": {"value": 12},
        "fill": {"value": "var(--soft)"},
    }
    return {"type": "text", "encode": {"enter": enter}}


def _spread(blocks: Sequence[tuple[int, str]], step: float) -> list[tuple[int, str]]:
    """Those block names that do not touch the one before."""
    shown: list[tuple[int, str]] = []
    free = 0.0
    for row, name in blocks:
        if row * step >= free:
            shown.append((row, name))
            free = row * step + 7 * min(len(name), 18) + 8
    return shown


def _decades(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 1e-3, 1.0
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def _powers(low: float, high: float, exact: bool = False) -> list[Spec]:
    """Powers of ten for the grid; the lowest stands for zero when `exact`."""
    first, last = round(math.log10(low)), round(math.log10(high))
    step = max(1, math.ceil((last - first) / 7))
    shown = [p for p in range(last, first - 1, -step) if p > first or not exact]
    return [{"y": 10.0**p, "label": power(p)} for p in shown] + ([{"y": low, "label": "0"}] if exact else [])


def _grid(width: float) -> list[Spec]:
    """Horizontal lines with their powers of ten."""
    at = {"scale": "y", "field": "y"}
    rule = {"x": {"value": 0}, "x2": {"value": width}, "y": at, "stroke": {"value": "var(--hair)"}}
    text = {
        "x": {"value": -8},
        "y": at,
        "align": {"value": "right"},
        "baseline": {"value": "middle"},
        "text": {"field": "label"},
        "font": {"value": "inherit"},
        "fontSize": {"value": 12},
        "fill": {"value": "var(--soft)"},
    }
    return [
        {"type": "rule", "from": {"data": "powers"}, "encode": {"enter": rule}},
        {"type": "text", "from": {"data": "powers"}, "encode": {"enter": text}},
    ]


def _ends(groups: Sequence[str]) -> dict[str, str]:
    """Group -> its last two names, where these tell all groups apart."""
    names = {group: ".".join(group.split(".")[-2:]) for group in groups}
    return names if len(set(names.values())) == len(names) else {group: group for group in names}


def _short(text: str, longest: int = _LONGEST) -> str:
    """The end of a long name is what tells it apart."""
    text = visible(text)
    return text if len(text) <= longest else f"…{text[1 - longest :]}"

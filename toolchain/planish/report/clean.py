"""Inline SVG that can do nothing but be looked at: known elements, known attributes, short numbers."""

from __future__ import annotations

import re
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
_ELEMENTS = frozenset({"svg", "g", "path", "line", "text", "tspan", "rect", "title"})
_KEPT = frozenset(
    {
        "class",
        "d",
        "dx",
        "dy",
        "fill",
        "fill-opacity",
        "font-family",
        "font-size",
        "height",
        "opacity",
        "stroke",
        "stroke-dasharray",
        "stroke-linejoin",
        "stroke-opacity",
        "stroke-width",
        "text-anchor",
        "transform",
        "viewBox",
        "width",
        "x",
        "x1",
        "x2",
        "y",
        "y1",
        "y2",
    }
)
_DROPPED = frozenset({"display", "font-weight", "pointer-events", "role", "stroke-miterlimit", "version"})
_NUMBERS = frozenset({"d", "transform", "width", "height", "viewBox", "x", "x1", "x2", "y", "y1", "y2"})
_PAINT = re.compile(r"none|transparent|var\(--[a-z0-9-]+\)|#[0-9a-fA-F]{3,8}")
_LONG = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


class Unclean(ValueError):
    """The drawing holds something that no plot needs."""


def clean(svg: str) -> str:
    """The same drawing with only what is known to be harmless; labels of marks become titles, which browsers show.

    Raises:
        Unclean: an element, attribute or colour that is not expected.
    """
    if "<!" in svg:
        raise Unclean("a declaration")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as problem:
        raise Unclean(f"not XML: {problem}") from problem
    _tidy(root)
    del root.attrib["width"], root.attrib["height"]
    root.set("aria-hidden", "true")  # the figure around it has a caption, and a table with every value
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element) -> None:
    name = element.tag.removeprefix(f"{{{_SVG}}}")
    if name not in _ELEMENTS:
        raise Unclean(f"the element {name}")
    element.tag = name
    label = element.get("aria-label")
    kept = {key: _value(key, value) for key, value in element.attrib.items() if _keeps(key)}
    element.attrib.clear()
    element.attrib.update(kept)
    for child in [c for c in element if _is_empty(c)]:
        element.remove(child)
    for child in element:
        _tidy(child)
    if label and name == "path":
        title = ElementTree.Element("title")
        title.text = label
        element.insert(0, title)
    if name == "svg":
        element.set("xmlns", _SVG)


def _keeps(key: str) -> bool:
    if key in _KEPT:
        return True
    if key in _DROPPED or key.startswith("aria-"):
        return False
    raise Unclean(f"the attribute {key}")


def _value(key: str, value: str) -> str:
    if key in ("fill", "stroke") and not _PAINT.fullmatch(value):
        raise Unclean(f"the colour {value}")
    return _LONG.sub(lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value) if key in _NUMBERS else value


def _is_empty(element: ElementTree.Element) -> bool:
    """Vega's frames around groups, and texts that did not fit."""
    name = element.tag.removeprefix(f"{{{_SVG}}}")
    if name == "text":
        return not "".join(element.itertext())
    return name == "path" and element.get("class") in ("background", "foreground")

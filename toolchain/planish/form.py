"""Numbers as people read them."""

from __future__ import annotations

import math
import unicodedata


def size(count: int) -> str:
    """`23.1 MB`, in steps of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def cosine(value: float | None) -> str:
    """Five digits, never rounded up."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    return f"{math.floor(value * 1e5) / 1e5:.5f}"


def small(value: float | None) -> str:
    """`3.1e-02`."""
    return "-" if value is None else f"{value:.1e}"


def milliseconds(seconds: float | None) -> str:
    """`4.2 ms`."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def plain(value: float) -> str:
    """Three digits, with a power of ten where zeros would hide them: `0.998`, `2.1×10⁻⁵`, `12,300`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}×{power(int(exponent))}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def power(exponent: int) -> str:
    """`10⁻³`."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def visible(text: str) -> str:
    """The text with a replacement character for everything that cannot be seen or turns the direction of writing."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn")
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in hidden and c != "\n" else c for c in text)

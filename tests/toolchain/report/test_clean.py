"""Nothing but a drawing gets through."""

from __future__ import annotations

import pytest

from planish.report.clean import Unclean, clean

FRAME = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="5" viewBox="0 0 10 5">{}</svg>'


def test_a_drawing_is_made_smaller_and_told() -> None:
    inner = (
        '<g class="mark-rect" role="graphics-object" aria-label="rect">'
        '<path aria-label="a &lt;b&gt;" d="M0.123456,1.00001Z" fill="var(--ink)"/>'
        '<text></text><path class="background" d="M0,0"/></g>'
    )
    assert clean(FRAME.format(inner)) == (
        '<svg viewBox="0 0 10 5" xmlns="http://www.w3.org/2000/svg" aria-hidden="true"><g class="mark-rect">'
        '<path d="M0.1,1Z" fill="var(--ink)"><title>a &lt;b&gt;</title></path></g></svg>'
    )


@pytest.mark.parametrize(
    ("inner", "names"),
    [
        ("<script>1</script>", "script"),
        ('<image href="x"/>', "image"),
        ("<foreignObject/>", "foreignObject"),
        ("<style>*{}</style>", "style"),
        ('<path onclick="x()"/>', "onclick"),
        ('<path style="fill:red"/>', "style"),
        ('<a href="javascript:x()"/>', "element a"),
        ('<path fill="url(http://x)"/>', "colour"),
        ('<g><path stroke="url(#a)"/></g>', "colour"),
        ("<!-- x -->", "declaration"),
        ("<path", "not XML"),
    ],
)
def test_what_no_plot_needs_is_refused(inner: str, names: str) -> None:
    with pytest.raises(Unclean, match=names):
        clean(FRAME.format(inner))


def test_entities_are_refused() -> None:
    with pytest.raises(Unclean, match="declaration"):
        clean('<!DOCTYPE svg [<!ENTITY a "aaaa">]>' + FRAME.format("<text>&a;</text>"))

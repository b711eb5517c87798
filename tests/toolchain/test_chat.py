"""Text of tokens that come one by one."""

from __future__ import annotations

import pytest

from planish.chat import TextStream


class Bytes:
    """Every token is a byte; the first space of a text is dropped, as SentencePiece does."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode(errors="replace").removeprefix(" ")


@pytest.mark.parametrize("text", ["plain words", "naïve – 日本語 🙂 end", "🙂🙂", "a  b"])
def test_pieces_make_the_text(text: str) -> None:
    stream = TextStream(Bytes())
    pieces = [stream.push(token) for token in text.encode()]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.rest() == text


def test_half_a_character_is_told_at_the_end() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(token) for token in "é".encode()[:1]] == [""]
    assert stream.rest() == "\ufffd"

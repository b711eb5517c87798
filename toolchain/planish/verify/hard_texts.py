"""Texts that tokenizers disagree on: scripts, directions, controls, emoji, forms of one character, very long ones."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from importlib import resources

LONG = 100_000  # characters of a long text
_STEP = 61  # of the walk through all code points; a prime, so that it meets every block
_PER_TEXT = 64

_BLANKS = (
    "",
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    " \n \n\n ",
    "\u00a0",
    "\u3000",
    "\u2028\u2029",
    " a",
    "a ",
    "  two  spaces  ",
    "a\n\n\nb\r\nc\rd\te",
    "\u2003em\u2009thin\u200azero\u200bjoin\u2060end",
)
_LATIN = (
    "Größe, naïve café — “quotes” … ¿señor? ¡Œuvre! Ångström, Łódź, İstanbul, ıI, ſharp, Straße, ẞ",
    "I'm CAN'T we'll They'VE o'clock rock'n'roll John's",
    "3.14159 1,234,567.89 1e-10 0x1F 12345678901234567890 ½ ² ₃ Ⅷ ① ٣ ३ 三",
    "https://example.org/a_b?c=%20d&e=f#g me@example.org #tag @name C:\\path\\file ~/x",
    "def f(x: int) -> str:\n    return {'a': [1, 2]}[x] if x != 0 else None  # λ\n",
    '{"key": "va\\"lue", "n": [1.0, null, true]}',
    "<html>&amp; <!-- --> </s> <s> [CLS] [MASK] <|endoftext|> <|im_start|> <pad> <unk> ##ing ▁ Ġ",
    "supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaftskapitän",
    "aAaA bBbB MiXeD cAsE ALLCAPS iPhone McDonald's",
)
_EMOJI = (
    "🙂",
    "🙂🙃😀😃😄 text 🚀text🚀",
    "👩‍👩‍👧‍👦 👨🏽‍🚀 🧑‍🤝‍🧑 👍🏿 🤦🏼‍♀️",
    "🇫🇷🇩🇪🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿 1️⃣ #️⃣ ❤️ ❤ ☺︎ ☺️ ©️",
    "🫠🫥🪿🫨 🛜 🩷",
    "\U0001f3fb\u200d\ufe0f",
)
_EAST = (
    "你好，世界。人工智能模型在手机上运行。",
    "繁體中文與简体中文混排「引號」、頓號；冒號：",
    "日本語のテキスト、カタカナ、ﾊﾝｶｸ、ひらがな。東京都庁は新宿にある。々〆〇",
    "한국어 문장입니다. \u1112\u1161\u11ab\u1100\u1173\u11af ㅋㅋㅋ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３ ㍿ ㌀ ㊙",
    "\U00020000\U0002a6d6\U00030000 𠮷野家",
    "中a中1中 中-中",
)
_RIGHT_TO_LEFT = (
    "مرحبا بالعالم، كيف حالك؟ ٠١٢٣",
    "مُحَمَّدٌ ـــ لا ﷺ ﻻ",
    "שלום עולם! בְּרֵאשִׁית בָּרָא",
    "Hello שלום مرحبا 123 עברית",
    "\u202eabc\u202c \u2067def\u2069 \u200fghi\u200e",
    "فارسی می‌خواهم ، اردو ہے",
)
_OTHERS = (
    "नमस्ते दुनिया क्षत्रिय र्‍क",
    "สวัสดีชาวโลก ประเทศไทย",
    "வணக்கம் உலகம் తెలుగు ಕನ್ನಡ മലയാളം বাংলা ગુજરાતી",
    "Привет, мир! Ёжик Їжак",
    "Γειά σου Κόσμε ἀρχῇ ΣΊΣΥΦΟΣ ς",
    "Հայերեն ქართული አማርኛ ខ្មែរ မြန်မာ བོད་ཡིག ᓄᓇᕗᑦ ᏣᎳᎩ",
    "tiếng Việt Nguyễn ĐẶNG",
    "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𝟙𝟚𝟛 ∀x∈ℝ ∑ √2 ≠ ≤ ⟨a|b⟩ ℵ₀",
    "♔♕ ░▒▓ ┌─┐ ⠓⠑⠇⠇⠕ 𓀀𓁐 𐎀𐎁 𝄞",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
)
_FORMS = (
    "éàü ñ Å Ω ﬁ ﬀ ﬃ Ǆ ㎏ ½ ² ｶﾞ 각 \u0958",
    "e\u0301 a\u0300\u0323 a\u0323\u0300 o\u031b\u0301",
    "\u1e9b\u0323 \u0344 \u2126 \u212b",
)


def hard_texts(special: Iterable[str] = ()) -> list[str]:
    """The corpus; the same on every machine with the same Unicode tables.

    Args:
        special: special tokens of the tokenizer, which texts may contain as well.
    """
    sentences = resources.files("planish.tasks").joinpath("sentences.txt").read_text("utf-8").splitlines()
    texts = [*sentences, *_BLANKS, *_LATIN, *_EMOJI, *_EAST, *_RIGHT_TO_LEFT, *_OTHERS]
    texts += [unicodedata.normalize(form, text) for text in _FORMS for form in ("NFC", "NFD", "NFKC", "NFKD")]
    texts += [form for token in special for form in (token, f"a{token}b", f" {token} {token}\n", token[:-1])]
    return list(dict.fromkeys([*texts, *_controls(), *_walk(), *_long(sentences)]))


def _controls() -> Iterable[str]:
    """Every control, format and private character, between letters; noncharacters and the mark of byte order."""
    odd = [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x34F, 0x61C, 0x180E, *range(0x200B, 0x2010)]
    odd += [*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xE000, 0xF8FF, 0xFEFF, *range(0xFFF0, 0x10000), 0xF0000]
    yield from (f"a{chr(code)}b {chr(code)}" for code in odd)
    yield "".join(map(chr, odd))


def _walk() -> Iterable[str]:
    """Characters of every block, assigned or not, without the surrogates that are no text."""
    codes = [code for code in range(1, 0x110000, _STEP) if not 0xD800 <= code < 0xE000 and code < 0x40000]
    for start in range(0, len(codes), _PER_TEXT):
        yield " ".join(map(chr, codes[start : start + _PER_TEXT]))
    yield "".join(map(chr, codes))


def _long(sentences: list[str]) -> Iterable[str]:
    mixed = " ".join([*sentences, *_EAST, *_RIGHT_TO_LEFT, *_EMOJI, *_OTHERS]) + "\n"
    for unit in ("a", " ", "\n", "1", "中", "🙂", "ab ", "e\u0301", "\u200d", mixed):
        yield (unit * (LONG // len(unit) + 1))[:LONG]

"""Texts that somebody else wrote, made safe for where they are shown: a terminal, a table, Markdown."""

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", *"\uff1d\uff0b\uff0d\uff20")
"""What a cell begins with that spreadsheets compute instead of showing, also as wide characters."""
QUOTE = "'"
LONGEST = 4000
"""Letters of a line."""


def line(text: str) -> str:
    r"""One line for a terminal: what is no printable character is written as its escape, as in `\x1b`.

    Of more than `LONGEST` letters the middle is left out.

    >>> line("a\nb\x1b[2J")
    'a\\nb\\x1b[2J'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def cell(text: str) -> str:
    """A cell of a .csv that no spreadsheet takes for a formula; `uncell` undoes it.

    >>> cell("=1+1"), cell("a reel")
    ("'=1+1", 'a reel')
    """
    return QUOTE + text if text.lstrip(QUOTE).startswith(FORMULA) else text


def uncell(text: str) -> str:
    """The text that `cell` was given; other texts are left as they are."""
    return text[1:] if text.startswith(QUOTE) and cell(text[1:]) == text else text


def markdown(text: str) -> str:
    """One line of Markdown that shows the text as it is: no HTML, link, code or table begins or ends in it."""
    return re.sub(r"([\\`*\[\]<>|#~&!]|(?<!\w)_|_(?!\w))", r"\\\1", line(text))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")

"""Names that others chose, as text that cannot disguise itself."""

import unicodedata
from typing import Final

_JOINERS: Final = ("\u200c", "\u200d")
"""Persian and the scripts of India need them inside a word."""


def one_line(text: str) -> str:
    """Return the text with line breaks, control characters and those that turn the direction of text as escapes.

    For mails, logs and terminals; a page isolates the direction of a name instead.
    """
    return "".join(char if _is_plain(char) else char.encode("unicode_escape").decode() for char in text)


def _is_plain(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"

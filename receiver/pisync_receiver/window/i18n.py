"""The languages of the pages: gettext catalogues in `locale/`, and the language of the page that is being made.

Words in code are marked `_("…")` or `ngettext("…", "…", n)`, in templates `{% trans %}` or `_("…")`.
"""

import gettext as catalogues
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

FOLDER: Final = Path(__file__).parent / "locale"
DOMAIN: Final = "window"


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language that pages can be in."""

    code: str
    name: str
    """In the language itself."""
    direction: Literal["ltr", "rtl"]
    thousands: str
    words: catalogues.NullTranslations
    machine_made: bool = False


_KNOWN: Final[tuple[tuple[str, str, Literal["ltr", "rtl"], str], ...]] = (
    ("en", "English", "ltr", ","),
    ("fr", "Français", "ltr", "\u202f"),
    ("ar", "العربية", "rtl", ","),
)
_ENGLISH: Final = "en"


def _load() -> dict[str, Language]:
    """Return English, and each other language whose catalogue is there."""
    loaded = {}
    for code, name, direction, thousands in _KNOWN:
        words = catalogues.translation(DOMAIN, FOLDER, [code], fallback=True)
        if code == _ENGLISH or isinstance(words, catalogues.GNUTranslations):
            loaded[code] = Language(
                code=code,
                name=name,
                direction=direction,
                thousands=thousands,
                words=words,
                machine_made=code != _ENGLISH,
            )
    return loaded


LANGUAGES: Final[Mapping[str, Language]] = _load()
CURRENT: Final[ContextVar[Language]] = ContextVar("language", default=LANGUAGES[_ENGLISH])


def choose_language(*, asked: str | None, remembered: str | None, accepted: str) -> Language:
    """Return the language of a page: the asked one, the remembered one, or the first of Accept-Language."""
    preferred = (part.partition(";")[0].strip().lower().partition("-")[0] for part in accepted.split(","))
    for code in (asked, remembered, *preferred):
        if code is not None and code in LANGUAGES:
            return LANGUAGES[code]
    return LANGUAGES[_ENGLISH]


def gettext(text: str) -> str:
    """Return `text` in the language of the page."""
    return CURRENT.get().words.gettext(text)


def ngettext(one: str, many: str, n: int) -> str:
    """Return the form of a text that fits `n`, in the language of the page."""
    return CURRENT.get().words.ngettext(one, many, n)


_ = gettext

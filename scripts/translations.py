"""The window's texts in other languages: gettext catalogues of what its templates and Python files say.

    scripts/translations            extract every text, update each window.po, compile each window.mo
    scripts/translations --add sw   begin a catalogue for another language

A text that is new has no translation in the catalogues then, and is listed; a text that is gone is removed. Both
files of a language are kept in the repository, so that a receiver needs neither this script nor Babel.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

WINDOW: Final = Path(__file__).parents[1] / "receiver/pisync_receiver/window"
LOCALES: Final = WINDOW / "locale"
METHODS: Final = [("templates/**.html", "jinja2"), ("**.py", "python")]
OPTIONS: Final = {
    "templates/**.html": {"extensions": "jinja2.ext.i18n", "trimmed": "true", "silent": "false"},
}
WIDTH: Final = 110
_SAME_DATE: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""In place of the time of the extraction, which would change every catalogue at every run."""


def template() -> Catalog:
    """Return every text of the window, without translations."""
    made = Catalog(project="PiSync", creation_date=_SAME_DATE, fuzzy=False)
    found = extract_from_dir(WINDOW, METHODS, OPTIONS, comment_tags=("For translators:",), strip_comment_tags=True)
    for name, line, message, comments, context in found:
        made.add(message, locations=[(name, line)], auto_comments=comments, context=context)
    return made


def locales() -> list[str]:
    """Return the languages that have a catalogue."""
    return sorted(path.parent.parent.name for path in LOCALES.glob("*/LC_MESSAGES/window.po"))


def catalogue_file(locale: str) -> Path:
    return LOCALES / locale / "LC_MESSAGES/window.po"


def read(locale: str) -> Catalog:
    """Return a language's catalogue as it is kept."""
    with catalogue_file(locale).open("rb") as file:
        return read_po(file, locale=locale)


def updated(locale: str, texts: Catalog) -> Catalog:
    """Return a language's catalogue with exactly `texts` in it, translated as far as it was."""
    file = catalogue_file(locale)
    kept = read(locale) if file.exists() else Catalog(locale=locale, project="PiSync", fuzzy=False)
    # Without guesses from similar texts: a wrong translation is worse than none.
    kept.update(texts, no_fuzzy_matching=True, update_creation_date=True)
    kept.obsolete.clear()
    kept.revision_date = _SAME_DATE
    kept.msgid_bugs_address = kept.last_translator = kept.language_team = "The PiSync maintainers"
    return kept


def as_po(catalogue: Catalog) -> bytes:
    made = io.BytesIO()
    write_po(made, catalogue, width=WIDTH, sort_output=True, include_lineno=False, ignore_obsolete=True)
    return made.getvalue()


def as_mo(catalogue: Catalog) -> bytes:
    made = io.BytesIO()
    write_mo(made, catalogue)
    return made.getvalue()


def untranslated(catalogue: Catalog) -> Iterator[str]:
    """Yield the texts that lack a translation, or one of its plural forms."""
    for message in catalogue:
        if not message.id:
            continue
        forms = texts_of(message.string)
        if not all(forms) or (message.pluralizable and len(forms) != catalogue.num_plurals):
            yield first(message)


def first(message: Message) -> str:
    """Return a text, or its form for one."""
    return texts_of(message.id)[0]


def texts_of(text: object) -> list[str]:
    """Return each form of a text or of its translation."""
    return [str(form or "") for form in text] if isinstance(text, list | tuple) else [str(text or "")]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/translations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", metavar="LANGUAGE", help="begin a catalogue for a language, such as sw or pt_BR")
    added: str | None = parser.parse_args().add
    texts = template()
    for locale in sorted({*locales(), *filter(None, (added,))}):
        catalogue = updated(locale, texts)
        file = catalogue_file(locale)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(as_po(catalogue))
        file.with_suffix(".mo").write_bytes(as_mo(catalogue))
        lacking = list(untranslated(catalogue))
        print(f"{locale}: {len(catalogue)} texts, {len(lacking)} without a translation")
        for text in lacking:
            print(f"  {text!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

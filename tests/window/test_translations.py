"""The window's languages: every visible text has a translation, and no text bypasses the catalogues."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from babel.messages.catalog import Message
from jinja2 import Environment
from jinja2.lexer import (
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_DATA,
    TOKEN_NAME,
    TOKEN_VARIABLE_BEGIN,
    TOKEN_VARIABLE_END,
)

import translations

TEMPLATES: Final = sorted((translations.WINDOW / "templates").glob("*.html"))
PLACEHOLDER: Final = re.compile(r"%\([a-z_]+\)s")
MARKUP: Final = re.compile(r"<[a-z/]+>")
SPOKEN: Final = re.compile(r'\b(?:alt|aria-label|content|placeholder|title)="([^"]*)"')
NOT_WORDS: Final = re.compile(r"PiSync|CSV|NDJSON|Parquet|&[a-z]+;|\x00[^\x00]*\x00")
ALLOWED: Final = {"width=device-width, initial-scale=1", "light dark", "video.watched"}
"""Attributes that are for the browser, and examples in the language of events."""


@pytest.fixture(scope="module")
def texts() -> list[Message]:
    return [message for message in translations.template() if message.id]


def test_the_texts_of_templates_and_code_are_found(texts: list[Message]) -> None:
    said = {translations.first(message) for message in texts}
    assert {"Enrollment", "usable"} <= said
    assert len(said) > 100


@pytest.mark.parametrize("locale", translations.locales())
def test_every_text_has_a_translation(locale: str, texts: list[Message]) -> None:
    kept = translations.read(locale)
    wanted = {translations.first(message) for message in texts}
    known = {translations.first(message) for message in kept if message.id}

    assert wanted - known == set(), "scripts/translations adds them"
    assert known - wanted == set(), "scripts/translations removes them"
    assert list(translations.untranslated(kept)) == []


@pytest.mark.parametrize("locale", translations.locales())
def test_translations_keep_values_and_markup(locale: str) -> None:
    for message in translations.read(locale):
        if not message.id:
            continue
        ids, forms = translations.texts_of(message.id), translations.texts_of(message.string)
        values = set(PLACEHOLDER.findall(" ".join(ids)))
        for form in forms:
            assert set(PLACEHOLDER.findall(form)) <= values, form
            assert form.replace("%(", "").replace("%%", "").count("%") == 0, form
        # A form for one or two may say the number in words.
        assert set(PLACEHOLDER.findall(forms[-1])) == values, forms[-1]
        assert sorted(MARKUP.findall(forms[-1])) == sorted(MARKUP.findall(ids[-1])), forms[-1]


@pytest.mark.parametrize("locale", translations.locales())
def test_the_compiled_catalogue_is_up_to_date(locale: str) -> None:
    compiled = translations.catalogue_file(locale).with_suffix(".mo")
    assert compiled.read_bytes() == translations.as_mo(translations.read(locale))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_visible_text_bypasses_the_catalogues(template: Path) -> None:
    shown = literal_text(template.read_text())
    attributes = [value for value in SPOKEN.findall(shown) if value not in ALLOWED]
    between_tags = re.sub(r"<(code|pre|style|script)\b.*?</\1>|<[^>]*>", " ", shown, flags=re.DOTALL)

    assert [word for part in (*attributes, between_tags) for word in re.findall(r"[A-Za-z]{2,}", part)] == []


def literal_text(source: str) -> str:
    """Return what a template says itself; a value, and what is said in `{% trans %}`, is a mark."""
    return NOT_WORDS.sub("", "".join(_literal_parts(source)))


def _literal_parts(source: str) -> Iterator[str]:
    environment = Environment(extensions=["jinja2.ext.i18n"])  # noqa: S701 - it renders nothing
    in_trans, block, previous = False, False, ""
    for _, token, value in environment.lex(source):
        if token == TOKEN_DATA and not in_trans:
            yield value
        elif token in (TOKEN_BLOCK_BEGIN, TOKEN_VARIABLE_BEGIN):
            block, previous = True, token
            yield "…"
        elif token in (TOKEN_BLOCK_END, TOKEN_VARIABLE_END):
            block = False
        elif token == TOKEN_NAME and block and previous == TOKEN_BLOCK_BEGIN:
            in_trans = value == "trans" or (in_trans and value != "endtrans")
            previous = ""

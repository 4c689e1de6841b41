"""Removing secrets, and what learners did, from text that leaves the device.

Two measures, either of which would do for what PiSync itself writes: patterns of secrets, and the values of the events
that this device holds, as they are and as they are commonly encoded. Both take too much rather than too little.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

MASK: Final = "[removed]"
KNOWN: Final = 100_000
"""The most values that are looked for."""

_KEY: Final = 4
"""Values are found by their first characters, so that a text takes the same time however many there are."""
_WORD: Final = re.compile(r"[a-z]{1,12}")
_SHORT: Final = re.compile(r"[^\s\"'=,;:()\[\]{}<>/]+")
_URL_USER: Final = re.compile(r"(?<=://)[^/?#\s@]*@")
_URL_QUERY: Final = re.compile(r"(?<=[\w/])\?[^\s\"'<>]+")
_SECRETS: Final = re.compile(
    r"""
      \bps[a-z]_[\w-]+                                              # a token
    | (?<![\w-])[0-9A-Za-z]{4}(?:-[0-9A-Za-z]{4}){1,7}(?![\w-])     # an enrollment code
    | (?<=--code[ =])\S+
    | (?i:(?<=bearer\ )|(?<=basic\ ))\S+
    | [\w.+%-]+@[\w-]+\.[\w.-]+                                     # an e-mail address
    | [\w.~+-]*(?:%[0-9A-Fa-f]{2})+[\w.~%+-]*                       # something URL-encoded
    | (?=[\w+=-]*[a-z])(?=[\w+=-]*[A-Z])(?=[\w+=-]*[0-9])[\w+=-]{20,}  # random letters and digits
    | \b(?:[0-9a-fA-F]{2}){20,}\b                                    # something in hexadecimal
    """,
    re.VERBOSE,
)
_NAMED: Final = re.compile(
    r"(?i)\b(\w*(?:passw(?:or)?d|token|secret|api_?key|authorization|cookie)\w*[\"']?\s*[:=]\s*[\"']?)"
    r"(?:(?:bearer|basic)\s+)?[^\s\"',;}]+"
)


class Redactor:
    """Masks secrets, and every value that was added."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._short: set[str] = set()
        self._count = 0

    def add(self, value: str) -> None:
        """Look for this value too, also encoded."""
        for form in _forms(value):
            if self._count >= KNOWN:
                return
            self._count += 1
            if len(form) < _KEY:
                self._short.add(form)
            else:
                self._known.setdefault(form[:_KEY], set()).add(form)

    def add_event(self, body: str) -> None:
        """Look for what an event says: its learner, its object, its ids, and the texts of its data."""
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            return
        for name in ("learner_id", "object_id", "id", "learner_home"):
            if isinstance(event, dict) and isinstance(event.get(name), str):
                self.add(event[name])
        for text in _texts(event.get("data") if isinstance(event, dict) else None):
            if len(text) >= _KEY and not _WORD.fullmatch(text):  # a plain word, such as "failed", says nothing
                self.add(text)

    def text(self, text: str) -> str:
        """Return the text without what must not leave the device."""
        text = self._without_known(text)
        if self._short:
            text = _SHORT.sub(lambda match: MASK if match[0] in self._short else match[0], text)
        text = _URL_QUERY.sub(f"?{MASK}", _URL_USER.sub(f"{MASK}@", text))
        return _SECRETS.sub(MASK, _NAMED.sub(rf"\1{MASK}", text))

    def value(self, value: Any) -> Any:
        """Return a JSON value with every text in it, names of fields too, redacted."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(name)): self.value(each) for name, each in value.items()}
            case list() | tuple():
                return [self.value(each) for each in value]
            case _:
                return value

    def _without_known(self, text: str) -> str:
        parts, start, at = [], 0, 0
        while at < len(text):
            found = [form for form in self._known.get(text[at : at + _KEY], ()) if text.startswith(form, at)]
            if not found:
                at += 1
                continue
            parts += [text[start:at], MASK]
            start = at = at + max(map(len, found))
        return "".join([*parts, text[start:]])


def _forms(value: str) -> set[str]:
    """Return a value as it is, and as URLs, JSON, Python, base64 and hexadecimal have it."""
    raw = value.encode(errors="surrogatepass")
    if not raw.strip():
        return set()
    forms = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    if len(raw) >= _KEY:
        coded = [base64.b64encode(raw), base64.urlsafe_b64encode(raw)]
        forms |= {quote(raw, safe=""), quote(raw), quote_plus(raw), raw.hex(), raw.hex().upper()}
        forms |= {each.decode().rstrip("=") for each in coded}
    return forms


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a JSON value."""
    waiting: list[object] = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case Mapping() as fields:
                waiting += fields.values()
            case Iterable() as items:
                waiting += items

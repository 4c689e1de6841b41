"""What a certificate says of itself, read from its DER form: who issued it, and when it is valid.

Only for messages: a certificate is read here because it could not be verified, so nothing in it is proved.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_COMMON_NAME, _ORGANIZATION = b"\x55\x04\x03", b"\x55\x04\x0a"
_ENCODINGS: Final = {0x1E: "utf-16-be", 0x0C: "utf-8"}
_NAME_CHARS: Final = 100

Element = tuple[int, bytes]
"""A tag and its content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """A certificate's issuer, in a form fit for a log, and the first and last moment of its validity."""

    issuer: str
    not_before: datetime
    not_after: datetime


def read_certificate(der: bytes) -> Certificate | None:
    """Read a certificate (RFC 5280, section 4.1); None if it is not a certificate."""
    try:
        outer = _first(der, _SEQUENCE)
        fields = [field for field in _elements(_first(outer, _SEQUENCE)) if field[0] != _VERSION]
        _serial, _algorithm, issuer, validity, *_ = fields
        start, end, *_ = _elements(validity[1])
        return Certificate(issuer=_issuer(issuer[1]), not_before=_time(start), not_after=_time(end))
    except (ValueError, IndexError, StopIteration):
        return None


def _elements(data: bytes) -> Iterator[Element]:
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size & 0x80:
            more = size & 0x7F
            size = int.from_bytes(data[at : at + more], "big")
            at += more
        if at + size > len(data):
            raise ValueError("not a certificate: it is cut off")
        yield tag, data[at : at + size]
        at += size


def _first(data: bytes, tag: int) -> bytes:
    found, content = next(_elements(data))
    if found != tag:
        raise ValueError("not a certificate")
    return content


def _issuer(name: bytes) -> str:
    """Return the organization and the common name, those that there are."""
    found = dict(_attributes(name))
    parts = [found[kind] for kind in (_ORGANIZATION, _COMMON_NAME) if found.get(kind)]
    return ", ".join(dict.fromkeys(parts)) or "an issuer without a name"


def _attributes(name: bytes) -> Iterator[tuple[bytes, str]]:
    for _, group in _elements(name):
        for _, pair in _elements(group):
            (_, kind), (tag, value), *_ = _elements(pair)
            text = value.decode(_ENCODINGS.get(tag, "latin-1"), errors="replace")[:_NAME_CHARS]
            yield kind, "".join(each if each.isprintable() else " " for each in text).strip()


def _time(element: Element) -> datetime:
    """Return a time: years of two digits are those of 1950 to 2049."""
    tag, content = element
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a certificate: its validity is not a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)

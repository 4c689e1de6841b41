"""Which trace a request belongs to: W3C Trace Context, https://www.w3.org/TR/trace-context/.

A gateway or a caller that traces sends `traceparent: 00-<trace id>-<span id>-<flags>`. Its trace id stands on every log
line of the request; a caller that sends none, or something else, begins no trace.
"""

import re
from typing import Final

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-"  # version and trace
    rb"(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"  # span and flags
)
_FIRST_VERSION: Final = b"00-"
_LENGTH: Final = 55


def trace_of(header: bytes | None) -> str | None:
    """The trace id of a `traceparent` header; None where there is none that can be read."""
    if header is None or len(header) < _LENGTH:
        return None
    if header.startswith(_FIRST_VERSION) and len(header) != _LENGTH:
        return None  # later versions may say more, this one does not
    found = _TRACEPARENT.fullmatch(header)
    return None if found is None else found[1].decode()

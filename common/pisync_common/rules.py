"""The validity rules of identifiers and event data, in one place.

The patterns are plain strings, so that the receiver can put them into its decoder and its OpenAPI document, too. They
are anchored with `^…$` for JSON Schema (ECMA-262) and matched here with `fullmatch`.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from pisync_common.errors import RuleError
from pisync_common.limits import (
    DATA_BYTES,
    DATA_DEPTH,
    EVENT_ID_CHARS,
    ID_CHARS,
    LEARNER_ID_CHARS,
    OBJECT_ID_CHARS,
    SITE_CHARS,
)


def text_pattern(chars: int) -> str:
    """Return the pattern of 1 to `chars` characters without control characters."""
    # Control characters are C0, DEL, C1 and the two line separators; lone surrogates have no UTF-8 form.
    return rf"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\ud800-\udfff]{{1,{chars}}}$"


# At least one letter or digit, so that "." and ".." are not ids.
ID_PATTERN: Final = r"^(?=[._:@+-]*[A-Za-z0-9])[A-Za-z0-9._:@+-]{1,128}$"
TYPE_PATTERN: Final = r"^[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+$"
EVENT_ID_PATTERN: Final = text_pattern(EVENT_ID_CHARS)
LEARNER_ID_PATTERN: Final = text_pattern(LEARNER_ID_CHARS)
OBJECT_ID_PATTERN: Final = text_pattern(OBJECT_ID_CHARS)
SITE_PATTERN: Final = text_pattern(SITE_CHARS)

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ID = re.compile(ID_PATTERN[1:-1])
_TYPE = re.compile(TYPE_PATTERN[1:-1])
_EVENT_ID = re.compile(EVENT_ID_PATTERN[1:-1])
_LEARNER_ID = re.compile(LEARNER_ID_PATTERN[1:-1])
_OBJECT_ID = re.compile(OBJECT_ID_PATTERN[1:-1])
_SITE = re.compile(SITE_PATTERN[1:-1])
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(r"[{}\[\]]")


def check_id(name: str, value: str) -> str:
    """Return `value` if it is a device, stream or boot id or an idempotency key; raise RuleError naming `name`."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RuleError(
            f"{name} must be 1 to {ID_CHARS} characters of A-Z a-z 0-9 . _ : @ + - with at least one letter or digit; "
            f"got {_shown(value)}"
        )
    return value


def check_type(value: str) -> str:
    """Return `value` if it is an event type such as `video.watched`; raise RuleError."""
    if not isinstance(value, str) or len(value) > ID_CHARS or not _TYPE.fullmatch(value):
        raise RuleError(
            f"type must be noun.verb in lower case, such as video.watched, at most {ID_CHARS} characters; "
            f"got {_shown(value)}"
        )
    return value


def check_event_id(value: str) -> str:
    """Return `value` if it can be an event's `id`, the app's own key; raise RuleError."""
    return _check_text("id", value, _EVENT_ID, EVENT_ID_CHARS)


def check_learner_id(value: str) -> str:
    """Return `value` if it is a learner id; raise RuleError."""
    return _check_text("learner_id", value, _LEARNER_ID, LEARNER_ID_CHARS)


def check_object_id(value: str) -> str:
    """Return `value` if it is an object id; raise RuleError."""
    return _check_text("object_id", value, _OBJECT_ID, OBJECT_ID_CHARS)


def check_site(value: str) -> str:
    """Return `value` if it is the name of a site; raise RuleError."""
    return _check_text("site", value, _SITE, SITE_CHARS)


def _check_text(name: str, value: str, pattern: re.Pattern[str], chars: int) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise RuleError(f"{name} must be 1 to {chars} characters without control characters; got {_shown(value)}")
    return value


def encode_data(data: Mapping[str, object]) -> str:
    """Return the compact JSON text of an event's `data`; raise RuleError if it is not a JSON object or over 64 KiB."""
    if not isinstance(data, Mapping):
        raise RuleError(f"data must be a JSON object, not {type(data).__name__}")
    try:
        text = _ENCODER.encode(dict(data))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise RuleError(f"data is not JSON: {error}") from error
    if size > DATA_BYTES:
        raise RuleError(f"data is {size:,} bytes as JSON; the limit for one event is {DATA_BYTES:,}")
    return check_depth(text)


def check_depth(text: str) -> str:
    """Return JSON `text` if it nests at most DATA_DEPTH deep, as every JSON reader can; raise RuleError."""
    if text.count("{") + text.count("[") > DATA_DEPTH:
        depth = deepest = 0
        for bracket in _BRACKET.findall(_STRING.sub("", text)):
            depth += 1 if bracket in "{[" else -1
            deepest = max(deepest, depth)
        if deepest > DATA_DEPTH:
            raise RuleError(f"data nests {deepest} deep; the limit is {DATA_DEPTH}")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

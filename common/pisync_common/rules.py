"""The validity rules of identifiers and event data, in one place.

The patterns are plain strings, so that the receiver can put the same ones into its decoder and its
OpenAPI document. `\\Z`-free on purpose: they are anchored with `^…$` for JSON Schema (ECMA-262) and matched
here with `fullmatch`.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from pisync_common.errors import RuleError
from pisync_common.limits import DATA_BYTES, DATA_DEPTH, ID_CHARS, OBJECT_ID_CHARS

ID_PATTERN: Final = r"^[A-Za-z0-9._:@+-]{1,128}$"
TYPE_PATTERN: Final = r"^[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+$"
# C0, DEL, C1 and the two line separators; lone surrogates cannot be UTF-8 at all.
OBJECT_ID_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029\ud800-\udfff]{1,512}$"

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ID = re.compile(ID_PATTERN[1:-1])
_TYPE = re.compile(TYPE_PATTERN[1:-1])
_OBJECT_ID = re.compile(OBJECT_ID_PATTERN[1:-1])
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(r"[{}\[\]]")


def check_id(name: str, value: str) -> str:
    """Return `value` if it is a device, stream or learner id or a key; raise RuleError naming `name`."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise RuleError(f"{name} must be 1 to {ID_CHARS} characters of A-Z a-z 0-9 . _ : @ + -; got {_shown(value)}")
    return value


def check_type(value: str) -> str:
    """Return `value` if it is an event type such as `video.watched`; raise RuleError."""
    if not isinstance(value, str) or len(value) > ID_CHARS or not _TYPE.fullmatch(value):
        raise RuleError(
            f"type must be noun.verb in lower case, such as video.watched, at most {ID_CHARS} characters; "
            f"got {_shown(value)}"
        )
    return value


def check_object_id(value: str) -> str:
    """Return `value` if it is an object id (any text without control characters); raise RuleError."""
    if not isinstance(value, str) or not _OBJECT_ID.fullmatch(value):
        raise RuleError(
            f"object_id must be 1 to {OBJECT_ID_CHARS} characters without control characters; got {_shown(value)}"
        )
    return value


def encode_data(data: Mapping[str, object]) -> str:
    """The compact JSON text of an event's `data`; raise RuleError if it is no JSON object or over 64 KiB."""
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
    """Return JSON `text` if it nests at most DATA_DEPTH deep, so that every JSON reader can read it; RuleError."""
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

"""Query parameters: how each is read, what it means and what is allowed. The OpenAPI document comes from the same."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from pisync_common import rules
from pisync_common.errors import RuleError
from pisync_common.limits import ID_CHARS, LEARNER_ID_CHARS, OBJECT_ID_CHARS
from pisync_common.times import parse_ms
from pisync_receiver.errors import Problem

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhdw])")
DURATION_PATTERN: Final = "^[0-9]{1,6}[smhdw]$"
_LOST_PLUS: Final = re.compile(r" (\d\d:\d\d)$")
_FIELDS_MAX: Final = 100


@dataclass(frozen=True, kw_only=True)
class Param:
    """A query parameter. `read` takes the text and the time now (ms) and raises ValueError with what is allowed."""

    name: str
    summary: str
    read: Callable[[str, int], object]
    schema: Mapping[str, object]
    default: object = None
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class Query:
    """The parameters of one route."""

    params: Sequence[Param] = field(default=())
    others: bool = False
    """Whether unknown parameters are ignored: another program chooses them."""

    def read(self, query: bytes, now_ms: int) -> dict[str, Any]:
        """Return every parameter's value, or its default. Raises Problem 400, also for an unknown parameter: a filter
        with a typing error must not answer with everything."""
        given = _given(query) if query else {}
        known = {param.name for param in self.params}
        for name in given:
            if name not in known and not self.others:
                raise Problem(400, "unknown_parameter", f"{name[:100]!r}: unknown parameter; {self._nearest(name)}")
        return {param.name: _value(param, given.get(param.name, ()), now_ms) for param in self.params}

    def _nearest(self, name: str) -> str:
        names = [param.name for param in self.params]
        if near := difflib.get_close_matches(name[:100].lower(), names, n=1):
            return f"did you mean {near[0]}?"
        return f"known: {', '.join(names)}" if names else "this call takes none"


NO_QUERY: Final = Query()


def text_schema(chars: int) -> dict[str, object]:
    """Return the JSON Schema of a text without control characters (see `rules.text_pattern`)."""
    # Without surrogates: alone they are no text, and many a regex engine refuses to name them.
    return {"minLength": 1, "maxLength": chars, "pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$"}


def _given(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise Problem(400, "invalid_parameter", "the query string is not UTF-8, or has too many fields") from error
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    return given


def _value(param: Param, given: Sequence[str], now_ms: int) -> object:
    if not given and param.required:
        raise Problem(400, "missing_parameter", f"{param.name}: required")
    if not given:
        return param.default
    if len(given) > 1:
        raise Problem(400, "invalid_parameter", f"{param.name}: given {len(given)} times; give it once")
    try:
        return param.read(given[0], now_ms)
    except ValueError as error:
        raise Problem(400, "invalid_parameter", f"{param.name}: {error}") from error


def whole(name: str, summary: str, *, default: int, low: int, high: int) -> Param:
    """A whole number between `low` and `high`."""

    def read(text: str, _: int) -> int:
        if not re.fullmatch(r"[0-9]{1,16}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return Param(name=name, summary=summary, read=read, schema=schema, default=default)


def choice(name: str, summary: str, options: Sequence[str], *, default: str) -> Param:
    """One of `options`."""

    def read(text: str, _: int) -> str:
        if text not in options:
            raise ValueError(f"must be one of {', '.join(options)}")
        return text

    schema = {"type": "string", "enum": list(options), "default": default}
    return Param(name=name, summary=summary, read=read, schema=schema, default=default)


def options(name: str, summary: str, options: Sequence[str]) -> Param:
    """One of `options`; None when it is not given."""
    known = choice(name, summary, options, default=options[0])
    return Param(name=name, summary=summary, read=known.read, schema={"type": "string", "enum": list(options)})


def flag(name: str, summary: str) -> Param:
    """true or false; None when it is not given."""

    def read(text: str, _: int) -> bool:
        if text not in ("true", "false"):
            raise ValueError("must be true or false")
        return text == "true"

    return Param(name=name, summary=summary, read=read, schema={"type": "boolean"})


def moment(name: str, summary: str) -> Param:
    """A time, as milliseconds since 1970: RFC 3339, or how long ago, such as 7d."""

    def read(text: str, now_ms: int) -> int:
        if _is_duration(text):
            return now_ms - duration_ms(text)
        try:
            return parse_ms(_LOST_PLUS.sub(r"+\1", text))  # an unescaped + in a query string reads as a space
        except RuleError as error:
            raise ValueError("must be an RFC 3339 time such as 2026-11-23T10:00:00Z, or how long ago: 7d") from error

    schema = {"type": "string", "anyOf": [{"format": "date-time"}, {"pattern": DURATION_PATTERN}]}
    summary = f"{summary} (a time, or how long ago: 30m, 12h, 7d)"
    return Param(name=name, summary=summary, read=read, schema=schema)


def duration(name: str, summary: str) -> Param:
    """A length of time before now, in milliseconds, written as 30m, 12h or 3d."""
    schema = {"type": "string", "pattern": DURATION_PATTERN}
    return Param(name=name, summary=summary, read=lambda text, _: duration_ms(text), schema=schema)


def identifier(name: str, summary: str) -> Param:
    """A device or stream id."""
    return _ruled(name, summary, lambda text: rules.check_id("it", text), {"pattern": rules.ID_PATTERN})


def event_type(name: str, summary: str) -> Param:
    """An event type such as video.watched."""
    return _ruled(name, summary, rules.check_type, {"pattern": rules.TYPE_PATTERN, "maxLength": ID_CHARS})


def learner_id(name: str, summary: str) -> Param:
    """A learner id."""
    return _ruled(name, summary, rules.check_learner_id, text_schema(LEARNER_ID_CHARS))


def object_id(name: str, summary: str) -> Param:
    """An object id."""
    return _ruled(name, summary, rules.check_object_id, text_schema(OBJECT_ID_CHARS))


def _ruled(name: str, summary: str, check: Callable[[str], str], schema: Mapping[str, object]) -> Param:
    """A text that a rule of `common.rules` checks."""

    def read(text: str, _: int) -> str:
        try:
            return check(text)
        except RuleError as error:
            raise ValueError(str(error).removeprefix("it ").removeprefix(f"{name} ")) from error

    return Param(name=name, summary=summary, read=read, schema={"type": "string", **schema})


def text(name: str, summary: str, *, longest: int = 256) -> Param:
    """Any short text."""

    def read(value: str, _: int) -> str:
        if not 1 <= len(value) <= longest or "\0" in value:
            raise ValueError(f"must be 1 to {longest} characters")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": r"^[^\u0000]*$"}
    return Param(name=name, summary=summary, read=read, schema=schema)


def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None


def duration_ms(text: str) -> int:
    """Return a length of time such as 30m, 12h or 3d in milliseconds. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError("must be a length of time such as 30m, 12h or 3d")
    return int(match.group(1)) * _UNITS_MS[match.group(2)]

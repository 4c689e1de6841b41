"""Query parameters: each says how it is read, what it means, and what is allowed; both the answers and the document
come from that."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from pisync_common import rules
from pisync_common.errors import RuleError
from pisync_common.times import parse_ms
from pisync_receiver.errors import Problem
from pisync_receiver.wire import OBJECT_ID_SCHEMA

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhdw])")
_LOST_PLUS: Final = re.compile(r" (\d\d:\d\d)$")
_FIELDS_MAX: Final = 100


@dataclass(frozen=True, kw_only=True)
class Param:
    """One query parameter. `read` takes the text and the time now (ms) and raises ValueError with what is allowed."""

    name: str
    about: str
    read: Callable[[str, int], object]
    schema: Mapping[str, object]
    default: object = None
    moves: Callable[[str], bool] = lambda text: False
    """Whether this text means something else as time goes by."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """The parameters of one route."""

    params: Sequence[Param] = field(default=())

    def read(self, query: bytes, now_ms: int) -> dict[str, Any]:
        """Every parameter's value, or its default; what nobody declared is ignored. Raises Problem 400."""
        given = self._given(query) if query else {}
        return {param.name: _value(param, given.get(param.name, ()), now_ms) for param in self.params}

    def moves(self, query: bytes) -> bool:
        """Whether the same query may be answered otherwise later though nothing was stored. Raises Problem 400."""
        given = self._given(query) if query else {}
        return any(param.moves(text) for param in self.params for text in given.get(param.name, ()))

    def _given(self, query: bytes) -> dict[str, list[str]]:
        try:
            pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX)
        except ValueError as error:
            raise Problem(400, "invalid_parameter", "the query string is not UTF-8, or has too many fields") from error
        given: dict[str, list[str]] = {}
        for name, value in pairs:
            given.setdefault(name, []).append(value)
        return given


def _value(param: Param, given: Sequence[str], now_ms: int) -> object:
    if not given:
        return param.default
    if len(given) > 1:
        raise Problem(400, "invalid_parameter", f"{param.name}: given {len(given)} times; give it once")
    try:
        return param.read(given[0], now_ms)
    except ValueError as error:
        raise Problem(400, "invalid_parameter", f"{param.name}: {error}") from error


def whole(name: str, about: str, *, default: int, low: int, high: int) -> Param:
    """A whole number between `low` and `high`."""

    def read(text: str, _: int) -> int:
        if not re.fullmatch(r"[0-9]{1,16}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return Param(name=name, about=about, read=read, schema=schema, default=default)


def choice(name: str, about: str, options: Sequence[str], *, default: str) -> Param:
    """One of `options`."""

    def read(text: str, _: int) -> str:
        if text not in options:
            raise ValueError(f"must be one of {', '.join(options)}")
        return text

    schema = {"type": "string", "enum": list(options), "default": default}
    return Param(name=name, about=about, read=read, schema=schema, default=default)


def flag(name: str, about: str) -> Param:
    """true or false; None when it is not given."""

    def read(text: str, _: int) -> bool:
        if text not in ("true", "false"):
            raise ValueError("must be true or false")
        return text == "true"

    return Param(name=name, about=about, read=read, schema={"type": "boolean"})


def moment(name: str, about: str) -> Param:
    """A time, as milliseconds since 1970: RFC 3339, or how long ago, such as 7d."""

    def read(text: str, now_ms: int) -> int:
        if _is_duration(text):
            return now_ms - _duration_ms(text)
        try:
            return parse_ms(_LOST_PLUS.sub(r"+\1", text))  # an unescaped + in a query string reads as a space
        except RuleError as error:
            raise ValueError("must be an RFC 3339 time such as 2026-11-23T10:00:00Z, or how long ago: 7d") from error

    schema = {"type": "string", "anyOf": [{"format": "date-time"}, {"pattern": "^[0-9]{1,6}[smhdw]$"}]}
    about = f"{about} (a time, or how long ago: 30m, 12h, 7d)"
    return Param(name=name, about=about, read=read, schema=schema, moves=_is_duration)


def duration(name: str, about: str) -> Param:
    """A length of time before now, in milliseconds, written as 30m, 12h or 3d."""
    schema = {"type": "string", "pattern": "^[0-9]{1,6}[smhdw]$"}
    return Param(name=name, about=about, read=lambda text, _: _duration_ms(text), schema=schema, moves=_is_duration)


def identifier(name: str, about: str) -> Param:
    """A device, stream or learner id."""

    def read(text: str, _: int) -> str:
        return _by_rule(lambda: rules.check_id("it", text))

    return Param(name=name, about=about, read=read, schema={"type": "string", "pattern": rules.ID_PATTERN})


def event_type(name: str, about: str) -> Param:
    """An event type such as video.watched."""

    def read(text: str, _: int) -> str:
        return _by_rule(lambda: rules.check_type(text))

    schema = {"type": "string", "pattern": rules.TYPE_PATTERN, "maxLength": 128}
    return Param(name=name, about=about, read=read, schema=schema)


def object_id(name: str, about: str) -> Param:
    """An object id."""

    def read(text: str, _: int) -> str:
        return _by_rule(lambda: rules.check_object_id(text))

    return Param(name=name, about=about, read=read, schema={"type": "string"} | OBJECT_ID_SCHEMA)


def text(name: str, about: str, *, longest: int = 256) -> Param:
    """Any short text."""

    def read(value: str, _: int) -> str:
        if not 1 <= len(value) <= longest or "\0" in value:
            raise ValueError(f"must be 1 to {longest} characters")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": longest, "pattern": r"^[^\u0000]*$"}
    return Param(name=name, about=about, read=read, schema=schema)


def _by_rule(check: Callable[[], str]) -> str:
    try:
        return check()
    except RuleError as error:
        raise ValueError(str(error).removeprefix("it ")) from error


def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None


def _duration_ms(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError("must be a length of time such as 30m, 12h or 3d")
    return int(match.group(1)) * _UNITS_MS[match.group(2)]

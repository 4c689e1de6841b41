"""A progress event on its way into the outbox, and its text once it is there."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from math import isfinite
from typing import Any, Final, Self

from pisync_agent.errors import AgentError, InvalidEvent
from pisync_common import rules, wire
from pisync_common.errors import RuleError
from pisync_common.limits import DATA_BYTES, SEQ_MAX
from pisync_common.models import Origin, Stamp
from pisync_common.times import EARLIEST_MS, LATEST_MS, parse_ms, to_ms

ATTEMPT_MAX: Final = 2**63 - 1

_HEAD = re.compile(r'\{"seq":(0|[1-9][0-9]{0,15}),')


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEvent:
    """A valid event without a seq. Make it with `create`, or `from_fields` where it comes from another process."""

    type: str
    stamp: Stamp
    """The moment of recording."""
    occurred_at_ms: int | None = None
    """The app's own time; None where it gave none."""
    id: str | None = None
    """The app's own key: the same id twice is stored once."""
    learner_id: str | None = None
    object_id: str | None = None
    data: str | None = None
    """JSON text."""
    attempt: int | None = None
    """A random number stored beside the event, so that recording it again after a lost answer is noticed."""
    retried: bool = False
    """Whether an earlier attempt may have been recorded: look for it first."""
    follows: bool = False
    """Whether it must not be recorded where the event before it, in the same call, was refused."""
    origin: Origin | None = None
    """Where it was first recorded, if that was in another outbox."""
    adopted_from: Origin | None = None
    """The adopted outbox (see `adoption.Source.name`) and its seq there: it is recorded once."""

    @classmethod
    def create(
        cls,
        type: str,
        *,
        stamp: Stamp,
        occurred_at: datetime | None = None,
        id: str | None = None,
        learner_id: str | None = None,
        object_id: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> Self:
        """Check every field; raise InvalidEvent that names the field that breaks a rule."""
        try:
            return cls(
                type=type,
                stamp=stamp,
                occurred_at_ms=None if occurred_at is None else _to_ms(occurred_at),
                id=id,
                learner_id=learner_id,
                object_id=object_id,
                data=None if data is None else rules.encode_data(data),
            )._checked()
        except RuleError as error:
            raise InvalidEvent(str(error)) from error

    def fields(self) -> dict[str, object]:
        """Return it as a JSON object for another process, without the fields that have no value."""
        stamp = self.stamp
        fields: dict[str, object] = {
            "type": self.type,
            "stamp": [stamp.at_ms, stamp.boot_id, stamp.boottime_ms, stamp.clock_synced],
        }
        for name in ("occurred_at_ms", "id", "learner_id", "object_id", "data", "attempt"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        if self.retried:
            fields["retried"] = True
        if self.follows:
            fields["follows"] = True
        for name in ("origin", "adopted_from"):
            if (place := getattr(self, name)) is not None:
                fields[name] = [place.stream, place.seq]
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Return the event another process sent, checked as if it were new; raise InvalidEvent."""
        try:
            at_ms, boot_id, boottime_ms, clock_synced = fields["stamp"]
            data = fields.get("data")
            return cls(
                type=fields["type"],
                stamp=Stamp(at_ms=at_ms, boot_id=boot_id, boottime_ms=boottime_ms, clock_synced=clock_synced),
                occurred_at_ms=fields.get("occurred_at_ms"),
                id=fields.get("id"),
                learner_id=fields.get("learner_id"),
                object_id=fields.get("object_id"),
                data=None if data is None else _check_data(data),
                attempt=fields.get("attempt"),
                retried=fields.get("retried") is True,
                follows=fields.get("follows") is True,
                origin=_place(fields.get("origin")),
                adopted_from=_place(fields.get("adopted_from")),
            )._checked()
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            detail = str(error) if isinstance(error, RuleError) else f"not an event: {error!r:.200}"
            raise InvalidEvent(detail) from error

    @classmethod
    def from_body(cls, body: str, *, origin: Origin, adopted_from: Origin) -> Self:
        """Return the event of another outbox from its text, with its own times; raise InvalidEvent.

        `origin` is where it stands there; an event that was transferred before keeps its origin.
        """
        try:
            recorded = json.loads(body)
            first = recorded.get("origin") or {"stream": origin.stream, "seq": origin.seq}
            fields = {name: recorded.get(name) for name in ("type", "id", "learner_id", "object_id")}
            own_time = recorded.get("recorded_at") is not None
            fields |= {
                "stamp": [
                    parse_ms(recorded["recorded_at" if own_time else "occurred_at"]),
                    *(recorded[name] for name in ("boot_id", "boottime_ms", "clock_synced")),
                ],
                "occurred_at_ms": parse_ms(recorded["occurred_at"]) if own_time else None,
                "data": None if recorded.get("data") is None else wire.dumps(recorded["data"]),
                "origin": [first["stream"], first["seq"]],
                "adopted_from": [adopted_from.stream, adopted_from.seq],
            }
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidEvent(f"not an event's text: {error!r:.200}") from error
        return cls.from_fields(fields)

    def _checked(self) -> Self:
        """Return itself if every field but `data` keeps the rules; raise RuleError."""
        rules.check_type(self.type)
        _check_stamp(self.stamp)
        _check_integer("occurred_at_ms", self.occurred_at_ms, EARLIEST_MS, LATEST_MS)
        _check_integer("attempt", self.attempt, 0, ATTEMPT_MAX)
        for value, check in (
            (self.id, rules.check_event_id),
            (self.learner_id, rules.check_learner_id),
            (self.object_id, rules.check_object_id),
        ):
            if value is not None:
                check(value)
        return self

    def body(self, seq: int) -> str:
        """Return its final JSON text under `seq`."""
        return wire.encode_event(
            seq=seq,
            type=self.type,
            stamp=self.stamp,
            occurred_at_ms=self.occurred_at_ms,
            id=self.id,
            learner_id=self.learner_id,
            object_id=self.object_id,
            data=self.data,
            origin=self.origin,
        )

    def same_as(self, body: str) -> bool:
        """Return whether the recorded `body` has the same type, learner, object and data, whatever its time."""
        recorded = json.loads(body)
        data = None if self.data is None else json.loads(self.data)
        return (self.type, self.learner_id, self.object_id, data) == tuple(
            recorded.get(name) for name in ("type", "learner_id", "object_id", "data")
        )


def behind_refused(events: Sequence[NewEvent], results: Sequence[int | AgentError]) -> list[AgentError]:
    """Return the results of the first `events` that must not be recorded, after `results` of the events before them."""
    last = results[-1] if results else None
    return [last for _ in takewhile(lambda event: event.follows, events)] if isinstance(last, AgentError) else []


def renumber(body: str, *, seq: int, origin: Origin) -> str:
    """Return `body` under another `seq`, with the `origin` it was first recorded at, unless it has an origin already.

    Everything else keeps its text. Raises ValueError if `body` is not an event's text.
    """
    head = _HEAD.match(body)
    fields = json.loads(body)
    if head is None or not isinstance(fields, dict):
        raise ValueError("not an event's text")
    added = "" if "origin" in fields else f'"origin":{wire.dumps({"stream": origin.stream, "seq": origin.seq})},'
    return f'{{"seq":{seq},{added}{body[head.end() :]}'


def seq_of(body: str) -> int | None:
    """Return the seq in an event's text."""
    head = _HEAD.match(body)
    return int(head.group(1)) if head else None


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number


_TOO_LONG: Final = f"data is more than {DATA_BYTES:,} bytes as JSON, which is the limit for one event"
_DECODER: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _check_data(text: str) -> str:
    """Return JSON text that another process encoded: unchanged where that is safe, else encoded again.

    Line ends are not safe (exports write one event a line), nor are escapes (they may hold half a character).
    Raises RuleError, ValueError or TypeError.
    """
    if len(text) > 6 * DATA_BYTES:  # more than any escapes of allowed data; decoding it would take much memory
        raise RuleError(_TOO_LONG)
    value = _DECODER.decode(text)
    if "\\u" in text or "\n" in text or "\r" in text or type(value) is not dict:
        return rules.encode_data(value)
    if len(text.encode()) > DATA_BYTES:
        raise RuleError(_TOO_LONG)
    return rules.check_depth(text)


def _place(value: object) -> Origin | None:
    """Return a place that another process sent; raise RuleError or TypeError."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise TypeError("a place is a stream and a seq")
    stream, seq = value
    _check_integer("seq", seq, 1, SEQ_MAX)
    if seq is None:
        raise TypeError("a place is a stream and a seq")
    return Origin(stream=rules.check_id("stream", stream), seq=seq)


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if value is not None and not (type(value) is int and least <= value <= most):
        raise RuleError(f"{name} is not an integer from {least} to {most}")


def _to_ms(moment: datetime) -> int:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise RuleError(f"occurred_at must be a datetime with a time zone, such as datetime.now(UTC); got {moment!r}")
    return to_ms(moment)


def _check_stamp(stamp: Stamp) -> None:
    """Check the stamp, which may come from another process; raise RuleError."""
    values: tuple[object, ...] = (stamp.at_ms, stamp.boot_id, stamp.boottime_ms, stamp.clock_synced)
    if tuple(map(type, values)) != (int, str, int, bool) or not 0 <= stamp.boottime_ms <= SEQ_MAX:
        raise RuleError(f"not a stamp: {stamp!s:.200}")
    if not EARLIEST_MS <= stamp.at_ms <= LATEST_MS:
        raise RuleError(f"the clock is outside the years 1 to 9999: {stamp.at_ms} ms since 1970")
    rules.check_id("boot_id", stamp.boot_id)

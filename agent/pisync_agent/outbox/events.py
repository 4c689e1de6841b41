"""An event on its way into the outbox, and its text once it is there."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Self

from pisync_agent.errors import InvalidEvent
from pisync_common import rules, wire
from pisync_common.errors import RuleError
from pisync_common.limits import DATA_BYTES
from pisync_common.models import Origin, Stamp

ATTEMPT_MAX: Final = 2**63 - 1
EARLIEST_MS: Final = -62_135_596_800_000
LATEST_MS: Final = 253_402_300_800_000
"""The years 1 to 9999, which is what can be written."""

_HEAD = re.compile(r'\{"seq":(0|[1-9][0-9]{0,15}),')


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEvent:
    """A valid event without a seq. Make it with `create`, or `from_fields` where it comes from another process."""

    type: str
    stamp: Stamp
    learner_id: str | None = None
    object_id: str | None = None
    data: str | None = None
    """JSON text."""
    key: str | None = None
    """The caller's own id: the same key twice is stored once."""
    attempt: int | None = None
    """A random number that is kept beside the event, so that recording it again after a lost answer is noticed."""
    retried: bool = False
    """Whether an earlier attempt may have been recorded: look for it first."""

    @classmethod
    def create(
        cls,
        type: str,
        *,
        stamp: Stamp,
        learner_id: str | None = None,
        object_id: str | None = None,
        data: Mapping[str, object] | None = None,
        key: str | None = None,
        attempt: int | None = None,
        retried: bool = False,
    ) -> Self:
        """Check every field; raise InvalidEvent that names the one that breaks a rule."""
        try:
            return cls(
                type=rules.check_type(type),
                stamp=_checked(stamp),
                learner_id=None if learner_id is None else rules.check_id("learner_id", learner_id),
                object_id=None if object_id is None else rules.check_object_id(object_id),
                data=None if data is None else rules.encode_data(data),
                key=None if key is None else rules.check_id("id", key),
                attempt=attempt,
                retried=retried,
            )
        except RuleError as error:
            raise InvalidEvent(str(error)) from error

    def fields(self) -> dict[str, object]:
        """As a JSON object for another process; fields without a value are left out."""
        stamp = self.stamp
        fields: dict[str, object] = {
            "type": self.type,
            "stamp": [stamp.at_ms, stamp.boot_id, stamp.boottime_ms, stamp.clock_synced],
        }
        for name in ("learner_id", "object_id", "data", "key", "attempt"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        if self.retried:
            fields["retried"] = True
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The event another process sent, checked as if it were new; raise InvalidEvent."""
        try:
            at_ms, boot_id, boottime_ms, clock_synced = fields["stamp"]
            get = fields.get
            learner_id, object_id, data, key = get("learner_id"), get("object_id"), get("data"), get("key")
            return cls(
                type=rules.check_type(fields["type"]),
                stamp=_checked(Stamp(at_ms=at_ms, boot_id=boot_id, boottime_ms=boottime_ms, clock_synced=clock_synced)),
                learner_id=None if learner_id is None else rules.check_id("learner_id", learner_id),
                object_id=None if object_id is None else rules.check_object_id(object_id),
                data=None if data is None else _checked_data(data),
                key=None if key is None else rules.check_id("id", key),
                attempt=_checked_attempt(get("attempt")),
                retried=get("retried") is True,
            )
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidEvent(str(error) if isinstance(error, RuleError) else f"not an event: {error!r}") from error

    def body(self, seq: int) -> str:
        """Its final JSON text under `seq`."""
        return wire.encode_event(
            seq=seq,
            type=self.type,
            stamp=self.stamp,
            learner_id=self.learner_id,
            object_id=self.object_id,
            data=self.data,
        )

    def same_as(self, body: str) -> bool:
        """Whether the recorded `body` says the same: type, learner, object and data (time aside)."""
        recorded = json.loads(body)
        data = None if self.data is None else json.loads(self.data)
        return (self.type, self.learner_id, self.object_id, data) == tuple(
            recorded.get(name) for name in ("type", "learner_id", "object_id", "data")
        )


def carry(body: str, *, seq: int, origin: Origin) -> str:
    """`body` under another `seq`, with the `origin` it was first recorded at: an origin it already has stays.

    Everything else keeps its text. Raises ValueError if `body` is no event's text.
    """
    head = _HEAD.match(body)
    fields = json.loads(body)
    if head is None or not isinstance(fields, dict):
        raise ValueError("not an event's text")
    added = "" if "origin" in fields else f'"origin":{wire.dumps({"stream": origin.stream, "seq": origin.seq})},'
    return f'{{"seq":{seq},{added}{body[head.end() :]}'


def seq_of(body: str) -> int | None:
    """The seq that stands in an event's text."""
    head = _HEAD.match(body)
    return int(head.group(1)) if head else None


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number


_DECODER: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _checked_data(text: str) -> str:
    """JSON text that another process encoded: kept as it came where that is safe, else encoded anew.

    Not safe are line ends (an event is a line where events are exported) and escapes (of half a character).
    Raises RuleError, ValueError or TypeError.
    """
    value = _DECODER.decode(text)
    if "\\u" in text or "\n" in text or "\r" in text or type(value) is not dict:
        return rules.encode_data(value)
    if len(text.encode()) > DATA_BYTES:
        raise RuleError(f"data is more than {DATA_BYTES:,} bytes as JSON, which is the limit for one event")
    return rules.check_depth(text)


def _checked_attempt(attempt: object) -> int | None:
    if attempt is not None and not (type(attempt) is int and 0 <= attempt <= ATTEMPT_MAX):
        raise ValueError("attempt is not a positive 63-bit number")
    return attempt


def _checked(stamp: Stamp) -> Stamp:
    """The stamp, which may come from another process; raise RuleError."""
    values: tuple[object, ...] = (stamp.at_ms, stamp.boot_id, stamp.boottime_ms, stamp.clock_synced)
    if tuple(map(type, values)) != (int, str, int, bool) or stamp.boottime_ms < 0:
        raise RuleError(f"not a stamp: {stamp}")
    if not EARLIEST_MS <= stamp.at_ms < LATEST_MS:
        raise RuleError(f"the clock shows no time that can be written: {stamp.at_ms} ms since 1970")
    rules.check_id("boot_id", stamp.boot_id)
    return stamp

"""A progress event as an app in any language writes it: one JSON object, the same in every way to record.

{"type": "note.taken", "learner_id": "s-17", "object_id": "math/g5", "data": {"text": "…"}, "id": "app-981",
 "occurred_at": "2026-11-23T10:00:00+03:00"}

Every field but `type` is optional.
"""

from collections.abc import Mapping
from typing import Any, Final

from pisync_agent.errors import InvalidEvent
from pisync_agent.outbox.events import NewEvent
from pisync_common.errors import RuleError
from pisync_common.models import Stamp
from pisync_common.times import from_ms, parse_ms

FIELDS: Final = frozenset({"type", "learner_id", "object_id", "data", "id", "occurred_at"})


def new_event(written: object, stamp: Stamp) -> NewEvent:
    """Return the event that an app wrote, recorded at `stamp`. Raises InvalidEvent."""
    if not isinstance(written, dict):
        raise InvalidEvent("not a JSON object")
    fields = dict(whole_event(written))
    return NewEvent.create(fields.pop("type"), stamp=stamp, **fields)


def whole_event(written: dict[str, Any]) -> Mapping[str, Any]:
    """Return the event's fields as arguments of `Recorder.record`. Raises InvalidEvent."""
    if unknown := sorted(written.keys() - FIELDS):
        raise InvalidEvent(f"unknown field {unknown[0][:40]!r}; known fields: {', '.join(sorted(FIELDS))}")
    if "type" not in written:
        raise InvalidEvent('"type" is missing')
    if (text := written.get("occurred_at")) is None:
        return written
    if not isinstance(text, str):
        raise InvalidEvent("occurred_at is not a text, such as 2026-11-23T10:00:00+03:00")
    try:
        return written | {"occurred_at": from_ms(parse_ms(text))}
    except RuleError as error:
        raise InvalidEvent(f"occurred_at: {error}") from error

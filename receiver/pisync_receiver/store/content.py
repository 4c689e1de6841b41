"""Whether two versions of an event say the same.

What counts is type, learner, object, claimed time, boot and data, the data as a JSON value: a carrier may have written
it anew. Not where it stands (seq, stream, origin), nor whether the clock was synchronised.
"""

import json
from typing import Any, Final

from pisync_receiver.store.types import IncomingEvent

Content = tuple[str, str | None, str | None, str, str | None, int | None, str | None]
"""type, learner_id, object_id, occurred_at, boot_id, boottime_ms, data (JSON text)."""

_FIELDS: Final = ("type", "learner_id", "object_id", "occurred_at", "boot_id", "boottime_ms", "data")
_EXACT: Final = 2**53


def content_of(event: IncomingEvent) -> Content:
    return (
        event.type,
        event.learner_id,
        event.object_id,
        event.occurred_at,
        event.boot_id,
        event.boottime_ms,
        event.data,
    )


def same(one: Content, other: Content) -> bool:
    """Whether two valid events say the same."""
    return one == other or (one[:-1] == other[:-1] and canonical(one) == canonical(other))


def canonical(content: Content) -> str:
    """One text for everything that says the same."""
    data = content[-1]
    return _dumps([*content[:-1], None if data is None else _loads(data)])


def canonical_body(body: str) -> str:
    """The same for an event's whole JSON text, which need not be an event, nor JSON."""
    try:
        fields = _loads(body)
        if isinstance(fields, dict):
            return _dumps([fields.get(name) for name in _FIELDS])
    except (ValueError, RecursionError):
        pass
    return f"raw:{body}"


def body_of(event: IncomingEvent) -> str:
    """An event's JSON text, to be kept beside the version that came first."""
    fields: dict[str, Any] = {"seq": event.seq, **dict(zip(_FIELDS, content_of(event), strict=True))}
    data = fields.pop("data")
    fields["clock_synced"] = event.clock_synced
    if event.origin is not None:
        fields["origin"] = {"stream": event.origin.stream, "seq": event.origin.seq}
    present = {name: value for name, value in fields.items() if value is not None}
    text = json.dumps(present, ensure_ascii=False, separators=(",", ":"))
    return text if data is None else f'{text[:-1]},"data":{data}}}'


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=_number)


def _number(text: str) -> float:
    """1.0 is 1 in JSON."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _dumps(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

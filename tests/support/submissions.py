"""Builders of submissions with defaults, and with the content hashes that the decoder would give them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pisync_common.models import Origin, Stamp
from pisync_common.times import format_ms
from pisync_receiver.domain.content import body_hash, event_hash
from pisync_receiver.domain.fleet import Criteria
from pisync_receiver.domain.submissions import Event, EventBatch, InvalidEvent, SyncEvent

NOON = 1_795_435_200_000
"""2026-11-23 12:00:00 UTC."""
MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
CRITERIA = Criteria(now_ms=NOON, silent_after_ms=7 * DAY)
"""By which tests judge states unless they say otherwise."""
DEVICE = "pibook-1"
STREAM = "stream-1"

_HASHED = (
    "type", "learner_home", "learner_id", "object_id", "event_id", "occurred_at", "recorded_at", "boot_id",
    "boottime_ms",
)  # fmt: skip


def event(
    seq: int,
    *,
    note: str | None = None,
    occurred_ms: int = NOON,
    recorded_ms: int | None = None,
    boot: tuple[str, int] | None = None,
    origin: tuple[str, int] | tuple[str, int, str] | None = None,
    **fields: Any,
) -> Event:
    """Build an event; another `note` is other content.

    `boot` is its boot id and boot time, `origin` the stream and seq that it was carried from, and the
    device if that was another.
    """
    boot_id, boottime_ms = boot or (None, None)
    defaults: dict[str, Any] = {
        "type": "video.watched",
        "occurred_at": format_ms(occurred_ms),
        "recorded_at": None if recorded_ms is None else format_ms(recorded_ms),
        "boot_id": boot_id,
        "boottime_ms": boottime_ms,
        "learner_id": "s-17",
        "object_id": "math/g5/ch02/v03",
        "data": None if note is None else json.dumps({"note": note}),
    }
    given = defaults | fields
    if "content" not in given:
        given["content"] = event_hash(*map(given.get, _HASHED), data=given["data"])
    stream, at, *whose = origin or ("", 0)
    place = None if origin is None else Origin(stream=str(stream), seq=int(at), device_id=next(map(str, whose), None))
    return Event(seq=seq, occurred_ms=occurred_ms, recorded_ms=recorded_ms, origin=place, **given)


def invalid(seq: int, *, body: str | None = None, detail: str = "type must be noun.verb") -> InvalidEvent:
    body = f'{{"seq":{seq},"type":"nonsense"}}' if body is None else body
    return InvalidEvent(seq=seq, code="invalid_event", detail=detail, body=body, content=body_hash(body))


def stamp(boot_id: str, boottime_ms: int) -> Stamp:
    return Stamp(at_ms=NOON, boot_id=boot_id, boottime_ms=boottime_ms, clock_synced=False)


def batch(
    events: Iterable[Event | InvalidEvent | int] = (),
    *,
    device: str = DEVICE,
    stream: str = STREAM,
    sent: Stamp | None = None,
    received_ms: int = NOON,
    agent: str | None = "pisync/0.2.0",
) -> EventBatch:
    """Build a batch; a bare number stands for `event(number)`."""
    items = [event(item) if isinstance(item, int) else item for item in events]
    return EventBatch(
        device_id=device,
        stream=stream,
        sent=sent,
        agent=agent,
        events=[item for item in items if isinstance(item, Event)],
        invalid=[item for item in items if isinstance(item, InvalidEvent)],
        received_ms=received_ms,
    )


def sync_event(
    claimed_ms: int,
    *,
    failed: bool = False,
    device: str = DEVICE,
    key: str | None = None,
    errors: Mapping[str, int] | None = None,
    received_ms: int = NOON,
    **fields: Any,
) -> SyncEvent:
    given: dict[str, Any] = {"total_files_synced": 3, "total_errors": 2 if failed else 0, "internet_speed": 2.5}
    return SyncEvent(
        device_id=device,
        timestamp=format_ms(claimed_ms),
        claimed_ms=claimed_ms,
        errors=errors or {},
        idempotency_key=key,
        received_ms=received_ms,
        **(given | fields),
    )

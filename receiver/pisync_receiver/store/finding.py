"""Finding stored progress events, in the order of arrival, by the index that fits what is asked for."""

from heapq import merge
from itertools import islice
from typing import Any, Final

from pisync_receiver.store.types import EventFilter, EventRow
from pisync_receiver.store.writing.tables import HOUR_MS, Row, Select
from pisync_receiver.times import QUALITIES

_LARGEST: Final = 2**63 - 1


def select_events(select: Select, wanted: EventFilter, *, after: int, limit: int) -> list[EventRow]:
    """The first `limit` events whose id is over `after`."""
    values = _values(select, wanted, after, limit)
    if values["last"] <= values["after"]:
        return []
    if wanted.learner_id is not None:
        return [event_of(row) for row in select("events_of_learner", values)]
    if wanted.device_id is None and wanted.stream is None:
        return [event_of(row) for row in select("events", values)]
    found = [
        select("events_of_stream", {**values, "number": number, "device": device_id, "stream": stream})
        for number, device_id, stream in select("stream_ids", values)
    ]
    return [event_of(row) for row in islice(merge(*found), limit)]


def _values(select: Select, wanted: EventFilter, after: int, limit: int) -> dict[str, Any]:
    """What the queries ask for by name; the ids narrowed to the hours in question."""
    since = 0 if wanted.since_ms is None else wanted.since_ms
    until = _LARGEST if wanted.until_ms is None else wanted.until_ms
    values: dict[str, Any] = {
        "device": wanted.device_id,
        "stream": wanted.stream,
        "type": wanted.type,
        "learner": wanted.learner_id,
        "object": wanted.object_id,
        "site": wanted.site,
        "since": since,
        "until": until,
        "limit": limit,
        "after": after,
        "last": select("newest", {})[0][0],
    }
    if wanted.since_ms is not None or wanted.until_ms is not None:
        first, last = select("arrived", {"from": since // HOUR_MS, "to": until // HOUR_MS})[0]
        values["after"] = max(after, (first or 1) - 1)
        values["last"] = min(values["last"], last or 0)
    return values


def event_of(row: Row) -> EventRow:
    """A row of the columns that every query of events has, in their order."""
    (
        number,
        device_id,
        site,
        stream,
        seq,
        kind,
        learner_id,
        object_id,
        occurred_at,
        boot_id,
        boottime_ms,
        clock_synced,
        data,
        received_ms,
        best_ms,
        quality,
    ) = row
    return EventRow(
        id=number,
        device_id=device_id,
        site=site,
        stream=stream,
        seq=seq,
        type=kind,
        learner_id=learner_id,
        object_id=object_id,
        occurred_at=occurred_at,
        boot_id=boot_id,
        boottime_ms=boottime_ms,
        clock_synced=bool(clock_synced),
        data=data,
        received_ms=received_ms,
        best_ms=best_ms,
        quality=QUALITIES[quality],
    )

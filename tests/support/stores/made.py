"""Made-up submissions, and the short way to write one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pisync_common.models import Origin, Receipt, Stamp
from pisync_common.times import format_ms
from pisync_receiver.store import (
    EventBatch,
    EventFilter,
    EventRow,
    IncomingEvent,
    InvalidEvent,
    Store,
    StoredSyncEvent,
    StreamRow,
    Submission,
    SyncReport,
)

NOON = 1_764_000_000_000
"""A moment, in milliseconds since 1970."""


def event(seq: int, *, note: str | None = None, origin: tuple[str, int] | None = None, **fields: Any) -> IncomingEvent:
    """An event; `note` makes one that says something else."""
    given: dict[str, Any] = {
        "type": "video.watched",
        "occurred_ms": NOON + seq % 1_000_000,
        "learner_id": "s-17",
        "object_id": "math/g5/ch02/v03",
        "data": None if note is None else json.dumps({"note": note}),
    }
    given |= fields
    given.setdefault("occurred_at", format_ms(given["occurred_ms"]))
    place = None if origin is None else Origin(stream=origin[0], seq=origin[1])
    return IncomingEvent(seq=seq, origin=place, **given)


def invalid(seq: int, *, body: str | None = None, detail: str = "type must be noun.verb") -> InvalidEvent:
    body = f'{{"seq":{seq},"type":"nonsense"}}' if body is None else body
    return InvalidEvent(seq=seq, code="invalid_event", detail=detail, body=body)


def batch(
    events: Iterable[IncomingEvent | int] = (),
    *,
    device: str = "pibook-1",
    stream: str = "stream-1",
    bad: Sequence[InvalidEvent] = (),
    sent: Stamp | None = None,
    received_ms: int = NOON + 3_600_000,
    agent: str | None = "pisync/0.1.0",
) -> EventBatch:
    """A batch; a bare number stands for `event(number)`."""
    made = [event(one) if isinstance(one, int) else one for one in events]
    return EventBatch(
        device_id=device,
        stream=stream,
        sent=sent,
        agent=agent,
        events=made,
        invalid=bad,
        received_ms=received_ms,
    )


def report(
    at_ms: int,
    *,
    failed: bool = False,
    device: str = "pibook-1",
    key: str | None = None,
    errors: Mapping[str, int] | None = None,
    received_ms: int = NOON,
    **fields: Any,
) -> SyncReport:
    given: dict[str, Any] = {"total_files_synced": 3, "total_errors": 2 if failed else 0, "internet_speed": 2.5}
    return SyncReport(
        device_id=device,
        timestamp=format_ms(at_ms),
        at_ms=at_ms,
        errors=errors or {},
        idempotency_key=key,
        received_ms=received_ms,
        **(given | fields),
    )


def send(store: Store, submission: EventBatch) -> Receipt:
    """Write one batch alone; every receipt has to add up."""
    outcome = written(store, submission)
    assert isinstance(outcome, Receipt)
    assert outcome.stored + outcome.duplicates + len(outcome.rejected) == len(submission.events) + len(
        submission.invalid
    )
    return outcome


def tell(store: Store, submission: SyncReport) -> StoredSyncEvent:
    """Write one report alone."""
    outcome = written(store, submission)
    assert isinstance(outcome, StoredSyncEvent)
    return outcome


def written(store: Store, submission: Submission) -> object:
    """Write one submission alone; its outcome, raised if it is an exception."""
    (outcome,) = store.write([submission])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def counts(receipt: Receipt) -> tuple[int, int, list[tuple[int, str]], int]:
    """stored, duplicates, rejected as (seq, code), watermark."""
    return (
        receipt.stored,
        receipt.duplicates,
        [(rejection.seq, rejection.code) for rejection in receipt.rejected],
        receipt.watermark,
    )


def stored_seqs(store: Store, *, device: str = "pibook-1", stream: str = "stream-1") -> list[int]:
    return sorted(row.seq for row in stored(store, device=device, stream=stream))


def stored(store: Store, *, device: str | None = "pibook-1", stream: str | None = None) -> list[EventRow]:
    return list(store.iterate_events(EventFilter(device_id=device, stream=stream)))


def stream_row(store: Store, *, device: str = "pibook-1", stream: str = "stream-1") -> StreamRow:
    (row,) = (row for row in store.completeness(device) if row.stream == stream)
    return row

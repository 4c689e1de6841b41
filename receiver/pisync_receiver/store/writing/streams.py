"""A stream's own tables: its events with their best times, what is missing of it, the boots it was seen in."""

from collections.abc import Sequence
from typing import Any, Final

from pisync_common.models import Stamp
from pisync_receiver.store.ranges import Range, runs, without
from pisync_receiver.store.types import EventBatch, IncomingEvent
from pisync_receiver.store.writing.states import Group, Stream
from pisync_receiver.times import Neighbours, best_times, epochs

OVERLAP_MS: Final = 60_000
"""How long two boots of one stream may seem alive at once before they are two devices: slow uploads, server clocks."""


def insert(group: Group, stream: Stream, batch: EventBatch, events: Sequence[IncomingEvent]) -> Sequence[int]:
    """Store new events, in the order of their seq, none stored between them; return their ids."""
    received_ms, key = batch.received_ms, stream.key
    ids = group.tables.event_ids(len(events), received_ms)

    def neighbours() -> Neighbours:
        return _best(group, "best_before", stream, events[0].seq), _best(group, "best_after", stream, events[-1].seq)

    began = epochs(events, batch.sent, received_ms, _known_boots(group, stream, events))
    best = best_times(events, epochs=began, received_ms=received_ms, neighbours=neighbours)
    rows = [
        (
            event_id,
            *key,
            seq,
            kind,
            learner,
            item,
            occurred_at,
            boot_id,
            boottime_ms,
            synced,
            data,
            received_ms,
            best_ms,
            quality,
        )
        for event_id, (seq, kind, occurred_at, _, learner, item, boot_id, boottime_ms, synced, data, _), (
            best_ms,
            quality,
        ) in zip(ids, events, best, strict=True)
    ]
    group.tables.put("insert_event", rows)
    stream.stored += len(rows)
    return ids


def account(group: Group, stream: Stream, seqs: Sequence[int]) -> None:
    """Move the watermark and the gaps for seqs (ascending, distinct) that were missing or never seen before."""
    if seqs and stream.watermark == stream.highest == seqs[0] - 1 and seqs[-1] - seqs[0] == len(seqs) - 1:
        stream.watermark = stream.highest = seqs[-1]
        return
    for run in runs(seqs):
        if run[0] > stream.highest:
            _append(group, stream, run)
        else:
            _fill(group, stream, run)
    first_gap = group.tables.one("gaps", *stream.key, 1)
    stream.watermark = stream.highest if first_gap is None else first_gap[0] - 1


def missing(group: Group, stream: Stream, limit: int) -> tuple[Range, ...]:
    """The first missing ranges."""
    if stream.watermark == stream.highest:
        return ()
    return tuple((first, last) for first, last in group.tables.all("gaps", *stream.key, limit))


def has_copies(group: Group, device_id: str, stream: str) -> bool:
    """Whether events first recorded in this stream are stored in others."""
    return group.tables.one("has_copies", device_id, stream) is not None


def seen_alive(group: Group, stream: Stream, sent: Stamp | None, received_ms: int) -> bool:
    """Note that a boot sent something; whether it and another boot of the stream were alive at the same time."""
    if sent is None:
        return False
    seen = (*stream.key, sent.boot_id, received_ms - sent.boottime_ms, sent.boottime_ms)
    overlap = group.tables.one("boots_overlap", *seen, OVERLAP_MS)
    group.tables.put("put_boot", [seen])
    return overlap is not None


def _append(group: Group, stream: Stream, run: Range) -> None:
    if run[0] > stream.highest + 1:
        group.tables.put("insert_gap", [(*stream.key, stream.highest + 1, run[0] - 1)])
    stream.highest = run[1]


def _fill(group: Group, stream: Stream, run: Range) -> None:
    gap = group.tables.one("gap_around", *stream.key, run[0])
    assert gap is not None, "a seq that is new below the highest lies in a gap"
    group.tables.put("delete_gap", [(*stream.key, gap[0])])
    group.tables.put("insert_gap", [(*stream.key, first, last) for first, last in without((gap[0], gap[1]), run)])


def _known_boots(group: Group, stream: Stream, events: Sequence[IncomingEvent]) -> dict[str, int]:
    known = {}
    for boot_id in {event.boot_id for event in events}:
        row = None if boot_id is None else group.tables.one("boot", *stream.key, boot_id)
        if row is not None and boot_id is not None:
            known[boot_id] = row[0]
    return known


def _best(group: Group, query: str, stream: Stream, seq: int) -> Any:
    row = group.tables.one(query, *stream.key, seq)
    return None if row is None else row[0]

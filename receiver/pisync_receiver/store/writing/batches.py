"""Batches of progress events into the database: each (device, stream, seq) once, and a true receipt.

A batch of a stream that simply goes on is stored in one statement. Anything else (sent again, out of order, rejected,
carried over from another stream) is looked at seq by seq in `placing`.
"""

from collections.abc import Sequence
from operator import attrgetter, lt
from typing import Final

from pisync_common.limits import RECEIPT_RANGES
from pisync_common.models import Receipt, Rejection
from pisync_common.times import format_ms
from pisync_receiver.store.types import EventBatch
from pisync_receiver.store.writing import streams
from pisync_receiver.store.writing.placing import Placing
from pisync_receiver.store.writing.states import Group, Stream

_seq: Final = attrgetter("seq")
_origin: Final = attrgetter("origin")


def store_batch(group: Group, batch: EventBatch) -> Receipt:
    """Store what is new, account for all, and answer."""
    device = group.device(batch.device_id)
    device.contact(batch.received_ms)
    device.agent = batch.agent or device.agent
    if not batch.events and not batch.invalid:
        return _receipt(group, batch, group.stream(batch.device_id, batch.stream))
    stream = group.stream_made(batch.device_id, batch.stream, batch.received_ms)
    stream.last_ms = max(stream.last_ms, batch.received_ms)
    if streams.seen_alive(group, stream, batch.sent, batch.received_ms):
        device.cloned(batch.received_ms)
    seqs = list(map(_seq, batch.events))
    if _goes_on(group, stream, batch, seqs):
        streams.insert(group, stream, batch, batch.events)
        streams.account(group, stream, seqs)
        return _receipt(group, batch, stream, stored=len(seqs))
    placing = Placing(group, stream, device, batch)
    placing.place()
    rejected = tuple(sorted(placing.rejections, key=_seq))
    return _receipt(group, batch, stream, stored=placing.stored, duplicates=placing.duplicates, rejected=rejected)


def _goes_on(group: Group, stream: Stream, batch: EventBatch, seqs: Sequence[int]) -> bool:
    """Whether every event is new for certain: ascending, past all that was seen, and of this stream alone."""
    if batch.invalid or seqs[0] <= stream.highest or not all(map(lt, seqs, seqs[1:])):
        return False
    return not any(map(_origin, batch.events)) and not streams.has_copies(group, batch.device_id, batch.stream)


def _receipt(
    group: Group,
    batch: EventBatch,
    stream: Stream | None,
    *,
    stored: int = 0,
    duplicates: int = 0,
    rejected: tuple[Rejection, ...] = (),
) -> Receipt:
    return Receipt(
        device_id=batch.device_id,
        stream=batch.stream,
        stored=stored,
        duplicates=duplicates,
        rejected=rejected,
        watermark=0 if stream is None else stream.watermark,
        server_time=format_ms(batch.received_ms),
        missing=() if stream is None else streams.missing(group, stream, RECEIPT_RANGES),
    )

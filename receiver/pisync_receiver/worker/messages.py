"""Stored events as messages: which events share one, and its id."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import msgspec

from pisync_receiver.domain.records import EventRecord
from pisync_receiver.logs import fields
from pisync_receiver.store.reading import event_record
from pisync_receiver.store.running import Row

log = logging.getLogger(__name__)

TYPE: Final = "pisync.progress.stored"
"""The CloudEvents type of every message."""
MAX_BYTES: Final = 1024 * 1024
"""The most JSON in one message, unless a single event has more."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class Event:
    """A stored event, and the JSON object that the API shows of it."""

    record: EventRecord
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Message:
    """Events of one device and stream in the order of arrival: a CloudEvent whose data is their JSON array.

    `id` follows from the events: the same events have the same id, whichever worker sends them, however often.
    """

    id: str
    device_id: str
    attributes: dict[str, str]
    """The CloudEvents attributes, except `datacontenttype`, which every transport has a field for."""
    body: bytes


def render(rows: Iterable[Row]) -> list[Event]:
    """Render rows of `page` in worker.sql. A row that cannot be rendered is logged and left out: it stays stored, and
    the events behind it are published."""
    rendered = []
    for row in rows:
        try:
            record = event_record(row)
            rendered.append(Event(record=record, body=_encode(record)))
        except Exception as error:  # whatever it is, the next attempt would fail at the same row
            values = fields(event_id=row[0], device_id=row[1], error=type(error).__name__)
            log.error("event skipped: it cannot be rendered; it stays stored", extra=values)
    return rendered


def histories(events: Iterable[Event], *, max_events: int) -> list[list[Message]]:
    """Gather events, given in the order of arrival, into messages that keep this order: a list for each device."""
    by_device: dict[str, list[Event]] = {}
    for event in events:
        by_device.setdefault(event.record.device_id, []).append(event)
    return [
        [
            _message(run)
            for _, stretch in groupby(of_device, key=lambda event: event.record.stream)
            for run in _runs(stretch, max_events)
        ]
        for of_device in by_device.values()
    ]


def _runs(events: Iterable[Event], max_events: int) -> Iterator[list[Event]]:
    run: list[Event] = []
    size = 0
    for event in events:
        if run and (len(run) == max_events or size + len(event.body) > MAX_BYTES):
            yield run
            run, size = [], 0
        run.append(event)
        size += len(event.body)
    if run:
        yield run


def _message(run: Sequence[Event]) -> Message:
    first, last = run[0].record, run[-1].record
    # The first event's id leads, for people who search; the digest keeps the whole below AMQP's 255 bytes.
    digest = hashlib.sha256(_encode([first.device_id, first.stream, first.seq, last.seq, first.id])).hexdigest()
    number = f"{first.id}-{digest[:32]}"
    attributes = {
        "specversion": "1.0",
        "id": number,
        "type": TYPE,
        "source": f"/devices/{first.device_id}/streams/{first.stream}",
        "subject": first.device_id,
        "time": last.received_at,
        "partitionkey": first.device_id,
    }
    body = b"[" + b",".join(event.body for event in run) + b"]"
    return Message(id=number, device_id=first.device_id, attributes=attributes, body=body)

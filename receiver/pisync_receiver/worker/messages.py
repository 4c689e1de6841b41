"""Stored events as messages: which events share one, and what tells one message from every other."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Final

import msgspec

from pisync_common.times import format_ms
from pisync_receiver.store import EventRow
from pisync_receiver.views import event_record

TYPE: Final = "pisync.progress.stored"
"""The CloudEvents type of every message."""
SPECVERSION: Final = "1.0"
CONTENT_TYPE: Final = "application/json"
MOST_BYTES: Final = 1024 * 1024
"""Of `data` in one message, unless one event alone has more."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class Message:
    """Events of one device and stream in the order of arrival: a CloudEvent whose data is their JSON array.

    `id` follows from the events: the same ones have the same id whoever sends them, however often.
    """

    id: str
    device_id: str
    stream: str
    time: str
    """When the last of the events was stored."""
    count: int
    body: bytes

    @property
    def attributes(self) -> dict[str, str]:
        """The CloudEvents attributes, `datacontenttype` aside, which every transport has a place for."""
        return {
            "specversion": SPECVERSION,
            "id": self.id,
            "type": TYPE,
            "source": f"/devices/{self.device_id}/streams/{self.stream}",
            "subject": self.device_id,
            "time": self.time,
            "partitionkey": self.device_id,
        }


def messages(rows: Iterable[EventRow], *, most_events: int, most_bytes: int = MOST_BYTES) -> list[Message]:
    """Messages of at most so many events and bytes of data. `rows` are in the order of arrival, and so are the
    messages of each device."""
    by_device: dict[str, list[EventRow]] = {}
    for row in rows:
        by_device.setdefault(row.device_id, []).append(row)
    return [
        _message(run)
        for history in by_device.values()
        for _, stretch in groupby(history, key=lambda row: row.stream)
        for run in _runs(stretch, most_events, most_bytes)
    ]


def rounds(batch: Sequence[Message]) -> Iterator[list[Message]]:
    """Messages in rounds: no two of one device in a round, and each device's in their order from round to round.

    So a broker that refuses one message while it takes another cannot change the order within a device.
    """
    by_device: dict[str, list[Message]] = {}
    for message in batch:
        by_device.setdefault(message.device_id, []).append(message)
    for each in zip_longest(*by_device.values()):
        yield [message for message in each if message is not None]


def _runs(rows: Iterable[EventRow], most_events: int, most_bytes: int) -> Iterator[list[EventRow]]:
    run: list[EventRow] = []
    size = 0
    for row in rows:
        bytes_of_row = len(row.data or "")
        if run and (len(run) == most_events or size + bytes_of_row > most_bytes):
            yield run
            run, size = [], 0
        run.append(row)
        size += bytes_of_row
    if run:
        yield run


def _message(run: Sequence[EventRow]) -> Message:
    first, last = run[0], run[-1]
    return Message(
        id=_id(first, last),
        device_id=first.device_id,
        stream=first.stream,
        time=format_ms(last.received_ms),
        count=len(run),
        body=_encode([event_record(row) for row in run]),
    )


def _id(first: EventRow, last: EventRow) -> str:
    # The event's own id begins it, so that a person finds it; the digest keeps it below AMQP's 255 bytes.
    named = _encode([first.device_id, first.stream, first.seq, last.seq, first.id])
    return f"{first.id}-{hashlib.sha256(named).hexdigest()[:32]}"

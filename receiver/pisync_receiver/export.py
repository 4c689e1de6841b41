"""Everything at once: stored events as a stream of NDJSON or CSV.

Read a page at a time, because one long read of an SQLite file keeps its log from being folded back while it lasts;
written as fast as the caller reads, so that memory does not grow with the export.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import msgspec

from pisync_receiver.answers import Stream
from pisync_receiver.store import EventFilter, EventRow, Store
from pisync_receiver.views import EventRecord, event_record

_ROWS: Final = 500
_COLUMNS: Final = EventRecord.__struct_fields__
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_encode = msgspec.json.Encoder().encode

Writer = Callable[[Sequence[EventRow], bool], bytes]


def stream(store: Store, wanted: EventFilter, cursor: str | None, media: str) -> Stream:
    """Every event that `wanted` names, from `cursor` on, as `media` (a key of WRITERS)."""
    return Stream(chunks=_chunks(store, wanted, cursor, WRITERS[media]), content_type=media)


async def _chunks(store: Store, wanted: EventFilter, cursor: str | None, write: Writer) -> AsyncIterator[bytes]:
    first = True
    while first or cursor is not None:
        page = await asyncio.to_thread(store.events, wanted, cursor=cursor, limit=_ROWS)
        yield write(page.rows, first)
        cursor, first = page.next, False


def _ndjson(rows: Sequence[EventRow], first: bool) -> bytes:
    return b"".join(_encode(event_record(row)) + b"\n" for row in rows)


def _csv(rows: Sequence[EventRow], first: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    if first:
        writer.writerow(_COLUMNS)
    for row in rows:
        record = event_record(row)
        writer.writerow([_cell(getattr(record, name)) for name in _COLUMNS])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """A spreadsheet runs a cell that begins like a formula, and these texts come from devices."""
    if isinstance(value, msgspec.Raw):
        value = bytes(value).decode()
        value = "" if value == "null" else value
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


WRITERS: Final[Mapping[str, Writer]] = {"application/x-ndjson": _ndjson, "text/csv": _csv}

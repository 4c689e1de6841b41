"""Everything at once: stored events as a stream of NDJSON or CSV.

Read a page at a time, because one long read of an SQLite file keeps its log from being folded back while it lasts;
written as fast as the caller reads, so that memory does not grow with the export. So many at once, and the others wait.
"""

import asyncio
import csv
import io
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final

import msgspec

from pisync_receiver.answers import Stream
from pisync_receiver.routing import Request
from pisync_receiver.store import EventFilter, EventRow
from pisync_receiver.views import EventRecord, event_record

AT_ONCE: Final = 8
"""Exports under way in one process; each holds a page of events."""
_ROWS: Final = 500
_COLUMNS: Final = EventRecord.__struct_fields__
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_encode = msgspec.json.Encoder().encode

Writer = Callable[[Sequence[EventRow], bool], bytes]


def stream(request: Request, wanted: EventFilter, cursor: str | None, media: str) -> Stream:
    """Every event that `wanted` names, from `cursor` on, as `media` (a key of WRITERS)."""
    chunks = _chunks(request, wanted, cursor, WRITERS[media])
    return Stream(chunks=chunks, gone=request.gone, content_type=media)


async def _chunks(
    request: Request, wanted: EventFilter, cursor: str | None, write: Writer
) -> AsyncGenerator[bytes, None]:
    first = True
    async with request.services.exports:
        while first or cursor is not None:
            page = await asyncio.to_thread(request.services.store.events, wanted, cursor=cursor, limit=_ROWS)
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

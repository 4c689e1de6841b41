"""Exports: stored events as a stream of NDJSON or CSV.

Read a page at a time, because one long read of an SQLite file keeps its log from being folded back while it lasts;
written as fast as the caller reads, so that memory does not grow with the export. A semaphore bounds how many run.
"""

import csv
import io
import re
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final

import msgspec

from pisync_receiver.domain.records import EventFilter, EventRecord
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import Stream

_ROWS: Final = 500
"""Most events of a chunk; fewer where they have much data (see `Store.events`)."""
_COLUMNS: Final = EventRecord.__struct_fields__
_SIGNS: Final = "=+\\-@\t\r\uff1d\uff0b\uff0d\uff20"
# At the beginning of a cell; also after a semicolon, which many countries' spreadsheets read as the end of a cell.
_FORMULA: Final = re.compile(rf"(^|;)(\s*)(?=[{_SIGNS}])")
_encode = msgspec.json.Encoder().encode

Writer = Callable[[Sequence[EventRecord], bool], bytes]


def stream_events(request: Request, wanted: EventFilter, media: str, *, after: int, limit: int | None) -> Stream:
    """Return the events that `wanted` names with an id over `after`, at most `limit` of them, as `media` (a key of
    WRITERS)."""
    chunks = _chunks(request, wanted, WRITERS[media], after, sys.maxsize if limit is None else limit)
    headers = ((b"vary", b"accept"), (b"content-disposition", b'attachment; filename="events%b"' % _SUFFIX[media]))
    return Stream(chunks=chunks, gone=request.gone, content_type=f"{media}; charset=utf-8", headers=headers)


async def _chunks(
    request: Request, wanted: EventFilter, write: Writer, after: int, left: int
) -> AsyncGenerator[bytes, None]:
    cursor: str | None = str(after)
    first = True
    async with request.services.exports:
        while cursor is not None and left:
            page = await request.services.store.events(wanted, limit=min(_ROWS, left), cursor=cursor)
            yield write(page.rows, first)
            cursor, first, left = page.next, False, left - len(page.rows)


def _ndjson(rows: Sequence[EventRecord], first: bool) -> bytes:
    return b"".join(_one_line(_encode(row)) + b"\n" for row in rows)


def _one_line(text: bytes) -> bytes:
    """Return JSON without the line breaks that an event's data was sent with."""
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text


def _csv(rows: Sequence[EventRecord], first: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    if first:
        writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in _COLUMNS])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Write a value as in JSON, with an apostrophe before what a spreadsheet would run as a formula: these texts come
    from devices."""
    if isinstance(value, msgspec.Raw):
        value = "" if bytes(value) == b"null" else bytes(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _FORMULA.sub(r"\1\2'", value)
    return value


WRITERS: Final[Mapping[str, Writer]] = {"application/x-ndjson": _ndjson, "text/csv": _csv}
_SUFFIX: Final = {"application/x-ndjson": b".ndjson", "text/csv": b".csv"}

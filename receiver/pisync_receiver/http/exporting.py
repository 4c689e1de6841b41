"""Exports: any list of the API as NDJSON, CSV or Parquet, all pages of it in one answer.

An export is the list's own pages, one after another, each made by the list's handler: it has the same rows, filters and
access, and a page is small, because one long read of an SQLite file keeps its log from being folded back while it
lasts. It is written as fast as the caller reads. A semaphore bounds how many run.
"""

import csv
import io
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from pisync_common.times import format_ms
from pisync_receiver.domain.submissions import AuditNote
from pisync_receiver.http import params
from pisync_receiver.http.formats import Writer, columns_of, one_line, reader_of
from pisync_receiver.http.request import Request
from pisync_receiver.http.responses import JSON, Answer, Reply, Stream, choose

_ROWS: Final = 500
"""Most rows of a page; fewer where they are large."""
_SIGNS: Final = "=+-@\t\r\uff1d\uff0b\uff0d\uff20"
# At the beginning of a cell; also after a semicolon, which many countries' spreadsheets read as the end of a cell.
_FORMULA: Final = re.compile(rf"(^|;)(\s*)(?=[{re.escape(_SIGNS)}])")
_BOM: Final = "\ufeff"

_rows = msgspec.json.Decoder(list[Raw]).decode
_WORDS: Final = {None: "", True: "true", False: "false"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an export is written. `rows` is the struct of a row."""

    rows: type
    raw: bool = False
    """CSV: leave texts alone that a spreadsheet would run as a formula."""
    bom: bool = False
    """CSV: begin with a byte order mark."""


class _Ndjson:
    def __init__(self, options: Options) -> None:
        pass

    async def write(self, page: bytes) -> tuple[bytes, int]:
        rows = _rows(page)
        return b"".join(one_line(bytes(row)) + b"\n" for row in rows), len(rows)

    async def end(self) -> bytes:
        return b""


class _Csv:
    def __init__(self, options: Options) -> None:
        self._read = reader_of(options.rows)
        self._raw = options.raw
        self._head: tuple[str, Sequence[str]] = (_BOM if options.bom else "", list(columns_of(options.rows)))

    async def write(self, page: bytes) -> tuple[bytes, int]:
        text = io.StringIO()
        writer = csv.writer(text)
        self._begin(text)
        rows = self._read(page)
        cell = self._cell
        writer.writerows([[cell(value) for value in row] for row in rows])
        return text.getvalue().encode(), len(rows)

    async def end(self) -> bytes:
        return b""

    def _begin(self, text: io.StringIO) -> None:
        mark, columns = self._head
        text.write(mark)
        if columns:
            csv.writer(text).writerow(columns)
        self._head = ("", ())

    def _cell(self, value: Any) -> object:
        """Write a value as in JSON, texts without quotes."""
        if value is None or value is True or value is False:
            return _WORDS[value]
        if isinstance(value, Raw):
            value = one_line(bytes(value)).decode()
            if value == "null":
                return ""
        return guarded(value) if isinstance(value, str) and not self._raw else value


def guarded(text: str) -> str:
    """Return a text with an apostrophe before what a spreadsheet would run as a formula: texts come from devices."""
    if text[:1] in _SIGNS or text[:1].isspace() or ";" in text:  # in few texts, and the search takes long
        return _FORMULA.sub(r"\1\2'", text)
    return text


async def _parquet(options: Options) -> Writer:
    from pisync_receiver.http.parquet import open_parquet

    return await open_parquet(options.rows)


async def _ndjson(options: Options) -> Writer:
    return _Ndjson(options)


async def _csv(options: Options) -> Writer:
    return _Csv(options)


@dataclass(frozen=True, kw_only=True)
class _Format:
    media: str
    content_type: str
    open: Callable[[Options], Awaitable[Writer]]


_FORMATS: Final[Mapping[str, _Format]] = {
    "json": _Format(media=JSON, content_type=JSON, open=_ndjson),
    "ndjson": _Format(media="application/x-ndjson", content_type="application/x-ndjson; charset=utf-8", open=_ndjson),
    "csv": _Format(media="text/csv", content_type="text/csv; charset=utf-8", open=_csv),
    "parquet": _Format(
        media="application/vnd.apache.parquet", content_type="application/vnd.apache.parquet", open=_parquet
    ),
}
MEDIA: Final = tuple(each.media for each in _FORMATS.values())
_NAME_OF: Final = {each.media: name for name, each in _FORMATS.items()}
PARAMS: Final = (
    params.options("format", "All rows as an export, whatever Accept says; json for a page", tuple(_FORMATS)),
    params.flag("raw", "With CSV: texts without the apostrophe that keeps a spreadsheet from running them"),
    params.flag("bom", "With CSV: begin with a byte order mark, for Excel"),
)
"""What every list takes beside its own parameters."""


def wanted(request: Request) -> str | None:
    """Return the format of an export that the caller asks for; None for a page. Raises Problem 406."""
    name: str = request.query["format"] or _NAME_OF[choose(request.headers.get(b"accept"), MEDIA)]
    return None if name == "json" else name


async def export(request: Request, handler: Callable[[Request], Awaitable[Reply]], rows: type, name: str) -> Stream:
    """Return every row of a list, or the first `limit` of them; a `cursor` of the list says where to begin. Raises what
    the first page raises, and MissingExtra."""
    query, form = request.query, _FORMATS[name]
    left = query["limit"] if request.gives("limit") else sys.maxsize
    exports = request.services.exports
    await exports.acquire()
    try:
        request.exporting = True
        writer = await form.open(Options(rows=rows, raw=bool(query["raw"]), bom=bool(query["bom"])))
        first = await _page(request, handler, query, left, query.get("cursor"))
        if request.scope["method"] != "HEAD":
            await request.services.intake.submit(_note(request, name))
    except BaseException:
        exports.release()
        raise
    day = format_ms(request.services.now_ms())[:10]
    file = f"{request.scope['path'].rpartition('/')[2]}-{day}.{name}"
    headers = (
        (b"vary", b"accept"),
        (b"content-disposition", f'attachment; filename="{file}"'.encode()),
        *(header for header in first.headers if header[0] != b"link"),
    )
    chunks = _chunks(request, handler, writer, first.body, query, left)
    return Stream(
        chunks=chunks, gone=request.gone, done=exports.release, content_type=form.content_type, headers=headers
    )


def _note(request: Request, name: str) -> AuditNote:
    """What the audit log says of an export: filters by their names, because a value may be a learner's id."""
    given = [filter for filter in request.query if request.gives(filter)]
    return AuditNote(
        by=request.caller.actor,
        act="list.export",
        at_ms=request.services.now_ms(),
        target=f"list {request.scope['path']}",
        detail={"format": name, "given": given},
    )


async def _chunks(
    request: Request,
    handler: Callable[[Request], Awaitable[Reply]],
    writer: Writer,
    page: bytes,
    query: Mapping[str, Any],
    left: int,
) -> AsyncGenerator[bytes, None]:
    while True:
        chunk, rows = await writer.write(page)
        yield chunk
        left -= rows
        if request.following is None or left <= 0:
            break
        page = (await _page(request, handler, query, left, request.following)).body
    yield await writer.end()


async def _page(
    request: Request,
    handler: Callable[[Request], Awaitable[Reply]],
    query: Mapping[str, Any],
    left: int,
    cursor: str | None,
) -> Answer:
    """Return a page of the list; `request.following` is then the cursor of the next."""
    request.query = {**query, "limit": min(_ROWS, left), "cursor": cursor}
    request.following = None
    answer = await handler(request)
    assert isinstance(answer, Answer), "a list answers with a page"
    return answer

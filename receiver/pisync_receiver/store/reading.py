"""The queries of both engines. None of them reads a device's whole history, nor all devices' histories.

Most of their SQL is shared (`store/sql`); each engine adds its own, and a way to run it, `_read`. Questions about the
fleet are in `fleet`.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from msgspec import MsgspecError, Raw
from msgspec.json import Decoder
from msgspec.json import encode as encode_json

from pisync_common.limits import DATA_BYTES, MIB
from pisync_receiver.domain.records import (
    CODE_DEVICES,
    MISSING_RANGES,
    REJECTIONS,
    CodeRecord,
    Completeness,
    EventFilter,
    EventRecord,
    FailingDevice,
    Mode,
    Page,
    Range,
    RejectedEvent,
    RejectedRecord,
    StreamRecord,
    SyncEventRecord,
    TokenRecord,
    code_record,
    errors_of,
    sync_event_record,
    time_of,
    token_record,
)
from pisync_receiver.domain.rows import Device, EnrollmentCode, StoredSyncEvent, Stream, Token
from pisync_receiver.domain.sites import site_at
from pisync_receiver.domain.times import AHEAD_MS, ESTIMATED, QUALITIES, claimed, shown
from pisync_receiver.store.audit import AuditQueries
from pisync_receiver.store.cursors import bad_cursor, decode, encode, event_id, page
from pisync_receiver.store.fleet import FleetQueries
from pisync_receiver.store.running import Row, Sites, T, build, listed
from pisync_receiver.store.sums import SumQueries

SHARED_SQL: Final = Path(__file__).parent / "sql"
QUERY_S: Final = 10.0
"""How long a query may take, on SQLite its wait for a connection included; some filters have no index."""
LOOK_UP: Final = "tokens_by_hash"
"""The query that every call needs, a device's too: it never waits behind a reader's."""
HOUR_MS: Final = 3_600_000
"""What a row of `arrivals` covers."""
PAGE_BYTES: Final = MIB
"""Of `data` on a page of events, unless a single event has more: a page stays in memory while its caller reads."""
STREAMS_SHOWN: Final = 2_000
"""Of a device; `decide` accepts no more."""
BODY_SHOWN: Final = 2 * DATA_BYTES
"""Characters of a rejected event: more than any valid event has."""
DETAILS_SHOWN: Final = 10_000
"""Missing ranges, and rejected events, of all streams of a device together."""

_LARGEST: Final = 2**63 - 1
_STEP: Final = 200
"""Events read at once for a page; each may have 64 KiB of data."""


class Queries(FleetQueries, SumQueries, AuditQueries):
    """Queries see only what was durably committed. Those with a cursor raise BadCursor for a cursor that no page of the
    same query gave. All raise StoreUnusable when the database cannot be read."""

    # Sync events.

    async def history(
        self,
        device_id: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        failed: bool | None = None,
        sites: Sites = None,
    ) -> Page[SyncEventRecord]:
        """List a device's sync events, newest effective time first; `since_ms` is included, `until_ms` is not. Those
        of other sites than `sites`, where the device was before it was moved, are left out."""
        at_ms, number = (_LARGEST, _LARGEST) if cursor is None else decode(cursor, int, int)
        rows = await self._rows(
            "history",
            device=device_id,
            since=-_LARGEST if since_ms is None else since_ms,
            until=_LARGEST if until_ms is None else until_ms,
            at=at_ms,
            id=number,
            failed=None if failed is None else int(failed),
            sites=listed(sites),
            limit=limit + 1,
        )
        stored = page([StoredSyncEvent(*row) for row in rows], limit, lambda row: encode(row.at_ms, row.id))
        return Page(rows=[sync_event_record(row) for row in stored.rows], next=stored.next)

    async def failures(
        self,
        *,
        min_failures: int = 3,
        mode: Mode = "consecutive",
        since_ms: int | None = None,
        site: str | None = None,
        sites: Sites = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[FailingDevice]:
        """List devices that keep failing, worst first, without retired devices. `since_ms` narrows mode `total` only:
        to failures at or after it. A device whose rank rises while a caller pages comes on the last pages, perhaps a
        second time."""
        since_ms = since_ms if mode == "total" else None
        asked = {"mode": mode, "least": max(min_failures, 1), "since": since_ms, "site": site, "sites": listed(sites)}
        asked["limit"] = limit + 1
        if cursor is None:
            (newest,) = (await self._rows("newest_arrival"))[0]
            place: list[Any] = [_LARGEST, 0, "", newest or 0]
        else:
            place = decode(cursor, int, int, str, int)
        count, failing_since, after, started = place
        if count >= 0:
            ranking = "streaks" if mode == "consecutive" else "totals" if since_ms is None else "totals_since"
            rows = await self._rows(ranking, count=count, failing_since=failing_since, after=after, **asked)
            if len(rows) > limit:
                return _failing(rows[:limit], _rank(rows[limit - 1], mode, started))
            if cursor is None:  # all of it is on one page
                return _failing(rows, None)
            found = await self._rows("risen", after="", started=started, **{**asked, "limit": 1})
            return _failing(rows, encode(-1, 0, "", started) if found else None)
        rows = await self._rows("risen", after=after, started=started, **asked)
        return _failing(rows[:limit], encode(-1, 0, rows[limit - 1][0], started) if len(rows) > limit else None)

    # Streams.

    async def completeness(self, device_id: str) -> Completeness | None:
        """Return every stream of a device, the oldest first; None for an unknown device."""
        about = {"device": device_id}
        devices, streams, gaps, rejections = await self._read(
            ("devices_by_id", {"devices": [device_id]}),
            ("streams", {**about, "limit": STREAMS_SHOWN}),
            ("gaps", {**about, "each": MISSING_RANGES, "limit": DETAILS_SHOWN}),
            ("newest_rejected", {**about, "each": REJECTIONS, "limit": DETAILS_SHOWN}),
        )
        if not devices:
            return None
        missing: dict[str, list[Range]] = defaultdict(list)
        for stream, first, last in gaps:
            missing[stream].append((first, last))
        rejected: dict[str, list[RejectedEvent]] = defaultdict(list)
        for stream, seq, code, detail in rejections:
            rejected[stream].append(RejectedEvent(seq=seq, code=code, detail=detail))
        rows = [build(Stream, row) for row in streams]
        records = [_stream_record(row, missing[row.stream], rejected[row.stream]) for row in rows]
        return Completeness(
            device_id=device_id,
            complete=all(record.complete for record in records),
            cloned_since=time_of(build(Device, devices[0]).cloned_since_ms),
            streams=records,
        )

    async def rejected(
        self, device_id: str, *, sites: Sites = None, limit: int = 100, cursor: str | None = None
    ) -> Page[RejectedRecord]:
        """List what was rejected of a device, conflicting versions included, by stream and order of arrival. What
        arrived while it was at another site than `sites` is left out."""
        begin: list[Any] = ["", -1, -1, ""] if cursor is None else decode(cursor, str, int, int, str)
        begin[3] = _bytes(begin[3])
        devices = [] if sites is None else await self._rows("devices_by_id", devices=[device_id])
        device = build(Device, devices[0]) if devices else None

        async def read(last: Row | None, rows: int) -> list[Row]:
            place = dict(zip(("stream", "received", "seq", "content"), begin if last is None else last, strict=False))
            return await self._rows("rejected", device=device_id, **place, longest=BODY_SHOWN, limit=rows)

        rows, fit = await fill(read, lambda row: len(row[6]), limit=limit, step=_STEP // 4)
        found = page(rows, fit, lambda row: encode(row[0], row[1], row[2], bytes(row[3]).hex()))
        seen = [row for row in found.rows if sites is None or (device is not None and site_at(device, row[1]) in sites)]
        return Page(rows=[_rejected(device_id, row) for row in seen], next=found.next)

    # Events.

    async def events(self, wanted: EventFilter, *, limit: int = 100, cursor: str | None = None) -> Page[EventRecord]:
        """List events in the order of arrival. The cursor is the last row's `id` as text. A page with much data has
        fewer than `limit` rows; the last page is the one without `next`."""
        after = event_id(cursor)
        ids = await self._arrived(wanted)

        async def read(last: EventRecord | None, rows: int) -> list[EventRecord]:
            return await self._events(wanted, ids, after=after if last is None else last.id, limit=rows)

        records, fit = await fill(read, lambda record: len(memoryview(record.data)), limit=limit, step=_STEP)
        return page(records, fit, lambda record: str(record.id))

    async def _arrived(self, wanted: EventFilter) -> tuple[int, int]:
        """The ids between which everything lies that arrived in the hours in question."""
        since, until = _bounds(wanted)
        if (since, until) == (-_LARGEST, _LARGEST):
            return 0, _LARGEST
        first, last = (await self._rows("arrived", first=since // HOUR_MS, last=until // HOUR_MS))[0]
        return (first or 1) - 1, last or 0

    async def _events(self, wanted: EventFilter, ids: tuple[int, int], *, after: int, limit: int) -> list[EventRecord]:
        since, until = _bounds(wanted)
        values: dict[str, object] = {
            "device": wanted.device_id,
            "stream": wanted.stream,
            "type": wanted.type,
            "learner": wanted.learner_id,
            "object": wanted.object_id,
            "site": wanted.site,
            "sites": listed(wanted.sites),
            "since": since,
            "until": until,
            "occurred_since": -_LARGEST if wanted.occurred_since_ms is None else wanted.occurred_since_ms,
            "occurred_until": _LARGEST if wanted.occurred_until_ms is None else wanted.occurred_until_ms,
            "after": max(after, ids[0]),
            "last": ids[1],
            "limit": limit,
        }
        query = "events"
        if wanted.learner_id is not None:
            query = "events_of_learner"
        elif wanted.device_id is not None:
            query = "events_of_device"
        return [event_record(row) for row in await self._rows(query, **values)]

    # Access.

    async def tokens_by_hash(self, hashes: Sequence[str]) -> list[Token]:
        """Return the tokens with these hashes, ended tokens included, in any order."""
        return [build(Token, row) for row in await self._rows(LOOK_UP, hashes=list(hashes))]

    async def tokens(self, *, sessions: bool = False) -> list[TokenRecord]:
        """List every token, also ended, the oldest first; sessions only if they are asked for."""
        return [token_record(build(Token, row)) for row in await self._rows("tokens", sessions=int(sessions))]

    async def codes(self) -> list[CodeRecord]:
        """List every enrollment code, also used up and expired, the oldest first."""
        codes, devices = await self._read(("codes", {}), ("code_devices", {"each": CODE_DEVICES}))
        let_in: dict[int, list[str]] = defaultdict(list)
        for code_id, device_id in devices:
            let_in[code_id].append(device_id)
        return [code_record(code, let_in[code.id]) for code in (build(EnrollmentCode, row) for row in codes)]


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise bad_cursor() from error


def _bounds(wanted: EventFilter) -> tuple[int, int]:
    """Between which moments everything arrived: no event happened later than AHEAD_MS after its arrival."""
    since = -_LARGEST if wanted.since_ms is None else wanted.since_ms
    if wanted.occurred_since_ms is not None:
        since = max(since, wanted.occurred_since_ms - AHEAD_MS)
    return since, _LARGEST if wanted.until_ms is None else wanted.until_ms


async def fill(
    read: Callable[[T | None, int], Awaitable[list[T]]], size: Callable[[T], int], *, limit: int, step: int
) -> tuple[list[T], int]:
    """Read the rows of a page a few at a time, until it has `limit` or PAGE_BYTES; return them, the first of the next
    page perhaps among them, and how many are on this page. `read` takes the last row so far, and how many to read."""
    rows: list[T] = []
    while True:
        wanted = min(step, limit + 1 - len(rows))
        found = await read(rows[-1] if rows else None, wanted)
        rows += found
        sizes = accumulate(map(size, rows))
        fit = max(sum(1 for total in sizes if total <= PAGE_BYTES), min(len(rows), 1))
        if len(found) < wanted or len(rows) > limit or fit < len(rows):
            return rows, min(limit, fit)


def _rank(row: Row, mode: Mode, started: int) -> str:
    """The place in the ranking of a row of `streaks`, `totals` or `totals_since`."""
    device_id, _, consecutive, total, failing_since, *_ = row
    if mode == "consecutive":
        return encode(consecutive, failing_since or 0, device_id, started)
    return encode(total, 0, device_id, started)


def _failing(rows: Sequence[Row], following: str | None) -> Page[FailingDevice]:
    return Page(rows=[_failing_device(row) for row in rows], next=following)


def _failing_device(row: Row) -> FailingDevice:
    device_id, site, consecutive, total, since, sync, success, errors = row
    return FailingDevice(
        device_id=device_id,
        site=site,
        consecutive_failures=consecutive,
        total_failures=total,
        failing_since=time_of(since),
        last_sync_at=time_of(sync),
        last_success_at=time_of(success),
        last_errors=errors_of(errors),
    )


def _stream_record(row: Stream, missing: list[Range], rejections: list[RejectedEvent]) -> StreamRecord:
    missing_count = row.highest - row.stored - row.carried - row.rejected
    return StreamRecord(
        stream=row.stream,
        complete=missing_count == 0,
        watermark=row.watermark,
        highest=row.highest,
        stored=row.stored,
        carried=row.carried,
        rejected=row.rejected,
        conflicts=row.conflicts,
        missing=missing,
        missing_count=missing_count,
        rejections=rejections,
        first_received_at=shown(row.first_ms),
        last_received_at=shown(row.last_ms),
    )


def _rejected(device_id: str, row: Row) -> RejectedRecord:
    stream, received_ms, seq, _, code, detail, body = row
    return RejectedRecord(
        device_id=device_id,
        stream=stream,
        seq=seq,
        code=code,
        detail=detail,
        body=body,
        received_at=shown(received_ms),
    )


def event_record(row: Row) -> EventRecord:
    """Take the columns of the table `events` in their order."""
    (
        number, device_id, stream, seq, kind, site, learner_home, learner_id, object_id, event_id, occurred_at,
        recorded_at, boot_id, boottime_ms, clock_synced, data, received_ms, best_ms, quality, _,
    ) = row  # fmt: skip
    return EventRecord(
        id=number,
        device_id=device_id,
        site=site,
        stream=stream,
        seq=seq,
        type=kind,
        event_id=event_id,
        learner_home=learner_home,
        learner_id=learner_id,
        object_id=object_id,
        occurred_at=claimed(occurred_at, best_ms),
        recorded_at=None if recorded_at is None else claimed(recorded_at, best_ms),
        boot_id=boot_id,
        boottime_ms=boottime_ms,
        clock_synced=bool(clock_synced),
        estimated_at=shown(best_ms),
        quality=QUALITIES[quality if 0 <= quality <= ESTIMATED else ESTIMATED],
        received_at=shown(received_ms),
        data=data_of(data),
    )


_any_json = Decoder(Raw)


def data_of(text: str | None) -> Raw:
    """Return stored data as it was sent; what is no JSON, which no version accepts, as text under `unreadable`."""
    if text is None:
        return Raw(b"null")
    try:
        return _any_json.decode(text)
    except (MsgspecError, RecursionError):
        return Raw(encode_json({"unreadable": text}))

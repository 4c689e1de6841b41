"""The queries, whatever the engine. None of them reads a device's whole history, nor all devices' histories.

Every engine brings the same named queries, giving the same columns; a test compares the names.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, Final

from pisync_common.limits import MIB
from pisync_common.models import Rejection
from pisync_receiver.errors import BadCursor
from pisync_receiver.health import ALARM
from pisync_receiver.store import cursors
from pisync_receiver.store.cursors import page
from pisync_receiver.store.finding import select_events
from pisync_receiver.store.types import (
    MISSING_RANGES,
    REJECTIONS,
    DeviceRow,
    EnrollmentRow,
    EventFilter,
    EventRow,
    FailureRow,
    Fleet,
    Mode,
    Page,
    RejectedRow,
    StoredSyncEvent,
    StreamRow,
    TokenRow,
)
from pisync_receiver.store.writing.access import enrollment_of, token_of
from pisync_receiver.store.writing.reports import errors_of, sync_event_of
from pisync_receiver.store.writing.tables import Row, Select, Values

_LARGEST: Final = 2**63 - 1
_NOTHING: Final[Mapping[str, object]] = {}
PAGE_BYTES: Final = MIB
"""Of `data` on one page of events, unless one event alone has more: a page waits in memory while its caller reads."""
_STEP: Final = 200
"""Events read at once for a page, of which each may have 64 KiB of data."""
_AT_ONCE: Final = 1000
"""Events that a walk over all of them holds in memory."""


class Queries:
    """`store.Reader` says what each query means. An engine's reader adds `_lend`, `_snapshot` and `close`."""

    @abstractmethod
    def _lend(self) -> AbstractContextManager[Select]:
        """A connection for the length of the block; the engine's errors in it become StoreUnusable."""

    @abstractmethod
    def _snapshot(self) -> AbstractContextManager[Select]:
        """The same, and everything read in the block is of one moment."""

    def device(self, device_id: str) -> DeviceRow | None:
        found = [_device(row) for row in self._all("device", {"device": device_id})]
        return found[0] if found else None

    def devices(
        self,
        *,
        site: str | None = None,
        silent_since_ms: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[DeviceRow]:
        after = "" if cursor is None else cursors.decode(cursor, str)[0]
        wanted = {"after": after, "site": site, "silent_since": silent_since_ms, "limit": limit + 1}
        rows = [_device(row) for row in self._all("devices", wanted)]
        return page(rows, limit, lambda row: cursors.encode(row.device_id))

    def history(
        self,
        device_id: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        failed: bool | None = None,
    ) -> Page[StoredSyncEvent]:
        at_ms, number = (_LARGEST, _LARGEST) if cursor is None else cursors.decode(cursor, int, int)
        wanted = {
            "device": device_id,
            "since": -_LARGEST if since_ms is None else since_ms,
            "until": _LARGEST if until_ms is None else until_ms,
            "at": at_ms,
            "id": number,
            "failed": failed,
            "limit": limit + 1,
        }
        rows = [sync_event_of(row) for row in self._all("history", wanted)]
        return page(rows, limit, lambda row: cursors.encode(row.at_ms, row.id))

    def failures(
        self,
        *,
        min_failures: int = 3,
        mode: Mode = "consecutive",
        since_ms: int | None = None,
        site: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[FailureRow]:
        wanted = {"least": max(min_failures, 1), "site": site, "limit": limit + 1}
        if mode == "consecutive":
            count, since, after = (_LARGEST, 0, "") if cursor is None else cursors.decode(cursor, int, int, str)
            wanted |= {"count": count, "failing_since": since, "after": after}
            rows = [_failing(row) for row in self._all("streaks", wanted)]
            return page(rows, limit, _streak_place)
        count, after = (_LARGEST, "") if cursor is None else cursors.decode(cursor, int, str)
        wanted |= {"count": count, "after": after, "since": since_ms}
        rows = [_failing(row) for row in self._all("totals" if since_ms is None else "totals_since", wanted)]
        return page(rows, limit, lambda row: cursors.encode(row.total_failures, row.device_id))

    def completeness(self, device_id: str) -> list[StreamRow]:
        with self._snapshot() as select:
            return [_stream(select, device_id, row) for row in select("streams", {"device": device_id})]

    def rejected(self, device_id: str, *, limit: int = 100, cursor: str | None = None) -> Page[RejectedRow]:
        after = 0 if cursor is None else cursors.decode(cursor, int)[0]
        rows = self._all("rejected", {"device": device_id, "after": after, "limit": limit + 1})
        found = page(rows, limit, lambda row: cursors.encode(row[0]))
        return Page(rows=tuple(map(_rejected, found.rows)), next=found.next)

    def events(self, wanted: EventFilter, *, limit: int = 100, cursor: str | None = None) -> Page[EventRow]:
        rows: list[EventRow] = []
        after = _event_id(cursor)
        with self._lend() as select:
            while len(rows) <= limit and _fitting(rows) == len(rows):
                step = min(_STEP, limit + 1 - len(rows))
                found = select_events(select, wanted, after=after, limit=step)
                rows += found
                if len(found) < step:
                    break
                after = found[-1].id
        return page(rows, min(limit, _fitting(rows)), lambda row: str(row.id))

    def fleet(self) -> Fleet:
        well, failing, unheard = self._all("device_counts", {"alarm": ALARM})[0]
        streams_behind, events_missing = self._all("stream_counts")[0]
        return Fleet(
            well=well,
            failing=failing,
            unheard=unheard,
            streams_behind=streams_behind,
            events_missing=events_missing,
        )

    def iterate_events(self, wanted: EventFilter, *, after: int = 0) -> Iterator[EventRow]:
        while True:
            with self._lend() as select:
                rows = select_events(select, wanted, after=after, limit=_AT_ONCE)
            yield from rows
            if len(rows) < _AT_ONCE:
                return
            after = rows[-1].id

    def all_tokens(self) -> list[TokenRow]:
        return [token_of(row) for row in self._all("tokens")]

    def enrollments(self) -> list[EnrollmentRow]:
        return [enrollment_of(row) for row in self._all("enrollments")]

    def tokens_by_hash(self, hashes: Sequence[str]) -> list[TokenRow]:
        return [token_of(row) for row in self._all("tokens_by_hash", {"hashes": list(hashes)})]

    def _all(self, query: str, wanted: Values = _NOTHING) -> list[Row]:
        with self._lend() as select:
            return select(query, wanted)


def _stream(select: Select, device_id: str, row: Row) -> StreamRow:
    number, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms = row
    key = {"number": number, "device": device_id, "stream": stream}
    missing = select("gaps", {**key, "limit": MISSING_RANGES})
    newest = select("newest_rejected", {**key, "limit": REJECTIONS})
    return StreamRow(
        stream=stream,
        watermark=watermark,
        highest=highest,
        stored=stored,
        carried=carried,
        rejected=rejected,
        conflicts=conflicts,
        missing=tuple((first, last) for first, last in missing),
        missing_count=highest - stored - carried - rejected,
        rejections=tuple(Rejection(seq=seq, code=code, detail=detail) for seq, code, detail in newest),
        first_ms=first_ms,
        last_ms=last_ms,
    )


def _fitting(rows: Sequence[EventRow]) -> int:
    """How many of these fit on a page, by their data; the first always does."""
    sizes = accumulate(len(row.data or "") for row in rows)
    return max(sum(1 for size in sizes if size <= PAGE_BYTES), min(len(rows), 1))


def _event_id(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit()) or len(cursor) > 18:
        raise BadCursor("this cursor is not one that this query gave; start again without it")
    return int(cursor)


def _streak_place(row: FailureRow) -> str:
    return cursors.encode(row.consecutive_failures, row.failing_since_ms, row.device_id)


def _device(row: tuple[Any, ...]) -> DeviceRow:
    device_id, site, agent, enrolled, contact, refused, cloned, conflicts, *health, errors = row
    consecutive, total, since, sync, success = health
    return DeviceRow(
        device_id=device_id,
        site=site,
        agent=agent,
        enrolled_ms=enrolled,
        last_contact_ms=contact,
        last_refused_ms=refused,
        cloned_since_ms=cloned,
        conflicts=conflicts,
        consecutive_failures=consecutive,
        total_failures=total,
        failing_since_ms=since,
        last_sync_ms=sync,
        last_success_ms=success,
        last_errors=errors_of(errors),
    )


def _failing(row: tuple[Any, ...]) -> FailureRow:
    device_id, site, consecutive, total, since, sync, success, errors = row
    return FailureRow(
        device_id=device_id,
        site=site,
        consecutive_failures=consecutive,
        total_failures=total,
        failing_since_ms=since,
        last_sync_ms=sync,
        last_success_ms=success,
        last_errors=errors_of(errors),
    )


def _rejected(row: tuple[Any, ...]) -> RejectedRow:
    _, device_id, stream, seq, code, detail, body, received_ms = row
    return RejectedRow(
        device_id=device_id,
        stream=stream,
        seq=seq,
        code=code,
        detail=detail,
        body=body,
        received_ms=received_ms,
    )

"""Queries of daily sums: causes, speeds, sync runs and activity, by day and site."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeVar

from pisync_receiver.domain.records import Page
from pisync_receiver.domain.summaries import (
    ActivityRecord,
    CauseRecord,
    RunRecord,
    SpeedRecord,
    SumFilter,
    run_record,
    shown_day,
    speed_record,
)
from pisync_receiver.domain.sums import COUNT_MAX, ERROR, OBJECT, RUN, SPEED, SPEEDS_KBIT, TYPE
from pisync_receiver.store.cursors import decode, encode, page
from pisync_receiver.store.folding import SumFolder
from pisync_receiver.store.running import Row, listed

T = TypeVar("T")

_LAST_NAME: Final = "\U0010ffff"
"""After every name."""
_RUN_NAMES: Final = 3
_SPEED_NAMES: Final = len(SPEEDS_KBIT) + 1


class SumQueries(SumFolder):
    """Rows come with the newest day first."""

    async def causes(self, wanted: SumFilter, *, limit: int = 100, cursor: str | None = None) -> Page[CauseRecord]:
        """List errors by day, site and code."""
        rows = await self._sums(ERROR, wanted, limit + 1, cursor)
        found = page(rows, limit, _place)
        records = [
            CauseRecord(day=shown_day(day), site=site or None, code=code, errors=count)
            for day, site, code, _, count in found.rows
        ]
        return Page(rows=records, next=found.next)

    async def runs(self, wanted: SumFilter, *, limit: int = 100, cursor: str | None = None) -> Page[RunRecord]:
        """List sync runs by day and site."""
        rows = await self._sums(RUN, wanted, (limit + 1) * _RUN_NAMES, cursor)
        return _by_day_and_site(rows, limit, run_record)

    async def speeds(self, wanted: SumFilter, *, limit: int = 100, cursor: str | None = None) -> Page[SpeedRecord]:
        """List measured speeds by day and site."""
        rows = await self._sums(SPEED, wanted, (limit + 1) * _SPEED_NAMES, cursor)
        return _by_day_and_site(rows, limit, speed_record)

    async def activity(
        self,
        wanted: SumFilter,
        *,
        type: str | None = None,
        object_id: str | None = None,
        group: Collection[str] = ("day", "site", "type"),
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[ActivityRecord]:
        """List events by what they are grouped by (DIMENSIONS): by day and site in their order, otherwise the most
        events of a day first. Only events about an object count where objects are asked for."""
        what = OBJECT if "object" in group or object_id is not None else TYPE
        if {"day", "site", "type"} <= {*group} and (what == TYPE or "object" in group):
            rows = await self._sums(what, wanted, limit + 1, cursor, type=type, about=object_id)
            place = _place
        else:
            rows = await self._grouped(what, wanted, group, limit + 1, cursor, type=type, about=object_id)
            place = _rank
        found = page(rows, limit, place)
        return Page(rows=[_activity(row, group) for row in found.rows], next=found.next)

    async def _sums(
        self,
        what: str,
        wanted: SumFilter,
        limit: int,
        cursor: str | None,
        *,
        type: str | None = None,
        about: str | None = None,
    ) -> list[Row]:
        last, after, name, about_after = wanted.last_day, "", "", ""
        if cursor is not None:
            last, after, name, about_after = decode(cursor, int, str, str, str)
        values: dict[str, object] = {"what": what, "last": last, "name": name, "object": about_after, "limit": limit}
        values |= {"type": type, "about": about}
        if wanted.site is None:
            sites = listed(wanted.sites)
            return await self._sum_rows("sums", first=wanted.first_day, after=after, sites=sites, **values)
        if wanted.sites is not None and wanted.site not in wanted.sites:
            return []
        days = [*range(wanted.first_day, min(last, wanted.last_day) + 1)]
        return await self._sum_rows("sums_of_site", days=days, site=wanted.site, **values)

    async def _grouped(
        self,
        what: str,
        wanted: SumFilter,
        group: Collection[str],
        limit: int,
        cursor: str | None,
        *,
        type: str | None,
        about: str | None,
    ) -> list[Row]:
        place: list[Any] = [wanted.last_day, COUNT_MAX, "", "", ""]
        if cursor is not None:
            place = decode(cursor, int, int, str, str, str)
        day, total, after, name, about_after = place
        return await self._sum_rows(
            "sums_grouped",
            what=what,
            days=[*range(wanted.first_day, wanted.last_day + 1)],
            site=wanted.site,
            sites=listed(wanted.sites),
            type=type,
            about=about,
            by_day=int("day" in group),
            by_site=int("site" in group),
            by_type=int("type" in group),
            by_object=int("object" in group),
            day=day,
            total=total,
            after=after,
            name=name,
            object=about_after,
            limit=limit,
        )


def _place(row: Row) -> str:
    return encode(*row[:4])


def _rank(row: Row) -> str:
    day, site, name, about, total = row
    return encode(day, int(total), site, name, about)


def _activity(row: Row, group: Collection[str]) -> ActivityRecord:
    day, site, name, about, total = row
    return ActivityRecord(
        day=shown_day(day) if "day" in group else None,
        site=site or None,
        type=name or None,
        object_id=about or None,
        events=int(total),
    )


def _by_day_and_site(rows: list[Row], limit: int, record: Callable[[int, str, Mapping[str, int]], T]) -> Page[T]:
    """Return a page with a record for each day and site. `rows` are those of more than `limit` of these, or all."""
    groups: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for day, site, name, _, count in rows:
        groups[day, site][name] = count
    found = page([*groups], limit, lambda key: encode(*key, _LAST_NAME, ""))
    return Page(rows=[record(*key, groups[key]) for key in found.rows], next=found.next)

"""Queries about the fleet: states of devices and sites, and what is incomplete."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pisync_common.limits import SEQ_MAX
from pisync_receiver.domain.fleet import (
    STATES,
    TROUBLE,
    Change,
    Criteria,
    Delay,
    DeviceFilter,
    DeviceRecord,
    Fleet,
    IncompleteDevice,
    Overview,
    SiteCounts,
    SiteRecord,
    SiteSort,
    Sort,
    State,
    Today,
    TroubledDevice,
    device_record,
    site_records,
    state_counts,
)
from pisync_receiver.domain.health import ALARM
from pisync_receiver.domain.records import Page, time_of
from pisync_receiver.domain.rows import Device
from pisync_receiver.domain.sums import DAY_MS, day_of
from pisync_receiver.domain.times import shown
from pisync_receiver.store.cursors import bad_cursor, decode, encode, page
from pisync_receiver.store.folding import SumFolder
from pisync_receiver.store.running import Query, Row, Sites, build, listed

RANGES_SHOWN: Final = 20
"""Missing ranges of a device in the list of incomplete devices."""
CHANGES_SHOWN: Final = 100
"""Changes in an overview."""
DELAY_DAYS: Final = 7
COMMIT_MS: Final = 60_000
"""How long after it arrived a submission may become visible: longer than a wait for the database may last."""

EVERY_DEVICE: Final = DeviceFilter()
_SMALLEST: Final = -(2**63 - 1)
_FIRST: Final[list[Any]] = [_SMALLEST, "", ""]
"""The place before every rank: number, name, device id."""


class FleetQueries(SumFolder):
    """States are judged by `criteria`: on all pages by those of the first, which the cursor carries."""

    async def device(self, device_id: str, *, criteria: Criteria) -> DeviceRecord | None:
        """Return a device; None if it was never enrolled and never sent anything."""
        found = await self._rows("device_shown", device=device_id)
        return _device(found[0], criteria) if found else None

    async def devices(
        self,
        wanted: DeviceFilter = EVERY_DEVICE,
        *,
        criteria: Criteria,
        sort: Sort = "device_id",
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[DeviceRecord]:
        """List devices: by id; by last contact, the longest silence first; by failures in a row, the most first; or by
        site. A device that fits the filter from the first page to the last is on a page, whatever happens in
        between: if its rank rises meanwhile, it comes on the last pages, perhaps a second time."""
        rising = False
        number, name, after = _FIRST
        total: int | None = None
        if cursor is not None:
            how, number, name, after, now_ms, total = decode(cursor, str, int, str, str, int, int)
            if how not in (sort, f"{sort} risen"):
                raise bad_cursor()
            rising = how != sort
            criteria = Criteria(now_ms=now_ms, silent_after_ms=criteria.silent_after_ms)
        values = {
            **_filter(wanted, criteria),
            "sort": sort,
            "started": criteria.now_ms - COMMIT_MS,
            "number": number,
            "name": name,
            "after": after,
            "limit": limit + 1,
        }
        query = "devices_risen" if rising else "devices" if sort == "device_id" else "devices_ranked"
        rows = await self._rows(query, **values)
        if total is None:  # all on one page need no counting
            total = len(rows) if len(rows) <= limit else (await self._rows("devices_counted", **values))[0][0]
        records = [_device(row, criteria) for row in rows[:limit]]
        following: str | None = None
        if len(rows) > limit:
            rank = rows[limit - 1][-2:] if query == "devices_ranked" else (0, "")
            how = f"{sort} risen" if rising else sort
            following = encode(how, *rank, records[-1].device_id, criteria.now_ms, total)
        elif (
            cursor is not None
            and sort in ("failures", "site")
            and not rising
            and await self._rows("devices_risen", **{**values, "after": "", "limit": 1})
        ):
            following = encode(f"{sort} risen", 0, "", "", criteria.now_ms, total)
        return Page(rows=records, next=following, total=total)

    async def sites(self, *, criteria: Criteria, site: str | None = None, sites: Sites = None) -> list[SiteRecord]:
        """Return every site with a device, those in most need first; or one."""
        counted, lacks, troubled = await self._read(*_of_sites(criteria, sites, site))
        return _site_records(counted, lacks, troubled)

    async def sites_page(
        self,
        *,
        criteria: Criteria,
        search: str | None = None,
        state: State | None = None,
        sort: SiteSort = "need",
        sites: Sites = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[SiteRecord]:
        """List sites: by need, or by name. `state`: only those with a device in it. As with devices, a site that fits
        is on a page: if its need rises meanwhile, it comes on the last pages."""
        how: str = sort
        order, rising, place = sort, False, (_SMALLEST, "")
        if cursor is not None:
            how, number, name, now_ms = decode(cursor, str, int, str, int)
            if how not in (sort, f"{sort} risen"):
                raise bad_cursor()
            if rising := how != sort:
                order = "site"
            place = (number, name)
            criteria = Criteria(now_ms=now_ms, silent_after_ms=criteria.silent_after_ms)
        found = [
            record
            for record in await self.sites(criteria=criteria, sites=sites)
            if (search is None or search.casefold() in (record.site or "").casefold())
            and (state is None or getattr(record, state) > 0)
        ]
        total = len(found)
        if rising:
            restless = await self._restless_sites(criteria)
            found = [record for record in found if record.site in restless]
        rest = [record for record in sorted(found, key=_places[order]) if _places[order](record) > place]
        listing = page(rest, limit, lambda record: encode(how, *_places[order](record), criteria.now_ms))
        following = listing.next
        if following is None and cursor is not None and sort == "need" and not rising:
            restless = await self._restless_sites(criteria)
            if any(record.site in restless for record in found):
                following = encode(f"{sort} risen", _SMALLEST, "", criteria.now_ms)
        return Page(rows=listing.rows, next=following, total=total)

    async def _restless_sites(self, criteria: Criteria) -> set[str | None]:
        """Return the sites whose need may have risen since the first page: a device failed, was changed or moved away,
        or the site's own limit was set."""
        found: set[str | None] = set()
        for site, history in await self._rows("restless_sites", started=criteria.now_ms - COMMIT_MS):
            found.update((site, *(earlier for _, earlier in json.loads(history or "[]")[-1:])))
        return found

    async def overview(self, *, criteria: Criteria, sites: Sites = None) -> Overview:
        """Return the fleet at a glance."""
        await self.fold_if_possible()
        seen = {"sites": listed(sites)}
        (counts, lacks, _), today = _of_sites(criteria, sites), day_of(criteria.now_ms)
        counted, lacking, changes, sums, delays = await self._read(
            counts,
            lacks,
            ("net_changes", {**seen, "since": criteria.now_ms - DAY_MS, "limit": CHANGES_SHOWN}),
            ("day_sums", {**seen, "day": today}),
            ("delay_sums", {**seen, "day": today - DELAY_DAYS + 1}),
        )
        records = _site_records(counted, lacking)
        of_today: dict[str, int] = dict(sums)
        return Overview(
            at=shown(criteria.now_ms),
            devices=state_counts(records),
            incomplete=sum(record.incomplete for record in records),
            cloned=sum(record.cloned for record in records),
            events_missing=min(int(sum(missing for *_, missing in lacking)), SEQ_MAX),
            sites=sum(record.site is not None for record in records),
            sites_in_need=sum(record.in_need for record in records),
            today=Today(**{name: int(of_today.get(name, 0)) for name in Today.__struct_fields__}),
            delay=_delays(delays),
            changes=[
                Change(site=site, before=before, state=state, devices=devices, since=time_of(since))
                for site, before, state, devices, since in changes
            ],
        )

    async def fleet(self, *, criteria: Criteria) -> Fleet:
        """Count every device and stream; reads all of both, so not for every request."""
        counts, lacks, _ = _of_sites(criteria, None)
        counted, lacking, streams = await self._read(counts, lacks, ("stream_counts", {}))
        records = _site_records(counted, lacking)
        ((behind, missing),) = streams
        return Fleet(
            devices=state_counts(records),
            incomplete=sum(record.incomplete for record in records),
            cloned=sum(record.cloned for record in records),
            troubled=[record for record in records if any(getattr(record, state) for state in TROUBLE)],
            streams_behind=behind,
            events_missing=min(int(missing), SEQ_MAX),
        )

    async def incomplete(
        self, *, site: str | None = None, sites: Sites = None, limit: int = 100, cursor: str | None = None
    ) -> Page[IncompleteDevice]:
        """List devices of which something is missing, was rejected or conflicts, by id."""
        after = "" if cursor is None else decode(cursor, str)[0]
        rows = await self._rows("incomplete_devices", after=after, site=site, sites=listed(sites), limit=limit + 1)
        shown_rows = page(rows, limit, lambda row: encode(row[0]))
        ids = [row[0] for row in shown_rows.rows if row[3]]
        gaps = await self._rows("missing_ranges", devices=ids, each=RANGES_SHOWN) if ids else []
        missing: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for device_id, *gap in gaps:
            missing[device_id].append((gap[0], gap[1], gap[2]))
        return Page(rows=[_incomplete(row, missing[row[0]]) for row in shown_rows.rows], next=shown_rows.next)


def judged(criteria: Criteria) -> dict[str, object]:
    """Return the values that `device_state` takes."""
    return {"now": criteria.now_ms, "silent_after": criteria.silent_after_ms, "alarm": ALARM}


def _of_sites(criteria: Criteria, sites: Sites, site: str | None = None) -> tuple[Query, Query, Query]:
    values = {**judged(criteria), "site": site, "sites": listed(sites)}
    return ("site_counts", values), ("site_lacks", values), ("troubled_devices", values)


def _site_records(counted: Sequence[Row], lacking: Sequence[Row], troubled: Sequence[Row] = ()) -> list[SiteRecord]:
    incomplete = {site: devices for site, devices, _ in lacking}
    return site_records([SiteCounts(*row) for row in counted], incomplete, [TroubledDevice(*row) for row in troubled])


def _filter(wanted: DeviceFilter, criteria: Criteria) -> dict[str, object]:
    text = wanted.search
    cased = None if text is None or text.isascii() else text
    return {
        **judged(criteria),
        "site": wanted.site,
        "without_site": 1 if wanted.without_site else None,
        "sites": listed(wanted.sites),
        "state": None if wanted.state is None else STATES.index(wanted.state),
        "search": text and _containing(text.lower()),
        "search_title": cased and _containing(cased.title()),
        "search_upper": cased and _containing(cased.upper()),
        "incomplete": _flag(wanted.incomplete),
        "cloned": _flag(wanted.cloned),
        "silent_since": wanted.silent_since_ms,
    }


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _containing(text: str) -> str:
    """Return the LIKE pattern of what contains a text, in lower case as far as it is ASCII."""
    lowered = "".join(char.lower() if char.isascii() else char for char in text)
    return "%" + "".join(f"\\{char}" if char in "%_\\" else char for char in lowered) + "%"


def _device(row: Row, criteria: Criteria) -> DeviceRecord:
    width = len(Device.__struct_fields__)
    silent_after_ms, incomplete = row[width : width + 2]
    return device_record(
        build(Device, row[:width]), silent_after_ms=silent_after_ms, incomplete=bool(incomplete), criteria=criteria
    )


_places: Final[Mapping[SiteSort, Callable[[SiteRecord], tuple[int, str]]]] = {
    "need": lambda record: (-round(record.need * 1000), record.site or ""),
    "site": lambda record: (0, record.site or ""),
}


def _delays(rows: Sequence[Row]) -> list[Delay]:
    found = [Delay(hours=int(name) if name.isdecimal() else None, events=int(count)) for name, count in rows]
    return sorted(found, key=lambda delay: (delay.hours is None, delay.hours or 0))


def _incomplete(row: Row, missing: list[tuple[str, int, int]]) -> IncompleteDevice:
    device_id, site, label, count, rejected, conflicts, cloned_since_ms = row
    return IncompleteDevice(
        device_id=device_id,
        site=site,
        label=label,
        missing_count=min(int(count), SEQ_MAX),
        missing=missing[:RANGES_SHOWN],
        rejected=int(rejected),
        conflicts=int(conflicts),
        cloned_since=time_of(cloned_since_ms),
    )

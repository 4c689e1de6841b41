"""States and sites: SQL and the rule agree, lists hold what fits, and no page loses a device while devices change."""

import itertools
from collections.abc import Callable, Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from pisync_receiver.domain.fleet import (
    SORTS,
    STATES,
    Criteria,
    DeviceFilter,
    DeviceRecord,
    Sort,
    since_of,
    state_of,
)
from pisync_receiver.domain.records import time_of
from pisync_receiver.domain.rows import Device
from pisync_receiver.domain.submissions import DeviceChange, Submission
from pisync_receiver.errors import BadCursor
from tests.conformance.properties import SHARED_STORE
from tests.conformance.tables import Tables
from tests.support.blocking import BlockingStore, send, sync, written
from tests.support.submissions import CRITERIA, DAY, HOUR, MINUTE, NOON, batch, event, invalid, sync_event

_numbers = itertools.count()
_moments: Final = st.none() | st.sampled_from([NOON - 8 * DAY, NOON - 7 * DAY, NOON - 7 * DAY - 1, NOON - 1, NOON])


class SiteRow(Struct):
    """Table `sites`."""

    site: str
    silent_after_ms: int | None
    changed_ms: int = NOON


class FleetConformance:
    @settings(max_examples=15, deadline=None, suppress_health_check=SHARED_STORE)
    @given(
        rows=st.lists(
            st.builds(
                Device,
                device_id=st.just("d"),
                site=st.sampled_from(["A", "B"]),
                retired_ms=st.none() | st.just(NOON),
                last_contact_ms=_moments,
                consecutive_failures=st.integers(0, 4),
                failing_since_ms=st.just(NOON - 9 * DAY),
                enrolled_ms=st.none() | st.just(NOON - 10 * DAY),
                last_success_ms=_moments,
            ),
            min_size=1,
            max_size=5,
        ),
        silent_after_ms=st.sampled_from([None, 7 * DAY, DAY, 30 * DAY]),
        default_ms=st.sampled_from([7 * DAY, HOUR]),
    )
    def test_states_in_sql_are_those_of_the_rule(
        self, store: BlockingStore, tables: Tables, rows: list[Device], silent_after_ms: int | None, default_ms: int
    ) -> None:
        prefix = f"x{next(_numbers)}-"
        sites = (f"{prefix}A", f"{prefix}B")
        criteria = Criteria(now_ms=NOON, silent_after_ms=default_ms)
        tables.insert("sites", SiteRow(site=sites[0], silent_after_ms=silent_after_ms))
        devices = [
            replace(row, device_id=f"{prefix}{number}", site=prefix + str(row.site)) for number, row in enumerate(rows)
        ]
        for device in devices:
            tables.insert("devices", device)
        after_ms = {sites[0]: default_ms if silent_after_ms is None else silent_after_ms, sites[1]: default_ms}
        states = {device.device_id: state_of(device, after_ms[str(device.site)], NOON) for device in devices}
        shown = {row.device_id: row for row in store.devices(DeviceFilter(sites=sites), criteria=criteria).rows}
        assert {name: row.state for name, row in shown.items()} == states
        assert {name: row.since for name, row in shown.items()} == {
            device.device_id: time_of(since_of(device, states[device.device_id])) for device in devices
        }
        for state in STATES:
            found = store.devices(DeviceFilter(sites=sites, state=state), criteria=criteria).rows
            assert [row.device_id for row in found] == sorted(name for name in states if states[name] == state)
        for site in store.sites(criteria=criteria, sites=sites):
            mine = [states[device.device_id] for device in devices if device.site == site.site]
            assert [getattr(site, state) for state in STATES] == [mine.count(state) for state in STATES]
            assert site.devices == len(mine)

    def test_devices_are_found_by_part_of_id_label_or_site(self, store: BlockingStore) -> None:
        for name, label, site in (
            ("pibook-1", "Front_row", "Nakuru Primary"),
            ("pibook-2", "100%", "École du Lac"),
            ("pibook-3", "back", "مدرسة النور"),
        ):
            sync(store, sync_event(NOON, device=name))
            written(store, DeviceChange(device_id=name, at_ms=NOON, label=label, site=site))

        def found(text: str) -> str:
            return "".join(row.device_id[-1] for row in store.devices(DeviceFilter(search=text)).rows)

        texts = ("BOOK", "book-2", "row", "nakuru", "t_r", "0%", "_", "%", "école", "ÉCOLE DU", "النور", "\\", "x")
        assert [found(text) for text in texts] == ["123", "2", "1", "1", "1", "2", "1", "2", "2", "2", "3", "", ""]

    def test_devices_by_flag(self, store: BlockingStore) -> None:
        send(store, batch([1, 2], device="whole"))
        send(store, batch([1, 3], device="gap"))
        send(store, batch([1, invalid(2)], device="rejected"))
        send(store, batch([1], device="conflict"))
        send(store, batch([event(1, note="x")], device="conflict"))
        everything = {row.device_id: row.incomplete for row in store.devices().rows}
        assert everything == {"whole": False, "gap": True, "rejected": True, "conflict": True}
        for wanted in (True, False):
            found = [row.device_id for row in store.devices(DeviceFilter(incomplete=wanted)).rows]
            assert found == sorted(name for name, lacks in everything.items() if lacks == wanted)
        assert [row.device_id for row in store.devices(DeviceFilter(cloned=True)).rows] == ["conflict"]
        assert len(store.devices(DeviceFilter(cloned=False)).rows) == 3
        assert len(store.devices(DeviceFilter(without_site=True)).rows) == 4
        written(store, DeviceChange(device_id="whole", at_ms=NOON, site="Nakuru"))
        assert len(store.devices(DeviceFilter(without_site=True)).rows) == 3

    def test_incomplete_devices_in_one_call(self, store: BlockingStore) -> None:
        send(store, batch([1, *range(10, 90, 2)], device="a", stream="s"))
        send(store, batch([2, invalid(3)], device="a", stream="t"))
        send(store, batch([1], device="b"))
        send(store, batch([1, 4], device="c"))
        written(store, DeviceChange(device_id="c", at_ms=NOON, site="Nakuru", label="shelf"))
        first = store.incomplete(limit=1)
        (a,) = first.rows
        assert (a.device_id, a.missing_count, a.rejected, a.conflicts) == ("a", 8 + 39 + 1, 1, 0)
        assert (len(a.missing), a.missing[:2]) == (20, [("s", 2, 9), ("s", 11, 11)])
        (c,) = store.incomplete(limit=1, cursor=first.next).rows
        assert (c.device_id, c.site, c.label, c.missing) == ("c", "Nakuru", "shelf", [("stream-1", 2, 3)])
        assert [row.device_id for row in store.incomplete(site="Nakuru").rows] == ["c"]
        assert store.incomplete(sites=("Kisumu",)).rows == []
        assert store.overview().events_missing == 48 + 2
        assert store.overview(sites=("Nakuru",)).events_missing == 2

    def test_site_that_fails_as_a_whole_comes_before_scattered_trouble(self, store: BlockingStore) -> None:
        for number in range(30):
            site = "Small" if number < 3 else "Large"
            troubled = number < 3 or number % 5 == 0
            for turn in range(3):
                at_ms = NOON - (3 - turn) * HOUR - number * MINUTE
                errors = {"dns": 1, "tls": number % 2}
                sync(store, sync_event(at_ms, device=f"d{number}", failed=troubled, errors=errors))
            written(store, DeviceChange(device_id=f"d{number}", at_ms=NOON, site=site))
        sync(store, sync_event(NOON, device="alone"))
        small, large, none = store.sites()
        assert (small.site, small.need, small.in_need, small.devices, small.failing) == ("Small", 3.0, True, 3, 3)
        assert (large.site, large.need, large.in_need, large.failing) == ("Large", round(25 / 27, 3), False, 5)
        assert (none.site, none.need, none.in_need, none.well) == (None, 0, False, 1)
        assert [(cause.code, cause.devices) for cause in small.causes] == [("dns", 3), ("tls", 1)]
        assert small.since == time_of(NOON - 3 * HOUR - MINUTE), "half of its devices failed by then"
        assert [site.site for site in store.sites_page(search="small").rows] == ["Small"]
        assert [site.site for site in store.sites_page(state="failing", sort="site").rows] == ["Large", "Small"]
        assert [site.site for site in store.sites(sites=("Small",))] == ["Small"]
        overview = store.overview()
        assert (overview.sites, overview.sites_in_need, overview.devices.failing) == (2, 1, 8)

    # Pages.

    @pytest.mark.parametrize("sort", SORTS)
    def test_devices_are_sorted(self, store: BlockingStore, sort: Sort) -> None:
        for name, failures, site, contact in (("c", 1, "B", 3), ("a", 5, "B", 2), ("d", 0, None, 1), ("b", 5, "A", 4)):
            for turn in range(max(failures, 1)):
                sync(store, sync_event(NOON + turn, device=name, failed=failures > 0, received_ms=NOON + contact))
            if site is not None:
                written(store, DeviceChange(device_id=name, at_ms=NOON, site=site))
        late = Criteria(now_ms=NOON + DAY, silent_after_ms=7 * DAY)
        wanted = {"device_id": "abcd", "last_contact": "dacb", "failures": "abcd", "site": "dbac"}[sort]
        seen, totals = pages(store, DeviceFilter(), sort, limit=3, criteria=late)
        assert "".join(row.device_id for row in seen) == wanted
        assert set(totals) == {4}

    @settings(max_examples=20, deadline=None, suppress_health_check=SHARED_STORE)
    @given(data=st.data(), sort=st.sampled_from(SORTS), limit=st.integers(1, 3))
    def test_no_page_loses_a_device_while_devices_change(
        self, store: BlockingStore, data: st.DataObject, sort: Sort, limit: int
    ) -> None:
        prefix = f"x{next(_numbers)}-"
        names = [f"{prefix}{letter}" for letter in "abcdef"]
        sites = [f"{prefix}A", f"{prefix}B", f"{prefix}C"]
        for name in names:
            failures = data.draw(st.integers(0, 4))
            at_ms = NOON - data.draw(st.integers(1, 9)) * DAY
            for turn in range(4):
                sync(store, sync_event(at_ms + turn, device=name, failed=turn >= 4 - failures, received_ms=at_ms))
            written(store, DeviceChange(device_id=name, at_ms=at_ms, site=data.draw(st.sampled_from(sites))))
        wanted = DeviceFilter(sites=tuple(sites), state=data.draw(st.sampled_from([None, None, "failing", "silent"])))

        def fitting() -> set[str]:
            return {row.device_id for row in store.devices(wanted, limit=1000).rows}

        all_the_while = fitting()

        def change() -> None:
            for _ in range(data.draw(st.integers(0, 2))):
                written(store, data.draw(_changes(names, sites)))
            all_the_while.intersection_update(fitting())

        seen, _ = pages(store, wanted, sort, limit=limit, between=change)
        assert {row.device_id for row in seen} >= all_the_while

    @pytest.mark.parametrize("how", ["fails", "loses", "limit"])
    def test_site_whose_need_rises_is_on_a_later_page(self, store: BlockingStore, tables: Tables, how: str) -> None:
        for number in range(5):
            for turn in range(5):
                device = f"d{number}-{turn}"
                for minute in range(3):
                    at_ms = NOON - 3 * DAY + minute
                    sync(store, sync_event(at_ms, device=device, failed=turn < 4 - number, received_ms=at_ms))
                written(store, DeviceChange(device_id=device, at_ms=NOON - DAY, site=f"School {number}"))
        first = store.sites_page(limit=2)
        assert [site.site for site in first.rows] == ["School 0", "School 1"]
        if how == "fails":
            for turn in range(15):
                sync(store, sync_event(NOON + turn, device=f"d4-{turn % 5}", failed=True, received_ms=NOON - 1000))
        elif how == "loses":
            for device in ("d3-0", "d2-0", "d2-1"):
                move = DeviceChange(device_id=device, at_ms=NOON, site="School 4", site_since_ms=NOON - 9 * DAY)
                written(store, move)
            for turn in range(5):
                written(store, DeviceChange(device_id=f"d4-{turn}", at_ms=NOON, retire=True))
        else:
            tables.insert("sites", SiteRow(site="School 4", silent_after_ms=HOUR))
        seen, cursor = [site.site for site in first.rows], first.next
        while cursor is not None:
            page = store.sites_page(limit=2, cursor=cursor)
            assert page.total == 5
            seen += [site.site for site in page.rows]
            cursor = page.next
        assert set(seen) == {f"School {number}" for number in range(5)}

    @pytest.mark.parametrize("sort", SORTS)
    def test_device_that_takes_the_first_rank_is_on_a_later_page(self, store: BlockingStore, sort: Sort) -> None:
        for number, name in enumerate("abcd"):
            for turn in range(4 - number):
                at_ms = NOON - DAY + number * HOUR + turn
                sync(store, sync_event(at_ms, device=name, failed=True, received_ms=at_ms))
            written(store, DeviceChange(device_id=name, at_ms=NOON - DAY, site=f"School {name}"))

        def rise() -> None:
            for turn in range(5):
                sync(store, sync_event(NOON - 9000 + turn, device="d", failed=True, received_ms=NOON - 9000))
            move = DeviceChange(device_id="d", at_ms=NOON + 1, site="A", site_since_ms=NOON - 9 * DAY)
            written(store, move)

        seen, _ = pages(store, DeviceFilter(), sort, limit=2, between=rise)
        assert {row.device_id for row in seen} == set("abcd")

    def test_cursor_of_another_sort_is_refused(self, store: BlockingStore) -> None:
        for name in "abc":
            sync(store, sync_event(NOON, device=name))
        cursor = store.devices(sort="site", limit=1).next
        with pytest.raises(BadCursor):
            store.devices(sort="failures", limit=1, cursor=cursor)
        with pytest.raises(BadCursor):
            store.sites_page(cursor=cursor)


def _changes(names: Sequence[str], sites: Sequence[str]) -> st.SearchStrategy[Submission]:
    """What may happen to a device while a caller pages. Some of it arrived before the first page was read, and becomes
    visible only now."""
    device = st.sampled_from(names)
    arrival = st.sampled_from([NOON - 30_000, NOON + MINUTE])
    return st.one_of(
        st.builds(lambda name, ms: sync_event(ms, device=name, failed=True, received_ms=ms), device, arrival),
        st.builds(lambda name, ms: sync_event(ms, device=name, received_ms=ms), device, arrival),
        st.builds(
            lambda name, site, since: DeviceChange(device_id=name, at_ms=NOON + 1, site=site, site_since_ms=since),
            device,
            st.sampled_from(sites),
            st.sampled_from([None, NOON - 20 * DAY]),
        ),
        st.builds(lambda name, gone: DeviceChange(device_id=name, at_ms=NOON + 1, retire=gone), device, st.booleans()),
    )


def pages(
    store: BlockingStore,
    wanted: DeviceFilter,
    sort: Sort,
    *,
    limit: int,
    criteria: Criteria = CRITERIA,
    between: Callable[[], None] = lambda: None,
) -> tuple[list[DeviceRecord], list[int]]:
    """Return the devices of all pages, and the total that each page said."""
    seen: list[DeviceRecord] = []
    totals: list[int] = []
    cursor: str | None = None
    while cursor is not None or not totals:
        page = store.devices(wanted, sort=sort, limit=limit, cursor=cursor, criteria=criteria)
        seen += page.rows
        totals.append(page.total)
        cursor = page.next
        assert len(totals) < 50, "the pages end"
        between()
    return seen, totals

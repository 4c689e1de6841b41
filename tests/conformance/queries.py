"""Devices and events: filters, pages, iteration, snapshots."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from pisync_common.times import format_ms
from pisync_receiver.domain.fleet import DeviceFilter
from pisync_receiver.domain.records import EventFilter
from pisync_receiver.domain.submissions import CodeCreate, DeviceChange, Enroll, Submission
from pisync_receiver.domain.times import AHEAD_MS
from pisync_receiver.errors import BadCursor
from pisync_receiver.store import Store
from pisync_receiver.store.reading import PAGE_BYTES
from tests.support.blocking import BlockingStore, all_events, data_of, every_event, send, stored, sync, written
from tests.support.submissions import DAY, HOUR, NOON, batch, event, sync_event


def enrolled(store: BlockingStore, device_id: str, site: str | None) -> None:
    written(store, CodeCreate(code_hash=device_id, at_ms=0, expires_ms=NOON + HOUR, site=site))
    written(
        store,
        Enroll(code_hash=device_id, device_id=device_id, fallback_device_id="x", token_hash=device_id, at_ms=NOON),
    )


class QueryConformance:
    # Devices.

    def test_devices_are_paged_by_id(self, store: BlockingStore) -> None:
        for name in ("c", "a", "d", "b"):
            sync(store, sync_event(NOON, device=name))
        first = store.devices(limit=3)
        assert [row.device_id for row in first.rows] == ["a", "b", "c"]
        rest = store.devices(limit=3, cursor=first.next)
        assert ([row.device_id for row in rest.rows], rest.next) == (["d"], None)

    def test_devices_of_a_site(self, store: BlockingStore) -> None:
        enrolled(store, "a", "School 5")
        enrolled(store, "b", "School 6")
        enrolled(store, "c", None)
        assert [row.device_id for row in store.devices(DeviceFilter(site="School 5")).rows] == ["a"]
        assert [row.device_id for row in store.devices(DeviceFilter(sites=("School 5", "School 6"))).rows] == ["a", "b"]
        assert store.devices(DeviceFilter(site="School 5", sites=("School 6",))).rows == []
        assert store.devices(DeviceFilter(sites=())).rows == []

    def test_failures_of_some_sites(self, store: BlockingStore) -> None:
        for number, name in enumerate(("a", "b", "c")):
            enrolled(store, name, f"School {number}")
            sync(store, sync_event(NOON, device=name, failed=True))
        for mode, since_ms in (("consecutive", None), ("total", None), ("total", NOON)):
            wanted: dict[str, Any] = {"min_failures": 1, "mode": mode, "since_ms": since_ms}
            assert [row.device_id for row in store.failures(site="School 1", **wanted).rows] == ["b"]
            seen = store.failures(sites=("School 0", "School 2"), **wanted)
            assert [row.device_id for row in seen.rows] == ["a", "c"]

    def test_history_of_some_sites(self, store: BlockingStore) -> None:
        enrolled(store, "a", "School 5")
        sync(store, sync_event(NOON, device="a", failed=True))
        written(store, DeviceChange(device_id="a", site="School 6", at_ms=NOON + HOUR))
        later = sync(store, sync_event(NOON + 2 * HOUR, device="a", received_ms=NOON + 2 * HOUR))
        assert [row.site for row in store.history("a").rows] == ["School 6", "School 5"]
        assert [row.id for row in store.history("a", sites=("School 6", "School 7")).rows] == [later.id]
        assert [row.site for row in store.history("a", sites=("School 5",), limit=1).rows] == ["School 5"]
        assert store.history("a", sites=()).rows == []

    def test_silent_devices(self, store: BlockingStore) -> None:
        enrolled(store, "never", None)
        sync(store, sync_event(NOON, device="old", received_ms=NOON))
        sync(store, sync_event(NOON, device="new", received_ms=NOON + HOUR))
        sync(store, sync_event(NOON, device="retired", received_ms=NOON))
        written(store, DeviceChange(device_id="retired", at_ms=NOON, retire=True))
        silent = store.devices(DeviceFilter(silent_since_ms=NOON + HOUR)).rows
        assert [row.device_id for row in silent] == ["never", "old"]

    # Events.

    def test_page_of_large_events_ends_early(self, store: BlockingStore) -> None:
        send(store, batch([event(seq, note=str(seq) + "x" * 60_000) for seq in range(1, 41)]))
        seqs: list[int] = []
        cursor, pages = None, 0
        while cursor is not None or pages == 0:
            page = store.events(EventFilter(), limit=1000, cursor=cursor)
            assert 1 <= sum(len(data_of(row) or "") for row in page.rows) <= PAGE_BYTES
            seqs += [row.seq for row in page.rows]
            cursor, pages = page.next, pages + 1
        assert (seqs, pages) == (list(range(1, 41)), 3)

    def test_page_of_many_events_is_complete(self, store: BlockingStore) -> None:
        send(store, batch(range(1, 1001)))
        for limit in (199, 200, 201, 999, 1000):
            page = store.events(EventFilter(), limit=limit)
            assert [row.seq for row in page.rows] == list(range(1, limit + 1))
            assert (page.next is None) == (limit == 1000)

    def test_events_come_in_the_order_of_arrival(self, store: BlockingStore) -> None:
        send(store, batch([3]))
        send(store, batch([1], device="pibook-2"))
        send(store, batch([1, 2]))
        rows = store.events(EventFilter()).rows
        assert [(row.device_id, row.seq) for row in rows] == [
            ("pibook-1", 3),
            ("pibook-2", 1),
            ("pibook-1", 1),
            ("pibook-1", 2),
        ]
        assert [row.id for row in rows] == sorted({row.id for row in rows})

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({}, [1, 2, 3, 4, 5, 6]),
            ({"device_id": "a"}, [1, 2, 3, 4]),
            ({"device_id": "unknown"}, []),
            ({"device_id": "a", "stream": "s1"}, [1, 2]),
            ({"stream": "s1"}, [1, 2, 5, 6]),
            ({"type": "note.taken"}, [2, 4]),
            ({"type": "note.taken", "stream": "s2"}, [4]),
            ({"learner_id": "s-1"}, [1, 3, 5]),
            ({"learner_id": "s-1", "device_id": "a"}, [1, 3]),
            ({"learner_id": "s-1", "device_id": "a", "stream": "s2"}, [3]),
            ({"learner_id": "s-1", "object_id": "o-2"}, [3]),
            ({"object_id": "o-1"}, [1, 2, 5, 6]),
            ({"site": "School 5"}, [1, 2, 3, 4]),
            ({"site": "School 5", "learner_id": "s-2"}, [2, 4]),
            ({"site": "elsewhere"}, []),
            ({"sites": ("School 5", "elsewhere")}, [1, 2, 3, 4]),
            ({"sites": ("School 5",), "learner_id": "s-2"}, [2, 4]),
            ({"sites": ("elsewhere",), "device_id": "a"}, []),
            ({"sites": ()}, []),
            ({"since_ms": NOON + HOUR}, [3, 4, 5, 6]),
            ({"until_ms": NOON + HOUR}, [1, 2]),
            ({"since_ms": NOON + 1, "until_ms": NOON + 3 * HOUR}, [3, 4]),
            ({"since_ms": NOON + 9 * HOUR}, []),
            ({"until_ms": 5}, []),
            ({"device_id": "b", "since_ms": NOON + HOUR}, [5, 6]),
            ({"learner_id": "s-1", "until_ms": NOON + 3 * HOUR}, [1, 3]),
        ],
    )
    def test_event_filters(self, store: BlockingStore, wanted: dict[str, Any], found: list[int]) -> None:
        enrolled(store, "a", "School 5")
        one = event(1, learner_id="s-1", object_id="o-1")
        two = event(2, learner_id="s-2", object_id="o-1", type="note.taken")
        other = event(1, learner_id="s-1", object_id="o-2"), replace(two, object_id="o-2")
        third = one, replace(two, type="assignment.completed", learner_id=None)
        send(store, batch([one, two], device="a", stream="s1", received_ms=NOON))
        send(store, batch(other, device="a", stream="s2", received_ms=NOON + HOUR))
        send(store, batch(third, device="b", stream="s1", received_ms=NOON + 3 * HOUR))
        narrowed = EventFilter(**wanted)
        numbers = {row.id: number for number, row in enumerate(store.events(EventFilter()).rows, 1)}
        assert [numbers[row.id] for row in store.events(narrowed).rows] == found
        assert [numbers[row.id] for row in all_events(store, narrowed)] == found
        paged: list[int] = []
        cursor = None
        while True:
            page = store.events(narrowed, limit=1, cursor=cursor)
            paged.extend(numbers[row.id] for row in page.rows)
            if (cursor := page.next) is None:
                break
        assert paged == found

    def test_arrival_filters_survive_a_clock_set_back(self, store: BlockingStore) -> None:
        send(store, batch([1], received_ms=NOON + 5 * HOUR))
        send(store, batch([2], received_ms=NOON))
        send(store, batch([3], received_ms=NOON + 2 * HOUR))

        def seqs(**wanted: Any) -> list[int]:
            return [row.seq for row in store.events(EventFilter(**wanted)).rows]

        assert seqs(since_ms=NOON + HOUR) == [1, 3]
        assert seqs(until_ms=NOON + HOUR) == [2]
        assert seqs(since_ms=NOON, until_ms=NOON + 3 * HOUR) == [2, 3]

    def test_events_are_found_by_the_time_they_happened(self, store: BlockingStore) -> None:
        def at(seq: int, ms: int) -> Any:
            return event(seq, occurred_ms=ms, clock_synced=True)

        ahead = NOON + 5 * DAY + AHEAD_MS
        send(store, batch([at(1, NOON), at(2, NOON + DAY), at(3, NOON + 2 * DAY)], received_ms=NOON + 5 * DAY))
        send(store, batch([at(4, ahead)], received_ms=NOON + 5 * DAY))

        def seqs(**wanted: Any) -> list[int]:
            return [row.seq for row in all_events(store, EventFilter(**wanted))]

        assert seqs(occurred_since_ms=NOON + DAY, occurred_until_ms=NOON + 2 * DAY) == [2]
        assert seqs(occurred_until_ms=NOON + DAY) == [1]
        assert seqs(occurred_since_ms=ahead) == [4]
        assert seqs(occurred_since_ms=ahead + 1) == []
        assert seqs(occurred_since_ms=NOON + DAY, until_ms=NOON + 5 * DAY) == []

    def test_pages_cover_all_and_continue(self, store: BlockingStore) -> None:
        for first in range(1, 2601, 650):
            send(store, batch(range(first, first + 650)))
        rows = all_events(store, EventFilter())
        assert [row.seq for row in rows] == list(range(1, 2601))
        send(store, batch([2601]))
        assert [row.seq for row in all_events(store, EventFilter(), after=rows[-1].id)] == [2601]

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "²", "9" * 30])
    def test_foreign_event_cursor_is_refused(self, store: BlockingStore, cursor: str) -> None:
        with pytest.raises(BadCursor):
            store.events(EventFilter(), cursor=cursor)

    def test_rejections_are_paged(self, store: BlockingStore) -> None:
        send(store, batch([1, 2, 3]))
        send(store, batch([event(seq, note="x") for seq in (1, 2, 3)]))
        first = store.rejected("pibook-1", limit=2)
        rest = store.rejected("pibook-1", limit=2, cursor=first.next)
        assert [row.seq for row in (*first.rows, *rest.rows)] == [1, 2, 3]
        assert rest.next is None
        assert store.rejected("unknown").rows == []

    # Together.

    def test_store_is_ready(self, store: BlockingStore) -> None:
        store.ready()

    def test_readers_see_whole_groups_during_writes(self, store: BlockingStore) -> None:
        done = asyncio.Event()

        async def read(reader: Store) -> int:
            rounds = 0
            while not done.is_set():
                found = await reader.completeness("pibook-1")
                for row in [] if found is None else found.streams:
                    assert row.missing_count == sum(last - first + 1 for first, last in row.missing)
                    assert row.watermark % 10 == 0
                assert len(await every_event(reader, EventFilter())) % 10 == 0
                await reader.failures(min_failures=1)
                rounds += 1
            return rounds

        async def write() -> None:
            try:
                for first in range(1, 601, 10):
                    ahead = range(first + 1000, first + 1010)
                    group: list[Submission] = [
                        batch(range(first, first + 10)),
                        batch(ahead),
                        sync_event(NOON + first, failed=True),
                    ]
                    await store.store.write(group)
            finally:
                done.set()

        async def together() -> tuple[int, int, None]:
            return await asyncio.gather(read(store.store), read(store.store), write())

        assert min(store.run(together())[:2]) > 0
        assert len(stored(store)) == 1200

    def test_rejections_of_several_streams_are_paged_by_stream(self, store: BlockingStore) -> None:
        for stream in ("b", "a"):
            send(store, batch([1, 2], stream=stream))
            send(store, batch([event(seq, note="x") for seq in (2, 1)], stream=stream, received_ms=NOON + 9 * HOUR))
        seen: list[tuple[str, int]] = []
        cursor = None
        while cursor is not None or not seen:
            page = store.rejected("pibook-1", limit=1, cursor=cursor)
            seen += [(row.stream, row.seq) for row in page.rows]
            cursor = page.next
        assert seen == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]

    @pytest.mark.parametrize("cursor", ["", "x", "W10", "WyJhIiwxLDEsInh6Il0", "WyIAIiwxLDEsIiJd"])
    def test_foreign_cursor_of_rejections_is_refused(self, store: BlockingStore, cursor: str) -> None:
        with pytest.raises(BadCursor):
            store.rejected("pibook-1", cursor=cursor)

    def test_unknown_device_has_no_completeness(self, store: BlockingStore) -> None:
        assert store.completeness("unknown") is None
        sync(store, sync_event(NOON))
        found = store.completeness("pibook-1")
        assert (found.complete, found.cloned_since, found.streams) == (True, None, [])

    def test_extreme_times_are_shown(self, store: BlockingStore) -> None:
        """A wrong server clock, or a row from before a rule, must not make a page fail."""
        for received_ms in (-(2**60), 2**60):
            written(store, CodeCreate(code_hash=f"c{received_ms}", at_ms=received_ms, expires_ms=received_ms))
        assert [row.created_at for row in store.codes()] == [format_ms(-62135596800000), format_ms(253402300799999)]

"""Devices and events, found."""

import threading

import pytest

from pisync_receiver.errors import BadCursor
from pisync_receiver.store import Enroll, EnrollmentCreate, EventFilter, Store
from pisync_receiver.store.reading import PAGE_BYTES
from tests.support.stores.made import NOON, batch, event, report, send, stored, tell, written

HOUR = 3_600_000


def enrolled(store: Store, device_id: str, site: str | None) -> None:
    written(store, EnrollmentCreate(code_hash=device_id, created_ms=0, expires_ms=NOON + HOUR, site=site))
    written(
        store,
        Enroll(code_hash=device_id, device_id=device_id, fallback_device_id="x", token_hash=device_id, at_ms=NOON),
    )


class FindingConformance:
    # Devices.

    def test_devices_come_by_id_and_in_pages(self, store: Store) -> None:
        for name in ("c", "a", "d", "b"):
            tell(store, report(NOON, device=name))
        first = store.devices(limit=3)
        assert [row.device_id for row in first.rows] == ["a", "b", "c"]
        rest = store.devices(limit=3, cursor=first.next)
        assert ([row.device_id for row in rest.rows], rest.next) == (["d"], None)

    def test_devices_of_a_site(self, store: Store) -> None:
        enrolled(store, "a", "School 5")
        enrolled(store, "b", "School 6")
        enrolled(store, "c", None)
        assert [row.device_id for row in store.devices(site="School 5").rows] == ["a"]

    def test_devices_that_are_silent(self, store: Store) -> None:
        enrolled(store, "never", None)
        tell(store, report(NOON, device="old", received_ms=NOON))
        tell(store, report(NOON, device="new", received_ms=NOON + HOUR))
        silent = store.devices(silent_since_ms=NOON + HOUR).rows
        assert [row.device_id for row in silent] == ["never", "old"]

    # Events.

    def test_a_page_of_large_events_ends_early_and_the_next_goes_on(self, store: Store) -> None:
        send(store, batch([event(seq, note=str(seq) + "x" * 60_000) for seq in range(1, 41)]))
        seqs: list[int] = []
        cursor, pages = None, 0
        while cursor is not None or pages == 0:
            page = store.events(EventFilter(), limit=1000, cursor=cursor)
            assert 1 <= sum(len(row.data or "") for row in page.rows) <= PAGE_BYTES
            seqs += [row.seq for row in page.rows]
            cursor, pages = page.next, pages + 1
        assert (seqs, pages) == (list(range(1, 41)), 3)

    def test_a_page_of_many_events_is_read_whole(self, store: Store) -> None:
        send(store, batch(range(1, 1001)))
        for limit in (199, 200, 201, 999, 1000):
            page = store.events(EventFilter(), limit=limit)
            assert [row.seq for row in page.rows] == list(range(1, limit + 1))
            assert (page.next is None) == (limit == 1000)

    def test_events_come_in_the_order_of_arrival(self, store: Store) -> None:
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
            ({"device_id": "nobody"}, []),
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
            ({"since_ms": NOON + HOUR}, [3, 4, 5, 6]),
            ({"until_ms": NOON + HOUR}, [1, 2]),
            ({"since_ms": NOON + 1, "until_ms": NOON + 3 * HOUR}, [3, 4]),
            ({"since_ms": NOON + 9 * HOUR}, []),
            ({"until_ms": 5}, []),
            ({"device_id": "b", "since_ms": NOON + HOUR}, [5, 6]),
            ({"learner_id": "s-1", "until_ms": NOON + 3 * HOUR}, [1, 3]),
        ],
    )
    def test_events_can_be_narrowed(self, store: Store, wanted: dict[str, object], found: list[int]) -> None:
        enrolled(store, "a", "School 5")
        one = event(1, learner_id="s-1", object_id="o-1")
        two = event(2, learner_id="s-2", object_id="o-1", type="note.taken")
        other = event(1, learner_id="s-1", object_id="o-2"), two._replace(object_id="o-2")
        third = one, two._replace(type="assignment.completed", learner_id=None)
        send(store, batch([one, two], device="a", stream="s1", received_ms=NOON))
        send(store, batch(other, device="a", stream="s2", received_ms=NOON + HOUR))
        send(store, batch(third, device="b", stream="s1", received_ms=NOON + 3 * HOUR))
        narrowed = EventFilter(**wanted)  # type: ignore[arg-type]
        numbers = {row.id: number for number, row in enumerate(store.events(EventFilter()).rows, 1)}
        assert [numbers[row.id] for row in store.events(narrowed).rows] == found
        assert list(store.iterate_events(narrowed)) == list(store.events(narrowed).rows)
        paged: list[int] = []
        cursor = None
        while True:
            page = store.events(narrowed, limit=1, cursor=cursor)
            paged.extend(numbers[row.id] for row in page.rows)
            if (cursor := page.next) is None:
                break
        assert paged == found

    def test_arrival_counts_even_when_the_clock_was_set_back(self, store: Store) -> None:
        send(store, batch([1], received_ms=NOON + 5 * HOUR))
        send(store, batch([2], received_ms=NOON))
        send(store, batch([3], received_ms=NOON + 2 * HOUR))

        def seqs(**wanted: int) -> list[int]:
            return [row.seq for row in store.events(EventFilter(**wanted)).rows]  # type: ignore[arg-type]

        assert seqs(since_ms=NOON + HOUR) == [1, 3]
        assert seqs(until_ms=NOON + HOUR) == [2]
        assert seqs(since_ms=NOON, until_ms=NOON + 3 * HOUR) == [2, 3]

    def test_a_walk_goes_over_many_pages_and_can_go_on(self, store: Store) -> None:
        for first in range(1, 2601, 650):
            send(store, batch(range(first, first + 650)))
        rows = list(store.iterate_events(EventFilter()))
        assert [row.seq for row in rows] == list(range(1, 2601))
        send(store, batch([2601]))
        assert [row.seq for row in store.iterate_events(EventFilter(), after=rows[-1].id)] == [2601]

    def test_a_walk_that_is_dropped_half_way_leaves_the_store_usable(self, store: Store) -> None:
        send(store, batch(range(1, 801)))
        for _ in range(10):
            assert next(store.iterate_events(EventFilter())).seq == 1
        assert len(stored(store)) == 800

    @pytest.mark.parametrize("cursor", ["", "x", "-1", "²", "9" * 30])
    def test_an_event_cursor_from_elsewhere_is_refused(self, store: Store, cursor: str) -> None:
        with pytest.raises(BadCursor):
            store.events(EventFilter(), cursor=cursor)

    def test_rejections_come_in_pages(self, store: Store) -> None:
        send(store, batch([1, 2, 3]))
        send(store, batch([event(seq, note="x") for seq in (1, 2, 3)]))
        first = store.rejected("pibook-1", limit=2)
        rest = store.rejected("pibook-1", limit=2, cursor=first.next)
        assert [row.seq for row in (*first.rows, *rest.rows)] == [1, 2, 3]
        assert rest.next is None
        assert store.rejected("nobody").rows == ()

    # Together.

    def test_a_store_is_ready(self, store: Store) -> None:
        store.ready()

    def test_readers_see_whole_batches_while_one_writes(self, store: Store) -> None:
        problems: list[BaseException] = []
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    for row in store.completeness("pibook-1"):
                        assert row.missing_count == sum(last - first + 1 for first, last in row.missing)
                        assert row.watermark % 10 == 0
                    assert len(stored(store)) % 10 == 0
                    store.failures(min_failures=1)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for first in range(1, 601, 10):
                ahead = range(first + 1000, first + 1010)
                store.write([batch(range(first, first + 10)), batch(ahead), report(NOON + first, failed=True)])
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert problems == []
        assert len(stored(store)) == 1200

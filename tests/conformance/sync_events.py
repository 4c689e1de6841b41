"""Sync events: stored as sent, once a key; streaks that are right in whatever order and with whatever clock."""

from typing import Any

import pytest

from pisync_common.times import format_ms
from pisync_receiver.domain.fleet import Fleet, StateCounts
from pisync_receiver.domain.records import FailingDevice, SyncEventRecord
from pisync_receiver.domain.submissions import DeviceChange, TokenCreate
from pisync_receiver.errors import BadCursor
from tests.support.blocking import BlockingStore, send, sync, written
from tests.support.submissions import DAY, HOUR, NOON, batch, sync_event


class SyncEventConformance:
    def test_sync_event_comes_back_as_sent(self, store: BlockingStore) -> None:
        sent = sync_event(NOON, failed=True, errors={"dns": 1, "tls": 1}, received_ms=NOON + 50, total_files_synced=120)
        outcome = sync(store, sent)
        assert (outcome.timestamp, outcome.at_ms) == (format_ms(NOON), NOON)
        assert store.history("pibook-1").rows == [
            SyncEventRecord(
                id=outcome.id,
                device_id="pibook-1",
                timestamp=format_ms(NOON),
                total_files_synced=120,
                total_errors=2,
                internet_speed=2.5,
                received_at=format_ms(NOON + 50),
                errors={"dns": 1, "tls": 1},
            )
        ]

    @pytest.mark.parametrize("speed", [0, 5, 5.0, 5.25, 0.1, 10**9, 1e-9])
    def test_number_keeps_its_type(self, store: BlockingStore, speed: float) -> None:
        sync(store, sync_event(NOON, internet_speed=speed))
        (row,) = store.history("pibook-1").rows
        assert (row.internet_speed, type(row.internet_speed)) == (speed, type(speed))

    # The streak.

    def test_streak_grows_and_ends(self, store: BlockingStore) -> None:
        for minute in range(4):
            sync(store, sync_event(NOON + minute, failed=True, errors={"dns": minute + 1}))
        assert self._only_failure(store) == FailingDevice(
            device_id="pibook-1",
            site=None,
            consecutive_failures=4,
            total_failures=4,
            failing_since=format_ms(NOON),
            last_sync_at=format_ms(NOON + 3),
            last_success_at=None,
            last_errors={"dns": 4},
        )
        sync(store, sync_event(NOON + 9))
        assert store.failures(min_failures=1).rows == []
        device = store.device("pibook-1")
        assert (device.consecutive_failures, device.total_failures, device.failing_since) == (0, 4, None)
        newest = format_ms(NOON + 9)
        assert (device.last_sync_at, device.last_success_at, device.last_errors) == (newest, newest, {"dns": 4})

    # Repeated failures.

    def test_failures_are_paged_worst_first(self, store: BlockingStore) -> None:
        for number, streak in enumerate([3, 5, 4, 5, 2, 3, 3]):
            for minute in range(streak):
                sync(store, sync_event(NOON + number + minute, device=f"d{number}", failed=True))
        assert self._devices(store) == ["d1", "d3", "d2", "d0", "d5", "d6"]
        assert self._devices(store, min_failures=5) == ["d1", "d3"]
        assert self._devices(store, limit=2) == ["d1", "d3", "d2", "d0", "d5", "d6"]
        assert store.failures(limit=6).next is None

    @pytest.mark.parametrize("mode", ["consecutive", "total"])
    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_no_device_is_lost_while_its_failures_grow_between_pages(
        self, store: BlockingStore, mode: Any, limit: int
    ) -> None:
        names = [f"d{number:02}" for number in range(12)]
        store.write(
            [
                sync_event(NOON + number + minute, device=name, failed=True)
                for number, name in enumerate(names)
                for minute in range(3 + number % 4)
            ]
        )
        found: list[str] = []
        cursor, at = None, NOON
        while True:
            page = store.failures(mode=mode, limit=limit, cursor=cursor)
            found += [row.device_id for row in page.rows]
            if (cursor := page.next) is None:
                break
            at += 1000
            unseen = [name for name in names if name not in found]
            # Some that were not shown yet overtake everything that was.
            growing = [
                sync_event(at, device=name, failed=True, received_ms=at) for name in unseen[::2][:2] for _ in range(20)
            ]
            if growing:
                store.write(growing)
        assert set(found) == set(names)

    def test_total_counts_failures_between_successes(self, store: BlockingStore) -> None:
        for minute in range(6):
            sync(store, sync_event(NOON + minute, device="flaky", failed=minute % 2 == 0))
            sync(store, sync_event(NOON + minute, device="broken", failed=True))
            sync(store, sync_event(NOON + minute, device="well"))
        assert self._devices(store) == ["broken"]
        assert self._devices(store, mode="total", limit=1) == ["broken", "flaky"]
        assert self._devices(store, mode="total", min_failures=4) == ["broken"]

    def test_total_since_counts_later_failures(self, store: BlockingStore) -> None:
        for minute in range(6):
            sync(store, sync_event(NOON + minute, device="a", failed=True))
            sync(store, sync_event(NOON + minute, device="b", failed=minute > 2))
        page = store.failures(mode="total", since_ms=NOON + 3, min_failures=3)
        assert [(row.device_id, row.total_failures) for row in page.rows] == [("a", 3), ("b", 3)]
        assert self._devices(store, mode="total", since_ms=NOON + 3, limit=1) == ["a", "b"]
        assert store.failures(mode="total", since_ms=NOON + 4, min_failures=3).rows == []

    @pytest.mark.parametrize("cursor", ["", "nonsense", "W10", "WzFd", "é", "WyJcdWQ4MDAiXQ", "1" * 400])
    def test_foreign_cursor_is_refused(self, store: BlockingStore, cursor: str) -> None:
        with pytest.raises(BadCursor):
            store.failures(cursor=cursor)
        with pytest.raises(BadCursor):
            store.history("pibook-1", cursor=cursor)

    # History.

    def test_history_is_newest_first_in_any_order_of_arrival(self, store: BlockingStore) -> None:
        for at in (3, 1, 2, 3, 5):
            sync(store, sync_event(NOON + at))
        sync(store, sync_event(NOON + 9, device="pibook-2"))
        rows = store.history("pibook-1").rows
        assert _minutes(rows) == [5, 3, 3, 2, 1]
        assert rows[1].id > rows[2].id

    @pytest.mark.parametrize("limit", [1, 2, 3, 5])
    def test_history_is_paged(self, store: BlockingStore, limit: int) -> None:
        for at in (3, 1, 2, 3, 5):
            sync(store, sync_event(NOON + at))
        found: list[SyncEventRecord] = []
        cursor = None
        while True:
            page = store.history("pibook-1", limit=limit, cursor=cursor)
            found.extend(page.rows)
            assert len(page.rows) <= limit
            if (cursor := page.next) is None:
                break
        assert found == store.history("pibook-1").rows

    def test_history_filters(self, store: BlockingStore) -> None:
        for at in range(6):
            sync(store, sync_event(NOON + at, failed=at % 2 == 1))

        def times(**narrowed: Any) -> list[int]:
            return _minutes(store.history("pibook-1", **narrowed).rows)

        assert times(since_ms=NOON + 2) == [5, 4, 3, 2]
        assert times(until_ms=NOON + 2) == [1, 0]
        assert times(failed=True) == [5, 3, 1]
        assert times(failed=False, since_ms=NOON + 1, until_ms=NOON + 4) == [2]

    def test_unknown_device_has_no_history(self, store: BlockingStore) -> None:
        assert store.history("unknown").rows == []
        assert store.device("unknown") is None

    def _only_failure(self, store: BlockingStore, min_failures: int = 3) -> FailingDevice:
        row: FailingDevice
        (row,) = store.failures(min_failures=min_failures).rows
        return row

    def _devices(self, store: BlockingStore, **wanted: Any) -> list[str]:
        """Over all pages."""
        found: list[str] = []
        cursor = None
        while True:
            page = store.failures(cursor=cursor, **wanted)
            found.extend(row.device_id for row in page.rows)
            if (cursor := page.next) is None:
                return found

    def test_fleet_is_counted(self, store: BlockingStore) -> None:
        nothing: dict[str, Any] = {
            "incomplete": 0,
            "cloned": 0,
            "troubled": [],
            "streams_behind": 0,
            "events_missing": 0,
        }
        assert store.fleet() == Fleet(devices=StateCounts(), **nothing)
        for turn in range(3):
            sync(store, sync_event(NOON + turn, device="failing", failed=True))
        for name in ("well", "gone"):
            sync(store, sync_event(NOON, device=name))
        written(store, DeviceChange(device_id="gone", at_ms=NOON, retire=True))
        send(store, batch([1, 2], device="well"))
        send(store, batch([1, 4, 5], device="behind"))
        written(store, TokenCreate(scope="device", token_hash="t", at_ms=NOON, device_id="new"))
        fleet = store.fleet()
        assert fleet.devices == StateCounts(well=2, failing=1, new=1, retired=1)
        assert [(site.site, site.failing) for site in fleet.troubled] == [(None, 1)]
        assert (fleet.incomplete, fleet.streams_behind, fleet.events_missing) == (1, 1, 4)

    def test_missing_events_of_the_fleet_are_capped(self, store: BlockingStore) -> None:
        for number in range(3):
            send(store, batch([2**53 - 1], stream=f"s{number}"))
        assert store.fleet().events_missing == 2**53 - 1

    # Effective time.

    # Paging while devices change.

    def test_device_that_rises_while_a_caller_pages_is_not_lost(self, store: BlockingStore) -> None:
        for number, streak in enumerate([6, 5, 4, 3]):
            for minute in range(streak):
                sync(store, sync_event(NOON + minute, device=f"d{number}", failed=True))
        first = store.failures(limit=2)
        for minute in range(5):
            sync(store, sync_event(NOON + HOUR + minute, device="d3", failed=True, received_ms=NOON + 2 * DAY))
        seen = [row.device_id for row in first.rows]
        cursor = first.next
        while cursor is not None:
            page = store.failures(limit=2, cursor=cursor)
            seen += [row.device_id for row in page.rows]
            cursor = page.next
        assert seen == ["d0", "d1", "d2", "d3"]

    def test_retired_device_is_no_repeated_failure(self, store: BlockingStore) -> None:
        for minute in range(3):
            sync(store, sync_event(NOON + minute, failed=True))
        written(store, DeviceChange(device_id="pibook-1", at_ms=NOON, retire=True))
        for mode in ("consecutive", "total"):
            assert store.failures(mode=mode).rows == []
        assert store.failures(mode="total", since_ms=NOON).rows == []


def _minutes(rows: list[SyncEventRecord]) -> list[int]:
    return [int(row.timestamp[20:23]) for row in rows]

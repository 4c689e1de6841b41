"""Sync events: stored as sent, once for a key; the streak of failures right whatever order they arrive in."""

import pytest
from msgspec.structs import replace

from pisync_common.times import format_ms
from pisync_receiver.errors import BadCursor
from pisync_receiver.store import FailureRow, Fleet, Store, StoredSyncEvent, TokenCreate
from tests.support.stores.made import NOON, batch, report, send, tell, written


class ReportConformance:
    def test_a_report_comes_back_as_sent(self, store: Store) -> None:
        sent = report(NOON, failed=True, errors={"dns": 1, "tls": 1}, received_ms=NOON + 50, total_files_synced=120)
        outcome = tell(store, sent)
        assert (outcome.device_id, outcome.timestamp, outcome.at_ms) == ("pibook-1", format_ms(NOON), NOON)
        assert (outcome.total_files_synced, outcome.total_errors, outcome.internet_speed) == (120, 2, 2.5)
        assert (outcome.errors, outcome.received_ms) == ({"dns": 1, "tls": 1}, NOON + 50)
        (row,) = store.history("pibook-1").rows
        assert row == replace(outcome, crossing=None, consecutive_failures=0)

    @pytest.mark.parametrize("speed", [0, 5, 5.0, 5.25, 0.1, 10**9, 1e-9])
    def test_a_number_stays_what_it_was(self, store: Store, speed: float) -> None:
        tell(store, report(NOON, internet_speed=speed))
        (row,) = store.history("pibook-1").rows
        assert (row.internet_speed, type(row.internet_speed)) == (speed, type(speed))

    def test_each_report_without_a_key_is_a_new_one(self, store: Store) -> None:
        first, second = tell(store, report(NOON)), tell(store, report(NOON))
        assert second.id > first.id
        assert len(store.history("pibook-1").rows) == 2

    def test_a_key_used_again_returns_the_first_record(self, store: Store) -> None:
        first = tell(store, report(NOON, key="k"))
        again = tell(store, report(NOON + 5, key="k", failed=True, received_ms=NOON + 9))
        assert again == replace(first, consecutive_failures=0)
        device = store.device("pibook-1")
        assert device is not None
        assert (device.total_failures, device.last_contact_ms) == (0, NOON + 9)

    def test_a_key_twice_in_one_group_is_one_record(self, store: Store) -> None:
        first, second = store.write([report(NOON, key="k", failed=True), report(NOON, key="k", failed=True)])
        assert first.id == second.id  # type: ignore[union-attr]
        assert len(store.history("pibook-1").rows) == 1

    def test_a_key_belongs_to_its_device(self, store: Store) -> None:
        first = tell(store, report(NOON, key="k"))
        assert tell(store, report(NOON, key="k", device="pibook-2")).id != first.id

    # The streak.

    def test_a_streak_counts_and_ends(self, store: Store) -> None:
        for minute in range(4):
            tell(store, report(NOON + minute, failed=True, errors={"dns": minute + 1}))
        assert self._only_failure(store) == FailureRow(
            device_id="pibook-1",
            site=None,
            consecutive_failures=4,
            total_failures=4,
            failing_since_ms=NOON,
            last_sync_ms=NOON + 3,
            last_success_ms=None,
            last_errors={"dns": 4},
        )
        tell(store, report(NOON + 9))
        assert store.failures(min_failures=1).rows == ()
        device = store.device("pibook-1")
        assert device is not None
        assert (device.consecutive_failures, device.total_failures, device.failing_since_ms) == (0, 4, None)
        assert (device.last_sync_ms, device.last_success_ms, device.last_errors) == (NOON + 9, NOON + 9, {"dns": 4})

    def test_a_late_success_cuts_the_streak(self, store: Store) -> None:
        for minute in range(1, 6):
            tell(store, report(NOON + minute, failed=True))
        tell(store, report(NOON + 2))
        row = self._only_failure(store)
        assert (row.consecutive_failures, row.failing_since_ms, row.last_success_ms) == (3, NOON + 3, NOON + 2)

    def test_at_equal_times_the_success_is_the_newer(self, store: Store) -> None:
        tell(store, report(NOON, failed=True))
        tell(store, report(NOON))
        tell(store, report(NOON, failed=True))
        assert store.failures(min_failures=1).rows == ()

    def test_a_late_failure_before_the_newest_success_does_not_count(self, store: Store) -> None:
        tell(store, report(NOON + 5))
        tell(store, report(NOON + 4, failed=True))
        device = store.device("pibook-1")
        assert device is not None
        assert (device.consecutive_failures, device.total_failures, device.last_sync_ms) == (0, 1, NOON + 5)

    def test_a_late_success_sees_failures_of_its_own_group(self, store: Store) -> None:
        store.write([*(report(NOON + minute, failed=True) for minute in range(1, 6)), report(NOON + 3)])
        assert self._only_failure(store, 2).failing_since_ms == NOON + 4

    def test_the_alarm_and_the_recovery_are_told_once(self, store: Store) -> None:
        story = [(1, True), (2, True), (3, True), (4, True), (5, False), (6, False), (7, True)]
        outcomes = [tell(store, report(NOON + at, failed=failed)) for at, failed in story]
        assert [outcome.crossing for outcome in outcomes] == [None, None, "failing", None, "recovered", None, None]
        assert [outcome.consecutive_failures for outcome in outcomes] == [1, 2, 3, 4, 0, 0, 1]

    def test_a_repeat_crosses_nothing(self, store: Store) -> None:
        for minute in range(3):
            outcome = tell(store, report(NOON + minute, failed=True, key=f"k{minute}"))
        assert outcome.crossing == "failing"
        assert tell(store, report(NOON + 2, failed=True, key="k2")).crossing is None

    # Who keeps failing.

    def test_failures_come_worst_first_and_in_pages(self, store: Store) -> None:
        for number, streak in enumerate([3, 5, 4, 5, 2, 3, 3]):
            for minute in range(streak):
                tell(store, report(NOON + number + minute, device=f"d{number}", failed=True))
        assert self._devices(store) == ["d1", "d3", "d2", "d0", "d5", "d6"]
        assert self._devices(store, min_failures=5) == ["d1", "d3"]
        assert self._devices(store, limit=2) == ["d1", "d3", "d2", "d0", "d5", "d6"]
        assert store.failures(limit=6).next is None

    def test_devices_that_fail_equally_long_come_by_id(self, store: Store) -> None:
        for name in ("c", "a", "b"):
            for minute in range(3):
                tell(store, report(NOON + minute, device=name, failed=True))
        assert self._devices(store, limit=1) == ["a", "b", "c"]

    def test_failures_of_one_site(self, store: Store) -> None:
        for minute in range(3):
            tell(store, report(NOON + minute, failed=True))
        assert store.failures(site="elsewhere").rows == ()

    def test_total_counts_failures_between_successes(self, store: Store) -> None:
        for minute in range(6):
            tell(store, report(NOON + minute, device="flaky", failed=minute % 2 == 0))
            tell(store, report(NOON + minute, device="broken", failed=True))
            tell(store, report(NOON + minute, device="well"))
        assert self._devices(store) == ["broken"]
        assert self._devices(store, mode="total", limit=1) == ["broken", "flaky"]
        assert self._devices(store, mode="total", min_failures=4) == ["broken"]

    def test_total_since_counts_from_then_on(self, store: Store) -> None:
        for minute in range(6):
            tell(store, report(NOON + minute, device="a", failed=True))
            tell(store, report(NOON + minute, device="b", failed=minute > 2))
        page = store.failures(mode="total", since_ms=NOON + 3, min_failures=3)
        assert [(row.device_id, row.total_failures) for row in page.rows] == [("a", 3), ("b", 3)]
        assert self._devices(store, mode="total", since_ms=NOON + 3, limit=1) == ["a", "b"]
        assert store.failures(mode="total", since_ms=NOON + 4, min_failures=3).rows == ()

    @pytest.mark.parametrize("cursor", ["", "nonsense", "W10", "WzFd", "é", "WyJcdWQ4MDAiXQ", "1" * 400])
    def test_a_cursor_from_elsewhere_is_refused(self, store: Store, cursor: str) -> None:
        with pytest.raises(BadCursor):
            store.failures(cursor=cursor)
        with pytest.raises(BadCursor):
            store.history("pibook-1", cursor=cursor)

    # History.

    def test_history_is_newest_first_whatever_the_order_of_arrival(self, store: Store) -> None:
        for at in (3, 1, 2, 3, 5):
            tell(store, report(NOON + at))
        tell(store, report(NOON + 9, device="pibook-2"))
        rows = store.history("pibook-1").rows
        assert [row.at_ms - NOON for row in rows] == [5, 3, 3, 2, 1]
        assert rows[1].id > rows[2].id

    @pytest.mark.parametrize("limit", [1, 2, 3, 5])
    def test_history_comes_in_pages(self, store: Store, limit: int) -> None:
        for at in (3, 1, 2, 3, 5):
            tell(store, report(NOON + at))
        found: list[StoredSyncEvent] = []
        cursor = None
        while True:
            page = store.history("pibook-1", limit=limit, cursor=cursor)
            found.extend(page.rows)
            assert len(page.rows) <= limit
            if (cursor := page.next) is None:
                break
        assert found == list(store.history("pibook-1").rows)

    def test_history_can_be_narrowed(self, store: Store) -> None:
        for at in range(6):
            tell(store, report(NOON + at, failed=at % 2 == 1))

        def times(**narrowed: object) -> list[int]:
            return [row.at_ms - NOON for row in store.history("pibook-1", **narrowed).rows]  # type: ignore[arg-type]

        assert times(since_ms=NOON + 2) == [5, 4, 3, 2]
        assert times(until_ms=NOON + 2) == [1, 0]
        assert times(failed=True) == [5, 3, 1]
        assert times(failed=False, since_ms=NOON + 1, until_ms=NOON + 4) == [2]

    def test_nobody_has_no_history(self, store: Store) -> None:
        assert store.history("nobody").rows == ()
        assert store.device("nobody") is None

    def test_last_contact_is_the_newest_arrival(self, store: Store) -> None:
        tell(store, report(1, received_ms=NOON + 5))
        send(store, batch([1], received_ms=NOON + 3))
        device = store.device("pibook-1")
        assert device is not None
        assert (device.last_contact_ms, device.agent) == (NOON + 5, "pisync/0.1.0")

    def _only_failure(self, store: Store, min_failures: int = 3) -> FailureRow:
        (row,) = store.failures(min_failures=min_failures).rows
        return row

    def _devices(self, store: Store, **wanted: object) -> list[str]:
        """Over all pages."""
        found: list[str] = []
        cursor = None
        while True:
            page = store.failures(cursor=cursor, **wanted)  # type: ignore[arg-type]
            found.extend(row.device_id for row in page.rows)
            if (cursor := page.next) is None:
                return found

    def test_the_fleet_is_counted(self, store: Store) -> None:
        assert store.fleet() == Fleet(well=0, failing=0, unheard=0, streams_behind=0, events_missing=0)
        for turn in range(3):
            tell(store, report(NOON + turn, device="failing", failed=True))
        tell(store, report(NOON, device="well"))
        send(store, batch([1, 2], device="well"))
        send(store, batch([1, 4, 5], device="behind"))
        written(store, TokenCreate(role="device", token_hash="t", created_ms=NOON, device_id="unheard"))
        assert store.fleet() == Fleet(well=2, failing=1, unheard=1, streams_behind=1, events_missing=4)

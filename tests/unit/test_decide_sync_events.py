"""Sync events: streaks by effective time, idempotency keys, sites, and late successes; against a naive recount."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pisync_common.times import parse_ms
from pisync_receiver.domain.health import FAILURES_COUNTED, after_success
from pisync_receiver.domain.rows import Device, Health, StoredSyncEvent
from pisync_receiver.domain.sites import SITES_KEPT
from pisync_receiver.domain.submissions import DeviceChange, Submission, SyncEvent
from pisync_receiver.domain.times import AHEAD_MS, EARLIEST_MS, effective_ms
from tests.support.memory_store import MemoryStore
from tests.support.submissions import DEVICE, HOUR, MINUTE, NOON, batch, event, sync_event

THOROUGH = settings(max_examples=300, derandomize=True)
DEVICES = ("pibook-1", "pibook-2")
IN_1970 = 5 * MINUTE
IN_2099 = NOON + 73 * 366 * 24 * HOUR

claims = st.one_of(
    st.sampled_from([IN_1970, IN_2099, EARLIEST_MS, EARLIEST_MS - 1, NOON + AHEAD_MS]),
    st.integers(0, 8).map(lambda n: NOON - n * MINUTE),
)
sync_events = st.builds(
    sync_event,
    claims,
    total_errors=st.sampled_from([0, 0, 1, 1, 1, 2]),
    device=st.sampled_from(DEVICES),
    key=st.sampled_from([None, None, "k1", "k2", "k3"]),
    errors=st.sampled_from([None, {"dns": 1}, {"timeout": 2, "auth": 1}]),
    received_ms=st.integers(0, 5).map(lambda n: NOON + n * MINUTE),
)
groupings = st.lists(st.integers(1, 6), max_size=15)


def run(submissions: Sequence[Submission], sizes: Sequence[int]) -> tuple[MemoryStore, list[object]]:
    store, outcomes, rest = MemoryStore(), list[object](), list(submissions)
    for size in [*sizes, len(rest)]:
        group, rest = rest[:size], rest[size:]
        outcomes += store.run(*group) if group else []
    return store, outcomes


def recounted(rows: Sequence[StoredSyncEvent]) -> tuple[int, int, int | None, int | None, int | None]:
    """Streak, failures, start of the streak, newest sync event and newest success, from a whole history in the order of
    arrival."""
    successes = [row.at_ms for row in rows if row.total_errors == 0]
    failures = [row.at_ms for row in rows if row.total_errors > 0]
    ends = [
        row.at_ms if parse_ms(row.timestamp) == row.at_ms else max(earlier, default=EARLIEST_MS - 1)
        for place, row in enumerate(rows)
        if row.total_errors == 0
        for earlier in [[other.at_ms for other in rows[:place] if other.total_errors > 0]]
    ]
    streak = [ms for ms in failures if ms > max(ends, default=EARLIEST_MS - 1)]
    return (
        len(streak),
        len(failures),
        min(streak, default=None),
        max((row.at_ms for row in rows), default=None),
        max(successes, default=None),
    )


def check_streaks(store: MemoryStore) -> None:
    for device_id, device in store.devices.items():
        rows = sorted((row for row in store.sync_events.values() if row.device_id == device_id), key=lambda row: row.id)
        found = (
            device.consecutive_failures,
            device.total_failures,
            device.failing_since_ms,
            device.last_sync_ms,
            device.last_success_ms,
        )
        assert found == recounted(rows)
        failures = [row for row in rows if row.total_errors > 0]
        newest = [row.errors for row in failures if row.at_ms == max(each.at_ms for each in failures)]
        assert device.last_errors == (newest[-1] if newest else None)


@THOROUGH
@given(events=st.lists(sync_events, max_size=16), sizes=groupings)
def test_streaks_equal_a_recount_of_the_history(events: list[SyncEvent], sizes: list[int]) -> None:
    store, outcomes = run(events, sizes)
    check_streaks(store)
    firsts: dict[tuple[str, str], object] = {}
    for sent, row in zip(events, outcomes, strict=True):
        assert isinstance(row, StoredSyncEvent)
        assert store.sync_events[row.device_id, row.id] == row
        if sent.idempotency_key is not None:
            assert firsts.setdefault((sent.device_id, sent.idempotency_key), row) == row, "a repeat returns the first"
        else:
            assert row.at_ms == effective_ms(sent.claimed_ms, sent.received_ms)
    assert len(store.sync_events) == len(firsts) + sum(each.idempotency_key is None for each in events)


@THOROUGH
@given(events=st.lists(sync_events, max_size=16), sizes=groupings)
def test_grouping_changes_no_streak(events: list[SyncEvent], sizes: list[int]) -> None:
    singly, single_outcomes = run(events, [1] * len(events))
    grouped, outcomes = run(events, sizes)
    assert grouped.devices == singly.devices
    assert list(map(_without_id, outcomes)) == list(map(_without_id, single_outcomes))
    assert list(map(_without_id, grouped.sync_events.values())) == list(map(_without_id, singly.sync_events.values()))
    assert sorted(grouped.sync_events) == sorted(grouped.sync_events, key=lambda key: (key[0], key[1]))


def _without_id(row: object) -> object:
    """Ids are taken for each submission of a group, used or not."""
    assert isinstance(row, StoredSyncEvent)
    return tuple(getattr(row, name) for name in row.__struct_fields__ if name != "id")


@settings(max_examples=200, derandomize=True)
@given(events=st.permutations([sync_event(NOON - n * MINUTE, total_errors=n % 3) for n in range(9)]))
def test_the_order_of_arrival_makes_no_difference(events: list[SyncEvent]) -> None:
    store, _ = run(events, [1] * 9)
    device = store.devices[DEVICE]
    assert (device.consecutive_failures, device.total_failures, device.failing_since_ms) == (0, 6, None)
    assert device.last_success_ms == NOON


@pytest.mark.parametrize(
    ("claimed_ms", "at_ms"),
    [
        (NOON - HOUR, NOON - HOUR),
        (NOON + AHEAD_MS, NOON + AHEAD_MS),
        (NOON + AHEAD_MS + 1, NOON),
        (IN_2099, NOON),
        (EARLIEST_MS, EARLIEST_MS),
        (EARLIEST_MS - 1, NOON),
        (IN_1970, NOON),
    ],
)
def test_an_implausible_claim_counts_at_the_time_of_receipt(claimed_ms: int, at_ms: int) -> None:
    (row,) = MemoryStore().run(sync_event(claimed_ms))
    assert isinstance(row, StoredSyncEvent)
    assert row.at_ms == at_ms


def test_a_success_in_2099_hides_no_failure_that_arrives_later() -> None:
    store = MemoryStore()
    store.run(sync_event(IN_2099))
    for day in range(5):
        store.run(sync_event(NOON - (9 - day) * 24 * HOUR, total_errors=1))
    assert store.devices[DEVICE].consecutive_failures == 5


def test_a_success_in_2099_ends_the_streak_that_is_known() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON - HOUR, total_errors=1), sync_event(NOON, total_errors=1))
    store.run(sync_event(IN_2099))
    assert store.devices[DEVICE].consecutive_failures == 0


def test_a_success_in_order_asks_for_no_history() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON, failed=True), sync_event(NOON + 1, failed=True))
    store.exchanges = 0
    store.run(sync_event(NOON + 2))
    store.run(sync_event(NOON + 1))
    store.run(sync_event(NOON, failed=True))
    assert store.exchanges == 3


def test_an_equally_old_success_ends_the_streak_without_history() -> None:
    def history() -> tuple[int, int | None]:
        raise AssertionError("history was asked")

    failing = Health(consecutive_failures=1, total_failures=1, failing_since_ms=5, last_failure_ms=5, last_sync_ms=5)
    assert after_success(failing, 5, history).consecutive_failures == 0


def test_a_very_long_streak_after_a_late_success_is_counted_up_to_a_limit() -> None:
    store = MemoryStore()
    for n in range(FAILURES_COUNTED + 5):
        store.run(sync_event(NOON + n, failed=True))
    store.run(sync_event(NOON + MINUTE, failed=True), sync_event(NOON - 1), sync_event(NOON - 2, failed=True))
    device = store.devices[DEVICE]
    assert (device.consecutive_failures, device.failing_since_ms) == (FAILURES_COUNTED, NOON)


def test_sync_events_of_a_group_get_ascending_ids() -> None:
    store = MemoryStore()
    rows = store.run(
        sync_event(NOON, key="k"),
        sync_event(NOON, key="k"),
        sync_event(NOON, failed=True),
        sync_event(NOON, failed=True, device="other"),
    )
    ids = [row.id for row in rows if isinstance(row, StoredSyncEvent)]
    assert (ids[0], ids[1] < ids[2] < ids[3]) == (ids[1], True)


def test_a_repeated_key_keeps_the_first_record_and_counts_as_contact() -> None:
    store = MemoryStore()
    first = store.run(sync_event(NOON, failed=True, key="k"))
    again = store.run(sync_event(NOON, key="k", received_ms=NOON + HOUR))
    assert again == first
    assert store.devices[DEVICE].last_contact_ms == NOON + HOUR
    assert store.devices[DEVICE].total_failures == 1


# Sites.

moves = st.tuples(st.sampled_from(["north", "south", "east"]), st.integers(0, 20), st.booleans())
things = st.lists(moves | st.tuples(st.none(), st.integers(0, 20), st.booleans()), min_size=1, max_size=14)


@THOROUGH
@given(things=things, sizes=groupings)
def test_everything_has_the_site_of_its_time(things: list[tuple[str | None, int, bool]], sizes: list[int]) -> None:
    """Moves at any moment (also backdated) between events and sync events of any time."""
    submissions: list[Submission] = [sync_event(NOON)]
    expected: list[str | None] = [None]
    places: list[tuple[int, str]] = []
    """Since when the device is where, ascending."""
    for seq, (site, minute, flag) in enumerate(things, 1):
        at_ms = NOON + minute * MINUTE
        if site is not None:
            backdated = at_ms if flag else None
            now_ms = NOON + 10 * MINUTE
            if flag or not places or places[-1][1] != site:
                since_ms = at_ms if flag else now_ms
                kept = [each for each in places if each[0] < since_ms]
                first = [(0, places[0][1])] if places and not kept else []
                places = [*first, *kept, (since_ms, site)] if places else [(0, site)]
            submissions.append(DeviceChange(device_id=DEVICE, site=site, site_since_ms=backdated, at_ms=now_ms))
            continue
        where = next((name for since_ms, name in reversed(places) if since_ms <= at_ms), None)
        expected.append(where)
        if flag:
            submissions.append(sync_event(at_ms, received_ms=NOON + HOUR))
        else:
            one = event(seq, learner_id="s-17", occurred_ms=at_ms, clock_synced=True)
            submissions.append(batch([one], stream=f"stream-{seq}", received_ms=NOON + HOUR))
    store, _ = run(submissions, sizes)
    rows = {("event", row.stream): row.site for row in store.events.values()}
    rows |= {("sync event", str(at)): row.site for at, row in enumerate(store.sync_events.values())}
    sync_sites = iter(store.sync_events.values())
    found: list[str | None] = []
    for each in submissions:
        if isinstance(each, SyncEvent):
            found.append(next(sync_sites).site)
        elif not isinstance(each, DeviceChange):
            found.append(rows["event", each.stream])  # type: ignore[union-attr]
    assert found == expected
    assert all(row.learner_home == row.site for row in store.events.values())


def test_a_first_site_counts_for_the_past() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON))
    store.run(DeviceChange(device_id=DEVICE, site="north", at_ms=NOON + HOUR))
    (row,) = store.run(sync_event(NOON - HOUR))
    assert isinstance(row, StoredSyncEvent)
    assert row.site == "north"


def test_the_date_of_a_move_can_be_corrected() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON))
    store.run(DeviceChange(device_id=DEVICE, site="north", at_ms=NOON))
    store.run(DeviceChange(device_id=DEVICE, site="south", at_ms=NOON))
    store.run(DeviceChange(device_id=DEVICE, site="south", site_since_ms=NOON - HOUR, at_ms=NOON))
    rows = store.run(sync_event(NOON - MINUTE), sync_event(NOON - HOUR), sync_event(NOON - HOUR - 1))
    assert [row.site for row in rows if isinstance(row, StoredSyncEvent)] == ["south", "south", "north"]


def test_a_backdated_move_replaces_the_moves_after_it() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON))
    for site, minute in (("north", 0), ("south", 100), ("east", 50), ("west", 200)):
        store.run(DeviceChange(device_id=DEVICE, site=site, site_since_ms=NOON + minute * MINUTE, at_ms=NOON))
    later = (sync_event(NOON + minute * MINUTE, received_ms=NOON + 5 * HOUR) for minute in (49, 50, 150, 200))
    rows = store.run(*later)
    assert [row.site for row in rows if isinstance(row, StoredSyncEvent)] == ["north", "east", "east", "west"]


def test_a_change_to_the_same_site_without_a_date_is_no_move() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON))
    store.run(*(DeviceChange(device_id=DEVICE, site=site, at_ms=NOON) for site in ("north", "south")))
    before = store.devices[DEVICE]
    (after,) = store.run(DeviceChange(device_id=DEVICE, site="south", at_ms=NOON + HOUR))
    assert isinstance(after, Device)
    assert (after.site_since_ms, after.site_history) == (before.site_since_ms, before.site_history)


def test_earlier_sites_are_kept_up_to_a_limit() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON))
    for n in range(SITES_KEPT + 10):
        store.run(DeviceChange(device_id=DEVICE, site=f"site-{n}", at_ms=NOON + n * MINUTE))
    device = store.devices[DEVICE]
    assert isinstance(device, Device)
    assert (device.site_history or "").count("site-") == SITES_KEPT
    rows = store.run(sync_event(NOON + 1, received_ms=NOON + HOUR), sync_event(NOON + HOUR, received_ms=NOON + HOUR))
    assert [row.site for row in rows if isinstance(row, StoredSyncEvent)] == ["site-9", f"site-{SITES_KEPT + 9}"]


def test_a_learner_belongs_to_the_site_unless_another_home_was_sent() -> None:
    store = MemoryStore()
    store.run(sync_event(NOON), DeviceChange(device_id=DEVICE, site="north", at_ms=NOON))
    store.run(batch([event(1), event(2, learner_home="south"), event(3, learner_id=None)]))
    assert [row.learner_home for row in store.events.values()] == ["north", "south", None]

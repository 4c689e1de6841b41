"""Best times whatever clocks claim, and boots that were alive at once."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pisync_common.limits import SEQ_MAX
from pisync_common.times import parse_ms
from pisync_receiver.domain.rows import StoredEvent
from pisync_receiver.domain.state import BOOTS_KEPT, OVERLAP_MS
from pisync_receiver.domain.submissions import Event, EventBatch
from pisync_receiver.domain.times import AHEAD_MS, CORRECTED, EARLIEST_MS, ESTIMATED, SYNCED, shown
from tests.support.memory_store import MemoryStore
from tests.support.submissions import DEVICE, HOUR, MINUTE, NOON, STREAM, batch, event, stamp

THOROUGH = settings(max_examples=250, derandomize=True)
FIRST_MS = parse_ms("0001-01-01T00:00:00Z")
LAST_MS = parse_ms("9999-12-31T23:59:59.999Z")

any_time = st.one_of(
    st.integers(FIRST_MS, LAST_MS),
    st.sampled_from([FIRST_MS, LAST_MS, 0, EARLIEST_MS, EARLIEST_MS - 1, NOON, NOON + AHEAD_MS, NOON + AHEAD_MS + 1]),
    st.integers(-HOUR, HOUR).map(lambda ms: NOON + ms),
)
any_boottime = st.one_of(
    st.integers(0, SEQ_MAX), st.sampled_from([0, SEQ_MAX, 10 * 366 * 24 * HOUR]), st.integers(0, HOUR)
)
any_boot = st.none() | st.tuples(st.sampled_from(["boot-1", "boot-2"]), any_boottime)
any_event = st.builds(
    event,
    st.integers(1, 12),
    occurred_ms=any_time,
    recorded_ms=st.none() | any_time,
    boot=any_boot,
    clock_synced=st.booleans(),
)
any_batch = st.builds(
    batch,
    st.lists(any_event, max_size=6),
    sent=st.none() | st.builds(stamp, st.sampled_from(["boot-1", "boot-2"]), any_boottime),
    received_ms=st.integers(0, 3).map(lambda n: NOON + n * HOUR),
)


def stored(*batches: EventBatch) -> dict[int, StoredEvent]:
    """Run batches one after the other, and return the stored events by seq."""
    store = MemoryStore()
    for each in batches:
        store.run(each)
    return {row.seq: row for row in store.events.values()}


def found(*batches: EventBatch) -> dict[int, tuple[int, int]]:
    """Minutes after noon and quality, by seq."""
    return {seq: ((row.best_ms - NOON) // MINUTE, row.quality) for seq, row in stored(*batches).items()}


@THOROUGH
@given(batches=st.lists(any_batch, min_size=1, max_size=5))
def test_every_best_time_is_plausible(batches: list[EventBatch]) -> None:
    for row in stored(*batches).values():
        assert EARLIEST_MS <= row.best_ms <= row.received_ms + AHEAD_MS
        assert row.quality in (SYNCED, CORRECTED, ESTIMATED)
        assert parse_ms(shown(row.best_ms)) == row.best_ms


@THOROUGH
@given(ms=st.integers(-(2**63), 2**63 - 1))
@example(ms=-(2**63))
@example(ms=2**63 - 1)
@example(ms=FIRST_MS - 1)
@example(ms=LAST_MS + 1)
def test_any_stored_time_can_be_shown(ms: int) -> None:
    assert parse_ms(shown(ms)) == min(max(ms, FIRST_MS), LAST_MS)


@THOROUGH
@given(
    steps=st.lists(st.integers(0, 2 * HOUR), min_size=1, max_size=12),
    claimed_ms=any_time,
    known=st.booleans(),
    cut=st.integers(0, 12),
    jump=st.integers(-HOUR, HOUR),
)
def test_the_events_of_a_boot_keep_their_order(
    steps: list[int], claimed_ms: int, known: bool, cut: int, jump: int
) -> None:
    """Whatever the clock says and however it jumps, in one batch or two."""
    boottime_ms, events = 0, []
    for seq, step in enumerate(steps, 1):
        boottime_ms += step
        claim = min(max(claimed_ms + boottime_ms + (jump if seq > 3 else 0), FIRST_MS), LAST_MS)
        events.append(event(seq, occurred_ms=claim, boot=("boot-1", boottime_ms)))
    sent = stamp("boot-1", boottime_ms) if known else None
    parts = [batch(part, sent=sent, received_ms=NOON) for part in (events[:cut], events[cut:]) if part]
    rows = stored(*parts)
    times = [rows[seq].best_ms for seq in range(1, len(events) + 1)]
    assert times == sorted(times)
    assert {row.quality for row in rows.values()} == {CORRECTED if known else ESTIMATED}
    if known:
        assert times == [max(NOON - boottime_ms + (each.boottime_ms or 0), EARLIEST_MS) for each in events]


def at(seq: int, minute: int, *, synced: bool = False, boot_id: str | None = None) -> Event:
    """An event that claims to have occurred some minutes after noon."""
    boot = None if boot_id is None else (boot_id, seq)
    return event(seq, occurred_ms=NOON + minute * MINUTE, boot=boot, clock_synced=synced)


def test_a_boot_is_remembered_from_one_batch_to_the_next() -> None:
    first = batch([event(1, boot=("a", MINUTE))], sent=stamp("a", 10 * MINUTE), received_ms=NOON + 10 * MINUTE)
    left_over = event(2, boot=("a", 20 * MINUTE), occurred_ms=5)
    later = batch([left_over], sent=stamp("b", MINUTE), received_ms=NOON + 60 * MINUTE)
    assert found(first, later) == {1: (1, CORRECTED), 2: (20, CORRECTED)}


def test_the_earliest_arrival_of_a_boot_is_the_best() -> None:
    """A batch can only be late, and a late one must not move what came before."""
    late = batch(sent=stamp("a", MINUTE), received_ms=NOON + 30 * MINUTE)
    start = batch([event(1, boot=("a", 0))], sent=stamp("a", 2 * MINUTE), received_ms=NOON + 2 * MINUTE)
    slow = batch([event(2, boot=("a", MINUTE))], sent=stamp("a", 3 * MINUTE), received_ms=NOON + 40 * MINUTE)
    assert found(late, start, slow) == {1: (0, CORRECTED), 2: (1, CORRECTED)}


def test_a_synchronised_event_corrects_the_others_of_its_boot() -> None:
    synced = event(2, occurred_ms=NOON + 5 * MINUTE, boot=("a", 5 * MINUTE), clock_synced=True)
    assert found(batch([event(1, occurred_ms=5, boot=("a", 2 * MINUTE)), synced])) == {
        1: (2, CORRECTED),
        2: (5, SYNCED),
    }


def test_a_boot_time_beyond_ten_years_says_nothing() -> None:
    nanoseconds = event(1, occurred_ms=NOON - MINUTE, boot=("a", 10**15))
    assert found(batch([nanoseconds], sent=stamp("a", 10**15))) == {1: (-1, ESTIMATED)}
    assert found(batch([nanoseconds], sent=stamp("a", MINUTE))) == {1: (-1, ESTIMATED)}
    minutes = event(1, occurred_ms=NOON - MINUTE, boot=("a", 10 * MINUTE))
    assert found(batch([minutes], sent=stamp("a", 10**15))) == {1: (-1, ESTIMATED)}


def test_the_event_before_a_batch_bounds_it() -> None:
    assert found(batch([at(1, -30, synced=True)]), batch([at(2, -500), at(3, -499)])) == {
        1: (-30, SYNCED),
        2: (-30, ESTIMATED),
        3: (-29, ESTIMATED),
    }


def test_a_boot_is_not_moved_by_the_clock_of_the_boot_before() -> None:
    wrong = at(2, -500, boot_id="a"), at(3, -499, boot_id="a")
    right = at(4, -9, boot_id="b"), at(5, -8, boot_id="b")
    minutes = found(batch([at(1, -60, synced=True), *wrong, *right]))
    assert [minute for minute, _ in minutes.values()] == [-60, -60, -59, -9, -8]


def test_a_batch_that_fills_a_gap_lies_between_its_neighbours() -> None:
    ends = batch([at(1, -20, synced=True), at(4, -10, synced=True)])
    minutes = found(ends, batch([at(2, -500), at(3, 500)]))
    assert (minutes[2], minutes[3]) == ((-20, ESTIMATED), (-10, ESTIMATED))


def test_an_estimate_never_goes_back_behind_what_came_before() -> None:
    """The kernel may move a synchronised clock back a little."""
    assert found(batch([at(1, -10, synced=True), at(2, -20, synced=True), at(3, -500)]))[3] == (-10, ESTIMATED)


def test_a_batch_that_filled_a_gap_does_not_bound_the_next() -> None:
    ends = batch([at(1, -20, synced=True), at(4, -10, synced=True)])
    minutes = found(ends, batch([at(2, -15, synced=True)]), batch([at(5, -500)]))
    assert minutes[5] == (-10, ESTIMATED)


def test_a_known_time_bounds_the_estimates_before_it() -> None:
    assert found(batch([at(1, -5), at(2, -30, synced=True)]))[1] == (-30, ESTIMATED)


def test_a_late_import_keeps_its_distance_to_the_moment_of_recording() -> None:
    imported = event(
        1, occurred_ms=MINUTE, recorded_ms=61 * MINUTE, boot=("a", 10 * MINUTE)
    )  # an hour before, by a clock that began in 1970
    assert found(batch([imported], sent=stamp("a", 10 * MINUTE))) == {1: (-60, CORRECTED)}


def test_an_apps_time_ahead_of_the_devices_clock_is_taken_as_it_is() -> None:
    browser = event(1, occurred_ms=NOON - MINUTE, recorded_ms=10 * MINUTE, boot=("a", 10 * MINUTE))
    assert found(batch([browser], sent=stamp("a", 10 * MINUTE))) == {1: (-1, CORRECTED)}


# Boots alive at once.


def contact(boot_id: str, minute: int, boottime_minutes: int, seq: int) -> EventBatch:
    sent = stamp(boot_id, boottime_minutes * MINUTE)
    return batch([event(seq)], sent=sent, received_ms=NOON + minute * MINUTE)


def cloned_since(*contacts: EventBatch) -> int | None:
    """When the device was first seen as two, in minutes after noon."""
    store = MemoryStore()
    store.run(*contacts)
    since_ms = store.devices[DEVICE].cloned_since_ms
    return None if since_ms is None else (since_ms - NOON) // MINUTE


def test_a_reboot_is_no_clone() -> None:
    assert cloned_since(contact("a", 10, 10, 1), contact("b", 12, 1, 2), contact("c", 90, 60, 3)) is None


def test_two_boots_that_take_turns_are_a_clone() -> None:
    assert cloned_since(contact("a", 10, 10, 1), contact("b", 12, 10, 2), contact("a", 14, 14, 3)) == 12


def test_a_boot_that_comes_back_is_a_clone() -> None:
    assert cloned_since(contact("a", 10, 10, 1), contact("b", 13, 1, 2), contact("a", 20, 20, 3)) == 20


def test_a_batch_on_its_way_for_long_hides_no_clone() -> None:
    assert cloned_since(contact("a", 100, 100, 1), contact("a", 101, 10, 2), contact("b", 110, 60, 3)) == 110


def test_a_reboot_meanwhile_hides_no_clone() -> None:
    reboot = batch([event(3)], sent=stamp("c", MINUTE // 4), received_ms=NOON + 120 * MINUTE)
    assert cloned_since(contact("b", 60, 10, 1), contact("a", 110, 10, 2), reboot, contact("b", 120, 70, 4)) == 120


def test_clones_far_apart_in_time_are_seen() -> None:
    boots = [contact(f"boot-{n}", 100 + n * 10, 5, n + 1) for n in range(BOOTS_KEPT - 1)]
    assert cloned_since(contact("a", 10, 10, 90), *boots, contact("a", 300, 300, 91)) == 300


@pytest.mark.parametrize(("overlap_ms", "flagged"), [(OVERLAP_MS, False), (OVERLAP_MS + 1, True)])
def test_a_slow_upload_is_no_clone(overlap_ms: int, flagged: bool) -> None:
    store = MemoryStore()
    store.run(contact("a", 10, 10, 1))
    began_ms = NOON + 10 * MINUTE - overlap_ms
    store.run(batch([event(2)], sent=stamp("b", HOUR), received_ms=began_ms + HOUR))
    assert (store.devices[DEVICE].cloned_since_ms is not None) == flagged


def test_boots_of_other_streams_and_devices_are_no_clone() -> None:
    others = [replace(contact("b", 12, 10, 2), stream="other"), replace(contact("b", 12, 10, 2), device_id="other")]
    assert cloned_since(contact("a", 10, 10, 1), *others, contact("a", 14, 14, 3)) is None


def test_a_senseless_boot_time_is_no_clone() -> None:
    assert cloned_since(contact("a", 10, 10, 1), batch([event(2)], sent=stamp("b", SEQ_MAX))) is None


@settings(max_examples=200, derandomize=True)
@given(lives=st.lists(st.tuples(st.integers(2, 600), st.integers(0, 600)), min_size=1, max_size=15), sent=st.data())
def test_reboots_never_look_like_clones_and_few_boots_are_kept(
    lives: list[tuple[int, int]], sent: st.DataObject
) -> None:
    """Boots one after the other, each sending at a few moments; deliveries take up to the tolerated time."""
    store, now_ms, seq = MemoryStore(), NOON, 0
    for boot, (minutes, pause) in enumerate(lives):
        for minute in sorted(sent.draw(st.lists(st.integers(1, minutes), min_size=1, max_size=3))):
            seq += 1
            delay_ms = sent.draw(st.integers(0, OVERLAP_MS))
            store.run(
                batch(
                    [event(seq)],
                    sent=stamp(f"boot-{boot}", minute * MINUTE),
                    received_ms=now_ms + minute * MINUTE + delay_ms,
                )
            )
        now_ms += (minutes + pause) * MINUTE
    stream = store.streams[DEVICE, STREAM]
    assert store.devices[DEVICE].cloned_since_ms is None
    boots = json.loads(stream.boots)
    assert [name for name, _, _ in boots] == [f"boot-{n}" for n in range(len(lives))][-BOOTS_KEPT:]


@settings(max_examples=200, derandomize=True)
@given(turns=st.lists(st.booleans(), min_size=4, max_size=12), start=st.integers(5, 600))
def test_two_cards_in_use_at_once_are_flagged(turns: list[bool], start: int) -> None:
    """Two devices, one booted some time after the other, that both send every ten minutes or so."""
    turns = [*turns, True, False, True]
    contacts = [
        batch(
            [event(seq)],
            sent=stamp(f"boot-{int(turn)}", (start + seq * 10 - (start if turn else 0)) * MINUTE),
            received_ms=NOON + (start + seq * 10) * MINUTE,
        )
        for seq, turn in enumerate(turns, 1)
    ]
    store = MemoryStore()
    for each in contacts:
        store.run(each)
    assert store.devices[DEVICE].cloned_since_ms is not None

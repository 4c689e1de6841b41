"""No room: refused loudly, nothing lost, and delivery makes room. The real disk is in tests/integration."""

from pathlib import Path

import pytest

from pisync_agent.errors import AgentError, OutboxFull
from pisync_agent.outbox import disk
from pisync_agent.outbox.models import OutboxLimits, QueuedSyncEvent
from pisync_agent.outbox.outbox import Outbox, open_outbox
from tests.support.outboxes import STAMP, Faults, deliver, event, events, full_disk, opened, receipt, seqs

SMALL = OutboxLimits(max_bytes=256 * 1024, keep_delivered_bytes=64 * 1024)


def fill(outbox: Outbox) -> int:
    """Record until there is no room; how many were recorded."""
    for number in range(1, 10_000):
        try:
            outbox.append([event(number, size=500)])
        except OutboxFull:
            return number - 1
    raise AssertionError("never full")


def test_outbox_full_says_what_is_kept_and_what_to_do(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=SMALL)
    recorded = fill(outbox)
    assert recorded > 100
    with pytest.raises(OutboxFull) as error:
        outbox.append(events(1, size=500))
    text = str(error.value)
    for part in ("nothing was recorded", "is kept", f"{recorded} events pending", "pisync sync", "0.2 MiB"):
        assert part in text, text
    assert seqs(outbox) == list(range(1, recorded + 1))
    assert outbox.path.stat().st_size <= SMALL.max_bytes
    outbox.close()


def test_events_that_fit_are_recorded_when_the_group_does_not(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=SMALL)
    fill(outbox)
    deliver(outbox, 40)
    outbox.trim()
    last = outbox.state().last_seq
    large = [event(number, size=60_000) for number in range(8)]
    results = outbox.append([*large[:3], event(101), *large[3:], event(102)])
    assert [isinstance(result, OutboxFull) for result in results].count(True) >= 5
    recorded = [result for result in results if isinstance(result, int)]
    assert recorded == list(range(last + 1, last + 1 + len(recorded)))
    assert isinstance(results[3], int)
    assert isinstance(results[-1], int)
    assert seqs(outbox)[-1] == recorded[-1]
    outbox.close()


def test_delivered_events_are_deleted_to_make_room(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=SMALL)
    recorded = fill(outbox)
    deliver(outbox, recorded // 2)
    assert outbox.append([event(size=500)]) == [recorded + 1]
    state = outbox.state()
    assert 1 < state.kept_from <= recorded // 2 + 1
    assert state.waiting == recorded + 1 - recorded // 2
    # And not for one event only.
    for _ in range(10):
        outbox.append([event(size=500)])
    outbox.close()


def test_a_full_outbox_can_be_drained_to_the_end_and_filled_again(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=SMALL)
    for _ in range(3):
        fill(outbox)
        last = outbox.state().last_seq
        while outbox.delivered < last:
            batch = [seq for seq, _ in outbox.read(outbox.delivered, max_events=20, max_bytes=10**6)]
            outbox.settle(receipt(outbox, batch[-1], rejected=[(batch[0], "invalid_event")]), batch)
        assert outbox.trim() > 0
    assert outbox.append(events(1)) != []
    outbox.close()


def test_a_full_outbox_accepts_sync_events_notes_and_dead_letters(tmp_path: Path) -> None:
    outbox = opened(tmp_path, limits=SMALL)
    fill(outbox)
    for number in range(50):
        outbox.add_sync_event(QueuedSyncEvent(key=f"r{number}", stamp=STAMP, files=0, errors={"timeout": 1}))
    outbox.set_note("last_run", "x" * 4000)
    outbox.move_to_dead_letters(1, "too_large", "x" * 4000)
    assert outbox.state().sync_events_waiting == 50
    assert outbox.delivered == 1
    outbox.close()


def test_never_more_than_half_of_what_is_free(tmp_path: Path) -> None:
    for name in ("new", "opened again"):
        outbox = opened(tmp_path, disk=600_000)
        fill(outbox)
        assert 200_000 < outbox.path.stat().st_size <= 300_000 + 10 * 4096, name
        outbox.close()


def test_the_files_own_space_is_used_when_the_disk_is_full(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append(events(500, size=500))
    deliver(outbox, 400)
    outbox.close()
    outbox = opened(tmp_path, disk=0)
    assert outbox.append(events(20, size=500)) == list(range(501, 521))
    outbox.close()


def test_the_cap_follows_the_free_disk(tmp_path: Path) -> None:
    free = [100_000]
    outbox = open_outbox(tmp_path, free_bytes=lambda folder: free[0])
    free[0] = 0
    recorded = fill(outbox)
    free[0] = 10_000_000
    assert outbox.append([event(size=500)]) == [recorded + 1]
    outbox.close()


def test_the_reserve_is_spent_when_bookkeeping_finds_no_room(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)
    outbox.append(events(5))
    reserve = tmp_path / "outbox.reserve"
    assert reserve.stat().st_size == disk.RESERVE_BYTES
    seen: list[bool] = []

    def full_while_reserved(sql: str) -> None:
        if sql.startswith("UPDATE pointers"):
            seen.append(reserve.exists())
            if reserve.exists():
                raise full_disk()

    faults.fault = full_while_reserved
    assert outbox.settle(receipt(outbox, 4), [1, 2, 3, 4]) == 4
    assert seen[-1] is False
    assert not outbox._unsaved.any
    assert reserve.exists()
    outbox.close()


def test_recording_never_takes_the_reserve(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)

    def full(sql: str) -> None:
        if sql.startswith("INSERT INTO events"):
            raise full_disk()

    faults.fault = full
    with pytest.raises(OutboxFull):
        outbox.append(events(1))
    assert (tmp_path / "outbox.reserve").exists()
    outbox.close()


def test_full_while_opening_spends_the_reserve(tmp_path: Path) -> None:
    faults = Faults()
    opened(tmp_path).close()
    reserve = tmp_path / "outbox.reserve"

    def full(sql: str) -> None:
        if reserve.exists():
            raise full_disk()

    faults.fault = full
    outbox = opened(tmp_path, connect=faults.connect)
    faults.fault = lambda sql: None
    assert outbox.append(events(1)) == [1]
    outbox.close()


def test_full_at_the_commit_records_nothing(tmp_path: Path) -> None:
    faults = Faults()
    outbox = opened(tmp_path, connect=faults.connect)

    def full(sql: str) -> None:
        if sql == "COMMIT":
            raise full_disk()

    faults.fault = full
    with pytest.raises(OutboxFull):
        outbox.append(events(3))
    faults.fault = lambda sql: None
    found: list[int | AgentError] = outbox.append(events(1))
    assert found == [1]
    outbox.close()

"""The queue of sync events."""

from pathlib import Path

from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.sync_event_rows import SYNC_EVENTS_KEPT
from pisync_common.models import Stamp
from tests.support.outboxes import STAMP, opened


def sync_event(number: int, *, failed: bool = True, files: int = 0) -> QueuedSyncEvent:
    stamp = Stamp(at_ms=number, boot_id=STAMP.boot_id, boottime_ms=number, clock_synced=True)
    return QueuedSyncEvent(
        key=f"r{number}", stamp=stamp, files=files, errors={"timeout": 2} if failed else {}, speed=0.5
    )


def test_sync_events_are_kept_in_order_until_they_are_deleted(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.add_sync_event(sync_event(1))
    outbox.add_sync_event(sync_event(2, failed=False, files=7))
    outbox.close()
    outbox = opened(tmp_path)
    first = outbox.next_sync_event()
    assert first is not None
    assert (first.key, first.stamp, dict(first.errors), first.speed, first.runs) == (
        "r1", sync_event(1).stamp, {"timeout": 2}, 0.5, 1,
    )  # fmt: skip
    assert outbox.next_sync_event() == first
    outbox.delete_sync_event(first.id or 0)
    outbox.delete_sync_event(first.id or 0)
    second = outbox.next_sync_event()
    assert second is not None
    assert (second.key, second.files, second.failed) == ("r2", 7, False)
    assert outbox.state().sync_events_waiting == 1
    outbox.close()


def test_beyond_500_the_newest_stands_for_several_runs_and_nothing_is_lost(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(SYNC_EVENTS_KEPT + 50):
        outbox.add_sync_event(sync_event(number, failed=number != 3, files=1))
    assert outbox.state().sync_events_waiting == SYNC_EVENTS_KEPT
    found = []
    while (each := outbox.next_sync_event()) is not None:
        found.append(each)
        outbox.delete_sync_event(each.id or 0)
    # The oldest may be in flight: it stays as it is.
    assert [each.runs for each in found] == [1] * (SYNC_EVENTS_KEPT - 1) + [51]
    assert sum(each.errors.get("timeout", 0) for each in found) == 2 * (SYNC_EVENTS_KEPT + 49)
    assert sum(each.files for each in found) == SYNC_EVENTS_KEPT + 50
    assert (found[-1].key, found[-1].stamp.at_ms) == ("r549", 549)
    assert [each.failed for each in found].count(False) == 1
    outbox.close()

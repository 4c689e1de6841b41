"""The newest fault of the store: what the log and `status` get to know of it."""

import pytest

from pisync_agent.errors import OutboxFull, StoreUnusable
from pisync_agent.outbox.models import OutboxState
from pisync_agent.service.write_faults import CHECK_S, LOG_EVERY_S, WriteFaults, has_room
from pisync_common.limits import KIB, MIB


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def faults(self) -> WriteFaults:
        return WriteFaults(monotonic=lambda: self.seconds, now_ms=lambda: int(1000 * self.seconds))


def test_a_fault_is_kept_from_its_first_commit_to_its_last() -> None:
    clock = Clock()
    faults = clock.faults()
    assert faults.fields() is None
    clock.seconds = 7.0
    faults.note(StoreUnusable("disk I/O error"))
    clock.seconds = 9.0
    faults.note(OutboxFull("no room"))
    assert faults.fields() == {"code": "outbox_full", "fault": None, "detail": "no room", "since_ms": 7000, "count": 2}
    faults.note(None)
    assert faults.fields() is None
    faults.note(StoreUnusable("again"))
    assert faults.fields() == {"code": "store_unusable", "fault": None, "detail": "again", "since_ms": 9000, "count": 1}


def test_it_is_logged_at_first_then_hourly_then_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    faults = clock.faults()
    for minute in range(125):
        clock.seconds = 60.0 * minute
        faults.note(StoreUnusable("disk I/O error"))
    faults.note(None)
    faults.note(None)

    assert LOG_EVERY_S == 3600
    assert [record.getMessage() for record in caplog.records] == [
        "recording fails (commits failed: 1): disk I/O error",
        "recording fails (commits failed: 61): disk I/O error",
        "recording fails (commits failed: 121): disk I/O error",
        "recording works again, after 125 failed commits",
    ]


def test_a_check_writes_only_where_nothing_else_has_proved_it() -> None:
    clock = Clock()
    faults = clock.faults()
    assert not faults.is_check_due(read_only=False)
    assert faults.is_check_due(read_only=True), "so that it is reported before an app records"
    clock.seconds = CHECK_S - 1
    assert not faults.is_check_due(read_only=False)
    clock.seconds = CHECK_S
    assert faults.is_check_due(read_only=False)
    faults.note(None)
    assert not faults.is_check_due(read_only=False)
    faults.note(StoreUnusable("disk I/O error"))
    assert faults.is_check_due(read_only=False), "so that its end is noticed soon"


def test_checks_write_less_than_a_megabyte_a_day() -> None:
    assert 24 * 3600 / CHECK_S * 16 * KIB < MIB


def test_a_full_outbox_lasts_until_there_is_room_and_is_not_logged_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    faults = clock.faults()
    for _ in range(10):
        faults.note(OutboxFull("no room"))
        faults.note_check(has_room=False)
        assert faults.fields(), "the check is smaller than an event"
    for _ in range(10):
        faults.note_check(has_room=True)
        assert faults.fields() is None
        faults.note(OutboxFull("no room"))
    faults.note(StoreUnusable("disk I/O error"))
    faults.note_check(has_room=False)
    assert faults.fields() is None

    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR", "WARNING"]


@pytest.mark.parametrize(
    ("state", "room"),
    [
        (OutboxState(kept_from=1, delivered=0, bytes_used=900_000, bytes_max=1_000_000), False),
        (OutboxState(kept_from=1, delivered=1, bytes_used=900_000, bytes_max=1_000_000), True),
        (OutboxState(kept_from=1, delivered=0, bytes_used=100_000, bytes_max=1_000_000), True),
    ],
)
def test_there_is_room_where_delivered_events_can_go(state: OutboxState, room: bool) -> None:
    assert has_room(state) is room

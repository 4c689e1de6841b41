"""What a run counts and shows."""

import pytest

from pisync_agent.sync.progress import ASKING, SENDING, SYNC_EVENT, Progress, ProgressTracker, mbit
from pisync_common.models import Receipt, Rejection


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tracker(of: int = 100) -> tuple[ProgressTracker, list[Progress], Time]:
    shown: list[Progress] = []
    time = Time()
    return ProgressTracker(of=of, monotonic=time, on_progress=shown.append), shown, time


def receipt(stored: int, duplicates: int = 0, rejected: int = 0) -> Receipt:
    return Receipt(
        device_id="d",
        stream="s",
        stored=stored,
        duplicates=duplicates,
        rejected=tuple(Rejection(seq=seq, code="invalid_event", detail="") for seq in range(1, rejected + 1)),
        watermark=0,
        server_time="",
    )


def test_receipts_add_up() -> None:
    one, _, _ = tracker()

    one.count_receipt(receipt(5, 2, 1))
    one.count_receipt(receipt(3))

    assert (one.delivered, one.duplicates, one.rejected, one.events) == (8, 2, 1, 11)
    assert dict(one.errors) == {"rejected": 1}


def test_a_run_without_rejections_has_no_errors() -> None:
    one, _, _ = tracker()

    one.count_receipt(receipt(5))

    assert not one.errors


def test_progress_is_throttled_within_a_step() -> None:
    one, shown, time = tracker()

    for step in (SENDING, SENDING, ASKING, SYNC_EVENT, SYNC_EVENT):
        one.show(step)
    time.now += 1
    one.show(SYNC_EVENT)

    assert [each.step for each in shown] == [SENDING, ASKING, SYNC_EVENT, SYNC_EVENT]


def test_progress_includes_bytes_in_flight_and_time_left() -> None:
    one, shown, time = tracker(of=100)
    one.transfer = lambda: (1_000_000, 4.0)
    one.count_sent(1_000_000)
    time.now += 5
    one.count_receipt(receipt(25))
    one.count_sent(250_000)
    time.now += 2

    one.show(SENDING)

    assert shown == [Progress(step=SENDING, events=25, of=100, bytes=1_250_000, speed_mbit=2.0, seconds_left=13.0)]


def test_time_left_is_unknown_before_the_first_receipt() -> None:
    one, shown, _ = tracker()

    one.show(SENDING)

    assert shown[0].seconds_left is None


def test_more_events_than_expected_are_shown() -> None:
    one, shown, time = tracker(of=1)
    one.count_receipt(receipt(5))
    time.now += 1

    one.show(SENDING)

    assert (shown[0].events, shown[0].of, shown[0].seconds_left) == (5, 5, None)


@pytest.mark.parametrize(("size", "speed"), [(1_000, 0.0), (65_535, 0.0), (65_536, 0.524288)])
def test_a_speed_needs_a_transfer_worth_measuring(size: int, speed: float) -> None:
    one, _, _ = tracker()
    one.transfer = lambda: (size, 1.0)

    assert one.speed_mbit == speed
    assert one.measured == ((size, 1.0) if speed else (0, 0.0))


def test_speed_is_in_mbit() -> None:
    assert mbit(1_000_000, 2.0) == 4.0
    assert mbit(1, 10.0) == 0.000001
    assert mbit(5, 0.0) == 0.0

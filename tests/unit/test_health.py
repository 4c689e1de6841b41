"""The rule of the streak, by itself. That it holds in a store, in any order, is a property in `support.stores`."""

import pytest

from pisync_receiver.health import ALARM, Crossing, Failures, Health, after_failure, after_success, crossing


def never(_: int) -> Failures:
    raise AssertionError("history was asked")


def test_failures_add_up() -> None:
    health = after_failure(after_failure(Health(), 5, '{"dns":1}'), 3, None)
    assert health == Health(
        consecutive_failures=2,
        total_failures=2,
        failing_since_ms=3,
        last_sync_ms=5,
        last_success_ms=None,
        last_failure_ms=5,
        last_errors='{"dns":1}',
    )


def test_a_success_in_order_asks_no_history() -> None:
    health = after_success(after_failure(Health(), 5, None), 5, never)
    assert (health.consecutive_failures, health.failing_since_ms, health.last_success_ms) == (0, None, 5)


def test_an_older_success_changes_nothing_but_the_newest_time() -> None:
    health = after_failure(after_success(Health(), 5, never), 9, None)
    assert after_success(health, 4, never) == health


def test_a_late_success_asks_what_failed_after_it() -> None:
    asked: list[int] = []

    def failures(at_ms: int) -> Failures:
        asked.append(at_ms)
        return Failures(count=1, oldest_ms=9)

    health = after_success(after_failure(after_failure(Health(), 3, None), 9, None), 5, failures)
    assert asked == [5]
    assert (health.consecutive_failures, health.failing_since_ms, health.total_failures) == (1, 9, 2)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (0, 1, None),
        (ALARM - 1, ALARM, "failing"),
        (0, ALARM + 5, "failing"),
        (ALARM, ALARM + 1, None),
        (ALARM, 0, "recovered"),
        (ALARM + 2, ALARM - 1, "recovered"),
        (ALARM + 2, ALARM, None),
        (ALARM - 1, 0, None),
    ],
)
def test_crossings(before: int, after: int, told: Crossing | None) -> None:
    assert crossing(before, after) == told

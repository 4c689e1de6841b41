"""How long to wait and how much to send, from tables."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from pisync_agent.errors import Overloaded, Unreachable
from pisync_agent.sync.batches import BatchSize
from pisync_agent.sync.retry import RetryPolicy, parse_retry_after
from pisync_common.limits import BATCH_EVENTS, KIB, MIB

NOW = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC)
DAY = 24 * 3600.0


def lowest(low: float, high: float) -> float:
    return low


def highest(low: float, high: float) -> float:
    return high


@pytest.mark.parametrize(
    ("failures", "low", "high"),
    [(1, 5, 10), (2, 5, 20), (3, 5, 40), (7, 5, 640), (8, 5, 900), (1_000_000, 5, 900)],
)
def test_the_wait_is_random_between_base_and_a_doubling_ceiling(failures: int, low: float, high: float) -> None:
    assert RetryPolicy(random=lowest).delay(failures) == low
    assert RetryPolicy(random=highest).delay(failures) == high


@pytest.mark.parametrize("asked", [1.0, 30.0, 3600.0])
def test_retry_after_is_a_floor_with_the_jitter_on_top(asked: float) -> None:
    assert RetryPolicy(random=lowest).delay(1, asked) == asked + 5
    assert RetryPolicy(random=highest).delay(3, asked) == asked + 40


@pytest.mark.parametrize(("asked", "believed"), [(DAY + 1, DAY), (1e12, DAY), (-5.0, 0.0), (0.0, 0.0), (None, 0.0)])
def test_retry_after_is_capped_at_a_day(asked: float | None, believed: float) -> None:
    assert RetryPolicy(random=lowest).delay(1, asked) == believed + 5


def test_a_base_above_the_cap_waits_the_cap() -> None:
    assert RetryPolicy(base=100, cap=10, random=highest).delay(1) == 10


def test_retries_of_many_devices_are_spread() -> None:
    waits = [RetryPolicy().delay(4) for _ in range(200)]

    assert len(set(waits)) > 190
    assert all(5 <= wait <= 80 for wait in waits)


def test_the_policy_is_a_tenacity_wait() -> None:
    slept: list[float] = []
    errors = iter([Unreachable("", kind="connect"), Overloaded("", kind="http_5xx", retry_after=60.0), OSError()])

    def fail() -> None:
        raise next(errors)

    with pytest.raises(OSError):
        Retrying(
            wait=RetryPolicy(random=highest),
            sleep=slept.append,
            retry=retry_if_exception_type((Unreachable, Overloaded)),
            stop=stop_after_attempt(5),
            reraise=True,
        )(fail)

    assert slept == [10, 60 + 20]


def test_the_policy_waits_after_a_result_too() -> None:
    state: Any = SimpleNamespace(outcome=None, attempt_number=1)

    assert RetryPolicy(random=lowest)(state) == 5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("86401", DAY),
        ("999999999999", DAY),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", DAY),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 400, None),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994", None),
        ("\x00", None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Za-z0-9:, +-]{0,40}"))
def test_any_text_is_read_as_a_bounded_time_or_none(header: str) -> None:
    seconds = parse_retry_after(header, NOW)

    assert seconds is None or 0 <= seconds <= DAY


def test_the_first_batch_is_small() -> None:
    size = BatchSize()

    assert (size.bytes, size.events) == (64 * KIB, BATCH_EVENTS)


@pytest.mark.parametrize(
    ("seconds", "factor"),
    [(0.0, 2), (0.1, 2), (1.5, 2), (2.4, 1.25), (3, 1), (3.75, 0.8), (6, 0.5), (500, 0.5)],
)
def test_a_full_batch_moves_the_size_towards_three_seconds_at_most_twofold(seconds: float, factor: float) -> None:
    size = BatchSize(first=100 * KIB)

    size.succeeded(events=400, bytes=100 * KIB, seconds=seconds)

    assert size.bytes == int(100 * KIB * factor)


def test_requests_on_a_link_that_holds_take_up_to_ten_seconds() -> None:
    """What a link has proved is forgotten when it is interrupted; its pace is remembered."""
    size = BatchSize(first=30 * KIB, most=MIB)
    before = taken(size, 40)
    size.interrupted()
    after = taken(size, 40)

    assert (before[:8], before[-1]) == ([3] * 8, 10)
    assert (after[:8], after[-1]) == ([1, 2, 3, 3, 3, 3, 3, 3], 10)


def taken(size: BatchSize, number: int, *, pace: int = 10 * KIB) -> list[int]:
    """Return the seconds that full batches take, one after another."""
    seconds = []
    for _ in range(number):
        seconds.append(round(size.bytes / pace))
        size.succeeded(events=1000, bytes=size.bytes, seconds=size.bytes / pace)
    return seconds


def test_two_batches_are_risked_after_an_interruption_when_the_link_has_held() -> None:
    size = BatchSize(first=30 * KIB)
    size.interrupted()
    seen: list[int] = []
    for _ in range(5):
        size.succeeded(events=1000, bytes=size.bytes, seconds=1.4 if len(seen) == 4 else 7.5)
        seen.append(size.parallel)

    assert seen == [1, 1, 1, 1, 2]


def test_two_batches_are_in_flight_on_a_slow_link_that_works() -> None:
    size = BatchSize()
    seen = []
    for seconds in (0.1, 1.0, 0.4, 1.4, 2.9, 3.1, 1.6, 1.0):
        size.succeeded(events=1, bytes=200, seconds=seconds)
        seen.append(size.parallel)
    size.failed(events=1, bytes=200)

    assert (seen, size.parallel) == ([1, 2, 1, 2, 2, 1, 1, 2], 1)


def test_a_partial_batch_does_not_change_the_size() -> None:
    size = BatchSize(first=100 * KIB)

    size.succeeded(events=1, bytes=200, seconds=0.1)

    assert size.bytes == 100 * KIB


def test_a_slow_link_has_a_least_batch_size() -> None:
    size = BatchSize(first=100 * KIB)

    size.succeeded(events=1, bytes=200, seconds=60)
    size.succeeded(events=1, bytes=200, seconds=60)

    assert size.bytes == 4 * KIB


def test_the_size_is_capped() -> None:
    size = BatchSize()
    for _ in range(20):
        size.succeeded(events=size.events, bytes=size.bytes, seconds=0.1)

    assert (size.bytes, size.events) == (2 * MIB, BATCH_EVENTS)


def test_failures_halve_down_to_one_event_and_successes_bring_it_back() -> None:
    size = BatchSize()
    events, bytes_ = 300, 64 * KIB
    seen = []
    while events > 1:
        size.failed(events=events, bytes=bytes_)
        events, bytes_ = min(events // 2, size.events), min(bytes_ // 2, size.bytes)
        seen.append(size.events)

    assert seen == [150, 75, 37, 18, 9, 4, 2, 1]
    size.failed(events=1, bytes=1)
    assert (size.events, size.bytes) == (1, 1)

    for _ in range(40):
        size.succeeded(events=size.events, bytes=size.bytes, seconds=0.1)
    assert (size.events, size.bytes) == (BATCH_EVENTS, 2 * MIB)


def test_the_size_grows_slowly_after_a_failure() -> None:
    size = BatchSize(first=100 * KIB)
    size.failed(events=400, bytes=100 * KIB)
    seen = []
    for _ in range(10):
        size.succeeded(events=size.events, bytes=size.bytes, seconds=0.1)
        seen.append(size.bytes // KIB)

    assert seen == [50] * 8 + [100, 200]

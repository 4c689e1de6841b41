"""Rates: a burst, then the rate; each key by itself; bounded memory; Retry-After that is never too early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.errors import Problem
from pisync_receiver.limits import BURST_S, RETRY_AFTER_MAX, Limits, Rate, each_device, rate_limited, spending


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(clock: Clock, *, count: int = 60, period_s: float = 60, burst: int = 3, keys: int = 100) -> Limits:
    return Limits(Rate(count=count, period_s=period_s, burst=burst), clock=clock, keys=keys)


def test_a_burst_is_let_in_and_then_the_rate() -> None:
    clock = Clock()
    kept = limits(clock)
    assert [kept.take("a") for _ in range(4)] == [0, 0, 0, 1.0]
    clock.now += 0.5
    assert kept.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert kept.take("a") == 0
    assert kept.take("a") == pytest.approx(1.0)


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    kept = limits(clock, burst=1)
    assert kept.take("a") == 0
    for _ in range(1000):
        assert kept.take("a") > 0
    clock.now += 1
    assert kept.take("a") == 0


def test_one_caller_takes_nothing_from_another() -> None:
    kept = limits(Clock(), burst=1)
    assert kept.take("a") == 0
    assert kept.take("a") > 0
    assert kept.take("b") == 0


def test_a_caller_that_rested_has_one_burst_and_no_more() -> None:
    clock = Clock()
    kept = limits(clock)
    clock.now += 1_000_000
    assert [kept.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_keys_without_end_take_no_memory_without_end_and_shut_nobody_out() -> None:
    kept = limits(Clock(), burst=1, keys=10)
    assert [kept.take(str(number)) for number in range(1000)] == [0] * 1000
    assert len(kept) == 10
    assert kept.take("999") > 0
    assert kept.take("0") == 0


@given(st.integers(1, 20), st.integers(1, 5), st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_the_burst_and_the_rate_in_any_stretch(count: int, burst: int, gaps: list[float]) -> None:
    clock = Clock()
    kept = limits(clock, count=count, period_s=10, burst=burst)
    let_in = []
    for gap in gaps:
        clock.now += gap
        if kept.take("a") == 0:
            let_in.append(clock.now)
    for first, begin in enumerate(let_in):
        for calls, end in enumerate(let_in[first:], start=1):
            assert calls <= burst + (end - begin) * count / 10 + 1e-6


@given(st.integers(1, 20), st.integers(1, 5))
def test_whoever_waits_as_long_as_it_was_told_is_let_in(count: int, burst: int) -> None:
    clock = Clock()
    kept = limits(clock, count=count, period_s=10, burst=burst)
    for _ in range(20):
        if wait := kept.take("a"):
            clock.now += wait
            assert kept.take("a") == 0


@pytest.mark.parametrize(
    ("wait_s", "drawn", "after"),
    [(0.01, 0.0, 1), (0.01, 0.99, 2), (4.2, 0.0, 5), (4.2, 0.5, 7), (1e6, 0.5, RETRY_AFTER_MAX)],
)
def test_retry_after_is_whole_seconds_with_jitter_never_too_early(wait_s: float, drawn: float, after: int) -> None:
    problem = rate_limited(wait_s, random=lambda: drawn)
    assert (problem.status, problem.problem_code) == (429, "rate_limited")
    assert problem.headers == {"Retry-After": str(after)}


@pytest.mark.parametrize(
    ("count", "period_s", "burst"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, float("inf"), 1), (1, float("nan"), 1)]
)
def test_what_is_no_rate_is_refused(count: int, period_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        Rate(count=count, period_s=period_s, burst=burst)


def test_calls_are_spent_device_by_device_and_none_where_there_is_no_limit() -> None:
    now = [100.0]
    spend = spending(each_device(2, clock=lambda: now[0]), random=lambda: 0.0)
    for _ in range(2 * BURST_S):
        spend("pibook-1")
    with pytest.raises(Problem) as refused:
        spend("pibook-1")
    assert (refused.value.status, refused.value.problem_code, refused.value.headers) == (
        429,
        "rate_limited",
        {"Retry-After": "1"},
    )
    spend("pibook-2")
    now[0] += 0.5
    spend("pibook-1")
    free = spending(each_device(0, clock=lambda: now[0]))
    for _ in range(1000):
        free("pibook-1")


def test_what_was_let_in_is_told_once_and_what_others_let_in_counts() -> None:
    clock = Clock()
    kept = Limits(Rate(count=1, period_s=1, burst=3), clock=clock, shared=True)
    kept.take("a")
    assert kept.untold() == {"a": 1.0}
    assert kept.untold() == {}
    kept.told("a", clock.now + 2.0)  # with another's call
    assert [kept.take("a") for _ in range(2)] == [0, 1.0]


def test_what_was_let_in_while_others_were_asked_comes_on_top() -> None:
    clock = Clock()
    kept = Limits(Rate(count=1, period_s=1, burst=3), clock=clock, shared=True)
    kept.take("a")
    kept.untold()
    kept.take("a")
    kept.told("a", clock.now + 1.0)
    assert [kept.take("a") for _ in range(2)] == [0, 1.0]
    assert kept.untold() == {"a": 2.0}


def test_others_that_lost_their_memory_let_nobody_in_twice() -> None:
    clock = Clock()
    kept = Limits(Rate(count=1, period_s=1, burst=1), clock=clock, shared=True)
    kept.take("a")
    kept.untold()
    kept.told("a", clock.now)
    assert kept.take("a") == pytest.approx(1.0)


def test_what_nobody_takes_away_does_not_pile_up() -> None:
    alone, shared = (
        Limits(Rate(count=1, period_s=1, burst=1), clock=Clock(), keys=10, shared=it) for it in (False, True)
    )
    for number in range(100):
        assert alone.take(str(number)) == shared.take(str(number)) == 0
    assert (len(alone.untold()), len(shared.untold())) == (0, 10)

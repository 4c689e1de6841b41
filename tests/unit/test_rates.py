"""The rates of devices and of sign-ins."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_receiver.errors import Problem
from pisync_receiver.http.rates import DEVICE_BURST_S, RETRY_AFTER_MAX, Rates
from pisync_receiver.http.sessions import TRIES_OF_ADDRESS, TRIES_OF_ALL, Sessions


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestRates:
    """A burst, then the rate; each device alone; bounded memory; Retry-After that is never too early."""

    @staticmethod
    def rates(clock: Clock, per_s: int = 1, *, names: int = 100, drawn: float = 0.0) -> Rates:
        every_s, at_once = 1 / per_s, per_s * DEVICE_BURST_S
        return Rates(every_s=every_s, at_once=at_once, clock=clock, random=lambda: drawn, remembered=names)

    @staticmethod
    def refused(rates: Rates, device: str = "a") -> int:
        """The Retry-After of a call; 0 if it was let in."""
        try:
            rates.spend(device)
        except Problem as problem:
            return int(problem.headers["Retry-After"]) if problem.status == 429 else -1
        return 0

    def test_a_burst_is_let_in_and_then_the_rate_and_a_refused_call_costs_nothing(self) -> None:
        clock = Clock()
        rates = self.rates(clock)
        assert [self.refused(rates) for _ in range(DEVICE_BURST_S + 1)] == [0] * DEVICE_BURST_S + [1]
        for _ in range(1000):
            assert self.refused(rates) == 1
        clock.now += 1
        assert [self.refused(rates) for _ in range(2)] == [0, 1]
        assert self.refused(rates, "b") == 0

    def test_a_device_that_rested_has_a_single_burst(self) -> None:
        clock = Clock()
        rates = self.rates(clock)
        clock.now += 1_000_000
        assert [self.refused(rates) for _ in range(DEVICE_BURST_S + 1)][-1] == 1

    def test_the_device_that_called_least_recently_is_forgotten_which_shuts_none_out(self) -> None:
        rates = self.rates(Clock(), names=2)
        for _ in range(DEVICE_BURST_S):
            assert self.refused(rates, "a") == 0
        rates.spend("b")
        assert self.refused(rates, "a") == 1
        rates.spend("b")
        rates.spend("c")  # forgets a, whose last call that was let in is the oldest
        assert len(rates) == 2
        assert self.refused(rates, "a") == 0

    @given(st.integers(1, 20), st.lists(st.floats(0, 3), max_size=60))
    def test_no_stretch_has_more_than_the_burst_and_the_rate(self, per_s: int, gaps: list[float]) -> None:
        clock = Clock()
        rates = self.rates(clock, per_s)
        let_in = []
        for gap in gaps:
            for _ in range(3):
                if self.refused(rates) == 0:
                    let_in.append(clock.now)
            clock.now += gap / 10
        for first, begin in enumerate(let_in):
            for calls, end in enumerate(let_in[first:], start=1):
                assert calls <= DEVICE_BURST_S * per_s + (end - begin) * per_s + 1e-6

    @pytest.mark.parametrize(("drawn", "after"), [(0.0, 1), (0.99, 2)])
    def test_retry_after_is_whole_seconds_with_jitter(self, drawn: float, after: int) -> None:
        rates = self.rates(Clock(), 2, drawn=drawn)
        found = [self.refused(rates) for _ in range(2 * DEVICE_BURST_S + 1)]
        assert found[-1] == after

    def test_retry_after_has_a_limit_and_is_never_too_early(self) -> None:
        clock = Clock()
        rates = self.rates(clock, drawn=0.5)
        for _ in range(DEVICE_BURST_S):
            rates.spend("a")
        clock.now -= 1_000_000  # far from paid
        assert self.refused(rates) == RETRY_AFTER_MAX


def test_sign_ins_are_limited_for_each_address_and_for_all() -> None:
    clock = Clock()
    nowhere: Any = None
    sessions = Sessions(nowhere, nowhere, required=True, now_ms=lambda: 0, clock=clock, random=lambda: 0.0)

    def tried(address: str) -> bool:
        with contextlib.suppress(Problem):
            sessions.count_try(address)
            return True
        return False

    assert [tried("10.0.0.1") for _ in range(TRIES_OF_ADDRESS + 1)] == [True] * TRIES_OF_ADDRESS + [False]
    others = [tried(f"10.0.1.{n}") for n in range(TRIES_OF_ALL)]
    assert others == [True] * (TRIES_OF_ALL - TRIES_OF_ADDRESS) + [False] * TRIES_OF_ADDRESS
    clock.now += 60
    assert [tried("10.0.0.1") for _ in range(TRIES_OF_ADDRESS + 1)] == [True] * TRIES_OF_ADDRESS + [False]

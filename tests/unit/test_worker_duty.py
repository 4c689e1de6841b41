"""A duty goes on whatever is away, says so once, and waits longer each time."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from pisync_common.backoff import Backoff
from pisync_receiver.errors import Unavailable
from pisync_receiver.worker.duty import AGAIN, Duty
from pisync_receiver.worker.errors import PublisherUnavailable

AWAY = PublisherUnavailable("the broker is away; nothing is lost")


class Script:
    """Steps that work (a pause) or fail (an error), one after another; asks for the end after the last."""

    def __init__(self, *steps: float | Exception) -> None:
        self.pauses: list[float] = []
        self.asked = False
        self._steps = list(steps)

    async def step(self) -> float:
        outcome = self._steps.pop(0)
        self.asked = not self._steps
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def duty(script: Script, random: Callable[[float, float], float] = lambda low, high: high) -> Duty:
    return Duty("publish", script.step, backoff=Backoff(base=1.0, cap=10.0, random=random), stopping=script)


def run(script: Script) -> list[float]:
    asyncio.run(duty(script).run())
    return script.pauses


def test_it_rests_as_long_as_a_step_says() -> None:
    assert run(Script(0.5, AGAIN, AGAIN, 2.0)) == [0.5, 2.0]


def test_it_waits_longer_after_each_failure_and_success_resets_that() -> None:
    assert run(Script(AWAY, AWAY, AWAY, AWAY, AWAY, 0.5, AWAY, 0.5)) == [2, 4, 8, 10, 10, 0.5, 2, 0.5]


def test_jitter_is_between_the_base_and_the_ceiling() -> None:
    asked: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    policy = Backoff(base=1.0, cap=10.0, random=note)
    for failures in (1, 3, 64, 10_000):
        policy.delay(failures)
    assert asked == [(1.0, 2.0), (1.0, 8.0), (1.0, 10.0), (1.0, 10.0)]


def test_it_says_once_that_something_is_away_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(Script(AWAY, AWAY, AWAY, 0.5, 0.5, AWAY, 0.5))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "waiting and trying again",
        "works again",
        "waiting and trying again",
        "works again",
    ]


def test_a_mistake_of_ours_ends_it() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Script(ZeroDivisionError()))


def test_once_goes_on_until_nothing_is_left() -> None:
    script = Script(AGAIN, AGAIN, 0.5, AGAIN)
    asyncio.run(duty(script).run_once())
    assert script.pauses == []
    assert not script.asked


def test_once_does_not_try_again() -> None:
    with pytest.raises(Unavailable, match="the broker is away"):
        asyncio.run(duty(Script(AWAY, 0.5)).run_once())


def test_the_start_is_tried_until_it_works() -> None:
    script = Script(AWAY, AWAY, 1.0, AGAIN)
    asyncio.run(duty(script).run_until_it_works())
    assert script.pauses == [2, 4]

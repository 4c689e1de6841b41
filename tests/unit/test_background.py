"""Background tasks go on while something is unavailable, log it once, and wait longer each time."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from pisync_common.backoff import Backoff
from pisync_receiver.background import AGAIN, Shutdown, repeat
from pisync_receiver.errors import SchemaMismatch, StoreUnusable
from pisync_receiver.worker.rabbitmq import PublisherUnavailable

AWAY = PublisherUnavailable("the broker is unavailable; the events are kept")
UNUSABLE = StoreUnusable("the database cannot be read")


class Script(Shutdown):
    """Steps that succeed (a pause) or fail (an error), one after another; requests shutdown after the last."""

    def __init__(self, *steps: float | Exception) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._steps = list(steps)

    async def step(self) -> float:
        outcome = self._steps.pop(0)
        if not self._steps:
            self.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def run(script: Script, random: Callable[[float, float], float] = lambda low, high: high) -> list[float]:
    backoff = Backoff(base=1.0, cap=10.0, random=random)
    asyncio.run(repeat("publish", script.step, backoff=backoff, shutdown=script))
    return script.pauses


def test_a_step_decides_the_pause_after_it() -> None:
    assert run(Script(0.5, AGAIN, AGAIN, 2.0)) == [0.5, 2.0]


@pytest.mark.parametrize("failure", [AWAY, UNUSABLE, ZeroDivisionError()], ids=["away", "unusable", "unexpected"])
def test_pauses_grow_with_each_failure_until_a_success(failure: Exception) -> None:
    steps = [failure] * 5
    assert run(Script(*steps, 0.5, failure, 0.5)) == [2, 4, 8, 10, 10, 0.5, 2, 0.5]


def test_jitter_is_between_the_base_and_the_ceiling() -> None:
    asked: list[tuple[float, float]] = []

    def low(least: float, most: float) -> float:
        asked.append((least, most))
        return least

    assert run(Script(AWAY, AWAY, AWAY, AWAY, 0.5), low) == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert asked == [(1.0, 2.0), (1.0, 4.0), (1.0, 8.0), (1.0, 10.0)]


@pytest.mark.parametrize(
    ("failure", "logged"),
    [(AWAY, "unavailable, retrying: the broker"), (ZeroDivisionError(), "unexpected error, retrying")],
    ids=["unavailable", "unexpected"],
)
def test_only_the_first_failure_and_the_recovery_are_logged(
    failure: Exception, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(Script(failure, failure, failure, 0.5, 0.5, failure, 0.5))
    first, recovered, again, recovered_again = (record.message for record in caplog.records)
    assert first.startswith(logged)
    assert again.startswith(logged)
    assert recovered == recovered_again == "available again"


def test_an_unexpected_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    run(Script(ZeroDivisionError(), 0.5))
    assert caplog.records[0].exc_info is not None


def test_an_error_that_retrying_cannot_fix_ends_the_task() -> None:
    with pytest.raises(SchemaMismatch):
        run(Script(SchemaMismatch("migrate first"), 0.5))


def test_shutdown_cuts_a_pause_short() -> None:
    async def main() -> None:
        shutdown = Shutdown()
        pause = asyncio.create_task(shutdown.pause(3600.0))
        await asyncio.sleep(0)
        assert not pause.done()
        shutdown.set()
        await asyncio.wait_for(pause, 30)
        assert shutdown.is_set()

    asyncio.run(main())

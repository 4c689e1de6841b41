"""The thread that delivers: when it runs, how it retries, and whom a run serves. A made-up run stands for delivery."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import RetryCallState

from pisync_agent.errors import AgentError, Overloaded, StoreUnusable, Unreachable
from pisync_agent.service.restraints import Restraints
from pisync_agent.service.schedule import GATHERED, Due, Schedule
from pisync_agent.service.scheduler import Finished, Scheduler

LONG = 3600.0
DEADLINE_S = 20


def result(**changed: Any) -> Any:
    fields = {"delivered": 1, "duplicates": 0, "rejected": 0, "waiting": 0, "failure": None, "offline": False}
    return SimpleNamespace(**(fields | changed))


def failed(error: AgentError | None = None) -> Any:
    return result(delivered=0, waiting=1, failure=error or Unreachable("no answer", kind="timeout"))


class Bench:
    """A syncer whose runs come one by one: `begun` tells of each, `end` gives it its result."""

    def __init__(
        self,
        *,
        waits: Callable[[RetryCallState], float] = lambda state: LONG,
        enrolled: bool = True,
        restraints: Restraints | None = None,
    ) -> None:
        self.begun: queue.Queue[bool] = queue.Queue()
        self.told: queue.Queue[Any] = queue.Queue()
        self.attempts: list[int] = []
        self.waiting = 0
        self._results: queue.Queue[Any] = queue.Queue()
        self._waits = waits
        self.syncer = Scheduler(
            run=self._run,
            schedule=Schedule(now=time.monotonic(), delay=0.0, interval=LONG, first=LONG, metered_delay=LONG),
            wait_policy=self._policy,
            notify=self.told.put,
            monotonic=time.monotonic,
            waiting=lambda: self.waiting,
            enrolled=enrolled,
            restraints=restraints or Restraints(),
        )
        self.syncer.start()

    def _policy(self, state: RetryCallState) -> float:
        self.attempts.append(state.attempt_number)
        return self._waits(state)

    def _run(self, *, probe: bool, progress: Any) -> Any:
        self.begun.put(probe)
        result_or_error = self._results.get(timeout=DEADLINE_S)
        if isinstance(result_or_error, Exception):
            raise result_or_error
        return result_or_error

    def end(self, result_or_error: Any) -> Finished:
        """The next run that began ends so; what the syncer then told."""
        self._results.put(result_or_error)
        finished = self.told.get(timeout=DEADLINE_S)
        assert isinstance(finished, Finished)
        return finished

    def next(self) -> bool:
        """Wait for a run to begin; whether it probes."""
        return self.begun.get(timeout=DEADLINE_S)

    def settle(self) -> None:
        """Wait until the thread waits for something to happen."""
        until(lambda: not self.syncer.live().running and (self.syncer.live().due is not None))

    def close(self) -> None:
        self._results.put(result())
        self.syncer.stop()
        assert self.syncer.join(DEADLINE_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_a_requested_run_probes(bench: Bench) -> None:
    ticket = bench.syncer.request()

    assert bench.next() is True
    assert bench.end(result()).covers >= ticket


def test_new_events_bring_a_run_that_does_not_probe(bench: Bench) -> None:
    bench.syncer.recorded()

    assert bench.next() is False
    bench.end(result())


def test_an_event_recorded_as_a_run_ends_brings_another_run(bench: Bench) -> None:
    """The run's own count was over, so the event is not in its result."""
    bench.syncer.recorded()
    bench.next()
    bench.syncer.recorded()
    bench.waiting = 1
    bench.end(result(waiting=0))

    assert bench.next() is False


def test_an_event_delivered_by_the_present_run_brings_no_other_run(bench: Bench) -> None:
    bench.syncer.recorded()
    bench.next()
    bench.syncer.recorded()
    bench.end(result(waiting=0))
    bench.settle()

    assert bench.begun.empty()
    bench.syncer.recorded()
    assert bench.next() is False


def test_failures_are_retried_by_policy_and_success_resets_it() -> None:
    bench = Bench(waits=lambda state: 0.0)
    bench.syncer.request()
    for attempt in (1, 2, 3):
        bench.next()
        bench.end(failed())
        until(lambda attempt=attempt: len(bench.attempts) == attempt)  # type: ignore[misc]
    bench.next()
    bench.end(result())
    bench.syncer.request()
    bench.next()
    bench.end(failed())
    bench.next()

    assert bench.attempts == [1, 2, 3, 1]
    bench.close()


def test_the_policy_sees_what_the_receiver_asked_for() -> None:
    seen: list[object] = []

    def waits(state: RetryCallState) -> float:
        assert state.outcome is not None
        seen.append(state.outcome.exception())
        return LONG

    bench = Bench(waits=waits)
    bench.syncer.request()
    bench.next()
    bench.end(failed(Overloaded("patience", kind="http_5xx", retry_after=77)))
    until(lambda: bool(seen))

    assert isinstance(seen[0], Overloaded)
    assert seen[0].retry_after == 77
    bench.close()


def test_only_a_request_shortens_the_wait_after_a_failure(bench: Bench) -> None:
    bench.syncer.request()
    bench.next()
    bench.end(failed(Overloaded("patience", kind="http_5xx", retry_after=LONG)))
    until(lambda: bool(bench.attempts))
    bench.syncer.recorded()
    bench.syncer.request()

    assert bench.next() is True, "the run that was asked for, not one for the news"
    bench.end(failed())
    until(lambda: len(bench.attempts) == 2)
    assert bench.attempts == [1, 1], "asking starts the policy over"


def test_a_new_link_shortens_the_wait_and_resets_the_policy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.syncer.request()
    bench.next()
    bench.end(failed())
    until(lambda: bool(bench.attempts))
    bench.syncer.link_up()
    bench.next()
    bench.end(failed())
    until(lambda: len(bench.attempts) == 2)

    assert bench.attempts == [1, 1]


def test_a_request_during_a_requested_run_joins_it(bench: Bench) -> None:
    first = bench.syncer.request()
    bench.next()
    second = bench.syncer.request()
    finished = bench.end(result(waiting=0))

    assert finished.covers == second == first + 1
    bench.settle()
    assert bench.begun.empty()


def test_a_request_during_a_failing_run_joins_its_failure(bench: Bench) -> None:
    bench.syncer.request()
    bench.next()
    second = bench.syncer.request()

    assert bench.end(failed()).covers == second


def test_a_request_during_a_run_that_leaves_events_gets_another(bench: Bench) -> None:
    first = bench.syncer.request()
    bench.next()
    second = bench.syncer.request()

    assert bench.end(result(waiting=3)).covers == first
    assert bench.next() is True
    assert bench.end(result()).covers == second


def test_a_request_during_a_timer_run_without_contact_gets_another(bench: Bench) -> None:
    bench.syncer.recorded()
    bench.next()
    ticket = bench.syncer.request()

    assert bench.end(result(delivered=0)).covers < ticket
    assert bench.next() is True
    assert bench.end(result()).covers == ticket


def test_an_outbox_error_is_announced_and_retried() -> None:
    bench = Bench(waits=lambda state: 0.0)
    bench.syncer.request()
    bench.next()

    finished = bench.end(StoreUnusable("the disk"))

    assert isinstance(finished.error, StoreUnusable)
    bench.next()
    bench.close()


def test_an_unexpected_error_ends_the_run_and_not_the_thread(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.syncer.request()
    bench.next()
    finished = bench.end(ZeroDivisionError("who divides here?"))

    assert isinstance(finished.error, AgentError)
    assert "unexpectedly" in caplog.text
    bench.syncer.request()
    bench.next()


def test_without_an_identity_nothing_runs() -> None:
    bench = Bench(enrolled=False)
    bench.syncer.recorded()
    assert bench.syncer.live().due is None
    bench.syncer.set_enrolled(True)

    assert bench.next() is True
    bench.close()


def test_stopping_ends_a_wait(bench: Bench) -> None:
    bench.syncer.request()
    bench.next()
    bench.end(failed())
    until(lambda: bool(bench.attempts))
    bench.syncer.stop()

    assert bench.syncer.join(DEADLINE_S)


def test_live_describes_the_scheduler(bench: Bench) -> None:
    bench.syncer.request()
    bench.next()
    assert bench.syncer.live().running
    bench.end(failed())
    until(lambda: bool(bench.attempts))
    bench.settle()
    live = bench.syncer.live()

    assert live.failures == 1
    assert isinstance(live.last_error, Unreachable)
    assert live.due is not None
    assert live.due.at > time.monotonic() + LONG / 2
    assert "timeout" in live.due.why


def test_the_thread_is_a_daemon() -> None:
    bench = Bench()
    assert any(thread.name == "sync" and thread.daemon for thread in threading.enumerate())
    bench.close()


# Quiet hours and metered links


class Quiet(Restraints):
    """Quiet until the test says otherwise."""

    over = False

    def quiet(self) -> Due | None:
        return None if self.over else Due(at=time.monotonic() + LONG, why="quiet hours until 15:00")


def test_in_quiet_hours_only_a_request_brings_a_run() -> None:
    bench = Bench(restraints=Quiet())
    bench.syncer.recorded(GATHERED)
    bench.syncer.link_up()
    due = bench.syncer.live().due
    assert due is not None
    assert due.why == "quiet hours until 15:00"
    bench.syncer.request()

    assert bench.next() is True, "the run that was asked for, not one for the news"
    bench.end(result())
    bench.close()


def test_what_quiet_hours_held_back_is_sent_when_they_end() -> None:
    restraints = Quiet()
    bench = Bench(restraints=restraints)
    bench.syncer.recorded()
    assert bench.begun.empty()
    restraints.over = True
    bench.syncer.recorded(GATHERED)

    assert bench.next() is False
    bench.end(result())
    bench.close()


def test_after_a_run_over_a_metered_link_events_are_gathered_for_longer() -> None:
    bench = Bench(restraints=Restraints(ask_metered=lambda: True))
    bench.syncer.recorded()
    bench.next()
    bench.end(result())
    bench.syncer.recorded()
    due = bench.syncer.live().due
    assert due is not None
    assert "metered" in due.why
    assert due.at > time.monotonic() + LONG / 2
    bench.syncer.recorded(GATHERED)

    assert bench.next() is False
    bench.end(result())
    bench.close()


def test_a_new_link_is_asked_about_again() -> None:
    answers = iter([True, False])
    bench = Bench(restraints=Restraints(ask_metered=lambda: next(answers)))
    bench.syncer.request()
    bench.next()
    bench.end(result())
    bench.syncer.link_up()
    bench.next()
    bench.end(result())
    bench.syncer.recorded()

    assert bench.next() is False, "without the wait of a metered link"
    bench.end(result())
    bench.close()

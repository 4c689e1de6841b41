"""The thread that delivers: when it runs, how it retries, and whom a run serves. A made-up run stands for delivery."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import RetryCallState

from pisync_agent import agenda
from pisync_agent.agenda import Agenda
from pisync_agent.errors import AgentError, Overloaded, StoreUnusable, Unreachable
from pisync_agent.syncer import Finished, Syncer

LONG = 3600.0
DEADLINE_S = 20


def result(**changed: Any) -> Any:
    fields = {"delivered": 1, "duplicates": 0, "rejected": 0, "waiting": 0, "failure": None, "offline": False}
    return SimpleNamespace(**(fields | changed))


def failed(error: AgentError | None = None) -> Any:
    return result(delivered=0, waiting=1, failure=error or Unreachable("no answer", kind="timeout"))


class Bench:
    """A syncer whose runs come one by one: `begun` tells of each, `end` gives it its result."""

    def __init__(self, *, waits: Callable[[RetryCallState], float] = lambda state: LONG, enrolled: bool = True) -> None:
        self.begun: queue.Queue[bool] = queue.Queue()
        self.told: queue.Queue[Any] = queue.Queue()
        self.attempts: list[int] = []
        self.waiting = 0
        self._results: queue.Queue[Any] = queue.Queue()
        self._waits = waits
        self.syncer = Syncer(
            self._run,
            agenda=Agenda(now=time.monotonic(), delay=0.0, interval=LONG, first=LONG),
            wait_policy=self._policy,
            tell=self.told.put,
            monotonic=time.monotonic,
            waiting=lambda: self.waiting,
            enrolled=enrolled,
        )
        self.syncer.start()

    def _policy(self, state: RetryCallState) -> float:
        self.attempts.append(state.attempt_number)
        return self._waits(state)

    def _run(self, *, probe: bool, progress: Any) -> Any:
        self.begun.put(probe)
        outcome = self._results.get(timeout=DEADLINE_S)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def end(self, outcome: Any) -> Finished:
        """The next run that began ends so; what the syncer then told."""
        self._results.put(outcome)
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


def test_who_asks_gets_a_run_that_probes(bench: Bench) -> None:
    ticket = bench.syncer.ask()

    assert bench.next() is True
    assert bench.end(result()).covers >= ticket


def test_new_events_bring_a_run_that_does_not_probe(bench: Bench) -> None:
    bench.syncer.news()

    assert bench.next() is False
    bench.end(result())


def test_an_event_recorded_as_a_run_ends_brings_another_run(bench: Bench) -> None:
    """The run's own count was over, so the event is not in its result."""
    bench.syncer.news()
    bench.next()
    bench.syncer.news()
    bench.waiting = 1
    bench.end(result(waiting=0))

    assert bench.next() is False


def test_an_event_that_the_run_under_way_delivered_brings_no_other(bench: Bench) -> None:
    bench.syncer.news()
    bench.next()
    bench.syncer.news()
    bench.end(result(waiting=0))
    bench.settle()

    assert bench.begun.empty()
    bench.syncer.news()
    assert bench.next() is False


def test_a_failure_is_tried_again_as_the_policy_says_and_success_starts_it_over() -> None:
    bench = Bench(waits=lambda state: 0.0)
    bench.syncer.ask()
    for attempt in (1, 2, 3):
        bench.next()
        bench.end(failed())
        until(lambda attempt=attempt: len(bench.attempts) == attempt)  # type: ignore[misc]
    bench.next()
    bench.end(result())
    bench.syncer.ask()
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
    bench.syncer.ask()
    bench.next()
    bench.end(failed(Overloaded("patience", kind="http_5xx", retry_after=77)))
    until(lambda: bool(seen))

    assert isinstance(seen[0], Overloaded)
    assert seen[0].retry_after == 77
    bench.close()


def test_new_events_do_not_shorten_the_wait_after_a_failure_but_who_asks_does(bench: Bench) -> None:
    bench.syncer.ask()
    bench.next()
    bench.end(failed(Overloaded("patience", kind="http_5xx", retry_after=LONG)))
    until(lambda: bool(bench.attempts))
    bench.syncer.news()
    bench.syncer.ask()

    assert bench.next() is True, "the run that was asked for, not one for the news"
    bench.end(failed())
    until(lambda: len(bench.attempts) == 2)
    assert bench.attempts == [1, 1], "asking starts the policy over"


def test_a_new_link_shortens_the_wait_and_starts_the_policy_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agenda, "LINK_SETTLE_S", 0.0)
    bench.syncer.ask()
    bench.next()
    bench.end(failed())
    until(lambda: bool(bench.attempts))
    bench.syncer.link()
    bench.next()
    bench.end(failed())
    until(lambda: len(bench.attempts) == 2)

    assert bench.attempts == [1, 1]


def test_who_asks_during_a_run_that_was_asked_for_joins_it(bench: Bench) -> None:
    first = bench.syncer.ask()
    bench.next()
    second = bench.syncer.ask()
    finished = bench.end(result(waiting=0))

    assert finished.covers == second == first + 1
    bench.settle()
    assert bench.begun.empty()


def test_who_asks_during_a_run_that_fails_joins_its_failure(bench: Bench) -> None:
    bench.syncer.ask()
    bench.next()
    second = bench.syncer.ask()

    assert bench.end(failed()).covers == second


def test_who_asks_during_a_run_that_leaves_something_gets_another(bench: Bench) -> None:
    first = bench.syncer.ask()
    bench.next()
    second = bench.syncer.ask()

    assert bench.end(result(waiting=3)).covers == first
    assert bench.next() is True
    assert bench.end(result()).covers == second


def test_who_asks_during_a_run_of_the_timer_that_heard_nothing_gets_another(bench: Bench) -> None:
    bench.syncer.news()
    bench.next()
    ticket = bench.syncer.ask()

    assert bench.end(result(delivered=0)).covers < ticket
    assert bench.next() is True
    assert bench.end(result()).covers == ticket


def test_an_outbox_that_fails_is_told_and_tried_again() -> None:
    bench = Bench(waits=lambda state: 0.0)
    bench.syncer.ask()
    bench.next()

    finished = bench.end(StoreUnusable("the disk"))

    assert isinstance(finished.error, StoreUnusable)
    bench.next()
    bench.close()


def test_an_error_that_nobody_foresaw_ends_the_run_and_not_the_thread(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.syncer.ask()
    bench.next()
    finished = bench.end(ZeroDivisionError("who divides here?"))

    assert isinstance(finished.error, AgentError)
    assert "nobody foresaw" in caplog.text
    bench.syncer.ask()
    bench.next()


def test_without_an_identity_nothing_runs_until_there_is_one() -> None:
    bench = Bench(enrolled=False)
    bench.syncer.news()
    assert bench.syncer.live().due is None
    bench.syncer.enrolled(True)

    assert bench.next() is True
    bench.close()


def test_the_end_cuts_a_wait_short(bench: Bench) -> None:
    bench.syncer.ask()
    bench.next()
    bench.end(failed())
    until(lambda: bool(bench.attempts))
    bench.syncer.stop()

    assert bench.syncer.join(DEADLINE_S)


def test_it_tells_what_it_is_about(bench: Bench) -> None:
    bench.syncer.ask()
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


def test_the_thread_does_not_keep_the_process() -> None:
    bench = Bench()
    assert any(thread.name == "sync" and thread.daemon for thread in threading.enumerate())
    bench.close()

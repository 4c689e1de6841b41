"""Which sync events are made and when, from tables; and how they are sent."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.client import ReceiverClient
from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.outbox import Outbox
from pisync_agent.sync.sync_events import RunSummary, State, SyncEventSender, decide, dump, load, true_ms, worth_trying
from pisync_common.models import Stamp
from pisync_common.times import parse_ms
from tests.support.outboxes import STAMP, StillClock

MINUTE = 60_000


def at(minutes: float, *, boot: str = STAMP.boot_id, synced: bool = True) -> Stamp:
    return Stamp(
        at_ms=STAMP.at_ms + int(minutes * MINUTE),
        boot_id=boot,
        boottime_ms=STAMP.boottime_ms + int(minutes * MINUTE),
        clock_synced=synced,
    )


def good(minutes: float, files: int = 1, **changed: Any) -> RunSummary:
    fields: dict[str, Any] = {"stamp": at(minutes), "files": files, "bytes": files * 100, "seconds": 1.0}
    return RunSummary(**(fields | changed))


def bad(minutes: float, **errors: int) -> RunSummary:
    return RunSummary(stamp=at(minutes), errors=errors or {"timeout": 1})


def offline(minutes: float, files: int = 0) -> RunSummary:
    return RunSummary(stamp=at(minutes), files=files, offline=True, contact=files > 0)


def idle(minutes: float) -> RunSummary:
    return RunSummary(stamp=at(minutes), contact=False)


Said = tuple[float, int, dict[str, int]]


def decided(runs: Sequence[RunSummary], *, forced: Sequence[int] = ()) -> list[list[Said]]:
    """Return the sync events decided on after each run: (minutes, files, errors) each."""
    state, said = State(), list[list[Said]]()
    for number, run in enumerate(runs):
        summaries, state = decide(state, run, forced=number in forced)
        state = load(dump(state))
        said.append([((o.stamp.at_ms - STAMP.at_ms) / MINUTE, o.files, dict(o.errors)) for o in summaries])
    return said


TIMEOUT = {"timeout": 1}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([good(0)], [[(0, 1, {})]], id="the first success at once"),
        pytest.param([good(0), good(5), good(14)], [[(0, 1, {})], [], []], id="successes are held for a quarter"),
        pytest.param(
            [good(0), good(5), good(14), good(15)], [[(0, 1, {})], [], [], [(15, 3, {})]], id="and folded into one"
        ),
        pytest.param(
            [good(0), good(16), good(20), good(31)],
            [[(0, 1, {})], [(16, 1, {})], [], [(31, 2, {})]],
            id="a quarter counts from the last sync event",
        ),
        pytest.param([bad(0), bad(1)], [[(0, 0, TIMEOUT)], [(1, 0, TIMEOUT)]], id="every failure at once"),
        pytest.param([bad(0), good(1), good(2)], [[(0, 0, TIMEOUT)], [(1, 1, {})], []], id="the recovery at once"),
        pytest.param(
            [good(0), good(1), bad(2)],
            [[(0, 1, {})], [], [(1, 1, {}), (2, 0, TIMEOUT)]],
            id="what was held goes before the failure",
        ),
        pytest.param([good(0), offline(1), good(2)], [[(0, 1, {})], [], [(2, 1, {})]], id="a new link at once"),
        pytest.param(
            [good(0), good(1), offline(2), offline(3), good(4)],
            [[(0, 1, {})], [], [(1, 1, {})], [], [(4, 1, {})]],
            id="what was held is queued under its own time when the link goes",
        ),
        pytest.param([offline(0), offline(1)], [[], []], id="being offline is no failure"),
        pytest.param([offline(0, files=3)], [[(0, 3, {})]], id="what got through before the link went"),
        pytest.param(
            [bad(0), offline(1), good(2)], [[(0, 0, TIMEOUT)], [], [(2, 1, {})]], id="a recovery after being offline"
        ),
        pytest.param(
            [good(0), good(1), idle(10), idle(15)], [[(0, 1, {})], [], [], [(1, 1, {})]], id="an idle run flushes"
        ),
        pytest.param([idle(0), idle(20)], [[], []], id="nothing done makes no sync event"),
        pytest.param([bad(0), idle(1)], [[(0, 0, TIMEOUT)], []], id="doing nothing is no recovery"),
        pytest.param(
            [good(0), bad(1, rejected=2), good(2)],
            [[(0, 1, {})], [(1, 0, {"rejected": 2})], [(2, 1, {})]],
            id="a rejected event is a failure",
        ),
    ],
)
def test_each_sequence_of_runs_makes_its_sync_events(runs: list[RunSummary], expected: list[Any]) -> None:
    assert decided(runs) == expected


def test_a_requested_run_makes_a_sync_event_with_those_unsent() -> None:
    assert decided([good(0), good(1), good(2)], forced=[2]) == [[(0, 1, {})], [], [(2, 2, {})]]


def test_after_a_boot_the_quarter_is_over() -> None:
    runs = [good(0), good(1, stamp=at(1, boot="b0070000-0000-4000-8000-000000000002"))]

    assert decided(runs) == [[(0, 1, {})], [(1, 1, {})]]


def test_the_wall_clock_does_not_matter_for_the_quarter() -> None:
    jumped = replace(at(1), at_ms=0)

    assert decided([good(0), good(1, stamp=jumped)])[1] == []


def test_the_speed_is_that_of_all_runs_together() -> None:
    (_, state) = decide(State(success_sent=at(0)), good(1, bytes=1_000_000, seconds=1.0), forced=False)
    ((whole,), _) = decide(state, good(2, bytes=1_000_000, seconds=3.0), forced=True)

    assert whole.speed == 4.0


@given(st.lists(st.tuples(st.sampled_from("gboi"), st.integers(1, 20), st.integers(1, 5), st.booleans()), max_size=30))
def test_files_and_failures_are_counted_once_and_in_order(steps: list[tuple[str, int, int, bool]]) -> None:
    state, minutes, said, files, failures = State(), 0, [], 0, 0
    for kind, after, number, forced in steps:
        minutes += after
        run = {"g": good(minutes, number), "b": bad(minutes), "o": offline(minutes), "i": idle(minutes)}[kind]
        files, failures = files + run.files, failures + run.failed
        summaries, state = decide(state, run, forced=forced)
        said += summaries

    assert sum(each.files for each in said) + (state.unsent.files if state.unsent else 0) == files
    assert sum(each.failed for each in said) == failures
    assert [each.stamp.at_ms for each in said] == sorted(each.stamp.at_ms for each in said)


@pytest.mark.parametrize(
    "note",
    [
        None,
        "",
        "null",
        "[]",
        "7",
        "{",
        '{"success_sent": 3}',
        '{"unsent": {"stamp": {}}}',
        '{"success_sent": {"x": 1}}',
    ],
)
def test_an_unreadable_state_is_a_new_one(note: str | None) -> None:
    assert load(note) == State()


FAILURES: list[tuple[DeliveryError | None, bool, bool]] = [
    (None, False, True),
    (Unreachable("", kind="dns"), False, False),
    (Unreachable("", kind="connect"), False, False),
    (Unreachable("", kind="timeout"), False, False),
    (Unreachable("", kind="tls"), False, False),
    (Unreachable("", kind="tls"), True, False),
    (Unreachable("", kind="clock"), True, False),
    (Unreachable("", kind="connect"), True, True),
    (Unreachable("", kind="timeout"), True, True),
    (Unreachable("", kind="portal"), True, True),
    (Refused("", kind="auth"), True, False),
    (TooLarge("", kind="http_4xx"), True, True),
    (BadAnswer("", kind="http_5xx"), True, True),
    (BadAnswer("", kind="http_5xx", retry_after=3.0), True, False),
    (Overloaded("", kind="http_5xx"), True, True),
    (Overloaded("", kind="http_5xx", retry_after=3.0), True, False),
]


@pytest.mark.parametrize(("failure", "reached", "expected"), FAILURES)
def test_sync_events_are_tried_after_promising_runs_only(
    failure: DeliveryError | None, reached: bool, expected: bool
) -> None:
    assert worth_trying(failure, reached=reached) is expected


@pytest.mark.parametrize(
    ("taken", "now", "now_ms", "expected"),
    [
        pytest.param(at(0, synced=True), at(9), 0, at(0).at_ms, id="a synchronised time stands"),
        pytest.param(at(0, synced=False), at(9), 10**12, 10**12 - 9 * MINUTE, id="this boot's is counted back"),
        pytest.param(at(0, synced=False), at(9), None, at(0).at_ms, id="nothing to count back from"),
        pytest.param(at(0, synced=False, boot="other"), at(9), 10**12, at(0).at_ms, id="another boot's cannot be"),
    ],
)
def test_a_run_keeps_its_own_time(taken: Stamp, now: Stamp, now_ms: int | None, expected: int) -> None:
    assert true_ms(taken, now, now_ms=now_ms) == expected


class Queue:
    """The queue of sync events and notes, in state."""

    def __init__(self) -> None:
        self.events: list[QueuedSyncEvent] = []
        self.notes: dict[str, str] = {}
        self.writes = 0

    def add_sync_event(self, *events: QueuedSyncEvent) -> None:
        for event in events:
            self.events.append(replace(event, id=len(self.events) + 100))

    def next_sync_event(self) -> QueuedSyncEvent | None:
        return self.events[0] if self.events else None

    def delete_sync_event(self, id: int) -> None:
        self.events = [event for event in self.events if event.id != id]

    def note(self, name: str) -> str | None:
        return self.notes.get(name)

    def set_note(self, name: str, value: str, *, later: bool) -> None:
        assert later, "a commit of its own for each run"
        self.writes += 1
        self.notes[name] = value


class Client:
    """Accepts sync events, or fails with the next of `faults`."""

    device_id = "pibook-1"

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], str]] = []
        self.faults: list[DeliveryError | None] = []

    def post_sync_event(self, body: bytes, *, key: str) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self.sent.append((json.loads(body), key))


class Bench:
    def __init__(self) -> None:
        self.queue, self.client, self.clock = Queue(), Client(), StillClock(at(0))
        self.keys = iter(range(1, 1000))
        self.sender = self.restarted()

    def restarted(self) -> SyncEventSender:
        return SyncEventSender(
            queue=cast(Outbox, self.queue),
            client=cast(ReceiverClient, self.client),
            clock=self.clock,
            random_hex=lambda n: f"key-{next(self.keys)}",
        )

    def at(self, minutes: float, **changed: Any) -> None:
        self.clock.now = at(minutes, **changed)


def test_sync_events_are_sent_in_order_with_their_key_and_time() -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    bench.sender.add(bad(1, dns=1, rejected=2), forced=False)
    bench.sender.add(good(2, files=7, bytes=250_000, seconds=4.0), forced=False)
    bench.at(600)

    assert bench.sender.send() == 3

    assert [key for _, key in bench.client.sent] == ["key-1", "key-2", "key-3"]
    assert [parse_ms(body["timestamp"]) for body, _ in bench.client.sent] == [at(n).at_ms for n in range(3)]
    assert [body["total_errors"] for body, _ in bench.client.sent] == [1, 3, 0]
    assert bench.client.sent[1][0]["errors"] == {"dns": 1, "rejected": 2}
    assert bench.client.sent[2][0] == {
        "device_id": "pibook-1",
        "timestamp": "2026-11-23T09:02:00.000Z",
        "total_files_synced": 7,
        "total_errors": 0,
        "internet_speed": 0.5,
    }
    assert bench.queue.events == []


def test_a_failed_sync_event_is_sent_again_with_the_same_key() -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    bench.client.faults = [Unreachable("lost", kind="timeout")]

    assert bench.sender.send() == 0
    assert bench.restarted().send() == 1

    assert [key for _, key in bench.client.sent] == ["key-1"]


def test_a_declined_sync_event_does_not_block_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    bench.sender.add(bad(1), forced=False)
    bench.client.faults = [Declined("no such field", kind="http_4xx")]

    bench.sender.send()

    assert [key for _, key in bench.client.sent] == ["key-2"]
    assert bench.queue.events == []
    assert "dropped" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [
        Refused("", kind="auth"),
        TooLarge("", kind="http_4xx"),
        Overloaded("", kind="http_4xx"),
        BadAnswer("", kind="http_4xx"),
        BadAnswer("", kind="http_5xx"),
        Unreachable("", kind="portal"),
    ],
)
def test_any_other_failure_keeps_the_queue(failure: DeliveryError) -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    bench.sender.add(bad(1), forced=False)
    bench.client.faults = [failure]

    assert bench.sender.send() == 0

    assert len(bench.queue.events) == 2


def test_sync_events_respect_retry_after() -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    bench.client.faults = [Overloaded("", kind="http_5xx", retry_after=120.0)]
    bench.sender.send()

    bench.at(1.9)
    assert bench.sender.send() == 0
    assert bench.client.sent == []

    bench.at(2)
    assert bench.sender.send() == 1


def test_retry_after_of_a_batch_holds_for_sync_events_until_a_request() -> None:
    bench = Bench()
    bench.sender.put_off(Overloaded("", kind="http_5xx", retry_after=120.0))
    bench.sender.add(bad(0), forced=False)

    assert bench.sender.send() == 0
    assert bench.sender.send(forced=True) == 1


def test_stopping_ends_between_two_sync_events() -> None:
    bench = Bench()
    for minute in range(3):
        bench.sender.add(bad(minute), forced=False)

    assert bench.sender.send(stopping=lambda: len(bench.client.sent) == 2) == 2

    assert len(bench.queue.events) == 1


def test_the_state_outlives_the_process() -> None:
    bench = Bench()
    bench.sender.add(bad(0), forced=False)
    assert bench.restarted().failing

    bench.restarted().add(good(1), forced=False)
    assert not bench.restarted().failing

    bench.restarted().add(good(2, files=3), forced=False)
    bench.restarted().add(good(17, files=4), forced=False)
    assert [event.files for event in bench.queue.events] == [0, 1, 7]


def test_a_run_that_changes_nothing_writes_nothing() -> None:
    bench = Bench()
    bench.sender.add(offline(0), forced=False)
    bench.sender.add(idle(1), forced=False)

    assert bench.queue.writes == 0


def test_the_receivers_clock_corrects_a_device_whose_own_is_wrong() -> None:
    bench = Bench()
    bench.at(10, synced=False)
    bench.sender.learn_time("2030-01-01T00:10:00.000Z")
    bench.sender.add(RunSummary(stamp=at(4, synced=False), errors={"timeout": 1}), forced=False)
    bench.at(99, synced=False)

    bench.sender.send()

    assert bench.client.sent[0][0]["timestamp"] == "2030-01-01T00:04:00.000Z"


def test_a_synchronised_clock_corrects_what_was_stamped_before_it_was() -> None:
    bench = Bench()
    bench.sender.learn_time("2030-01-01T00:10:00.000Z")
    bench.sender.add(RunSummary(stamp=replace(at(4, synced=False), at_ms=0), errors={"timeout": 1}), forced=False)
    bench.at(10)

    bench.sender.send()

    assert parse_ms(bench.client.sent[0][0]["timestamp"]) == at(4).at_ms


def test_a_server_time_that_cannot_be_read_is_ignored() -> None:
    bench = Bench()
    bench.sender.learn_time("yesterday")
    bench.sender.add(RunSummary(stamp=at(0, synced=False), errors={"timeout": 1}), forced=False)
    bench.at(5, synced=False)

    assert bench.sender.send() == 1

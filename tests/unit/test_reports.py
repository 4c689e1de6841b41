"""What is reported and when, from tables; and how reports are sent."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisync_agent.errors import BadAnswer, Declined, DeliveryError, Overloaded, Refused, TooLarge, Unreachable
from pisync_agent.outbox import Report
from pisync_agent.reports import Memory, Outcome, Reporter, decide, dump, load, true_ms, worth_trying
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


def good(minutes: float, files: int = 1, **changed: Any) -> Outcome:
    fields: dict[str, Any] = {"stamp": at(minutes), "files": files, "bytes": files * 100, "seconds": 1.0}
    return Outcome(**(fields | changed))


def bad(minutes: float, **errors: int) -> Outcome:
    return Outcome(stamp=at(minutes), errors=errors or {"timeout": 1})


def offline(minutes: float, files: int = 0) -> Outcome:
    return Outcome(stamp=at(minutes), files=files, offline=True, contact=files > 0)


def idle(minutes: float) -> Outcome:
    return Outcome(stamp=at(minutes), contact=False)


Said = tuple[float, int, dict[str, int]]


def reported(runs: Sequence[Outcome], *, forced: Sequence[int] = ()) -> list[list[Said]]:
    """After each run, what it made the agent report: (minutes, files, errors) each."""
    memory, said = Memory(), list[list[Said]]()
    for number, run in enumerate(runs):
        outcomes, memory = decide(memory, run, forced=number in forced)
        memory = load(dump(memory))
        said.append([((o.stamp.at_ms - STAMP.at_ms) / MINUTE, o.files, dict(o.errors)) for o in outcomes])
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
            id="a quarter counts from the last report",
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
        pytest.param([idle(0), idle(20)], [[], []], id="nothing done is nothing to report"),
        pytest.param([bad(0), idle(1)], [[(0, 0, TIMEOUT)], []], id="doing nothing is no recovery"),
        pytest.param(
            [good(0), bad(1, rejected=2), good(2)],
            [[(0, 1, {})], [(1, 0, {"rejected": 2})], [(2, 1, {})]],
            id="a rejected event is a failure",
        ),
    ],
)
def test_what_is_reported_and_when(runs: list[Outcome], expected: list[Any]) -> None:
    assert reported(runs) == expected


def test_a_forced_run_is_reported_at_once_with_what_was_held() -> None:
    assert reported([good(0), good(1), good(2)], forced=[2]) == [[(0, 1, {})], [], [(2, 2, {})]]


def test_after_a_boot_the_quarter_is_over() -> None:
    runs = [good(0), good(1, stamp=at(1, boot="b0070000-0000-4000-8000-000000000002"))]

    assert reported(runs) == [[(0, 1, {})], [(1, 1, {})]]


def test_the_wall_clock_does_not_matter_for_the_quarter() -> None:
    jumped = replace(at(1), at_ms=0)

    assert reported([good(0), good(1, stamp=jumped)])[1] == []


def test_the_speed_is_that_of_all_runs_together() -> None:
    (_, memory) = decide(Memory(reported=at(0)), good(1, bytes=1_000_000, seconds=1.0), forced=False)
    ((whole,), _) = decide(memory, good(2, bytes=1_000_000, seconds=3.0), forced=True)

    assert whole.speed == 4.0


@given(st.lists(st.tuples(st.sampled_from("gboi"), st.integers(1, 20), st.integers(1, 5), st.booleans()), max_size=30))
def test_no_item_and_no_failure_is_lost_and_the_order_is_kept(steps: list[tuple[str, int, int, bool]]) -> None:
    memory, minutes, said, files, failures = Memory(), 0, [], 0, 0
    for kind, after, number, forced in steps:
        minutes += after
        run = {"g": good(minutes, number), "b": bad(minutes), "o": offline(minutes), "i": idle(minutes)}[kind]
        files, failures = files + run.files, failures + run.failed
        outcomes, memory = decide(memory, run, forced=forced)
        said += outcomes

    assert sum(each.files for each in said) + (memory.held.files if memory.held else 0) == files
    assert sum(each.failed for each in said) == failures
    assert [each.stamp.at_ms for each in said] == sorted(each.stamp.at_ms for each in said)


@pytest.mark.parametrize(
    "note", [None, "", "null", "[]", "7", "{", '{"reported": 3}', '{"held": {"stamp": {}}}', '{"reported": {"x": 1}}']
)
def test_a_memory_that_cannot_be_read_is_a_fresh_one(note: str | None) -> None:
    assert load(note) == Memory()


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
def test_after_which_runs_a_report_is_tried(failure: DeliveryError | None, reached: bool, expected: bool) -> None:
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
    """The outbox's reports and notes, in memory."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.notes: dict[str, str] = {}
        self.writes = 0

    def add_report(self, report: Report) -> None:
        self.reports.append(replace(report, id=len(self.reports) + 100))

    def next_report(self) -> Report | None:
        return self.reports[0] if self.reports else None

    def drop_report(self, report_id: int) -> None:
        self.reports = [report for report in self.reports if report.id != report_id]

    def note(self, name: str) -> str | None:
        return self.notes.get(name)

    def set_note(self, name: str, value: str) -> None:
        self.writes += 1
        self.notes[name] = value


class Client:
    """Takes reports, or fails as told."""

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
        self.reporter = self.restarted()

    def restarted(self) -> Reporter:
        return Reporter(self.queue, self.client, clock=self.clock, random_hex=lambda n: f"key-{next(self.keys)}")

    def at(self, minutes: float, **changed: Any) -> None:
        self.clock.now = at(minutes, **changed)


def test_reports_go_in_order_each_with_its_key_and_its_own_time() -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    bench.reporter.add(bad(1, dns=1, rejected=2), forced=False)
    bench.reporter.add(good(2, files=7, bytes=250_000, seconds=4.0), forced=False)
    bench.at(600)

    assert bench.reporter.send() == 3

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
    assert bench.queue.reports == []


def test_a_report_that_failed_is_sent_again_with_the_same_key() -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    bench.client.faults = [Unreachable("lost", kind="timeout")]

    assert bench.reporter.send() == 0
    assert bench.restarted().send() == 1

    assert [key for _, key in bench.client.sent] == ["key-1"]


def test_a_declined_report_does_not_block_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    bench.reporter.add(bad(1), forced=False)
    bench.client.faults = [Declined("no such field", kind="http_4xx")]

    bench.reporter.send()

    assert [key for _, key in bench.client.sent] == ["key-2"]
    assert bench.queue.reports == []
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
def test_any_other_failure_keeps_it_and_those_behind_it(failure: DeliveryError) -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    bench.reporter.add(bad(1), forced=False)
    bench.client.faults = [failure]

    assert bench.reporter.send() == 0

    assert len(bench.queue.reports) == 2


def test_after_a_retry_after_no_report_is_tried_before_its_time() -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    bench.client.faults = [Overloaded("", kind="http_5xx", retry_after=120.0)]
    bench.reporter.send()

    bench.at(1.9)
    assert bench.reporter.send() == 0
    assert bench.client.sent == []

    bench.at(2)
    assert bench.reporter.send() == 1


def test_a_batch_s_retry_after_holds_for_reports_until_somebody_asks() -> None:
    bench = Bench()
    bench.reporter.put_off(Overloaded("", kind="http_5xx", retry_after=120.0))
    bench.reporter.add(bad(0), forced=False)

    assert bench.reporter.send() == 0
    assert bench.reporter.send(forced=True) == 1


def test_stopping_ends_it_between_two_reports() -> None:
    bench = Bench()
    for minute in range(3):
        bench.reporter.add(bad(minute), forced=False)

    assert bench.reporter.send(stopping=lambda: len(bench.client.sent) == 2) == 2

    assert len(bench.queue.reports) == 1


def test_the_memory_outlives_the_process() -> None:
    bench = Bench()
    bench.reporter.add(bad(0), forced=False)
    assert bench.restarted().failing

    bench.restarted().add(good(1), forced=False)
    assert not bench.restarted().failing

    bench.restarted().add(good(2, files=3), forced=False)
    bench.restarted().add(good(17, files=4), forced=False)
    assert [report.files for report in bench.queue.reports] == [0, 1, 7]


def test_a_run_that_changes_nothing_writes_nothing() -> None:
    bench = Bench()
    bench.reporter.add(offline(0), forced=False)
    bench.reporter.add(idle(1), forced=False)

    assert bench.queue.writes == 0


def test_the_receivers_clock_corrects_a_device_whose_own_is_wrong() -> None:
    bench = Bench()
    bench.at(10, synced=False)
    bench.reporter.learn("2030-01-01T00:10:00.000Z")
    bench.reporter.add(Outcome(stamp=at(4, synced=False), errors={"timeout": 1}), forced=False)
    bench.at(99, synced=False)

    bench.reporter.send()

    assert bench.client.sent[0][0]["timestamp"] == "2030-01-01T00:04:00.000Z"


def test_a_synchronised_clock_corrects_what_was_stamped_before_it_was() -> None:
    bench = Bench()
    bench.reporter.learn("2030-01-01T00:10:00.000Z")
    bench.reporter.add(Outcome(stamp=replace(at(4, synced=False), at_ms=0), errors={"timeout": 1}), forced=False)
    bench.at(10)

    bench.reporter.send()

    assert parse_ms(bench.client.sent[0][0]["timestamp"]) == at(4).at_ms


def test_a_server_time_that_cannot_be_read_is_ignored() -> None:
    bench = Bench()
    bench.reporter.learn("yesterday")
    bench.reporter.add(Outcome(stamp=at(0, synced=False), errors={"timeout": 1}), forced=False)
    bench.at(5, synced=False)

    assert bench.reporter.send() == 1
